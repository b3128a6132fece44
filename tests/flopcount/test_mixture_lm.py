"""Models with experts, latents and further predictions: options, ints, arrays and symbols."""

import dataclasses

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

import flopcount as fc
from flopcount.architectures import Choice, Dimension, Flag
from flopcount.mixture_lm import MixtureLM

SMALL = dict(
    vocab_size=11, num_channels=8, num_layers=5, num_heads=4, intermediate_size=12, head_dim=6,
    num_key_value_heads=2, num_experts=6, experts_per_token=3, expert_size=10, seq_len=7,
)  # fmt: skip
LATENT = dict(key_value_rank=5, plain_dim=4, rotary_dim=2, value_dim=3)
ALL = dict(
    shared_size=9, num_predictions=2, query_rank=7, window=3, chunk=4, attention=("full", "sliding")
) | LATENT  # fmt: skip


def small(**changes):
    return MixtureLM(**SMALL | changes)


def terms(model, *names, level="causal"):
    return {
        (term.layer, term.term): term.forward
        for term in model.flops(level).terms
        if term.term in names
    }


def test_it_is_the_same_decoder_without_experts():
    sizes = {name: size for name, size in SMALL.items() if "expert" not in name}
    dense, mixture = fc.CausalLM(**sizes), small(mlp=("dense",))
    for level in ("causal", "dense"):
        assert mixture.flops(level).records() == dense.flops(level).records()
    assert mixture.flops().elementwise.records() == dense.flops().elementwise.records()
    assert mixture.params().records() == dense.params().records()


def test_published_sizes():
    mixtral = MixtureLM(
        vocab_size=32000, seq_len=100, num_channels=4096, num_layers=32, num_heads=32,
        num_key_value_heads=8, intermediate_size=14336, num_experts=8, experts_per_token=2,
        expert_size=14336,
    )  # fmt: skip
    params = mixtral.params()
    assert (params.total, params.active) == (46_702_792_704, 12_879_925_248)
    deepseek = MixtureLM(
        vocab_size=129280, seq_len=100, num_channels=7168, num_layers=61, num_heads=128,
        intermediate_size=18432, num_experts=256, experts_per_token=8, expert_size=2048,
        shared_size=2048, mlp=("dense",) * 3 + ("sparse",) * 58, query_rank=1536,
        key_value_rank=512, plain_dim=128, rotary_dim=64, value_dim=128, router_correction=True,
    )  # fmt: skip
    assert deepseek.params().total == 671_026_404_352
    assert [buffer.count for buffer in deepseek.params().buffers] == [14_848]


def test_dense_and_sparse_layers_by_hand():
    # Layers 0, 2 and 4 of five are dense: 7 positions, d = 8, f = 12; k = 3 of experts of 10.
    model = small(mlp=("dense", "sparse"))
    assert terms(model, "mlp gate", "mlp up", "mlp down", "router", "expert up", "expert down") == {
        **{("dense", f"mlp {name}"): 3 * 2 * 7 * 8 * 12 for name in ("gate", "up", "down")},
        ("sparse", "router"): 2 * 2 * 7 * 8 * 6,
        ("sparse", "expert up"): 2 * 2 * 7 * 3 * 8 * 10,
        ("sparse", "expert down"): 2 * 2 * 7 * 3 * 8 * 10,
    }
    held = {tensor.name: tensor.count for tensor in model.params().terms}
    assert held["expert up"] == 2 * 6 * 8 * 10
    assert model.params().total - model.params().active == 2 * 3 * (6 - 3) * 8 * 10


def test_latents_by_hand():
    # Two of five layers slide: 7 positions, 4 heads of 4 + 2 and of 3; pairs 28 and 1 + 2 + 5·3.
    model = small(attention=("full", "sliding"), window=3, query_rank=7, **LATENT)
    assert terms(model, "scores", "values") == {
        ("full", "scores"): 3 * 2 * 4 * 28 * 6,
        ("full", "values"): 3 * 2 * 4 * 28 * 3,
        ("sliding", "scores"): 2 * 2 * 4 * 18 * 6,
        ("sliding", "values"): 2 * 2 * 4 * 18 * 3,
    }
    assert terms(model, "query up") == {
        ("full", "query up"): 3 * 2 * 7 * 7 * 24,
        ("sliding", "query up"): 2 * 2 * 7 * 7 * 24,
    }
    assert small(**LATENT, head_dim=9).width == 6
    assert small(head_dim=9, rotary_dim=2).width == 9
    # Latents of keys and values alone have no latent of queries.
    direct = small(**LATENT)
    assert set(terms(direct, "query", "query down")) == {("decoder", "query")}


def test_biases_of_experts_and_of_the_shared_mlp_are_apart():
    plain = small(shared_size=9).params().total
    # Five layers; six experts with 10 + 10 + 8 biases; the shared MLP's 9 + 9 + 8.
    assert small(shared_size=9, expert_bias=True).params().total - plain == 5 * 6 * 28
    assert small(shared_size=9, mlp_bias=True).params().total - plain == 5 * 26
    assert small(router_bias=True).params().total - small().params().total == 5 * 6


def test_a_module_for_a_further_token_has_a_layer_with_experts():
    # d = 8: the projection 16 → 8 and three norms; the layer's own; V = 11 once more.
    dense = small(mlp=("dense",), num_predictions=2)
    alone = small(mlp=("dense",))
    added = dense.params().total - alone.params().total
    of_sparse = small(num_layers=2).params().total - small(num_layers=1).params().total
    assert added == 2 * (of_sparse + 128 + 24)
    flops = dense.flops().forward - alone.flops().forward
    layer = small(num_layers=2).flops().forward - small(num_layers=1).flops().forward
    assert flops == 2 * (layer + 2 * 7 * (128 + 8 * 11))


def test_the_layer_of_a_module_is_as_the_last():
    slides = small(attention=("full", "sliding"), window=3, num_predictions=1)
    # 1 + 2 + 5·3 of 28 pairs; 4 heads of 6.
    assert terms(slides, "scores")["mtp", "scores"] == 2 * 4 * 18 * 6


def test_layers_without_rotary_positions():
    norms = dict(query_key_norm="head", positions=("rotary", "none"))

    def named(**changes):
        model = small(**norms, **changes)
        return {
            (term.layer, term.term): (term.forward, term.backward)
            for term in model.flops().elementwise.terms
            if term.term in ("query norm", "key norm", "query temperature")
        }

    # 7 positions; 3 layers turn and 2 do not; 4 heads of 6 and 2 of keys; 4 FLOPs and 9 in a norm.
    queries, keys = 7 * 4 * 6, 7 * 2 * 6
    rotary = {
        ("rotary", "query norm"): (3 * queries * 4, 3 * queries * 9),
        ("rotary", "key norm"): (3 * keys * 4, 3 * keys * 9),
    }
    others = {
        ("none", "query norm"): (2 * queries * 4, 2 * queries * 9),
        ("none", "key norm"): (2 * keys * 4, 2 * keys * 9),
    }
    temperature = {("none", "query temperature"): (2 * queries, 2 * queries)}
    assert named() == rotary | others
    assert named(norms_with_rotary=True) == rotary
    assert named(query_temperature=True) == rotary | others | temperature
    assert named(norms_with_rotary=True, query_temperature=True) == rotary | temperature


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(experts_per_token=7), "experts_per_token = 7: expected at most num_experts = 6"),
        (dict(key_value_rank=5), "plain_dim = None.*expected all of them, or none"),
        (dict(plain_dim=4, value_dim=3), "key_value_rank = None.*rotary_dim = None"),
        (dict(LATENT, rotary_dim=None), "rotary_dim = None, value_dim = 3: expected all of them"),
        (dict(query_rank=4), "key_value_rank = None.*expected all of them, or none and no query_r"),
        (dict(router_scores="tanh"), "router_scores = 'tanh': expected one of 'softmax', 'sigm"),
        (dict(weighted="both"), "weighted = 'both': expected one of 'output', 'input'"),
        (dict(num_predictions=0), "num_predictions = 0: expected an integer >= 1"),
        (dict(mlp=("sparse", "thick")), r"mlp\[1\] = 'thick': expected one of 'dense', 'sparse'"),
    ],
)
def test_what_it_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def options(name, kind):
    """What a field may be; sizes small, as they divide."""
    if isinstance(kind, Flag):
        return st.booleans()
    if isinstance(kind, Choice):
        words = st.sampled_from(kind.words)
        return st.none() | words if getattr(MixtureLM, name) is None else words
    return st.lists(st.sampled_from(kind.words), min_size=1, max_size=4).map(tuple)


OPTIONS = st.builds(
    dict.__or__,
    st.fixed_dictionaries(
        {
            name: options(name, kind)
            for name, kind in MixtureLM.kinds().items()
            if not isinstance(kind, Dimension)
        }
        | {"shared_size": st.none() | st.just(9), "num_predictions": st.none() | st.just(2)}
    ),
    st.just({}) | st.sampled_from([LATENT, LATENT | {"query_rank": 7}]),
)
ASKS = (
    lambda model: model.flops().total,
    lambda model: model.flops("dense", checkpointing="non-reentrant").with_recompute,
    lambda model: model.flops().elementwise.total,
    lambda model: model.params().total,
    lambda model: model.params().active,
    lambda model: model.params().matmul_active,
)
VARIED = sorted((SMALL | ALL).keys() - {"attention", "num_key_value_heads", "head_dim"})


@settings(max_examples=15)
@given(OPTIONS, st.sampled_from(VARIED))
def test_arrays_and_symbols_count_as_ints_do(drawn, name):
    drawn |= dict(window=3, chunk=4, num_positions=20)
    if name in LATENT | {"query_rank": 7}:
        drawn |= LATENT
    values = [2, 4] if name == "num_heads" else [4, 6]
    symbol = sympy.Symbol("x", integer=True, positive=True)
    array = small(**drawn | {name: np.array(values)})
    symbolic = small(**drawn | {name: symbol})
    for index, value in enumerate(values):
        alone = small(**drawn | {name: value})
        for ask in ASKS:
            expected, answer, expression = ask(alone), ask(array), ask(symbolic)
            assert (answer[index] if isinstance(answer, np.ndarray) else answer) == expected
            assert sympy.sympify(expression).subs(symbol, value) == expected


@settings(max_examples=20)
@given(OPTIONS, st.integers(2**20, 2**61))
def test_nothing_overflows_whatever_the_options(drawn, large):
    sizes = dict(
        num_channels=large, vocab_size=large, seq_len=large, num_layers=large, window=large // 3,
        num_experts=large, experts_per_token=large // 2, expert_size=large, chunk=large // 5,
        num_positions=large,
    )  # fmt: skip
    arrays = {name: np.array([1, size]) for name, size in sizes.items()}
    for ask in ASKS:
        assert ask(small(**drawn | arrays))[1] == ask(small(**drawn | sizes))


@settings(max_examples=40)
@given(OPTIONS)
def test_twice_what_a_token_multiplies_is_its_forward_pass_without_attention(drawn):
    model = small(**drawn, window=3, chunk=4)
    attention = sum(terms(model, "scores", "values").values())
    assert model.flops().forward - attention == 2 * 7 * model.params().matmul_active


@settings(max_examples=40)
@given(OPTIONS)
def test_a_token_that_uses_all_experts_uses_all_parameters(drawn):
    params = small(**drawn, window=3, chunk=4, num_experts=3).params()
    assert params.active == params.total
    more = small(**drawn, window=3, chunk=4, num_experts=4).params()
    routed = "sparse" in drawn["mlp"] or drawn["num_predictions"] is not None
    assert (more.active < more.total) == routed


def test_every_option_changes_a_count():
    """A field that no block reads would stand there for nothing."""

    def everything(model):
        count = model.flops(checkpointing="non-reentrant")
        params = model.params()
        return (
            count.records(), count.elementwise.records(), params.records(),
            [buffer.count for buffer in params.buffers],
        )  # fmt: skip

    base = dict(
        positions=("rotary", "none"), query_key_norm="head", shared_size=9, num_key_value_heads=4
    )
    own = {field.name for field in dataclasses.fields(MixtureLM)} - {
        field.name for field in dataclasses.fields(fc.CausalLM)
    }
    others = dict(
        mlp=("dense",), router_scores="sigmoid", weighted="input", num_experts=7,
        experts_per_token=2, expert_size=5, shared_size=4, num_predictions=1,
    )  # fmt: skip
    plain = everything(small(**base))
    latent = everything(small(**base | LATENT))
    for name in own - set(LATENT) - {"query_rank", "latent_bias"}:
        changed = others.get(name, True)
        assert everything(small(**base | {name: changed})) != plain, name
    for name in [*LATENT, "query_rank", "latent_bias"]:
        changed = True if name == "latent_bias" else 8
        assert everything(small(**base | LATENT | {name: changed})) != latent, name
