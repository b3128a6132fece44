"""Typed configurations in the folders of runs and sweeps, as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from models.checkpoints import write_atomically

_FILE = "config.json"
_Config = TypeVar("_Config")


def claim_folder(config: Any, folder: Path, may_differ: tuple[str, ...] = ()) -> None:
    """Write a configuration into a new folder; in an old one it must be the same.

    Args:
        config: a dataclass of numbers, strings, paths, tuples and dataclasses.
        folder: an existing folder.
        may_differ: fields that do not change what is computed.

    Raises:
        ValueError: if the folder was made with another configuration.

    """
    if (folder / _FILE).exists():
        ignored = {name: getattr(config, name) for name in may_differ}
        if dataclasses.replace(read_config(type(config), folder), **ignored) != config:
            raise ValueError(f"{folder} was made with another configuration: see its {_FILE}")
        return
    text = json.dumps(dataclasses.asdict(config), indent=2, default=str)
    write_atomically(folder / _FILE, text.encode())


def read_config(kind: type[_Config], folder: Path) -> _Config:
    """Read the configuration of type ``kind`` that a folder was made with.

    Raises:
        ValueError: if the folder has none, or one of another kind.

    """
    try:
        return _build(kind, json.loads((folder / _FILE).read_text()))
    except FileNotFoundError:
        raise ValueError(f"{folder} must be the folder of a run or a sweep, got none") from None
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder / _FILE} must hold a {kind.__name__}: {error}") from error


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
