"""Mixtures of experts, latent attention and multi-token prediction, row by row by hand."""

import math

import numpy as np
import pytest
import sympy

from flopcount.blocks import MLP, Layers, Norm, Output, Residual, rows_of
from flopcount.count import product_term
from flopcount.experts import SCORES, MixtureOfExperts, MultiTokenPrediction, Router, named
from flopcount.latent import LatentAttention
from flopcount.masks import Causal
from flopcount.operations import Pass
from flopcount.rows import Product, Step, Tensor, Value, Work
from flopcount.sizes import INT64_MAX, safe_for

# Two sequences of three positions, in each of four equal layers: 8 times.
AT = Pass(2, 3, layer="sparse", layers=4)
SIGMOID = Router("sigmoid", normalised=True, scaled=True, bias=True, correction=True)
EXPERT = MLP(8, 6, bias=True, gated=True, activation="silu")
MIXTURE = MixtureOfExperts(8, 5, 2, EXPERT, SIGMOID, shared=MLP(8, 7), shared_gate=True)


def products(block, at=AT):
    return {
        row.term: (row.times, row.M, row.K, row.N)
        for row in block.rows(at)
        if isinstance(row, Product)
    }


def tensors(block, at=AT):
    return {row.name: (row.count, row.active) for row in block.rows(at) if isinstance(row, Tensor)}


def works(block, at=AT):
    return {
        row.term: (math.prod(row.factors), row.forward_cost, row.backward_cost)
        for row in block.rows(at)
        if isinstance(row, Work)
    }


def test_each_position_is_multiplied_by_k_experts():
    # 8 to 5 scores; two experts of three products each: 2 · 3 positions, 8 → 6 twice and 6 → 8.
    assert products(MIXTURE) == {
        "router": (8, 3, 8, 5),
        "expert gate": (8, 6, 8, 6),
        "expert up": (8, 6, 8, 6),
        "expert down": (8, 6, 6, 8),
        "shared expert up": (8, 3, 8, 7),
        "shared expert down": (8, 3, 7, 8),
        "shared gate": (8, 3, 8, 1),
    }


def test_a_mixture_has_e_experts_and_uses_k():
    # In four layers: the router (8 + 1)·5; five experts, of which two are used.
    assert tensors(MIXTURE) == {
        "router": (180, 180),
        "router correction": (20, 20),
        "expert gate": (4 * 5 * 9 * 6, 4 * 2 * 9 * 6),
        "expert up": (4 * 5 * 9 * 6, 4 * 2 * 9 * 6),
        "expert down": (4 * 5 * 7 * 8, 4 * 2 * 7 * 8),
        "shared expert up": (4 * 8 * 7, 4 * 8 * 7),
        "shared expert down": (4 * 7 * 8, 4 * 7 * 8),
        "shared gate": (4 * 8, 4 * 8),
    }
    buffers = [row.name for row in MIXTURE.rows(AT) if getattr(row, "is_buffer", False)]
    assert buffers == ["router correction"]
    weights = {row.term: row.weight for row in MIXTURE.rows(AT) if isinstance(row, Product)}
    assert weights == {term: ("sparse", term) for term in products(MIXTURE)}


def test_element_wise_work_of_a_mixture():
    # 8 · 3 = 24 positions, and 48 places at experts.
    assert works(MIXTURE) == {
        "router bias": (24 * 5, 1, 1),
        "router sigmoid": (24 * 5, 3, 3),
        "router correction": (24 * 5, 1, 0),
        "router normalisation": (24 * 2, 2, 4),
        "router scale": (24 * 2, 1, 1),
        "expert gate bias": (48 * 6, 1, 1),
        "expert up bias": (48 * 6, 1, 1),
        "expert input gradients": (48 * 8, 0, 1),
        "expert silu": (48 * 6, 4, 8),
        "expert gate product": (48 * 6, 1, 2),
        "expert down bias": (48 * 8, 1, 1),
        "expert weights": (48 * 8, 1, 3),
        "expert sum": (24 * 8, 1, 0),
        "shared expert gelu": (24 * 7, 5, 11),
        "shared gate sigmoid": (24, 3, 3),
        "shared gate product": (24 * 8, 1, 3),
        "shared sum": (24 * 8, 1, 0),
        "routed input gradients": (48 * 8, 0, 1),
        "shared input gradients": (24 * 8, 0, 2),
    }


def test_a_mixture_without_a_shared_expert_or_options():
    plain = MixtureOfExperts(8, 5, 2, MLP(8, 6), Router())
    assert list(products(plain)) == ["router", "expert up", "expert down"]
    assert list(works(plain)) == [
        "router softmax", "expert gelu", "expert weights", "expert sum", "routed input gradients",
    ]  # fmt: skip
    assert works(plain)["router softmax"] == (24 * 5, 5, 4)
    # One product of the shared MLP reads the input, and no gate.
    shared = MixtureOfExperts(8, 5, 2, MLP(8, 6), Router(), shared=MLP(8, 7))
    assert works(shared)["shared input gradients"] == (24 * 8, 0, 1)
    assert "shared gate" not in products(shared)


def test_a_sum_of_k_experts_takes_k_additions_less_one():
    for top_k, additions in ((1, 0), (2, 1), (4, 3)):
        mixture = MixtureOfExperts(8, 5, top_k, MLP(8, 6), Router())
        assert works(mixture)["expert sum"] == (24 * 8 * additions, 1, 0)


def test_everything_is_of_the_self_part():
    for block in (MIXTURE, LATENT, MTP):
        assert {row.part for row in block.rows(AT) if not isinstance(row, Value)} == {"self"}


def test_without_a_shared_expert_there_is_no_gate():
    options = dict(channels=8, num_experts=5, top_k=2, expert=MLP(8, 6), router=Router())
    gated = MixtureOfExperts(**options, shared_gate=True)
    assert list(gated.rows(AT)) == list(MixtureOfExperts(**options).rows(AT))


def test_scores_may_pass_their_function_after_the_choice():
    chosen = MixtureOfExperts(8, 5, 2, MLP(8, 6), Router(after_choice=True))
    assert works(chosen)["router softmax"] == (24 * 2, 5, 4)
    assert set(SCORES) == {"softmax", "sigmoid"}


def test_rows_under_a_name_of_their_own_keep_their_place():
    rows = list(named(EXPERT.rows(AT), "expert"))
    assert [row.layer for row in rows] == ["sparse"] * len(rows)
    assert [getattr(row, "term", None) for row in rows][:2] == ["expert gate", None]
    # Also of products that multiply by no tensor.
    scores = [row for row in named(LATENT.rows(AT), "expert") if getattr(row, "mask", None)]
    assert [row.term for row in scores] == ["expert scores", "expert softmax", "expert values"]
    assert {getattr(row, "weight", None) for row in scores} == {None}


def order(block):
    return [row.term for row in block.rows(AT) if isinstance(row, Product)]


def test_the_shared_expert_before_or_after_the_routed_ones():
    options = dict(channels=8, num_experts=5, top_k=2, expert=MLP(8, 6), router=Router())
    after = MixtureOfExperts(**options, shared=MLP(8, 7))
    before = MixtureOfExperts(**options, shared=MLP(8, 7), shared_first=True)
    assert order(after) == [
        "router", "expert up", "expert down", "shared expert up", "shared expert down",
    ]  # fmt: skip
    assert order(before) == order(after)[3:] + order(after)[:3]
    assert products(before) == products(after)


def again(block, flavour="non-reentrant"):
    residual = Residual("mlp", Norm("mlp norm", 8), block)
    return [row.term for row in Layers("layer", 1, (residual,)).rows(AT)
            if isinstance(row, Step) and flavour in row.recomputed_by]  # fmt: skip


def test_weights_need_what_the_experts_give():
    # The gradient of a weight is a dot product with the expert's output: nothing is spared.
    plain = MixtureOfExperts(8, 5, 2, MLP(8, 6), Router())
    assert again(plain)[-1] == "expert down"
    assert again(plain, "reentrant")[-2:] == ["routed input gradients", "mlp residual"]


def test_the_last_product_of_a_shared_expert_is_spared():
    options = dict(channels=8, num_experts=5, top_k=2, expert=MLP(8, 6), router=Router())
    # As in DeepSeek-V3 and Llama-4, whose shared expert comes last.
    assert again(MixtureOfExperts(**options, shared=MLP(8, 7)))[-1] == "shared expert gelu"
    # As in Qwen2-MoE: it comes first, and its gate's product needs it.
    gated = MixtureOfExperts(**options, shared=MLP(8, 7), shared_first=True, shared_gate=True)
    assert again(gated)[-2:] == ["shared gate", "shared gate sigmoid"]


def test_experts_whose_inputs_are_weighted_spare_their_last_product():
    weighted = MixtureOfExperts(8, 5, 2, MLP(8, 6), Router(), weighted="input")
    assert again(weighted)[-1] == "expert gelu"
    terms = [row.term for row in weighted.rows(AT) if isinstance(row, Work)]
    assert terms.index("expert weights") < terms.index("expert gelu")
    assert terms.count("expert weights") == 1
    assert works(weighted)["expert weights"] == (48 * 8, 1, 3)


LATENT = LatentAttention(8, 3, 7, 5, 4, 2, 6)


def test_latent_attention():
    # Queries 8 → 7 → 3·(4 + 2); keys and values 8 → 5 + 2, 5 → 3·(4 + 6); scores at 4 + 2, values
    # at 6; out 3·6 → 8.
    assert products(LATENT) == {
        "query down": (8, 3, 8, 7),
        "query up": (8, 3, 7, 18),
        "key-value down": (8, 3, 8, 7),
        "key-value up": (8, 3, 5, 30),
        "scores": (24, 3, 6, 3),
        "values": (24, 3, 6, 3),
        "out": (8, 3, 18, 8),
    }
    assert tensors(LATENT) == {
        name: (4 * count, 4 * count)
        for name, count in {
            "query down": 8 * 7,
            "query norm": 7,
            "query up": 7 * 18,
            "key-value down": 8 * 7,
            "key-value norm": 5,
            "key-value up": 5 * 30,
            "out": 18 * 8,
        }.items()
    }


def test_keys_and_values_of_a_latent_differ_in_width():
    narrow = LatentAttention(8, 3, 7, 5, 4, 2, 9, mask=Causal(2))
    counted = products(narrow, Pass(2, 3, cached=4))
    assert (counted["scores"], counted["values"]) == ((6, 3, 6, 7), (6, 3, 9, 7))
    masks = {row.mask for row in narrow.rows(AT) if isinstance(row, Product) and row.mask}
    assert masks == {Causal(2)}


def test_queries_without_a_latent_and_biases():
    direct = LatentAttention(8, 3, None, 5, 4, 2, 6, bias=True)
    assert products(direct)["query"] == (8, 3, 8, 18)
    # Biases of 5 + 2 and of 8; queries that are projected directly have none.
    plain = tensors(LatentAttention(8, 3, None, 5, 4, 2, 6))
    assert {
        name: (count - plain[name][0]) // 4 for name, (count, _) in tensors(direct).items()
    } == {"query": 0, "key-value down": 7, "key-value norm": 0, "key-value up": 0, "out": 8}
    both = tensors(LatentAttention(8, 3, 7, 5, 4, 2, 6, bias=True))
    assert {name: (both[name][0] - tensors(LATENT)[name][0]) // 4 for name in both} == {
        "query down": 7, "query norm": 0, "query up": 0, "key-value down": 7, "key-value norm": 0,
        "key-value up": 0, "out": 8,
    }  # fmt: skip


def test_element_wise_work_of_latent_attention():
    assert works(LATENT) == {
        "query norm": (24 * 7, 4, 9),
        "key-value norm": (24 * 5, 4, 9),
        # Two projections read the layer's input.
        "projection input gradients": (24 * 8, 0, 1),
        # 2 channels turn, of three queries and of one key that three heads share.
        "rotary query": (24 * 3 * 2, 3, 3),
        "rotary key": (24 * 2, 3, 3),
        "rotary key gradients": (24 * 2 * 2, 0, 1),
        "query scale": (24 * 18, 1, 1),
        "softmax": (24 * 9, 5, 4),
    }


def test_a_rotary_key_is_shared_by_all_heads():
    # Two of three heads' gradients of 6 channels are added to the first's.
    wide = LatentAttention(8, 3, 7, 5, 4, 6, 6)
    assert works(wide)["rotary key gradients"] == (24 * 2 * 6, 0, 1)
    assert works(wide)["rotary key"] == (24 * 6, 3, 3)


MTP = MultiTokenPrediction(8, 11, False, 4, (Norm("norm", 8), MLP(8, 6)))


def test_modules_that_predict_more_tokens():
    at = Pass(2, 3)
    assert products(MTP, at) == {
        "projection": (8, 3, 16, 8),
        "mlp up": (8, 3, 8, 6),
        "mlp down": (8, 3, 6, 8),
        "logits": (8, 3, 8, 11),
    }
    # The embedding and the head are the network's.
    assert tensors(MTP, at) == {
        name: (4 * count, 4 * count)
        for name, count in {
            "embedding norm": 8,
            "hidden norm": 8,
            "projection": 16 * 8,
            "norm": 16,
            "mlp up": 48,
            "mlp down": 48,
            "final norm": 8,
        }.items()
    }
    assert {row.layer for row in MTP.rows(at) if not isinstance(row, Value)} == {"mtp"}
    assert works(MTP, at) == {
        "embedding": (24 * 8, 0, 1),
        "embedding norm": (24 * 8, 4, 9),
        "hidden norm": (24 * 8, 4, 9),
        "norm": (24 * 8, 7, 13),
        "gelu": (24 * 6, 5, 11),
        "final norm": (24 * 8, 4, 9),
        "cross-entropy": (24 * 11, 5, 4),
        "shared weight gradients": (4 * 11 * 8, 0, 2),
    }
    evaluated = works(MTP, Pass(2, 3, training=False))
    assert not {"cross-entropy", "shared weight gradients"} & set(evaluated)


def test_modules_multiply_by_the_weight_that_the_head_multiplies_by():
    for tied in (True, False):
        modules = MultiTokenPrediction(8, 11, tied, 1, (MLP(8, 6),))
        logits = Output(8, 11, tied)
        weights = [
            row.weight
            for block in (modules, logits)
            for row in block.rows(AT)
            if isinstance(row, Product) and row.term == "logits"
        ]
        assert weights[0] == weights[1]


def test_activation_checkpointing_executes_the_layer_of_a_module_again():
    recomputed = {
        row.term: row.recomputed_by for row in MTP.rows(Pass(2, 3)) if isinstance(row, Product)
    }
    assert recomputed == {
        "projection": (), "mlp up": ("reentrant", "non-reentrant"), "mlp down": ("reentrant",),
        "logits": (),
    }  # fmt: skip


def total(network):
    rows = [row for row in rows_of(network) if isinstance(row, Product)]
    terms = [product_term(row, "causal", None, True, None) for row in rows]
    held = [row.count for row in rows_of(network) if isinstance(row, Tensor)]
    return sum(term.forward + term.backward for term in terms) + sum(held)


def network(d, experts, heads, n=5):
    layer = (
        LatentAttention(d, heads, d, d, heads, heads, heads),
        MixtureOfExperts(d, experts, 2, MLP(d, d, gated=True), Router(), shared=MLP(d, d)),
    )
    at = Pass(2, n)
    modules = MultiTokenPrediction(d, 11, True, 1, layer)
    return ((at, (Layers("sparse", 3, layer), modules)),)


def test_symbols_arrays_and_large_sizes_agree_with_ints():
    cases = [(8, 5, 3), (2, 64, 1), (2**30, 2**20, 2**12)]
    expected = [total(network(*case)) for case in cases]
    assert expected[-1] > INT64_MAX
    symbols = sympy.symbols("d E h", integer=True, positive=True)
    symbolic = total(network(*symbols))
    assert [symbolic.subs(dict(zip(symbols, case, strict=True))) for case in cases] == expected
    for some in (cases[:2], cases):
        arrays = network(*(np.array(column) for column in zip(*some, strict=True)))
        safe = safe_for(arrays, total)
        assert list(total(safe)) == expected[: len(some)]


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_beside_k_experts_a_token_uses_everything(top_k):
    plain = MixtureOfExperts(8, 5, top_k, MLP(8, 6), Router())
    used = sum(row.active for row in plain.rows(AT) if isinstance(row, Tensor))
    # Four layers: a router of 40 and k experts of 96.
    assert used == 4 * (40 + top_k * 96)
