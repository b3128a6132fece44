"""The search over tilings: what is pruned, what is kept, and that it resumes. No speed."""

import itertools
import json

import pytest

from benchmarks import tune
from benchmarks.measurement import read_table
from benchmarks.shapes import Shape
from kernels.attention import launches
from kernels.attention.tilings import PASSES, Tiling, shipped_tiling

pytestmark = pytest.mark.interpreter


def test_room_for_a_tiling():
    # 128 · 80 accumulators and 128 · 128 scores, 26,624 values, over 256 threads: 104 registers.
    assert tune.fits("forward", 73, Tiling(128, 128, 8, 2))
    # Over 128 threads 208: as many as are allowed; with head dim 91, 96 stored, 224.
    assert tune.fits("forward", 73, Tiling(128, 128, 4, 2))
    assert not tune.fits("forward", 91, Tiling(128, 128, 4, 2))
    # A cap of 128 registers leaves 81.
    assert tune.fits("forward", 54, Tiling(128, 32, 8, 2, 128))
    assert not tune.fits("forward", 73, Tiling(128, 128, 8, 2, 128))
    # Two accumulators and two tiles of scores: 128 · 2 · (80 + 64) over 128 threads are 288.
    assert not tune.fits("key_value", 73, Tiling(64, 128, 4, 2))
    # Two owned operands and 4 stages of two visited ones: (256 + 1024) · 128 · 2 = 327,680 bytes.
    assert not tune.fits("query", 128, Tiling(128, 128, 8, 4))


@pytest.mark.parametrize(
    ("pass_name", "tiling"),
    [
        ("forward", Tiling(64, 128, 4, 2)),  # owns 64 queries, visits 128 keys
        ("key_value", Tiling(128, 64, 4, 2)),
        ("forward", Tiling(64, 64, 8, 2)),  # two warpgroups, 64 rows
    ],
)
def test_blocks_that_the_kernels_or_wgmma_refuse(pass_name, tiling):
    assert not tune.fits(pass_name, 64, tiling)


def test_candidates_start_with_what_is_shipped():
    for head_dim, pass_name in itertools.product((54, 73, 96, 128, 256), PASSES):
        found = tune.candidates(pass_name, head_dim)
        assert found[0] == shipped_tiling(pass_name, head_dim, 2)
        assert len(found) == len(set(found))
    assert all(len(tune.candidates(name, 73)) > 5 for name in PASSES)
    with pytest.raises(ValueError, match="pass_name must be one of"):
        tune.candidates("sideways", 64)


def test_chosen_tilings_reach_the_kernels_and_leave_again():
    chosen = Tiling(16, 16, 4, 1)
    with tune.using({"query": chosen}):
        assert launches.shipped_tiling("query", 64, 2) == chosen
        assert launches.shipped_tiling("forward", 64, 2) == shipped_tiling("forward", 64, 2)
    assert launches.shipped_tiling("query", 64, 2) == shipped_tiling("query", 64, 2)


@pytest.mark.parametrize("tiling", [Tiling(128, 64, 8, 3), shipped_tiling("forward", 64, 2)])
def test_a_tiling_survives_a_table(tiling):
    assert tune.read_tiling(tune.written(tiling)) == tiling


def made_up_times(shape, chosen):
    """Faster the smaller the visited block; the combination of both backward passes counts."""
    if "forward" in chosen and chosen["forward"].num_stages == 3:
        raise RuntimeError("out of resources")
    return sum(sum(tiling[:2]) for tiling in chosen.values()) + shape.prefix


@pytest.fixture
def searched(monkeypatch, tmp_path):
    monkeypatch.setattr(tune, "time_tiling", made_up_times)
    monkeypatch.setattr(tune, "errors", lambda *_, **__: {"forward": 0.1, "backward": 0.2})
    shapes = [Shape(1, 8, prefix, 1, 73) for prefix in (5, 0)]
    return tmp_path, shapes


def test_the_fastest_of_each_pass_is_kept(searched):
    folder, shapes = searched
    entries = json.loads(tune.tune(folder, shapes, minutes=5).read_text())
    assert [(e["pass"], e["prefix"]) for e in entries] == [
        (name, prefix) for prefix in (5, 0) for name in PASSES
    ]
    rows = read_table(folder / "tilings.csv")
    for entry in entries:
        times = [
            float(row["ms"])
            for row in rows
            if (row["pass"], row["prefix"]) == (entry["pass"], str(entry["prefix"])) and row["ms"]
        ]
        assert entry["ms"] == min(times)
        assert entry["padded_head_dim"] == 80
    failed = [row for row in rows if row["status"] == "failed"]
    assert failed
    assert {row["message"] for row in failed} <= {"RuntimeError: out of resources"}


def test_other_shapes_try_the_fastest_of_the_first_alone(searched):
    folder, shapes = searched
    tune.tune(folder, shapes, minutes=5)
    for name in PASSES:
        of_pass = [row for row in read_table(folder / "tilings.csv") if row["pass"] == name]
        later = [row for row in of_pass if row["prefix"] == "0"]
        first = [row for row in of_pass if row["prefix"] == "5" and row["status"] == "ok"]
        fastest = min(first, key=lambda row: float(row["ms"]))["tiling"]
        assert len(later) <= tune.KEPT + 1
        assert fastest in {row["tiling"] for row in later}


def test_the_line_for_the_table_is_the_least_bad_everywhere():
    def row(prefix, tiling, ms):
        sizes = dict(batch=80, queries=512, prefix=prefix, heads=8, head_dim=73)
        row = {name: str(size) for name, size in sizes.items()}
        return row | {"pass": "query", "status": "ok", "tiling": tiling, "ms": str(ms)}

    a, b, c = "64 64 4 2 None", "128 64 8 2 None", "128 32 8 2 128"
    # a is the fastest on one shape and twice as slow on the other; b loses a tenth at most.
    rows = [row(0, a, 1.0), row(0, b, 1.1), row(0, c, 9.0)]
    rows += [row(768, a, 4.0), row(768, b, 2.0)]
    (line,) = tune.table_lines(rows)
    assert line == f"query, 80 channels: {tune.read_tiling(b)}, at most 1.100 of the fastest"


def test_the_search_resumes(searched, monkeypatch):
    folder, shapes = searched
    tune.tune(folder, shapes, minutes=5)
    whole = (folder / "tilings.csv").read_text()
    (folder / "tilings.csv").write_text("".join(whole.splitlines(keepends=True)[:5]))
    timed = []
    monkeypatch.setattr(
        tune, "time_tiling", lambda *given: timed.append(given) or made_up_times(*given)
    )
    tune.tune(folder, shapes, minutes=5)
    assert (folder / "tilings.csv").read_text() == whole
    assert len(timed) == len(whole.splitlines()) - 5


def test_without_time_nothing_is_begun(searched):
    folder, shapes = searched
    assert json.loads(tune.tune(folder, shapes, minutes=-1).read_text()) == []


def test_a_wrong_result_ships_no_tiling(searched, monkeypatch, capsys):
    folder, shapes = searched
    monkeypatch.setattr(tune, "errors", lambda *_, **__: {"forward": 0.1, "backward": 1.2})
    assert json.loads(tune.tune(folder, shapes, minutes=5).read_text()) == []
    assert "left out" in capsys.readouterr().out


def test_the_whole_path_on_a_tiny_shape(tmp_path):
    options = ["--tiny", "--head-dims", "9", "--limit", "1"]
    tune.main(["--out", str(tmp_path), *options])
    rows = read_table(tmp_path / "tilings.csv")
    assert [row["status"] for row in rows] == ["ok"] * 3


def test_a_dry_run_lists_and_times_nothing(tmp_path, capsys):
    tune.main(["--out", str(tmp_path / "none"), "--dry-run", "--head-dims", "73"])
    said = capsys.readouterr().out
    assert all(f"head dim 73, {name}: " in said for name in PASSES)
    assert not (tmp_path / "none").exists()
