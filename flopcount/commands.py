"""What command lines share: defaults of the functions behind them, and how words are read."""

from __future__ import annotations

import difflib
import inspect
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from flopcount.extras import explain_missing
from flopcount.tables import PLAIN

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

Command = TypeVar("Command", bound=Callable[..., Any])


def default_of(function: Callable[..., Any], name: str) -> Any:
    """The default of a function's argument."""
    return inspect.signature(function).parameters[name].default


def defaults_of(*owners: Callable[..., Any]) -> Callable[[Command], Command]:
    """Give the keyword arguments of a command that have no default the owners' of the same name.

    Args:
        owners: Functions or classes; an argument that none of them has, or none gives a default,
            stays required.

    Returns:
        A decorator that changes the command's defaults in place.

    Raises:
        ValueError: If two owners disagree.

    >>> def power(base, exponent=2):
    ...     return base**exponent
    >>> @defaults_of(power)
    ... def command(base, *, exponent):
    ...     return power(base, exponent)
    >>> command(3)
    9
    """

    def given(command: Command) -> Command:
        taken = dict(command.__kwdefaults__ or {})
        for name, option in inspect.signature(command).parameters.items():
            if option.kind is not option.KEYWORD_ONLY or option.default is not option.empty:
                continue
            parameters = [inspect.signature(owner).parameters.get(name) for owner in owners]
            owned = [p.default for p in parameters if p and p.default is not p.empty]
            if any(default != owned[0] for default in owned):
                raise ValueError(f"{name} of {command.__name__}: expected one default, got {owned}")
            if owned:
                taken[name] = owned[0]
        command.__kwdefaults__ = taken
        return command

    return given


def run(
    commands: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    prog: str,
    arguments: Sequence[str] | None = None,
    description: str | None = None,
) -> Any:
    """Call a command as its words say; its arguments are the options, its docstring their help.

    Args:
        commands: The function, or functions by the name that is the first word.
        prog: What stands before the words.
        arguments: The words; those of the process unless given.
        description: Of the help; the function's docstring unless given.

    Returns:
        What the command returns. A wrong word ends the process with status 2.
    """
    import tyro

    words = sys.argv[1:] if arguments is None else arguments
    shared: dict[str, Any] = dict(
        prog=prog, args=words, description=description, registry=whole_numbers()
    )
    if callable(commands):
        return tyro.cli(commands, **shared)
    if wrong := wrong_command(words, dict.fromkeys(commands, ())):
        refuse(wrong)
    return tyro.extras.subcommand_cli_from_dict(dict(commands), **shared)


def refuse(message: str) -> NoReturn:
    """Say in a line what is wrong with the words, and end with status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


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
