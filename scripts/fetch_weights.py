"""`align fetch` as a script: python scripts/fetch_weights.py NAME… [--list] [--check]."""

import sys

from align.cli import main

if __name__ == "__main__":
    sys.exit(main(["fetch", *sys.argv[1:]]))
