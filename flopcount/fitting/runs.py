"""Tables of training runs, as they are published: columns found by name, every odd row reported."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopcount.laws import FLOPS_PER_PARAM_TOKEN
from flopcount.sizes import quoted
from flopcount.tables import table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]

COLUMN_NAMES: dict[str, frozenset[str]] = {
    "params": frozenset(
        {
            "n",
            "params",
            "parameters",
            "numparams",
            "numparameters",
            "nparams",
            "nparameters",
            "paramcount",
            "modelsize",
            "parametercount",
            "modelparams",
            "modelparameters",
            "totalparams",
            "totalparameters",
        }
    ),
    "tokens": frozenset(
        {
            "d",
            "tokens",
            "numtokens",
            "ntokens",
            "traintokens",
            "trainingtokens",
            "latenttokens",
            "tokencount",
            "totaltokens",
            "datasize",
            "datasetsize",
        }
    ),
    "flops": frozenset(
        {
            "c",
            "flop",
            "flops",
            "trainflop",
            "trainflops",
            "trainingflop",
            "trainingflops",
            "totalflops",
            "compute",
            "trainingcompute",
        }
    ),
    "budget": frozenset(
        {
            "budget",
            "computebudget",
            "flopbudget",
            "flopsbudget",
            "targetflops",
            "isoflop",
            "isoflops",
        }
    ),
    "loss": frozenset(
        {
            "l",
            "loss",
            "finalloss",
            "valloss",
            "validationloss",
            "evalloss",
            "testloss",
            "trainloss",
            "trainingloss",
            "finalvalloss",
        }
    ),
    "run": frozenset({"run", "runid", "runname", "name", "curve", "model"}),
}
"""Headings recognised for each role, in lower case without spaces and punctuation."""


@dataclasses.dataclass(frozen=True)
class FlaggedRow:
    """A row that a reader should know about.

    Attributes:
        row: Its number, the first row under the heading being 1.
        reason: What is odd about it.
        used: Whether the fit uses it all the same.
    """

    row: int
    reason: str
    used: bool


SHOWN_FLAGS = 8
"""Flagged rows that a fit prints; ``to_dict`` holds all."""


def flag_notes(flagged: Sequence[FlaggedRow]) -> list[str]:
    """Flagged rows as lines of text, the first few and how many more there are.

    >>> flag_notes([FlaggedRow(3, "duplicate of row 2", used=False)])
    ['row 3 left out: duplicate of row 2']
    """
    notes = [
        f"row {flag.row} {'used' if flag.used else 'left out'}: {flag.reason}"
        for flag in flagged[:SHOWN_FLAGS]
    ]
    more = flagged[SHOWN_FLAGS:]
    if more:
        left_out = sum(not flag.used for flag in more)
        notes.append(f"and {len(more)} more flagged rows, {left_out} of them left out")
    return notes


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """Training runs, one per row.

    Attributes:
        params: N of every run.
        tokens: D of every run.
        flops: C of every run.
        loss: Its final loss.
        budget: The budget that each was planned for; None without such a column.
        rows: The row that each came from.
        flagged: Rows left out, and rows used that are odd, with reasons.
        columns: The heading used for each role.
        derived: How the quantity without a column was computed; empty if all have one.
    """

    params: FloatArray
    tokens: FloatArray
    flops: FloatArray
    loss: FloatArray
    budget: FloatArray | None
    rows: tuple[int, ...]
    flagged: tuple[FlaggedRow, ...]
    columns: Mapping[str, str]
    derived: str

    @property
    def flops_per_param_token(self) -> float:
        """κ in C = κ·N·D: 6 where that rule gave a column, else C / (N·D) in the geometric mean."""
        import numpy as np

        if self.derived:
            return FLOPS_PER_PARAM_TOKEN

        return float(np.exp(np.mean(np.log(self.flops / self.params / self.tokens))))

    def to_dict(self) -> dict[str, Any]:
        """Size, columns and flagged rows as plain data."""
        return {
            "num_runs": len(self.rows),
            "columns": dict(self.columns),
            "derived": self.derived,
            "flagged": [dataclasses.asdict(flag) for flag in self.flagged],
        }

    def __str__(self) -> str:
        used = ", ".join(f"{role} = {heading!r}" for role, heading in self.columns.items())
        note = f"{used}; {self.derived}" if self.derived else used
        rows = [[flag.row, "yes" if flag.used else "no", flag.reason] for flag in self.flagged]
        return table(["row", "used", "reason"], rows, title=f"{len(self.rows)} runs", note=note)


def _key(heading: str) -> str:
    return re.sub(r"[^a-z0-9]", "", heading.lower())


def find_columns(
    headings: Sequence[str], given: Mapping[str, str | None], roles: Sequence[str]
) -> dict[str, str]:
    """The heading for each role: the one given, else the only one that is recognised.

    Args:
        headings: The table's headings.
        given: Heading by role, where the user named one; None where not.
        roles: The roles to look for; a role without a column is left out.

    Returns:
        Heading by role.

    Raises:
        ValueError: If a given heading does not exist, if headings repeat, or if several match.

    >>> find_columns(["Model Size", "loss"], {}, ["params", "loss"])
    {'params': 'Model Size', 'loss': 'loss'}
    """
    listed = f"columns are {', '.join(repr(heading) for heading in headings)}"
    repeated = sorted({heading for heading in headings if headings.count(heading) > 1})
    if repeated:
        raise ValueError(f"heading {repeated[0]!r} occurs more than once: {listed}")
    found = {}
    for role in roles:
        name = given.get(role)
        if name is not None:
            if name not in headings:
                raise ValueError(f"{role} = {quoted(name)}: expected a column's name; {listed}")
            found[role] = name
            continue
        matching = [heading for heading in headings if _key(heading) in COLUMN_NAMES[role]]
        if len(matching) > 1:
            raise ValueError(
                f"{' and '.join(repr(heading) for heading in matching)} may all be {role}: "
                f"give one as {role}={matching[0]!r}; {listed}"
            )
        if matching:
            found[role] = matching[0]
    return found


def read_table(source: object) -> tuple[list[str], list[list[Any]]]:
    """Headings and rows of a CSV or TSV file, a mapping of columns, or a pandas frame.

    Raises:
        TypeError: If ``source`` is none of these.
        ValueError: If it has no heading, or columns of different lengths.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        with path.open(newline="", encoding="utf-8-sig") as stream:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            lines = [line for line in csv.reader(stream, delimiter=delimiter) if line]
        if not lines:
            raise ValueError(f"source = {quoted(str(path))} is empty: expected a heading")
        return [heading.strip() for heading in lines[0]], [list(line) for line in lines[1:]]
    if hasattr(source, "columns") and hasattr(source, "to_dict"):
        source = source.to_dict("list")
    if not isinstance(source, Mapping):
        raise TypeError(
            f"source = {quoted(source)}: expected a path, a mapping of columns or a pandas frame"
        )
    columns = [list(values) for values in source.values()]
    if len({len(column) for column in columns}) != 1:
        raise ValueError("source has no columns or columns of different lengths: expected one")
    return [str(heading) for heading in source], [list(row) for row in zip(*columns, strict=True)]


def positive(cell: object) -> float | None:
    """The cell as a positive, finite float; None if it is not one."""
    if isinstance(cell, bool) or cell is None:
        return None
    try:
        number = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def parse_rows(
    headings: Sequence[str], rows: Sequence[Sequence[Any]], columns: Mapping[str, str]
) -> tuple[list[tuple[int, dict[str, float]]], list[FlaggedRow]]:
    """The numbers of every row, by role, and the rows that are not numbers."""
    good, flagged = [], []
    for number, row in enumerate(rows, start=1):
        if len(row) != len(headings):
            reason = f"{len(row)} cells under {len(headings)} headings"
            flagged.append(FlaggedRow(number, reason, used=False))
            continue
        cells = {role: row[headings.index(heading)] for role, heading in columns.items()}
        values = {role: positive(cell) for role, cell in cells.items()}
        bad = [role for role, value in values.items() if value is None]
        if bad:
            reason = ", ".join(f"{columns[role]} = {quoted(cells[role])}" for role in bad)
            reason += ": expected a positive number"
            flagged.append(FlaggedRow(number, reason, used=False))
        else:
            good.append((number, {role: value for role, value in values.items() if value}))
    return good, flagged


def read_runs(
    source: object,
    *,
    params: str | None = None,
    tokens: str | None = None,
    flops: str | None = None,
    loss: str | None = None,
    budget: str | None = None,
    drop_highest: int = 0,
) -> Runs:
    """Read final losses of training runs: N, loss, and D or C or both.

    A quantity without a column follows from C = 6·N·D. No row disappears: rows that are not
    numbers and rows that repeat another in all values are left out and reported; rows that repeat
    another's N and D with a different loss are used and reported.

    Args:
        source: A CSV or TSV file, a mapping from heading to column, or a pandas frame.
        params: Heading of N; needed only where it is not recognised, as for the next three.
        tokens: Heading of D.
        flops: Heading of C, training FLOPs.
        loss: Heading of the final loss, in nats or any unit.
        budget: Heading of the planned budget, which groups runs; it stands for C where C has no
            column of its own.
        drop_highest: How many of the highest losses to leave out (reported, too).

    Returns:
        A :class:`Runs`.

    Raises:
        TypeError: If ``source`` is neither a path, a mapping nor a frame.
        ValueError: If a role has no column or several, if no row is usable, or ``drop_highest``
            is negative or leaves nothing.

    Source: C = 6·N·D from Kaplan et al. 2020 (arXiv 2001.08361), section 2.1.

    >>> runs = read_runs({"N": [1e6, 2e6, "x"], "D": [1e8, 1e8, 1e8], "loss": [4.0, 3.5, 3.0]})
    >>> len(runs.rows), runs.flagged[0].row, float(runs.flops[0])
    (2, 3, 600000000000000.0)
    """
    import numpy as np

    if type(drop_highest) is not int or drop_highest < 0:
        raise ValueError(f"drop_highest = {quoted(drop_highest)}: expected an integer >= 0")
    headings, rows = read_table(source)
    given = {"params": params, "tokens": tokens, "flops": flops, "loss": loss, "budget": budget}
    columns = find_columns(headings, given, list(given))
    if "budget" in columns and "flops" not in columns:
        columns["flops"] = columns["budget"]
    has_quantity = sum(role in columns for role in ("params", "tokens", "flops")) >= 2
    if "loss" not in columns or not has_quantity:
        raise ValueError(
            f"found columns {columns}: expected loss and two of params, tokens, flops; name them, "
            f"as in params={headings[0]!r}; columns are {', '.join(map(repr, headings))}"
        )
    good, flagged = parse_rows(headings, rows, columns)
    highest = sorted(good, key=lambda entry: -entry[1]["loss"])[:drop_highest]
    for number, values in highest:
        reason = f"loss {values['loss']:.4g} is among the {drop_highest} highest"
        flagged.append(FlaggedRow(number, reason, used=False))
    dropped = {number for number, _ in highest}
    seen: dict[tuple[float, ...], tuple[int, float]] = {}
    kept = []
    for number, values in good:
        if number in dropped:
            continue
        size = tuple(value for role, value in values.items() if role != "loss")
        if size in seen:
            first, other = seen[size]
            same = other == values["loss"]
            reason = f"duplicate of row {first}" if same else f"repeats the size of row {first}"
            flagged.append(FlaggedRow(number, reason, used=not same))
            if same:
                continue
        seen.setdefault(size, (number, values["loss"]))
        kept.append((number, values))
    if not kept:
        raise ValueError(f"no usable row among {len(rows)}: expected positive numbers")
    arrays = {role: np.array([values[role] for _, values in kept]) for role in columns}
    derived = ""
    if "tokens" not in arrays:
        arrays["tokens"] = arrays["flops"] / (FLOPS_PER_PARAM_TOKEN * arrays["params"])
        derived = "tokens from D = C / 6N"
    elif "flops" not in arrays:
        arrays["flops"] = FLOPS_PER_PARAM_TOKEN * arrays["params"] * arrays["tokens"]
        derived = "FLOPs from C = 6ND"
    elif "params" not in arrays:
        arrays["params"] = arrays["flops"] / (FLOPS_PER_PARAM_TOKEN * arrays["tokens"])
        derived = "parameters from N = C / 6D"
    return Runs(
        params=arrays["params"],
        tokens=arrays["tokens"],
        flops=arrays["flops"],
        loss=arrays["loss"],
        budget=arrays.get("budget"),
        rows=tuple(number for number, _ in kept),
        flagged=tuple(sorted(flagged, key=lambda flag: flag.row)),
        columns=columns,
        derived=derived,
    )
