"""Blocks on their own: behind a cache, without rotary embedding, in other orders than today's."""

import dataclasses
import math

import numpy as np
import pytest
import sympy

from flopcount.blocks import (
    ACTIVATIONS,
    MLP,
    Attention,
    Embedding,
    Layers,
    Norm,
    Output,
    Parallel,
    PrefixAttention,
    Residual,
    Rotary,
    Selection,
)
from flopcount.masks import Causal, Chunked, Full
from flopcount.operations import Pass, linear, norm, work
from flopcount.rows import Product, Step, Tensor, Value, Work, on, with_values

AT = Pass(1, 3)
ATTENTION = Attention(8, 4, 2, 5, 20, 10)


def named(rows, kind):
    return {row.term: row for row in rows if isinstance(row, kind)}


def test_values_and_weights_get_other_names():
    row = Work(
        part="self", layer="l", term="t", factors=(2,), forward_cost=1, backward_cost=3,
        reason="by hand", reads=("x", "y"), writes=None,
        backward_parts=((1, ("y",)), (2, ("x", ("l", "w")))),
    )  # fmt: skip
    (other,) = with_values([row], {"x": "a", "y": "b"}.__getitem__, lambda name: (*name, "2"))
    assert (other.reads, other.writes) == (("a", "b"), None)
    assert other.backward_parts == ((1, ("b",)), (2, ("a", ("l", "w", "2"))))
    (moved,) = on("query", [Value(("x", "other"), "x")])
    assert (moved.reads, moved.writes) == (("query", "other"), "query")


def test_attention_behind_a_cache():
    scores = named(ATTENTION.rows(Pass(2, 3, cached=4)), Product)["scores"]
    assert (scores.times, scores.M, scores.N, scores.K) == (2 * 4, 3, 7, 5)
    # Queries 5, 6 and 7 of 7 positions.
    assert scores.mask.pairs(scores.M, scores.N) == 5 + 6 + 7


def test_a_prefix_without_rotary_embedding():
    block = PrefixAttention(ATTENTION, 6, Norm("prefix norm", 8))
    work = [row.term for row in block.rows(AT) if isinstance(row, Work)]
    assert "rotary key" not in work
    turned = PrefixAttention(Attention(8, 4, 2, 5, 20, 10, rotary=Rotary(4)), 6, Norm("n", 8))
    keys = [row for row in turned.rows(AT) if getattr(row, "term", "") == "rotary key"]
    assert [(row.part, row.factors) for row in keys] == [("cross", (1, 6, 8)), ("self", (1, 3, 8))]


def recomputed(*blocks):
    """Terms that each flavour of checkpointing executes again."""
    rows = [row for row in Layers("layer", 1, blocks).rows(AT) if isinstance(row, Step)]
    return {
        flavour: [row.term for row in rows if flavour in row.recomputed_by]
        for flavour in ("reentrant", "non-reentrant")
    }


def test_what_a_norm_after_the_mlp_reads_is_recomputed():
    # A norm needs its input's statistics, so the MLP's last product is executed again, and it too.
    again = recomputed(MLP(8, 16), Norm("mlp norm", 8))
    assert (
        again["non-reentrant"] == again["reentrant"] == ["mlp up", "gelu", "mlp down", "mlp norm"]
    )
    # Nothing after it is.
    again = recomputed(MLP(8, 16), Norm("mlp norm", 8), Selection(8))
    assert again["reentrant"][-1] == "prefix selection"
    assert again["non-reentrant"][-1] == "mlp norm"


@dataclasses.dataclass(frozen=True)
class SavesItsOutput:
    """A block of one operation whose output is saved, and which has no parameters."""

    def rows(self, at):
        (row,) = work(at, "exponential", 8, 1, 1, "exp", "output")
        yield row


def test_what_follows_a_saved_output_is_spared():
    again = recomputed(SavesItsOutput(), Selection(8), Selection(8))
    assert again["non-reentrant"] == ["exponential"]
    assert again["reentrant"] == ["exponential", "prefix selection", "prefix selection"]


def test_where_nothing_is_saved_nothing_is_recomputed_early():
    assert recomputed(Selection(8)) == {"reentrant": ["prefix selection"], "non-reentrant": []}
    # A first product needs its input alone, which the layer was given.
    again = recomputed(MLP(8, 16))
    assert again["non-reentrant"] == ["mlp up", "gelu"]


def test_a_residual_after_the_last_product_is_spared():
    again = recomputed(Residual("mlp", Norm("mlp norm", 8), MLP(8, 16, bias=True)))
    assert again["reentrant"][-3:] == ["mlp down", "mlp down bias", "mlp residual"]
    assert again["non-reentrant"] == ["mlp norm", "mlp up", "mlp up bias", "gelu"]


def test_an_embedding_without_positions_adds_nothing_forward():
    (row,) = (row for row in Embedding(8, 11).rows(AT) if isinstance(row, Work))
    assert (row.forward_cost, row.backward_cost) == (0, 1)


@pytest.mark.parametrize(
    ("options", "costs", "scalars"),
    [
        (dict(bias=True, rms=False), (7, 13), 16),
        (dict(bias=False, rms=False), (6, 12), 8),
        (dict(bias=True, rms=True), (5, 10), 16),
        (dict(bias=False, rms=True), (4, 9), 8),
    ],
)
def test_norms(options, costs, scalars):
    work, tensor = norm(AT, "norm", 8, **options)
    assert (math.prod(work.factors), work.forward_cost, work.backward_cost) == (3 * 8, *costs)
    assert tensor.count == scalars


def test_a_linear_layer_may_share_its_weight():
    at = AT.at(layer="output")
    product, tensor = linear(at, "logits", 8, 11)
    assert product.weight == ("output", "logits") == (tensor.layer, tensor.name)
    assert [type(row) for row in linear(at, "logits", 8, 11, weight=("embedding", "token"))] == [
        Product
    ]
    product, bias, work = linear(at, "logits", 8, 11, weight=("embedding", "token"), bias=True)
    assert product.weight == ("embedding", "token")
    assert (bias.name, bias.count, work.term) == ("logits bias", 11, "logits bias")


def test_masks_say_how_their_pairs_are_derived():
    assert Causal().source.endswith("query i admits keys 1..i, so n(n + 1)/2 of the n² pairs count")
    assert Causal(3).source.endswith("query i admits min(i, W) keys")
    assert Full().source.endswith("every query admits every key")
    assert Chunked(3).source.endswith("((i - 1) mod A) + 1 of them")


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 11])
def test_chunks_admit_what_enumeration_finds(chunk):
    for keys in range(1, 12):
        for queries in range(1, keys + 1):
            positions = range(keys - queries, keys)
            admitted = sum(1 for i in positions for j in range(i + 1) if i // chunk == j // chunk)
            assert Chunked(chunk).pairs(queries, keys) == admitted
            assert Chunked(chunk).pairs(np.array([queries, 1]), np.array([keys, 1]))[0] == admitted
            # A cache keeps the last A - 1 keys, and the queries' own are added.
            kept = min(keys - queries, chunk - 1) + queries
            assert Chunked(chunk).rectangle(queries, keys) == queries * kept


def test_chunks_on_symbols():
    n, size = sympy.symbols("n A", integer=True, positive=True)
    pairs = Chunked(size).pairs(n, n)
    assert all(
        pairs.subs({n: length, size: chunk}) == Chunked(chunk).pairs(length, length)
        for length in range(1, 9)
        for chunk in range(1, 9)
    )


def test_no_kernel_runs_chunks():
    with pytest.raises(ValueError, match=r"chunks of 3 at level 'executed': expected none"):
        Chunked(3).tiles(8, 8, (4, 4), "queries")


def terms(*blocks):
    return [row.term for block in blocks for row in block.rows(AT) if isinstance(row, Step)]


def tensors(*blocks):
    return {row.name: row.count for block in blocks for row in block.rows(AT)
            if isinstance(row, Tensor)}  # fmt: skip


def test_attention_with_all_that_it_may_have():
    # h = 4 heads, g = 2, c = 5, d = 8, n = 3 positions, 6 pairs at level causal.
    norms = Norm("query norm", 5, False, True, heads=4), Norm("key norm", 5, False, True, heads=2)
    block = dataclasses.replace(
        ATTENTION, gate=True, sinks=True, score_bias="alibi", softcap=True, clip=True, norms=norms
    )
    elements = {name: math.prod(row.factors) for name, row in named(block.rows(AT), Work).items()}
    assert elements["clip"] == 3 * (4 + 2 + 2) * 5
    assert (elements["query norm"], elements["key norm"]) == (3 * 4 * 5, 3 * 2 * 5)
    assert elements["attention gate"] == 3 * 4 * 5
    assert elements["score cap"] == elements["score bias"] == 4 * 3 * 3
    assert elements["projection input gradients"] == 3 * 8
    (shared,) = (row for row in block.rows(AT) if row_is(row, "projection input gradients"))
    assert shared.backward_cost == 3  # query, key, value and gate: three additions
    assert named(block.rows(AT), Product)["gate"].N == 20
    assert {row.part for row in block.rows(AT) if isinstance(row, Step | Tensor)} == {"self"}
    assert tensors(block) == {
        "query": 8 * 20, "key": 8 * 10, "value": 8 * 10, "gate": 8 * 20, "out": 20 * 8,
        "query norm": 5, "key norm": 5, "sinks": 4,
    }  # fmt: skip
    order = terms(block)
    assert order.index("clip") < order.index("query norm") < order.index("scores")
    assert order.index("scores") < order.index("score cap") < order.index("score bias")
    assert order.index("score bias") < order.index("softmax") < order.index("attention gate")


def row_is(row, term):
    return getattr(row, "term", None) == term


def test_a_learned_score_bias_has_a_gradient():
    relative = dataclasses.replace(ATTENTION, score_bias="relative")
    (row,) = (row for row in relative.rows(AT) if row_is(row, "score bias"))
    assert (row.forward_cost, row.backward_cost) == (1, 1)


def test_where_norms_may_stand():
    mlp, first, second = MLP(8, 16), Norm("first", 8), Norm("second", 8)
    inner = terms(mlp)
    assert terms(Residual("mlp", first, mlp, second)) == ["first", *inner, "second", "mlp residual"]
    assert terms(Residual("mlp", None, mlp, second)) == [*inner, "second", "mlp residual"]
    assert terms(Residual("mlp", None, mlp, sum_norm=first)) == [*inner, "mlp residual", "first"]


def test_what_a_dropout_masks_is_recomputed():
    kept = recomputed(Residual("mlp", Norm("norm", 8), MLP(8, 16), dropout=True))
    assert kept["non-reentrant"] == ["norm", "mlp up", "gelu", "mlp down"]
    side_by_side = Parallel((Norm("norm", 8),), (ATTENTION, MLP(8, 16)))
    assert recomputed(side_by_side)["non-reentrant"][-1] == "gelu"
    dropped = dataclasses.replace(side_by_side, dropout=True)
    assert recomputed(dropped)["non-reentrant"][-1] == "mlp down"


def test_branches_side_by_side():
    norm, other = Norm("norm", 8), Norm("other", 8)
    branches = MLP(8, 16), MLP(8, 24)
    (shared,) = (row for row in Parallel((norm,), branches).rows(AT) if row_is(row, "residual"))
    # x + a + b: two additions; backward the gradient of the norm and of x are added, and those of
    # the norm's output before it.
    assert (shared.forward_cost, shared.backward_cost) == (2, 1)
    assert costs(Parallel((norm,), branches))["branch input gradients"] == (3 * 8, 0, 1)
    three = costs(Parallel((norm,), (*branches, MLP(8, 4))))
    assert three["branch input gradients"] == (3 * 8, 0, 2)
    assert three["residual"] == (3 * 8, 3, 1)
    two = Parallel((norm, other), branches)
    (added,) = (row for row in two.rows(AT) if row_is(row, "residual"))
    assert (added.forward_cost, added.backward_cost) == (2, 2)
    assert "branch input gradients" not in terms(two)


def test_an_embedding_of_its_own_width():
    block = Embedding(8, 11, 7, token_channels=5, scaled=True, norm=Norm("embedding norm", 8))
    assert tensors(block) == {
        "token": 55, "positions": 56, "project in": 40, "embedding norm": 16,
    }  # fmt: skip
    assert terms(block) == ["embedding", "embedding scale", "project in", "embedding norm"]
    output = Output(8, 11, tied=True, bias=True, token_channels=5, softcap=True)
    assert tensors(output) == {"project out": 40, "logits bias": 11}
    products = named(output.rows(AT), Product)
    assert (products["project out"].N, products["logits"].K) == (5, 5)
    assert math.prod(named(output.rows(AT), Work)["tied embedding gradient"].factors) == 55
    assert math.prod(named(output.rows(AT), Work)["logit cap"].factors) == 33


# Operations that act once per element, forward and backward, counted from the formulas:
# x·½(1 + erf(x/√2)): x/√2, erf, 1 +, ·½, ·x; back Φ again (4), density (4), x·density, + Φ, ·dy.
# x·σ(x): exp, 1 +, ÷, ·x; back σ again (3), 1 - σ, ·x, 1 +, ·σ, ·dy.
# x·½(1 + tanh(√(2/π)(x + a·x³))): x², x³, ·a, + x, ·√(2/π), tanh, 1 +, ·½, ·x;
#   back ½(1 + t) again (8), t², 1 -, ·3a, 1 +, ·½√(2/π), the product, ·x, + ½(1 + t), ·dy.
# x·σ(1.702x): ·1.702, σ (3), ·x; back σ again (4), 1 - σ, ·1.702x, 1 +, ·σ, ·dy.
# max(x, 0): one; back a comparison. max(x, 0)²: two; back a comparison, ·2x, ·dy.
COSTS = {
    "gelu": (5, 11), "silu": (4, 8), "gelu_tanh": (9, 17), "gelu_quick": (5, 9), "relu": (1, 1),
    "relu_squared": (2, 3), "clamped_swiglu": (9, 12),
}  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_say_what_they_cost(activation):
    (row,) = (row for row in MLP(8, 16, activation=activation).rows(AT) if row_is(row, activation))
    assert math.prod(row.factors) == 3 * 16
    assert (row.forward_cost, row.backward_cost) == COSTS[activation]


def costs(block, at=AT):
    return {
        row.term: (math.prod(row.factors), row.forward_cost, row.backward_cost)
        for row in block.rows(at)
        if isinstance(row, Work)
    }


def test_what_else_attention_does_element_by_element():
    block = dataclasses.replace(ATTENTION, gate=True, softcap=True, clip=True, score_bias="alibi")
    done = costs(block, Pass(2, 3))
    # 2 sequences of 3 positions, 4 query heads and 2 + 2 key and value heads of 5 channels.
    assert done["clip"] == (2 * 3 * 8 * 5, 2, 2)  # a maximum and a minimum
    # σ(x) (3) times what the heads give; back σ(1 - σ) (2), and a product for each operand and dy.
    assert done["attention gate"] == (2 * 3 * 20, 4, 5)
    # ÷ s, tanh, · s on each score; back t², 1 -, · dy.
    assert done["score cap"] == (2 * 4 * 9, 3, 3)
    assert done["score bias"] == (2 * 4 * 9, 1, 0)
    assert done["projection input gradients"] == (2 * 3 * 8, 0, 3)


def test_what_embedding_and_output_do_element_by_element():
    done = costs(Embedding(8, 11, token_channels=5, scaled=True))
    assert done == {"embedding": (3 * 5, 0, 1), "embedding scale": (3 * 5, 1, 1)}
    done = costs(Output(8, 11, tied=False, softcap=True))
    assert done["logit cap"] == (3 * 11, 3, 3)


def test_a_norm_of_heads_or_without_scale():
    # RMSNorm: x², sum, ·r, and ·γ if any; back x̂, sum of g·x̂ (2), three more, and three with γ.
    (work,) = norm(AT, "key norm", 5, bias=False, rms=True, scale=False, heads=2)
    assert (math.prod(work.factors), work.forward_cost, work.backward_cost) == (3 * 10, 3, 6)
    (work,) = norm(AT, "norm", 8, bias=False, rms=False, scale=False)
    assert (work.forward_cost, work.backward_cost) == (5, 9)
    work, tensor = norm(AT, "norm", 8, bias=True, rms=False, scale=False)
    assert (work.forward_cost, work.backward_cost, tensor.count) == (6, 10, 8)
