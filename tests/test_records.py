"""Tests of a record's age: marked, apart from the others, and with the command that renews it."""

import importlib.util
import re
from pathlib import Path

import pytest

pytest_plugins = "pytester"

ROOT = Path(__file__).parents[1]
MARKED = """
import pytest

@pytest.mark.record("python -m validate.gallery --write")
def test_age():
    assert "old" == "new"

def test_formula():
    assert 1 + 1 == {}
"""


@pytest.fixture
def run(pytester):
    """Run :data:`MARKED` as this project runs its tests."""

    def with_result(result, *options):
        pytester.makeconftest((ROOT / "conftest.py").read_text(encoding="utf-8"))
        pytester.makepyfile(MARKED.format(result))
        pytester.makeini("[pytest]\nmarkers = record(command)")
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)

    return with_result


def test_what_is_old_says_what_renews_it_and_nothing_else_does(run):
    printed = run(2)
    printed.assert_outcomes(failed=1, passed=1)
    printed.stdout.fnmatch_lines(["python -m validate.gallery --write renews it"])
    assert str(run(3).stdout).count("renews it") == 1


def test_records_can_be_left_out(run):
    run(2, "-m", "not record").assert_outcomes(passed=1, deselected=1)


def commands():
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return {found for text in texts for found in re.findall(r'mark\.record\("(.*?)"\)', text)}


def test_every_command_is_one_and_contributors_are_told_of_it():
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(commands()) >= 5
    for command in commands():
        module = command.removeprefix("python -m ").split()[0]
        assert importlib.util.find_spec(module), command
        assert f"`{command}" in section, command
