"""Checkpoints that survive a crash: safetensors for tensors, JSON for the rest, no pickle.

A checkpoint is a file of tensors named by its step and ``checkpoint.json``, which names that file,
its SHA-256 and the rest of the state, and carries a SHA-256 of its own. Both are written beside
their place, flushed to disk and renamed; ``checkpoint.json`` comes last. Whatever moment a process
dies at, the file that ``checkpoint.json`` names is whole. The first checkpoint is preceded by a
``checkpoint.json`` that names none, so that tensors without one tell that it was taken away.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file

from models.files import replacing, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_STATE = "checkpoint.json"
_TENSORS = "step-*.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or belongs to another run."""


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]):
    """Write the checkpoint of ``step`` and remove the one before.

    Args:
        folder: The run's folder.
        step: Steps done.
        tensors: By name, contiguous, none sharing memory.
        state: Everything else, as JSON can hold it.

    Raises:
        OSError: If the disk is full or refuses; the checkpoint before is still there.

    """
    if not (folder / _STATE).exists():
        _write_state(folder, {"step": 0, "file": None})
    file = folder / f"step-{step:09d}.safetensors"
    with replacing(file) as temporary:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(f"{file} cannot be written: {error}") from error
        with temporary.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    _write_state(folder, {"step": step, "file": file.name, "sha256": digest, "state": state})
    for other in folder.glob(_TENSORS):
        if other != file:
            other.unlink()


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Read a run's checkpoint.

    Returns:
        Steps done, tensors and state as saved; None if the run has no checkpoint yet.

    Raises:
        CheckpointError: If a file is missing, truncated or changed.

    """
    content = _read_state(folder)
    if content is None or content["file"] is None:
        return None
    file = folder / content["file"]
    try:
        saved = file.read_bytes()
    except OSError as error:
        raise _damaged(f"{file} cannot be read: {error}") from error
    if hashlib.sha256(saved).hexdigest() != content["sha256"]:
        raise _damaged(f"{file} is not what was saved: its SHA-256 differs")
    try:
        return content["step"], load(saved), content["state"]
    except SafetensorError as error:
        raise _damaged(f"{file} cannot be read: {error}") from error


def steps_done(folder: Path) -> int:
    """Count the steps that a run's checkpoint holds; 0 without one.

    Raises:
        CheckpointError: If the checkpoint cannot be read. The tensors are not looked at.

    """
    content = _read_state(folder)
    return content["step"] if content else 0


def _read_state(folder: Path) -> dict[str, Any] | None:
    path = folder / _STATE
    try:
        signed = json.loads(path.read_text(encoding="utf-8"))
        content = signed["checkpoint"]
        if signed["sha256"] == _checksum(content):
            return content
    except FileNotFoundError:
        if orphan := next(folder.glob(_TENSORS), None):
            raise _damaged(f"{path} is missing beside {orphan.name}") from None
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(f"{path} cannot be read: {error}") from error
    raise _damaged(f"{path} is not what was saved: its SHA-256 differs")


def _write_state(folder: Path, content: dict[str, Any]) -> None:
    signed = {"sha256": _checksum(content), "checkpoint": content}
    write_atomically(folder / _STATE, json.dumps(signed).encode())


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"{what}; remove the run's folder to train it again")
