"""Executed FLOPs by hand: tiles counted on paper, padded head dims, products of each pass."""

import dataclasses

import numpy as np
import pytest
import sympy

import flopcount as fc
from flopcount.devices import find_device
from flopcount.executed import kernel_work
from flopcount.explanation import symbolic_tiling
from flopcount.masks import Causal, Full

TILING = fc.Tiling(forward=(128, 64), key_value=(32, 128), query=(64, 64))


def tiles_by_query_block(n, block):
    return Causal().tiles(n, n, block, "queries")


def tiles_by_key_block(n, block):
    return Causal().tiles(n, n, block, "keys")


def tiles_in_rectangle(n, k, block):
    return Full().tiles(n, k, block, "queries")


def model(**changes):
    sizes = dict(
        vocab_size=7, num_latents=130, num_prefix=70, num_channels=146, num_layers=2, num_heads=2
    )
    return fc.PerceiverAR(**{**sizes, **changes})


def line(count, part, layer, term):
    (found,) = [x for x in count.terms if (x.part, x.layer, x.term) == (part, layer, term)]
    return found


def test_tiles_on_paper():
    # Three queries in blocks of 2 × 1: rows {1, 2} visit 2 tiles, row {3} visits 3.
    assert tiles_by_query_block(3, (2, 1)) == 2 + 3
    # Five in blocks of 2 × 2: 1 + 2 + 3.
    assert tiles_by_query_block(5, (2, 2)) == 1 + 2 + 3
    # Three keys in blocks of 2, queries one by one: keys {1, 2} are visited by 3, key {3} by 1.
    assert tiles_by_key_block(3, (1, 2)) == 3 + 1
    assert tiles_by_key_block(5, (2, 2)) == 3 + 2 + 1
    assert tiles_by_query_block(1, (128, 64)) == tiles_by_key_block(1, (32, 128)) == 1
    assert tiles_in_rectangle(5, 4, (2, 3)) == 3 * 2
    assert tiles_in_rectangle(5, 0, (2, 3)) == 0


@pytest.mark.parametrize("block", [(1, 1), (4, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 23])
def test_tiles_one_by_one(n, block):
    tall, flat = block
    visited = sum(-(-min(first + tall, n) // flat) for first in range(0, n, tall))
    assert tiles_by_query_block(n, (tall, flat)) == visited
    visited = sum(-(-(n - first) // flat) for first in range(0, n, tall))
    assert tiles_by_key_block(n, (flat, tall)) == visited


def test_a_hybrid_layer_by_hand():
    # Head dim 73 is padded to 80. One product of one tile: 2 · 80 · queries · keys.
    count = model().executed(TILING, batch_size=3)
    heads = 3 * 2
    tile = {name: 2 * 80 * size for name, size in (("f", 128 * 64), ("kv", 32 * 128), ("q", 64**2))}
    # Latents: forward 2 + 3 tiles; keys and values 5 + 1; queries 1 + 2 + 3.
    scores = line(count, "self", "hybrid", "scores")
    assert scores.forward == heads * 5 * tile["f"]
    assert scores.backward == heads * (2 * 6 * tile["kv"] + 2 * 6 * tile["q"])
    values = line(count, "self", "hybrid", "values")
    assert values.forward == scores.forward
    assert values.backward == heads * (2 * 6 * tile["kv"] + 1 * 6 * tile["q"])
    # Prefix: forward 2 · 2 tiles; keys and values 5 · 1; queries 3 · 2.
    scores = line(count, "cross", "hybrid", "scores")
    assert scores.forward == heads * 4 * tile["f"]
    assert scores.backward == heads * (2 * 5 * tile["kv"] + 2 * 6 * tile["q"])
    # Linear layers are as at any level.
    assert line(count, "self", "hybrid", "query").forward == 3 * 2 * 130 * 146**2


def test_a_hybrid_layer_with_a_tiling_of_its_own():
    hybrid = fc.Tiling(forward=(64, 32), key_value=(64, 64), query=(128, 32))
    mixed = model().executed(TILING, tilings={"hybrid": hybrid})
    tilings = {"hybrid": hybrid, "self-attention": TILING}
    attention = [x for x in mixed.terms if x.term in ("scores", "values")]
    assert {x.layer for x in attention} == set(tilings)
    for found in attention:
        count = model().executed(tilings[found.layer])
        alone = line(count, found.part, found.layer, found.term)
        assert (found.forward, found.backward) == (alone.forward, alone.backward)
    # Two heads; the hybrid layer's latents: forward 2 + 4 + 5 tiles of 64 × 32.
    scores = line(mixed, "self", "hybrid", "scores")
    assert scores.forward == 2 * 11 * 2 * 80 * 64 * 32
    assert mixed.total != model().executed(TILING).total


def test_scores_multiplied_in_two_loops():
    five = fc.Tiling(forward=(128, 64), key_value=(32, 128), query=(64, 64), key_value_products=5)
    one = line(model().executed(TILING), "self", "hybrid", "scores").backward
    two = line(model().executed(five), "self", "hybrid", "scores").backward
    assert two - one == 2 * 6 * 2 * 80 * 32 * 128  # heads, tiles, a product
    # The values' three products are in one loop either way: two of tiles of keys, one of queries.
    for tiling in (TILING, five):
        values = line(model().executed(tiling), "self", "hybrid", "values")
        assert values.backward == 2 * 2 * 80 * (2 * 6 * 32 * 128 + 6 * 64**2)


def test_a_tiling_of_single_pairs_is_the_causal_count():
    exact = fc.Tiling(forward=(1, 1), key_value=(1, 1), query=(1, 1), head_dim_multiple=1)
    executed, causal = model().executed(exact), model().flops()
    assert executed.forward == causal.forward
    # Four products of the backward pass become seven.
    attention = [x for x in causal.terms if x.term in ("scores", "values")]
    assert executed.backward - causal.backward == sum(x.forward for x in attention) * 3 // 2
    assert executed.self_part.forward + executed.cross_part.forward == executed.forward


def test_phases():
    assert model().executed(TILING, training=False).backward == 0
    count = model().executed(TILING, checkpointing="reentrant")
    assert (
        line(count, "self", "hybrid", "scores").recompute
        == line(count, "self", "hybrid", "scores").forward
    )
    assert count.with_recompute == count.total + count.recompute
    assert [row.phase for row in line(count, "self", "hybrid", "values").rows] == [
        "forward", *["backward"] * 3, "recompute",
    ]  # fmt: skip
    for checked in count.terms:
        rows = checked.rows
        assert sum(row.flops for row in rows) == (
            checked.forward + checked.backward + checked.recompute
        )


def test_rates():
    count = model().executed(TILING, batch_size=8, checkpointing="reentrant")
    with pytest.raises(ValueError, match="MFU of a count at level 'executed'"):
        count.mfu(0.1, "h100")
    peak = find_device("h100").peak("bf16").flops_per_second
    assert count.hfu(0.5, "h100") == count.with_recompute / (0.5 * peak)


def test_symbols_and_arrays_agree_with_ints():
    n, d = sympy.symbols("n d", integer=True, positive=True)
    expression = model(num_latents=n, num_channels=d).executed(TILING).total
    lengths = np.arange(1, 300, 37)
    array = model(num_latents=lengths).executed(TILING).total
    for length, total in zip(lengths, array, strict=True):
        one = model(num_latents=int(length)).executed(TILING).total
        assert total == one
        assert expression.subs({n: int(length), d: 146}) == one


def test_symbols_for_tiles_agree_with_ints():
    tiling = symbolic_tiling()
    expression = model().executed(tiling).total
    for a, b, size in ((1, 1, 16), (2, 4, 32)):
        ints = fc.Tiling(forward=(a * size, size), key_value=(size, b * size), query=(size, size))
        values = dict(a_f=a, J_f=size, b=b, M_kv=size, a_q=1, J_q=size)
        found = expression.subs({symbol: values[symbol.name] for symbol in expression.free_symbols})
        assert found == model().executed(ints).total
    M, J = sympy.symbols("M J", integer=True, positive=True)
    with pytest.raises(ValueError, match="block of queries to be a multiple"):
        fc.Tiling(forward=(M, J), key_value=(64, 64), query=(64, 64))
    blocks = dict(forward=(64, 64), key_value=(64, 64), query=(64, 64))
    for change in (
        dict(forward=(64 * M, 64)),
        dict(key_value=(64, 64 * M)),
        dict(query=(64 * M, 64)),
        dict(head_dim_multiple=M),
    ):
        with pytest.raises(TypeError, match="expected arrays or symbols, not both"):
            model(num_latents=np.arange(1, 3)).executed(fc.Tiling(**blocks | change))
    with pytest.raises(TypeError, match=r"given as array and forward\[0\] as symbol"):
        model(num_latents=np.arange(1, 3)).executed(
            fc.Tiling(**blocks | {"forward": (64 * M, 64)}), tilings={"hybrid": fc.Tiling(**blocks)}
        )
    with pytest.raises(TypeError, match=r"hybrid forward\[0\] as symbol"):
        model(num_latents=np.arange(1, 3)).executed(
            fc.Tiling(**blocks),
            tilings={"hybrid": fc.Tiling(**blocks | {"forward": (64 * M, 64)})},
        )
    # Sizes that are ints stay under the ceiling too.
    assert tiles_in_rectangle(5, 7, (M, J)) == sympy.ceiling(5 / M) * sympy.ceiling(7 / J)


def test_explanation_of_what_is_executed():
    given = fc.explain("decoder", "executed", tiling=TILING)
    n, d, h = 130, 146, 2
    values = dict(B=3, n=n, d=d, h=h, L=2, V=7, w=4)
    decoder = fc.Decoder(
        vocab_size=7, seq_len=n, num_channels=d, num_layers=2, num_heads=h, bias=False
    )
    count = decoder.executed(TILING, batch_size=3)
    for formulas, phase in ((given.matmuls, "forward"), (given.backward, "backward")):
        assert formulas
        for formula in formulas:
            (counted,) = [x for x in count.terms if x.term == formula.term]
            symbols = formula.expression.free_symbols
            found = formula.expression.subs({s: values[s.name] for s in symbols})
            assert found == getattr(counted, phase)
    with pytest.raises(ValueError, match="expected level = 'executed' alone"):
        fc.explain(tiling=TILING)
    with pytest.raises(TypeError, match=r"expected a flopcount\.Tiling"):
        fc.explain(level="executed", tiling=(128, 64))


def test_no_overflow_beside_a_hybrid_tiling():
    big = model(num_latents=np.array([2, 3]), num_channels=2**40 * 146)
    assert list(big.executed(TILING, tilings={"hybrid": TILING}).total) == [
        model(num_latents=n, num_channels=2**40 * 146).executed(TILING).total for n in (2, 3)
    ]


def test_no_overflow():
    big = model(num_latents=np.array([2**40, 2**41])).executed(TILING).total
    assert list(big) == [
        model(num_latents=n).executed(TILING).total for n in (2**40, 2**41)
    ]  # fmt: skip


def test_it_prints():
    text = str(model().executed(TILING, checkpointing="reentrant"))
    assert "level executed" in text
    assert "recompute" in text
    assert model().executed(TILING).to_dict()["elementwise"] is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"forward": (64, 128)}, ValueError, "block of queries to be a multiple"),
        ({"key_value": (128, 64)}, ValueError, "block of keys to be a multiple"),
        ({"query": (64, 48)}, ValueError, "block of queries"),
        ({"forward": [64, 64]}, TypeError, "tuple"),
        ({"forward": (64, 64, 64)}, TypeError, "tuple"),
        ({"forward": (64.0, 64)}, TypeError, "expected an int"),
        ({"forward": (0, 64)}, ValueError, "forward = 0"),
        ({"head_dim_multiple": 0}, ValueError, "head_dim_multiple = 0"),
        ({"key_value_products": 6}, ValueError, "expected 4 or 5"),
        ({"key_value_products": 4.0}, TypeError, "key_value_products = 4.0"),
    ],
)
def test_bad_tilings(arguments, error, message):
    good = dict(forward=(64, 64), key_value=(64, 64), query=(64, 64))
    with pytest.raises(error, match=message):
        fc.Tiling(**{**good, **arguments})


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"^tiling = \(128, 64\): expected a flopcount\.Tiling"):
        model().executed((128, 64))
    with pytest.raises(TypeError, match=r"^tiling = 64: expected a flopcount\.Tiling"):
        model().executed(64, tilings={"hybrid": TILING})
    with pytest.raises(TypeError, match=r"tilings\[.hybrid.\] = 64: expected a flopcount\.Tiling"):
        model().executed(TILING, tilings={"hybrid": 64})
    decoder = fc.Decoder(vocab_size=7, seq_len=4, num_channels=8, num_layers=2, num_heads=2)
    with pytest.raises(ValueError, match=r"names of layers with attention of a Decoder: decoder$"):
        decoder.executed(TILING, tilings={"hybrid": TILING})
    with pytest.raises(TypeError, match="expected a mapping from names of layers"):
        model().executed(TILING, tilings=TILING)
    windowed = fc.Llama(
        vocab_size=7, seq_len=4, num_channels=8, num_layers=2, num_heads=2, intermediate_size=9,
        window=3,
    )  # fmt: skip
    with pytest.raises(ValueError, match="window = 3 at level 'executed'"):
        windowed.executed(TILING)
    with pytest.raises(ValueError, match="without a backward pass"):
        model().executed(TILING, training=False, checkpointing="reentrant")
    with pytest.raises(ValueError, match=r"call \.executed\(tiling\)"):
        model().flops("executed")


def test_no_overflow_where_layers_are_named():
    # 2 layers in an array times 10³⁰ sequences pass 2⁶³.
    sizes = dict(vocab_size=7, seq_len=3, num_channels=8, num_heads=2)
    alone = fc.Decoder(**sizes, num_layers=2).executed(TILING, batch_size=10**30)
    arrays = fc.Decoder(**sizes, num_layers=np.array([2])).executed(TILING, batch_size=10**30)
    assert list(arrays.total) == [alone.total]


@pytest.mark.parametrize(("n", "k"), [(1, 0), (131, 66), (300, 5), (256, 128)])
@pytest.mark.parametrize("products", [4, 5])
def test_work_of_kernels_program_by_program(n, k, products):
    """Each program's rows of keys or queries, one after the other, 2 query heads to a key head."""
    tiling = fc.Tiling(
        forward=(128, 64), key_value=(32, 64), query=(64, 32), key_value_products=products
    )
    sizes = dict(num_latents=n, num_prefix=k, num_heads=2, num_key_heads=1, head_dim=9)
    work = kernel_work(tiling, **sizes, element_size=2, batch_size=3, gradient_dims=(16, 9))
    row = 16 * 2  # bytes of an operand's row: 9 channels are stored in 16

    def over_keys(block, keys):
        """Tiles and rows of keys that programs which own queries visit, for one head."""
        tiles = rows = 0
        for first in range(0, n, block):
            for size in (min(first + block, n), k):
                tiles += len(range(0, size, keys))
                rows += size
        return tiles, rows

    tiles, rows = over_keys(128, 64)
    assert work["forward"].exponentials == 3 * 2 * tiles * 128 * (64 + 4)
    # Queries read, output and log-sum-exp written; keys and values of each program, or once.
    own = 2 * n * (row + 18 + 4)
    assert work["forward"].requested_bytes == 3 * (own + 2 * rows * 2 * row)
    assert work["forward"].distinct_bytes == 3 * (own + (n + k) * 2 * row)

    tiles, rows = over_keys(64, 32)
    assert work["query"].exponentials == 3 * 2 * tiles * 64 * 32
    # Queries and the output's gradient read, their own gradient written; two statistics.
    own, statistics = 2 * n * 3 * row, 2 * -(-n // 64) * 64 * 8
    assert work["query"].requested_bytes == 3 * (own + 4 * statistics + 2 * rows * 2 * row)
    assert work["query"].distinct_bytes == 3 * (own + statistics + (n + k) * 2 * row)

    tiles = rows = 0
    for first_keys, causal in ((n, True), (k, False)):
        for first in range(0, first_keys, 64):
            visited = range(first if causal else 0, n)
            tiles += len(range(visited.start, n, 32))
            rows += len(visited)
    launches = products - 3
    assert work["key_value"].exponentials == 3 * 2 * launches * tiles * 32 * 64
    # Values' launch reads keys and one statistic, keys' launch keys, values and two.
    read = {4: 2, 5: 3}[products]
    own = (n + k) * (read * row + 32 + 18)
    loaded = launches * (tiles * 32 + rows) * row + tiles * 32 * read * 4
    assert work["key_value"].requested_bytes == 3 * (own + 2 * loaded)
    once = launches * n * 2 * row + -(-n // 32) * 32 * read * 4
    assert work["key_value"].distinct_bytes == 3 * (own + 2 * once * (2 if k else 1))

    # Out, its gradient and log-sum-exp; two statistics of a multiple of 256 rows.
    assert work["rows"].distinct_bytes == 3 * 2 * (n * 40 + -(-n // 256) * 256 * 8)
    assert work["rows"].requested_bytes is None
    assert work["rows"].exponentials == 0


def test_work_of_kernels_is_linear_in_sequences_and_heads():
    """A head dim that is stored as it is, several key heads, one sequence unless given."""
    tiling = fc.Tiling(forward=(128, 64), key_value=(32, 64), query=(64, 32))
    sizes = dict(num_latents=131, num_prefix=66, head_dim=16, element_size=2)
    one = kernel_work(tiling, **sizes, num_heads=2, num_key_heads=1)
    two = kernel_work(tiling, **sizes, num_heads=4, num_key_heads=2)
    twice = kernel_work(tiling, **sizes, num_heads=2, num_key_heads=1, batch_size=2)
    for name, work in one.items():
        for what in ("exponentials", "distinct_bytes", "requested_bytes"):
            if getattr(work, what) is None:
                continue
            doubled = {getattr(more[name], what) for more in (two, twice)}
            assert doubled == {2 * getattr(work, what)}, (name, what)
    # Two heads of queries, and the output of 16 channels with its log-sum-exp; one of keys.
    assert one["forward"].distinct_bytes == 2 * 131 * (2 * 32 + 4) + (131 + 66) * 2 * 32


def test_work_of_kernels_on_symbols_and_bad_sizes():
    tiling = fc.Tiling(forward=(128, 64), key_value=(32, 64), query=(64, 32))
    n, k = sympy.symbols("n k", integer=True, positive=True)
    sizes = dict(num_heads=2, num_key_heads=1, head_dim=73, element_size=2)
    symbolic = kernel_work(tiling, num_latents=n, num_prefix=k, **sizes)
    exact = kernel_work(tiling, num_latents=131, num_prefix=66, **sizes)
    for name, work in symbolic.items():
        for what in ("exponentials", "distinct_bytes"):
            found = sympy.sympify(getattr(work, what)).subs({n: 131, k: 66})
            assert found == getattr(exact[name], what)
    with pytest.raises(TypeError, match=r"num_latents = 1\.5"):
        kernel_work(tiling, num_latents=1.5, num_prefix=0, **sizes)
    with pytest.raises(ValueError, match="num_prefix = -1"):
        kernel_work(tiling, num_latents=1, num_prefix=-1, **sizes)
    for nothing in (0.0, False):
        with pytest.raises(TypeError, match=f"num_prefix = {nothing}"):
            kernel_work(tiling, num_latents=1, num_prefix=nothing, **sizes)
    with pytest.raises(ValueError, match="row_lanes = 0"):
        dataclasses.replace(tiling, row_lanes=0)
