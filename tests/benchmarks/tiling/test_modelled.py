"""Modelled clocks of attention: what is compared with what, and a case from end to end."""

import csv
import dataclasses
from pathlib import Path

import pytest

from benchmarks.attention.shapes import Shape
from benchmarks.counters.profiler import TIMES, Kernel
from benchmarks.measurement import ROOT
from benchmarks.tiling import aims, modelled, ranking
from benchmarks.tiling.modelled import Row
from kernels.attention.tilings import Tiling, shipped_tiling
from models.results import between_marks, read_table
from validate.witnesses.processes import triton_processes


def row(whose, least, middle, most, kernel="all"):
    return Row(whose, 73, 0, 4, "forward", kernel, least, middle, most)


def test_shares_are_of_the_same_setting():
    rows = [row("ours", 80, 100, 200), row("fla-core", 100, 200, 190)]
    ((*_, clocks, span, peers, before),) = modelled.compared(rows, [row("ours", 100, 125, 210)])
    assert (clocks, span) == ("0.1", "0.1 to 0.2")
    assert peers == "0.50 (0.50 to 1.05), a tie"
    assert before == "0.80 (0.80 to 0.95)"
    other = dataclasses.replace(rows[1], prefix=768)
    assert modelled.compared([rows[0], other], [])[0][-2:] == ["", ""]


def test_rows_are_read_as_they_were_written(tmp_path):
    rows, path = [row("ours", 1.5, 2.0, 3.0)], tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, rows))
    assert modelled.read(path) == rows


def test_the_shipped_tiling_is_ranked_first():
    found = ranking.best("forward", 73, 3)
    shipped = shipped_tiling("forward", 73, 2, 1024)
    assert next(iter(found)) == shipped
    assert len(found) in (3, 4)
    others = [clocks for tiling, clocks in found.items() if tiling != shipped]
    assert others == sorted(others)


@pytest.fixture(scope="module")
def pool():
    with triton_processes(interpret=False) as processes:
        yield processes


def test_a_batch_takes_longer_and_a_pass_all_of_its_kernels(pool):
    task = modelled.rows_of, "ours", 64, 128, 0, (1, 40), "forward", ("middle",)
    rows = {(r.kernel, r.batch): r for r in pool.submit(*task).result()}
    # 8 programs have a multiprocessor each; 320 of them share 132, three at most, two or more at
    # a time.
    assert rows["forward", 1].middle < rows["forward", 40].middle < 3 * rows["forward", 1].middle
    assert rows["all", 1].middle == sum(r.middle for (k, b), r in rows.items() if b == 1) / 2
    assert rows["forward", 1].least == rows["forward", 1].middle  # one setting was asked for


def test_a_tiling_that_does_not_fit_is_said(pool):
    # Queries once, keys and values three times, 2 bytes each: 7 · 256 · 128 · 2 are 458,752 bytes.
    wide = Tiling(256, 256, 16, 3)
    task = ranking.modelled_under, "forward", 128, wide, 256, 0, (1,), ("middle",)
    assert pool.submit(*task).result().startswith("PTXASError")


def test_without_the_peer_there_are_no_rows_of_it(pool, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)  # its folder is looked for where the program runs
    with triton_processes(interpret=False) as processes:
        task = modelled.rows_of, "fla-core", 64, 128, 0, (1,), "forward"
        assert processes.submit(*task).result() == []


RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "profiler.md").read_text(encoding="utf-8")


def test_the_pages_clocks_and_aims_are_of_the_committed_rows():
    now, before = (RESULTS / "modelled" / f"{name}.csv" for name in ("now", "77ef064"))
    profile = RESULTS / "nvidia-h200" / "tuned" / "kernels.ncu.csv"
    clocks, reached = modelled.page_tables(now, before, profile)
    assert between_marks(PAGE, "modelled", clocks) == PAGE
    assert between_marks(PAGE, "aims", reached) == PAGE
    # Twins: without the other kernels' rows there are no ratios to them, and no aims.
    assert modelled.page_tables(now, None, profile)[0] != clocks
    assert "77ef064" not in modelled.page_tables(now, None, profile)[1]


def test_an_aim_is_reached_where_its_share_is():
    def of(whose, head_dim, middle):
        return [Row(whose, head_dim, 0, 4, "forward", name, middle, middle, middle)
                for name in ("forward", "all")]  # fmt: skip

    rows, before = [*of("ours", 64, 95), *of("ours", 128, 96)], [*of("ours", 64, 100)]
    line = aims.aims_table(rows, [*before, *of("ours", 128, 100)]).splitlines()[2:]
    assert line == [
        "| forward, of 77ef064's | 64, 128 | 0.95 | 1 of 2 | 0.95 to 0.96 | 128, k = 0, batch 4 |"
    ]


def test_measured_launches_are_of_the_pass_that_they_are_in():
    clocks = {"prepare_rows": 1, "void copy": 9, "attention_forward": 2, "row_products": 4}
    launches = [Kernel(name, {TIMES[1]: n}) for name, n in clocks.items()]
    launches += [Kernel("prepare_rows", {TIMES[1]: 8})]
    rows = aims.measured_rows([(Shape(4, 512, 0, 8, 73), launches)])
    assert {(r.phase, r.kernel): r.middle for r in rows} == {
        ("forward", "prepare_rows"): 1, ("forward", "forward"): 2, ("forward", "all"): 3,
        ("backward", "row_products"): 4, ("backward", "prepare_rows"): 8, ("backward", "all"): 12,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mark"), [("ranking", "ranking"), ("ranking-all", "ranking of all")]
)
def test_the_pages_ranking_is_of_the_committed_rows(name, mark):
    times = read_table(RESULTS / "nvidia-h200" / "tuning" / "tilings.csv")
    first, *rows = read_table(RESULTS / "modelled" / f"{name}.csv")
    table = ranking.agreement([first, *rows], times)
    assert between_marks(PAGE, mark, table) == PAGE
    assert ranking.agreement([first | {"clocks": "1"}, *rows], times) != table


def test_a_choice_is_judged_by_the_time_of_what_was_chosen():
    def rows(*values):
        case = {"pass": "query", "head_dim": "73", "queries": "512", "prefix": "0"}
        names = "static", "clocks", "ms"
        return [case | {"tiling": str(i)} | dict(zip(names, map(str, x), strict=True))
                for i, x in enumerate(values)]  # fmt: skip

    # Static clocks put the tilings in the order 2, 0 and 1 (tied); times in 1, 0, 2; the model in
    # 0, 1, 2. Static ranks 1.5, 1.5, 0 against 1, 0, 2: (0.5 · 0 + 0.5 · -1 + -1 · 1) / √(1.5 · 2),
    # -0.87; the model's 0, 1, 2 against 1, 0, 2: 0.5, and its choice takes 11 of 10 ms.
    given = rows((5, 1, 11), (5, 2, 10), (4, 3, 20))
    case = {name: given[0][name] for name in ranking.CASE}
    timed = [*given, case | {"tiling": "3", "ms": "8.8"}, case | {"tiling": "4", "ms": ""}]
    line, last = ranking.agreement(given, timed).splitlines()[2:]
    assert line == "| query | 73 | 512 | 0 | 3 | -0.87 | 2.00 | 0.50 | 1.10 | 1.25 |"
    assert "0 of 1 within 5 %" in last
    failed = given[0] | {"clocks": "PTXASError: no"}
    assert "| 2 |" in ranking.agreement([failed, *given[1:]], given)
