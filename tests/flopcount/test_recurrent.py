"""Blocks with a scan by hand: what they multiply at each level, their work, their parameters."""

import dataclasses

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.blocks import rows_of
from flopcount.count import add, product_term
from flopcount.operations import Pass
from flopcount.recurrent import (
    BetweenChunks,
    GatedDeltaNet,
    LightningAttention,
    Mamba1,
    Mamba2,
    Steps,
    Substitution,
    WithinChunks,
)
from flopcount.rows import Product, Tensor, Work
from flopcount.sizes import map_sizes, safe_for

# n = 5 positions in chunks of 3, B = 2, two equal layers: 20 positions, a last chunk of 2.
AT = Pass(2, 5, layer="scan", layers=2)
POSITIONS = 20
PADDED = 2 * 2 * 6
LIGHTNING = LightningAttention(channels=7, num_heads=3, head_dim=4, chunk=3)
DELTA = GatedDeltaNet(
    channels=7, num_key_heads=3, num_value_heads=6, key_dim=3, value_dim=5, taps=4, chunk=3
)
MAMBA2 = Mamba2(
    channels=7,
    num_heads=4,
    head_dim=3,
    state=5,
    groups=4,
    taps=4,
    chunk=3,
    bias=True,
    convolution_bias=True,
)
MAMBA1 = Mamba1(channels=7, inner=6, state=5, rank=2, taps=4, bias=True, convolution_bias=True)
BLOCKS = [LIGHTNING, DELTA, MAMBA2, MAMBA1]


def of(kind, block, at=AT):
    return [row for row in block.rows(at) if isinstance(row, kind)]


def forward(block, level, at=AT):
    terms = [product_term(row, level, None, True, None) for row in of(Product, block, at)]
    assert all(term.backward == 2 * term.forward for term in terms)
    return {term.term: term.forward for term in terms}


def test_chunks_by_enumeration():
    for positions in range(1, 14):
        for size in range(1, 6):
            starts = range(0, positions, size)
            rows = [min(size, positions - start) for start in starts]
            padded = size * len(starts)
            assert WithinChunks(size, padded=False).rectangle(positions, 99) == sum(
                row * row for row in rows
            )
            assert WithinChunks(size).rectangle(positions, 99) == sum(size * size for _ in rows)
            assert Substitution(size).rectangle(positions, 99) == sum(
                row for _ in rows for row in range(size)
            )
            assert BetweenChunks(size).rectangle(positions, 7) == 7 * (len(rows) + 1) ** 2
            assert Steps(size).rectangle(positions, 7) == 7 * padded
            assert Steps(size, fresh=0).rectangle(positions, 7) == 7 * positions
            assert Steps().rectangle(positions, 7) == 7 * positions
            assert Steps(size).pairs(positions, 7) == 7 * positions
            for mask in (WithinChunks, Substitution, BetweenChunks):
                assert mask(size).pairs(positions, 7) == 0
                assert mask(size, fresh=0).rectangle(positions, 7) == 0


@pytest.mark.parametrize("block", BLOCKS)
def test_sizes_of_the_products_of_a_scan(block):
    # Within chunks positions meet positions; else each meets a row of the state.
    for row in of(Product, block):
        if type(row.mask) in (WithinChunks, Substitution):
            assert (row.M, row.N) == (5, 5)
        elif row.mask is not None:
            entries = {LIGHTNING: (4, 4), DELTA: (5, 3), MAMBA2: (3, 5), MAMBA1: (1, 5)}[block]
            assert row.M == 5
            assert entries == (row.N, row.K)


@pytest.mark.parametrize("block", BLOCKS)
def test_weights_of_all_parts_are_the_decoders(block):
    assert {row.part for row in of(Tensor, block, AT.at(part="cross"))} == {"self"}
    assert {row.part for row in of(Product, block, AT.at(part="cross"))} == {"cross"}


def test_lightning_attention_by_hand():
    linear = 2 * POSITIONS  # FLOPs per weight
    projections = {
        "query key value": linear * 7 * 36,
        "output gate": linear * 7 * 12,
        "out": linear * 12 * 7,
    }
    state = linear * 3 * 4 * 4  # every head's c² per position
    recurrence = {"scan read": state, "scan update": state}
    assert forward(LIGHTNING, "causal") == projections | recurrence | {
        "chunk scores": 0,
        "chunk values": 0,
    }
    # A chunk of 3 positions and one of 2: 9 + 4 pairs, of 4 sequences and layers, 3 heads, c = 4.
    within = 2 * 4 * 3 * 4 * (9 + 4)
    assert forward(LIGHTNING, "dense") == projections | recurrence | {
        "chunk scores": within,
        "chunk values": within,
    }


def test_a_gated_delta_net_by_hand():
    linear = 2 * POSITIONS
    projections = {
        "query key value gate": linear * 7 * (2 * 9 + 2 * 30),
        "beta decay": linear * 7 * 12,
        "out": linear * 30 * 7,
    }
    recurrence = ("scan recall", "scan read", "scan update")
    chunks = (
        "chunk keys", "chunk scores", "chunk value system", "chunk key system", "chunk values",
    )  # fmt: skip
    assert forward(DELTA, "causal") == projections | dict.fromkeys(
        recurrence, linear * 6 * 3 * 5
    ) | dict.fromkeys(chunks, 0)
    # Two whole chunks, 9 pairs each, of 4 sequences and layers and 6 heads; substitution takes
    # 0 + 1 + 2 multiply-adds per column.
    within, solved = 2 * 4 * 6 * 2 * 9, 2 * 4 * 6 * 2 * 3
    assert forward(DELTA, "dense") == projections | dict.fromkeys(
        recurrence, 2 * PADDED * 6 * 3 * 5
    ) | {
        "chunk keys": within * 3,
        "chunk scores": within * 3,
        "chunk value system": solved * 5,
        "chunk key system": solved * 3,
        "chunk values": within * 5,
    }


def test_mamba_2_by_hand():
    linear = 2 * POSITIONS
    # e = 4·3 for gate and x, 4 groups' B and C of 5, 4 heads' step sizes.
    projections = {"in": linear * 7 * (12 + 12 + 2 * 4 * 5 + 4), "out": linear * 12 * 7}
    assert forward(MAMBA2, "causal") == projections | dict.fromkeys(
        ("scan update", "scan read"), linear * 4 * 3 * 5
    ) | dict.fromkeys(("chunk scores", "chunk values", "chunk states"), 0)
    within = 2 * 4 * 4 * 2 * 9
    assert forward(MAMBA2, "dense") == projections | dict.fromkeys(
        ("scan update", "scan read"), 2 * PADDED * 4 * 3 * 5
    ) | {
        "chunk scores": within * 5,
        "chunk values": within * 3,
        # Three states from three, of 4 sequences and layers, 4 heads, 3·5 entries.
        "chunk states": 2 * 4 * 4 * 9 * 15,
    }


def test_mamba_1_by_hand():
    linear = 2 * POSITIONS
    products = {
        "in": linear * 7 * 12,
        "step state": linear * 6 * (2 + 2 * 5),
        "step": linear * 2 * 6,
        "scan update": linear * 6 * 5,
        "scan read": linear * 6 * 5,
        "out": linear * 6 * 7,
    }
    assert forward(MAMBA1, "causal") == forward(MAMBA1, "dense") == products


def test_parameters_by_hand():
    def parameters(block):
        return {row.name: row.count for row in of(Tensor, block) if not row.is_buffer}

    # λ, its powers for queries and for keys of a chunk, and for the pairs: (1 + 3)² of each head.
    (decays,) = (row for row in of(Tensor, LIGHTNING) if row.is_buffer)
    assert (decays.layer, decays.name, decays.count) == ("scan", "decays", 2 * 3 * 16)
    assert not any(row.is_buffer for block in BLOCKS[1:] for row in of(Tensor, block))
    assert parameters(LIGHTNING) == {
        "query key value": 2 * 7 * 36,
        "scan norm": 2 * 12,
        "output gate": 2 * 7 * 12,
        "out": 2 * 12 * 7,
    }
    assert parameters(DELTA) == {
        "query key value gate": 2 * 7 * 78,
        "beta decay": 2 * 7 * 12,
        "convolution": 2 * 4 * 48,
        "decay bias": 2 * 6,
        "decay rate": 2 * 6,
        "scan norm": 2 * 5,  # shared by the heads
        "out": 2 * 30 * 7,
    }
    assert parameters(MAMBA2) == {
        "in": 2 * 8 * 68,
        "convolution": 2 * 5 * 52,
        "step size bias": 2 * 4,
        "decay rate": 2 * 4,
        "skip": 2 * 4,
        "scan norm": 2 * 12,
        "out": 2 * 13 * 7,
    }
    plain = dataclasses.replace(MAMBA2, bias=False, convolution_bias=False)
    assert parameters(MAMBA2) | {
        "in": 2 * 7 * 68, "convolution": 2 * 4 * 52, "out": 2 * 12 * 7,
    } == parameters(plain)  # fmt: skip
    assert parameters(MAMBA1) == {
        "in": 2 * 8 * 12,
        "convolution": 2 * 5 * 6,
        "step state": 2 * 6 * 12,
        "step norm": 2 * 2,
        "B norm": 2 * 5,
        "C norm": 2 * 5,
        "step": 2 * 2 * 6,
        "step size bias": 2 * 6,
        "decay rate": 2 * 6 * 5,
        "skip": 2 * 6,
        "out": 2 * 7 * 7,
    }
    plain = dataclasses.replace(MAMBA1, bias=False, convolution_bias=False)
    assert parameters(MAMBA1) | {
        "in": 2 * 7 * 12, "convolution": 2 * 4 * 6, "out": 2 * 6 * 7,
    } == parameters(plain)  # fmt: skip


def element_wise(block):
    """Elements per position, forward and backward cost of each row of work."""
    rows = {row.term: row for row in of(Work, block)}
    assert all(row.factors[:2] == (4, 5) and row.mask is None for row in rows.values())
    return {
        term: (int(np.prod(row.factors[2:])), row.forward_cost, row.backward_cost)
        for term, row in rows.items()
    }


def test_element_wise_work_by_hand():
    assert element_wise(LIGHTNING) == {
        "query key value activation": (36, 4, 8),
        "state decay": (3 * 16, 1, 1),
        "scan norm": (12, 4, 9),
        "projection input gradients": (7, 0, 1),
        "sigmoid gate": (12, 3, 3),
        "sigmoid gate product": (12, 1, 2),
    }
    assert element_wise(DELTA) == {
        "projection input gradients": (7, 0, 1),
        "convolution": (48 * 4, 2, 4),
        "convolution silu": (48, 4, 8),
        "beta": (6, 3, 3),
        "decay": (6, 6, 9),
        "query key norm": (18, 3, 6),
        "query scale": (9, 1, 1),
        "state decay": (6 * 15, 1, 3),
        "delta": (30, 2, 3),
        "scan norm": (30, 4, 9),
        "silu gate": (30, 4, 8),
        "silu gate product": (30, 1, 2),
    }
    assert element_wise(MAMBA2) == {
        "in bias": (68, 1, 1),
        "convolution": (52 * 4, 2, 4),
        "convolution bias": (52, 1, 1),
        "convolution silu": (52, 4, 8),
        "step size": (4, 4, 5),
        "decay": (4, 2, 5),
        "step input": (12, 1, 3),
        "state decay": (4 * 15, 1, 3),
        "skip": (12, 2, 4),
        "silu gate": (12, 4, 8),
        "silu gate product": (12, 1, 2),
        "scan norm": (12, 4, 9),
        "out bias": (7, 1, 1),
    }
    assert element_wise(MAMBA1) == {
        "in bias": (12, 1, 1),
        "convolution": (6 * 4, 2, 4),
        "convolution bias": (6, 1, 1),
        "convolution silu": (6, 4, 8),
        "convolution output gradients": (6, 0, 1),
        "step norm": (2, 4, 9),
        "B norm": (5, 4, 9),
        "C norm": (5, 4, 9),
        "step size": (6, 4, 5),
        "decay": (30, 2, 5),
        "step input": (6, 1, 3),
        "state decay": (30, 1, 2),
        "skip": (6, 2, 4),
        "silu gate": (6, 4, 8),
        "silu gate product": (6, 1, 2),
        "out bias": (7, 1, 1),
    }


@pytest.mark.parametrize("block", BLOCKS)
def test_other_activations(block):
    if not hasattr(block, "activation"):
        return
    costs = element_wise(dataclasses.replace(block, activation="gelu"))
    ((_, *cost),) = [
        cost
        for term, cost in costs.items()
        if term in ("convolution gelu", "query key value activation")
    ]
    assert cost == [5, 11]


@pytest.mark.parametrize("block", BLOCKS)
def test_reading_and_then_decoding_is_one_pass(block):
    # 11 positions at once, or 7 and then 4 behind them, the last of these one by one.
    for passes in ([Pass(3, 11)], [Pass(3, 7), Pass(3, 3, cached=7), Pass(3, 1, cached=10)]):
        total = sum(sum(forward(block, "causal", at).values()) for at in passes)
        assert total == sum(forward(block, "causal", Pass(3, 11)).values())
    # Behind a cache an implementation steps as well.
    behind = Pass(3, 4, cached=7)
    assert forward(block, "dense", behind) == forward(block, "causal", behind)


def network_total(network, level):
    """Forward and backward FLOPs, as a count evaluates them."""

    def total(inside):
        rows = [row for row in rows_of(inside) if isinstance(row, Product)]
        terms = [product_term(row, level, None, True, None) for row in rows]
        return add(term.forward + term.backward for term in terms)

    return total(safe_for(network, total))


@pytest.mark.parametrize("level", ["causal", "dense"])
@pytest.mark.parametrize("block", BLOCKS)
def test_arrays_and_symbols_agree_with_integers(block, level):
    sizes = []
    map_sizes((AT, block), sizes.append)
    symbols = iter(sympy.symbols(f"a:{len(sizes)}", integer=True, positive=True))
    values = {}

    def symbol(size):
        # Behind a cache means something else than without one.
        if size == 0:
            return size
        values[next_symbol := next(symbols)] = size
        return next_symbol

    expression = network_total(
        ((lambda at, b: ((at, (b,)),))(*map_sizes((AT, block), symbol))), level
    )
    for step in range(3):
        shifted = {name: size + step for name, size in values.items()}
        names = iter(shifted.values())
        at, integers = map_sizes((AT, block), lambda size: size and next(names))  # noqa: B023
        assert expression.subs(shifted) == network_total(((at, (integers,)),), level)

    array = map_sizes((AT, block), lambda size: np.array([size, size + 1, size * 3]))
    expected = [
        network_total(((at, (integers,)),), level)
        for pick in (lambda s: s, lambda s: s + 1, lambda s: s * 3)
        for at, integers in [map_sizes((AT, block), pick)]
    ]
    at, blocks = array
    assert list(network_total(((at, (blocks,)),), level)) == expected


@pytest.mark.parametrize("level", ["causal", "dense"])
@pytest.mark.parametrize("block", BLOCKS)
def test_arrays_never_wrap(block, level):
    at, huge = map_sizes((AT, block), lambda size: np.array([size, size * 2**15]))
    large = map_sizes((AT, block), lambda size: size * 2**15)
    total = network_total(((at, (huge,)),), level)
    assert total[1] == network_total(((large[0], (large[1],)),), level) > 2**63


def test_a_cache_in_an_array_is_told_from_none():
    at = dataclasses.replace(AT, cached=np.array([0, 1, 5]))
    expected = [
        network_total(((dataclasses.replace(AT, cached=cached), (DELTA,)),), "dense")
        for cached in (0, 1, 5)
    ]
    assert list(network_total(((at, (DELTA,)),), "dense")) == expected
    assert expected[0] > expected[1] == expected[2]


@pytest.mark.parametrize("mask", [Steps(), WithinChunks(3), Substitution(3), BetweenChunks(3)])
def test_kernels_run_no_scan(mask):
    with pytest.raises(ValueError, match="level = 'executed' of a network with a scan: expected"):
        mask.tiles(3, 3, (16, 16), "queries")
    tiling = fc.Tiling(forward=(16, 16), key_value=(16, 16), query=(16, 16))
    (row, *_) = (row for row in of(Product, DELTA) if row.mask is not None)
    with pytest.raises(ValueError, match="our kernels run no recurrence"):
        product_term(row, "executed", lambda _: tiling, True, None)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_product_says_where_it_comes_from(block):
    assert all(row.source for row in of(Product, block))
    scans = [row for row in of(Product, block) if row.mask is not None]
    assert all(row.source == row.mask.source for row in scans)
