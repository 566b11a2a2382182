#!/bin/sh
# Builds lockstep and lockstep-host:  build.sh FOLDER [flags for the interpreter's side, e.g. -fsanitize=address,undefined]
# Only what is older than its source, or than any header, is compiled. Called by test_lockstep.py and `make lockstep`.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
common="-std=gnu11 -O2 -g -pthread -fno-strict-aliasing -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -DXL_CORE
        -I$root/csrc -I$root/csrc/include -I$here"
export CC="${CC:-cc}" common out

stale() {   # object source
    [ ! -e "$1" ] || [ "$2" -nt "$1" ] || [ -n "$(find "$root/csrc" "$here" \( -name '*.h' -o -name '*.def' \) -newer "$1" | head -n 1)" ]
}

if stale "$out/lockstep-host" "$here/host.c"; then
    $CC $common -fPIE -pie -fno-stack-protector -fno-builtin -o "$out/lockstep-host" "$here/host.c"
fi
for source in "$root"/csrc/x86/*.c "$root"/csrc/bt/*.c "$root/csrc/base/arena.c" "$here/gen.c" "$here/lockstep.c"; do
    object=$out/$(basename "$(dirname "$source")")-$(basename "$source" .c).o
    if stale "$object" "$source"; then
        printf '%s %s\n' "$source" "$object"
    fi
done | xargs -r -P "$(nproc)" -L 1 sh -c 'rm -f "$1.new"; $CC $common '"$*"' -c "$0" -o "$1.new" && mv "$1.new" "$1"'
if [ ! -e "$out/lockstep" ] || [ -n "$(find "$out" -name '*.o' -newer "$out/lockstep" | head -n 1)" ]; then
    $CC -pthread "$@" -o "$out/lockstep" "$out"/*.o
fi
