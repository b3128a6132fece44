"""Tables fit the terminal they are printed in, and break between words alone."""

import ast
import io
import os
import sys
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopcount.tables import (
    PLAIN,
    TEXT_WIDTH,
    Shown,
    Table,
    _breakable,
    _Column,
    _side_by_side,
    _Space,
    paragraph,
    printable,
    shown,
    table,
    text_width,
)

ROOT = Path(__file__).parents[2]
WORD = st.text("abcdefgh()*/", min_size=1, max_size=16)
CELL = st.one_of(
    st.lists(WORD, min_size=1, max_size=8).map(" ".join),
    st.integers(0, 10**14),
    st.floats(1e-9, 1e9),
    st.none(),
)


@st.composite
def tables(draw):
    """The arguments of a table; a key has at most 16 columns, so that any other fits beside two."""
    columns = draw(st.lists(WORD, min_size=1, max_size=12))
    rows = draw(st.lists(st.tuples(*[CELL] * len(columns)), max_size=4))
    footer = draw(st.none() | st.tuples(*[CELL] * len(columns)))
    return dict(
        columns=columns,
        rows=rows,
        footer=footer,
        title=draw(st.lists(WORD, max_size=20).map(" ".join)),
        note=draw(st.lists(WORD, max_size=20).map(" ".join)),
        keys=draw(st.integers(1, 2)),
    )


def words(text):
    return {word for line in text.splitlines() for word in line.split() if set(word) != {"─"}}


@given(tables(), st.integers(60, 220))
def test_a_table_is_as_wide_as_the_terminal_at_most(arguments, width):
    printed = table(**arguments, width=width)
    assert max(map(len, printed.splitlines()), default=0) <= width
    # No word is broken or lost: they are those of the table in a terminal without an end.
    assert words(printed) == words(table(**arguments, width=100_000))


def test_a_word_longer_than_the_terminal_is_broken_there():
    assert table(["x" * 30], [], width=20).splitlines()[0] == " " + "x" * 18


def test_a_table_is_in_parts_that_repeat_its_keys():
    columns = ["part", "term", "forward", "backward"]
    rows = [["self", "query", 10**12, 2 * 10**12], ["self", "key", 10**13, 2 * 10**13]]
    # 4 + 5 + 18 (10,000,000,000,000) and two blanks a column are 33; the fourth column takes 53.
    assert table(columns, rows, keys=2, width=40).splitlines() == [
        "part  term              forward",
        "────────────────────────────────",
        "self  query   1,000,000,000,000",
        "self  key    10,000,000,000,000",
        "",
        "part  term             backward",
        "────────────────────────────────",
        "self  query   2,000,000,000,000",
        "self  key    20,000,000,000,000",
    ]


def test_a_paragraph_keeps_its_lines():
    assert paragraph("one two\n\nthree", 5) == "one\ntwo\n\nthree"


def test_cells_as_text():
    assert shown(np.array([1, 2])) == "1 … 2"
    assert shown(np.array([3, 3])) == "3"
    assert [shown(Fraction(x, 2)) for x in (7, 1, -1)] == ["3.5", "0.5", "-1/2"]
    assert shown(1_234_567.0) == "1.235e+06"


def test_what_an_encoding_lacks_is_written_in_ascii():
    assert "2 ×× é".encode("ascii", PLAIN) == b"2 xx \\xe9"
    ascii_alone = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for stream, text in ((ascii_alone, "3 x 4"), (io.StringIO(), "3 × 4")):
        with mock.patch.object(sys, "stdout", stream):
            assert printable("3 × 4") == text


def test_without_a_terminal_text_has_110_columns():
    with mock.patch.dict(os.environ), mock.patch.object(sys, "__stdout__", None):
        del os.environ["COLUMNS"]
        assert text_width() == 110
        assert paragraph("word " * 22) == " ".join(["word"] * 22)  # 22·5 - 1 = 109
        assert paragraph("word " * 23).count("\n") == 1
    assert paragraph("aa well-known", 11) == "aa\nwell-known"


def test_html_to_the_character():
    right, left = (f'style="text-align: {side}"' for side in ("right", "left"))
    head = f"<thead><tr><th {left}>a</th><th {right}>b</th></tr></thead>"
    body = f"<tbody><tr><td {left}>x &lt; y</td><td {right}>1,000</td></tr></tbody>"
    foot = f"<tfoot><tr><th {left}>all</th><th {right}>2</th></tr></tfoot>"
    plain = Table(["a", "b"], [["x < y", 1000]])
    assert plain.html() == f"<table>{head}{body}</table>"
    whole = Table(["a", "b"], [["x < y", 1000]], "T", ["all", 2], "N")
    caption = "<caption>T</caption>"
    assert whole.html() == f"<table>{caption}{head}{body}{foot}</table><p>N</p>"

    class Two(Shown):
        def _tables(self):
            return ["a & b", plain]

    assert Two()._repr_html_() == "<p>a &amp; b</p>" + plain.html()
    with pytest.raises(ValueError, match="longer than argument 1"):
        Table(["a", "b"], [], footer=["all"]).html()


def test_long_formulas_break_after_a_star():
    assert _breakable("16*B*n**2*(d + 1)*ceiling(n)", 9) == "16*B* n**2*(d + 1)* ceiling(n)"
    assert [_breakable("a*b", longest) for longest in (3, 2)] == ["a*b", "a* b"]
    # In a cell of a table 40 wide, those of more than 20 characters.
    formula = "*".join(["aaaa"] * 10)
    lines = [f" {'aaaa*' * 4}", f" {'aaaa*' * 4} aaaa*aaaa"]
    printed = table(["f"], [[formula]], footer=[formula], width=40).splitlines()
    assert printed == [" f", "─" * 40, *lines, "", *lines]


def test_how_wide_a_column_is():
    column = _Column("ab", ["one two", "x"], "foot", "left")
    # No word is broken (foot, 4), and no cell of at most so many columns (one two, 7).
    assert [column.widths(unbroken) for unbroken in (6, 7)] == [(4, 7), (7, 7)]
    assert _Column("", [], "", "left").widths(9) == (1, 1)


def test_columns_stand_side_by_side_while_they_fit():
    def parts(widths, keys, width):
        grid = [_Column("x" * n, [], "", "left") for n in widths]
        found = _side_by_side(grid, keys, width, _Space(3, 24))
        return [[len(column.heading) for column in part] for part in found]

    # 10 + 3 + 10 + 3 columns less the last blank are 25.
    assert parts([10, 10], 1, 25) == [[10, 10]]
    assert parts([1, 10, 10], 1, 28) == [[1, 10], [1, 10]]
    assert parts([1, 10, 10], 1, 29) == [[1, 10, 10]]
    assert parts([1, 20, 5, 5], 1, 25) == [[1, 20], [1, 5, 5]]
    # However wide the key is, no part consists of it alone.
    assert parts([30, 5], 1, 20) == [[30, 5]]
    # The least width counts, 4, and not that of the whole cell.
    words = _Column("", ["word " * 9], "", "left")
    assert len(_side_by_side([words, words], 1, 13, _Space(3, 24))) == 1


def test_cells_stay_whole_while_there_is_space():
    """24 columns, or 12 where the others need the space; then two blanks in place of three."""
    words = " ".join(["word"] * 12)
    for cell, lines in (("a" * 11 + " " + "b" * 12, 1), ("a" * 11 + " " + "b" * 13, 2)):
        printed = table(["k", "t"], [[cell, words]], width=40)
        assert sum("a" in line or "b" in line for line in printed.splitlines()) == lines
    for cell, lines in (("aaaaa bbbbbb", 1), ("aaaaa bbbbbbb", 2)):
        rows = [[cell, "v" * 26, "c" * 11 + " " + "d" * 12]]
        printed = table(["k", "t", "u"], rows, width=58)
        assert sum("a" in line or "b" in line for line in printed.splitlines()) == lines
        assert "   vvv" in printed
    two = "x" * 9
    # 12 + 3 + 9 + 3 - 1 = 26; with two blanks 24.
    for width, between in ((26, 3), (25, 2), (24, 2)):
        rows = [["aaaaa bbbbbb", two, two]]
        printed = table(["k", "t", "u"], rows, width=width + 9 + between)
        assert f"bbbbbb{' ' * between}xxx" in printed
        assert f"xxx{' ' * between}xxx" in printed

    # Where even two blanks are too many, in parts: 12 + 26 + 12, and 5 blanks, are 55.
    for cell, width, parts in (("aaaaa bbbbbb", 55, 1), ("aaaaa bbbbbb", 54, 2)):
        printed = table(["k", "t", "u"], [[cell, "v" * 26, "c" * 12 + " c"]], width=width)
        assert printed.count("\n\n") + 1 == parts
    one = table(["k", "t", "u"], [["aaaaa bbbbbbb", "v" * 26, "c" * 12 + " cc"]], width=54)
    assert "\n\n" not in one


def test_a_line_is_as_long_as_the_table_is_wide():
    text = "aaaaa bbbbb ccccc ddddd eeeee"  # 29, with a blank on each side 31
    assert table(["w"], [[text]], width=31).splitlines() == [" w", "─" * 31, f" {text}"]
    narrow = [" w", "─" * 30, " aaaaa bbbbb ccccc ddddd", " eeeee"]
    assert table(["w"], [[text]], width=30).splitlines() == narrow


def test_one_column_names_a_row_unless_said_otherwise():
    rows = [["r", "x" * 9, "y" * 9]]
    with mock.patch.dict(os.environ, COLUMNS="18"):
        printed = {table(["key", "one", "two"], rows), str(Table(["key", "one", "two"], rows))}
    (text,) = printed
    assert [line.split() for line in text.splitlines() if "r " in line] == [
        ["r", "x" * 9],
        ["r", "y" * 9],
    ]


def test_columns_says_how_wide_the_terminal_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "83")
    assert text_width() == 83


def test_a_file_has_a_fixed_width(monkeypatch, tmp_path):
    monkeypatch.delenv("COLUMNS", raising=False)
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "__stdout__", file)
        assert text_width() == TEXT_WIDTH


@pytest.mark.skipif(sys.platform == "win32", reason="opens a pseudoterminal")
def test_a_terminal_says_how_wide_it_is(monkeypatch):
    import fcntl
    import struct
    import termios

    monkeypatch.delenv("COLUMNS", raising=False)
    parent, child = os.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(child, "w") as terminal, os.fdopen(parent):
        monkeypatch.setattr(sys, "__stdout__", terminal)
        assert text_width() == 80


def calls_of_table(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("table", "Table"):
            yield {keyword.arg for keyword in node.keywords}


def test_no_table_has_a_width_of_its_own():
    modules = [
        path
        for room in ("flopcount", "models", "validate", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    ]
    calls = [call for path in modules for call in calls_of_table(path.read_text("utf-8"))]
    assert len(calls) > 20
    assert not any("width" in call for call in calls)
    # The twin: such a call is found.
    assert list(calls_of_table("table(columns, rows, width=130)")) == [{"width"}]
