"""Masks by enumeration: every query and key one by one, with a cache that is really kept."""

import itertools

import pytest

from flopcount.masks import Causal, Chunked, Full, InPasses, Packed

WINDOWS = [Causal(), *(Causal(window) for window in range(1, 6))]
CHUNKS = [Chunked(size) for size in range(1, 5)]
SIZES = [(n, s) for s in range(1, 8) for n in range(1, s + 1)]


def admits(mask, query, key):
    """Whether the query of a position admits the key of another, both from 0."""
    if isinstance(mask, Full):
        return True
    if key > query:
        return False
    if isinstance(mask, Chunked):
        return query // mask.size == key // mask.size
    return mask.window is None or query - key < mask.window


def reach(mask):
    """How many earlier keys a cache keeps; None for all."""
    if isinstance(mask, Chunked):
        return mask.size - 1
    return None if mask.window is None else mask.window - 1


def caches(mask, first, passes):
    """The cache before each pass, and after the last, as a list of positions."""
    cache = []
    for position in range(first):
        cache.append(position)
        cache = cache if reach(mask) is None else cache[max(0, len(cache) - reach(mask)) :]
    yield list(cache)
    for size in passes:
        for _ in range(size):
            cache.append(first)
            first += 1
        cache = cache if reach(mask) is None else cache[max(0, len(cache) - reach(mask)) :]
        yield list(cache)


@pytest.mark.parametrize("mask", [Full(), *WINDOWS, *CHUNKS], ids=repr)
def test_pairs(mask):
    for n, s in SIZES:
        admitted = sum(admits(mask, query, key) for query in range(s - n, s) for key in range(s))
        assert mask.pairs(n, s) == InPasses(mask, 1).pairs(n, s) == admitted


@pytest.mark.parametrize("mask", [*WINDOWS, *CHUNKS], ids=repr)
def test_what_a_cache_keeps_and_passes_multiply(mask):
    for (n, s), chunk in itertools.product(SIZES, range(1, 6)):
        first = s - n
        passes = [min(chunk, n - begin) for begin in range(0, n, chunk)]
        before = [len(cache) for cache in caches(mask, first, passes)]
        assert mask.kept(first) == before[0]
        assert mask.kept(s) == before[-1]
        multiplied = sum(q * (kept + q) for q, kept in zip(passes, before, strict=False))
        assert mask.in_passes(n, s, chunk) == multiplied
        assert InPasses(mask, chunk).rectangle(n, s) == multiplied
        assert InPasses(mask, 1).in_passes(n, s, chunk) == multiplied
        assert mask.rectangle(n, s) == n * (before[0] + n)
        whole = n // chunk
        assert mask.kept_before(whole, first, chunk) == sum(before[:whole])


def test_attention_to_all_keeps_no_cache():
    for n, s in itertools.product(range(1, 5), repeat=2):
        assert Full().rectangle(n, s) == Full().in_passes(n, s, 2) == n * s
        assert (Full().kept(s), Full().kept_before(n, s, 2)) == (0, 0)


@pytest.mark.parametrize("mask", [Full(), Causal(), Causal(3), Chunked(2)], ids=repr)
def test_documents(mask):
    # Two sequences of 7 positions: documents of 4 and 3, of 3 and 1, and padding.
    packed = Packed(mask, ((4, 1), (3, 2), (1, 1)), batch=2)
    alone = {
        length: sum(admits(mask, q, k) for q in range(length) for k in range(length))
        for length in (4, 3, 1)
    }
    assert packed.pairs(7, 7) == alone[4] + 2 * alone[3] + alone[1]
    assert packed.rectangle(7, 7) == 2 * 7 * 7
    in_passes = 2 * sum(
        q * (before + q) for q, before in ((3, 0), (3, kept(mask, 3)), (1, kept(mask, 6)))
    )
    assert packed.in_passes(7, 7, 3) == (2 * 49 if isinstance(mask, Full) else in_passes)


def kept(mask, positions):
    if isinstance(mask, Full):
        return 0
    return len(next(caches(mask, positions, [])))
