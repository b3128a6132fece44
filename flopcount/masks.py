"""Masks: which query-key pairs an attention admits, which are multiplied, and in which tiles.

Each mask answers these questions about n queries, the last of s key positions:

- ``pairs``: the pairs that it admits, for level ``causal``;
- ``rectangle``: the pairs that an unfused implementation multiplies, for level ``dense``;
- ``in_passes``: the same where the queries come in several passes, behind a cache of those before;
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

    def in_passes(self, queries: Size, keys: Size, chunk: Size) -> Size:
        """Query-key pairs that it multiplies in passes of ``chunk`` queries, and of the rest."""

    def tiles(self, queries: Size, keys: Size, block: tuple[Size, Size], owner: Owner) -> Size:
        """Tiles of ``block`` = (queries, keys) that the fused kernels visit."""


class SelfMask(Mask, Protocol):
    """A mask of queries and keys of the same positions, where a cache may serve."""

    def kept(self, positions: Size) -> Size:
        """Positions that a cache keeps of ``positions``, for the queries that follow."""

    def kept_before(self, passes: Size, first: Size, chunk: Size) -> Size:
        """Positions that the cache holds before each of some passes, added up.

        Args:
            passes: How many.
            first: Positions before the first of them.
            chunk: Positions of a pass.
        """


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

    def in_passes(self, queries: Size, keys: Size, chunk: Size) -> Size:
        """N · s: no pass has fewer keys."""
        return queries * keys

    def kept(self, positions: Size) -> Size:
        """None, since no later query follows."""
        return 0

    def kept_before(self, passes: Size, first: Size, chunk: Size) -> Size:
        """None."""
        return 0

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
        """n(2s - n + 1)/2; with a window S(s) - S(s - n), see :meth:`admitted_up_to`."""
        if self.window is None:
            return halve(queries * (2 * keys - queries + 1))
        return self.admitted_up_to(keys) - self.admitted_up_to(keys - queries)

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
        return queries * (self.kept(keys - queries) + queries)

    def in_passes(self, queries: Size, keys: Size, chunk: Size) -> Size:
        """Σ n'·(kept + n') over passes of n' = A queries, A the chunk, and one of the rest.

        With s' = s - n positions before, m = ⌊n/A⌋ whole chunks and r = n - m·A queries behind
        them: A·(K + m·A) + r·(:meth:`kept` (s' + m·A) + r), K from :meth:`kept_before`. One query
        a pass executes no masked pair: it is :meth:`pairs`.

        >>> Causal().in_passes(5, 7, 2)  # 2·4 + 2·6 + 1·7
        27
        >>> Causal(window=4).in_passes(5, 7, 2)  # 2·(2 + 2) + 2·(3 + 2) + 1·(3 + 1)
        22
        """
        before = keys - queries
        whole = queries // chunk
        rest = queries - whole * chunk
        of_whole = self.kept_before(whole, before, chunk) + whole * chunk
        return chunk * of_whole + rest * (self.kept(before + whole * chunk) + rest)

    def kept(self, positions: Size) -> Size:
        """All; with a window min(s, W - 1), since the next query's own key is its last.

        >>> Causal().kept(9), Causal(window=3).kept(9), Causal(window=3).kept(1)
        (9, 2, 1)
        """
        if self.window is None:
            return positions
        return minimum(positions, self.window - 1)

    def kept_before(self, passes: Size, first: Size, chunk: Size) -> Size:
        """Σ min(x + j·A, W - 1) over j = 0..m - 1, with x positions before the first pass.

        Without a window m·x + A·m(m - 1)/2. With one, t = min(m, ⌈(W - 1 - x)/A⌉) passes, none
        below 0, find fewer than W - 1: t·x + A·t(t - 1)/2 + (m - t)·(W - 1).

        >>> Causal(window=4).kept_before(3, 1, 1)  # 1 + 2 + 3
        6
        >>> Causal(window=4).kept_before(3, 2, 2)  # 2 + 3 + 3
        8
        """
        growing = passes
        if self.window is not None:
            missing = self.window - 1 - minimum(first, self.window - 1)
            growing = minimum(passes, ceil_divide(missing, chunk))
        total = growing * first + chunk * halve(growing * growing - growing)
        if self.window is None:
            return total
        return total + (passes - growing) * (self.window - 1)

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

    def in_passes(self, queries: Size, keys: Size, chunk: Size) -> Size:
        """As in a window of A: a cache keeps keys of the chunk before, which no query sees.

        >>> Chunked(3).in_passes(2, 5, 1), Chunked(3).pairs(2, 5)  # 3 + 3, and 1 + 2
        (6, 3)
        """
        return Causal(self.size).in_passes(queries, keys, chunk)

    def kept(self, positions: Size) -> Size:
        """Min(s, A - 1), as in a window.

        >>> Chunked(3).kept(9)
        2
        """
        return Causal(self.size).kept(positions)

    def kept_before(self, passes: Size, first: Size, chunk: Size) -> Size:
        """As in a window of A."""
        return Causal(self.size).kept_before(passes, first, chunk)

    def tiles(self, queries: Size, keys: Size, block: tuple[Size, Size], owner: Owner) -> Size:
        """No kernel here runs chunks.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"chunks of {quoted(self.size)} at level 'executed': expected none, since the kernels "
            "run no chunks"
        )


@dataclasses.dataclass(frozen=True)
class InPasses:
    """A mask whose queries come in several passes, each behind a cache of those before.

    Attributes:
        mask: Which pairs count.
        chunk: Queries of a pass; one in decoding.

    >>> InPasses(Causal(), 1).rectangle(3, 5), Causal().rectangle(3, 5)  # 3 + 4 + 5, and 3 · 5
    (12, 15)
    """

    mask: Mask
    chunk: Size

    @property
    def source(self) -> str:
        """The mask's."""
        return self.mask.source

    def pairs(self, queries: Size, keys: Size) -> Size:
        """Those of the mask: passes make no difference."""
        return self.mask.pairs(queries, keys)

    def rectangle(self, queries: Size, keys: Size) -> Size:
        """The sum over passes."""
        return self.mask.in_passes(queries, keys, self.chunk)

    def in_passes(self, queries: Size, keys: Size, chunk: Size) -> Size:
        """Those of the mask."""
        return self.mask.in_passes(queries, keys, chunk)

    def tiles(self, queries: Size, keys: Size, block: tuple[Size, Size], owner: Owner) -> Size:
        """The kernels read no cache.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"passes of {quoted(self.chunk)} at level 'executed': expected one, since the kernels "
            "read no cache"
        )


@dataclasses.dataclass(frozen=True)
class Packed:
    """A mask within documents that lie end to end in the sequences of a batch.

    It is asked for the whole batch: no query sees another document's keys, and positions count from
    each document's first. What no document fills is padding, which admits nothing.

    Attributes:
        mask: Of a sequence that is one document.
        documents: Lengths, each with how many documents have it.
        batch: B, sequences.

    >>> packed = Packed(Causal(), ((3, 2), (1, 1)), batch=1)  # 6 + 6 + 1 pairs, in 8 positions
    >>> packed.pairs(8, 8), packed.rectangle(8, 8)
    (13, 64)
    """

    mask: Mask
    documents: tuple[tuple[Size, Size], ...]
    batch: Size

    source = "derived here: the sum over documents of the pairs that each would have alone"

    def pairs(self, queries: Size, keys: Size) -> Size:
        """Those of every document."""
        total: Size = 0
        for length, number in self.documents:
            total = total + number * self.mask.pairs(length, length)
        return total

    def rectangle(self, queries: Size, keys: Size) -> Size:
        """B whole rectangles: other documents' keys are multiplied, and hidden."""
        return self.batch * self.mask.rectangle(queries, keys)

    def in_passes(self, queries: Size, keys: Size, chunk: Size) -> Size:
        """B times what sequences of one document multiply."""
        return self.batch * self.mask.in_passes(queries, keys, chunk)

    def tiles(self, queries: Size, keys: Size, block: tuple[Size, Size], owner: Owner) -> Size:
        """The kernels know of no documents.

        Raises:
            ValueError: Always.
        """
        raise ValueError("documents at level 'executed': expected None, since the kernels run none")
