#!/bin/sh
# Makes a virtual environment with what building and testing need. Called by the Makefile and .ci/run.
#
#   scripts/setup_venv.sh VENV [--check]
#
# PYTHON names the interpreter (default: python3). --check only looks whether the system has what is needed; it prints what is
# missing, and exits with 3. Nothing here needs root.
set -eu

venv=$1
python=${PYTHON:-python3}
missing=
packages=

lacks() {                   # what, Debian packages
    missing="$missing
  $1"
    packages="$packages $2"
}

command -v "${CC:-cc}" >/dev/null 2>&1 || lacks "a C compiler (${CC:-cc})" gcc
command -v make >/dev/null 2>&1 || lacks "make" make
if ! command -v "$python" >/dev/null 2>&1; then
    lacks "Python ($python)" "python3 python3-venv python3-dev"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    lacks "Python 3.10 or later ($python is $("$python" -V 2>&1)); another one can be named: make PYTHON=python3.11" "python3"
else
    "$python" -c 'import venv, ensurepip' 2>/dev/null || lacks "Python's venv module" python3-venv
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || lacks "Python's C headers (Python.h)" python3-dev
fi

if [ -n "$missing" ]; then
    printf 'To build xenlike this machine lacks:%s\nOn Debian or Ubuntu:  apt-get install%s\n' "$missing" "$packages" >&2
    exit 3
fi
[ "${2:-}" != --check ] || exit 0

echo "setting up $venv"
[ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import pip' 2>/dev/null || "$python" -m venv --clear "$venv"

# The lists are pyproject.toml's own. Its build requirements are installed too: the package is built without isolation, so that
# a rebuild fetches nothing.
"$venv/bin/python" - <<'EOF' | xargs -d '\n' "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade
try:
    import tomllib
except ImportError:             # Python 3.10
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
print(*project["build-system"]["requires"], *project["project"]["dependencies"],
      *project["project"]["optional-dependencies"]["test"], sep="\n")
EOF
