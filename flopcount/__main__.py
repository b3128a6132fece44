"""``python -m flopcount``: the command line."""

import sys

from flopcount.commands import prepare

if __name__ == "__main__":
    prepare()  # first: a package that is missing is said in a line

from flopcount.cli import main

if __name__ == "__main__":
    sys.exit(main())
