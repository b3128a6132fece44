"""Rates of a step: tokens, FLOP/s, and shares of a peak that someone has stated."""

import pytest
import torch

import flopcount
from kernels.attention.tilings import PASSES, shipped_tiling
from models.training.throughput import measure, peak_device, rates_of, why_no_utilisation

MODEL = flopcount.PerceiverAR(
    vocab_size=262, num_latents=8, num_prefix=6, num_channels=8, num_layers=2, num_heads=2
)


def speed(**changes):
    arguments = dict(
        model=MODEL,
        batch_size=3,
        attention="reference",
        checkpointing="reentrant",
        device=peak_device(None, 1e9, "fp32"),
        dtype="fp32",
        num_devices=2,
    )
    return measure(**(arguments | changes))


def test_a_step_is_rated_by_what_it_needs_and_by_what_it_executes():
    row = speed().row(seconds=0.5)
    # 3 sequences of 8 latents in half a second.
    assert row["tokens_per_second"] == 48
    causal = MODEL.flops(level="causal", batch_size=3).total
    assert row["flops_per_second"] == causal * 2
    # Two devices of 1e9 FLOP/s for half a second could do 1e9.
    assert row["mfu"] == causal / 1e9
    dense = MODEL.flops(level="dense", batch_size=3, checkpointing="reentrant")
    assert row["hfu"] == (dense.total + dense.recompute) / 1e9
    assert row["hfu"] > speed(checkpointing=None).row(0.5)["hfu"] > row["mfu"]


def test_fused_attention_executes_whole_tiles():
    row = speed(
        attention="fused", checkpointing=None, device=peak_device(None, 1e9, "bf16"), dtype="bf16"
    ).row(0.5)
    # 2 heads of 4 channels; the layers attend to 8 latents, the hybrid one to 6 positions more.
    plain, hybrid = (
        flopcount.Tiling(**{name: shipped_tiling(name, 4, 2, keys)[:2] for name in PASSES})
        for keys in (8, 14)
    )
    assert row["hfu"] == MODEL.executed(plain, tilings={"hybrid": hybrid}, batch_size=3).total / 1e9
    # Eight queries and fourteen keys fill a corner of such tiles.
    assert row["hfu"] > 3 * row["mfu"]


def test_without_a_peak_no_share_of_it_is_given():
    row = speed(device=peak_device(None, None, "fp32")).row(0.5)
    assert row.keys() == {"tokens_per_second", "flops_per_second"}
    assert why_no_utilisation(torch.device("cpu")) == (
        "no MFU: the peak rate of the CPU is not stated; name a device of `flopcount devices` by "
        "--peak, or give its FLOP/s by --peak-flops"
    )


def test_more_than_the_peak_is_left_empty():
    # Two devices of half the FLOP/s that were reached: MFU is 100 %, which passes; HFU is more.
    causal = MODEL.flops(level="causal", batch_size=3).total
    rated = speed(device=peak_device(None, causal, "fp32"))
    with pytest.warns(UserWarning, match="HFU is left empty .* check the peak"):
        row = rated.row(0.5)
    assert (row["mfu"], row["hfu"]) == (1.0, None)
    with pytest.warns(UserWarning, match="[MH]FU is left empty"):
        assert rated.row(0.499)["mfu"] is None


@pytest.mark.parametrize("empty", [None, ""])
def test_a_run_has_no_rate_that_a_row_lacks(empty):
    rows = [
        dict(seconds=1.0, tokens_per_second=500.0, mfu=empty, hfu=0.5),
        dict(seconds=4.0, tokens_per_second=900.0, mfu=0.3, hfu=0.6),
    ]
    # (1 · 500 + 3 · 900) / 4, (1 · 0.5 + 3 · 0.6) / 4
    assert rates_of(rows) == {
        "tokens_per_second": 800.0,
        "mfu": None,
        "hfu": pytest.approx(0.575),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("h100", 1e12, "bf16"), "give peak or peak_flops, not both, got 'h100' and 1e12"),
        (("abacus", None, "bf16"), "device = 'abacus': expected one of "),
        (("v100", None, "bf16"), "dtype = 'bf16': expected one of fp64, fp32, fp16 on v100"),
        ((None, 0, "fp32"), "flops_per_second = 0"),
    ],
)
def test_a_peak_is_never_guessed(arguments, message):
    with pytest.raises(ValueError, match=message.replace("1e12", "1000000000000.0")):
        peak_device(*arguments)
