"""Bad input is refused by name, value and expectation."""

import inspect
import itertools
import re

import numpy as np
import pytest
import sympy

import flopcount as fc

GOOD = dict(
    vocab_size=262, num_latents=512, num_prefix=1536, num_channels=512, num_layers=9, num_heads=8
)
SIZES = ("vocab_size", "num_latents", "num_channels", "num_layers", "num_heads", "widening_factor")


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, np.array([4, 0]), np.int64(-8), sympy.Integer(0)])
def test_sizes_below_one(name, value):
    with pytest.raises(ValueError, match=rf"{name}.*>= 1"):
        fc.PerceiverAR(**GOOD | {name: value})


@pytest.mark.parametrize("name", [*SIZES, "num_prefix", "num_kept"])
@pytest.mark.parametrize(
    "value",
    [1.0, 512.0, float("nan"), float("inf"), "512", True, [512], 1 + 2j, np.array([1.5]),
     np.array([True]), np.float64(8), np.array(["a"]), sympy.Float(2.5), sympy.pi, sympy.nan,
     sympy.oo, sympy.zoo * sympy.Symbol("n"), object()],
)  # fmt: skip
def test_sizes_that_are_no_integers(name, value):
    with pytest.raises(TypeError, match=name):
        fc.PerceiverAR(**GOOD | {name: value})


def test_a_prefix_of_zero_is_legal():
    assert fc.PerceiverAR(**GOOD | {"num_prefix": 0}).flops().cross_part.total == 0
    with pytest.raises(ValueError, match=r"num_prefix = -1: expected an integer >= 0"):
        fc.PerceiverAR(**GOOD | {"num_prefix": -1})


def test_channels_divide_into_heads():
    with pytest.raises(ValueError, match=r"num_channels = 510 .*num_heads = 8"):
        fc.PerceiverAR(**GOOD | {"num_channels": 510})
    with pytest.raises(ValueError, match=r"num_channels = 12 .*num_heads = 8"):
        fc.PerceiverAR(**GOOD | {"num_channels": np.array([8, 12])})
    with pytest.raises(ValueError, match="num_channels"):
        fc.Decoder(vocab_size=9, seq_len=9, num_channels=9, num_layers=9, num_heads=2)


@pytest.mark.parametrize(
    "value", [1, 1.0, -0.1, 1.5, float("nan"), float("inf"), np.array([0.5, 1.0]), sympy.Integer(1)]
)
def test_dropout_outside_its_range(value):
    with pytest.raises(ValueError, match=r"prefix_dropout.*\[0, 1\)"):
        fc.PerceiverAR(**GOOD, prefix_dropout=value)


@pytest.mark.parametrize("value", ["0.5", True, None, [0.5], np.array(["x"])])
def test_dropout_that_is_no_number(value):
    with pytest.raises(TypeError, match=r"prefix_dropout.*\[0, 1\)"):
        fc.PerceiverAR(**GOOD, prefix_dropout=value)


def test_kept_and_dropout_exclude_each_other():
    with pytest.raises(ValueError, match=r"num_kept = 5 and prefix_dropout = 0.5"):
        fc.PerceiverAR(**GOOD, num_kept=5, prefix_dropout=0.5)
    with pytest.raises(ValueError, match=r"num_kept = 1537: expected at most num_prefix = 1536"):
        fc.PerceiverAR(**GOOD, num_kept=1537)


def test_prefix_beyond_floats():
    with pytest.raises(ValueError, match="give num_kept"):
        fc.PerceiverAR(**GOOD | {"num_prefix": 10**400}, prefix_dropout=0.5)
    kept = fc.PerceiverAR(**GOOD | {"num_prefix": 10**400}, num_kept=10**399)
    assert kept.kept() == 10**399


def test_arrays_that_do_not_broadcast():
    with pytest.raises(ValueError, match=r"num_channels \(3,\), num_layers \(2,\)"):
        fc.PerceiverAR(
            **GOOD | {"num_channels": np.array([8, 16, 24]), "num_layers": np.array([1, 2])}
        )
    with pytest.raises(ValueError, match="batch_size"):
        fc.PerceiverAR(**GOOD | {"num_layers": np.array([1, 2])}).flops(
            batch_size=np.array([1, 2, 3])
        )


def test_arrays_and_symbols_do_not_mix():
    with pytest.raises(TypeError, match="arrays or symbols, not both"):
        fc.PerceiverAR(
            **GOOD | {"num_layers": np.array([1, 2]), "num_prefix": sympy.Symbol("m", integer=True)}
        )


def test_empty_arrays():
    with pytest.raises(ValueError, match="num_layers is an empty array"):
        fc.PerceiverAR(**GOOD | {"num_layers": np.array([], dtype=int)})


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"level": "casual"}, r"level = 'casual'.*'causal', 'dense'"),
        ({"convention": "openai"}, r"convention = 'openai'.*'article'.*'kaplan'"),
        ({"checkpointing": "full"}, r"checkpointing = 'full'.*'reentrant'"),
        ({"batch_size": 0}, r"batch_size = 0: expected an integer >= 1"),
        ({"level": "causal", "convention": "6n"}, r"convention = '6n' with level = 'causal'"),
        ({"convention": "6n", "checkpointing": "reentrant"}, r"expected a convention alone"),
        ({"training": False, "checkpointing": "reentrant"}, r"checkpointing.*training = False"),
    ],
)
def test_unknown_options(options, pattern):
    with pytest.raises(ValueError, match=pattern):
        fc.PerceiverAR(**GOOD).flops(**options)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"level": 3}, "level = 3 is a int"),
        ({"batch_size": 2.0}, "batch_size = 2.0 is a float"),
        ({"training": 1}, "training = 1 is a int: expected True or False"),
        ({"convention": b"6n"}, "convention"),
    ],
)
def test_options_of_the_wrong_type(options, pattern):
    with pytest.raises(TypeError, match=pattern):
        fc.PerceiverAR(**GOOD).flops(**options)


def test_unknown_device_says_how_to_add_one():
    count = fc.PerceiverAR(**GOOD).flops()
    with pytest.raises(ValueError, match=r"device = 'h300'.*h100.*flopcount.Device"):
        count.mfu(seconds=1, device="h300")
    with pytest.raises(ValueError, match=r"dtype = 'int4'.*bf16"):
        count.mfu(seconds=1, device="h200", dtype="int4")
    with pytest.raises(TypeError, match="device = None"):
        count.mfu(seconds=1, device=None)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), float("inf")])
def test_impossible_durations(seconds):
    with pytest.raises(ValueError, match="seconds"):
        fc.PerceiverAR(**GOOD).flops().mfu(seconds=seconds, device="h200")


@pytest.mark.parametrize("tokens", [-1, 1.5, float("nan"), float("inf"), "1e9", None, True])
def test_impossible_token_counts(tokens):
    with pytest.raises((TypeError, ValueError), match="num_tokens"):
        fc.PerceiverAR(**GOOD).flops().for_tokens(tokens)


def test_peaks_need_a_rate_and_a_reference():
    with pytest.raises(ValueError, match="reference"):
        fc.Peak(1e12, " ")
    with pytest.raises(ValueError, match="flops_per_second"):
        fc.Peak(-1, "datasheet")
    with pytest.raises(TypeError, match="peaks"):
        fc.Device("mine", {"bf16": 1e12})


def test_memory_needs_numbers_and_a_reference():
    for of in (fc.Bandwidth, fc.Memory):
        with pytest.raises(ValueError, match="reference is empty"):
            of(10**12, " ")
    with pytest.raises(ValueError, match="bytes_per_second = 0"):
        fc.Bandwidth(0, "datasheet")
    with pytest.raises(TypeError, match="bytes_per_second"):
        fc.Bandwidth("3e12", "datasheet")
    with pytest.raises(ValueError, match="size_bytes = 0"):
        fc.Memory(0, "datasheet")
    for size in (8e10, np.array([1, 2]), "80"):
        with pytest.raises(TypeError, match="size_bytes"):
            fc.Memory(size, "datasheet")
    peaks = {"bf16": fc.Peak(1e12, "datasheet")}
    with pytest.raises(TypeError, match=r"bandwidth = .*expected a flopcount\.Bandwidth, or None"):
        fc.Device("mine", peaks, bandwidth=3e12)
    with pytest.raises(TypeError, match=r"memory = .*expected a flopcount\.Memory, or None"):
        fc.Device("mine", peaks, memory=80 * 10**9)


def test_flags_of_the_decoder():
    sizes = dict(vocab_size=9, seq_len=9, num_channels=8, num_layers=9, num_heads=2)
    with pytest.raises(TypeError, match="bias = 1"):
        fc.Decoder(**sizes, bias=1)
    with pytest.raises(TypeError, match="tie_embeddings"):
        fc.Decoder(**sizes, tie_embeddings="yes")


def test_compare_refuses_what_is_no_model():
    with pytest.raises(TypeError, match="one of PerceiverAR, Decoder, Llama"):
        fc.compare(GOOD)


def test_errors_stay_short_whatever_the_value():
    with pytest.raises(TypeError) as caught:
        fc.PerceiverAR(**GOOD | {"vocab_size": "x" * 10_000})
    assert len(str(caught.value)) < 300
    with pytest.raises(ValueError, match="bits") as caught_size:
        fc.PerceiverAR(**GOOD | {"vocab_size": -(10**10_000)})
    assert len(str(caught_size.value)) < 300


MODEL = fc.Llama(
    vocab_size=8, seq_len=8, num_channels=8, num_layers=2, num_heads=2, num_key_value_heads=1,
    intermediate_size=8,
)  # fmt: skip
TABLE = {"run": [1] * 6, "N": [1e6, 2e6, 3e6] * 2, "D": [1e8, 2e8] * 3, "loss": [4, 3, 2] * 2}
CALLS = [
    (MODEL.flops, {}), (MODEL.params, {}), (MODEL.prefill, dict(prompt_len=3)),
    (MODEL.executed, dict(tiling=fc.Tiling(forward=(16, 16), key_value=(16, 16), query=(16, 16)))),
    (MODEL.decode, dict(new_tokens=3, cached=3)), (MODEL.cache, dict(positions=3)),
    (MODEL.generate, dict(prompt_len=3, new_tokens=3)),
    (MODEL.flops().mfu, dict(seconds=1, device="h100")),
    (MODEL.flops().for_tokens, dict(num_tokens=8)), (fc.compare, dict(model=MODEL)),
    (fc.explain, {}), (fc.roofline, dict(model=MODEL, device="h100")),
    (fc.per_device, dict(model=MODEL, parallel=fc.Parallel())),
    (fc.isoflop_runs, dict(models=[MODEL], budgets=[1e9], batch_size=1)),
    (fc.read_runs, dict(source=TABLE)), (fc.read_curves, dict(source=TABLE)),
    (fc.FineTuning, {}), (fc.Parallel, {}), (fc.Meter, dict(model=MODEL, batch_size=1)),
    (fc.from_hf, dict(config={"model_type": "llama"})),
    (fc.expected_experts, dict(num_experts=8, experts_per_token=2, num_tokens=3)),
    (fc.touched_experts, dict(num_experts=8, experts_per_token=2, num_tokens=3)),
    (fc.expected_tokens_per_round, dict(acceptance_rate=0.5, tokens_per_round=3)),
]  # fmt: skip
UNTRUE = [
    np.array([]), np.array(8), np.array([8, 16]), np.array(["causal", "dense"]), [np.array([8, 9])],
    sympy.Symbol("z") > 0, sympy.Symbol("z"), {8}, [{8}], {"n": {8}}, 10**400,
]  # fmt: skip


@pytest.mark.parametrize(("call", "given"), CALLS, ids=lambda part: getattr(part, "__name__", ""))
def test_what_python_cannot_compare_or_hash_is_refused_by_the_arguments_name(call, given):
    names = inspect.signature(call).parameters
    for name, wrong in itertools.product(names, UNTRUE):
        try:
            call(**given | {name: wrong})
        except (TypeError, ValueError) as error:
            said = str(error)
        else:
            continue
        assert re.search(rf"\b{name.rstrip('s')}|columns are", said)
