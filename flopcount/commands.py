"""Commands: options whose defaults the functions behind them own, and one way to read the words."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from flopcount.terminal import whole_numbers, wrong_command

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
