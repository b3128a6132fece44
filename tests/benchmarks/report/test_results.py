"""What a GPU has measured, as committed: counts by today's formula, and the pages' figures."""

import re
import statistics

import pytest

from benchmarks.attention.shapes import Shape
from benchmarks.counters.executed import executed_ops
from benchmarks.report import aims, tables
from benchmarks.tiling.tune import written
from kernels.attention import tilings
from models.results import read_table

RESULTS = tables.ROOT / "benchmarks" / "results" / "nvidia-h200"
README = tables.README.read_text(encoding="utf-8")
NOTES = (RESULTS / "NOTES.md").read_text(encoding="utf-8")


def attention_rows(folder):
    """Rows of our kernels, with the shape that each is of; the first row is the library's GEMM."""
    rows = read_table(RESULTS / folder / "counters.csv")
    assert rows[0]["case"] == "GEMM"
    sizes = [map(int, re.findall(r"=(\d+)", row["case"])) for row in rows[1:]]
    return [(Shape(*of_row), row) for of_row, row in zip(sizes, rows[1:], strict=True)]


@pytest.mark.parametrize(
    ("folder", "tuned"), [("first", {}), ("tuned", RESULTS / "tuning" / "tuned.csv")]
)
def test_the_hardware_counted_what_the_formula_says(monkeypatch, folder, tuned):
    under = tilings.tuned_tilings(tuned) if tuned else {}
    monkeypatch.setattr(tilings, "_tuned", lambda: under)
    rows = attention_rows(folder)
    multiplied = 0
    for shape, row in rows:
        expected = executed_ops(shape, 2).get(row["kernel"], 0)
        assert int(row["counted"]) == expected, row["case"]
        multiplied += expected > 0
    assert len({shape for shape, _ in rows}) == 45
    assert multiplied == 3 * 45  # forward, key-value and query: the padding multiplies nothing
    total = sum(int(row["counted"]) for _, row in rows) + 2 * 4096**3
    assert f"{total:,}" in NOTES
    assert folder == "first" or f"{total:,}" in README


def test_other_tilings_would_not_explain_the_counts():
    wrong = [
        row
        for shape, row in attention_rows("first")
        if int(row["counted"]) != executed_ops(shape, 2).get(row["kernel"], 0)
    ]
    assert len(wrong) > 30


def test_each_product_of_a_step():
    rows = read_table(RESULTS / "tuned" / "step.csv")
    differing = [row for row in rows if row["verdict"] != "confirmed"]
    assert {row["term"] for row in differing} == {"logits"}
    assert f"{len(rows)} products | 0 in {len(rows) - len(differing)}; the library pads" in README
    for row in differing:
        assert f"{int(row['counted']):,}" in NOTES
        assert f"{int(row['executed']):,}" in NOTES


def test_the_readme_has_the_measured_table():
    rows = read_table(RESULTS / "tuned" / "attention.csv")
    assert tables.with_headline(README, rows) == README


def test_the_notes_have_the_measured_ratios():
    found = dict(
        re.findall(r"^\| (\d+) \| ([\d.]+ / [\d.]+ \| [\d.]+ / [\d.]+) \|", NOTES, re.MULTILINE)
    )
    of_folder = {
        name: tables.by_case(read_table(RESULTS / name / "attention.csv"))
        for name in ("first", "tuned")
    }
    for shape in tables.HEADLINE:
        cells = [
            " / ".join(
                f"{tables.over(cases[shape, name], aims.ANY_PEER):.2f}" for name in tables.PASSES
            )
            for cases in of_folder.values()
        ]
        assert found[str(shape.head_dim)] == " | ".join(cells)
    assert len(found) == len(tables.HEADLINE)


def test_the_notes_say_what_the_shipped_tilings_cost():
    times = {}
    for row in read_table(RESULTS / "tuning" / "tilings.csv"):
        if row["status"] == "ok":
            case = row["pass"], int(row["head_dim"]), int(row["queries"]) + int(row["prefix"])
            times.setdefault(case, {})[row["tiling"]] = float(row["ms"])
    over_fastest, over_first = [], []
    for (name, head_dim, keys), of in times.items():
        shipped = of[written(tilings.shipped_tiling(name, head_dim, 2, keys))]
        over_fastest.append(shipped / min(of.values()))
        over_first.append(shipped / next(iter(of.values())))
    assert f"at most {max(over_fastest):.2f} of the fastest time" in NOTES
    assert f"and {statistics.median(over_fastest):.2f} in the median" in NOTES
    assert f"and {min(over_first):.2f} to {max(over_first):.2f} of the first tilings'" in NOTES
    assert f"{statistics.median(over_first):.2f} in the median." in NOTES


def test_the_readme_says_how_far_the_host_lags_behind():
    cases = tables.by_case(read_table(RESULTS / "tuned" / "attention.csv"))
    ratios = [
        tables.over(case, ["cuDNN"]) for (shape, _), case in cases.items() if shape.prefix == 0
    ]
    assert f"up to {max(ratios):.1f} times slower than cuDNN" in README
