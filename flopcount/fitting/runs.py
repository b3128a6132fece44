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

_NAMES = {
    "params": "n params parameters numparams numparameters nparams nparameters paramcount "
    "parametercount modelsize modelparams modelparameters totalparams totalparameters",
    "tokens": "d tokens numtokens ntokens traintokens trainingtokens latenttokens tokencount "
    "totaltokens tokensseen datasize datasetsize",
    "flops": "c flop flops trainflop trainflops trainingflop trainingflops totalflop totalflops "
    "compute trainingcompute",
    "budget": "budget computebudget flopbudget flopsbudget targetflops isoflop isoflops",
    "loss": "l",
    "run": "run runid runname name curve model",
}
COLUMN_NAMES = {role: frozenset(names.split()) for role, names in _NAMES.items()}
"""Headings recognised for each role, in lower case without spaces and punctuation; of a heading
with slashes, as loggers write it, the last part. A loss is also whatever ends in "loss"."""
_UNITS = {
    1e3: "k thousand thousands",
    1e6: "m mn million millions",
    1e9: "b bn billion billions g giga",
    1e12: "t tn trillion trillions tera",
}
UNITS = {name: scale for scale, names in _UNITS.items() for name in names.split()}
"""What "(M)" behind a heading, or "M" behind a count, multiplies by."""
_PREFIXES = UNITS | {"p": 1e15, "peta": 1e15, "e": 1e18, "exa": 1e18, "z": 1e21, "zetta": 1e21}
COUNTS = ("params", "tokens", "flops", "budget")
"""Roles that may carry a unit; a loss is taken as it stands."""


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
        selection: Which rows were asked for, and how many others there are; empty if all were.
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
    selection: str = ""

    @property
    def described(self) -> str:
        """What was read as what, in a line."""
        return described(self.columns, self.derived, self.selection)

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
            "units": _units(self.columns),
            "derived": self.derived,
            "selection": self.selection,
            "flagged": [dataclasses.asdict(flag) for flag in self.flagged],
        }

    def __str__(self) -> str:
        rows = [[flag.row, "yes" if flag.used else "no", flag.reason] for flag in self.flagged]
        title = f"{len(self.rows)} runs"
        return table(["row", "used", "reason"], rows, title=title, note=self.described)


def described(columns: Mapping[str, str], derived: str, selection: str) -> str:
    """What was read as what, in a line: headings with units, what is derived, which rows."""
    units = _units(columns)
    used = ", ".join(
        f"{role} = {heading!r}" + (f" in {units[role]:g}" if units[role] != 1 else "")
        for role, heading in columns.items()
    )
    return "; ".join(part for part in (used, derived, selection) if part)


def _units(columns: Mapping[str, str]) -> dict[str, float]:
    return {role: _named(heading, role)[1] for role, heading in columns.items()}


def _named(heading: str, role: str) -> tuple[str, float]:
    """The heading's name, and the unit that it states for the role.

    >>> _named("Params (M)", "params"), _named("throughput/total_gflops", "flops")
    (('params', 1000000.0), ('totalflops', 1000000000.0))
    """
    text, scale = heading.lower().rsplit("/", 1)[-1].strip(), 1.0
    if role in COUNTS:
        unit = re.fullmatch(r"(.*?)\s*[(\[]\s*(?:in\s+)?(\w+)\s*[)\]]", text)
        if unit and unit[2] in UNITS:
            text, scale = unit[1], UNITS[unit[2]]
        flops = re.fullmatch(r"(.*?)(giga|tera|peta|exa|zetta|g|t|p|e|z)(flops?)", text)
        if role in ("flops", "budget") and flops and not flops[1][-1:].isalpha():
            text, scale = flops[1] + flops[3], scale * _PREFIXES[flops[2]]
    return re.sub(r"[^a-z0-9]", "", text), scale


def _matches(heading: str, role: str) -> bool:
    name, _ = _named(heading, role)
    return name in COLUMN_NAMES[role] or (role == "loss" and name.endswith("loss"))


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
        matching = [heading for heading in headings if _matches(heading, role)]
        if len(matching) > 1:
            raise ValueError(
                f"{' and '.join(repr(heading) for heading in matching)} may all be {role}: "
                f"give one as {role}={matching[0]!r}; {listed}"
            )
        if matching:
            found[role] = matching[0]
    return found


def read_table(source: object) -> tuple[list[str], list[list[Any]]]:
    """Headings and rows of a file with commas, tabs or semicolons, a mapping, or a pandas frame.

    Raises:
        TypeError: If ``source`` is none of these.
        ValueError: If it cannot be read, has no heading, or columns of different lengths.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            with path.open(newline="", encoding="utf-8-sig") as stream:
                heading = stream.readline()
                stream.seek(0)
                delimiter = next((mark for mark in ",\t;" if mark in heading), ",")
                lines = [line for line in csv.reader(stream, delimiter=delimiter) if line]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"source = {quoted(str(path))}: expected a file of rows that can be read: "
                f"{quoted(error)}"
            ) from error
        if not lines:
            raise ValueError(f"source = {quoted(str(path))} is empty: expected a heading")
        return [heading.strip() for heading in lines[0]], [list(line) for line in lines[1:]]
    if hasattr(source, "columns") and hasattr(source, "to_dict"):
        source = source.to_dict("list")
    if not isinstance(source, Mapping):
        raise TypeError(
            f"source = {quoted(source)}: expected a path, a mapping of columns or a pandas frame"
        )
    if not all(isinstance(heading, str | int) for heading in source):
        raise TypeError(f"source has the headings {quoted(list(source))}: expected text")
    columns = [list(values) for values in source.values()]
    if len({len(column) for column in columns}) != 1:
        raise ValueError("source has no columns or columns of different lengths: expected one")
    return [str(heading) for heading in source], [list(row) for row in zip(*columns, strict=True)]


def cell_text(cell: object) -> str:
    """The cell as text; of an object that cannot be shown, its type."""
    try:
        return str(cell).strip()
    except Exception:  # the object is the caller's, and so may be its __str__
        return f"a {type(cell).__name__}"


SMALLEST, LARGEST = 1e-100, 1e100
"""Numbers outside are no measurement, and their products would leave the range of floats."""


def positive(cell: object, counts: bool = False) -> float | None:
    """The cell as a positive float between 1e-100 and 1e100; None if it is not one.

    Args:
        cell: A number, or text; ``"1,234,567"`` is a number.
        counts: Whether a unit may follow it.

    >>> positive("1.5 Billion", counts=True), positive("3.2"), positive("3.2M"), positive("n/a")
    (1500000000.0, 3.2, None, None)
    """
    if isinstance(cell, bool) or cell is None:
        return None
    scale = 1.0
    if isinstance(cell, str):
        cell = cell.strip()
        if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", cell):
            cell = cell.replace(",", "")
        with_unit = re.fullmatch(r"([\d.eE+-]*\d\.?)\s*([A-Za-z]+)", cell)
        if counts and with_unit and with_unit[2].lower() in UNITS:
            cell, scale = with_unit[1], UNITS[with_unit[2].lower()]
    try:
        number = scale * float(cell)  # type: ignore[arg-type]
    except Exception:  # the object is the caller's, and so may be its __float__
        return None
    return number if SMALLEST <= number <= LARGEST else None


def parse_rows(
    headings: Sequence[str], rows: Sequence[Sequence[Any]], columns: Mapping[str, str]
) -> tuple[list[tuple[int, dict[str, float]]], list[FlaggedRow]]:
    """The numbers of every row, by role, and the rows that are not numbers."""
    good, flagged = [], []
    units = _units(columns)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(headings):
            reason = f"{len(row)} cells under {len(headings)} headings"
            flagged.append(FlaggedRow(number, reason, used=False))
            continue
        cells = {role: row[headings.index(heading)] for role, heading in columns.items()}
        values = {role: positive(cell, role in COUNTS) for role, cell in cells.items()}
        bad = [role for role, value in values.items() if value is None]
        if bad:
            reason = ", ".join(f"{columns[role]} = {quoted(cells[role])}" for role in bad)
            reason += ": expected a positive number"
            flagged.append(FlaggedRow(number, reason, used=False))
        else:
            numbers = {role: value * units[role] for role, value in values.items() if value}
            good.append((number, numbers))
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
    where: Mapping[str, str] | None = None,
    optima: bool = False,
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
        where: Value by heading: only the rows with these values are read, of a table that holds
            several experiments. How many others there are is reported.
        optima: Whether the rows are compute-optimal models; then a loss may be missing.

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
    if not (optima or "loss" in columns) or not has_quantity:
        raise ValueError(
            f"found columns {columns}: expected loss and two of params, tokens, flops; name them, "
            f"as in params={headings[0]!r}; columns are {', '.join(map(repr, headings))}"
        )
    good, flagged = parse_rows(headings, rows, columns)
    selected = rows_where(headings, rows, where or {})
    good = [entry for entry in good if entry[0] in selected]
    flagged = [flag for flag in flagged if flag.row in selected]
    if drop_highest and "loss" not in columns:
        raise ValueError(f"drop_highest = {drop_highest}: expected 0 without a column of losses")
    highest = sorted(good, key=lambda entry: -entry[1].get("loss", 0.0))[:drop_highest]
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
            same = other == values.get("loss", math.nan) or "loss" not in columns
            reason = f"duplicate of row {first}" if same else f"repeats the size of row {first}"
            flagged.append(FlaggedRow(number, reason, used=not same))
            if same:
                continue
        seen.setdefault(size, (number, values.get("loss", math.nan)))
        kept.append((number, values))
    if not kept:
        raise ValueError(f"no usable row among {len(selected)}: expected positive numbers")
    arrays = {role: np.array([values[role] for _, values in kept]) for role in columns}
    arrays.setdefault("loss", np.full(len(kept), math.nan))
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
        selection=describe_selection(where or {}, len(selected), len(rows)),
    )


def rows_where(
    headings: Sequence[str], rows: Sequence[Sequence[Any]], where: Mapping[str, str]
) -> set[int]:
    """Numbers of the rows that hold every value asked for."""
    if not isinstance(where, Mapping):
        raise TypeError(f"where = {quoted(where)}: expected a mapping from heading to value")
    for heading in where:
        if heading not in headings:
            raise ValueError(
                f"where = {quoted(heading)}: expected a column's name; columns are "
                f"{', '.join(map(repr, headings))}"
            )
    places = {headings.index(heading): cell_text(value) for heading, value in where.items()}
    return {
        number
        for number, row in enumerate(rows, start=1)
        if all(at < len(row) and cell_text(row[at]) == value for at, value in places.items())
    }


def describe_selection(where: Mapping[str, str], selected: int, total: int) -> str:
    """Which rows were asked for, and how many of the table's they are; empty if all."""
    if not where:
        return ""
    asked = ", ".join(f"{heading} = {cell_text(value)}" for heading, value in where.items())
    return f"{selected} of {total} rows with {asked}"
