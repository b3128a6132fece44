"""Blocks on their own: behind a cache, without rotary embedding, in other orders than today's."""

import dataclasses

import pytest

from flopcount.blocks import (
    MLP,
    Attention,
    Embedding,
    Layers,
    Norm,
    PrefixAttention,
    Residual,
    Rotary,
    Selection,
)
from flopcount.masks import Causal, Full
from flopcount.operations import Pass, linear, norm, work
from flopcount.rows import Product, Tensor, Work

AT = Pass(1, 3)
ATTENTION = Attention(8, 4, 2, 5, 20, 10)


def named(rows, kind):
    return {row.term: row for row in rows if isinstance(row, kind)}


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
    rows = [row for row in Layers("layer", 1, blocks).rows(AT) if not isinstance(row, Tensor)]
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
    assert (work.forward_cost, work.backward_cost) == costs
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
