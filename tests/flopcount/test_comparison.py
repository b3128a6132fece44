"""What each way to count misses and adds, by hand and adding up exactly."""

import numpy as np
import pytest
import sympy
from hypothesis import given

import flopcount as fc
from flopcount import comparison
from flopcount.article import EXPERIMENTS
from flopcount.comparison import differences
from validate.configurations import models

SEED = EXPERIMENTS[0].models()[0]  # d = 512, L = 9, n = 512, m = 1536, k = 768, V = 32,000


def of(name, model=SEED):
    row = next(row for row in fc.compare(model).rows if row.name == name)
    return {(entry.part, entry.term): entry.flops for entry in row.differences}


def assert_differences_add_up(model):
    proven = model.flops()
    for row in fc.compare(model).rows:
        parts = ["self"] if row.cross_part == "not covered" else ["self", "cross"]
        assert {entry.part for entry in row.differences} <= set(parts)
        for part in parts:
            difference = getattr(row, f"{part}_part") - getattr(proven, f"{part}_part").per_token
            found = [entry.flops for entry in row.differences if entry.part == part]
            assert sum(found) == difference
            assert 0 not in found


@given(models())
def test_differences_add_up_exactly(model):
    assert_differences_add_up(model)


@pytest.mark.parametrize("model", [m for e in EXPERIMENTS for m in e.models()], ids=str)
def test_differences_of_the_articles_models_add_up_exactly(model):
    assert_differences_add_up(model)


def test_a_forgotten_difference_is_found(monkeypatch):
    stands_for = comparison.STANDS_FOR | {"softmax": (("values",), "softmax")}
    monkeypatch.setattr(comparison, "STANDS_FOR", stands_for)
    original = comparison.differences
    monkeypatch.setattr(comparison, "differences", lambda *counts: original(*counts)[:-1])
    with pytest.raises(AssertionError):
        assert_differences_add_up(SEED)


def test_the_articles_prefix_misses_one_of_its_two_products():
    assert of("article") == {
        ("self", "the embedding, a look-up, as 4d per token"): 3 * 4 * 512,
        # L·2d·(n - (n + 1)/2), and L·d·(n + 1) of the product that is left out.
        ("self", "the masked half of that attention product"): 3 * 9 * 512 * 511,
        ("self", "one of the two attention products"): -3 * 9 * 512 * 513,
        ("cross", "the prefix embedding, a look-up, as 4d per position"): 3 * 4 * 512 * 3,
        ("cross", "one of the two attention products"): -3 * 2 * 512 * 768,
    }


def test_the_correction_drops_the_output_layer():
    assert of("article-update") == {
        ("self", "the masked half of both attention products"): 3 * 2 * 9 * 512 * 511,
        ("self", "softmax, element-wise work"): 3 * 9 * 3 * 8 * 512,
        ("self", "the output layer"): -3 * 2 * 512 * 32_000,
        ("cross", "softmax, element-wise work"): 3 * 3 * 8 * 768,
    }


def test_six_n_misses_both_products():
    # Positions n·d, norms 4d a layer and 2d of the prefix, biases d and V.
    outside = 512 * 512 + 4 * 9 * 512 + 2 * 512 + 512 + 32_000
    assert of("6n") == {
        ("self", "positions, norms and biases as if they were matrices"): 6 * outside,
        ("self", "both attention products"): -2 * 3 * 9 * 512 * 513,
    }


def test_a_share_is_of_its_part():
    count, proven = SEED.flops(level="dense"), SEED.flops()
    (entry,) = differences(count, proven)
    assert entry.share == pytest.approx(entry.flops / proven.self_part.per_token)
    assert differences(proven, proven) == ()


def test_there_is_no_share_of_nothing():
    sizes = dict(vocab_size=9, num_latents=2, num_channels=4, num_layers=1, num_heads=2)
    kept = fc.PerceiverAR(**sizes, num_prefix=3, num_kept=np.array([0, 2]))
    counts = kept.flops(convention="article"), kept.flops()
    shares = {entry.term: entry.share for entry in differences(*counts) if entry.part == "cross"}
    # 4dm/n over k(4d² + 4dn)/n: 48/(2·96).
    assert list(shares["the prefix embedding, a look-up, as 4d per position"]) == [None, 0.25]
    assert list(shares["one of the two attention products"]) == [None, -1 / 6]


def test_dropout_that_the_article_does_not_round():
    model = fc.PerceiverAR(
        vocab_size=5, num_latents=2, num_prefix=3, num_channels=4, num_layers=1, num_heads=1,
        prefix_dropout=0.5,
    )  # fmt: skip
    # k = 3 - int(1.5) = 2 positions, of which the article has 1.5: 4d² for half a position over 2
    # tokens, and 2dn of the one product.
    found = of("article-update", model)
    assert found["cross", "prefix dropout, not rounded to positions"] == -3 * 4 * 16 * 0.5 / 2


def test_arrays_and_symbols():
    n = sympy.Symbol("n", integer=True, positive=True)
    sizes = dict(vocab_size=9, num_channels=4, num_layers=1, num_heads=2)
    (array,) = of("dense", fc.Decoder(**sizes, seq_len=np.array([3, 5]))).values()
    (expression,) = of("dense", fc.Decoder(**sizes, seq_len=n)).values()
    # 3·2·d·(n - 1)
    assert list(array) == [48, 96]
    assert sympy.expand(expression - 24 * (n - 1)) == 0
