"""What the fields of a configuration may hold: stated in their types, checked before any work."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

_KINDS = {int: "an integer", float: "a number", str: "text", bool: "True or False", Path: "a path"}


@dataclass(frozen=True)
class Must:
    """A limit of a number, as metadata of its type.

    Attributes:
        be: What it must be, in words.
        holds: Whether a value is that.

    """

    be: str
    holds: Callable[[Any], bool]


AtLeastOne: TypeAlias = Annotated[int, Must("at least 1", lambda value: value >= 1)]
AtLeastZero: TypeAlias = Annotated[int, Must("at least 0", lambda value: value >= 0)]
Seed: TypeAlias = Annotated[int, Must("from 0 to 2^64 - 1", lambda value: 0 <= value < 1 << 64)]
AboveZero: TypeAlias = Annotated[
    float, Must("a finite number above 0", lambda value: 0 < value < math.inf)
]
NotNegative: TypeAlias = Annotated[
    float, Must("a finite number, at least 0", lambda value: 0 <= value < math.inf)
]
Share: TypeAlias = Annotated[float, Must("from 0 to 1", lambda value: 0 <= value <= 1)]
ShareBelowOne: TypeAlias = Annotated[float, Must("in [0, 1)", lambda value: 0 <= value < 1)]
RealShare: TypeAlias = Annotated[float, Must("between 0 and 1", lambda value: 0 < value < 1)]


def check_fields(config: Any, prefix: str = "") -> None:
    """Check every field of a dataclass, and of those in it, against its type and its limits.

    Args:
        config: A dataclass of numbers, strings, paths, tuples and dataclasses.
        prefix: Of the fields' names in messages.

    Raises:
        TypeError: If a value is of another type than its field.
        ValueError: If a value is beyond its field's limits.

    >>> @dataclass
    ... class Recipe:
    ...     batch_size: AtLeastOne = 80
    >>> check_fields(Recipe(), "recipe.")
    >>> check_fields(Recipe(0), "recipe.")
    Traceback (most recent call last):
    ValueError: recipe.batch_size must be at least 1, got 0
    >>> check_fields(Recipe("80"), "recipe.")
    Traceback (most recent call last):
    TypeError: recipe.batch_size must be an integer, got '80'
    """
    for name, kind in get_type_hints(type(config), include_extras=True).items():
        check(kind, getattr(config, name), prefix + name)


def check(kind: Any, value: Any, name: str) -> None:
    """Check one value against a type and its limits.

    Args:
        kind: The type, as a dataclass's field has it.
        value: To check.
        name: In messages.

    Raises:
        TypeError: If the value is of another type.
        ValueError: If it is beyond the limits.

    >>> check(Share, 2.0, "sweep_share")
    Traceback (most recent call last):
    ValueError: sweep_share must be from 0 to 1, got 2.0
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        check(arguments[0], value, name)
        for limit in arguments[1:]:
            if isinstance(limit, Must) and not limit.holds(value):
                raise ValueError(f"{name} must be {limit.be}, got {value!r}")
    elif origin in (Union, types.UnionType):
        if value is not None:
            (given,) = (each for each in arguments if each is not type(None))
            check(given, value, name)
    elif origin is Literal:
        if value not in arguments:
            *others, last = map(str, arguments)
            raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")
    elif origin is tuple:
        _check_tuple(arguments, value, name)
    elif not _is(kind, value):
        raise TypeError(f"{name} must be {_KINDS.get(kind, kind.__name__)}, got {value!r}")
    elif dataclasses.is_dataclass(kind):
        check_fields(value, f"{name}.")


def _check_tuple(kinds: tuple[Any, ...], value: Any, name: str) -> None:
    if not isinstance(value, tuple):
        raise TypeError(f"{name} must be a tuple, got {value!r}")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{name} must have {len(kinds)} values, got {value!r}")
    for index, (kind, each) in enumerate(zip(kinds, value, strict=True)):
        check(kind, each, f"{name}[{index}]")


def _is(kind: Any, value: Any) -> bool:
    if kind is float:
        return type(value) in (int, float)
    return type(value) is int if kind is int else isinstance(value, kind)
