"""Element-wise rows against counts by hand."""

import pytest

import flopcount as fc
from flopcount.blocks import rotated_channels

# B = 3, n = 2, m = 4, k = 2, h = 2, c = 3 (d = 6), w = 2, L = 3, V = 5.
MODEL = fc.PerceiverAR(
    vocab_size=5,
    num_latents=2,
    num_prefix=4,
    num_channels=6,
    num_layers=3,
    num_heads=2,
    prefix_dropout=0.5,
    widening_factor=2,
)


def elements(count):
    return {(row.part, row.layer, row.term): row.elements for row in count.elementwise.terms}


def costs(count):
    return {row.term: (row.forward_cost, row.backward_cost) for row in count.elementwise.terms}


def test_elements_by_hand():
    rotated = 2  # c = 3: r = 1, one frequency, one pair
    layer = {
        "norm": 12,  # n·d
        "projection input gradients": 12,
        "query scale": 12,
        "softmax": 2 * 3,  # 2 heads, 1 + 2 pairs
        "attention residual": 12,
        "mlp norm": 12,
        "gelu": 24,  # n·w·d
        "mlp residual": 12,
    }
    expected = {
        ("self", "embedding", "embedding"): 12,
        ("cross", "embedding", "embedding"): 24,  # m·d: dropout acts after the embedding
        ("cross", "embedding", "prefix selection"): 12,  # k·d
        **{("self", "hybrid", term): count for term, count in layer.items()},
        ("self", "hybrid", "out bias"): 12,
        ("self", "hybrid", "rotary query"): 2 * 2 * rotated,  # n·h
        ("self", "hybrid", "rotary key"): 2 * 2 * rotated,
        ("cross", "hybrid", "prefix norm"): 12,
        ("cross", "hybrid", "projection input gradients"): 12,
        ("cross", "hybrid", "rotary key"): 2 * 2 * rotated,  # k·h
        ("cross", "hybrid", "softmax"): 2 * 4,  # 2 heads, n·k pairs
        **{("self", "self-attention", term): 2 * count for term, count in layer.items()},
        ("self", "self-attention", "rotary query"): 2 * 2 * rotated,  # the first layer only
        ("self", "self-attention", "rotary key"): 2 * 2 * rotated,
        ("self", "output", "logits bias"): 10,  # n·V
        ("self", "loss", "cross-entropy"): 10,
    }
    batch_of_3 = {key: 3 * count for key, count in expected.items()}
    batch_of_3["self", "output", "tied embedding gradient"] = 30  # V·d, once a step
    assert elements(MODEL.flops(batch_size=3)) == batch_of_3


def test_chosen_costs_per_element():
    assert costs(MODEL.flops()) == {
        "embedding": (1, 2),
        "prefix selection": (0, 1),
        "norm": (7, 13),
        "prefix norm": (7, 13),
        "mlp norm": (7, 13),
        "projection input gradients": (0, 1),  # of the prefix; the self part's are checked below
        "query scale": (1, 1),
        "softmax": (5, 4),
        "attention residual": (1, 1),
        "mlp residual": (1, 1),
        "gelu": (5, 11),
        "out bias": (1, 1),
        "rotary query": (3, 3),
        "rotary key": (3, 3),
        "logits bias": (1, 1),
        "cross-entropy": (5, 4),
        "tied embedding gradient": (0, 1),
    } | {"projection input gradients": (0, 2)}


def test_prefix_keys_and_values_share_one_addition():
    rows = [r for r in MODEL.flops().elementwise.terms if r.term == "projection input gradients"]
    assert {(row.part, row.backward_cost) for row in rows} == {("self", 2), ("cross", 1)}


def test_decoder_biases():
    sizes = dict(vocab_size=5, seq_len=2, num_channels=6, num_layers=3, num_heads=2)
    biased, plain = fc.Decoder(**sizes), fc.Decoder(**sizes, bias=False)
    extra = elements(biased.flops()).keys() - elements(plain.flops()).keys()
    assert {term for _, _, term in extra} == {
        "query bias", "key bias", "value bias", "out bias", "mlp up bias", "mlp down bias"
    }  # fmt: skip
    assert elements(biased.flops())["self", "decoder", "mlp up bias"] == 3 * 2 * 24
    assert costs(biased.flops())["final norm"] == (7, 13)
    assert costs(plain.flops())["final norm"] == (6, 12)


def test_dropout_decides_what_is_selected():
    def selected(**prefix):
        model = fc.PerceiverAR(
            vocab_size=5, num_latents=2, num_prefix=4, num_channels=6, num_layers=1, num_heads=2,
            **prefix,
        )  # fmt: skip
        return elements(model.flops())["cross", "embedding", "prefix selection"]

    assert selected() == 0
    assert selected(prefix_dropout=0.25) == 3 * 6
    assert selected(num_kept=4) == 4 * 6


@pytest.mark.parametrize(
    ("head_dim", "rotated"), [(1, 0), (2, 2), (3, 2), (4, 2), (54, 28), (78, 40), (91, 46)]
)
def test_rotated_channels(head_dim, rotated):
    assert rotated_channels(head_dim) == rotated


def test_element_wise_flops_stay_out_of_the_total():
    count = MODEL.flops()
    assert count.total == sum(row.flops for row in count.rows)
    assert count.elementwise.total == sum(
        row.elements * (row.forward_cost + row.backward_cost) for row in count.elementwise.terms
    )
    assert "optimiser excluded" in str(count.elementwise)
