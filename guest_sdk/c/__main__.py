"""``python -m guest_sdk.c``: what makefiles and build systems ask."""

from __future__ import annotations

import argparse
import sys

from guest_sdk.c import cflags, directory, makefile


def main() -> int:
    """Prints one of the facts; the exit status is 0."""
    parser = argparse.ArgumentParser(prog="python -m guest_sdk.c", description="Where the SDK for C guests is.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--mk", nargs="?", const="pv", choices=("pv", "pc"), help="the file that a guest's Makefile includes (pc: bare metal)")
    what.add_argument("--dir", action="store_true", help="the SDK's folder")
    what.add_argument("--cflags", action="store_true", help="the compiler's options")
    chosen = parser.parse_args()
    print(makefile(chosen.mk) if chosen.mk else directory() if chosen.dir else " ".join(cflags()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
