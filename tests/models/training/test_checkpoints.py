"""Checkpoints: whatever moment a write ends at, the last good one is there."""

import errno
import json
import os
import signal
import sys

import pytest
import torch

from models import files
from models.files import write_atomically
from models.training import checkpoints
from models.training.checkpoints import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    steps_done,
)


def checkpoint(step):
    """Tensors and state that tell their step."""
    return {"a": torch.full((3,), float(step)), "b": torch.arange(5) * step}, {"loss": [step / 7]}


def save(folder, step):
    save_checkpoint(folder, step, *checkpoint(step))


def loaded_step(folder):
    """The step of a folder's checkpoint, whole; raises where it is not."""
    step, tensors, state = load_checkpoint(folder)
    expected_tensors, expected_state = checkpoint(step)
    assert state == expected_state
    assert tensors.keys() == expected_tensors.keys()
    assert all(torch.equal(tensors[name], expected_tensors[name]) for name in tensors)
    return step


def call_at_line(number, action, function):
    """Call ``function``, and ``action`` before the given line executed in the module or here."""
    traced = {checkpoints.__file__, files.__file__, __file__}
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        if frame.f_code.co_filename not in traced:
            return None
        if event == "line":
            lines += 1
            if lines == number:
                sys.settrace(None)
                action()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return lines


def kill_at_line(number, function):
    """The same in a process of its own, killed before that line; true if it came so far."""
    pid = os.fork()
    if pid == 0:
        call_at_line(number, lambda: os.kill(os.getpid(), signal.SIGKILL), function)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def steps_after_each_kill(folder, write):
    """Kill ``write`` of step 2 before each line in turn: the steps of what is then loaded."""
    steps = []
    while True:
        for file in folder.iterdir():
            file.unlink()
        save(folder, 1)
        if not kill_at_line(len(steps) + 1, lambda: write(folder, 2)):
            return steps
        steps.append(loaded_step(folder))
        save(folder, 3)  # what the dead process left does not stand in the way
        assert loaded_step(folder) == 3
        assert len(list(folder.iterdir())) == 2 + len(list(folder.glob(".*.new")))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_before_any_line_leaves_the_checkpoint_before_or_the_new_one(tmp_path):
    steps = steps_after_each_kill(tmp_path, save)
    assert len(steps) > 30
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_before_any_line_of_the_first_leaves_none_or_the_first(tmp_path):
    found = []
    while kill_at_line(len(found) + 1, lambda: save(tmp_path, 1)):
        found.append(load_checkpoint(tmp_path) and loaded_step(tmp_path))
        for file in tmp_path.iterdir():
            file.unlink()
    assert set(found) == {None, 1}
    assert found.index(1) == found.count(None) > 30


def test_tensors_without_their_state_are_no_beginning(tmp_path):
    """A deleted ``checkpoint.json`` must not start a run again that was far."""
    save(tmp_path, 7)
    (tmp_path / "checkpoint.json").unlink()
    for read in (load_checkpoint, steps_done):
        with pytest.raises(CheckpointError, match="json is missing beside step-000000007"):
            read(tmp_path)
    (tmp_path / "step-000000007.safetensors").unlink()
    assert load_checkpoint(tmp_path) is None
    assert steps_done(tmp_path) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_write_in_place_would_be_found(tmp_path, monkeypatch):
    """The twin: the state written over the old one, in two halves."""

    def in_place(path, content):
        with path.open("wb") as file:
            file.write(content[:50])
            file.flush()
            file.write(content[50:])

    monkeypatch.setattr(checkpoints, "write_atomically", in_place)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json cannot be read"):
        steps_after_each_kill(tmp_path, save)


class PlantedError(Exception):
    pass


def raise_planted():
    raise PlantedError


def test_raising_before_any_line_leaves_the_checkpoint_before_or_the_new_one(tmp_path):
    steps = []
    while True:
        for file in tmp_path.iterdir():
            file.unlink()
        save(tmp_path, 1)
        try:
            call_at_line(len(steps) + 1, raise_planted, lambda: save(tmp_path, 2))
        except PlantedError:
            steps.append(loaded_step(tmp_path))
        else:
            break
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}


def order_of_writing(folder, monkeypatch):
    """What reaches the disk in which order: flushed files and folders, and names given."""
    order = []
    fsync, replace = os.fsync, os.replace

    def name(path):
        return "folder" if os.path.isdir(path) else os.path.basename(path)  # noqa: PTH112, PTH119

    def flushed(descriptor):
        order.append(("flush", name(os.readlink(f"/proc/self/fd/{descriptor}"))))  # noqa: PTH115
        fsync(descriptor)

    def renamed(source, target, **_):
        order.append(("rename", name(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    save(folder, 2)
    monkeypatch.undo()
    return order


SAFE_ORDER = [
    ("flush", ".step-000000002.safetensors.new"),
    ("rename", "step-000000002.safetensors"),
    ("flush", "folder"),
    ("flush", ".checkpoint.json.new"),
    ("rename", "checkpoint.json"),
    ("flush", "folder"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="reads names of descriptors in /proc")
def test_content_is_on_the_disk_before_its_name_and_tensors_before_the_state(tmp_path, monkeypatch):
    save(tmp_path, 1)
    assert order_of_writing(tmp_path, monkeypatch) == SAFE_ORDER


@pytest.mark.skipif(sys.platform != "linux", reason="reads names of descriptors in /proc")
def test_a_missing_flush_would_be_seen(tmp_path, monkeypatch):
    """The twin: the file is renamed before it is on the disk."""
    with monkeypatch.context() as planted:
        planted.setattr(files, "flush", lambda path: None)
        assert order_of_writing(tmp_path, monkeypatch) != SAFE_ORDER


def test_refused_write_leaves_the_checkpoint_before_and_nothing_else(tmp_path, monkeypatch):
    """A disk that is full when content is flushed: of the tensors, then of the state."""
    save(tmp_path, 1)

    def full_disk(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for calls_before in (0, 2):
        calls = iter([os.fsync] * calls_before + [full_disk] * 9)
        monkeypatch.setattr(os, "fsync", lambda fd, calls=calls: next(calls)(fd))
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 2)
        monkeypatch.undo()
        assert loaded_step(tmp_path) == 1
        assert not list(tmp_path.glob(".*"))
    save(tmp_path, 2)
    assert loaded_step(tmp_path) == 2


@pytest.mark.parametrize("room", [28, 36, 44, 52])
def test_full_disk_leaves_the_checkpoint_before(small_disk, room):
    """16 KiB of tensors beside the checkpoint before need twice that, so less space runs out."""
    tensors = {"a": torch.ones(4096)}
    save_checkpoint(small_disk, 1, tensors, {})
    (small_disk / "ballast").write_bytes(bytes((512 - room) * 1024))
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(small_disk, 2, tensors, {"state": "x" * 8192})
    step, loaded, _ = load_checkpoint(small_disk)
    assert step == 1
    assert torch.equal(loaded["a"], tensors["a"])
    (small_disk / "ballast").unlink()
    save_checkpoint(small_disk, 2, tensors, {"state": "x" * 8192})
    assert load_checkpoint(small_disk)[0] == 2


def test_any_changed_byte_is_found(tmp_path):
    save(tmp_path, 7)
    found = 0
    for name in ("checkpoint.json", "step-000000007.safetensors"):
        content = (tmp_path / name).read_bytes()
        for place in range(len(content)):
            changed = bytearray(content)
            changed[place] ^= 1
            (tmp_path / name).write_bytes(changed)
            with pytest.raises(CheckpointError, match="remove the run's folder"):
                load_checkpoint(tmp_path)
            found += 1
        (tmp_path / name).write_bytes(content)
    assert found > 300
    assert loaded_step(tmp_path) == 7


def test_a_pickle_is_not_opened(tmp_path):
    """A file of pickled code, under the right checksum, is refused, not run."""
    save(tmp_path, 1)
    file = tmp_path / "step-000000001.safetensors"
    torch.save({"a": torch.ones(1)}, file)
    signed = json.loads((tmp_path / "checkpoint.json").read_text())
    content = signed["checkpoint"] | {
        "sha256": checkpoints.hashlib.sha256(file.read_bytes()).hexdigest()
    }
    signed = {"sha256": checkpoints._checksum(content), "checkpoint": content}
    (tmp_path / "checkpoint.json").write_text(json.dumps(signed))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)


def test_written_file_is_whole_or_absent(tmp_path):
    write_atomically(tmp_path / "file", b"one")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "file", "not bytes")
    assert (tmp_path / "file").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
