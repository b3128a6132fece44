"""What the project's command lines share: any terminal's encoding, words that nobody knows."""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from flopcount.extras import explain_missing
from flopcount.tables import PLAIN

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry


def prepare() -> None:
    """Make the process a program of this project, before it imports what may be missing."""
    explain_missing()
    any_encoding()


def any_encoding() -> None:
    """Write what the output's encoding lacks, such as ASCII, in characters that it has."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN)


def wrong_command(words: Sequence[str], commands: Mapping[str, Sequence[str]]) -> str | None:
    """Say in a line which word is no command, and which command it resembles.

    Args:
        words: The words of the command line, after the program's name.
        commands: The names of the commands; of each, the names that it expects next, if any.

    Returns:
        The line; None where the commands are right, or where an option comes first.

    >>> commands = {"count": ["perceiver-ar", "decoder"], "plan": []}
    >>> wrong_command(["cont", "decoder", "--seq-len", "8"], commands)
    "'cont' is no command: did you mean 'count'?"
    >>> wrong_command(["count", "--json", "llama"], commands)
    'count: expected one of perceiver-ar, decoder'
    >>> wrong_command(["plan", "--seq-len", "8"], commands)
    """
    if {"-h", "--help"} & set(words) or (words[:1] and words[0].startswith("-")):
        return None
    if words[:1] and (nested := commands.get(words[0])) is not None:
        wrong = _unknown(words[1:], nested)
        return wrong and f"{words[0]}: {wrong}"
    return _unknown(words[:1], list(commands))


def _unknown(words: Sequence[str], known: Sequence[str]) -> str | None:
    if not known or set(words) & set(known):
        return None
    for word in words:
        if not word.startswith("-") and (close := difflib.get_close_matches(word, known, n=1)):
            return f"{word!r} is no command: did you mean {close[0]!r}?"
    given = f"{words[0]!r} is no command: " if len(words) == 1 else ""
    return f"{given}expected one of {', '.join(known)}"


def whole_number(text: str) -> int:
    """An integer, also as ``30e9``, exactly.

    Raises:
        ValueError: If ``text`` is no integer.

    >>> whole_number("30e9"), whole_number("1_000"), whole_number("1.5e1")
    (30000000000, 1000, 15)
    >>> whole_number("1.5")
    Traceback (most recent call last):
    ValueError: '1.5': expected an integer, such as 30000000000 or 30e9
    """
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or number.adjusted() > _MOST_DIGITS or number != int(number):
        raise ValueError(f"{text!r}: expected an integer, such as 30000000000 or 30e9")
    return int(number)


_MOST_DIGITS = 1000
"""A larger number is no size, and Python takes long to write it."""


def whole_numbers() -> ConstructorRegistry:
    """A registry for ``tyro.cli``: every integer is read by :func:`whole_number`."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda words: whole_number(words[0]),
            is_instance=lambda value: type(value) is int,
            str_from_instance=lambda value: [str(value)],
        )

    return registry
