"""The witnesses, and the report that holds every formula against them: ``python -m validate``."""

import sys

from flopcount.commands import prepare

if sys.argv[0] == "-m":  # Python looks for the module that it is to run: this is a program.
    prepare()
