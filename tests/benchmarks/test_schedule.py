"""The schedule: limits, order, resumption, and that every part's command is one that exists."""

import functools
import importlib
import json
import tarfile
import time

import pytest
import torch

from benchmarks import schedule
from benchmarks.__main__ import PROGRAMS, main
from benchmarks.measurement import FINDING
from benchmarks.schedule import Part
from flopcount import commands


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("part", schedule.PARTS, ids=lambda part: part.name)
def test_every_command_is_understood(part, tiny, monkeypatch):
    words = (part.tiny if tiny and part.tiny else part.arguments).split()
    if words[0] == "pytest":
        return
    run = commands.run

    def parse_only(given, *rest):
        many = isinstance(given, dict)
        left_out = {name: unworked(command) for name, command in given.items()} if many else None
        return run(left_out or unworked(given), *rest)

    monkeypatch.setattr(commands, "run", parse_only)
    with pytest.raises(UnderstoodError):
        main([word.format(out="x") for word in words[1:]])
    with pytest.raises(SystemExit, match="2"):
        main([*words[1:], "--nosuch"])


class UnderstoodError(Exception):
    """A command would now do its work."""


def unworked(command):
    """The command, its work left out."""

    @functools.wraps(command)
    def understood(*_, **__):
        raise UnderstoodError

    return understood


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to use")
@pytest.mark.parametrize(
    ("words", "instead"),
    [
        ("benchmarks schedule", "--dry-run"),
        ("benchmarks attention --jobs 12", "--shapes tiny"),
        ("benchmarks block", "--tiny"),
        ("benchmarks training throughput", "--tiny"),
        ("benchmarks training curves", "--tiny"),
        ("benchmarks tune --jobs 12", "--tiny"),
    ],
)
def test_what_needs_a_gpu_is_refused_at_once_without_one(words, instead, tmp_path, capsys):
    module, *arguments = words.split()
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"{module}.__main__").main(
            [*arguments, "--out", str(tmp_path / "out")]
        )
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"needs a CUDA GPU, and torch finds none; {instead} tries it" in error
    assert not (tmp_path / "out").exists()


def test_names_are_distinct_and_the_probe_is_first():
    names = [part.name for part in schedule.PARTS]
    assert names[0] == "probe"
    assert len(names) == len(set(names))


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """Replace the schedule by parts that run Python source, given as (name, source, minutes)."""

    def make(*given):
        modules = tmp_path / "modules"
        modules.mkdir(exist_ok=True)
        made = []
        for name, source, minutes in given:
            (modules / f"{name}.py").write_text(source)
            made.append(Part(name, f"{name} {{out}}", minutes, f"{name} tiny"))
        monkeypatch.setattr(schedule, "PARTS", tuple(made))
        monkeypatch.setattr(schedule, "require_gpu", lambda instead: None)
        monkeypatch.setenv("PYTHONPATH", str(modules))
        return tmp_path / "out"

    return make


APPEND = "import sys; open({path!r}, 'a').write({name!r}); sys.exit({code})"


def test_parts_run_in_order_and_once(parts, tmp_path):
    path = str(tmp_path / "order")
    out = parts(
        ("one", APPEND.format(path=path, name="1", code=0), 1),
        ("two", APPEND.format(path=path, name="2", code=4), 1),
        ("three", APPEND.format(path=path, name="3", code=0), 1),
    )
    found = schedule.run(out, minutes=5)
    # What fails is tried again after the others, three times in all.
    assert (tmp_path / "order").read_text() == "12322"
    assert {name: part["end"] for name, part in found.items()} == {
        "one": "done",
        "two": "ended with 4",
        "three": "done",
    }
    assert json.loads((out / "schedule.json").read_text()) == found
    schedule.run(out, minutes=5)
    assert (tmp_path / "order").read_text() == "12322"


def test_a_finding_is_an_end(parts, tmp_path):
    path = str(tmp_path / "order")
    out = parts(("one", APPEND.format(path=path, name="1", code=FINDING), 1))
    assert schedule.run(out, minutes=5)["one"]["end"] == "done, with findings"
    assert (tmp_path / "order").read_text() == "1"


def test_a_part_is_ended_with_its_children_when_its_time_is_up(parts, tmp_path):
    child = f"import time; time.sleep(2); open({str(tmp_path / 'late')!r}, 'w')"
    source = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    out = parts(("slow", source, 0.5 / 60))
    started = time.monotonic()
    assert schedule.run_part(["slow"], out / "log", seconds=0.5) == "out of time"
    assert time.monotonic() - started < 4
    time.sleep(2.5)
    assert not (tmp_path / "late").exists()


def test_nothing_is_begun_without_time(parts):
    out = parts(("one", "", 1))
    assert schedule.run(out, minutes=0.5) == {}


def test_a_dry_run_is_tiny(parts, tmp_path):
    path = str(tmp_path / "said")
    out = parts(("one", f"import sys; open({path!r}, 'w').write(sys.argv[1])", 1))
    schedule.run(out, minutes=5, dry_run=True)
    assert (tmp_path / "said").read_text() == "tiny"


def test_the_archive_holds_results_and_no_checkpoints(parts, tmp_path):
    source = (
        "import pathlib, sys; out = pathlib.Path(sys.argv[1]);"
        "(out / 'runs').mkdir(); (out / 'runs' / 'checkpoint').write_text('x');"
        "(out / 'table.csv').write_text('a')"
    )
    out = parts(("one", source, 1))
    packed = tmp_path / "results.tar.gz"
    schedule.run(out, minutes=5, archive=packed)
    with tarfile.open(packed) as archive:
        assert sorted(archive.getnames()) == ["logs/one.log", "schedule.json", "table.csv"]


def test_unknown_parts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"parts must be of .*, got \['lunch'\]"):
        schedule.run(tmp_path, 1, ["probe", "lunch"])


def test_the_one_command_line_knows_every_command(capsys):
    for name, module in PROGRAMS.items():
        assert callable(importlib.import_module(module).main), name
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in PROGRAMS)
    with pytest.raises(SystemExit) as ended:
        main(["atention"])
    assert ended.value.code == 2
    assert "did you mean 'attention'?" in capsys.readouterr().err
