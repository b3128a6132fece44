"""Documents that are packed into sequences: their lengths, as a histogram."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from flopcount.sizes import Size, as_objects, quoted, require_at_most, require_size

Histogram = tuple[tuple[Size, Size], ...]
"""Lengths, each with how many documents have it."""


def histogram(documents: Any, seq_len: Size, batch_size: Size) -> Histogram:
    """The lengths of a batch's documents, each with how many have it.

    Args:
        documents: Lengths, or a mapping from lengths to how many documents have them.
        seq_len: n, positions of a sequence.
        batch_size: B, sequences.

    Raises:
        TypeError: If it is neither.
        ValueError: If there is none, one does not fit a sequence, or all do not fit the batch,
            whatever sequence each is put in (:func:`fewest_sequences`).

    >>> histogram([3, 5, 3], seq_len=8, batch_size=2)
    ((3, 2), (5, 1))
    """
    if isinstance(documents, Mapping):
        given = list(documents.items())
    elif (
        isinstance(documents, Iterable)
        and getattr(documents, "ndim", True)
        and not isinstance(documents, bytes)
    ):
        listed = [require_size("documents", length) for length in documents]
        ints = all(type(length) is int for length in listed)
        given = list(collections.Counter(listed).items()) if ints else [(x, 1) for x in listed]
    else:
        raise TypeError(
            f"documents = {quoted(documents)}: expected a list of lengths, or a mapping from "
            "lengths to how many documents have them"
        )
    if not given:
        raise ValueError(f"documents = {quoted(documents)}: expected one at least")
    histogram = []
    for length, number in given:
        size, count = require_size("documents", length), require_size("documents", number)
        require_at_most("documents", size, "seq_len", seq_len, "the positions of a sequence")
        histogram.append((size, count))
    whole = as_objects(seq_len) * as_objects(batch_size)
    require_at_most("documents' positions", filled(tuple(histogram)), "batch_size * seq_len", whole)
    if all(type(size) is int for size in (seq_len, batch_size, *itertools.chain(*histogram))):
        fewest = fewest_sequences(tuple(histogram), seq_len)
        if fewest > batch_size:
            raise ValueError(
                f"documents = {quoted(documents)} with batch_size = {batch_size}: expected at "
                f"least {fewest} sequences of {seq_len}, since no document is cut"
            )
    return tuple(histogram)


def fewest_sequences(documents: Histogram, seq_len: int) -> int:
    """Sequences that whole documents take at least: Martello and Toth's bound L2.

    For a length a ≤ n/2, each document of more than n - a has a sequence of its own, with no place
    for another of a or more; each other one of more than n/2 likewise, but documents of a to n/2
    may stand beside it. It is the largest over all a; more may be needed.

    Source: Martello and Toth 1990, Lower bounds and reduction procedures for the bin packing
    problem, section 2.

    >>> fewest_sequences(((40, 3),), 64), fewest_sequences(((24, 4), (40, 2)), 64)
    (3, 3)
    """
    fewest = 0
    for least in {0, *(length for length, _ in documents if 2 * length <= seq_len)}:
        alone = sum(number for length, number in documents if length > seq_len - least)
        large = [each for each in documents if seq_len < 2 * each[0] <= 2 * (seq_len - least)]
        small = [each for each in documents if least <= each[0] and 2 * each[0] <= seq_len]
        others = sum(number for _, number in large)
        beside = filled(tuple(small)) - (others * seq_len - filled(tuple(large)))
        fewest = max(fewest, alone + others + max(0, -(-beside // seq_len)))
    return fewest


def filled(documents: Histogram) -> Size:
    """Positions of all documents."""
    total: Size = 0
    for length, number in documents:
        total = total + as_objects(length) * as_objects(number)
    return total
