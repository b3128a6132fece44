"""The search over tilings: what is pruned, what is kept, and that it resumes. No speed."""

import csv
import dataclasses
import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from benchmarks.attention.shapes import Shape
from benchmarks.tiling import tune
from kernels.attention import prefix_attention, tilings
from kernels.attention.tilings import PASSES, Tiling, padded_head_dim, shipped_tiling
from models.results import read_table
from validate.compiled_record import VARIANTS
from validate.witnesses.compiled_code import QUERIES, CompiledKernel, Launch, Segment
from validate.witnesses.kernel_tally import tallying

pytestmark = pytest.mark.interpreter
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _unknown_candidates(monkeypatch):
    """Nothing is known of candidates but what a test says: not what the committed table holds."""
    facts = tune.facts
    given = functools.cache(lambda path=None: {} if path is None else facts(path))
    monkeypatch.setattr(tune, "facts", given)


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
        found = tune.candidates(pass_name, head_dim, 512)
        assert found[0] == shipped_tiling(pass_name, head_dim, 2, 512)
        assert len(found) == len(set(found))
    assert all(len(tune.candidates(name, 73, 512)) > 5 for name in PASSES)
    with pytest.raises(ValueError, match="pass_name must be one of"):
        tune.candidates("sideways", 64, 512)


def test_chosen_tilings_reach_the_kernels():
    chosen = {"forward": Tiling(32, 16, 4, 1), "query": Tiling(16, 16, 4, 1)}
    q, k = torch.randn(1, 5, 2, 9), torch.randn(1, 8, 2, 9)
    operands = [x.requires_grad_() for x in (q, k, k.clone())]
    launched = []
    with tallying(launched):
        torch.autograd.grad(tune.attending(chosen)(*operands).sum(), operands)
    shipped = shipped_tiling("key_value", 9, 4, 8)
    assert {
        x.name: (x.constants["BLOCK_QUERIES"], x.constants["BLOCK_KEYS"])
        for x in launched
        if x.name.startswith("attention")
    } == {
        "attention_forward": (32, 16),
        "attention_key_value_gradient": shipped[:2],
        "attention_query_gradient": (16, 16),
    }
    results = [
        torch.autograd.grad(attend(*operands).sum(), operands)
        for attend in (tune.attending(chosen), prefix_attention)
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tiling", [Tiling(128, 64, 8, 3), shipped_tiling("forward", 64, 2, 9)])
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


def test_the_fastest_of_each_pass_is_chosen(searched):
    folder, shapes = searched
    rows = read_table(tune.tune(folder, shapes, minutes=5))
    chosen = tune.choose(rows, set())
    assert set(chosen) == {(shape, name) for shape in shapes for name in PASSES}
    for (shape, name), tiling in chosen.items():
        times = {
            row["tiling"]: float(row["ms"])
            for row in rows
            if (row["pass"], row["prefix"]) == (name, str(shape.prefix)) and row["ms"]
        }
        assert times[tune.written(tiling)] <= 1.02 * min(times.values())
    failed = [row for row in rows if row["status"] == "failed"]
    assert failed
    assert {row["message"] for row in failed} <= {"RuntimeError: out of resources"}


def test_other_shapes_try_the_fastest_of_the_first_alone(searched):
    # Of shapes with a prefix, and of those without: a loop that is short wants other tilings.
    folder, shapes = searched
    longer = [dataclasses.replace(shape, queries=9) for shape in shapes]
    tune.tune(folder, [*shapes, *longer], minutes=5)
    table = read_table(folder / "tilings.csv")
    for name, prefix in itertools.product(PASSES, {str(shape.prefix) for shape in shapes}):
        of_pass = [row for row in table if (row["pass"], row["prefix"]) == (name, prefix)]
        later = [row for row in of_pass if row["queries"] == "9"]
        first = [row for row in of_pass if row["queries"] != "9" and row["status"] == "ok"]
        fastest = min(first, key=lambda row: float(row["ms"]))["tiling"]
        assert len(first) > tune.KEPT + 1 >= len(later)
        assert fastest in {row["tiling"] for row in later}


A, B, C = Tiling(64, 64, 4, 2), Tiling(128, 64, 8, 2), Tiling(128, 32, 8, 4, 128)


def timed_row(prefix, tiling, ms):
    sizes = dict(batch=80, queries=512, prefix=prefix, heads=8, head_dim=73)
    row = {name: str(size) for name, size in sizes.items()}
    about = {"pass": "query", "dtype": "bfloat16", "status": "ok"}
    return row | about | {"tiling": tune.written(tiling), "ms": str(ms)}


def test_shapes_that_hardly_differ_share_a_tiling():
    alone, hybrid = Shape(80, 512, 0, 8, 73), Shape(80, 512, 768, 8, 73)
    rows = [timed_row(0, A, 1.0), timed_row(0, B, 1.01), timed_row(0, C, 0.995)]
    rows += [timed_row(768, A, 4.0), timed_row(768, B, 2.0)]
    # C is the fastest alone by 2 % at most, and was not timed on the other shape.
    assert tune.choose(rows, set()) == {(alone, "query"): B, (hybrid, "query"): B}
    # A tiling that loses more than that is not shared.
    rows[1] = timed_row(0, B, 1.1)
    assert tune.choose(rows, set()) == {(alone, "query"): A, (hybrid, "query"): B}
    # What is refused is not chosen; where all is, nothing is.
    assert tune.choose(rows, {("query", 73, A)})[alone, "query"] == C
    assert tune.choose(rows, {("query", 73, x) for x in (A, B, C)}) == {}


def test_what_a_check_refuses_is_not_shipped(capsys):
    rows = [timed_row(0, A, 1.0), timed_row(0, B, 2.0)]

    def check(chosen):
        return {("query", 73, tiling) for tiling in chosen.values() if tiling == A}

    assert list(tune.settle(rows, [check, lambda chosen: set()]).values()) == [B]
    assert f"refused: query, head dim 73, {A}" in capsys.readouterr().out


def test_what_is_shipped_reaches_the_kernels_by_its_keys(tmp_path, monkeypatch):
    path = tmp_path / "tuned.csv"
    chosen = {
        (Shape(80, 512, prefix, 8, 73), "query"): tiling
        for prefix, tiling in ((1792, C), (0, A), (768, B))
    }
    tune.write_tuned(path, chosen, 2)
    # Head dim 78 is stored as 73 is: what was chosen for the first of the two stays.
    tune.write_tuned(
        path, {(Shape(80, 512, 0, 8, 128), "query"): C, (Shape(80, 512, 0, 8, 113), "query"): A}, 2
    )
    expected = {("query", 2, 80): {512: A, 1280: B, 2304: C}, ("query", 2, 128): {512: C}}
    assert tilings.tuned_tilings(path) == expected
    assert list(tilings.tuned_tilings(path)["query", 2, 80]) == [512, 1280, 2304]
    monkeypatch.setattr(tilings, "_tuned", lambda: tilings.tuned_tilings(path))
    for num_keys, tiling in ((1, A), (512, A), (1279, A), (1280, B), (2304, C), (10**6, C)):
        assert shipped_tiling("query", 65, 2, num_keys) == tiling
    assert shipped_tiling("query", 64, 2, 512) not in (A, C)
    assert shipped_tiling("query", 73, 4, 512) not in (A, C)


def test_a_tiling_that_spills_in_any_variant_is_refused(monkeypatch):
    shape, other = Shape(80, 512, 768, 8, 73), Shape(80, 512, 0, 8, 73)
    compiled = []

    class Compiled(NamedTuple):
        launch: Launch
        found: list[str]

        def faults(self):
            return self.found

    def compile_all(launches, jobs):
        assert jobs == 3
        compiled.extend(launches)
        for launch in launches:
            spills = launch.group == 4 and launch.tilings == (("query", A),)
            yield Compiled(launch, ["spills"] * spills)

    monkeypatch.setattr(tune, "compile_all", compile_all)
    chosen, known = {(shape, "query"): A, (other, "query"): B}, {}
    refuse = functools.partial(tune.compiled_faults, dtype="float16", jobs=3, known=known)
    assert refuse(chosen) == {("query", 73, A)}
    assert {(x.head_dim, x.passes) for x in compiled} == {(73, ("query",)), (80, ("query",))}
    variants = {(x.prefix, x.group, x.turned) for x in compiled}
    assert variants == set(VARIANTS)
    assert len(compiled) == 2 * 2 * len(variants)
    compiled.clear()
    assert refuse(chosen | {(other, "query"): C}) == {("query", 73, A)}
    assert {x.tilings for x in compiled} == {(("query", C),)}  # what is known is not compiled again


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
    assert read_table(tune.tune(folder, shapes, minutes=-1)) == []


def test_a_wrong_result_ships_no_tiling(searched, monkeypatch, capsys):
    folder, shapes = searched
    monkeypatch.setattr(tune, "errors", lambda *_, **__: {"forward": 0.1, "backward": 1.2})
    rows = read_table(tune.tune(folder, shapes, minutes=5))
    chosen = tune.settle(rows, [tune.wrong_results])
    assert {name for _, name in chosen} == {"forward"}
    assert "refused: key_value, head dim 73" in capsys.readouterr().out


def test_the_whole_path_on_a_tiny_shape(tmp_path):
    options = ["--tiny", "--head-dims", "9", "--limit", "1"]
    tune.main(["--out", str(tmp_path), *options])
    rows = read_table(tmp_path / "tilings.csv")
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert set(tilings.tuned_tilings(tmp_path / "tuned.csv")) == {(x, 4, 16) for x in PASSES}
    # Chosen again from the times that are there, without a new one.
    whole = (tmp_path / "tuned.csv").read_text()
    (tmp_path / "tuned.csv").unlink()
    tune.main(["--out", str(tmp_path), *options, "--minutes", "0"])
    assert (tmp_path / "tuned.csv").read_text() == whole
    assert len(read_table(tmp_path / "tilings.csv")) == 3


def test_what_must_not_be_shipped_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tune.main(["--out", str(tmp_path), "--tiny", "--ship"])
    assert "not for shipping" in capsys.readouterr().err

    def given(*rows):
        with (tmp_path / "tilings.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, tune.COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        tune.main(["--out", str(tmp_path), "--minutes", "0"])

    row = {"device": "H", **timed_row(0, A, 1.0), "message": ""}
    given(row)
    assert "results are not checked here: the times are of H" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="one device and dtype"):
        given(row, row | {"device": "another"})
    with pytest.raises(SystemExit, match="one device and dtype"):
        given()
    with pytest.raises(SystemExit, match="may be shipped"):
        given(row | {"status": "failed"})


def fact_row(tiling, registers, least_clocks, faults="", code=None):
    return {
        "pass": "forward", "padded_head_dim": "80", "tiling": tune.written(tiling),
        "registers": str(registers), "programs_per_multiprocessor": "1",
        "least_clocks": str(least_clocks), "faults": faults, "code": code or tune._digest(),
        "triton": "3",
    }  # fmt: skip


def test_what_is_known_of_candidates_prunes_and_orders_them(tmp_path, monkeypatch):
    path = tmp_path / "candidates.csv"
    plain = tune.candidates("forward", 73, 512)
    fast, slow, spills = [x for x in plain[1:] if x[2:] == (4, 2, None)][:3]
    rows = [
        fact_row(slow, 150, 0.2), fact_row(fast, 150, 0.1), fact_row(spills, 255, 0.05, "spills"),
        fact_row(slow._replace(max_registers=168), 150, 0.2),
        fact_row(fast._replace(max_registers=128), 128, 0.15),
        fact_row(slow, 255, 0.2, "of other code", "x"),
    ]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, tune.FACT_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    known = tune.facts(path)
    monkeypatch.setattr(tune, "facts", lambda: known)
    found = tune.candidates("forward", 73, 512)
    assert found[0] == plain[0]
    assert found[1:4] == [fast, fast._replace(max_registers=128), slow]
    gone = {spills, slow._replace(max_registers=168)}
    assert set(plain) - set(found) == gone & set(plain)
    # Head dims padded otherwise, and other passes, are not concerned.
    assert set(tune.candidates("forward", 91, 512)) == set(tune.candidates("forward", 96, 512))


@pytest.mark.record("python -m benchmarks tune --compile")
def test_what_is_known_of_candidates_is_of_the_code_at_hand():
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(f"triton=={row['triton']}" in pinned for row in read_table(tune.FACTS))
    assert len(read_table(tune.FACTS)) == len(tune.facts(tune.FACTS))
    assert set(tune.facts(tune.FACTS)) == {
        (name, padded_head_dim(head_dim), tiling)
        for name in PASSES
        for head_dim in tune.HEAD_DIMS
        for tiling in tune.candidates(name, head_dim, 2 * QUERIES)
    }


def test_the_least_time_of_a_tile():
    launch = Launch("bfloat16", 73)
    constants = {"BLOCK_QUERIES": 128, "BLOCK_KEYS": 64}
    kernel = CompiledKernel(
        "attention_forward", launch, constants, 8, 200, 0, 0, False, 80_000, {}, {},
        (Segment(True, 2_000_000, 490), Segment(True, 2_621_440, 328)),
    )  # fmt: skip
    # 128 · 64 pairs: 640 clocks of tensor cores, 512 of exponentials, 656 to issue 328 · 8 / 4.
    assert tune.least_clocks(kernel) == 656 / (128 * 64)


def test_candidates_are_compiled_once(tmp_path, monkeypatch):
    path = tmp_path / "candidates.csv"
    seen = []

    class Pool:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def map(self, function, launches):
            seen.append(launches)
            return [f"gave up on {launch.passes}" for launch in launches]

    monkeypatch.setattr(tune, "triton_processes", lambda **options: Pool())
    monkeypatch.setattr(tune, "candidates", lambda name, head_dim, keys: [A, B])
    tune.compile_candidates([73], 1, path)
    assert [(x.passes, x.tilings[0][1]) for x in seen[0]] == [
        ((name,), tiling) for name in PASSES for tiling in (A, B)
    ]
    known = tune.facts(path)
    assert len(known) == 6
    assert all(fact.faulty for fact in known.values())
    tune.compile_candidates([73], 1, path)
    assert seen[1] == []


def test_a_dry_run_lists_and_times_nothing(tmp_path, capsys):
    tune.main(["--out", str(tmp_path / "none"), "--dry-run", "--head-dims", "73"])
    said = capsys.readouterr().out
    assert all(f"head dim 73, {name}: " in said for name in PASSES)
    assert not (tmp_path / "none").exists()
