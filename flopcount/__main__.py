"""``python -m flopcount``: the command line."""

import sys

from flopcount.cli import main

if __name__ == "__main__":
    sys.exit(main())
