"""Rows of ``attention.csv`` by case: who ran it, and who was fastest."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from benchmarks.attention.implementations import IMPLEMENTATIONS
from benchmarks.attention.shapes import Shape

Row = dict[str, str]
OURS = next(name for name, implementation in IMPLEMENTATIONS.items() if implementation.ours)
# What the aim is stated against: a peer at its best, whichever way of calling it that is.
PEERS = {
    "SDPA-flash": ("sdpa-flash", "flash-split"),
    "cuDNN": ("cudnn", "cudnn-split"),
    "FlexAttention": ("flex", "flex-max", "flex-max-tma"),
    "FA2": ("fa2",),
    "FA3": ("fa3",),
    "FA4": ("fa4",),
    "eager": ("eager",),
}


def shape_of(row: Row) -> Shape:
    """The shape that a row of ``attention.csv`` is about."""
    return Shape(**{name: int(row[name]) for name in Shape.__dataclass_fields__})


def by_case(rows: Iterable[Row]) -> dict[tuple[Shape, str], dict[str, Row]]:
    """Rows by implementation, for each shape and pass."""
    cases: dict[tuple[Shape, str], dict[str, Row]] = collections.defaultdict(dict)
    for row in rows:
        cases[shape_of(row), row["pass"]][row["implementation"]] = row
    return dict(cases)


def best(case: dict[str, Row], names: Iterable[str]) -> float | None:
    """The least time of those that ran and were right, in milliseconds."""
    times = [
        float(case[name]["ms"]) for name in names if name in case and case[name]["status"] == "ok"
    ]
    return min(times, default=None)


def over(case: dict[str, Row], peers: Iterable[str]) -> float | None:
    """Our time over the least of some of :data:`PEERS`; None where either is not measured."""
    ours = best(case, [OURS])
    theirs = best(case, [name for peer in peers for name in PEERS[peer]])
    return None if ours is None or theirs is None else ours / theirs
