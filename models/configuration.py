"""Typed configurations in the folders of runs and sweeps, as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from models.files import write_atomically
from models.limits import check_fields

_FILE = "config.json"
_Config = TypeVar("_Config")


def claim_folder(config: Any, folder: Path, may_differ: tuple[str, ...] = ()) -> None:
    """Write a configuration into a new folder; in an old one it must be the same.

    Args:
        config: A dataclass of numbers, strings, paths, tuples and dataclasses.
        folder: An existing folder.
        may_differ: Fields that do not change what is computed.

    Raises:
        ValueError: If the folder was made with another configuration.

    """
    if (folder / _FILE).exists():
        ignored = {name: getattr(config, name) for name in may_differ}
        if dataclasses.replace(read_config(type(config), folder), **ignored) != config:
            raise ValueError(
                f"{folder} was made with another configuration: "
                f"{_difference(read_config(type(config), folder), config, may_differ)}"
            )
        return
    text = json.dumps(dataclasses.asdict(config), indent=2, default=str)
    write_atomically(folder / _FILE, text.encode())


def read_config(kind: type[_Config], folder: Path) -> _Config:
    """Read the configuration of type ``kind`` that a folder was made with.

    Raises:
        ValueError: If the folder has none, or one of another kind.

    """
    fields = read_fields(folder)
    try:
        config = _build(kind, fields)
        check_fields(config)
        return config
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{folder / _FILE} must hold a {kind.__name__}, got other fields: {error}"
        ) from error


def read_fields(folder: Path) -> dict[str, Any]:
    """Read the fields of the configuration that a folder was made with, of whatever type.

    Raises:
        ValueError: If the folder has none.

    """
    try:
        fields = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} must be the folder of a run or a sweep, got none") from None
    except ValueError as error:
        raise ValueError(f"{folder / _FILE} must be JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{folder / _FILE} must hold a configuration, got {fields!r}")
    return fields


def _difference(made: Any, asked: Any, may_differ: tuple[str, ...]) -> str:
    """Name each field that differs, with both values."""
    before, now = (_flat(dataclasses.asdict(config)) for config in (made, asked))
    names = [name for name in now if before[name] != now[name]]
    names = [name for name in names if name.split(".")[0] not in may_differ]
    return "; ".join(f"{name} was {before[name]}, now {now[name]}" for name in names)


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _build(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _build(hints[name], item) for name, item in value.items()})
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        return tuple(_build(*pair) for pair in zip(kinds, value, strict=True))
    return Path(value) if kind is Path else value
