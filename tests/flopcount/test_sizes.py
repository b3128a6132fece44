"""The exact helpers on ints, arrays and symbols, by hand."""

from fractions import Fraction

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.operations import Pass
from flopcount.sizes import (
    INT64_MAX,
    Assumption,
    assumptions,
    ceil_divide,
    divide,
    exact_ratio,
    kept_positions,
    map_sizes,
    maximum,
    minimum,
    multiply,
    quoted,
    require_at_most,
    safe_for,
)

n, p = sympy.symbols("n p", positive=True)


def test_minimum():
    small = np.array([1, 5])
    assert minimum(3, 2) == minimum(2, 3) == 2
    assert list(minimum(small, 3)) == list(minimum(3, small)) == [1, 3]
    assert minimum(n, 3) == minimum(3, n) == sympy.Min(3, n)


def test_an_error_quotes_what_cannot_be_written():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    # Python writes no integer of more than 4,300 digits, and no list that nests so deep.
    assert quoted([10**5000]) == quoted(deep) == "a list"
    assert quoted(10**5000) == "an integer of 16610 bits (sign '+')"
    assert quoted("x" * 100) == f"'{'x' * 76}..."


def test_divide():
    assert divide("a", 12, "b", 4) == 3
    assert list(divide("a", np.array([12, 8]), "b", 4)) == [3, 2]
    assert list(divide("a", 12, "b", np.array([4, 3]))) == [3, 4]
    assert divide("a", n, "b", 2) == n / 2
    assert divide("a", 2, "b", n) == 2 / n


def test_ceil_divide():
    assert [ceil_divide(number, 3) for number in (0, 1, 3, 4)] == [0, 1, 1, 2]
    assert list(ceil_divide(np.array([6, 7]), 3)) == [2, 3]
    assert ceil_divide(n, 3) == sympy.ceiling(n / 3)


@pytest.mark.parametrize(
    ("numerator", "divisor", "message"),
    [
        (7, 2, r"a = 7 is not divisible by b = 2"),
        (np.array([4, 7, 9]), 2, r"a = 7 is not divisible by b = 2"),
        (12, np.array([4, 5, 7]), r"a = 12 is not divisible by b = 5"),
        (np.array([2, 8, 9]), np.array([2, 4, 5]), r"a = 9 is not divisible by b = 5"),
    ],
)
def test_divide_names_what_does_not_divide(numerator, divisor, message):
    with pytest.raises(ValueError, match=message):
        divide("a", numerator, "b", divisor)


def test_exact_ratio():
    assert exact_ratio(6, 3) == 2
    assert isinstance(exact_ratio(6, 3), int)
    assert exact_ratio(Fraction(7, 2), 3) == Fraction(7, 6)
    whole = exact_ratio(np.array([6, 9]), 3)
    assert whole.dtype == np.int64
    assert list(whole) == [2, 3]
    assert list(exact_ratio(np.array([6, 7]), 3)) == [2, Fraction(7, 3)]
    assert list(exact_ratio(6, np.array([3, 4]))) == [2, Fraction(3, 2)]
    fractions = np.array([Fraction(7, 2), Fraction(3)], dtype=object)
    assert list(exact_ratio(fractions, 3)) == [Fraction(7, 6), 1]
    assert exact_ratio(n, 2) == n / 2
    # Beyond int64, over a plain int: no part of a fraction may be a NumPy integer.
    large = exact_ratio(np.array([2**63 + 1, 2**80]), 7)
    assert list(large) == [Fraction(2**63 + 1, 7), Fraction(2**80, 7)]
    assert large.max() > 2**77
    assert exact_ratio(2, n) == 2 / n


def test_kept_positions():
    assert kept_positions(10, 0.25) == 8
    assert list(kept_positions(np.array([10, 4]), 0.25)) == [8, 3]
    assert list(kept_positions(10, np.array([0.25, 0.5]))) == [8, 5]
    assert kept_positions(n, 0.25) == n - sympy.floor(0.25 * n)
    assert kept_positions(10, p) == 10 - sympy.floor(10 * p)


def test_kept_positions_of_python_ints_in_arrays():
    # Half of 2^70 is a float exactly; 0.75 of 4 leaves 1.
    prefix = np.array([2**70, 0, 4], dtype=object)
    assert list(kept_positions(prefix, 0.5)) == [2**69, 0, 2]
    assert list(kept_positions(prefix, np.array([0.5, 0.5, 0.75]))) == [2**69, 0, 1]


@pytest.mark.parametrize("prefix", [10**400, np.array([1, 10**400], dtype=object)])
def test_a_prefix_beyond_floats_is_refused(prefix):
    with pytest.raises(ValueError, match="num_kept"):
        kept_positions(prefix, 0.9999999999999999)


@pytest.mark.parametrize("training", [True, False])
def test_sizes_of_perceiver_ar(training):
    model = fc.PerceiverAR(
        vocab_size=11, num_latents=5, num_prefix=8, num_channels=6, num_layers=3, num_heads=2,
        prefix_dropout=0.25,
    )  # fmt: skip
    assert model.length == 5
    assert model.kept(training) == (6 if training else 8)
    assert model.selected(training) == (6 if training else 0)


def with_dropout(dropout):
    return fc.PerceiverAR(
        vocab_size=11, num_latents=5, num_prefix=8, num_channels=6, num_layers=3, num_heads=2,
        prefix_dropout=dropout,
    )  # fmt: skip


def test_dropouts_in_an_array():
    model = with_dropout(np.array([0.0, 0.25, 0.5]))
    assert list(model.kept()) == [8, 6, 4]
    assert list(model.selected()) == [0, 6, 4]  # without dropout nothing is gathered
    assert (model.kept(training=False), model.selected(training=False)) == (8, 0)


def test_a_symbolic_dropout():
    model = with_dropout(p)
    kept = 8 - sympy.floor(8 * p)
    assert (model.kept(), model.selected()) == (kept, kept)
    assert model.kept(training=False) == 8
    # It may be 0: nothing asks whether it is.
    q = sympy.Symbol("q", nonnegative=True)
    assert with_dropout(q).kept() == 8 - sympy.floor(8 * q)
    # (4·d·m + (1 - p)·m·(4d² + 2dn))/n per token, d = 6, n = 5, m = 8: 6 are kept at p = 1/4.
    article = model.flops(convention="article").cross_part
    assert article.per_token.subs(p, sympy.Rational(1, 4)) == 3 * ((192 + 6 * (144 + 60)) // 5)
    halves = with_dropout(np.array([0.5, 0.25])).flops(convention="article").cross_part
    assert list(halves.per_token) == [3 * ((192 + kept * 204) // 5) for kept in (4, 6)]


@pytest.mark.parametrize("architecture", [fc.PerceiverAR, fc.Decoder])
def test_a_batch_of_another_kind_is_refused(architecture):
    length = "num_latents" if architecture is fc.PerceiverAR else "seq_len"
    prefix = {"num_prefix": 2} if architecture is fc.PerceiverAR else {}
    model = architecture(
        vocab_size=3, num_channels=2, num_layers=1, num_heads=1, **{length: np.array([2, 3])},
        **prefix,
    )  # fmt: skip
    with pytest.raises(TypeError, match="not both"):
        model.flops(batch_size=sympy.Symbol("B", integer=True, positive=True))


def test_products_stay_in_int64_as_long_as_it_holds_them():
    # 2⁶³ - 1 is 7 times something.
    for left, right in ((np.array([1, 7]), INT64_MAX // 7), (INT64_MAX // 7, np.array([1, 7]))):
        assert multiply(left, right).dtype == np.int64
        assert multiply(left, right)[1] == INT64_MAX
    beyond = multiply(2**40, np.array([1, 2**40]))
    assert (beyond.dtype, beyond[1]) == (object, 2**80)
    assert multiply(np.array([2**32]), np.array([2**31])).dtype == object
    assert multiply(p, 3) == 3 * p


def test_every_size_of_a_tree_is_mapped():
    tree = (Pass(2, p, cached=np.array([3]), layer="x"), (5, True, None))
    doubled, (number, flag, nothing) = map_sizes(tree, lambda size: 2 * size)
    assert (doubled.batch, doubled.length, list(doubled.cached)) == (4, 2 * p, [6])
    assert (doubled.layer, doubled.training, number, flag, nothing) == ("x", True, 10, True, None)


def test_sizes_stay_in_int64_as_long_as_it_holds_a_formula():
    at = Pass(1, np.array([1, INT64_MAX]))
    assert safe_for(at, lambda bound: bound.length).length.dtype == np.int64
    assert safe_for(at, lambda bound: bound.length + 1).length.dtype == object


def test_what_is_taken_to_hold_of_symbols_is_noted():
    d, h, k = sympy.symbols("d h k", integer=True, positive=True)
    with assumptions() as noted:
        assert divide("width", d, "heads", h) == d / h
        divide("width", d, "heads", h)
        divide("width", 4 * d, "halves", 2)  # 2d is an integer, whatever d is
        require_at_most("k", k, "d", d)
        require_at_most("k", k, "2k", 2 * k)  # holds of any k
    assert noted == [
        Assumption("multiple of", "width", d, "heads", h),
        Assumption("at most", "k", k, "d", d),
    ]
    divide("width", d, "heads", k)
    assert len(noted) == 2


def test_the_larger_of_two_waits_for_numbers():
    n = sympy.Symbol("n", integer=True, positive=True)
    assert maximum(2, 3) == 3
    assert maximum(n, 3).subs(n, 5) == 5
    assert maximum(n, 3).subs(n, 2) == 3
    assert maximum(3, n).subs(n, 2) == 3
    # It looks for nothing to simplify: that takes longer than all the rest.
    assert maximum(n, n + 1) == sympy.Max(n, n + 1, evaluate=False) != n + 1
