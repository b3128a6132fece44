"""Llama's shape by hand, against published parameter totals, and with its windows enumerated."""

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.blocks import rows_of
from flopcount.masks import Causal
from flopcount.operations import Pass
from flopcount.rows import Product, Tensor

# n = 3, d = 4, L = 2, h = 4 query heads on g = 2, c = 6, f = 5, V = 7, W = 2.
SIZES = dict(
    vocab_size=7, seq_len=3, num_channels=4, num_layers=2, num_heads=4, intermediate_size=5,
    num_key_value_heads=2, head_dim=6, window=2,
)  # fmt: skip


def test_terms_by_hand():
    terms = {(t.layer, t.term): t.forward for t in fc.Llama(**SIZES).flops(batch_size=3).terms}
    sequences, layers = 3, 2
    linear = sequences * layers * 2 * 3  # 2·n FLOPs per weight
    # Query i admits min(i, W) keys: 1 + 2 + 2.
    attention = sequences * layers * 2 * 4 * 5 * 6
    assert terms == {
        ("decoder", "query"): linear * 4 * 24,
        ("decoder", "key"): linear * 4 * 12,
        ("decoder", "value"): linear * 4 * 12,
        ("decoder", "scores"): attention,
        ("decoder", "values"): attention,
        ("decoder", "out"): linear * 24 * 4,
        ("decoder", "mlp gate"): linear * 4 * 5,
        ("decoder", "mlp up"): linear * 4 * 5,
        ("decoder", "mlp down"): linear * 5 * 4,
        ("output", "logits"): sequences * 2 * 3 * 4 * 7,
    }


def test_the_last_product_alone_is_not_recomputed_early():
    count = fc.Llama(**SIZES).flops(checkpointing="non-reentrant")
    spared = [t.term for t in count.terms if t.layer == "decoder" and not t.recomputed]
    assert spared == ["mlp down"]
    work = [t.term for t in count.elementwise.terms if t.layer == "decoder" and not t.recomputed]
    assert work == ["mlp residual"]


def test_element_wise_work_by_hand():
    count = fc.Llama(**SIZES).flops().elementwise
    assert {(t.layer, t.term): t.elements for t in count.terms} == {
        ("embedding", "embedding"): 12,  # n·d
        ("decoder", "norm"): 24,  # L·n·d
        ("decoder", "projection input gradients"): 24,
        ("decoder", "rotary query"): 2 * 3 * 4 * 6,  # L·n·h·c
        ("decoder", "rotary key"): 2 * 3 * 2 * 6,
        ("decoder", "query scale"): 2 * 3 * 24,
        ("decoder", "softmax"): 2 * 4 * 5,  # L·h·pairs
        ("decoder", "attention residual"): 24,
        ("decoder", "mlp norm"): 24,
        ("decoder", "mlp input gradients"): 24,
        ("decoder", "silu"): 2 * 3 * 5,
        ("decoder", "gate product"): 2 * 3 * 5,
        ("decoder", "mlp residual"): 24,
        ("output", "final norm"): 12,
        ("loss", "cross-entropy"): 21,
    }
    assert {t.term: (t.forward_cost, t.backward_cost) for t in count.terms} == {
        "embedding": (0, 1),
        "norm": (4, 9),
        "projection input gradients": (0, 2),
        "rotary query": (3, 3),
        "rotary key": (3, 3),
        "query scale": (1, 1),
        "softmax": (5, 4),
        "attention residual": (1, 1),
        "mlp norm": (4, 9),
        "mlp input gradients": (0, 1),
        "silu": (4, 8),
        "gate product": (1, 2),
        "mlp residual": (1, 1),
        "final norm": (4, 9),
        "cross-entropy": (5, 4),
    }


PUBLISHED = {
    "Llama 2 7B": (6_738_415_616, dict(vocab_size=32_000, intermediate_size=11_008)),
    "Llama 3 8B": (
        8_030_261_248,
        dict(vocab_size=128_256, num_key_value_heads=8, intermediate_size=14_336),
    ),
    "Mistral 7B": (
        7_241_732_096,
        dict(vocab_size=32_000, num_key_value_heads=8, intermediate_size=14_336, window=4096),
    ),
    "Llama 3.2 1B": (
        1_235_814_400,
        dict(
            vocab_size=128_256, num_channels=2048, num_layers=16, num_key_value_heads=8,
            intermediate_size=8192, tie_embeddings=True,
        ),
    ),
    "TinyLlama 1.1B": (
        1_100_048_384,
        dict(
            vocab_size=32_000, num_channels=2048, num_layers=22, num_key_value_heads=4,
            intermediate_size=5632,
        ),
    ),
    "SmolLM2 135M": (
        134_515_008,
        dict(
            vocab_size=49_152, num_channels=576, num_layers=30, num_heads=9,
            num_key_value_heads=3, intermediate_size=1536, tie_embeddings=True,
        ),
    ),
}  # fmt: skip
"""The number of parameters that each model's published weights hold, and its sizes."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name):
    published, sizes = PUBLISHED[name]
    model = fc.Llama(**dict(seq_len=8192, num_channels=4096, num_layers=32, num_heads=32) | sizes)
    assert model.params().total == published


@pytest.mark.parametrize("window", [None, *range(1, 8)])
@pytest.mark.parametrize("cached", range(6))
@pytest.mark.parametrize("queries", range(1, 6))
def test_pairs_one_by_one(queries, cached, window):
    keys = cached + queries
    first = [1 if window is None else max(1, i - window + 1) for i in range(1, keys + 1)]
    admitted = sum(i - first[i - 1] + 1 for i in range(cached + 1, keys + 1))
    assert Causal(window).pairs(queries, keys) == admitted
    # A cache keeps what the first of the new queries may still see.
    kept = keys if window is None else keys - max(0, first[cached] - 1)
    assert Causal(window).rectangle(queries, keys) == queries * kept


def test_a_window_as_long_as_the_sequence_is_none():
    without = fc.Llama(**SIZES | dict(window=None)).flops().total
    assert fc.Llama(**SIZES | dict(window=3)).flops().total == without
    assert fc.Llama(**SIZES | dict(window=2)).flops().total < without


def test_arrays_and_symbols_agree_with_ints():
    windows, groups = np.array([1, 2, 3, 9]), np.array([1, 2, 4, 1])
    together = fc.Llama(**SIZES | dict(window=windows, num_key_value_heads=groups)).flops()
    alone = [
        fc.Llama(**SIZES | dict(window=int(w), num_key_value_heads=int(g))).flops()
        for w, g in zip(windows, groups, strict=True)
    ]
    assert list(together.total) == [count.total for count in alone]
    assert list(together.elementwise.total) == [count.elementwise.total for count in alone]
    W = sympy.Symbol("W", integer=True, positive=True)
    symbolic = fc.Llama(**SIZES | dict(window=W)).flops().total
    assert symbolic.subs(W, 2) == fc.Llama(**SIZES).flops().total


def test_no_overflow_on_the_way():
    # The inner width h·c alone passes 2⁶³.
    wide = SIZES | dict(num_heads=np.array([2**40]), num_key_value_heads=1, head_dim=2**30)
    alone = fc.Llama(**wide | dict(num_heads=2**40))
    assert fc.Llama(**wide).params().total[0] == alone.params().total
    assert fc.Llama(**wide).flops().total[0] == alone.flops().total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_key_value_heads=3), "num_heads = 4 is not divisible by num_key_value_heads = 3"),
        (dict(head_dim=5), "head_dim = 5 is not divisible by"),
        (dict(head_dim=None, num_heads=3, num_key_value_heads=1), "num_channels = 4 is not"),
        (dict(window=0), "window = 0: expected an integer >= 1"),
        (dict(head_dim=np.array([2, 4, 7])), "head_dim = 7 is not divisible by"),
    ],
)
def test_sizes_that_contradict_each_other(change, message):
    with pytest.raises(ValueError, match=message):
        fc.Llama(**SIZES | change)


def test_conventions_of_an_mlp_of_two_products_say_nothing_of_it():
    model = fc.Llama(**SIZES)
    parameters = model.params().total
    # Per token 6N, and 6N + 12LhcS.
    assert model.flops(convention="6n").per_token == 6 * parameters
    assert model.flops(convention="palm").per_token == 6 * parameters + 12 * 2 * 4 * 6 * 3
    for name in ("article", "article-update", "kaplan", "chinchilla", "megatron"):
        count = model.flops(convention=name)
        with pytest.raises(ValueError, match="does not cover the self part of Llama: count at"):
            _ = count.total
    rows = {row.name: row for row in fc.compare(model).rows}
    assert rows["kaplan"].self_part == rows["kaplan"].total == "not covered"
    assert rows["6n"].total == 6 * parameters


MODELS = [
    fc.Llama(**SIZES),
    fc.Llama(**SIZES | dict(tie_embeddings=True)),
    fc.Decoder(vocab_size=5, seq_len=3, num_channels=8, num_layers=2, num_heads=2),
    fc.PerceiverAR(vocab_size=5, num_latents=3, num_prefix=4, num_channels=8, num_layers=3,
                   num_heads=2),
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_a_product_names_the_tensor_that_it_multiplies(model):
    tensors = {(tensor.layer, tensor.name): tensor.count for tensor in model.params().terms}
    biases = {
        (term.layer, term.term.removesuffix(" bias"))
        for term in model.flops().elementwise.terms
        if term.term.endswith(" bias")
    }
    network = model.network(Pass(1, model.length))
    products = [r for r in rows_of(network) if isinstance(r, Product) and r.mask is None]
    assert products
    for row in products:
        layers = row.times  # of one sequence
        rows = row.K + ((row.layer, row.term) in biases and row.weight == (row.layer, row.term))
        assert tensors[row.weight] == layers * rows * row.N


def test_a_table_of_positions_may_be_longer_than_the_sequence():
    sizes = dict(vocab_size=5, seq_len=3, num_channels=8, num_layers=2, num_heads=2)
    short, long = fc.Decoder(**sizes), fc.Decoder(**sizes, num_positions=10)
    assert long.params().total - short.params().total == 7 * 8
    assert long.flops().total == short.flops().total
    assert long.flops(convention="palm").total == short.flops(convention="palm").total
    with pytest.raises(ValueError, match="seq_len = 3: expected at most num_positions = 2"):
        fc.Decoder(**sizes, num_positions=2)
    assert fc.Decoder(**sizes, num_positions=3).params().total == short.params().total
    fc.Decoder(**sizes, num_positions=np.array([3, 4]))
    with pytest.raises(ValueError, match="expected at most num_positions"):
        fc.Decoder(**sizes, num_positions=np.array([2, 3]))
    assert isinstance(long.params().terms[0], Tensor)


def test_sizes_without_a_letter_are_none_of_the_formulas():
    gpt2 = fc.Decoder(
        vocab_size=9, seq_len=3, num_channels=4, num_layers=1, num_heads=2, num_positions=5
    )
    assert list(gpt2.lettered()) == [
        "vocab_size", "seq_len", "num_channels", "num_layers", "num_heads", "widening_factor"
    ]  # fmt: skip
