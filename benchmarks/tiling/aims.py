"""Modelled clocks of our attention as a page shows them, and what they should be shares of."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.attention.shapes import Shape
from benchmarks.counters.profiler import TIMES, Kernel
from benchmarks.tiling.modelled import NAMES, Row
from models.results import markdown

HEAD_DIMS = (64, 73, 78, 91, 128)
LINES = {
    ("forward", "forward"): "forward",
    ("forward", "all"): "forward and padding",
    ("backward", "key_value"): "gradients of keys and values",
    ("backward", "query"): "gradients of queries",
    ("backward", "all"): "backward, all kernels",
}
"""What is shown, by pass and kernel."""

Size = tuple[int, int, int, str, str]
"""Head dim, prefix, batch, pass and kernel: :attr:`benchmarks.tiling.modelled.Row.case`."""


class Aim(NamedTuple):
    """What a share of modelled clocks should be at most.

    Attributes:
        what: Its name.
        phase, kernel: Of what.
        others: ``"before"`` or ``"fla-core"``.
        most: The share.
        head_dims: Where.
    """

    what: str
    phase: str
    kernel: str
    others: str
    most: float
    head_dims: tuple[int, ...]


UNEVEN, EVEN = (73, 78, 91), (64, 128)
AIMS = (
    Aim("forward and padding, of 77ef064's", "forward", "all", "before", 0.90, UNEVEN),
    Aim("forward kernel alone, of 77ef064's", "forward", "forward", "before", 0.90, UNEVEN),
    Aim("forward, of 77ef064's", "forward", "all", "before", 0.95, EVEN),
    Aim("backward, of 77ef064's", "backward", "all", "before", 0.70, (*UNEVEN, *EVEN)),
    Aim("forward and padding, of fla-core's", "forward", "all", "fla-core", 0.55, UNEVEN),
    Aim("forward kernel alone, of fla-core's", "forward", "forward", "fla-core", 0.55, UNEVEN),
    Aim("forward, of fla-core's", "forward", "all", "fla-core", 1.0, EVEN),
    Aim("backward, of fla-core's", "backward", "all", "fla-core", 1.0, EVEN),
)
"""Kernels of commit 77ef064 read heads of any width in place; later ones pad them before."""
AIM_HEADINGS = ("modelled clocks", "head dims", "at most", "reached", "shares", "most at")


def clocks_by_size(
    rows: Iterable[Row], before: Iterable[Row] = (), measured: Iterable[Row] = ()
) -> str:
    """Thousands of clocks, measured ones in parentheses, and shares of others', as markdown.

    Args:
        rows: Ours and fla-core's.
        before: Ours before.
        measured: What a GPU has measured of ours.
    """
    mine, theirs, then, there = _by_case(rows, before, measured)
    lines: dict[tuple[str, str, int, int], dict[str, str]] = {}
    for size, row in mine.items():
        head_dim, prefix, batch, *case = size
        padded = case != ["forward", "all"] or row.middle != _kernel_alone(mine, size).middle
        if head_dim not in HEAD_DIMS or tuple(case) not in LINES or not padded:
            continue
        shares = [
            f"{row.middle / others[size].middle:.2f}" for others in (then, theirs) if size in others
        ]
        cell = f"{row.middle / 1000:.1f}"
        if size in there:
            cell += f" ({there[size].middle / 1000:.1f})"
        line = lines.setdefault((case[0], case[1], prefix, batch), {})
        line[str(head_dim)] = ": ".join((cell, ", ".join(shares))) if shares else cell
    headings = ("kernels", "k", "batch", *map(str, HEAD_DIMS))
    body = []
    for phase, kernel in LINES:
        of_kernel = {key: line for key, line in lines.items() if key[:2] == (phase, kernel)}
        for (*_, prefix, batch), line in sorted(of_kernel.items()):
            start = {"kernels": LINES[phase, kernel], "k": str(prefix), "batch": str(batch)}
            body.append(dict.fromkeys(headings, "") | start | line)
    return markdown(body, headings)


def aims_table(rows: Iterable[Row], before: Iterable[Row]) -> str:
    """In how many sizes each of :data:`AIMS` is reached, as markdown."""
    mine, theirs, then, _ = _by_case(rows, before, ())
    body = []
    for aim in AIMS:
        others = then if aim.others == "before" else theirs
        shares = {
            size: row.middle / others[size].middle
            for size, row in mine.items()
            if size in others and size[3:] == (aim.phase, aim.kernel) and size[0] in aim.head_dims
        }
        if shares:
            reached = sum(share <= aim.most for share in shares.values())
            head_dim, prefix, batch, *_ = max(shares, key=lambda size: shares[size])
            cells = (
                aim.what,
                ", ".join(map(str, sorted(aim.head_dims))),
                f"{aim.most:.2f}",
                f"{reached} of {len(shares)}",
                f"{min(shares.values()):.2f} to {max(shares.values()):.2f}",
                f"{head_dim}, k = {prefix}, batch {batch}",
            )
            body.append(dict(zip(AIM_HEADINGS, cells, strict=True)))
    return markdown(body, AIM_HEADINGS)


def _by_case(
    rows: Iterable[Row], before: Iterable[Row], measured: Iterable[Row]
) -> list[dict[Size, Row]]:
    rows = list(rows)
    groups = (
        [row for row in rows if row.whose == "ours"],
        [row for row in rows if row.whose != "ours"],
        before,
        measured,
    )
    return [{row.case: row for row in group} for group in groups]


def _kernel_alone(rows: dict[Size, Row], size: Size) -> Row:
    return rows[(*size[:4], "forward")]


def measured_rows(cases: Iterable[tuple[Shape, Iterable[Kernel]]]) -> list[Row]:
    """Rows of launches that a GPU has measured.

    Args:
        cases: Shapes with their profiled launches, in order; a library's are left out. The backward
            pass begins where the rows' products are computed.
    """
    rows = []
    for shape, kernels in cases:
        totals: collections.Counter[tuple[str, str]] = collections.Counter()
        phase = "forward"
        for kernel in kernels:
            if kernel.name.startswith("void "):
                continue
            phase = "backward" if kernel.name == "row_products" else phase
            for name in (NAMES.get(kernel.name, kernel.name), "all"):
                totals[phase, name] += kernel.counts[TIMES[1]] or 0
        size = shape.head_dim, shape.prefix, shape.batch
        rows += [Row("H200", *size, *case, *3 * [clocks]) for case, clocks in totals.items()]
    return rows
