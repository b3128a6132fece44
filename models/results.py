"""Tables of results: a CSV that is complete after each row, and where its numbers come from."""

from __future__ import annotations

import csv
import datetime
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from models.provenance import code_commit

NO_GPU = "no GPU"


def timestamp() -> str:
    """Now, in UTC, to the second: ``2026-01-31T12:00:00+00:00``."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@functools.cache
def environment() -> dict[str, str]:
    """Where a result comes from: device, versions, commit, date, command."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else NO_GPU,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        or "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "triton": _version("triton"),
        "commit": code_commit(),
        "date": timestamp(),
        "command": " ".join(["python", *sys.orig_argv[1:]]),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _said(*command: str) -> str:
    """What a program prints; nothing where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


class Table:
    """A CSV that is complete after each row, and that a later run continues.

    Args:
        path: The file; its folder is made.
        columns: All columns.
        key: Those that name a row; rows of a key that is there are not added again.

    Raises:
        ValueError: If the file holds other columns.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], key: tuple[str, ...]) -> None:
        self.path, self.columns, self.key = path, columns, key
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(",".join(columns) + "\n", encoding="utf-8")
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != columns:
                raise ValueError(f"{path} must have the columns {columns}, got {reader.fieldnames}")
            self._done = {self._key_of(row) for row in reader}

    def _key_of(self, row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in self.key)

    def has(self, **key: Any) -> bool:
        """Whether the row of that key is there."""
        return self._key_of(key) in self._done

    def add(self, **row: Any) -> None:
        """Append a row and hand it to the disk; a column without a value stays empty."""
        unknown = set(row) - set(self.columns)
        if unknown:
            raise ValueError(f"row must have columns of {self.columns}, got {sorted(unknown)}")
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
        self._done.add(self._key_of(row))


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, as text; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_environment(folder: Path, name: str, **more: Any) -> None:
    """Append what a run ran on, with ``more`` of its own, as one line of ``name``.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(environment() | more) + "\n")


def markdown(rows: Iterable[Mapping[str, str]], columns: Iterable[str]) -> str:
    """Rows of any results as a markdown table of some of their columns."""
    columns = tuple(columns)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row[name] for name in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def between_marks(text: str, name: str, content: str) -> str:
    r"""A text with ``content`` between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.

    Raises:
        ValueError: If the text does not have both marks, in order.

    >>> between_marks("<!-- begin it -->old<!-- end it -->", "it", "new")
    '<!-- begin it -->\n\nnew\n<!-- end it -->'
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"text must have the marks {begin!r} and {end!r}, in this order")
    return f"{before}{begin}\n\n{content}\n{end}{after}"
