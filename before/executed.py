"""What fused attention kernels execute: whole tiles, padded head dims, products done again.

Letters: n latents (queries), k prefix positions, c channels of a head; a tile is M queries × J keys
of one head's scores. A kernel issues each product of a tile in whole, masked or not, and over the
head dim rounded up: 2·M·J·c̄ FLOPs. The prefix and the latents are two ranges of keys, each cut
into tiles from its own beginning.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from before.rows import Matmul
from before.sizes import Size, ceil_divide, halve, is_symbolic, quoted, require_size

ATTENTION_TERMS = ("scores", "values")
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

    def __post_init__(self) -> None:
        """Validate every block."""
        _require_count("head_dim_multiple", self.head_dim_multiple)
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


def tiles_in_rectangle(num_queries: Size, num_keys: Size, block: tuple[Size, Size]) -> Size:
    """Tiles over a range of keys that every query admits: ⌈n/M⌉·⌈k/J⌉.

    Source: derived here; any pass visits every tile of the rectangle once.

    >>> tiles_in_rectangle(130, 100, (128, 64))
    4
    """
    block_queries, block_keys = block
    return ceil_divide(num_queries, block_queries) * ceil_divide(num_keys, block_keys)


def tiles_by_query_block(num_latents: Size, block: tuple[Size, Size]) -> Size:
    """Tiles of the causal square where programs own M = a·J queries: a·T(T + 1)/2 + ⌈n/J⌉.

    T = ⌈n/M⌉ − 1 blocks of queries lie before the last one. Block i = 0, 1, … visits the a·i tiles
    below its diagonal and those on it: a of them, or for the last block as many as reach n. The
    last block so visits ⌈n/J⌉ tiles and block i < T visits a·(i + 1).

    Source: derived here.

    >>> tiles_by_query_block(300, (128, 64))  # 2 + 4 + 5
    11
    """
    block_queries, block_keys = block
    before = ceil_divide(num_latents, block_queries) - 1
    ratio = block_queries // block_keys
    return ratio * halve(before * (before + 1)) + ceil_divide(num_latents, block_keys)


def tiles_by_key_block(num_latents: Size, block: tuple[Size, Size]) -> Size:
    """Tiles of the causal square where programs own J = b·M keys: T·⌈n/M⌉ − b·T(T − 1)/2.

    T = ⌈n/J⌉ blocks of keys; block j = 0, 1, … is visited by all ⌈n/M⌉ blocks of queries but the
    b·j before its own first key.

    Source: derived here.

    >>> tiles_by_key_block(300, (64, 128))  # 5 + 3 + 1
    9
    """
    block_queries, block_keys = block
    blocks = ceil_divide(num_latents, block_keys)
    ratio = block_keys // block_queries
    skipped = ratio * halve(blocks * (blocks - 1))
    return blocks * ceil_divide(num_latents, block_queries) - skipped


def tiled(matmul: Matmul, tiling: Tiling) -> Matmul:
    """A product of attention as fused kernels execute it, in the forward and the backward pass.

    Forward, the kernel issues q·kᵀ ("scores") and weights·v ("values") once per tile. Backward,
    nothing of the size of the scores was kept, so both passes multiply anew:

    - ``key_value``, four products: scores k·qᵀ again, the gradients of v, of the weights and of k
      (five where scores are multiplied in two loops);
    - ``query``, three products: scores q·kᵀ again, the gradients of the weights and of q.

    Scores multiplied again, and the gradients of q and k, are of the term "scores"; the gradients
    of v and, twice, of the weights are of "values".

    Args:
        matmul: A term of :data:`ATTENTION_TERMS` at level ``causal``: M queries, N keys, K
            channels; ``pairs`` given where the mask is causal.
        tiling: The kernels' tiling.

    Returns:
        The product with padded depth and, as pairs, what all visited tiles cover.

    Source: derived here from the kernels' loops; see the ``kernels`` of this project.

    """
    causal = matmul.pairs is not None

    def covered(name: str) -> Size:
        block: tuple[Size, Size] = getattr(tiling, name)
        if not causal:
            tiles = tiles_in_rectangle(matmul.M, matmul.N, block)
        elif name == "key_value":
            tiles = tiles_by_key_block(matmul.M, block)
        else:
            tiles = tiles_by_query_block(matmul.M, block)
        return tiles * (block[0] * block[1])

    key_value, query = covered("key_value"), covered("query")
    backward = (key_value, key_value, query)
    if matmul.term == "scores":
        backward = (key_value,) * (tiling.key_value_products - 2) + (query, query)
    return dataclasses.replace(
        matmul,
        K=tiling.padded(matmul.K),
        pairs=covered("forward"),
        backward_pairs=backward,
        source=SOURCE,
    )
