"""Modelled clocks of attention: what is compared with what, and a case from end to end."""

import csv
import dataclasses
from pathlib import Path

import pytest

from benchmarks.tiling import modelled, ranking
from benchmarks.tiling.modelled import Row
from kernels.attention.tilings import Tiling, shipped_tiling
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
