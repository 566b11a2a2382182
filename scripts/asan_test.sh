#!/bin/sh
# Builds a second copy of the package with AddressSanitizer and UBSan, in build/asan, and runs the C core's tests on it.
# docs/sanitizers.md says how that works under Python. Called by `make asan-test` and .ci/run; arguments go to pytest.
#
#   PYTHON   an interpreter that has the build and test requirements (default: .venv/bin/python)
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
copy=$root/build/asan

asan=$(${CC:-gcc} -print-file-name=libasan.so)
case $asan in
/*) ;;
*)  echo "${CC:-gcc} has no AddressSanitizer library (libasan.so); on Debian it comes with the package gcc" >&2; exit 3 ;;
esac

# A copy, because the tests import what lies beside them. Times are kept: what has not changed is not built again.
mkdir -p "$copy"
rm -rf "$copy/tests"
(cd "$root" && tar cf - --exclude='*.so' --exclude='*.o' --exclude=_core.c --exclude=__pycache__ \
    csrc xenlike guest_sdk tests scripts docs setup.py pyproject.toml LICENSE README.md) | (cd "$copy" && tar xf -)
cd "$copy"
if [ ! -e build.stamp ] || [ -n "$(find csrc xenlike/_build.py -newer build.stamp ! -name '*.o' ! -type d | head -n 1)" ]; then
    echo "building xenlike's C core with sanitizers"
    touch build.stamp.new
    XENLIKE_SANITIZE=1 "$python" xenlike/_build.py
    mv build.stamp.new build.stamp
fi

# capstone asks for RTLD_DEEPBIND where there is such a thing; AddressSanitizer's library then ends the process.
printf 'import os\nif hasattr(os, "RTLD_DEEPBIND"):\n    del os.RTLD_DEEPBIND\n' >sitecustomize.py

export PYTHONPATH="$copy"
export LD_PRELOAD="$asan"
export PYTHONMALLOC=malloc
export ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
export XENLIKE_BT_MACHINES="${XENLIKE_BT_MACHINES:-100}"
export XENLIKE_BT_STRESS="${XENLIKE_BT_STRESS:-10}"        # in one second hostile threads do not get far enough for their test here
rm -f "$copy"/report.*

# It must be this build that is tested, and it must see what it is there for: an overrun of a Python buffer in C.
"$python" - "$copy" 2>"$copy/selftest.log" <<'EOF' && { echo "the sanitizers saw nothing of a deliberate overrun" >&2; exit 1; }
import sys
import xenlike
from xenlike.engine import ffi, lib
if not xenlike.__file__.startswith(sys.argv[1]):
    sys.exit(f"{xenlike.__file__} is not the copy in {sys.argv[1]}")
with xenlike.Host(clock="virtual") as host:
    lib.xl_trace_read(host.c, ffi.new("struct trace_record[1]"), 16)
EOF
grep -q 'AddressSanitizer: heap-buffer-overflow' selftest.log || { cat selftest.log >&2; exit 1; }

# pytest keeps what a test prints, and dies with the process: reports go to files, which are shown at the end.
export ASAN_OPTIONS="$ASAN_OPTIONS:log_path=$copy/report"
export UBSAN_OPTIONS="$UBSAN_OPTIONS:log_path=$copy/report"

# The tests that drive the core, not those of texts, of the store and of commands; of the rest, not what takes minutes here. XENLIKE_ASAN=all: guests
# on the translator and PCs too, which takes twice as long. --ignore-glob does nothing to files that are named here themselves, --deselect does.
set -- "$@" tests/unit/test_*_core.py tests/unit/test_block_*.py tests/property/test_core_machines.py \
    tests/property/test_hostile_hypercalls.py tests/property/test_thread_stress.py tests/unit/test_builder_layout.py \
    tests/property/test_loader_fuzz.py tests/unit/test_loader_*.py tests/unit/test_pv_*.py tests/unit/test_x86_*.py \
    tests/property/test_x86_fuzz.py tests/property/test_pv_stress.py
if [ "${XENLIKE_ASAN:-}" = all ]; then
    set -- "$@" tests/unit/test_bt*.py tests/property/test_bt_fuzz.py tests/guests \
        --ignore-glob='*/test_cli_*' --ignore-glob='*/test_plugin*' --ignore-glob='*/test_bt_traces*' --ignore-glob='*/test_bt_masked*' \
        --ignore-glob='*/test_bt_view*' \
        --deselect tests/unit/test_bt.py::test_a_budget_ends_at_the_same_instruction_wherever_it_ends \
        --deselect tests/guests/test_pc_examples.py::test_the_benchmark_guest_agrees_with_the_native_program
else
    set -- "$@" tests/guests/test_c_*.py --deselect tests/guests/test_c_build.py
fi
"$python" -m pytest "$@" || {
    status=$?
    cat "$copy"/report.* >&2 2>/dev/null || true
    exit $status
}
# Processes that tests expect to die (planted defects, test_bt_defects.py) have left these: not a failure, but not to be overlooked either.
for report in "$copy"/report.*; do
    [ ! -e "$report" ] || echo "no test failed; a process of one left $report: $(grep -m1 -e SUMMARY -e 'runtime error' "$report")" >&2
done
