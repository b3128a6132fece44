"""Checkpoints that survive a crash: safetensors for tensors, JSON for the rest, no pickle.

A checkpoint is a file of tensors named by its step and ``checkpoint.json``, which names that file,
its SHA-256 and the rest of the state. Both are written beside their place, flushed to disk and
renamed; ``checkpoint.json`` comes last. Whatever moment a process dies at, the file that
``checkpoint.json`` names is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from safetensors.torch import load, save

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_STATE = "checkpoint.json"


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or belongs to another run."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, whole or not at all, also through a power cut.

    One process at a time may write into a folder.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]):
    """Write the checkpoint of ``step`` and remove the one before.

    Args:
        folder: the run's folder.
        step: steps done.
        tensors: by name, contiguous, none sharing memory.
        state: everything else, as JSON can hold it.

    Raises:
        OSError: if the disk is full or refuses; the checkpoint before is still there.

    """
    content = save(tensors)
    file = folder / f"step-{step:09d}.safetensors"
    write_atomically(file, content)
    named = {"step": step, "file": file.name, "sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(folder / _STATE, json.dumps(named | {"state": state}).encode())
    for other in folder.glob("step-*.safetensors"):
        if other != file:
            other.unlink()


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Read a run's checkpoint.

    Returns:
        Steps done, tensors and state as saved; None if the run has no checkpoint yet.

    Raises:
        CheckpointError: if a file is missing, truncated or changed.

    """
    if not (folder / _STATE).exists():
        return None
    try:
        named = json.loads((folder / _STATE).read_text())
        step, file, digest, state = (named[key] for key in ("step", "file", "sha256", "state"))
        content = (folder / file).read_bytes()
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            f"checkpoint in {folder} cannot be read ({error}); "
            f"remove the folder to train the run again"
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(
            f"{folder / file} is not what was saved: its SHA-256 differs; "
            f"remove the folder to train the run again"
        )
    return step, load(content), state
