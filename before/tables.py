"""Tables as text, for ``print`` and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from before.sizes import is_array, is_symbolic

TEXT_WIDTH = 110


def shown(value: Any) -> str:
    """A number, array or expression as a table cell.

    >>> shown(1234567), shown(Fraction(7, 2)), shown("text"), shown(None)
    ('1,234,567', '3.5', 'text', '')
    """
    if value is None:
        return ""
    if is_array(value):
        smallest, largest = shown(value.min()), shown(value.max())
        return smallest if smallest == largest else f"{smallest} … {largest}"
    if is_symbolic(value):
        return str(value)
    if isinstance(value, Fraction):
        return (
            f"{shown(int(value))}{f'{float(value % 1):.4g}'.lstrip('0')}"
            if value > 0
            else str(value)
        )
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value
    return f"{int(value):,}"


def _is_number(cell: Any) -> bool:
    if not isinstance(cell, str):
        return cell is not None
    try:
        float(cell.rstrip("%"))
    except ValueError:
        return not cell
    return True


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str = "",
    footer: Sequence[Any] | None = None,
    note: str = "",
    width: int = TEXT_WIDTH,
) -> str:
    """A table as plain text of at most ``width`` columns.

    Args:
        columns: Headings; a column of numbers is right-aligned, others left-aligned.
        rows: Cells, as :func:`shown` prints them.
        title: A line above.
        footer: A last row, set off by a rule.
        note: A paragraph below.
        width: Longer cells wrap.

    Returns:
        Lines without colour or trailing blanks.

    >>> print(table(["term", "FLOPs"], [["query", 2048]], title="A title"))
    A title
     term    FLOPs
    ───────────────
     query   2,048

    """
    import io

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    cells = [list(row) for row in rows]
    grid = Table(box=SIMPLE_HEAD, show_edge=False, show_footer=footer is not None, pad_edge=True)
    for index, heading in enumerate(columns):
        text = not all(_is_number(row[index]) for row in cells)
        grid.add_column(
            heading,
            justify="left" if text else "right",
            footer=shown(footer[index]) if footer is not None else "",
            overflow="fold",
        )
    for row in cells:
        grid.add_row(*(shown(cell) for cell in row))
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, markup=False, highlight=False)
    if title:
        console.print(title)
    console.print(grid)
    if note:
        console.print(note)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())
