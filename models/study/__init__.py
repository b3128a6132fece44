"""IsoFLOP studies: what a prefix buys at equal compute. ``python -m models.study --help``."""

import sys

from flopcount.commands import prepare

if sys.argv[0] == "-m":  # Python looks for the module that it is to run: this is a program.
    prepare()
