"""Command line: ``python -m benchmarks attention | block | counters | … --help``."""

import importlib
import sys
from collections.abc import Sequence

from flopcount.commands import wrong_command

PROGRAMS = {
    "attention": "benchmarks.attention.timing",
    "block": "benchmarks.step.block",
    "counters": "benchmarks.counters.run",
    "issue": "benchmarks.tiling.issue",
    "modelled": "benchmarks.tiling.modelled",
    "ranking": "benchmarks.tiling.ranking",
    "report": "benchmarks.report.tables",
    "schedule": "benchmarks.schedule",
    "soundness": "benchmarks.attention.soundness",
    "training": "benchmarks.step.training",
    "tune": "benchmarks.tiling.tune",
}
"""The module whose ``main`` each command is."""


def main(words: Sequence[str]) -> None:
    """Run a command with the words behind its name."""
    names = ", ".join(PROGRAMS)
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m benchmarks COMMAND …; COMMAND --help says the rest: {names}")
    elif words[0] not in PROGRAMS:
        wrong = wrong_command(words[:1], dict.fromkeys(PROGRAMS, ())) or f"expected one of {names}"
        print(f"python -m benchmarks: {wrong}", file=sys.stderr)
        raise SystemExit(2)
    else:
        importlib.import_module(PROGRAMS[words[0]]).main(list(words[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
