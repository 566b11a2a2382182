#!/bin/sh
# Builds a second copy of the package with AddressSanitizer and UBSan, and runs the tests of the C core on it.
# docs/sanitizers.md says how that works. Called by `make asan-test` and .ci/run; arguments go to pytest.
#
#   PYTHON   an interpreter that has the build and test requirements (default: .venv/bin/python)
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
copy=$root/build/asan

# Which tests: those that drive the core, not those of the toolstack's texts or of peers.
tests="tests/unit tests/property tests/guests"

mkdir -p "$copy"
(cd "$root" && tar cf - --exclude='*.so' --exclude='*.o' --exclude=_core.c --exclude=__pycache__ \
    csrc xenlike guest_sdk tests scripts docs setup.py pyproject.toml) | (cd "$copy" && tar xf -)
cd "$copy"

asan=$(${CC:-gcc} -print-file-name=libasan.so)
case $asan in
/*) ;;
*)  echo "the compiler has no AddressSanitizer library (libasan.so): on Debian it comes with gcc" >&2; exit 3 ;;
esac

# Only what has changed is built again.
newest=$(find csrc xenlike/_build.py -newer build.stamp 2>/dev/null | head -n 1 || true)
if [ ! -e build.stamp ] || [ -n "$newest" ]; then
    XENLIKE_SANITIZE=1 "$python" xenlike/_build.py
    touch build.stamp
fi

export PYTHONPATH="$copy"
export LD_PRELOAD="$asan"
export PYTHONMALLOC=malloc
export ASAN_OPTIONS="detect_leaks=0:strict_string_checks=1:detect_stack_use_after_return=1:allocator_may_return_null=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
"$python" -c 'import sys, xenlike._core as core
sys.exit(not core.__file__.startswith(sys.argv[1]) and f"{core.__file__} is not the build with sanitizers")' "$copy"
# shellcheck disable=SC2086
exec "$python" -m pytest -p no:faulthandler $tests "$@"
