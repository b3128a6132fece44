"""``python -m validate.emulator``: :mod:`validate.emulator.report`."""

from __future__ import annotations

import sys

import tyro

from validate.emulator import report


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    prog = "python -m validate.emulator"
    return tyro.cli(report.show, args=arguments, prog=prog, description=report.__doc__)


if __name__ == "__main__":
    sys.exit(main())
