"""Published tables: headings and their units, cells, and what tells rows apart."""

from __future__ import annotations

import collections
import csv
import dataclasses
import itertools
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flopcount.sizes import quoted

_NAMES = {
    "params": "N params parameters numparams numparameters nparams nparameters paramcount "
    "parametercount modelsize modelparams modelparameters totalparams totalparameters",
    "tokens": "D tokens numtokens ntokens traintokens trainingtokens latenttokens tokencount "
    "totaltokens tokensseen datasize datasetsize",
    "flops": "C flop flops trainflop trainflops trainingflop trainingflops totalflop totalflops "
    "compute trainingcompute",
    "budget": "budget computebudget flopbudget flopsbudget targetflops isoflop isoflops",
    "loss": "L",
    "run": "run runid runname name curve model",
}
COLUMN_NAMES = {role: frozenset(names.split()) for role, names in _NAMES.items()}
"""Headings recognised for each role, without spaces and punctuation, in lower case but for single
letters: d is a width, and n latents. Of a heading with slashes, as loggers write it, the last part.
A loss is also whatever ends in "loss"."""
_UNITS = {
    1e3: "k thousand thousands",
    1e6: "m mn million millions",
    1e9: "b bn billion billions g giga",
    1e12: "t tn trillion trillions tera",
}
UNITS = {name: scale for scale, names in _UNITS.items() for name in names.split()}
"""What "(M)" or "_M" behind a heading, or "M" behind a count, multiplies by."""
_PREFIXES = {"": 1.0} | UNITS | {"p": 1e15, "peta": 1e15, "e": 1e18, "exa": 1e18, "z": 1e21}
_PREFIXES["zetta"] = 1e21
_FLOPS = "(giga|tera|peta|exa|zetta|g|t|p|e|z|)"
_SECONDS = {"day": 86_400, "hour": 3_600}
COUNTS = ("params", "tokens", "flops", "budget")
"""Roles that may carry a unit; a loss is taken as it stands."""
_RATE = re.compile(
    r"/ ?(s|secs?|seconds?|gpus?|devices?)\b(?! ?(days?|hours?)\b)"
    r"|\bper (s|sec|second|step|token|sample|gpu|device|hour|day)s?\b|per(sec|second)\b"
)
EXPERIMENTS = {
    name: place
    for place, name in enumerate(
        "experiment exp experimentname set dataset data corpus project sweep group study source "  # noqa: SIM905
        "arm condition family architecture arch optimizer optimiser tokenizer".split()
    )
}
"""Headings that tell experiments apart, in the order in which they are proposed."""


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


def unit_scale(unit: str, role: str) -> float | None:
    """What a unit multiplies by; None if it is none that the role can have.

    >>> unit_scale("M", "params"), unit_scale("10^18 FLOPs", "flops"), unit_scale("GB", "tokens")
    (1000000.0, 1e+18, None)
    >>> unit_scale("petaflop/s-days", "flops"), unit_scale("PF-days", "budget")
    (8.64e+19, 8.64e+19)
    """
    text = re.sub(r"[\s_-]+", " ", unit.lower()).strip()
    if text in UNITS:
        return UNITS[text]
    raised = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
    power = re.fullmatch(
        r"[x×*]? ?(?:1e|10 ?(?:\^|\*\*) ?|10(?=[⁰¹²³⁴⁵⁶⁷⁸⁹]))([\d⁰¹²³⁴⁵⁶⁷⁸⁹]{1,2})(?: flops?)?",
        text,
    )
    if power:
        return float(f"1e{power[1].translate(raised)}")
    if role not in ("flops", "budget"):
        return None
    spent = re.fullmatch(rf"{_FLOPS} ?(?:flops?|f)(?: ?/ ?s| ?ps|s)? ?(day|hour)s?", text)
    if spent:
        return _PREFIXES[spent[1]] * _SECONDS[spent[2]]
    count = re.fullmatch(rf"{_FLOPS} ?flops?", text)
    return _PREFIXES[count[1]] if count else None


def heading_name(heading: str, role: str) -> tuple[str, float]:
    """The heading's name, and the unit that it states for the role.

    >>> heading_name("Params (M)", "params"), heading_name("throughput/total_gflops", "flops")
    (('params', 1000000.0), ('totalflops', 1000000000.0))
    >>> heading_name("tokens_B", "tokens"), heading_name("Compute (PF-days)", "flops")
    (('tokens', 1000000000.0), ('compute', 8.64e+19))
    """
    text, scale = re.split(r"/(?![^(\[]*[)\]])", heading)[-1].strip(), 1.0
    if role in COUNTS:
        text, scale = _without_unit(text, role)
    name = re.sub(r"[^A-Za-z0-9]", "", text)
    return name if len(name) == 1 else name.lower(), scale


def _without_unit(text: str, role: str) -> tuple[str, float]:
    bracketed = re.fullmatch(r"(.*?)\s*[(\[]\s*(?:in\s+)?(.+?)\s*[)\]]", text)
    if bracketed:
        scale = unit_scale(bracketed[2], role)
        return (text, 1.0) if scale is None else (bracketed[1], scale)
    words = re.split(r"[\s_,]+", text)
    for count in range(min(3, len(words) - 1), 0, -1):
        scale = unit_scale(" ".join(words[-count:]), role)
        if scale is not None and scale != 1:
            rest = words[: -count - (words[-count - 1].lower() == "in")]
            flops = "flops" if re.search(r"flops?$", text.lower()) else ""
            return " ".join([*rest, flops]), scale
    whole = re.fullmatch(rf"{_FLOPS}(flops?)", text.lower())
    if role in ("flops", "budget") and whole:
        return whole[2], _PREFIXES[whole[1]]
    return text, 1.0


def unknown_unit(heading: str, role: str) -> str:
    """What stands in brackets behind a count's heading, if it is no unit that is known."""
    bracketed = re.search(r"[(\[]\s*(.+?)\s*[)\]]\s*$", heading)
    unit = re.sub(r"^in\s+", "", bracketed[1]) if bracketed else ""
    return unit if unit and role in COUNTS and unit_scale(unit, role) is None else ""


def is_rate(heading: str) -> bool:
    """Whether a heading says that it is per second, per token or per device.

    >>> is_rate("TFLOP/s"), is_rate("tokens_per_second"), is_rate("Compute (petaflop/s-days)")
    (True, True, False)
    """
    return _RATE.search(re.sub(r"[^a-z0-9/]+", " ", heading.lower()).strip()) is not None


def may_be_rate(heading: str) -> bool:
    """Whether a heading is "tflops" or alike, as which loggers write FLOP/s."""
    return re.fullmatch(r"(.*/)?[gtpez]flops", heading.lower()) is not None


def is_perplexity(heading: str) -> bool:
    """Whether a heading names a perplexity, of which a loss is the logarithm."""
    return re.search(r"(^|[^a-z])(ppl|perplexity)", heading.lower()) is not None


def _matches(heading: str, role: str) -> bool:
    if role in COUNTS and is_rate(heading):
        return False
    name, _ = heading_name(heading, role)
    return name in COLUMN_NAMES[role] or (role == "loss" and name.endswith("loss"))


def listed(names: Iterable[object], joined: str = ", ") -> str:
    """Names in quotes.

    >>> listed(["N", "loss"], " and ")
    "'N' and 'loss'"
    """
    return joined.join(repr(str(name)) for name in names)


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
        ValueError: If a given heading does not exist or is a rate, if headings repeat, or if
            several match.

    >>> find_columns(["Model Size", "loss"], {}, ["params", "loss"])
    {'params': 'Model Size', 'loss': 'loss'}
    """
    columns = f"columns are {listed(headings)}"
    repeated = sorted({heading for heading in headings if headings.count(heading) > 1})
    if repeated:
        raise ValueError(f"heading {repeated[0]!r} occurs more than once: {columns}")
    for role, name in given.items():
        if not isinstance(name, str | None):
            raise TypeError(f"{role} = {quoted(name)}: expected a column's name; {columns}")
    taken = set(given.values())
    headings_of = {}
    for role in roles:
        name = given.get(role)
        if name is not None:
            if name not in headings:
                raise ValueError(f"{role} = {quoted(name)}: expected a column's name; {columns}")
            if role in COUNTS and is_rate(name):
                raise ValueError(f"{role} = {quoted(name)}: expected a total, not a rate")
            headings_of[role] = name
            continue
        matching = [name for name in headings if name not in taken and _matches(name, role)]
        if len(matching) > 1:
            raise ValueError(
                f"{listed(matching, ' and ')} may all be {role}: "
                f"give one as {role}={matching[0]!r}; {columns}"
            )
        if matching:
            headings_of[role] = matching[0]
    return headings_of


def missing(headings: Sequence[str], columns: Mapping[str, str], expected: str) -> ValueError:
    """The error that columns are missing: what was found, what may be meant, and how to say it."""
    hints, letters = [], []
    for heading in headings:
        if heading in columns.values():
            continue
        if is_perplexity(heading):
            hints.append(f"{heading!r} is a perplexity: loss = ln ppl, in a column of its own")
        elif is_rate(heading) or may_be_rate(heading):
            hints.append(f"{heading!r} is a rate, no total")
        elif any(heading.upper() in names for names in COLUMN_NAMES.values()):
            letters.append(heading)
    if letters:
        hints.append(
            f"{listed(letters)} not read: D is tokens, d a width, L in whole numbers layers"
        )
    role = next(
        iter(role for role in ("params", "loss", "tokens") if role not in columns), "tokens"
    )
    hints.append(f"name them, as in {role}={headings[0]!r}; columns are {listed(headings)}")
    return ValueError(f"found columns {dict(columns)}: expected {expected}; {'; '.join(hints)}")


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
                delimiter = max(",\t;", key=heading.count)
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
    try:
        columns = [list(values) for values in source.values()]
    except TypeError as error:
        raise TypeError(f"source has a column that is none: {error}; expected sequences") from error
    if len({len(column) for column in columns}) != 1:
        raise ValueError("source has no columns or columns of different lengths: expected one")
    return [str(heading) for heading in source], [list(row) for row in zip(*columns, strict=True)]


def cell_text(cell: object) -> str:
    """The cell as text."""
    return quoted(cell) if isinstance(cell, int) else str(cell).strip()


SMALLEST, LARGEST = 1e-100, 1e100
"""Numbers outside are no measurement, and their products would leave the range of floats."""
_DECIMAL_COMMA = r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?"
_THOUSANDS = r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?"


def positive(
    cell: object, counts: bool = False, unit: float = 1.0, decimal_comma: bool = False
) -> float | None:
    """The cell as a positive float between 1e-100 and 1e100; None if it is not one.

    Args:
        cell: A number, or text; of a count ``"1,234,567"`` is a number.
        counts: Whether a unit may follow it, or commas group its digits.
        unit: What a number without a unit of its own counts in.
        decimal_comma: Whether a comma is the decimal point.

    >>> positive("1.5 Billion", counts=True), positive("3.2"), positive("3.2M"), positive("n/a")
    (1500000000.0, 3.2, None, None)
    >>> positive("400M", counts=True, unit=1e6), positive("3,288", decimal_comma=True)
    (400000000.0, 3.288)
    """
    if isinstance(cell, bool) or cell is None:
        return None
    if isinstance(cell, str):
        cell = cell.strip()
        with_unit = re.fullmatch(r"([\d.,eE+-]*\d\.?)\s*([A-Za-z]+)", cell)
        if counts and with_unit and with_unit[2].lower() in UNITS:
            cell, unit = with_unit[1], UNITS[with_unit[2].lower()]
        if decimal_comma and re.fullmatch(_DECIMAL_COMMA, cell):
            cell = cell.replace(",", ".")
        elif counts and not decimal_comma and re.fullmatch(_THOUSANDS, cell):
            cell = cell.replace(",", "")
    try:
        number = unit * float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if SMALLEST <= number <= LARGEST else None


def has_decimal_commas(cells: Mapping[str, Sequence[object]]) -> bool:
    """Whether commas are the decimal points of a table: a loss has one, and no number has a point.

    >>> has_decimal_commas({"params": ["1e9", "2e9"], "loss": ["3,288", "3,1"]})
    True
    >>> has_decimal_commas({"params": ["1.5e9", "2e9"], "loss": ["3,288", "3,1"]})
    False
    """
    texts = [cell for column in cells.values() for cell in column]
    with_point = any(
        isinstance(cell, float)
        or (isinstance(cell, str) and re.search(r"\d\.\d|,\d{3},\d{3}", cell))
        for cell in texts
    )
    losses = (cell for cell in cells.get("loss", ()) if isinstance(cell, str))
    return not with_point and any(re.fullmatch(_DECIMAL_COMMA, cell.strip()) for cell in losses)


def cells_of(
    headings: Sequence[str], rows: Sequence[Sequence[Any]], heading: str
) -> dict[int, object]:
    """A column's cells by row number, of the rows that have as many cells as the heading."""
    at = headings.index(heading)
    return {
        number: row[at] for number, row in enumerate(rows, start=1) if len(row) == len(headings)
    }


def parse_rows(
    headings: Sequence[str], rows: Sequence[Sequence[Any]], columns: Mapping[str, str]
) -> tuple[list[tuple[int, dict[str, float]]], list[FlaggedRow], bool]:
    """The numbers of every row, by role, the rows that are not numbers, and what commas are.

    Returns:
        Row numbers with values by role; flagged rows; whether commas are decimal points.
    """
    good, flagged = [], []
    units = {role: heading_name(heading, role)[1] for role, heading in columns.items()}
    by_role = {role: cells_of(headings, rows, heading) for role, heading in columns.items()}
    commas = has_decimal_commas({role: list(cells.values()) for role, cells in by_role.items()})
    for number, row in enumerate(rows, start=1):
        if len(row) != len(headings):
            reason = f"{len(row)} cells under {len(headings)} headings"
            flagged.append(FlaggedRow(number, reason, used=False))
            continue
        cells = {role: by_role[role][number] for role in columns}
        values = {
            role: positive(cell, role in COUNTS, units[role], commas)
            for role, cell in cells.items()
        }
        bad = [role for role, value in values.items() if value is None]
        if bad:
            reason = ", ".join(f"{columns[role]} = {quoted(cells[role])}" for role in bad)
            reason += ": expected a positive number"
            if any("," in cell_text(cells[role]) for role in bad):
                reason += ", its comma being no decimal point in this table"
            flagged.append(FlaggedRow(number, reason, used=False))
        else:
            good.append((number, {role: value for role, value in values.items() if value}))
    return good, flagged, commas


def no_usable_row(what: str, num_rows: int, flagged: Sequence[FlaggedRow]) -> ValueError:
    """The error that nothing is left, with the first rows' reasons."""
    reasons = "".join(f"; row {flag.row}: {flag.reason}" for flag in flagged[:3])
    return ValueError(f"no usable {what} among {num_rows} rows: expected positive numbers{reasons}")


def rows_where(
    headings: Sequence[str], rows: Sequence[Sequence[Any]], where: Mapping[str, str] | None
) -> set[int]:
    """Numbers of the rows that hold every value asked for."""
    if where is None:
        where = {}
    if not isinstance(where, Mapping):
        raise TypeError(f"where = {quoted(where)}: expected a mapping from heading to value")
    for heading in where:
        if heading not in headings:
            raise ValueError(
                f"where = {quoted(heading)}: expected a column's name; columns are "
                f"{listed(headings)}"
            )
    places = {headings.index(heading): cell_text(value) for heading, value in where.items()}
    return {
        number
        for number, row in enumerate(rows, start=1)
        if all(at < len(row) and cell_text(row[at]) == value for at, value in places.items())
    }


def describe_selection(where: Mapping[str, str] | None, selected: int, total: int) -> str:
    """Which rows were asked for, and how many of the table's they are; empty if all."""
    if not where:
        return ""
    asked = ", ".join(f"{heading} = {cell_text(value)}" for heading, value in where.items())
    return f"{selected} of {total} rows with {asked}"


def pooled_experiments(
    headings: Sequence[str],
    rows: Sequence[Sequence[Any]],
    columns: Iterable[str],
    params: Mapping[int, float],
) -> str:
    r"""A warning that one fit would pool several experiments, and how to read one; empty if not.

    A column tells experiments apart if at least two of its values have three sizes each, enough
    for a fit of their own, and if its heading is one of :data:`EXPERIMENTS` or its values are
    words of which such hold four rows in five, and each, on average, three.

    Args:
        headings: The table's headings.
        rows: Its rows.
        columns: Headings of quantities and names, which tell no experiments apart.
        params: N by number of the rows that are used.

    >>> table = [["a", n] for n in (1e6, 2e6, 3e6)] + [["b", n] for n in (1e6, 2e6, 3e6)]
    >>> sizes = {number: row[1] for number, row in enumerate(table, start=1)}
    >>> print(pooled_experiments(["set", "N"], table, {"N"}, sizes).replace("; ", "\n"))
    column 'set' has 2 values, which one fit pools: 'a' (3 rows), 'b' (3)
    read one with --where set=a
    """
    counts_of: dict[str, collections.Counter[str]] = {}
    taken = set(columns)
    for heading in headings:
        if heading in taken:
            continue
        texts = {
            number: cell_text(cell)
            for number, cell in cells_of(headings, rows, heading).items()
            if number in params
        }
        sizes: dict[str, set[float]] = {}
        for number, text in texts.items():
            sizes.setdefault(text, set()).add(params[number])
        fittable = {text for text, each in sizes.items() if len(each) >= 3}
        named = heading_name(heading, "")[0] in EXPERIMENTS
        covered = sum(text in fittable for text in texts.values())
        words = (
            covered >= 0.8 * len(texts) >= 0.8 * 3 * len(sizes)
            and any(sizes)
            and not any(_is_number(text) for text in sizes)
        )
        if len(fittable) >= 2 and (named or words):
            counts_of[heading] = collections.Counter(texts.values())
    if not counts_of:
        return ""

    def rank(heading: str) -> tuple[int, int]:
        name = heading_name(heading, "")[0]
        return EXPERIMENTS.get(name, len(EXPERIMENTS)), -len(counts_of[heading])

    best, *others = sorted(counts_of, key=rank)
    counts = counts_of[best].most_common()
    (first, number), *rest = sorted(counts, key=lambda entry: (-entry[1], entry[0]))
    shown = [f"{first!r} ({number} rows)", *(f"{text!r} ({n})" for text, n in rest[:2])]
    more = ", …" if len(rest) > 2 else ""
    also = f"; so have {listed(others)}" if others else ""
    return (
        f"column {best!r} has {len(counts)} values, which one fit pools: {', '.join(shown)}{more}; "
        f"read one with --where {shlex.quote(f'{best}={first}')}{also}"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def telling_columns(
    headings: Sequence[str],
    columns: Iterable[str],
    is_key: Callable[[tuple[str, ...]], bool],
) -> list[tuple[str, ...]]:
    """Further columns, single or else in pairs, with which a name identifies one run each."""
    others = [heading for heading in headings if heading not in set(columns)]
    for size in (1, 2):
        keys = [each for each in itertools.combinations(others, size) if is_key(each)]
        if keys:
            return keys
    return []
