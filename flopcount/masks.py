"""Masks: which query-key pairs an attention admits, which are multiplied, and in which tiles.

Each mask answers three questions about n queries, the last of s key positions:

- ``pairs``: the pairs that it admits, for level ``causal``;
- ``rectangle``: the pairs that an unfused implementation multiplies, for level ``dense``;
- ``tiles``: the tiles that our fused kernels visit, for level ``executed``.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

from flopcount.sizes import Size, ceil_divide, halve, minimum, quoted

Owner = Literal["queries", "keys"]
"""What a kernel's program owns a block of, while it loops over the other."""


class Mask(Protocol):
    """What every mask can be asked."""

    @property
    def source(self) -> str:
        """Where the number of pairs stands, or how it is derived."""

    def pairs(self, queries: Size, keys: Size) -> Size:
        """Query-key pairs that the mask admits."""

    def rectangle(self, queries: Size, keys: Size) -> Size:
        """Query-key pairs that an unfused implementation multiplies."""

    def tiles(self, queries: Size, keys: Size, block: tuple[Size, Size], owner: Owner) -> Size:
        """Tiles of ``block`` = (queries, keys) that the fused kernels visit."""


@dataclasses.dataclass(frozen=True)
class Full:
    """Every query admits every key.

    >>> Full().pairs(3, 4), Full().tiles(130, 100, (128, 64), "queries")
    (12, 4)
    """

    source = "derived here: every query admits every key"

    def pairs(self, queries: Size, keys: Size) -> Size:
        """Every pair: n · s."""
        return queries * keys

    rectangle = pairs

    def tiles(self, queries: Size, keys: Size, block: tuple[Size, Size], owner: Owner) -> Size:
        """⌈n/M⌉ · ⌈s/J⌉: any pass visits every tile once, whatever its programs own."""
        block_queries, block_keys = block
        return ceil_divide(queries, block_queries) * ceil_divide(keys, block_keys)


@dataclasses.dataclass(frozen=True)
class Causal:
    """A query admits its own key and the earlier ones, with a window the last W of these alone.

    Attributes:
        window: W, the own position included; None for no limit.

    >>> Causal().pairs(3, 3), Causal().pairs(3, 5), Causal(window=2).pairs(3, 3)
    (6, 12, 5)
    """

    window: Size | None = None

    @property
    def source(self) -> str:
        """How the number of pairs is derived."""
        if self.window is None:
            return "derived here: query i admits keys 1..i, so n(n + 1)/2 of the n² pairs count"
        return "derived here: query i admits min(i, W) keys"

    def pairs(self, queries: Size, keys: Size) -> Size:
        """n(s - n) + n(n + 1)/2; with a window S(s) - S(s - n), see :meth:`admitted_up_to`."""
        earlier = keys - queries
        if self.window is None:
            return queries * earlier + halve(queries * (queries + 1))
        return self.admitted_up_to(keys) - self.admitted_up_to(earlier)

    def admitted_up_to(self, positions: Size) -> Size:
        """S(x) = Σ min(i, W) over i = 1..x: t(t + 1)/2 + (x - t)·W with t = min(x, W).

        >>> Causal(window=2).admitted_up_to(4)  # 1 + 2 + 2 + 2
        7
        """
        window = self.window
        ramp = minimum(positions, window)
        return halve(ramp * (ramp + 1)) + (positions - ramp) * window

    def rectangle(self, queries: Size, keys: Size) -> Size:
        """N · s; with a window n · (min(s - n, W - 1) + n), since a cache keeps no more keys.

        >>> Causal(window=3).rectangle(2, 9)  # keys 6 and 7 of the cache, 8 and 9
        8
        """
        if self.window is None:
            return queries * keys
        return queries * (minimum(keys - queries, self.window - 1) + queries)

    def tiles(self, queries: Size, keys: Size, block: tuple[Size, Size], owner: Owner) -> Size:
        """Tiles of the causal square of n queries and as many keys.

        Where programs own M = a·J queries: a·T(T + 1)/2 + ⌈n/J⌉ with T = ⌈n/M⌉ - 1 blocks before
        the last. Block i = 0, 1, … visits the a·i tiles below its diagonal and those on it: a of
        them, or for the last block as many as reach n. The last block so visits ⌈n/J⌉ tiles and
        block i < T visits a·(i + 1).

        Where programs own J = b·M keys: T·⌈n/M⌉ - b·T(T - 1)/2 with T = ⌈n/J⌉ blocks; block
        j = 0, 1, … is visited by all ⌈n/M⌉ blocks of queries but the b·j before its own first key.

        Raises:
            ValueError: If there is a window, which the kernels do not run.

        Source: derived here.

        >>> Causal().tiles(300, 300, (128, 64), "queries")  # 2 + 4 + 5
        11
        >>> Causal().tiles(300, 300, (64, 128), "keys")  # 5 + 3 + 1
        9
        """
        if self.window is not None:
            raise ValueError(
                f"window = {quoted(self.window)} at level 'executed': expected None, since the "
                "kernels run no window"
            )
        block_queries, block_keys = block
        if owner == "queries":
            before = ceil_divide(queries, block_queries) - 1
            ratio = block_queries // block_keys
            return ratio * halve(before * (before + 1)) + ceil_divide(queries, block_keys)
        blocks = ceil_divide(queries, block_keys)
        skipped = (block_keys // block_queries) * halve(blocks * (blocks - 1))
        return blocks * ceil_divide(queries, block_queries) - skipped


@dataclasses.dataclass(frozen=True)
class Chunked:
    """A query admits its own key and the earlier ones of its chunk; chunks lie end to end.

    Attributes:
        size: A, positions of a chunk.

    >>> Chunked(2).pairs(3, 3), Chunked(2).pairs(2, 5), Chunked(8).pairs(3, 3)
    (4, 3, 6)
    """

    size: Size

    source = "derived here: query i admits the keys of its own chunk, ((i - 1) mod A) + 1 of them"

    def pairs(self, queries: Size, keys: Size) -> Size:
        """S(s) - S(s - n), see :meth:`admitted_up_to`."""
        return self.admitted_up_to(keys) - self.admitted_up_to(keys - queries)

    def admitted_up_to(self, positions: Size) -> Size:
        """S(x) = q·A(A + 1)/2 + r(r + 1)/2 with q = ⌊x/A⌋ whole chunks and r = x - q·A.

        >>> Chunked(3).admitted_up_to(5)  # 1 + 2 + 3 + 1 + 2
        9
        """
        size = self.size
        chunks = positions // size
        rest = positions - chunks * size
        return chunks * halve(size * (size + 1)) + halve(rest * (rest + 1))

    def rectangle(self, queries: Size, keys: Size) -> Size:
        """N · (min(s - n, A - 1) + n): a cache keeps A - 1 keys, whatever the chunk they are of.

        >>> Chunked(3).rectangle(2, 9)
        8
        """
        return Causal(self.size).rectangle(queries, keys)

    def tiles(self, queries: Size, keys: Size, block: tuple[Size, Size], owner: Owner) -> Size:
        """No kernel here runs chunks.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"chunks of {quoted(self.size)} at level 'executed': expected none, since the kernels "
            "run no chunks"
        )
