"""The page on IsoFLOP: its numbers are what its commands print."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flopcount.cli import main
from flopcount.isoflop.laws import CHINCHILLA_TABLE_3

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "isoflop.md"
DATA = Path(os.environ.get("FLOPCOUNT_DATA", Path(__file__).parents[4] / "shared" / "data"))
POINTS = DATA / "scaling" / "chinchilla_figure4_epoch.csv"
NEEDS_POINTS = pytest.mark.skipif(
    not POINTS.exists(),
    reason=f"{POINTS} is absent, and not ours to publish; FLOPCOUNT_DATA names the folder",
)
FULL = "FLOPCOUNT_FULL_PAGE" in os.environ
"""Whether to run the 4,000 bootstrap fits of a surface, too, which take minutes."""
NUMBER = r"-?[\d.]+(?:e-?\d+)?"


def blocks(language=""):
    """What stands between the page's fences."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [text for named, text in found if named == language]


def commands(start):
    """Arguments of the page's commands that start so."""
    lines = "".join(blocks()).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(start)]


def row_of(name):
    """Cells of the published values' row of this name, by heading."""
    lines = PAGE.read_text().partition("\n| source |")[2].splitlines()
    headings = ["source", *(cell.strip() for cell in lines[0].split("|")[:-1])]
    [row] = [line for line in lines if line.startswith(f"| {name} |")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    return dict(zip(headings, cells, strict=True))


def is_printed(cell, value):
    """Whether a number is the cell's, to the digits that the cell has."""
    digits = len(re.sub(r"e.*", "", cell).partition(".")[2])
    exponent = int(cell.partition("e")[2] or 0)
    return abs(value - float(cell)) <= 0.5000001 * 10.0 ** (exponent - digits)


def fitted(capsys, arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def on_points(*more):
    """The page's command on Chinchilla's points for an approach, and where its bootstrap stands."""
    [found] = [
        words
        for words in commands("flopcount fit chinchilla_figure4_epoch.csv")
        if set(more) <= set(words) and ("--objective" in words) == ("--objective" in more)
    ]
    at = found.index("--num-bootstrap")
    assert found[at + 1] == "4000"
    return [str(POINTS) if word.endswith(".csv") else word for word in found], at


def test_plans_print_what_the_page_says(capsys):
    plans = commands("flopcount plan")
    assert len(plans) == 2
    for arguments in plans:
        assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(steps in out for steps in ("50,000", "31,421", "21,231"))
    assert "cost" in out


def test_a_sweep_comes_to_the_plans_steps(capsys):
    pytest.importorskip("torch", reason="the sweep trains")
    # "513,066, 326,411 and 132,596 steps": of the first plan's first family, and of the sweep.
    said = re.search(r"same ([\d,]+), ([\d,]+)\s+and ([\d,]+) steps", PAGE.read_text())
    steps = [int(number.replace(",", "")) for number in said.groups()]
    family = fitted(capsys, commands("flopcount plan")[0])["families"][0]["proposals"]
    planned = [proposal["run"] for proposal in family]
    assert set(steps) <= {run["steps"] for run in planned}
    [words] = commands("python -m models plan")
    result = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=True,
    )
    for run in planned:
        if run["steps"] in steps:
            shape = f"{run['model']['num_channels']}x{run['model']['num_layers']}-"
            [line] = [line for line in result.stdout.splitlines() if shape in line]
            assert f"{run['steps']:,}" in line.split()


def test_power_laws_through_the_pages_own_table(capsys, tmp_path):
    [rows] = [text for text in blocks() if text.startswith("Parameters,")]
    (tmp_path / "table3.csv").write_text(rows)
    [arguments] = commands("flopcount fit table3.csv")
    arguments[1] = str(tmp_path / "table3.csv")
    fit = fitted(capsys, arguments)
    assert fit["runs"]["num_runs"] == len(CHINCHILLA_TABLE_3)
    row = row_of("`power-law` through their Table 3")
    assert is_printed(row["a"], fit["law"]["a"])
    assert is_printed(row["b"], fit["law"]["b"])


@NEEDS_POINTS
def test_profiles_of_the_published_points(capsys):
    arguments, _ = on_points("profiles")
    fit = fitted(capsys, arguments)
    row = row_of("`profiles`")
    for name in ("a", "b"):
        value, low, high = re.findall(NUMBER, row[name])
        assert is_printed(value, fit["law"][name])
        assert is_printed(low, fit["frontier"]["intervals"][name]["low"])
        assert is_printed(high, fit["frontier"]["intervals"][name]["high"])


@NEEDS_POINTS
@pytest.mark.parametrize("objective", ["huber-log", "variable-projection"])
def test_surfaces_of_the_published_points(capsys, objective):
    more = ["--objective", objective] if objective != "huber-log" else []
    arguments, at = on_points("surface", *more)
    if not FULL:
        arguments = [*arguments[:at], *arguments[at + 2 :]]
    fit = fitted(capsys, arguments)
    row = row_of(f"`surface --objective {objective}`")
    for name in ("a", "b", "E", "α", "β"):
        value, low, high = re.findall(NUMBER, row[name])
        assert is_printed(value, fit["parameters"][name])
        if FULL:
            assert is_printed(low, fit["intervals"][name]["low"])
            assert is_printed(high, fit["intervals"][name]["high"])
        assert float(low) < fit["parameters"][name] < float(high)
    if objective == "huber-log":
        assert is_printed(row["objective"], fit["objective_value"])


def test_a_number_is_held_to_its_digits():
    assert is_printed("0.498", 0.49849)
    assert not is_printed("0.498", 0.49851)
    assert is_printed("1.01827e-3", 1.018274e-3)
    assert not is_printed("1.01827e-3", 1.018276e-3)
