"""``python -m xenlike.demo``."""

import sys

from xenlike.demo import main

if __name__ == "__main__":
    sys.exit(main())
