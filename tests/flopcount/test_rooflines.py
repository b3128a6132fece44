"""Rooflines by hand: bytes of every term, what binds, where it turns, and expected experts."""

import dataclasses
import itertools
import json
import math
import os
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount import rooflines
from flopcount.cli import main
from flopcount.mixture_lm import MixtureLM

DEVICE = fc.Device(
    "mine",
    {"bf16": fc.Peak(1000.0, "stated here"), "fp8": fc.Peak(2000.0, "stated here")},
    fc.Bandwidth(100.0, "stated here"),
    fc.Memory(5000, "stated here"),
)
LLAMA = fc.Llama(
    vocab_size=11, seq_len=1, num_channels=8, num_layers=2, num_heads=2, num_key_value_heads=1,
    head_dim=6, intermediate_size=10,
)  # fmt: skip
EXPERTS = MixtureLM(vocab_size=11, num_channels=8, num_layers=2, num_heads=2, intermediate_size=10,
                    num_experts=4, experts_per_token=2, expert_size=3)  # fmt: skip


T5 = fc.from_hf(dict(model_type="t5", vocab_size=9, d_model=8, num_layers=2, num_heads=2, d_kv=4,
                     d_ff=6), 7)  # fmt: skip


def terms(found):
    return {term.term: term for term in found.terms}


def test_bytes_by_hand():
    found = fc.roofline(
        LLAMA, DEVICE, cached=4, batch_size=3, weights="int8", cache="fp32", dtype="bf16"
    )
    of = terms(found)
    # Two layers of 8·12 weights, a byte each; three positions of 8 channels in and 12 out.
    assert of["query"].weights == 2 * 8 * 12
    assert of["query"].activations == 2 * 2 * 3 * (8 + 12)
    # Keys and values are of the same input, and what they give is the cache's.
    assert of["key"].activations == of["value"].activations == 0
    # So is an MLP's input; each half of ten channels is written, and their product read.
    assert of["mlp gate"].activations == 2 * 2 * 3 * (8 + 10)
    assert of["mlp up"].activations == 2 * 2 * 3 * 10
    assert of["mlp down"].activations == 2 * 2 * 3 * (10 + 8)
    assert of["out"].activations == 2 * 2 * 3 * (12 + 8)
    assert of["query"].flops == 2 * 2 * 3 * 8 * 12
    # Keys and values of six channels of five positions, four read and one written, four bytes
    # each; queries and what two heads of six channels give.
    assert of["attention"].cache == 4 * 2 * 3 * 2 * 5 * 6
    assert of["attention"].activations == 2 * 2 * 3 * 2 * 12
    assert of["attention"].flops == 2 * 2 * 3 * 2 * 2 * 6 * 5
    assert of["attention"].weights == of["query"].cache == 0
    assert of["logits"].weights == 8 * 11
    assert set(of) == {
        "query", "key", "value", "attention", "out", "mlp gate", "mlp up", "mlp down", "logits"
    }  # fmt: skip
    assert found.total.flops == LLAMA.decode(1, cached=4, batch_size=3).total
    assert found.total.bytes == sum(term.bytes for term in found.terms)
    assert found.weight_bytes == LLAMA.params().total
    assert found.cache_bytes == LLAMA.cache(5, batch_size=3).bytes("fp32")
    assert fc.roofline(LLAMA, DEVICE, weights="bf16").weight_bytes == 2 * LLAMA.params().total
    # Of a prompt of two, queries and what the heads give of both.
    prompt = terms(fc.roofline(LLAMA, DEVICE, positions=2))
    assert prompt["attention"].activations == 2 * 2 * 2 * 2 * 12


def test_what_binds_and_how_long():
    query = terms(fc.roofline(LLAMA, DEVICE, cached=4, batch_size=3))["query"]
    moved = 2 * (2 * 8 * 12) + 2 * 2 * 3 * (8 + 12)
    assert query.bytes == moved
    assert query.intensity == 1152 / moved
    # 1.152 s of computing, 6.24 s of moving bytes.
    assert (query.bound_by, query.seconds) == ("bandwidth", moved / 100)
    tied = dataclasses.replace(query, flops=100, weights=10, cache=0, activations=0)
    assert (tied.intensity, tied.bound_by, tied.seconds) == (10, "compute", 0.1)
    assert dataclasses.replace(tied, weights=0).intensity == 0
    quick = dataclasses.replace(query, bandwidth=1e9)
    assert (quick.bound_by, quick.seconds) == ("compute", 1152 / 1000)
    found = fc.roofline(LLAMA, DEVICE, cached=4, batch_size=3)
    assert found.seconds_in_turn == pytest.approx(sum(term.seconds for term in found.terms))
    assert found.seconds == found.total.seconds
    assert found.tokens_per_second == pytest.approx(3 / found.seconds)
    assert fc.roofline(LLAMA, DEVICE, dtype="fp8").total.peak == 2000


def test_terms_in_turn_take_longer_than_overlapped():
    # At 15 bytes/s and 60 FLOP/s logits compute longer than they move bytes, all others do not.
    pair = fc.Device(
        "pair", {"bf16": fc.Peak(60.0, "s")}, fc.Bandwidth(15.0, "s"), fc.Memory(10**6, "s")
    )
    found = fc.roofline(LLAMA, pair, cached=9, batch_size=12)
    computing = sum(term.flops for term in found.terms) / 60
    moving = sum(term.bytes for term in found.terms) / 15
    assert {term.bound_by for term in found.terms} == {"compute", "bandwidth"}
    assert found.seconds == pytest.approx(max(computing, moving))
    assert found.seconds_in_turn > found.seconds * 1.01
    assert found.tokens_per_second == pytest.approx(12 / found.seconds)
    data = found.to_dict()
    assert (data["seconds"], data["seconds_in_turn"]) == (found.seconds, found.seconds_in_turn)
    assert f"overlapped: at most {12 / found.seconds:.4g} tokens per second" in str(found)
    assert f"one term after another: {1e6 * found.seconds_in_turn:.4g} µs" in str(found)


def test_a_prompt_has_logits_of_its_last_position_alone():
    found = fc.roofline(LLAMA, DEVICE, positions=7, batch_size=2)
    assert found.total.flops == LLAMA.prefill(7, batch_size=2).total
    assert terms(found)["attention"].cache == 2 * 2 * 2 * 2 * 7 * 6
    assert found.tokens_per_second == pytest.approx(2 * 7 / found.seconds)


def test_where_it_turns():
    slow = dataclasses.replace(DEVICE, bandwidth=fc.Bandwidth(400.0, "stated here"))
    turns = fc.roofline(LLAMA, slow).turns_at
    bound = {n: fc.roofline(LLAMA, slow, batch_size=n).total.bound_by for n in (turns - 1, turns)}
    assert bound == {turns - 1: "bandwidth", turns: "compute"}
    # A cache to read in each sequence lets it turn later, and so do wider weights.
    short = fc.roofline(LLAMA, slow, cached=3, weights="fp32")
    assert short.turns_at > turns
    bound = [
        fc.roofline(LLAMA, slow, cached=3, weights="fp32", batch_size=n).total.bound_by
        for n in (short.turns_at - 1, short.turns_at)
    ]
    assert bound == ["bandwidth", "compute"]
    fast = dataclasses.replace(DEVICE, bandwidth=fc.Bandwidth(1e9, "stated here"))
    assert fc.roofline(LLAMA, fast).turns_at == 1
    # A bandwidth between those at which a batch of 2^20 and one less (more) turn.
    total = fc.roofline(LLAMA, DEVICE).total

    def bandwidth(batch):
        moved = total.weights + batch * (total.cache + total.activations)
        return total.peak * moved / (batch * total.flops)

    for turn, found in ((2**20, 2**20), (2**20 + 1, None)):
        between = (bandwidth(turn) + bandwidth(turn - 1)) / 2
        device = dataclasses.replace(DEVICE, bandwidth=fc.Bandwidth(between, "stated here"))
        assert fc.roofline(LLAMA, device).turns_at == found
    # No further batch than the largest is looked at.
    with mock.patch.object(rooflines, "LARGEST_BATCH", turns):
        assert fc.roofline(LLAMA, slow).turns_at == turns
    with mock.patch.object(rooflines, "LARGEST_BATCH", turns - 1):
        assert fc.roofline(LLAMA, slow).turns_at is None
    # At ten FLOPs per byte a cache of keys shared by two heads never computes longer.
    long = fc.roofline(LLAMA, DEVICE, cached=10**6)
    assert long.turns_at is None
    assert "at no batch up to 2^20" in str(long)


def test_experts_that_are_read():
    # Every way in which three tokens choose two of four experts.
    choices = list(itertools.combinations(range(4), 2))
    touched = [len(set().union(*chosen)) for chosen in itertools.product(choices, repeat=3)]
    assert fc.expected_experts(4, 2, 3) == Fraction(sum(touched), len(touched))
    assert (min(touched), max(touched)) == (2, 4)
    # And of five.
    choices = list(itertools.combinations(range(5), 2))
    touched = [len(set().union(*chosen)) for chosen in itertools.product(choices, repeat=3)]
    assert fc.expected_experts(5, 2, 3) == Fraction(sum(touched), len(touched))
    of_five = dataclasses.replace(EXPERTS, num_experts=5, num_layers=3)
    for options in (dict(batch_size=3), dict(positions=3)):
        of = terms(fc.roofline(of_five, DEVICE, **options))
        read = 2 * float(fc.expected_experts(5, 2, 3)) * 8 * 3
        assert of["expert gate"].weights == pytest.approx(3 * read)
    of = terms(fc.roofline(EXPERTS, DEVICE, cached=4, batch_size=3))
    read = 2 * float(fc.expected_experts(4, 2, 3)) * 8 * 3
    assert of["expert gate"].weights == pytest.approx(2 * read)
    # Two of each token's: three times two positions of 3 channels out, in two layers; the router
    # has read the three positions of 8 channels, and gives a score of four experts each.
    assert of["expert gate"].activations == of["expert up"].activations == 2 * 2 * 6 * 3
    assert of["expert down"].activations == 2 * 2 * 6 * (3 + 8)
    assert of["router"].activations == 2 * 2 * 3 * (8 + 4)
    assert of["router"].weights == 2 * 2 * 8 * 4


def test_experts_of_any_routing():
    # Every way in which three tokens choose two of five experts, and one of two.
    for experts, chosen, tokens in ((5, 2, 3), (2, 1, 3), (4, 4, 1), (9, 2, 3)):
        choices = list(itertools.combinations(range(experts), chosen))
        ways = [len(set().union(*way)) for way in itertools.product(choices, repeat=tokens)]
        assert fc.touched_experts(experts, chosen, tokens) == (
            min(ways), Fraction(sum(ways), len(ways)), max(ways)
        )  # fmt: skip
    found = fc.roofline(EXPERTS, DEVICE, cached=4, batch_size=3, positions=2)
    (touched,) = found.experts.values()
    assert touched == fc.touched_experts(4, 2, 6)
    assert found.to_dict()["experts"] == {
        "decoder": {"fewest": 2, "expected": 4 * (1 - 0.5**6), "most": 4}
    }
    assert "experts read in layer decoder: 3.938 expected, at least 2, at most 4" in str(found)
    assert fc.roofline(LLAMA, DEVICE).experts == {}
    # One token in one layer of four: exactly its own two.
    one = fc.roofline(EXPERTS, DEVICE).experts["decoder"]
    assert one == (2, 2, 2)


def test_what_several_products_read_is_read_once():
    # Two branches of one norm read one input; of two norms, each its own.
    def read(of):
        return sum(
            of[term].activations - 2 * 2 * outputs
            for term, outputs in (("query", 8), ("mlp gate", 10))
        )

    common = dict(vocab_size=11, num_channels=8, num_layers=2, num_heads=2, intermediate_size=10)
    for norms, inputs in (("one", 8), ("two", 16)):
        model = fc.CausalLM(**common, parallel_norms=norms)
        assert read(terms(fc.roofline(model, DEVICE, cached=4))) == 2 * 2 * inputs
    # In turn, the second's input is another value.
    assert read(terms(fc.roofline(fc.CausalLM(**common), DEVICE, cached=4))) == 2 * 2 * 16


def test_a_prefix_and_another_stack_are_read_once():
    model = fc.PerceiverAR(vocab_size=9, num_latents=8, num_prefix=8, num_channels=16,
                           num_layers=2, num_heads=2)  # fmt: skip
    found = fc.roofline(model, DEVICE, positions=10)
    of = {term.term: term.activations for term in found.terms if term.layer == "hybrid"}
    # Of ten positions eight are the prefix, read for its keys and values; two are latents, whose
    # queries meet both at once.
    assert (of["key"], of["value"]) == (2 * 8 * 16, 0)
    assert of["query"] == of["attention"] == of["out"] == 2 * 2 * (16 + 16)
    # What three positions of an encoder give, in each of two layers; one position's query.
    of = {term.term: term.activations
          for term in fc.roofline(T5, DEVICE, positions=3).terms
          if term.layer == "decoder"}  # fmt: skip
    assert (of["cross key"], of["cross value"]) == (2 * 2 * 3 * 8, 0)
    assert of["cross query"] == of["cross attention"] == of["cross out"] == 2 * 2 * (8 + 8)


@pytest.mark.parametrize("mla", ["latent", "absorbed"])
def test_latents_are_read_once(mla):
    model = fc.from_hf({"model_type": "deepseek_v3"})
    found = fc.roofline(model, "h200", cached=99, mla=mla)
    kept = sum(term.cache for term in found.terms if term.term == "attention")
    assert kept == 2 * 61 * 100 * (512 + 64)
    up = sum(
        term.weights for term in found.terms
        if term.term in ("key-value up", "query absorbed", "value up")
    )  # fmt: skip
    assert up == 2 * 61 * 512 * 128 * (128 + 128)
    # Positions of 7168 channels are read once, and 1536 of queries' latent written, which their
    # expansion reads; what of keys and values is expanded stays on chip.
    of = {name: sum(term.activations for term in found.terms if term.term == name)
          for name in terms(found)}  # fmt: skip
    layers = 2 * 61
    assert of["query down"] == layers * (7168 + 1536)
    assert of["query up"] == layers * (1536 + 128 * 192)
    assert of["key-value down"] == 0
    if mla == "latent":
        assert of["key-value up"] == 0
        assert of["attention"] == layers * 128 * (192 + 128)
    else:
        assert of["query absorbed"] == layers * 128 * (128 + 512)
        assert of["attention"] == layers * 128 * (576 + 512)
        assert of["value up"] == layers * 128 * (512 + 128)
    assert found.total.flops == model.decode(1, cached=99, mla=mla).total


def test_memory():
    # 2·900 bytes of weights or so, and a cache that grows.
    assert fc.roofline(LLAMA, DEVICE).fits
    big = fc.roofline(LLAMA, DEVICE, cached=99)
    assert not big.fits
    exactly = fc.Memory(int(big.weight_bytes + big.cache_bytes), "stated here")
    for memory, fits in (
        (exactly, True),
        (fc.Memory(exactly.size_bytes - 1, "stated here"), False),
    ):
        device = dataclasses.replace(DEVICE, memory=memory)
        assert fc.roofline(LLAMA, device, cached=99).fits == fits
    assert "MORE than the memory" in str(big)
    unknown = dataclasses.replace(DEVICE, memory=None)
    assert fc.roofline(LLAMA, unknown).fits is None


def test_states_of_scans_and_other_stacks_have_terms():
    mamba = fc.from_hf(dict(model_type="mamba2", hidden_size=8, num_heads=4, head_dim=4,
                            state_size=3, n_groups=1, num_hidden_layers=2,
                            vocab_size=9))  # fmt: skip
    # A state of 16·3 numbers is read and written. Of four positions of a convolution of 16 + 2·3
    # channels three are read and one is written.
    of = terms(fc.roofline(mamba, DEVICE, cached=5))
    assert of["scan"].cache == 2 * 2 * (2 * 16 * 3 + 4 * 22)
    assert mamba.cache(6).elements == 2 * (16 * 3 + 4 * 22)
    # One position has made a state; the first pass finds none.
    of = terms(fc.roofline(mamba, DEVICE, cached=1))
    assert of["scan"].cache == 2 * 2 * (2 * 16 * 3 + 4 * 22)
    of = terms(fc.roofline(mamba, DEVICE, positions=5))
    assert of["scan"].cache == 2 * 2 * (16 * 3 + 4 * 22)
    assert of["scan"].activations == 0
    of = terms(fc.roofline(T5, DEVICE, cached=5))
    assert of["cross attention"].cache == 2 * 2 * 7 * 2 * 8
    assert of["attention"].cache == 2 * 2 * 6 * 2 * 8


def test_experts_that_many_tokens_read():
    # E·(1 - (1 - k/E)^t), exact while E^t has 14,000 bits, which Python still prints.
    for experts, chosen, tokens in ((8, 2, 4000), (256, 8, 2000), (10**12, 1, 300)):
        exact = experts * (1 - Fraction(experts - chosen, experts) ** tokens)
        assert fc.expected_experts(experts, chosen, tokens) == exact
        assert str(exact)
    # To 30 digits of more of them, however near it is to 0 or to E.
    for experts, chosen, tokens in (
        (8, 2, 20_000), (10**12, 1, 1000), (10**15, 3, 2000), (1000, 999, 3000), (3**9, 5, 10**4),
    ):  # fmt: skip
        exact = experts * (1 - Fraction(experts - chosen, experts) ** tokens)
        found = fc.expected_experts(experts, chosen, tokens)
        assert abs(found - exact) <= exact / 10**30
        assert len(str(found)) < 100
    # Exact to the bit where it ends: 2^7000 has 14,000 bits by its denominator's two, 4^4667 one
    # more by its three, and (3/4)^4667 is nothing beside 1 in any number of digits that is kept.
    assert fc.expected_experts(2, 1, 7000) == 2 * (1 - Fraction(1, 2**7000)) != 2
    assert fc.expected_experts(4, 1, 4667) == 4
    # Kept are 30 digits and as many more as 1000, of 10 bits, and 10^12, of 40, can lose: 18.
    share = fc.expected_experts(10**12, 1, 1000) / 10**12
    assert (share * 10**48).denominator == 1 != (share * 10**47).denominator
    # Sizes of which no computer holds the power.
    assert fc.expected_experts(8, 2, 10**9) == fc.expected_experts(8, 8, 10**40) == 8
    # E·(1 - exp(-t·k/E)), since (1 - x)^t is exp(-t·x) within t·x².
    found = fc.expected_experts(10**30, 1, 10**30)
    assert math.isclose(found, 10**30 * (1 - math.exp(-1)), rel_tol=1e-14)


@pytest.mark.parametrize("wrong", [np.array([8, 9]), sympy.Symbol("t", positive=True)])
def test_experts_of_one_size_each(wrong):
    named = dict(num_experts=8, experts_per_token=2, num_tokens=3)
    for name in named:
        with pytest.raises(TypeError, match=f"^{name} = .*: expected one integer >= 1"):
            fc.expected_experts(**named | {name: wrong})


A_ROOFLINE = """\
Roofline of Llama on mine: cached = 4, positions = 1, batch_size = 3, dtype = bf16, weights = int8,
cache = fp32
 layer     term        FLOPs   bytes, at least   FLOPs per byte   bound by           µs
────────────────────────────────────────────────────────────────────────────────────────
 decoder   query       1,152               432             2.67   bandwidth    4.32e+06
 decoder   key           576                96                6   bandwidth     9.6e+05
 decoder   value         576                96                6   bandwidth     9.6e+05
 decoder   attention   1,440             1,728             0.83   bandwidth   1.728e+07
 decoder   out         1,152               432             2.67   bandwidth    4.32e+06
 decoder   mlp gate      960               376             2.55   bandwidth    3.76e+06
 decoder   mlp up        960               280             3.43   bandwidth     2.8e+06
 decoder   mlp down      960               376             2.55   bandwidth    3.76e+06
 output    logits        528               202             2.61   bandwidth    2.02e+06

 total                 8,304             4,018             2.07   bandwidth   4.018e+07
all terms overlapped: at most 0.07466 tokens per second; computing binds at no batch up to 2^20
one term after another: 4.018e+07 µs
1,272 bytes of weights, 1,440 of cache: they fit the memory"""


def test_a_printed_roofline():
    found = fc.roofline(LLAMA, DEVICE, cached=4, batch_size=3, weights="int8", cache="fp32")
    with mock.patch.dict(os.environ, COLUMNS="99"):
        assert str(found) == A_ROOFLINE
    # What names a row stands beside each of its parts.
    with mock.patch.dict(os.environ, COLUMNS="60"):
        assert "\ndecoder  query       4.32e+06\n" in str(found)
        assert "\nlayer    term              µs\n" in str(found)
    slow = dataclasses.replace(DEVICE, bandwidth=fc.Bandwidth(400.0, "stated here"))
    assert "computing binds at a batch of 6" in str(fc.roofline(LLAMA, slow))


def test_a_drawn_roofline():
    found = fc.roofline(LLAMA, DEVICE, cached=4, batch_size=3, weights="int8", cache="fp32")
    (axes,) = found.plot().figure.axes
    # At 1000 FLOP/s and 100 bytes/s the ridge is at 10 FLOPs per byte; attention has least.
    roof, *points = axes.lines
    low, high = 1440 / 1728 / 3, 10 * 3
    assert list(roof.get_xdata()) == pytest.approx([low, 10, high])
    assert list(roof.get_ydata()) == pytest.approx([low * 100, 1000, 1000])
    drawn = {
        line.get_label(): (*line.get_xdata(), *line.get_ydata(), line.get_marker())
        for line in points
    }
    assert drawn["decoder query"] == (1152 / 432, pytest.approx(100 * 1152 / 432), "o")
    assert drawn["total"] == (8304 / 4018, pytest.approx(100 * 8304 / 4018), "*")
    assert len(drawn) == len(found.terms) + 1
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_title() == "Llama on mine"
    assert len(axes.get_legend().get_texts()) == len(drawn)
    # Beyond the ridge the peak is the roof, and the picture ends behind the last point.
    many = fc.roofline(LLAMA, dataclasses.replace(DEVICE, bandwidth=fc.Bandwidth(800.0, "s")))
    (axes,) = many.plot().figure.axes
    roof, *points = axes.lines
    intensities = [term.intensity for term in many.terms]
    assert list(roof.get_xdata()) == pytest.approx([min(intensities) / 3, 1.25, 3.75])
    assert max(intensities) < 1.25
    faster = fc.roofline(LLAMA, dataclasses.replace(DEVICE, bandwidth=fc.Bandwidth(1e4, "s")))
    (axes,) = faster.plot().figure.axes
    roof, *points = axes.lines
    assert list(roof.get_xdata()) == pytest.approx([0.1 / 3, 0.1, 3 * max(intensities)])
    assert {line.get_ydata()[0] for line in points} == {1000}


def test_a_step_behind_one_position_and_behind_a_symbol():
    widths = dict.fromkeys(("dtype", "weights", "cache"), 2)
    options = dict(positions=1, batch_size=1, widths=widths, mla=None, peak=1, bandwidth=1)
    behind = sympy.Symbol("c", integer=True, nonnegative=True)
    for cached in (1, behind):
        found = rooflines.bounds(T5, cached=cached, **options)
        assert {term.layer for term in found} == {"decoder", "output"}


def test_a_prompt_of_an_encoder_and_a_step_of_its_decoder():
    # One position behind a cache is a step; the encoder and the keys of its output are done.
    step = fc.roofline(T5, DEVICE, cached=5)
    assert {term.layer for term in step.terms} == {"decoder", "output"}
    assert "cross key" not in terms(step)
    assert step.total.flops == T5.decode(1, cached=5).total
    for positions in (1, 3):
        prompt = fc.roofline(T5, DEVICE, positions=positions)
        assert {term.layer for term in prompt.terms} == {"encoder", "decoder", "output"}
        assert prompt.total.flops == T5.prefill(positions).total
    with pytest.raises(ValueError, match="cached = 2 of an encoder's prompt"):
        fc.roofline(T5, DEVICE, positions=3, cached=2)


def test_as_plain_data():
    found = fc.roofline(LLAMA, DEVICE, cached=4, batch_size=3, weights="int8", cache="fp32")
    data = found.to_dict()
    assert {name: data[name] for name in found.options} == dict(
        cached=4, positions=1, batch_size=3, dtype="bf16", weights="int8", cache="fp32", mla=None
    )
    assert data["terms"][0] == {
        "layer": "decoder", "term": "query", "flops": 1152, "weights": 192, "cache": 0,
        "activations": 240, "peak": 1000.0, "bandwidth": 100.0, "intensity": 1152 / 432,
        "seconds": 4.32, "bound": "bandwidth",
    }  # fmt: skip
    assert (data["device"], data["seconds"], data["fits"]) == ("mine", found.seconds, True)


def test_printed_and_plotted(capsys, tmp_path):
    words = ["roofline", "llama", "--vocab-size", "11", "--seq-len", "1", "--num-channels", "8",
             "--num-layers", "2", "--num-heads", "2", "--intermediate-size", "10"]  # fmt: skip
    asked = ["--device", "h100", "--cached", "9", "--batch-size", "4"]
    assert main([*words, *asked, "--plot", str(tmp_path / "roofline.svg")]) == 0
    out = capsys.readouterr().out
    assert "Roofline of Llama on h100: cached = 9, positions = 1, batch_size = 4" in out
    drawn = (tmp_path / "roofline.svg").read_text(encoding="utf-8")
    assert drawn.count("<use") >= 10
    assert main([*words, *asked, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["batch_size"] == 4
    assert math.isclose(printed["tokens_per_second"] * printed["seconds"], 4)


def test_a_bandwidth_that_the_user_states(capsys):
    words = ["roofline", "llama", "--vocab-size", "11", "--seq-len", "1", "--num-channels", "8",
             "--num-layers", "2", "--num-heads", "2", "--intermediate-size", "10",
             "--json"]  # fmt: skip

    def moved(*more):
        assert main([*words, *more]) == 0
        printed = json.loads(capsys.readouterr().out)
        (bandwidth,) = {term["bandwidth"] for term in printed["terms"]}
        return bandwidth

    assert moved("--device", "rtx-4090", "--bandwidth", "1e12") == 1e12
    assert moved("--device", "h100", "--bandwidth", "2e12") == 2e12
    assert moved("--device", "h100") == 3.35e12
    assert main([*words, "--device", "rtx-4090"]) == 2
    assert "--bandwidth in bytes/s" in capsys.readouterr().err
    assert main([*words, "--device", "h100", "--bandwidth", "0"]) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fc.roofline(LLAMA, "rtx-4090"), "device = 'rtx-4090' without bandwidth"),
        (lambda: fc.roofline(LLAMA, "h100", weights="int3"), "weights = 'int3': expected one of"),
        (lambda: fc.roofline(LLAMA, "h100", cached=-1), "cached = -1: expected an integer >= 0"),
        (lambda: fc.roofline(LLAMA, "h100", positions=0), "positions = 0: expected an integer"),
        (lambda: fc.roofline(LLAMA, "h100", mla="latent"), "mla = 'latent' of a Llama"),
        (lambda: fc.expected_experts(4, 5, 1), "experts_per_token = 5: expected at most"),
        (lambda: fc.touched_experts(4, 5, 1), "experts_per_token = 5: expected at most"),
        (
            lambda: fc.roofline(LLAMA, fc.Device("x", {})),
            "device = 'x' without peaks: expected one whose peaks have 'bf16'",
        ),
        (lambda: fc.expected_experts(4, 2, 0), "num_tokens = 0: expected an integer >= 1"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("wrong", [np.array([1, 2]), 2.0, None])
def test_what_has_the_wrong_type(wrong):
    with pytest.raises(TypeError, match="batch_size = "):
        fc.roofline(LLAMA, "h100", batch_size=wrong)
    with pytest.raises(TypeError, match="model = "):
        fc.roofline(wrong, "h100")


def test_experts_of_a_roofline_by_hand():
    mixture = MixtureLM(
        vocab_size=24, seq_len=12, num_channels=16, num_layers=3, num_heads=4,
        intermediate_size=20, mlp=("sparse",), num_experts=8, experts_per_token=2, expert_size=12,
    )  # fmt: skip
    (touched,) = fc.roofline(mixture, DEVICE, batch_size=3).experts.values()
    assert (touched.fewest, touched.most) == (2, 6)
    assert touched.expected == 8 * (1 - Fraction(3, 4) ** 3)
    for sizes, most in (((8, 2, 3), 6), ((8, 2, 9), 8)):
        touched = fc.touched_experts(*map(np.int64, sizes))
        assert (touched.fewest, touched.most) == (2, most)
        assert type(touched.fewest) is type(touched.most) is int
