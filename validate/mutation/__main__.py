"""``python -m validate.mutation``: whether a wrong formula would be noticed."""

import sys

import tyro

from validate.mutation.judging import main

if __name__ == "__main__":
    try:
        sys.exit(tyro.cli(main, prog="python -m validate.mutation"))
    except ValueError as error:
        sys.exit(f"mutation: {error}")
