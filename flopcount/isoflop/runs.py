"""Tables of training runs, as they are published: columns found by name, every odd row reported."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flopcount.isoflop.columns import (
    FlaggedRow,
    cells_of,
    describe_selection,
    find_columns,
    heading_name,
    is_perplexity,
    may_be_rate,
    missing,
    no_usable_row,
    parse_rows,
    pooled_experiments,
    positive,
    read_table,
    rows_where,
    unknown_unit,
)
from flopcount.isoflop.laws import FLOPS_PER_PARAM_TOKEN
from flopcount.isoflop.results import rows_of
from flopcount.sizes import quoted, require_flag
from flopcount.tables import Shown, Table

if TYPE_CHECKING:
    from flopcount.isoflop.results import FloatArray

RULE = "6ND"
"""In place of the heading of C: no column, but C = 6·N·D."""
SMALLEST_COUNT = 1e3
"""A median N or D below is more likely a count in millions, or another quantity."""
LIKELY_RATIOS = (1.0, 100.0)
"""Of C / (N·D), about 6: a median outside is said."""
POSSIBLE_RATIOS = (1e-2, 1e4)
"""A median outside is refused, unless the user has named C's column."""

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
class Runs(Shown):
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
        warnings: What a reader should know before using a fit of them.
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
    warnings: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        """What was read as what, C / 6ND where all three were read, and warnings, a line each."""
        import numpy as np

        lines = [described(self.columns, self.derived, self.selection)]
        if not self.derived:
            ratios = self.flops / self.params / self.tokens / FLOPS_PER_PARAM_TOKEN
            low, middle, high = np.quantile(ratios, [0, 0.5, 1]).tolist()
            lines.append(f"C / 6ND is {middle:.3g} at the median, {low:.3g} to {high:.3g}")
        return "\n".join([*lines, *warning_lines(self.warnings)])

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
            "warnings": list(self.warnings),
            "flagged": [dataclasses.asdict(flag) for flag in self.flagged],
        }

    def records(self, **more: Sequence[float]) -> list[dict[str, Any]]:
        """One dictionary per run, with further columns if given."""
        columns = {
            "row": self.rows,
            "params": self.params.tolist(),
            "tokens": self.tokens.tolist(),
            "flops": self.flops.tolist(),
            "loss": self.loss.tolist(),
            **({} if self.budget is None else {"budget": self.budget.tolist()}),
        }
        return rows_of(columns | more)

    def _tables(self) -> list[Table | str]:
        rows = [[flag.row, "yes" if flag.used else "no", flag.reason] for flag in self.flagged]
        title = f"{len(self.rows)} runs"
        return [Table(["row", "used", "reason"], rows, title=title, note=self.described)]


def warning_lines(warnings: Sequence[str]) -> list[str]:
    """Warnings as lines of text.

    >>> warning_lines(["odd"])
    ['warning: odd']
    """
    return [f"warning: {warning}" for warning in warnings]


def described(columns: Mapping[str, str], derived: str, selection: str) -> str:
    """What was read as what, in a line: headings with units, what is derived, which rows."""
    units = _units(columns)
    used = ", ".join(
        f"{role} = {heading!r}" + (f" in {units[role]:g}" if units[role] != 1 else "")
        for role, heading in columns.items()
    )
    return "; ".join(part for part in (used, derived, selection) if part)


def _units(columns: Mapping[str, str]) -> dict[str, float]:
    return {role: heading_name(heading, role)[1] for role, heading in columns.items()}


def odd_quantities(
    values: Mapping[str, FloatArray],
    columns: Mapping[str, str],
    cells: Mapping[str, object],
    named: bool,
) -> list[str]:
    """What contradicts itself in a table, as warnings; raises where it cannot be.

    Args:
        values: N, D, C by role, measured and derived.
        columns: The heading of each that was measured.
        cells: Its cell in the first row that is used.
        named: Whether the user has named C's column.

    Raises:
        ValueError: If the columns cannot be what their headings say.
    """
    import numpy as np

    warnings = [
        f"{role} = {heading!r}: the unit {unit!r} is not known; numbers are taken as they stand"
        for role, heading in columns.items()
        if (unit := unknown_unit(heading, role))
    ]
    if is_perplexity(columns.get("loss", "")):
        warnings.append(f"loss = {columns['loss']!r} is named a perplexity: loss = ln ppl")

    def shown(roles: Iterable[str]) -> str:
        return ", ".join(
            f"{role} = {columns[role]!r} holds {quoted(cells[role])}"
            for role in roles
            if role in columns
        )

    for role in ("params", "tokens"):
        median = float(np.median(values[role]))
        if role in columns and median < SMALLEST_COUNT:
            warnings.append(
                f"{shown([role])}: a median of {median:.4g} is below {SMALLEST_COUNT:g}; a heading "
                f"states a unit as in '{role} (M)'"
            )
        elif role not in columns and median < SMALLEST_COUNT:
            derived = f"{shown(columns)}: {role} from C = 6ND would be {median:.3g} at the median"
            if median < 1 and not named:
                raise ValueError(f"{derived}: a rate or a context length is no budget")
            warnings.append(f"{derived}; are units right, and is C a total?")
    if not {"params", "tokens", "flops"} <= columns.keys():
        if may_be_rate(columns.get("flops", "")) and not named:
            raise ValueError(
                f"{shown(['flops'])}: a total or a rate; give one as flops={columns['flops']!r}, "
                "if it is a total"
            )
        return warnings
    ratios = values["flops"] / values["params"] / values["tokens"]
    median = float(np.median(ratios))
    if LIKELY_RATIOS[0] <= median <= LIKELY_RATIOS[1]:
        return warnings
    contradiction = (
        f"{shown(['params', 'tokens', 'flops'])}: C / (N·D) is {median:.3g} at the median, "
        f"expected about {FLOPS_PER_PARAM_TOKEN}"
    )
    if named or POSSIBLE_RATIOS[0] <= median <= POSSIBLE_RATIOS[1]:
        return [*warnings, contradiction]
    raise ValueError(
        f"{contradiction}: a rate or a context length is no budget, and a heading states a unit as "
        f"in 'params (M)'; give flops='{RULE}' for C = 6·N·D, or flops={columns['flops']!r} to "
        "take the column as it stands"
    )


def whole_numbers(headings: Sequence[str], rows: Sequence[Sequence[Any]], heading: str) -> bool:
    """Whether all numbers of a column are whole."""
    numbers = [positive(cell) for cell in cells_of(headings, rows, heading).values()]
    return all(number is None or number == int(number) for number in numbers)


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
    another's N and D with a different loss are used and reported. The order of rows in the table
    changes nothing: runs come out in the order of C, N, D and loss.

    Units in headings (``"Params (M)"``, ``"tokens_B"``, ``"Compute (PF-days)"``) hold for numbers
    without a unit of their own. What contradicts itself is warned of, as N or D below a thousand,
    C / (N·D) outside 1 to 100, several experiments in one table, or refused where it cannot be.

    Args:
        source: A CSV or TSV file, a mapping from heading to column, or a pandas frame.
        params: Heading of N; needed only where it is not recognised, as for the next three.
        tokens: Heading of D.
        flops: Heading of C, training FLOPs; ``"6ND"`` for C = 6·N·D in place of a column.
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
        ValueError: If a role has no column or several, if columns cannot be what they are taken
            for, if no row is usable, or ``drop_highest`` is negative or leaves nothing.

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
    by_rule = isinstance(flops, str) and flops == RULE and RULE not in headings
    roles = [role for role in given if not (by_rule and role == "flops")]
    columns = find_columns(headings, given, roles)
    if given["loss"] is None and columns.get("loss") == "L" and whole_numbers(headings, rows, "L"):
        del columns["loss"]  # the number of layers
    if "budget" in columns and "flops" not in columns and not by_rule:
        columns["flops"] = columns["budget"]
    has_quantity = sum(role in columns for role in ("params", "tokens", "flops")) >= 2
    if not (require_flag("optima", optima) or "loss" in columns) or not has_quantity:
        expected = f"{'' if optima else 'loss and '}two of params, tokens, flops"
        raise missing(headings, columns, expected)
    good, flagged, decimal_commas = parse_rows(headings, rows, columns)
    selected = rows_where(headings, rows, where)
    good = [entry for entry in good if entry[0] in selected]
    flagged = [flag for flag in flagged if flag.row in selected]
    if drop_highest and "loss" not in columns:
        raise ValueError(f"drop_highest = {drop_highest}: expected 0 without a column of losses")
    order = [role for role in ("flops", "params", "tokens", "budget", "loss") if role in columns]

    def by_value(entry: tuple[int, dict[str, float]]) -> tuple[float, ...]:
        return (*(entry[1][role] for role in order), entry[0])

    # In the order of their values, so that no result depends on the order of rows.
    highest = sorted(sorted(good, key=by_value), key=lambda entry: -entry[1].get("loss", 0.0))
    dropped = {number for number, _ in highest[:drop_highest]}
    for number, values in highest[:drop_highest]:
        dropping = f"drop_highest = {quoted(drop_highest)}"
        reason = f"loss {values['loss']:.4g} is among the highest ({dropping})"
        flagged.append(FlaggedRow(number, reason, used=False))
    seen: dict[tuple[float, ...], int] = {}
    kept = []
    for number, values in good:
        if number in dropped:
            continue
        whole = tuple(values[role] for role in order)
        size = tuple(values[role] for role in order if role != "loss")
        if whole in seen:
            flagged.append(FlaggedRow(number, f"duplicate of row {seen[whole]}", used=False))
            continue
        if size in seen:
            reason = f"repeats the size of row {seen[size]}"
            flagged.append(FlaggedRow(number, reason, used=True))
        seen[whole] = number
        seen.setdefault(size, number)
        kept.append((number, values))
    if not kept:
        raise no_usable_row("row", len(selected), sorted(flagged, key=lambda flag: flag.row))
    kept.sort(key=by_value)
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
    numbers = tuple(number for number, _ in kept)
    sizes = dict(zip(numbers, arrays["params"].tolist(), strict=True))
    return Runs(
        params=arrays["params"],
        tokens=arrays["tokens"],
        flops=arrays["flops"],
        loss=arrays["loss"],
        budget=arrays.get("budget"),
        rows=numbers,
        flagged=tuple(sorted(flagged, key=lambda flag: flag.row)),
        columns=columns,
        derived=derived,
        selection=describe_selection(where, len(selected), len(rows)),
        warnings=read_warnings(headings, rows, columns, given, arrays, sizes, decimal_commas),
    )


def read_warnings(
    headings: Sequence[str],
    rows: Sequence[Sequence[Any]],
    columns: Mapping[str, str],
    given: Mapping[str, str | None],
    values: Mapping[str, FloatArray],
    sizes: Mapping[int, float],
    decimal_commas: bool,
    ignored: Sequence[str] = (),
) -> tuple[str, ...]:
    """What a reader of a table should know before a fit; raises where the table cannot be.

    Args:
        headings: The table's headings.
        rows: Its rows.
        columns: Heading by role.
        given: Those that the user named.
        values: N, D, C by role.
        sizes: N by number of the rows used.
        decimal_commas: Whether commas were read as decimal points.
        ignored: Further headings that tell no experiments apart.
    """
    first = rows[min(sizes) - 1]
    cells = {role: first[headings.index(heading)] for role, heading in columns.items()}
    named = columns.get("flops") in (given.get("flops"), given.get("budget"))
    warnings = odd_quantities(values, columns, cells, named and "flops" in columns)
    if decimal_commas:
        warnings.append("commas are read as decimal points")
    pooled = pooled_experiments(headings, rows, {*columns.values(), *ignored}, sizes)
    return tuple([*warnings, pooled] if pooled else warnings)
