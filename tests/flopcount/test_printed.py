"""What counts print and hold as plain data, to the character."""

import dataclasses
import itertools
import os
from unittest import mock

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.count import NotCoveredError

MODEL = fc.Decoder(
    vocab_size=5, seq_len=2, num_channels=4, num_layers=1, num_heads=2, widening_factor=1,
    bias=False,
)  # fmt: skip
PERCEIVER = fc.PerceiverAR(
    vocab_size=5, num_latents=2, num_prefix=4, num_channels=6, num_layers=2, num_heads=2,
    prefix_dropout=0.5, widening_factor=2,
)  # fmt: skip

A_STEP = """\
FLOPs of Decoder, level causal, forward and backward, batch of 3
 part    layer     term       forward   backward   recompute     share
───────────────────────────────────────────────────────────────────────
 self    decoder   query          192        384         192    12.50%
 self    decoder   key            192        384         192    12.50%
 self    decoder   value          192        384         192    12.50%
 self    decoder   scores          72        144          72     4.69%
 self    decoder   values          72        144          72     4.69%
 self    decoder   out            192        384         192    12.50%
 self    decoder   mlp up         192        384         192    12.50%
 self    decoder   mlp down       192        384           0    12.50%
 self    output    logits         240        480           0    15.62%

 total                          1,536      3,072       1,104   100.00%
per sequence 1,536, per token 768
"""

AN_EVALUATION = """\
FLOPs of Decoder, level causal, forward alone, batch of 1
 part    layer     term       forward   backward     share
───────────────────────────────────────────────────────────
 self    decoder   query           64          0    12.50%
 self    decoder   key             64          0    12.50%
 self    decoder   value           64          0    12.50%
 self    decoder   scores          24          0     4.69%
 self    decoder   values          24          0     4.69%
 self    decoder   out             64          0    12.50%
 self    decoder   mlp up          64          0    12.50%
 self    decoder   mlp down        64          0    12.50%
 self    output    logits          80          0    15.62%

 total                            512          0   100.00%
per sequence 512, per token 256
"""

A_CONVENTION = """\
FLOPs of PerceiverAR, convention 6n, forward and backward, batch of 1
 part             layer   term   forward   backward     share
──────────────────────────────────────────────────────────────
 self             model   2 N      2,756      5,512   100.00%

 self part only                    2,756      5,512   100.00%
per sequence 8,268, per latent token 4,134
cross part: not covered by this convention
"""

ELEMENT_WISE = """\
Element-wise FLOPs (not part of the matmul total; optimiser excluded)
 part    layer       term                         elements   forward   backward
────────────────────────────────────────────────────────────────────────────────
 self    embedding   embedding                           8         8         16
 self    decoder     norm                                8        48         96
 self    decoder     projection input gradients          8         0         16
 self    decoder     query scale                         8         8          8
 self    decoder     softmax                             6        30         24
 self    decoder     attention residual                  8         8          8
 self    decoder     mlp norm                            8        48         96
 self    decoder     gelu                                8        40         88
 self    decoder     mlp residual                        8         8          8
 self    output      final norm                          8        48         96
 self    output      tied embedding gradient            20         0         20
 self    loss        cross-entropy                      10        50         40

 total                                                           296        516
"""

ELEMENT_WISE_AGAIN = """\
Element-wise FLOPs (not part of the matmul total; optimiser excluded)
 part    layer       term                         elements   forward   backward   recompute
────────────────────────────────────────────────────────────────────────────────────────────
 self    embedding   embedding                           8         8         16           0
 self    decoder     norm                                8        48         96          48
 self    decoder     projection input gradients          8         0         16           0
 self    decoder     query scale                         8         8          8           8
 self    decoder     softmax                             6        30         24          30
 self    decoder     attention residual                  8         8          8           8
 self    decoder     mlp norm                            8        48         96          48
 self    decoder     gelu                                8        40         88          40
 self    decoder     mlp residual                        8         8          8           8
 self    output      final norm                          8        48         96           0
 self    output      tied embedding gradient            20         0         20           0
 self    loss        cross-entropy                      10        50         40           0

 total                                                           296        516         190
"""

PARAMETERS = """\
Parameters of Decoder
 part    layer       name         parameters     share
───────────────────────────────────────────────────────
 self    embedding   token                20    14.71%
 self    embedding   positions             8     5.88%
 self    decoder     norm                  4     2.94%
 self    decoder     query                16    11.76%
 self    decoder     key                  16    11.76%
 self    decoder     value                16    11.76%
 self    decoder     out                  16    11.76%
 self    decoder     mlp norm              4     2.94%
 self    decoder     mlp up               16    11.76%
 self    decoder     mlp down             16    11.76%
 self    output      final norm            4     2.94%

 total                                   136   100.00%
"""


@pytest.mark.parametrize(
    ("counted", "text"),
    [
        (lambda: MODEL.flops(batch_size=3, checkpointing="non-reentrant"), A_STEP),
        (lambda: MODEL.flops(training=False), AN_EVALUATION),
        (lambda: PERCEIVER.flops(convention="6n"), A_CONVENTION),
        (lambda: MODEL.flops().elementwise, ELEMENT_WISE),
        (lambda: MODEL.flops(checkpointing="reentrant").elementwise, ELEMENT_WISE_AGAIN),
        (lambda: MODEL.params(), PARAMETERS),
    ],
)
def test_what_is_printed(counted, text):
    assert str(counted()) == repr(counted()) == text.rstrip("\n")


@pytest.mark.parametrize(
    ("counted", "keys", "numbers"),
    [
        (
            lambda: MODEL.flops(checkpointing="reentrant"),
            ["part", "layer", "term"],
            ["forward", "backward", "recompute", "share"],
        ),
        (
            lambda: MODEL.flops().elementwise,
            ["part", "layer", "term"],
            ["elements", "forward", "backward"],
        ),
        (lambda: MODEL.params(), ["part", "layer", "name"], ["parameters", "share"]),
    ],
)
def test_a_narrow_terminal_repeats_what_names_a_row(counted, keys, numbers):
    # 42 columns hold the three that name a row, and one column of numbers.
    with mock.patch.dict(os.environ, COLUMNS="42"):
        lines = str(counted()).splitlines()
    headings = [line.split() for line in lines if line.split()[:1] == ["part"]]
    assert len(headings) > 1
    assert all(heading[:3] == keys for heading in headings)
    assert [word for heading in headings for word in heading[3:]] == numbers


def test_terms_come_layer_by_layer_and_the_self_part_first():
    count = PERCEIVER.flops()
    for terms in (count.terms, count.elementwise.terms):
        parts = [(term.layer, term.part) for term in terms]
        assert list(dict.fromkeys(parts)) == [
            *([("embedding", "self"), ("embedding", "cross")] if terms is not count.terms else []),
            ("hybrid", "self"),
            ("hybrid", "cross"),
            ("self-attention", "self"),
            ("output", "self"),
            *([("loss", "self")] if terms is not count.terms else []),
        ]
        changes = sum(before != after for before, after in itertools.pairwise(parts))
        assert changes == len(set(parts)) - 1


def test_a_share_is_of_numbers_alone():
    widths = fc.Decoder(
        vocab_size=5, seq_len=2, num_channels=np.array([4, 8]), num_layers=1, num_heads=2
    )
    n = sympy.Symbol("n", integer=True, positive=True)
    symbol = fc.Decoder(vocab_size=5, seq_len=n, num_channels=4, num_layers=1, num_heads=2)
    for model in (widths, symbol):
        assert "%" not in str(model.flops())
        assert "%" not in str(model.params())
    # A convention that covers nothing of a model has no share to print.
    llama = fc.Llama(
        vocab_size=5, seq_len=2, num_channels=4, num_layers=1, num_heads=2, intermediate_size=3
    )
    assert "%" not in str(llama.flops(convention="kaplan"))


def test_plain_data_of_a_count():
    count = PERCEIVER.flops(convention="6n")
    # N of the self part: 5·6 tokens, 2·6 positions, 2 layers of 4·36 + 2·72 + 2·2·6, the bias of
    # "out" (6), the prefix norm (12), the bias of the logits (5).
    parameters = 30 + 12 + 2 * (144 + 144 + 24) + 6 + 12 + 5
    assert count.to_dict() == {
        "version": fc.__version__,
        "model": {
            "architecture": "PerceiverAR",
            "vocab_size": 5,
            "num_latents": 2,
            "num_prefix": 4,
            "num_channels": 6,
            "num_layers": 2,
            "num_heads": 2,
            "prefix_dropout": 0.5,
            "num_kept": None,
            "widening_factor": 2,
        },
        "level": None,
        "convention": "6n",
        "training": True,
        "checkpointing": None,
        "batch_size": 1,
        "tokens": 2,
        "whole": "not covered",
        "self_part": {
            "total": 12 * parameters,
            "forward": 4 * parameters,
            "backward": 8 * parameters,
            "recompute": 0,
            "per_token": 6 * parameters,
        },
        "cross_part": "not covered",
        "terms": [
            {
                "part": "self",
                "layer": "model",
                "term": "2 N",
                "forward": 4 * parameters,
                "backward": 8 * parameters,
                "recompute": 0,
                "total": 12 * parameters,
                "source": "common rule C = 6ND, after Kaplan et al. 2020 (arXiv 2001.08361)",
            }
        ],
        "elementwise": None,
    }
    whole = PERCEIVER.flops(checkpointing="reentrant")
    assert whole.to_dict()["elementwise"] == whole.elementwise.records()
    assert whole.to_dict()["whole"]["recompute"] == whole.recompute > 0
    assert list(whole.to_dict()) == list(count.to_dict())
    assert PERCEIVER.flops(convention="6n").elementwise is None
    assert PERCEIVER.flops(convention="6n").self_part.elementwise is None
    assert whole.self_part.elementwise.total + whole.cross_part.elementwise.total == (
        whole.elementwise.total
    )


def test_what_is_not_covered_says_what_to_ask_for():
    with pytest.raises(NotCoveredError) as caught:
        _ = PERCEIVER.flops(convention="6n").total
    assert str(caught.value) == (
        "convention = '6n' does not cover the cross part of PerceiverAR: ask for .self_part, or "
        "count at a level"
    )
    llama = fc.Llama(
        vocab_size=5, seq_len=2, num_channels=4, num_layers=1, num_heads=2, intermediate_size=3
    )
    with pytest.raises(NotCoveredError) as caught:
        _ = llama.flops(convention="kaplan").total
    assert str(caught.value) == (
        "convention = 'kaplan' does not cover the self part of Llama: count at a level"
    )
    assert llama.flops(convention="kaplan").to_dict()["self_part"] == "not covered"


def test_runs_over_tokens_of_any_kind():
    count = MODEL.flops()
    per_token = count.per_token
    assert count.for_tokens(np.float64(1e9)) == per_token * 10**9
    assert type(count.for_tokens(np.float64(1e9))) is int
    assert list(count.for_tokens(np.array([1.0, 2e9]))) == [per_token, 2 * 10**9 * per_token]
    assert list(count.for_tokens(np.array([1, 2]))) == [per_token, 2 * per_token]
    assert count.for_tokens(np.float32(8)) == 8 * per_token
    assert type(count.for_tokens(np.float32(8))) is int
    assert count.for_tokens(0) == 0
    assert count.for_tokens(np.array([1, 2])).dtype == np.int64
    with pytest.raises(TypeError, match="num_tokens is an array of dtype bool"):
        count.for_tokens(np.array([True]))
    # A float beyond int64 stays exact.
    assert count.for_tokens(np.array([2.0**70]))[0] == per_token * 2**70
    for wrong in (1.5, np.float64(1.5), np.array([1.0, 1.5]), np.array([np.nan]), float("inf")):
        with pytest.raises((TypeError, ValueError), match="num_tokens"):
            count.for_tokens(wrong)


def test_an_evaluation_is_not_recomputed():
    evaluation = MODEL.flops(training=False)
    assert {term.recomputed for term in evaluation.terms} == {False}
    assert {term.recomputed for term in evaluation.elementwise.terms} == {False}
    assert evaluation.recompute == evaluation.elementwise.recompute == 0
    plain = MODEL.flops()
    assert {term.recomputed for term in plain.terms} == {False}
    assert {row.phase for row in plain.rows} == {"forward", "backward"}


def test_a_drawn_count():
    count = MODEL.flops(batch_size=3, checkpointing="reentrant")
    (axes,) = count.plot().figure.axes
    forward, backward, again = axes.containers
    assert [bar.get_width() for bar in forward] == [term.forward for term in count.terms]
    assert [bar.get_x() for bar in backward] == [term.forward for term in count.terms]
    assert [bar.get_width() for bar in backward] == [term.backward for term in count.terms]
    assert [bar.get_x() for bar in again] == [
        term.forward + term.backward for term in count.terms
    ]  # fmt: skip
    assert [bar.get_x() for bar in forward] == [0] * len(count.terms)
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        f"{term.layer}, {term.term}" for term in count.terms
    ]
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "forward", "backward", "recompute"
    ]  # fmt: skip
    assert (axes.get_xlabel(), axes.get_title()) == ("FLOPs", "Decoder, level causal")
    # Without recomputation there is nothing of it to draw.
    (plain,) = MODEL.flops().plot().figure.axes
    assert len(plain.containers) == 2
    symbol = sympy.Symbol("n", integer=True, positive=True)
    for sizes in ({"seq_len": symbol}, {"seq_len": np.array([2, 3])}):
        with pytest.raises(TypeError, match="expected one number, for a picture"):
            dataclasses.replace(MODEL, **sizes).flops().plot()
    with pytest.raises(NotCoveredError):
        PERCEIVER.flops(convention="kaplan").plot()


def test_names_of_many_terms_are_small():
    (axes,) = MODEL.flops().plot().figure.axes
    assert {text.get_fontsize() for text in axes.get_yticklabels()} == {
        text.get_fontsize() for text in axes.get_legend().get_texts()
    }
    assert axes.get_yticklabels()[0].get_fontsize() < axes.xaxis.label.get_fontsize()


def test_what_is_trained_stands_beside_all_columns():
    lora = fc.FineTuning(lora_rank=1, lora_targets="mlp*")
    table, *_ = MODEL.params(lora)._tables()
    assert table.columns == ["part", "layer", "name", "parameters", "share", "trainable"]
    assert table.footer[-1] == MODEL.params(lora).trainable
    assert [row[-1] for row in table.rows] == [row.trained for row in MODEL.params(lora).terms]
