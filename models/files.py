"""Files that are whole at any moment: written beside their place, flushed to disk and renamed."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place beside ``path`` to write to; what is there at the end replaces ``path``.

    ``path`` is replaced whole or not at all, also through a power cut: the new file is on the disk
    before it takes the name, and the name before this returns. One process at a time may write
    into a folder. A process killed meanwhile leaves ``.<name>.new``, which the next write replaces.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, whole or not at all: see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
