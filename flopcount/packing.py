"""Documents that are packed into sequences: their lengths, as a histogram."""

from __future__ import annotations

import collections
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
        ValueError: If there is none, one does not fit a sequence, or all do not fit the batch.

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
    return tuple(histogram)


def filled(documents: Histogram) -> Size:
    """Positions of all documents."""
    total: Size = 0
    for length, number in documents:
        total = total + as_objects(length) * as_objects(number)
    return total
