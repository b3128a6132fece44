"""Block, throughput and loss curves without a GPU: paths run, figures mean what they say."""

import json
import sys

import pytest
import torch

from benchmarks.attention import peers
from benchmarks.attention.implementations import IMPLEMENTATIONS, Implementation
from benchmarks.attention.shapes import Shape
from benchmarks.step import block, training
from kernels.attention.reference import reference_attention
from models.networks.blocks import ATTENTION
from models.results import read_table

pytestmark = pytest.mark.interpreter

SHAPE = Shape(2, 3, 4, 2, 5)


def test_flops_of_the_block():
    # n = 3 latents, k = 4, d = 10, 2 heads of 5. Query and output projections over n positions,
    # keys and values over k + n; scores and values over 3 · 4 + 6 pairs; three passes in all.
    projections = 2 * 2 * 3 * 100 + 2 * 2 * 7 * 100
    attention = 2 * 2 * 2 * 5 * 18
    assert block.block_flops(SHAPE) == 2 * 3 * (projections + attention)


@pytest.mark.parametrize("name", ["reference", "sdpa-flash", "fused"])
def test_the_block_is_held_against_float64(name):
    attention = block.block(SHAPE, peers.with_attention(name, [Shape(1, 3, 4, 2, 5)]))
    assert block.errors(block.call, attention, SHAPE) <= 1


@pytest.mark.parametrize("name", ["sdpa-flash", "fused"])
def test_a_peer_is_compiled_without_a_break(name):
    attention = block.block(SHAPE, peers.with_attention(name, [SHAPE]))
    given = block.draw_inputs(SHAPE)[:3]
    compiled = torch.compile(block.call, backend="eager", dynamic=False, fullgraph=True)
    torch.testing.assert_close(compiled(attention, *given), block.call(attention, *given))
    torch.compiler.reset()


@pytest.fixture
def planted(monkeypatch):
    """An implementation under another name, which forgets after the test."""

    def plant(attend):
        monkeypatch.setattr(peers, "ATTENTION", ATTENTION)
        built = Implementation("planted", lambda shape, device: attend)
        monkeypatch.setitem(IMPLEMENTATIONS, "planted", built)
        monkeypatch.setitem(ATTENTION, "peer-planted", None)

    return plant


def test_a_wrong_block_is_reported_and_not_timed(planted, monkeypatch):
    planted(lambda q, k, v, scale: reference_attention(q, k, v, 1.01 * scale)[0])
    monkeypatch.setitem(block.VARIANTS, "planted", ("planted", False))
    row = block.measure(SHAPE, "planted")
    assert row["status"] == "wrong"
    assert "ms" not in row


def test_a_block_that_fails_is_recorded(planted, monkeypatch):
    def refuse(*operands):
        raise RuntimeError("no kernel")

    planted(refuse)
    monkeypatch.setitem(block.VARIANTS, "planted", ("planted", False))
    row = block.measure(SHAPE, "planted")
    assert (row["status"], row["message"]) == ("failed", "RuntimeError: no kernel")


def test_the_block_command(tmp_path):
    options = ["--out", str(tmp_path), "--tiny", "--variants", "sdpa-flash", "flex, compiled"]
    for _ in range(2):  # the second time nothing is left to do
        block.main(options)
        rows = read_table(tmp_path / "block.csv")
        assert [row["status"] for row in rows] == ["ok", "failed"]


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of \[.*'sdpa-flash'.*got 'fastest'"):
        peers.with_attention("fastest", [])


def test_shapes_that_a_network_asks_for():
    model = training.seed_model("728x13-V32000-m1536")
    assert peers.shapes_of_model(model, 80) == [
        Shape(80, 512, prefix, 8, 91) for prefix in (768, 1536, 0)
    ]


def test_utilisation_is_causal_flops_over_the_measured_rate(monkeypatch):
    monkeypatch.setattr(training, "seconds_per_step", lambda step: 0.5)
    monkeypatch.setitem(training.VARIANTS, "eager", ("reference", "off"))
    total = training.TINY.flops(batch_size=3).total
    row = training.measure(training.TINY, "eager", 3, rate=40.0 * total)
    assert row["mfu"] == "0.0500"
    dense = training.TINY.flops(level="dense", batch_size=3).total
    assert row["hfu"] == f"{dense / total / 20:.4f}"
    monkeypatch.setattr(training, "our_step", lambda *_: None)
    fused = training.measure(training.TINY, "fused", 3, rate=40.0 * total)
    assert float(fused["hfu"]) > float(fused["mfu"]) == 0.05
    peer = training.measure(training.TINY, "flex, compiled", 3, rate=40.0 * total)
    assert (peer["mfu"], peer["hfu"]) == ("0.0500", "")
    assert float(row["tokens_per_second"]) == 3 * training.TINY.num_latents / 0.5


def test_throughput_records_what_fails_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "perceiver_ar_pytorch", None)
    variants = ["eager", "sdpa-flash, compiled", "flex, compiled", "perceiver-ar-pytorch"]
    options = ["--out", str(tmp_path), "--tiny", "--batch-size", "2", "--variants", *variants]
    training.main(["throughput", *options[:-2]])
    training.main(["throughput", *options])
    rows = {row["implementation"]: row for row in read_table(tmp_path / "throughput.csv")}
    assert list(rows) == variants
    statuses = [row["status"] for row in rows.values()]
    assert statuses == ["ok", "ok", "failed", "failed"]
    assert rows["perceiver-ar-pytorch"]["message"].startswith("ModuleNotFoundError")


def test_every_peer_of_a_step_computes_the_same_loss():
    losses = []
    for attention in ("reference", "sdpa-flash", "eager"):
        torch.manual_seed(0)
        step = training.our_step(training.TINY, 2, attention, "off")
        torch.manual_seed(1)
        losses.append(step()[0].item())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_where_the_time_of_a_step_goes(tmp_path):
    path = training.kernels(tmp_path, batch_size=2, models=(), tiny=True)
    rows = read_table(path)
    assert all(float(row["ms"]) >= 0 for row in rows)
    assert sum(float(row["ms"]) for row in rows) > 0
    launches = {row["kernel"]: float(row["launches"]) for row in rows}
    assert launches["flopcount::attention"] == launches["flopcount::attention_backward"] == 2
    assert training.kernels(tmp_path, batch_size=2, models=(), tiny=True) == path
    assert read_table(path) == rows


def test_loss_curves_of_all_paths(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("\n\n\n\n".join(f"{index} is a document. " * 40 for index in range(3)))
    # The fused kernels take a GPU: micro-batches stand for another rounding.
    monkeypatch.setitem(training.CURVE_PATHS, "fused", ("reference", 2))
    path = training.curves(
        tmp_path, steps=2, batch_size=2, files=(str(text),), blank_lines=3, tiny=True
    )
    rows = read_table(path)
    assert {row["path"] for row in rows} == set(training.CURVE_PATHS)
    assert {row["step"] for row in rows} == {"1", "2"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    said = json.loads((tmp_path / "curves.jsonl").read_text())
    assert 0 <= said["fused"] < 1e-4


def test_distance_of_curves():
    rows = [
        {"path": path, "step": str(step), "train_loss": str(loss)}
        for path, losses in {"reference": (3.0, 2.0), "fused": (3.0, 2.25)}.items()
        for step, loss in enumerate(losses)
    ]
    assert training.apart(rows) == {"fused": 0.25}
