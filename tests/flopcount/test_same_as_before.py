"""The counter composed of blocks against the one it replaces, term by term."""

import dataclasses
import random

import numpy as np
import pytest
import sympy

import before
import flopcount as fc
from before.conventions import CONVENTIONS

STEPS = [
    dict(training=True, checkpointing=None),
    dict(training=False, checkpointing=None),
    dict(training=True, checkpointing="reentrant"),
    dict(training=True, checkpointing="non-reentrant"),
]


def drawn(seed):
    """An architecture's name, its arguments, a batch size and two tilings."""
    r = random.Random(seed)
    largest = r.choice([4, 40, 3000])
    heads = r.randint(1, 8)
    arguments = dict(
        vocab_size=r.randint(1, largest),
        num_channels=heads * r.randint(1, 100),
        num_layers=r.randint(1, 9),
        num_heads=heads,
        widening_factor=r.randint(1, 6),
    )
    if r.random() < 0.4:
        name = "Decoder"
        arguments |= dict(
            seq_len=r.randint(1, largest),
            bias=r.random() < 0.5,
            tie_embeddings=r.random() < 0.5,
        )
    else:
        name = "PerceiverAR"
        prefix = r.choice([0, r.randint(0, largest)])
        arguments |= dict(num_latents=r.randint(1, largest), num_prefix=prefix)
        if r.random() < 0.5:
            arguments["prefix_dropout"] = r.choice([0.0, 0.1, 0.5, 0.7, r.random()])
        else:
            arguments["num_kept"] = r.randint(0, prefix)
    tilings = []
    for _ in range(2):
        forward, key_value, query = (
            (small * r.choice([1, 2, 4]), small) for small in (r.choice([1, 16, 48]),) * 3
        )
        tilings.append(
            dict(
                forward=forward,
                key_value=key_value[::-1],
                query=query,
                head_dim_multiple=r.choice([1, 8, 16]),
                key_value_products=r.choice([4, 5]),
            )
        )
    return name, arguments, r.choice([1, r.randint(1, 90)]), tilings


def old_products(count):
    return {
        (line.part, line.layer, line.term): (
            line.forward,
            line.backward,
            line.recompute,
            [(row.phase, row.batch, row.M, row.N, row.K, pairs_of(row)) for row in line.rows()],
        )
        for line in count.lines
    }


def new_products(count):
    return {
        (term.part, term.layer, term.term): (
            term.forward,
            term.backward,
            term.recompute,
            [(row.phase, row.batch, row.M, row.N, row.K, pairs_of(row)) for row in term.rows],
        )
        for term in count.terms
    }


def pairs_of(row):
    return row.M * row.N if row.pairs is None else row.pairs


def old_work(count):
    work = count.elementwise
    return {
        (row.part, row.layer, row.term): (
            row.elements,
            row.forward_cost,
            row.backward_cost,
            work._forward(row),
            work._backward(row),
            work._recompute(row),
            row.reason,
        )
        for row in work.rows
    }


def new_work(count):
    return {
        (t.part, t.layer, t.term): (
            t.elements,
            t.forward_cost,
            t.backward_cost,
            t.forward,
            t.backward,
            t.recompute,
            t.reason,
        )
        for t in count.elementwise.terms
    }


def old_parameters(model):
    return {(row.part, row.layer, row.name): row.count for row in model.params().rows}


def new_parameters(model):
    return {(row.part, row.layer, row.name): row.count for row in model.params().terms}


def counts(name, arguments, batch, tilings, step):
    """Old and new count at every level, in a kind of step."""
    old, new = getattr(before, name)(**arguments), getattr(fc, name)(**arguments)
    step = step | dict(batch_size=batch)
    for level in ("causal", "dense"):
        yield old.flops(level, **step), new.flops(level, **step)
    first, second = tilings
    own = dict(hybrid_tiling=before.Tiling(**second)) if name == "PerceiverAR" else {}
    hybrid = dict(tilings={"hybrid": fc.Tiling(**second)}) if name == "PerceiverAR" else {}
    yield (
        old.executed(before.Tiling(**first), **own, **step),
        new.executed(fc.Tiling(**first), **hybrid, **step),
    )


@pytest.mark.parametrize("chunk", range(16))
def test_1600_drawn_configurations(chunk):
    for seed in range(100 * chunk, 100 * (chunk + 1)):
        name, arguments, batch, tilings = drawn(seed)
        step = STEPS[seed % 4]
        for old, new in counts(name, arguments, batch, tilings, step):
            assert new_products(new) == old_products(old)
            if old.elementwise is not None:
                assert new_work(new) == old_work(old)
            for total in ("forward", "backward", "total", "recompute", "per_token"):
                assert getattr(new, total) == getattr(old, total)
                for part in ("self_part", "cross_part"):
                    new_part, old_part = getattr(new, part), getattr(old, part)
                    assert getattr(new_part, total) == getattr(old_part, total)
        old, new = getattr(before, name)(**arguments), getattr(fc, name)(**arguments)
        assert new_parameters(new) == old_parameters(old)
        for convention in CONVENTIONS:
            if convention.startswith("article"):
                continue  # changed on purpose, see the changelog
            was = old.flops(convention=convention, training=step["training"], batch_size=batch)
            now = new.flops(convention=convention, training=step["training"], batch_size=batch)
            assert [(t.part, t.layer, t.term, t.forward, t.backward) for t in now.terms] == [
                (t.part, t.layer, t.term, t.forward, t.backward) for t in was.lines
            ]
            assert now.not_covered == was.not_covered


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("name", ["PerceiverAR", "Decoder"])
def test_symbols_expand_to_0(name, step):
    B, n, m, k, d, h, L, V, w = sympy.symbols("B n m k d h L V w", integer=True, positive=True)
    arguments = dict(vocab_size=V, num_channels=d, num_layers=L, num_heads=h, widening_factor=w)
    arguments |= (
        dict(seq_len=n) if name == "Decoder" else dict(num_latents=n, num_prefix=m, num_kept=k)
    )
    old, new = getattr(before, name)(**arguments), getattr(fc, name)(**arguments)
    for level in ("causal", "dense"):
        was = old.flops(level, batch_size=B, **step)
        now = new.flops(level, batch_size=B, **step)
        old_terms, new_terms = old_products(was), new_products(now)
        assert new_terms.keys() == old_terms.keys()
        for key in old_terms:
            for a, b in zip(old_terms[key][:3], new_terms[key][:3], strict=True):
                assert sympy.expand(a - b) == 0
        old_rows, new_rows = old_work(was), new_work(now)
        assert new_rows.keys() == old_rows.keys()
        for key in old_rows:
            for a, b in zip(old_rows[key][:6], new_rows[key][:6], strict=True):
                assert sympy.expand(a - b) == 0
    was, now = old_parameters(old), new_parameters(new)
    assert was.keys() == now.keys()
    assert all(sympy.expand(was[key] - now[key]) == 0 for key in was)


@pytest.mark.parametrize("scale", [1, 2**20])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, np.uint64, object])
@pytest.mark.parametrize("seed", range(8))
def test_arrays_are_equal(seed, dtype, scale):
    r = np.random.default_rng(seed)
    heads = r.integers(1, 9, 50)

    def array(low, high):
        return (
            r.integers(low, high, 50).astype(dtype) * dtype(scale)
            if dtype is not object
            else (r.integers(low, high, 50).astype(object) * scale)
        )

    if dtype is np.uint16 and scale > 1:
        pytest.skip("the sizes would wrap before they are given")
    arguments = dict(
        vocab_size=array(1, 50),
        num_channels=(heads * r.integers(1, 20, 50)).astype(object) * scale,
        num_layers=r.integers(1, 9, 50).astype(dtype),
        num_heads=heads,
        widening_factor=r.integers(1, 9, 50).astype(dtype),
    )
    if seed % 2:
        name = "Decoder"
        arguments |= dict(seq_len=array(1, 50))
    else:
        name = "PerceiverAR"
        arguments |= dict(num_latents=array(1, 50), num_prefix=array(0, 50), prefix_dropout=0.3)
    _, _, _, tilings = drawn(seed)
    for old, new in counts(name, arguments, np.arange(1, 51), tilings, STEPS[seed % 4]):
        for total in ("forward", "backward", "total", "recompute"):
            was, now = getattr(old, total), getattr(new, total)
            assert (now == was).all(), total
        if old.elementwise is not None:
            was, now = old_work(old), new_work(new)
            assert was.keys() == now.keys()
            for key in was:
                assert all(np.all(a == b) for a, b in zip(was[key], now[key], strict=True))
    old, new = getattr(before, name)(**arguments), getattr(fc, name)(**arguments)
    was, now = old_parameters(old), new_parameters(new)
    assert was.keys() == now.keys()
    assert all(np.all(was[key] == now[key]) for key in was)


def test_a_difference_is_seen(monkeypatch):
    from flopcount import blocks

    changed = blocks.Attention.rows

    def rows(self, at):
        for row in changed(self, at):
            yield (
                dataclasses.replace(row, K=row.K + 1) if getattr(row, "term", "") == "out" else row
            )

    monkeypatch.setattr(blocks.Attention, "rows", rows)
    with pytest.raises(AssertionError):
        test_1600_drawn_configurations(0)
