"""Benchmarks: how fast, against whom, and what the hardware counts. ``benchmarks/README.md``."""

import sys

from flopcount.commands import prepare

if sys.argv[0] == "-m":  # Python looks for the module that it is to run: this is a program.
    prepare()
