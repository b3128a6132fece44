"""Every field of every architecture refuses what it cannot be, and says what it expected."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from flopcount.architectures import (
    ARCHITECTURES,
    Architecture,
    Choice,
    Dimension,
    Flag,
    Pattern,
    Probability,
)
from flopcount.causal_lm import CausalLM
from flopcount.hf import FAMILIES

DESCRIBED = ARCHITECTURES | {"causal-lm": CausalLM}

GOOD = {
    Dimension: dict(num_channels=64, num_heads=4, num_key_value_heads=2, head_dim=16, num_kept=1),
}
FIELDS = [
    (architecture, name) for architecture in DESCRIBED for name in DESCRIBED[architecture].kinds()
]


def arguments(architecture, **changes):
    """Legal arguments for every field that a count needs."""
    required = {
        field.name: GOOD[Dimension].get(field.name, 8)
        for field in dataclasses.fields(DESCRIBED[architecture])
        if field.default is dataclasses.MISSING or field.name == "seq_len"
    }
    return required | changes


NO_SIZES = st.one_of(
    st.floats(),
    st.booleans(),
    st.text(),
    st.lists(st.integers()),
    st.fractions().filter(lambda value: value.denominator > 1),
    st.complex_numbers(),
    st.sampled_from([
        b"8", object(), sympy.pi, sympy.oo, sympy.nan, sympy.Float(8.0), np.array([1.5]),
        np.array([True]), np.array(["8"]), np.array([]), np.array([8, None], dtype=object),
        sympy.Symbol("y", integer=False), sympy.true, sympy.Symbol("z") > 0, sympy.FiniteSet(8),
        sympy.Symbol("y", commutative=False), sympy.MatrixSymbol("A", 2, 2),
    ]),
)  # fmt: skip


@pytest.mark.parametrize(("architecture", "name"), FIELDS)
def test_what_a_field_cannot_be_is_refused_by_its_name(architecture, name):
    kind = DESCRIBED[architecture].kinds()[name]
    wrong = {
        Dimension: NO_SIZES,
        Probability: st.text()
        | st.lists(st.floats())
        | st.floats(1)
        | st.floats(max_value=-0.01)
        | st.sampled_from([sympy.Symbol("z") > 0, sympy.MatrixSymbol("A", 2, 2)]),
        Flag: st.integers() | st.text() | st.floats() | st.none(),
        Choice: st.integers() | st.floats() | st.just("word") | st.lists(st.text()),
        Pattern: st.integers()
        | st.text()
        | st.none()
        | st.just(())
        | st.lists(st.just("full"))
        | st.tuples(st.just("full") | st.integers(), st.just("word") | st.none()),
    }[type(kind)]

    @given(wrong)
    def refused(value):
        with pytest.raises((TypeError, ValueError), match=rf"^{name}\b") as caught:
            DESCRIBED[architecture](**arguments(architecture, **{name: value}))
        assert "expected" in str(caught.value)

    refused()


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        (architecture, name)
        for architecture, name in FIELDS
        if isinstance(DESCRIBED[architecture].kinds()[name], Dimension)
    ],
)
def test_a_size_below_its_minimum_is_refused(architecture, name):
    minimum = DESCRIBED[architecture].kinds()[name].minimum
    for below in (minimum - 1, np.int8(minimum - 1), np.array([8, minimum - 1], dtype=np.int64)):
        with pytest.raises(
            ValueError, match=rf"^{name} .*expected (an integer|integers) >= {minimum}"
        ):
            DESCRIBED[architecture](**arguments(architecture, **{name: below}))
    negative = sympy.Symbol("x", integer=True, negative=True)
    with pytest.raises(ValueError, match=rf"^{name} "):
        DESCRIBED[architecture](**arguments(architecture, **{name: negative}))


OF_WORDS = dict(
    num_experts=4, experts_per_token=2, expert_size=8, scan_key_heads=2, scan_value_heads=4,
    scan_rank=2, num_layers=4, mixers=("scan", "attention"), head_groups=2, state=4,
    **GOOD[Dimension],
)  # fmt: skip


@pytest.mark.parametrize(
    "described",
    dict.fromkeys([*ARCHITECTURES.values(), *(of.declaration for of in FAMILIES.values())]),
)
def test_any_two_words_make_a_model_or_an_error_that_names_a_field(described):
    needed = {
        field.name: OF_WORDS.get(field.name, 8)
        for field in dataclasses.fields(described)
        if field.default is dataclasses.MISSING or field.name in ("seq_len", "target_len")
    }
    kinds = described.kinds()
    words = {name: getattr(kind, "words", (True, False)) for name, kind in kinds.items()
             if isinstance(kind, Flag | Choice)}  # fmt: skip
    words |= {name: [*((word,) for word in kind.words), kind.words]
              for name, kind in kinds.items() if isinstance(kind, Pattern)}  # fmt: skip
    choices = [(name, word) for name in words for word in words[name]]
    said = set()
    for two in itertools.combinations(choices, 2):
        try:
            described(**needed | dict(two))
        except ValueError as error:
            said.add(str(error))
    unnamed = [text for text in said if not re.match("|".join(kinds), text)]
    assert not unnamed


DTYPES = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, object)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("architecture", "name"), FIELDS)
def test_arrays_of_any_integers_count_as_their_elements_do(architecture, name, dtype):
    if not isinstance(DESCRIBED[architecture].kinds()[name], Dimension):
        return
    described = DESCRIBED[architecture]
    values = [4, 2, 8] if name in ("num_heads", "head_dim") else [8, 64, 120]
    if name in ("num_key_value_heads", "num_kept"):
        values = [1, 2, 1]
    if name == "num_channels":
        values = [8, 64, 120]
    together = described(**arguments(architecture, **{name: np.array(values, dtype=dtype)}))
    for index, value in enumerate(values):
        alone = described(**arguments(architecture, **{name: value}))
        for ask in (
            lambda model: model.flops().total,
            lambda model: model.flops("dense").total,
            lambda model: model.flops().elementwise.total,
            lambda model: model.params().total,
        ):
            answer, expected = ask(together), ask(alone)
            assert (answer[index] if isinstance(answer, np.ndarray) else answer) == expected


@given(st.data())
@pytest.mark.parametrize("architecture", DESCRIBED)
def test_nothing_overflows(architecture, data):
    described = DESCRIBED[architecture]
    sizes = {
        name: data.draw(st.integers(1, 2**61), label=name)
        for name, kind in described.kinds().items()
        if isinstance(kind, Dimension) and name in arguments(architecture)
    }
    sizes |= dict(num_channels=2 * sizes["num_channels"], num_heads=1)
    arrays = {name: np.array([1, size]) for name, size in sizes.items()}
    arrays |= dict(num_channels=np.array([2, sizes["num_channels"]]), num_heads=1)
    together, alone = described(**arrays), described(**sizes)
    for ask in (
        lambda model: model.flops().total,
        lambda model: model.flops("dense", checkpointing="reentrant").with_recompute,
        lambda model: model.flops().elementwise.total,
        lambda model: model.params().total,
    ):
        assert ask(together)[1] == ask(alone)


def test_a_field_that_nothing_describes_is_refused():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wrong(Architecture):
        num_experts: int = 8

        length = network = convention_inputs = None

    with pytest.raises(TypeError, match=r"Wrong\.num_experts is annotated .*expected bool, or"):
        Wrong()
