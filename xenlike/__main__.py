"""``python -m xenlike``: the same as the command ``xenlike``."""

import sys

from xenlike.cli import main

if __name__ == "__main__":
    sys.exit(main())
