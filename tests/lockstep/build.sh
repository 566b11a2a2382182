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
# Named one by one, so that what an older tree has left in the folder is not linked.
sources="$(ls "$root"/csrc/x86/*.c "$root"/csrc/bt/*.c) $root/csrc/base/arena.c $root/csrc/base/clock.c"
for name in gen flow system engines compare lockstep; do
    sources="$sources $here/$name.c"
done
objects=
for source in $sources; do
    objects="$objects $out/$(basename "$(dirname "$source")")-$(basename "$source" .c).o"
done
for source in $sources; do
    object=$out/$(basename "$(dirname "$source")")-$(basename "$source" .c).o
    if stale "$object" "$source"; then
        printf '%s %s\n' "$source" "$object"
    fi
done | xargs -r -P "$(nproc)" -L 1 sh -c 'rm -f "$1.new"; $CC $common '"$*"' -c "$0" -o "$1.new" && mv "$1.new" "$1"'
# The list itself is remembered: a source that has gone makes what was linked old.
if [ ! -e "$out/lockstep" ] || [ "$(cat "$out/objects" 2>/dev/null)" != "$objects" ] || [ -n "$(find $objects -newer "$out/lockstep" | head -n 1)" ]; then
    $CC -pthread "$@" -o "$out/lockstep" $objects
    printf '%s' "$objects" >"$out/objects"
fi
