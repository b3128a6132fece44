"""Tables: as text for ``print`` and the terminal, as HTML for notebooks, and as frames."""

from __future__ import annotations

import codecs
import dataclasses
import html
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from flopcount import extras
from flopcount.sizes import is_array, is_symbolic

if TYPE_CHECKING:
    import pandas as pd

TEXT_WIDTH = 110
"""Columns where the output is no terminal, such as a file."""
PLAIN = "flopcount.plain"
"""The name of the codecs' error handler that writes what an encoding lacks in ASCII."""
_ASCII = {
    **dict.fromkeys("─━╸╺–−", "-"), **dict.fromkeys("╭╮╰╯┼├┤┬┴", "+"), "│": "|", "┃": "|",
    "…": "...", "×": "x", "·": "*", "•": "*", "←": "<-", "→": "->", "≤": "<=", "≥": ">=",
    "±": "+-", "√": "sqrt", "½": "1/2", "²": "^2", "³": "^3", "Ĉ": "C^", "⌈": "ceil(", "⌉": ")",
    "⌊": "floor(", "⌋": ")", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "Δ": "Delta",
    "σ": "sigma", "Σ": "Sum",
}  # fmt: skip


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    plain = [_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking]
    return "".join(plain), error.end


codecs.register_error(PLAIN, _in_ascii)


def printable(text: str) -> str:
    """The text in characters that standard output can print.

    >>> "3 × 4 … 5".encode("ascii", PLAIN)
    b'3 x 4 ... 5'
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, PLAIN).decode(encoding)


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


def text_width() -> int:
    """Columns of the terminal, as of ``COLUMNS`` where it is set; 110 where there is none."""
    return shutil.get_terminal_size((TEXT_WIDTH, 0)).columns


def paragraph(text: str, width: int | None = None, indent: str = "") -> str:
    """Every line of ``text``, wrapped at words where it is longer than the terminal is wide.

    Args:
        text: The lines.
        width: Of the terminal; its own unless given.
        indent: What further lines of a wrapped one begin with.

    >>> print(paragraph("a line that is long", width=10))
    a line
    that is
    long
    """
    return "\n".join(
        textwrap.fill(
            printable(line), width or text_width(), break_on_hyphens=False, subsequent_indent=indent
        )
        for line in text.splitlines()
    )


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str = "",
    footer: Sequence[Any] | None = None,
    note: str = "",
    keys: int = 1,
    width: int | None = None,
) -> str:
    """A table as plain text that fits the terminal.

    Longer cells wrap, between words alone, or within a long formula after a ``*``. Where even so
    the columns do not fit side by side, the table is printed in several parts, each of which begins
    with the columns that name its rows.

    Args:
        columns: Headings; a column of numbers is right-aligned, others left-aligned.
        rows: Cells, as :func:`shown` prints them.
        title: A line above.
        footer: A last row, set off by a rule.
        note: A paragraph below.
        keys: How many columns, from the left, name a row.
        width: Columns of the terminal; as :func:`text_width` says unless given.

    Returns:
        Lines without colour or trailing blanks.

    >>> print(table(["term", "FLOPs"], [["query", 2048]], title="A title"))
    A title
     term    FLOPs
    ───────────────
     query   2,048

    """
    width = width or text_width()
    cells = [list(row) for row in rows]
    feet = footer if footer is not None else [None] * len(columns)
    grid = [
        _Column(
            printable(heading),
            [_breakable(printable(shown(row[index])), width // 2) for row in cells],
            _breakable(printable(shown(feet[index])), width // 2),
            "right" if all(_is_number(row[index]) for row in cells) else "left",
        )
        for index, heading in enumerate(columns)
    ]
    for space in _SPACES:
        parts = _side_by_side(grid, keys, width, space)
        if len(parts) == 1:
            break
    blocks = "\n\n".join(_rendered(part, width, space, footer is not None) for part in parts)
    above, below = ([paragraph(text, width)] if text else [] for text in (title, note))
    return "\n".join([*above, blocks, *below])


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: ``str`` is what :func:`table` makes of it.

    Attributes:
        columns: As for :func:`table`, as all others.
        rows: See there.
        title: See there.
        footer: See there.
        note: See there.
        keys: See there.

    >>> Table(["term", "FLOPs"], [["a < b", 2048]], title="A title").html()[:53]
    '<table><caption>A title</caption><thead><tr><th style'
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    footer: Sequence[Any] | None = None
    note: str = ""
    keys: int = 1

    def __str__(self) -> str:
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return table(**options)

    def html(self) -> str:
        """The table as HTML, as a notebook shows it."""
        sides = [
            "right" if all(_is_number(row[index]) for row in self.rows) else "left"
            for index in range(len(self.columns))
        ]

        def line(cells: Sequence[Any], tag: str) -> str:
            return "".join(
                f'<{tag} style="text-align: {side}">{_escaped(cell)}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )

        body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in self.rows)
        foot = "" if self.footer is None else f"<tfoot><tr>{line(self.footer, 'th')}</tr></tfoot>"
        caption = f"<caption>{_escaped(self.title)}</caption>" if self.title else ""
        head = f"<thead><tr>{line(self.columns, 'th')}</tr></thead>"
        grid = f"<table>{caption}{head}<tbody>{body}</tbody>{foot}</table>"
        return grid + (f"<p>{_escaped(self.note)}</p>" if self.note else "")


def _escaped(cell: Any) -> str:
    return html.escape(shown(cell)).replace("\n", "<br>")


class Shown:
    """What prints as tables, shows itself in a notebook, and becomes a frame."""

    def _tables(self) -> Sequence[Table | str]:
        """Its tables, and lines of text between them."""
        raise NotImplementedError

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per row of :meth:`to_frame`."""
        raise NotImplementedError

    def to_frame(self) -> pd.DataFrame:
        """The records as a pandas frame, one row for each (extra ``fit``).

        Raises:
            ImportError: If pandas is not installed.

        """
        frame: pd.DataFrame = extras.load("pandas", "fit").DataFrame(self.records())
        return frame

    def __str__(self) -> str:
        return "\n\n".join(map(str, self._tables()))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return "".join(
            f"<p>{_escaped(block)}</p>" if isinstance(block, str) else block.html()
            for block in self._tables()
        )


def _breakable(text: str, longest: int) -> str:
    """A formula that is a long word gets a blank after a ``*`` here and there, to wrap at.

    >>> _breakable("16*B*n**2*(d + 1)*ceiling(n)", longest=9)
    '16*B* n**2*(d + 1)* ceiling(n)'
    """
    words = []
    for word in text.split(" "):
        while len(word) > longest and (
            start := re.match(rf".{{1,{longest - 1}}}(?<!\*)\*(?!\*)", word)
        ):
            words.append(start.group())
            word = word[start.end() :]
        words.append(word)
    return " ".join(words)


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column as text.

    Attributes:
        heading: Above it.
        cells: In it.
        foot: Below it.
        justify: Where its text stands.
    """

    heading: str
    cells: list[str]
    foot: str
    justify: Literal["left", "right"]

    def widths(self, unbroken: int) -> tuple[int, int]:
        """The least width, at which no word and no short cell is broken, and the full one."""
        from rich.cells import cell_len

        texts = [self.heading, *self.cells, self.foot]
        words = [cell_len(word) for text in texts for word in text.split()]
        lines = [cell_len(line) for text in texts for line in text.splitlines()]
        cells = [cell_len(cell) for cell in (*self.cells, self.foot)]
        return max([*words, *(n for n in cells if n <= unbroken), 1]), max([*lines, 1])


@dataclasses.dataclass(frozen=True)
class _Space:
    """How much space a table takes.

    Attributes:
        between: Blanks between two columns.
        unbroken: A cell of at most this length stays on one line.
    """

    between: int
    unbroken: int


_SPACES = (_Space(3, 24), _Space(3, 12), _Space(2, 12))
"""What is tried, until all columns fit side by side."""


def _side_by_side(
    grid: Sequence[_Column], keys: int, width: int, space: _Space
) -> list[list[_Column]]:
    """The columns in as many parts as it takes, the first ``keys`` of them in every part."""
    parts = [list(grid[:keys])]
    for column in grid[keys:]:
        part = [*parts[-1], column]
        least = sum(known.widths(space.unbroken)[0] + space.between for known in part) - 1
        if least > width and len(parts[-1]) > keys:
            parts.append(list(grid[:keys]))
        parts[-1].append(column)
    return parts


def _rendered(part: Sequence[_Column], width: int, space: _Space, has_footer: bool) -> str:
    """The columns side by side, the widest of them narrowed until they fit."""
    import io

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    least, widths = map(list, zip(*(column.widths(space.unbroken) for column in part), strict=True))
    available = width + 1 - space.between * len(part)
    while sum(widths) > available:
        wide = [index for index in range(len(part)) if widths[index] > least[index]]
        if not wide:  # Not even a word a line fits: rich breaks what it must.
            break
        widths[max(wide, key=lambda index: widths[index])] -= 1
    padding = (0, 1, 0, space.between - 2)
    grid = Table(box=SIMPLE_HEAD, show_edge=False, show_footer=has_footer, padding=padding)
    for column, columns in zip(part, widths, strict=True):
        grid.add_column(
            column.heading,
            justify=column.justify,
            footer=column.foot,
            overflow="fold",
            width=columns,
        )
    for row in zip(*(column.cells for column in part), strict=True):
        grid.add_row(*row)
    stream = io.StringIO()
    # In a notebook rich would display the table, and leave the text empty.
    console = Console(
        file=stream, width=width, color_system=None, markup=False, highlight=False,
        force_jupyter=False,
    )  # fmt: skip
    console.print(grid)
    return "\n".join(line.rstrip() for line in printable(stream.getvalue()).rstrip().splitlines())
