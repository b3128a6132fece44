"""Packed documents: enumerated pairs, sums over documents, and what is refused."""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

import flopcount as fc
from flopcount.encoder_lm import EncoderDecoderLM, EncoderLM
from flopcount.masks import Causal, Chunked, Full, Packed
from flopcount.mixture_lm import MixtureLM
from flopcount.packing import fewest_sequences, histogram

COMMON = dict(vocab_size=11, num_channels=8, num_layers=3, num_heads=4, intermediate_size=9)
GEMMA = fc.CausalLM(**COMMON, seq_len=10, attention=("sliding", "full"), window=3)
LLAMA = fc.Llama(**COMMON, seq_len=10)
EXPERTS = MixtureLM(**COMMON, seq_len=10, num_experts=3, experts_per_token=2, expert_size=7,
                    attention=("chunked", "full"), chunk=4)  # fmt: skip
BERT = EncoderLM(**COMMON, seq_len=10)
MODELS = [GEMMA, LLAMA, EXPERTS, BERT]
ADMITS = {
    Causal(): lambda query, key: key <= query,
    Causal(3): lambda query, key: query - 3 < key <= query,
    Chunked(4): lambda query, key: key <= query and key // 4 == query // 4,
    Full(): lambda query, key: True,
}


@st.composite
def packed(draw):
    """Sequences of ten positions, each of documents one after the other and padding."""
    batch = []
    for _ in range(draw(st.integers(1, 3))):
        lengths, left = [], 10
        while left and draw(st.booleans()):
            lengths.append(draw(st.integers(1, left)))
            left -= lengths[-1]
        batch.append(lengths)
    if not any(batch):
        batch[0] = [4]
    return batch


@settings(max_examples=60)
@given(packed())
def test_pairs_are_those_enumerated(batch):
    for mask, admits in ADMITS.items():
        pairs = 0
        for lengths in batch:
            owners = [(i, at) for i, length in enumerate(lengths) for at in range(length)]
            pairs += sum(
                mine == its and admits(query, key)
                for (mine, query), (its, key) in itertools.product(owners, owners)
            )
        lengths = tuple((length, 1) for length in itertools.chain(*batch))
        assert Packed(mask, lengths, len(batch)).pairs(10, 10) == pairs


@settings(max_examples=25)
@given(packed(), st.sampled_from(MODELS), st.booleans())
def test_attention_is_the_sum_over_documents(batch, model, training):
    documents = list(itertools.chain(*batch))
    found = model.flops(documents=documents, batch_size=len(batch), training=training)
    own = [dataclasses.replace(model, seq_len=n).flops(training=training) for n in documents]
    whole = model.flops(batch_size=len(batch), training=training)
    for of_all, alone, terms in (
        (found, own, lambda count: count.terms),
        (found.elementwise, [c.elementwise for c in own], lambda count: count.terms),
    ):
        unpacked = whole if of_all is found else whole.elementwise
        for term in terms(of_all):
            name = term.layer, term.term
            if term.term in ("scores", "values", "softmax"):
                parts = [t for c in alone for t in terms(c) if (t.layer, t.term) == name]
            else:
                # All else works on every position, padding too.
                parts = [t for t in terms(unpacked) if (t.layer, t.term) == name]
            assert term.forward == sum(t.forward for t in parts), name
            assert term.backward == sum(t.backward for t in parts), name
    assert found.padding == Fraction(10 * len(batch) - sum(documents), 10 * len(batch))
    dense = model.flops("dense", documents=documents, batch_size=len(batch), training=training)
    assert dense.total == model.flops("dense", batch_size=len(batch), training=training).total
    # The worst case is one document in each sequence.
    assert found.total <= whole.total


def test_by_hand():
    # Two heads' worth of 8 channels in three layers: 3·4/2 + 5·6/2 pairs in place of 10·11/2.
    found, whole = LLAMA.flops(documents=[3, 5]), LLAMA.flops()
    assert whole.total - found.total == 3 * 2 * 2 * 3 * 8 * (55 - 6 - 15)
    assert found.padding == Fraction(1, 5)
    assert whole.padding == 0
    assert (found.tokens, found.positions, whole.positions) == (8, 10, None)
    assert found.per_token == Fraction(found.total, 8)  # what is padded is no token
    assert "documents of 8 tokens in 10 positions; padding is 0.2 of them" in str(found)
    assert found.to_dict()["padding"] == Fraction(1, 5)
    assert "padding" not in whole.to_dict()
    # Hidden pairs are multiplied all the same, in each of three sequences.
    for documents in ([3, 5], {4: 6}):
        dense = LLAMA.flops("dense", documents=documents, batch_size=3)
        assert dense.total == LLAMA.flops("dense", batch_size=3).total
    both = found + whole
    assert (both.padding, both.tokens, both.positions) == (Fraction(1, 10), 18, 20)
    assert ((found + found).positions, (whole + whole).positions) == (20, None)


def least_by_trying(lengths, seq_len):
    """The sequences that lengths take, by trying every way."""
    best = len(lengths)

    def place(index, rooms):
        nonlocal best
        if len(rooms) >= best:
            return
        if index == len(lengths):
            best = len(rooms)
            return
        for i, left in enumerate(rooms):
            if left >= lengths[index]:
                place(index + 1, (*rooms[:i], left - lengths[index], *rooms[i + 1 :]))
        place(index + 1, (*rooms, seq_len - lengths[index]))

    place(0, ())
    return best


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_no_packing_is_refused_that_there_is(lengths):
    needed = least_by_trying(sorted(lengths, reverse=True), 12)
    assert -(-sum(lengths) // 12) <= fewest_sequences(histogram(lengths, 12, needed), 12) <= needed


def test_documents_are_not_cut():
    # 7, 7, 6 fit no two sequences of ten, nor 6, 6, 5, 3; 6, 6, 4, 4 do.
    for lengths, fewest in (([7, 7, 6], 3), ([6, 6, 5, 3], 3)):
        with pytest.raises(ValueError, match=f"documents = .* expected at least {fewest} seq"):
            histogram(lengths, 10, fewest - 1)
        assert fewest_sequences(histogram(lengths, 10, fewest), 10) == fewest
    assert fewest_sequences(histogram([6, 6, 4, 4], 10, 2), 10) == 2
    assert fewest_sequences(((10, 3),), 10) == 3


def test_a_histogram_is_its_list():
    assert histogram([3, 5, 3, 3], 10, 2) == ((3, 3), (5, 1))
    listed = GEMMA.flops(documents=[3, 5, 3, 3], batch_size=2)
    assert listed.padding == Fraction(20 - 14, 20)
    assert GEMMA.flops(documents={3: 3, 5: 1}, batch_size=2).terms == listed.terms
    assert GEMMA.flops(documents=np.array([3, 5, 3, 3]), batch_size=2).total == listed.total
    corpus = GEMMA.flops(documents={9: 10**9}, batch_size=10**9)
    assert corpus.total == 10**9 * GEMMA.flops(documents=[9]).total


def test_arrays_and_symbols():
    lengths = np.array([1, 4, 10])
    assert (
        list(GEMMA.flops(documents={7: 1, 3: 1}).total - 0 * lengths)
        == [GEMMA.flops(documents=[7, 3]).total] * 3
    )
    found = LLAMA.flops(documents=[lengths], batch_size=2).total
    assert list(found) == [LLAMA.flops(documents=[n], batch_size=2).total for n in (1, 4, 10)]
    n, m = sympy.symbols("n m", integer=True, positive=True)
    model = dataclasses.replace(LLAMA, seq_len=n)
    packed = model.flops(documents={m: n / m}).total
    assert (
        packed.subs({n: 12, m: 4})
        == dataclasses.replace(LLAMA, seq_len=12).flops(documents={4: 3}).total
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LLAMA.flops(documents=[11]), "documents = 11: expected at most seq_len = 10"),
        (lambda: LLAMA.flops(documents=[6, 5]), r"documents' positions = 11: .* seq_len = 10"),
        (lambda: LLAMA.flops(documents=[]), r"documents = \[\]: expected one at least"),
        (lambda: LLAMA.flops(documents=[0]), "documents = 0: expected an integer >= 1"),
        (lambda: LLAMA.flops(documents={3: 0}), "documents = 0: expected an integer >= 1"),
        (lambda: LLAMA.flops(convention="6n", documents=[3]), "convention = '6n' with documents"),
        (lambda: LLAMA.flops("executed", documents=[3]), "level = 'executed' needs the kernels'"),
        (
            lambda: EncoderDecoderLM(**COMMON, seq_len=5, target_len=4).flops(documents=[3]),
            "documents of an encoder-decoder: expected None",
        ),
        (
            lambda: fc.PerceiverAR(vocab_size=9, num_latents=4, num_prefix=3, num_channels=8,
                                   num_layers=1).flops(documents=[3]),
            "documents of a PerceiverAR: expected None",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("documents", ["34", b"\x03", 3, 3.0, [3.0], {"3": 1}, [None]])
def test_what_has_the_wrong_type(documents):
    with pytest.raises(TypeError, match="documents = "):
        LLAMA.flops(documents=documents)


def test_lengths_and_sizes_of_two_kinds_are_refused():
    symbol = sympy.Symbol("a", integer=True, positive=True)
    arrays = dataclasses.replace(LLAMA, vocab_size=np.array([5, 6]))
    with pytest.raises(TypeError, match=r"documents\[0\] .*vocab_size|vocab_size .*documents\[0\]"):
        arrays.flops(documents=[symbol])


def test_the_bound_on_sequences_by_hand():
    # 5 and 5 share a sequence, though 6 leaves no place for either.
    assert fewest_sequences(((6, 1), (5, 2)), 10) == 2
    # 8 and 2, 6 and 4: the 2 stands where no 4 does.
    assert fewest_sequences(((8, 1), (6, 1), (4, 1), (2, 1)), 10) == 2
    # Beside each 6 a 4; the third has a sequence of its own.
    assert fewest_sequences(((6, 2), (4, 3)), 10) == 3
