"""What fused attention kernels execute: whole tiles, padded head dims, products done again.

Letters: n latents (queries), k prefix positions, c channels of a head; a tile is M queries × J keys
of one head's scores. A kernel issues each product of a tile in whole, masked or not, and over the
head dim rounded up: 2·M·J·c̄ FLOPs. The prefix and the latents are two ranges of keys, each cut
into tiles from its own beginning.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flopcount.masks import Causal, Full, Owner
from flopcount.rows import Product
from flopcount.sizes import Size, ceil_divide, halve, is_symbolic, quoted, require_size

SOURCE = (
    "derived here: tiles visited, 2·M·J FLOPs each per padded channel; the backward pass "
    "multiplies seven or eight times"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a set of fused attention kernels cuts its work: what executed FLOPs depend on.

    Each pass is (M, J): queries and keys of a tile. Programs of the forward pass and of the query
    gradient own M queries and loop over keys; programs of the key and value gradient own J keys and
    loop over queries. The owned block is a multiple of the other, so that the diagonal starts where
    a tile starts. Sizes may be SymPy symbols; write the owned block as a product with the other.

    Attributes:
        forward: (M, J) of the forward pass: two products per tile.
        key_value: (M, J) of the gradient of keys and values: ``key_value_products`` per tile.
        query: (M, J) of the gradient of queries: three products per tile.
        head_dim_multiple: The head dim is rounded up to a multiple of this.
        key_value_products: 4, or 5 where keys and values each have a loop of their own, so that
            scores are multiplied in both.
        row_lanes: Threads that hold a row of scores, each of which corrects the row's sum and reads
            its statistics: 4 in the tensor cores' accumulators (PTX ISA, wgmma's fragments).

    Raises:
        TypeError: If a block is not a pair of ints or symbols, or another size is neither.
        ValueError: If a size is not positive, or an owned block no multiple of the other.

    >>> Tiling(forward=(128, 64), key_value=(64, 64), query=(64, 64)).padded(73)
    80

    """

    forward: tuple[Size, Size]
    key_value: tuple[Size, Size]
    query: tuple[Size, Size]
    head_dim_multiple: Size = 16
    key_value_products: int = 4
    row_lanes: int = 4

    def __post_init__(self) -> None:
        """Validate every block."""
        _require_count("head_dim_multiple", self.head_dim_multiple)
        _require_count("row_lanes", self.row_lanes)
        _require_count("key_value_products", self.key_value_products)
        if self.key_value_products not in (4, 5):
            raise ValueError(
                f"key_value_products = {quoted(self.key_value_products)}: expected 4 or 5"
            )
        for name in ("forward", "key_value", "query"):
            block = getattr(self, name)
            if not isinstance(block, tuple) or len(block) != 2:
                raise TypeError(f"{name} = {quoted(block)}: expected a tuple (queries, keys)")
            for size in block:
                _require_count(name, size)
            owned, visited = block[::-1] if name == "key_value" else block
            if owned % visited:
                owner = "keys" if name == "key_value" else "queries"
                raise ValueError(
                    f"{name} = {quoted(block)}: expected the block of {owner} to be a multiple of "
                    "the other"
                )

    def sizes(self) -> dict[str, Size]:
        """Every size by its name: a tuple's two by their tuple's."""
        blocks = {
            f"{name}[{i}]": getattr(self, name)[i]
            for name in ("forward", "key_value", "query")
            for i in range(2)
        }
        return blocks | {"head_dim_multiple": self.head_dim_multiple}

    def padded(self, head_dim: Size) -> Size:
        """c̄: the head dim rounded up to a multiple of ``head_dim_multiple``."""
        return ceil_divide(head_dim, self.head_dim_multiple) * self.head_dim_multiple


def _require_count(name: str, value: Any) -> None:
    if type(value) is not int and not is_symbolic(value):
        raise TypeError(f"{name} = {quoted(value)} is a {type(value).__name__}: expected an int")
    require_size(name, value)


@dataclasses.dataclass(frozen=True)
class Tiled:
    """A product of attention as fused kernels execute it.

    Attributes:
        depth: c̄, the padded depth of each product.
        forward: Query-key pairs that the tiles of the forward pass cover.
        backward: Pairs of each product of the backward pass.

    """

    depth: Size
    forward: Size
    backward: tuple[Size, ...]


def tiled(product: Product, tiling: Tiling) -> Tiled:
    """A product of attention as fused kernels execute it, in the forward and the backward pass.

    Forward, the kernel issues q·kᵀ ("scores") and weights·v ("values") once per tile. Backward,
    nothing of the size of the scores was kept, so both passes multiply anew:

    - ``key_value``, four products: scores k·qᵀ again, the gradients of v, of the weights and of k
      (five where scores are multiplied in two loops);
    - ``query``, three products: scores q·kᵀ again, the gradients of the weights and of q.

    Scores multiplied again, and the gradients of q and k, are of the term "scores"; the gradients
    of v and, twice, of the weights are of "values".

    Args:
        product: A product with a mask: M queries, N keys, K channels.
        tiling: The kernels' tiling.

    Returns:
        The padded depth and, as pairs, what all visited tiles cover.

    Raises:
        ValueError: If the kernels do not run the mask.

    Source: derived here from the kernels' loops; see the ``kernels`` of this project.

    """

    def covered(name: str, owner: Owner) -> Size:
        block: tuple[Size, Size] = getattr(tiling, name)
        mask: Any = product.mask
        return mask.tiles(product.M, product.N, block, owner) * (block[0] * block[1])

    key_value, query = covered("key_value", "keys"), covered("query", "queries")
    backward = (key_value, key_value, query)
    if product.term == "scores":
        backward = (key_value,) * (tiling.key_value_products - 2) + (query, query)
    return Tiled(tiling.padded(product.K), covered("forward", "queries"), backward)


@dataclasses.dataclass(frozen=True)
class KernelWork:
    """What a fused attention kernel executes beside its products, all its launches of a layer.

    Attributes:
        exponentials: Evaluated by threads.
        distinct_bytes: Of global memory that is read, and of that which is written, each once.
        requested_bytes: That threads load and store; None where it depends on the compiler's
            layout of a tile.

    """

    exponentials: Size
    distinct_bytes: Size
    requested_bytes: Size | None


STATISTICS_ROWS = 256
"""Statistics of rows are stored up to a multiple of it, which is one of every block."""


def kernel_work(
    tiling: Tiling,
    *,
    num_latents: Size,
    num_prefix: Size,
    num_heads: Size,
    num_key_heads: Size,
    head_dim: Size,
    element_size: int,
    batch_size: Size = 1,
    gradient_dims: tuple[Size, Size] | None = None,
) -> dict[str, KernelWork]:
    """Exponentials and global bytes of each fused kernel in an attention layer.

    A head's queries, keys, values and the output's gradient are read with c̄ channels, its output
    has c, and its gradients as many as are asked for. With blocks of M queries and J keys,
    b = ⌈n/M⌉ or ⌈n/J⌉ blocks that programs own, and T tiles:

    - forward: T·M·(J + lanes) exponentials, of scores and of what corrects each row's sum. A
      program requests its queries once and min((i + 1)·M, n) + k keys and values, in all
      n + M·b(b - 1)/2 + b·k for each query head;
    - ``rows``: the sums Σ out · grad_out, without exponentials, and for later passes two statistics
      of every row in fp32, up to a multiple of 256 rows;
    - ``key_value``: T·M·J exponentials in each launch. A program requests its keys and values once,
      and of each tile M queries (the last is repeated beyond the end), M statistics of each kind,
      and the rows of the output's gradient that exist: n·b - J·b(b - 1)/2 for the latents' keys,
      n·⌈k/J⌉ for the prefix's. Where values and keys have a launch each, the values' reads neither
      values nor the second statistic;
    - ``query``: T·M·J exponentials; keys and values as in forward; statistics of b·M rows, by each
      lane that holds the row.

    Args:
        tiling: The kernels' tiling.
        num_latents: n, queries.
        num_prefix: k, further keys before them; 0 where there are none.
        num_heads: Query heads.
        num_key_heads: Key-value heads, which divide them.
        head_dim: c, channels of a head.
        element_size: Bytes of an element of queries, keys and values.
        batch_size: Sequences.
        gradient_dims: Channels of the gradients of queries and keys, and of those of values; c
            where they are not given.

    Returns:
        By kernel: ``"forward"``, ``"rows"``, ``"key_value"``, ``"query"``.

    Raises:
        TypeError: If a size is neither an int nor a symbol.
        ValueError: If a size is too small.

    Source: derived here from the kernels' loops.

    Example, two blocks of 128 queries over 131 latents: 3 tiles of 128 × 128:
        >>> tiling = Tiling(forward=(128, 128), key_value=(64, 128), query=(128, 128))
        >>> sizes = dict(num_prefix=0, num_heads=1, num_key_heads=1, head_dim=73, element_size=2)
        >>> work = kernel_work(tiling, num_latents=131, **sizes)["forward"]
        >>> work.exponentials == 3 * 128 * (128 + 4)
        True
        >>> work.distinct_bytes == 131 * (3 * 80 + 73) * 2 + 131 * 4
        True

    """
    sizes = {
        "num_latents": num_latents, "num_heads": num_heads, "num_key_heads": num_key_heads,
        "head_dim": head_dim, "element_size": element_size, "batch_size": batch_size,
    }  # fmt: skip
    for name, size in sizes.items():
        _require_count(name, size)
    if type(num_prefix) is not int or num_prefix:
        _require_count("num_prefix", num_prefix)
    n, k, heads, key_heads = num_latents, num_prefix, num_heads, num_key_heads
    stored = tiling.padded(head_dim)
    # Bytes of a row of one head: of an operand, of the output and of what gradients are stored as.
    operand, result = stored * element_size, head_dim * element_size
    key_result, value_result = (
        size * element_size for size in gradient_dims or (head_dim, head_dim)
    )
    statistic = 4

    def tiles(name: str, owner: Owner) -> tuple[Size, Size]:
        block: tuple[Size, Size] = getattr(tiling, name)
        return Causal().tiles(n, n, block, owner), Full().tiles(n, k, block, owner)

    def scores(name: str, owner: Owner) -> Size:
        block: tuple[Size, Size] = getattr(tiling, name)
        return sum(tiles(name, owner)) * block[0] * block[1]

    def keys_visited(name: str) -> Size:
        block = getattr(tiling, name)[0]
        blocks = ceil_divide(n, block)
        return n + block * halve(blocks * (blocks - 1)) + blocks * k

    def every(exponentials: Size, distinct: Size, requested: Size | None) -> KernelWork:
        times = batch_size
        return KernelWork(
            times * exponentials, times * distinct, None if requested is None else times * requested
        )

    corrections = sum(tiles("forward", "queries")) * tiling.forward[0] * tiling.row_lanes
    keys_once = key_heads * (n + k) * 2 * operand
    out = heads * n * (result + statistic)
    forward = every(
        heads * (scores("forward", "queries") + corrections),
        heads * n * operand + keys_once + out,
        heads * (n * operand + keys_visited("forward") * 2 * operand) + out,
    )

    padded_rows = ceil_divide(n, STATISTICS_ROWS) * STATISTICS_ROWS
    rows = every(0, heads * (n * (2 * result + statistic) + padded_rows * 2 * statistic), None)

    launches = tiling.key_value_products - 3
    block_queries, block_keys = tiling.key_value
    blocks = ceil_divide(n, block_keys)
    gradient_rows = n * blocks - block_keys * halve(blocks * (blocks - 1))
    gradient_rows += n * ceil_divide(k, block_keys)
    visits = sum(tiles("key_value", "keys")) * block_queries
    seen_rows = ceil_divide(n, block_queries) * block_queries
    ranges = 1 if type(k) is int and k == 0 else 2
    gradients = key_result + value_result
    # Keys once more, and one statistic more, where values have a launch of their own.
    keys_and_gradients = key_heads * (n + k) * ((1 + launches) * operand + gradients)
    statistics = (1 + launches) * statistic
    key_value = every(
        heads * launches * scores("key_value", "keys"),
        heads * ranges * (launches * n * 2 * operand + seen_rows * statistics) + keys_and_gradients,
        heads * (launches * operand * (visits + gradient_rows) + visits * statistics)
        + keys_and_gradients,
    )

    owned_rows = ceil_divide(n, tiling.query[0]) * tiling.query[0] * 2 * statistic
    own = n * (2 * operand + key_result)
    query = every(
        heads * scores("query", "queries"),
        heads * (own + owned_rows) + keys_once,
        heads * (own + owned_rows * tiling.row_lanes + keys_visited("query") * 2 * operand),
    )
    return {"forward": forward, "rows": rows, "key_value": key_value, "query": query}
