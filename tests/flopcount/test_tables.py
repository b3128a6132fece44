"""Tables fit the terminal they are printed in, and break between words alone."""

import ast
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopcount.tables import TEXT_WIDTH, paragraph, table, text_width

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
