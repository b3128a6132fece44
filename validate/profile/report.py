"""A profile as tables, and what has changed since another one."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

from flopcount.tables import paragraph, table
from validate.profile.profiling import UNITS, KernelProfile, Line, Profile, ProfileError, Result
from validate.profile.scheduling import REASONS
from validate.profile.timing import Modelled, is_tie

COMPARED = (
    "instructions of warps",
    "tensor-core FLOPs",
    "special functions",
    "global load requests",
    "global load sectors",
    "global store requests",
    "global store sectors",
    "shared wavefronts",
)
"""Quantities of which a change may not execute more."""
Plain = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Change:
    """A quantity before and now.

    Attributes:
        kernel: The kernel's name; ``"all kernels"`` for their sum.
        quantity: What is counted.
        before: How much it was.
        now: How much it is.
    """

    kernel: str
    quantity: str
    before: int
    now: int

    @property
    def percent(self) -> float:
        """By how much it grew."""
        if not self.before:
            return float("inf") if self.now else 0.0
        return 100 * (self.now / self.before - 1)

    @property
    def shown(self) -> str:
        """The growth as text."""
        return f"{self.percent:+.3g} %" if self.before else "new"


def plain(profile: Profile) -> Plain:
    """A profile as what JSON holds."""
    held = dataclasses.asdict(profile)
    for entry, kernel in zip(held["kernels"], profile.kernels, strict=True):
        entry["binds"] = kernel.binds if kernel.clocks else ""
    return held


def read(path: Path) -> Profile:
    """A profile that ``--json`` wrote.

    Raises:
        ProfileError: If it is none.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        kernels = []
        for entry in held.pop("kernels"):
            entry.pop("binds")
            lines = [Line(**line) for line in entry.pop("lines")]
            time = Modelled(**entry.pop("modelled"))
            kernels.append(KernelProfile(**entry, lines=lines, modelled=time))
        results = tuple(
            Result(**entry | {"shape": tuple(entry["shape"])}) for entry in held.pop("results")
        )
        return Profile(**held, results=results, kernels=tuple(kernels))
    except OSError as error:
        raise ProfileError(f"compare = {str(path)!r}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ProfileError(f"compare = {str(path)!r}: expected what --json printed") from None


def changes(before: Profile, now: Profile) -> list[Change]:
    """Every compared quantity of all kernels and of each, those alone that changed."""
    counted: list[dict[str, dict[str, int]]] = []
    for profile in (before, now):
        total: collections.Counter[str] = collections.Counter()
        for kernel in profile.kernels:
            total.update(kernel.counts)
        counted.append({"all kernels": dict(total)} | {k.name: k.counts for k in profile.kernels})
    quantities = [
        Change(kernel, quantity, *(side.get(kernel, {}).get(quantity, 0) for side in counted))
        for kernel in dict.fromkeys((*counted[1], *counted[0]))
        for quantity in COMPARED
    ]
    return [change for change in quantities if change.before != change.now]


def compared(before: Profile, now: Profile, threshold: float) -> tuple[str, bool]:
    """What changed, as text, and whether anything grew by more than ``threshold`` percent."""
    differences = changes(before, now)
    grown = [change for change in differences if change.percent > threshold]
    parts = []
    if before.triton != now.triton:
        parts.append(f"Triton {before.triton} compiled what is compared with, {now.triton} this.")
    first = next(
        (c for c in differences if (c.kernel, c.quantity) == ("all kernels", COMPARED[0])), None
    )
    if first is None:
        parts.append("This change executes as many instructions.")
    else:
        more = "more" if first.percent > 0 else "fewer"
        share = f"{abs(first.percent):.3g} % " if first.before else ""
        parts.append(
            f"This change executes {share}{more} instructions: {first.before:,} before, "
            f"{first.now:,} now."
        )
    if differences:
        rows = [[c.kernel, c.quantity, c.before, c.now, c.shown] for c in differences]
        parts.append(table(["kernel", "quantity", "before", "now", "change"], rows, keys=2))
    parts += _times(before, now)
    if grown:
        parts.append(f"{len(grown)} quantities grew by more than {threshold:g} %.")
    return "\n\n".join(map(paragraph_unless_table, parts)), bool(grown)


def _times(before: Profile, now: Profile) -> list[str]:
    """How the modelled times of kernels that both have changed; nothing where none did."""
    old = {kernel.name: kernel.modelled for kernel in before.kernels if kernel.launches}
    rows = []
    for kernel in now.kernels:
        time = kernel.modelled
        was = old.get(kernel.name)
        if kernel.launches and was and was != time:
            low, high = time.against(was)
            verdict = "a tie" if is_tie(low, high) else "faster" if high < 1 else "slower"
            shares = f"{low:.3f} to {high:.3f}"
            rows.append([kernel.name, f"{was.middle:,.0f}", f"{time.middle:,.0f}", shares, verdict])
    headings = ["kernel", "before", "now", "share over the ranges", ""]
    title = "Clocks, modelled, not measured; the status does not depend on them"
    return [table(headings, rows, title=title)] if rows else []


def paragraph_unless_table(text: str) -> str:
    """Text wrapped to the terminal; a table is so already."""
    return text if "\n" in text else paragraph(text)


def _modelled(device: str, kernels: list[KernelProfile]) -> str:
    """Modelled times, and what warps do with them."""
    ranges = [kernel.modelled.range() for kernel in kernels]
    rows: list[list[Any]] = [
        ["clocks", *(f"{k.modelled.middle:,.0f}" for k in kernels)],
        ["clocks, range", *(f"{low:,.0f} to {high:,.0f}" for low, high in ranges)],
        ["of memory at least", *(f"{k.modelled.bytes:,.0f}" for k in kernels)],
    ]
    for reason in REASONS:
        clocks = [k.modelled.stalls.get(reason, 0) for k in kernels]
        totals = [sum(k.modelled.stalls.values()) for k in kernels]
        shares = [f"{x / total:.1%}" for x, total in zip(clocks, totals, strict=True)]
        rows.append([f"warps: {reason}", *shares])
    return table(
        ["", *(kernel.name for kernel in kernels)],
        rows,
        title=f"Modelled, not measured: a launch on {device}, over the ranges of what is guessed",
    )


def _loops(name: str, lines: list[Line]) -> list[str]:
    """What each loop executes, where there is one."""
    places = sorted({line.where for line in lines}, key=lambda where: (where != "no loop", where))
    if len(places) < 2:
        return []
    rows = [
        [quantity, *(sum(x.counts[quantity] for x in lines if x.where == at) for at in places)]
        for quantity in lines[0].counts
    ]
    return [table(["executed", *places], rows, title=f"{name}, by loop")]


def as_text(profile: Profile, lines: int) -> str:
    """A profile as tables.

    Args:
        profile: The profile.
        lines: How many lines of source to show of each kernel, those with most instructions.
    """
    kernels = profile.kernels
    parts = [
        table(
            ["result", "shape", "dtype", "sum", "sum of magnitudes", "sha256"],
            [
                [r.name, "×".join(map(str, r.shape)), r.dtype, f"{r.total:.6g}",
                 f"{r.magnitude:.6g}", r.sha256]
                for r in profile.results
            ],
            title="What the function returned",
        )
    ] if profile.results else []  # fmt: skip
    counted = [k for k in kernels if k.launches]
    if counted:
        quantities = list(dict.fromkeys(name for kernel in counted for name in kernel.counts))
        rows: list[list[Any]] = [
            ["launches", *(k.launches for k in counted)],
            ["programs", *(k.programs for k in counted)],
            *([name, *(k.counts.get(name, 0) for k in counted)] for name in quantities),
        ]
        parts.append(table(["executed", *(k.name for k in counted)], rows))
        parts.append(
            table(
                ["kernel", *UNITS, "binds"],
                [[k.name, *(f"{k.clocks[unit]:,.0f}" for unit in UNITS), k.binds] for k in counted],
                title=f"Clocks for which each unit of {profile.device} is busy: no time",
            )
        )
        parts.append(_modelled(profile.device, counted))
    for kernel in counted:
        named = kernel.name + (f", {kernel.configuration}" * bool(kernel.configuration))
        parts += _loops(named, kernel.lines)
        shown = kernel.lines[:lines]
        total = kernel.counts["instructions of warps"]
        rows = [
            [x.where, x.source, x.counts["instructions"], f"{x.counts['instructions'] / total:.1%}",
             x.counts["global sectors"], x.counts["shared wavefronts"]]
            for x in shown
        ]  # fmt: skip
        left = len(kernel.lines) - len(shown)
        parts.append(
            table(
                ["where", "line", "instructions", "share", "sectors", "wavefronts"],
                rows,
                title=named,
                note=f"and {left} lines with fewer instructions" if left else "",
                keys=2,
            )
        )
    findings = profile.findings
    warning = ["Touched too early, or not to be touched:", *findings] if findings else []
    parts.append("\n".join(map(paragraph, warning)) or "Nothing is touched that must not be.")
    return "\n\n".join(parts)
