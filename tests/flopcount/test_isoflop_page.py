"""The page on IsoFLOP: its examples run, and its commands are commands."""

import doctest
import re
import shlex
from pathlib import Path

from flopcount.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "isoflop.md"


def test_examples():
    results = doctest.testfile(str(PAGE), module_relative=False)
    assert results.attempted >= 2
    assert results.failed == 0


def test_plans_print_what_the_page_says(capsys):
    blocks = re.findall(r"```\n(flopcount plan .*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        _, *arguments = shlex.split(block.replace("\\\n", " "))
        assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(steps in out for steps in ("50,000", "31,421", "21,231"))
    assert "cost" in out
