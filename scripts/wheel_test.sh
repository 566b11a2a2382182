#!/bin/sh
# Source distribution, wheel, installation: built as a stranger's pip builds them, and used from an empty folder.
# Called by `make wheel-test` and .ci/run.
#
#   PYTHON   an interpreter that has the build requirements (default: .venv/bin/python)
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1

mkdir "$work/source"
(cd "$root" && tar cf - --exclude=./build --exclude=./.venv --exclude=./.git --exclude='*.so' --exclude='*.o' --exclude='*.egg-info' \
    --exclude=_core.c .) | (cd "$work/source" && tar xf -)

echo "source distribution"
(cd "$work/source" && "$python" -c 'import setuptools.build_meta as build; build.build_sdist("../dist")' >"$work/log" 2>&1) ||
    { cat "$work/log" >&2; exit 1; }
echo "wheel, from it"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$work"/dist/xenlike-*.tar.gz
echo "installation"
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "$work"/dist/xenlike-*.whl pytest

cd "$work"
PATH="$work/venv/bin:$PATH"
xenlike --version
python -c "import sys, xenlike, guest_sdk
assert xenlike.__file__.startswith(sys.prefix) and guest_sdk.__file__.startswith(sys.prefix), (xenlike.__file__, guest_sdk.__file__)"
xenlike new web >/dev/null
cd web
xenlike run web.cfg --timeout 60
python -m pytest -q
cd ..
xenlike new --lang c native >/dev/null
cd native
make -s
xenlike run native.cfg --timeout 60
python -m xenlike.demo --size 1M --rounds 10 | tail -n 1
