"""Counts subtract term by term: levels, models, conventions, and a measured step."""

import dataclasses

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.count import NotCoveredError

SIZES = dict(vocab_size=9, seq_len=3, num_channels=4, num_layers=2, num_heads=2)
MODEL = fc.Decoder(**SIZES)


def test_levels_differ_in_attention_alone():
    found = MODEL.flops("dense", batch_size=5) - MODEL.flops(batch_size=5)
    # 9 pairs instead of 6: 2 · 5 sequences · 2 layers · 4 channels forward, twice that backward.
    more = 2 * 5 * 2 * 4 * 3
    assert [(t.term, t.forward, t.backward, t.recompute) for t in found.nonzero.terms] == [
        ("scores", more, 2 * more, 0),
        ("values", more, 2 * more, 0),
    ]
    assert found.total == 6 * more
    assert len(found.terms) == len(MODEL.flops().terms)
    assert "decoder   scores" in str(found)
    assert found.records()[0].keys() == {"layer", "term", "forward", "backward", "recompute"}


def test_a_count_minus_itself_is_nothing():
    count = MODEL.flops(checkpointing="reentrant")
    assert (count - count).nonzero.terms == ()
    assert (count - MODEL.flops()).recompute == count.recompute > 0


def test_models_differ_where_their_sizes_do():
    wider = fc.Decoder(**SIZES | dict(vocab_size=10))
    (term,) = (wider.flops() - MODEL.flops()).nonzero.terms
    assert (term.layer, term.term, term.forward) == ("output", "logits", 2 * 3 * 4)


def test_what_one_count_alone_has_is_a_term():
    llama = fc.Llama(
        vocab_size=9, seq_len=3, num_channels=4, num_layers=2, num_heads=2, intermediate_size=16
    )
    names = {term.term for term in (MODEL.flops() - llama.flops()).nonzero.terms}
    assert names == {"mlp gate"}  # of a Llama alone; all else is of the same sizes


def test_parts_are_added_up():
    model = fc.PerceiverAR(
        vocab_size=9, num_latents=3, num_prefix=5, num_channels=4, num_layers=1, num_heads=2
    )
    found = model.flops() - model.flops()
    assert len(found.terms) < len(model.flops().terms)
    assert found.nonzero.terms == ()


def test_terms_in_one_product_are_joined():
    count = MODEL.flops()
    together = ("query", "key", "value")
    of_all = [term for term in count.terms if term.term in together]
    joined = dataclasses.replace(of_all[0], term="query+key+value")
    joined = dataclasses.replace(
        joined,
        forward=sum(term.forward for term in of_all),
        backward=sum(term.backward for term in of_all),
    )
    others = tuple(term for term in count.terms if term.term not in together)
    fused = dataclasses.replace(count, terms=(joined, *others))
    assert (fused - count).nonzero.terms == (count - fused).nonzero.terms == ()
    less = dataclasses.replace(count, terms=count.terms[1:])
    (term,) = (fused - less).nonzero.terms
    assert (term.term, term.forward) == ("query+key+value", count.terms[0].forward)


def test_symbols_and_arrays():
    n = sympy.Symbol("n", integer=True, positive=True)
    model = fc.Decoder(**SIZES | dict(seq_len=n))
    scores, _ = (model.flops("dense") - model.flops()).nonzero.terms
    assert sympy.expand(scores.forward - 2 * 2 * 4 * (n**2 - n * (n + 1) / 2)) == 0
    assert (model.flops() - model.flops()).nonzero.terms == ()
    arrays = fc.Decoder(**SIZES | dict(seq_len=np.array([1, 3])))
    scores, _ = (arrays.flops("dense") - arrays.flops()).nonzero.terms
    assert scores.forward.tolist() == [0, 48]


def test_what_cannot_be_subtracted():
    with pytest.raises(ValueError, match="batch_size = 1 and 2"):
        MODEL.flops() - MODEL.flops(batch_size=2)
    with pytest.raises(TypeError):
        MODEL.flops() - 3
    model = fc.PerceiverAR(
        vocab_size=9, num_latents=3, num_prefix=5, num_channels=4, num_layers=1, num_heads=2
    )
    with pytest.raises(NotCoveredError):
        model.flops() - model.flops(convention="6n")
