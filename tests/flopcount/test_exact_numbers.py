"""Ints, arrays and symbols give the same numbers, and nothing ever wraps."""

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

import flopcount as fc
from flopcount.conventions import CONVENTIONS
from flopcount.operations import Pass
from flopcount.sizes import Bound, kept_positions, safe_for

BASE = dict(
    vocab_size=262, num_latents=512, num_prefix=3584, num_channels=512, num_layers=9, num_heads=8
)


def totals(model, **options):
    count = model.flops(**options)
    numbers = [count.total, count.forward, count.backward, count.recompute]
    if count.elementwise:
        numbers += [count.elementwise.total, count.elementwise.recompute]
    return numbers


def scalar_model(index, arguments):
    def entry(value):
        return value.tolist()[index] if isinstance(value, np.ndarray) else value

    return fc.PerceiverAR(**{name: entry(value) for name, value in arguments.items()})


@given(
    st.lists(
        st.tuples(
            st.integers(1, 2**40), st.integers(0, 2**40), st.integers(1, 2**20), st.integers(1, 99)
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([0.0, 0.3, 0.5]),
    st.sampled_from([np.int64, np.uint64, object]),
)
def test_arrays_equal_ints_at_any_size(rows, dropout, dtype):
    latents, prefix, heads, layers = (
        np.array(column, dtype=dtype) for column in zip(*rows, strict=True)
    )
    arguments = BASE | dict(
        num_latents=latents, num_prefix=prefix, num_channels=heads * 4, num_heads=heads,
        num_layers=layers, prefix_dropout=dropout,
    )  # fmt: skip
    model = fc.PerceiverAR(**arguments)
    for options in (
        dict(level="causal"),
        dict(level="dense", checkpointing="non-reentrant", batch_size=7),
        dict(training=False),
    ):
        together = totals(model, **options)
        for index in range(len(rows)):
            alone = totals(scalar_model(index, arguments), **options)
            assert [int(np.broadcast_to(n, len(rows))[index]) for n in together] == alone


def test_int64_would_have_wrapped():
    widths = np.array([2**20, 2**21], dtype=np.int64)
    arguments = BASE | dict(num_channels=widths, num_latents=2**20)
    total = fc.PerceiverAR(**arguments).flops().total
    assert total.dtype == object
    exact = [scalar_model(index, arguments).flops().total for index in range(2)]
    assert list(total) == exact
    assert exact[0] > 2**63  # what int64 cannot hold
    # The leading term of the layers' linear products, 6·(4 + 2w)·L·n·d², as int64 would have it:
    naive = 6 * 12 * 9 * np.int64(2**20) * widths * widths
    assert list(naive) != [6 * 12 * 9 * 2**20 * int(width) ** 2 for width in widths]


def test_the_bound_uses_derived_sizes_not_arguments():
    # At the arguments' maxima, p = 0.99 would keep 1 % of the prefix; p = 0 keeps all of it, and
    # its scores and values cost 12·n·k·d = 12·2^10·2^40·2^12 > 2^63.
    arguments = BASE | dict(
        num_latents=2**10, num_prefix=2**40, num_channels=2**12,
        num_heads=np.array([1, 64]), prefix_dropout=np.array([0.0, 0.99]),
    )  # fmt: skip
    total = fc.PerceiverAR(**arguments).flops().total
    exact = [scalar_model(i, arguments).flops().total for i in range(2)]
    assert list(total) == exact
    assert exact[0] > 2**63 > exact[1]


def test_small_arrays_stay_int64():
    total = fc.PerceiverAR(**BASE | dict(num_layers=np.arange(1, 9, dtype=np.int8))).flops().total
    assert total.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint64])
def test_every_integer_dtype_counts_alike(dtype):
    layers = np.array([1, 9, 120], dtype=dtype)
    total = fc.PerceiverAR(**BASE | dict(num_layers=layers)).flops().total
    assert list(total) == [
        fc.PerceiverAR(**BASE | dict(num_layers=count)).flops().total for count in (1, 9, 120)
    ]


def test_uint64_beyond_int64_becomes_python_ints():
    vocab = np.array([2**63, 2**64 - 1], dtype=np.uint64)
    params = fc.PerceiverAR(**BASE | dict(vocab_size=vocab)).params().total
    assert [int(n) for n in params] == [
        fc.PerceiverAR(**BASE | dict(vocab_size=size)).params().total for size in (2**63, 2**64 - 1)
    ]


def test_numpy_integers_are_integers():
    assert fc.PerceiverAR(
        **{name: np.int32(size) for name, size in BASE.items()}
    ) == fc.PerceiverAR(**BASE)


def test_ints_of_any_size():
    huge = 10**100
    model = fc.PerceiverAR(**BASE | dict(num_latents=huge, num_prefix=0))
    # Leading term of the causal scores and values: 3·2·2·L·d·n(n + 1)/2.
    attention = 6 * 9 * 512 * huge * (huge + 1)
    assert model.flops().total - attention == 3 * huge * (9 * 24 * 512**2 + 2 * 512 * 262)


def test_broadcasting_two_axes():
    model = fc.PerceiverAR(
        **BASE | dict(num_channels=np.array([[256], [512]]), num_layers=np.array([1, 2, 3]))
    )
    total = model.flops().total
    assert total.shape == (2, 3)
    assert total[1, 2] == fc.PerceiverAR(**BASE | dict(num_layers=3)).flops().total


def test_per_token_and_runs_over_arrays_are_exact():
    model = fc.PerceiverAR(**BASE | dict(num_latents=np.array([5, 512]), num_prefix=1))
    count = model.flops()
    alone = [fc.PerceiverAR(**BASE | dict(num_latents=n, num_prefix=1)).flops() for n in (5, 512)]
    assert list(count.per_token) == [one.per_token for one in alone]
    assert list(count.for_tokens(10**18)) == [one.for_tokens(10**18) for one in alone]


def test_symbols_agree_with_numbers():
    B, n, m, k, d, h, L, V, w = sympy.symbols("B n m k d h L V w", integer=True, positive=True)
    symbolic = fc.PerceiverAR(
        vocab_size=V, num_latents=n, num_prefix=m, num_channels=d, num_layers=L, num_heads=h,
        num_kept=k, widening_factor=w,
    )  # fmt: skip
    values = {n: 5, m: 7, k: 3, d: 12, h: 4, L: 3, V: 11, w: 2, B: 6}
    concrete = fc.PerceiverAR(
        vocab_size=11, num_latents=5, num_prefix=7, num_channels=12, num_layers=3, num_heads=4,
        num_kept=3, widening_factor=2,
    )  # fmt: skip
    for options in (dict(level="causal"), dict(level="dense", checkpointing="non-reentrant")):
        expressions = totals(symbolic, batch_size=B, **options)
        assert [e.subs(values) for e in expressions] == totals(concrete, batch_size=6, **options)
    assert symbolic.params().total.subs(values) == concrete.params().total
    for name in CONVENTIONS:
        part = concrete.flops(convention=name, batch_size=6).self_part
        if part.not_covered:
            assert name in ("gpt-neox", "nanotron")  # an MLP of 4d; a gated one
            continue
        expression = symbolic.flops(convention=name, batch_size=B).self_part.total
        assert sympy.expand(expression).subs(values) == part.total


def test_symbolic_total_is_the_textbook_formula():
    n, d = sympy.symbols("n d", integer=True, positive=True)
    model = fc.Decoder(vocab_size=100, seq_len=n, num_channels=d, num_layers=2, num_heads=4)
    # 3·(2·(24nd² + 2dn(n + 1)) + 200nd)
    expected = 144 * n * d**2 + 12 * d * n * (n + 1) + 600 * n * d
    assert sympy.expand(model.flops().total - expected) == 0


def test_symbolic_prefix_dropout_keeps_its_float():
    m = sympy.Symbol("m", integer=True, positive=True)
    kept = fc.PerceiverAR(**BASE | dict(num_prefix=m), prefix_dropout=0.1).kept()
    assert kept == m - sympy.floor(m * 0.1)
    assert kept.has(sympy.Float)
    assert kept.subs(m, 3584) == kept_positions(3584, 0.1)


@given(st.lists(st.integers(0, 2**52), min_size=1, max_size=5), st.floats(0, 0.999))
def test_dropout_agrees_between_ints_and_arrays(prefixes, dropout):
    array = kept_positions(np.array(prefixes), dropout)
    assert list(array) == [kept_positions(prefix, dropout) for prefix in prefixes]
    assert list(array) == [prefix - int(prefix * dropout) for prefix in prefixes]


def test_arrays_through_every_convention():
    widths = np.array([256, 512])
    for name in CONVENTIONS:
        count = fc.PerceiverAR(**BASE | dict(num_channels=widths), prefix_dropout=0.5).flops(
            convention=name
        )
        alone = [
            fc.PerceiverAR(**BASE | dict(num_channels=width), prefix_dropout=0.5).flops(
                convention=name
            )
            for width in (256, 512)
        ]
        assert {one.self_part.not_covered for one in alone} == {count.self_part.not_covered}
        if "self" in count.not_covered:
            continue
        assert list(count.self_part.total) == [one.self_part.total for one in alone]
        if not count.not_covered:
            assert list(count.total) == [one.total for one in alone]


def test_a_bound_sees_what_happens_on_the_way():
    # n(n + 1) passes 2^63 although its half, times 0 layers, does not.
    model = fc.Decoder(
        vocab_size=1, seq_len=np.array([2**32]), num_channels=1, num_layers=1, num_heads=1
    )
    at = Pass(1, model.length)
    safe = safe_for(at, lambda bound: 0 * (bound.length * (bound.length + 1)))
    assert safe.length.dtype == object
    assert safe_for(at, lambda bound: bound.length + 1).length.dtype == np.int64


def test_bounds_never_fall_below_the_value():
    largest = [0]
    a, b = Bound(7, largest), Bound(5, largest)
    assert ((a - b).value, (a + b).value, (a * b).value, (a // 2).value) == (7, 12, 35, 7)
    assert largest == [35]
