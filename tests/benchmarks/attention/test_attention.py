"""The attention benchmark without a GPU: floors, checks, resumption, tables. No speed."""

import csv
import dataclasses

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.attention import implementations
from benchmarks.attention import timing as attention
from benchmarks.attention.implementations import (
    IMPLEMENTATIONS,
    Implementation,
    heads_first,
    padded_to,
)
from benchmarks.attention.shapes import SETS, Shape
from benchmarks.measurement import Ceilings, measure_ceilings
from benchmarks.report import tables as report
from kernels.attention.reference import admitted_pairs, reference_attention
from models.results import Table, environment, read_table

pytestmark = pytest.mark.interpreter

SHAPE = Shape(2, 7, 5, 2, 9)
CPU = torch.device("cpu")


def test_causal_flops_of_a_shape():
    # Two products of 2 · C FLOPs a pair: 2 sequences, 2 heads, 7 · 5 + 7 · 8 / 2 = 63 pairs.
    assert SHAPE.pairs == 2 * 2 * 63
    assert SHAPE.causal_flops("forward") == 4 * 9 * 252
    assert SHAPE.causal_flops("backward") == 2 * 4 * 9 * 252
    mask = admitted_pairs(SHAPE.queries, SHAPE.keys)
    assert SHAPE.pairs == 4 * int(mask.sum())


def test_least_bytes_are_those_of_the_operands():
    q, k, v, grad = attention.draw(SHAPE)
    lse = 4 * SHAPE.batch * SHAPE.heads * SHAPE.queries
    forward = sum(x.numel() for x in (q, k, v, q)) * q.element_size() + lse
    backward = sum(x.numel() for x in (q, k, v, q, grad, q, k, v)) * q.element_size() + lse
    assert SHAPE.least_bytes("forward", q.element_size()) == forward
    assert SHAPE.least_bytes("backward", q.element_size()) == backward


@pytest.mark.parametrize(
    ("work", "binds"), [((9, 1, 1), "bytes"), ((1, 9, 1), "matmul"), ((1, 1, 9), "exp")]
)
def test_the_floor_is_the_slowest_of_three(work, binds):
    assert Ceilings(1.0, 1.0, 1.0).floor(*work) == (9e3, binds)


def test_ceilings_run():
    assert all(rate > 0 for rate in dataclasses.astuple(measure_ceilings()))


def test_the_origin_of_a_result_is_told_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("FLOPCOUNT_COMMIT", raising=False)
    assert environment.__wrapped__()["commit"].startswith("unknown")
    monkeypatch.setenv("FLOPCOUNT_COMMIT", "abc")
    assert environment.__wrapped__()["commit"] == "abc"


def test_every_shape_of_the_plan_is_there():
    head_dims = {54, 64, 73, 78, 91, 96, 128}
    for prefix in (0, 768, 1792):
        found = {s.head_dim for s in SETS["article"] if s.prefix == prefix}
        assert found == head_dims
    assert {s.prefix for s in SETS["evaluation"]} == {1536, 3584}
    assert {(s.queries, s.head_dim) for s in SETS["long"]} == {
        (2**power, head_dim) for power in range(10, 15) for head_dim in (64, 128)
    }


def masked_flex(shape, device):
    mask = create_block_mask(
        lambda b, h, i, j: j <= i + shape.prefix, None, None, shape.queries, shape.keys, device
    )
    return heads_first(lambda q, k, v, scale: flex_attention(q, k, v, block_mask=mask, scale=scale))


def merged_on_the_cpu(shape, device):
    return implementations._split("cpu", shape, device)


@pytest.mark.parametrize(
    "build",
    [
        IMPLEMENTATIONS["sdpa-flash"].build,
        IMPLEMENTATIONS["fused"].build,
        IMPLEMENTATIONS["eager"].build,
        merged_on_the_cpu,
        lambda shape, device: padded_to(8, IMPLEMENTATIONS["eager"].build(shape, device)),
    ],
)
def test_peers_compute_what_we_compute(build):
    shares = attention.errors(build(SHAPE, CPU), SHAPE, backward=True)
    assert shares.keys() == {"forward", "backward"}
    assert all(share <= 1 for share in shares.values())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_block_mask_of_flex_attention_is_ours():
    shares = attention.errors(masked_flex(SHAPE, CPU), SHAPE, backward=False)
    assert shares["forward"] <= 1


@pytest.mark.parametrize("scale", [None, 0.5])
def test_scale_reaches_a_padded_peer(scale):
    q, k, v, _ = (x.detach() for x in attention.draw(SHAPE))
    attend = padded_to(8, IMPLEMENTATIONS["eager"].build(SHAPE, CPU))
    expected, _ = reference_attention(q, k, v, scale)
    torch.testing.assert_close(attend(q, k, v, scale), expected)


def left_aligned(q, k, v, scale=None):
    """What ``is_causal=True`` means: query i admits keys up to i, not to i + K."""
    heads = (x.transpose(1, 2) for x in (q, k, v))
    function = torch.nn.functional.scaled_dot_product_attention
    return function(*heads, is_causal=True, scale=scale).transpose(1, 2)


def gradient_off(q, k, v, scale=None):
    """The right output, whose gradient of q is 1 % too large."""
    return reference_attention(q * 1.01 - 0.01 * q.detach(), k, v, scale)[0]


def not_finite(q, k, v, scale=None):
    return reference_attention(q, k, v, scale)[0] * torch.tensor(float("nan"))


@pytest.mark.parametrize(
    ("wrong", "passes"),
    [
        (left_aligned, {"forward": "wrong", "backward": "wrong"}),
        (gradient_off, {"forward": "ok", "backward": "wrong"}),
        (not_finite, {"forward": "wrong", "backward": "wrong"}),
    ],
)
def test_a_wrong_implementation_is_reported_and_not_timed(monkeypatch, wrong, passes):
    planted = Implementation("planted", lambda shape, device: wrong)
    monkeypatch.setitem(IMPLEMENTATIONS, "planted", planted)
    rows = {
        row["pass"]: row
        for row in attention.measure(SHAPE, "planted", passes, Ceilings(1.0, 1.0, 1.0))
    }
    assert {name: row["status"] for name, row in rows.items()} == passes
    assert all(("ms" in row) == (row["status"] == "ok") for row in rows.values())


def test_a_failure_is_recorded_with_its_error(monkeypatch):
    def refuse(shape, device):
        raise RuntimeError("head dim 9\nis not supported")

    monkeypatch.setitem(IMPLEMENTATIONS, "planted", Implementation("planted", refuse))
    (row,) = attention.measure(SHAPE, "planted", ["forward"], Ceilings(1.0, 1.0, 1.0))
    assert row["status"] == "failed"
    assert row["message"] == "RuntimeError: head dim 9 is not supported"


def test_a_run_continues_where_one_was_cut(tmp_path, capsys):
    names = ("sdpa-flash", "fa3", "cudnn-split", "eager")
    path = attention.run(tmp_path, ("tiny",), names)
    whole = path.read_text().splitlines()
    assert len(whole) == 1 + len(SETS["tiny"]) * len(names) * 2
    path.write_text("\n".join(whole[:6]) + "\n")
    capsys.readouterr()
    attention.run(tmp_path, ("tiny",), names)
    assert len(capsys.readouterr().out.splitlines()) == len(whole) - 6
    key = [tuple(row[name] for name in attention.KEY) for row in read_table(path)]
    assert len(key) == len(set(key)) == len(whole) - 1
    attention.run(tmp_path, ("tiny",), names)
    assert capsys.readouterr().out == ""


def test_compiling_ahead_never_overlaps_timing(monkeypatch, tmp_path):
    events = []
    monkeypatch.setattr(
        attention, "compile_ahead", lambda cases, jobs: events.append(("compile", len(cases)))
    )
    monkeypatch.setattr(
        attention, "measure", lambda shape, *_: events.append(("time", shape)) or ()
    )
    attention.run(tmp_path, ("tiny",), ("fused", "eager"), jobs=2)
    first, second = SETS["tiny"]
    assert attention.in_chunks([(first, "a", []), (second, "a", []), (first, "b", [])], 1) == [
        [(first, "a", []), (first, "b", [])],
        [(second, "a", [])],
    ]
    # Both shapes lie in one chunk of seven: "fused" alone is compiled, twice, before any timing.
    assert events[0] == ("compile", 2)
    assert [kind for kind, _ in events[1:]] == ["time"] * 4


def test_cases_run_in_worker_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # here, not in the worker
    attention.compile_ahead([(SETS["tiny"][1], "eager", True)], jobs=1)


def test_a_table_of_other_columns_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"must have the columns \('a', 'c'\), got \['a', 'b'\]"):
        Table(tmp_path / "t.csv", ("a", "c"), ("a",))
    with pytest.raises(ValueError, match="d"):
        Table(tmp_path / "u.csv", ("a",), ("a",)).add(a=1, d=2)


@pytest.fixture
def rows():
    """Two cases made by hand: ours and some peers, one of which failed and one was wrong."""
    shape = dict(batch=80, queries=512, prefix=1792, heads=8, head_dim=73)
    common = {name: str(size) for name, size in shape.items()}
    common |= {"device": "made up", "dtype": "bfloat16", "message": "", "error": ""}

    def row(pass_name, name, status, ms="", message=""):
        return {
            **dict.fromkeys(attention.COLUMNS, ""),
            **common,
            "pass": pass_name,
            "implementation": name,
            "status": status,
            "ms": ms,
            "causal_tflops": "300" if ms else "",
            "floor_ms": "0.5" if ms else "",
            "binds": "exp" if ms else "",
            "message": message,
        }

    return [
        row("forward", "fused", "ok", "1.0"),
        row("forward", "sdpa-flash", "ok", "2.0"),
        row("forward", "flash-split", "ok", "1.6"),
        row("forward", "cudnn", "wrong", message="error above what is allowed"),
        row("forward", "fa3", "failed", message="ModuleNotFoundError: no | here"),
        row("backward", "fused", "failed", message="RuntimeError"),
        row("backward", "flex", "ok", "4.0"),
    ]


def test_the_table_is_ours_over_theirs(rows):
    lines = report.attention_markdown(rows).splitlines()
    head, forward, backward = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])
    )
    found = dict(zip(head, forward, strict=True))
    # 1.0 ms over a floor of 0.5 ms; over the better of 2.0 ms and 1.6 ms.
    assert (found["ms"], found["of floor"], found["bound by"]) == ("1.000", "50%", "exp")
    assert (found["SDPA-flash"], found["best"]) == ("0.62×", "0.62×")
    assert (found["cuDNN"], found["FA3"], found["FlexAttention"]) == ("wrong", "failed", "–")
    found = dict(zip(head, backward, strict=True))
    assert (found["ms"], found["FlexAttention"]) == ("failed", "4.000 ms")


def test_the_report_holds_failures_and_a_plot(rows, tmp_path):
    with (tmp_path / "attention.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, attention.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    page, plot, _ = report.write_report(tmp_path)
    text = page.read_text()
    assert "| fa3 | failed | 1 | ModuleNotFoundError: no \\| here |" in text
    assert text.startswith("Device: made up.")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_gpu_claims_nothing(rows):
    for row in rows:
        row["device"] = "no GPU"
    assert report.origin(rows).endswith("nothing was measured.\n")


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="must hold the CSV of a benchmark"):
        report.write_report(tmp_path)
    with pytest.raises(SystemExit, match="error: "):
        report.main([str(tmp_path)])


@pytest.mark.parametrize("wrong", [["--shapes", "huge"], ["--implementations", "fa9"]])
def test_unknown_names_are_refused(tmp_path, wrong, capsys):
    with pytest.raises(SystemExit):
        attention.main(["--out", str(tmp_path), *wrong])
    assert "invalid choice" in capsys.readouterr().err
