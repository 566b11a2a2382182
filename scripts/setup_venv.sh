#!/bin/sh
# Makes a virtual environment with what building and testing need. Called by the Makefile and .ci/run.
#
#   scripts/setup_venv.sh --check     only look whether the system has what is needed; names what is missing, exit status 3
#   scripts/setup_venv.sh VENV        make or update the virtual environment VENV
#   scripts/setup_venv.sh --install VENV   build the package in place and install it there (the command, pytest's plugin)
#
# PYTHON names the interpreter (default: python3). Nothing here needs root.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}

check() {
    missing=
    packages=
    command -v "${CC:-cc}" >/dev/null 2>&1 || lacks "a C compiler (${CC:-cc})" gcc
    command -v make >/dev/null 2>&1 || lacks make make
    if ! command -v "$python" >/dev/null 2>&1; then
        lacks "Python ($python)" "python3 python3-venv python3-dev"
    elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        lacks "Python 3.10 or later: $python is $("$python" -V 2>&1); name another one, PYTHON=python3.11" python3
    else
        "$python" -c 'import venv, ensurepip' 2>/dev/null || lacks "Python's venv module" python3-venv
        "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || lacks "Python's C headers (Python.h)" python3-dev
    fi
    [ -z "$missing" ] && return
    printf 'To build xenlike this machine lacks:%s\nOn Debian or Ubuntu:  apt-get install%s\n' "$missing" "$packages" >&2
    exit 3
}

lacks() {                   # what, Debian packages
    missing="$missing
  $1"
    packages="$packages $2"
}

quietly() {                 # runs a command; the end of its output is shown if it fails
    log=$(mktemp)
    "$@" >"$log" 2>&1 && status=0 || status=$?
    [ "$status" = 0 ] || tail -n 40 "$log" >&2
    rm -f "$log"
    return "$status"
}

# The lists are pyproject.toml's own. Build requirements are among them: the package is built without isolation, so that
# building again fetches nothing.
requirements() {
    "$1/bin/python" - <<'EOF'
try:
    import tomllib
except ImportError:         # Python 3.10
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    toml = tomllib.load(file)
project = toml["project"]
print(*toml["build-system"]["requires"], *project["dependencies"], *project["optional-dependencies"]["test"], sep="\n")
EOF
}

case ${1:-} in
--check)
    check ;;
--install)
    venv=$2
    echo "building xenlike's C core"
    quietly "$venv/bin/python" -m pip install --disable-pip-version-check --no-build-isolation --no-deps --editable . ;;
-* | '')
    echo "usage: scripts/setup_venv.sh [--check | --install VENV | VENV]" >&2
    exit 2 ;;
*)
    venv=$1
    check
    echo "setting up $venv"
    "$venv/bin/python" -c 'import pip' 2>/dev/null || "$python" -m venv --clear "$venv"
    requirements "$venv" | (
        set --
        while read -r word; do set -- "$@" "$word"; done
        quietly "$venv/bin/python" -m pip install --disable-pip-version-check "$@") ;;
esac
