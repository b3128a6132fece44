"""The command line, from training to text."""

import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import flopcount.cli
from models import __main__ as command_line
from models.__main__ import main
from models.training.checkpoints import steps_done


@pytest.fixture
def corpus(tmp_path):
    for index in range(4):
        (tmp_path / f"{index}.txt").write_text(f"{index} and the quick brown fox; " * 40)
    return [
        "--corpus.files",
        str(tmp_path / "*.txt"),
        "--corpus.cache",
        str(tmp_path / "cache"),
        "--model.num-latents",
        "8",
        "--model.num-prefix",
        "6",
        "--model.num-heads",
        "2",
        "--recipe.batch-size",
        "2",
        "--device",
        "cpu",
    ]


DOCS = Path(__file__).parents[2] / "docs"
SIZES = ["--model.num-channels", "8", "--model.num-layers", "2"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process: its status, and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["models", *map(str, arguments)])
        capsys.readouterr()
        try:
            status = main()
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return call


def test_a_run_is_trained_resumed_and_heard(run, corpus, tmp_path):
    folder = tmp_path / "run"
    status, trained, _ = run("train", folder, *SIZES, "--steps", 6, "--validations", 2, *corpus)
    assert status == 0
    assert "FLOPs, validation loss" in trained
    status, resumed, _ = run("resume", folder)
    assert (status, resumed.splitlines()[0]) == (0, trained.splitlines()[0])
    status, text, _ = run("generate", folder, "--prompt", "the quick", "--num-tokens", 5)
    assert status == 0
    assert text.startswith("the quick")
    assert len(text) > len("the quick\n")
    # Without a prompt, with the first M + 1 tokens of the held-out text.
    _, text, _ = run("generate", folder, "--num-tokens", 5)
    held_out = [(tmp_path / f"{index}.txt").read_text() for index in range(4)]
    assert any(document.startswith(text[:7]) for document in held_out)


def test_a_sentencepiece_run_speaks_without_its_corpus(run, corpus, tmp_path):
    folder = tmp_path / "run"
    pieces = ["--corpus.tokenizer", "sentencepiece", "--model.vocab-size", "300"]
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioumnrst", k=5)) for _ in range(300)]
    for index in range(4):
        (tmp_path / f"{index}.txt").write_text(" ".join(draw.choices(words, k=900)))
    status, *_ = run("train", folder, *SIZES, "--steps", 3, "--validations", 1, *pieces, *corpus)
    assert status == 0
    for file in tmp_path.glob("*.txt"):
        file.unlink()
    status, text, _ = run("generate", folder, "--prompt", "the quick", "--num-tokens", 5)
    assert status == 0
    assert text.startswith("the quick")


def test_a_sweep_is_trained_and_reported(run, corpus, tmp_path):
    folder = tmp_path / "sweep"
    family = ["--budgets", "1e7", "--shapes", *"4 1 8 1 12 1 16 1".split(), "--validations", "1"]  # noqa: SIM905
    status, trained, _ = run("sweep", folder, "custom", *family, *corpus)
    assert status == 0
    assert trained.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert trained.count(": validation loss ") == 4
    assert "sweep, 4/4 runs" in trained
    # No run's own line is left once it has ended.
    assert trained.count("steps 0:") == 1
    (folder / "report.html").unlink()
    assert run("report", folder)[0] == 0
    assert (folder / "report.html").exists()
    status, _, error = run("generate", folder)
    assert status == 2
    assert f"folder must be of a run, got a sweep: its runs are in {folder / 'runs'}" in error


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["resume", "nosuch"], 2, "nosuch must be the folder of a run or a sweep, got none"),
        (["generate", "nosuch"], 2, "nosuch must be the folder of a run or a sweep, got none"),
        (["report", "nosuch"], 2, "nosuch must be the folder of a run or a sweep, got none"),
        (["train", "x", "--corpus.files", "nosuch"], 2, "must match a file, got 'nosuch'"),
        (["train", "x", "--corpus.held-out", "2"], 2, "held_out must be between 0 and 1, got 2.0"),
        (["train", "x", "--steps", "0"], 2, "steps must be at least 1, got 0"),
        (["train", "x", "--model.num-heads", "7"], 2, "num_heads"),
        (["train", "x", "--peak", "nosuch"], 2, "nosuch"),
        (
            ["sweep", "x", "custom", "--budgets", "1", "--shapes", "8", "1", "--seeds", "0", "0"],
            2,
            "seeds must be given, each once",
        ),
        (["plan", "demo", "--model.num-channels", "64"], 2, "num_channels does nothing in a sweep"),
        (
            ["sweep", "x", "demo", "--model.num-layers", "3"],
            2,
            "num_layers does nothing in a sweep",
        ),
        (["kill-test", "x", "--kills", "0"], 2, "kills must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_one_line(run, tmp_path, monkeypatch, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(*arguments)
    (line,) = error.splitlines()
    assert code == status
    assert line.startswith("error: ")
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: expected one of train, resume, report, kill-test, generate, plan, sweep"),
        (["trian", "x", "--steps", "3"], "error: 'trian' is no command: did you mean 'train'?"),
        (["plan", "demoo"], "error: plan: 'demoo' is no command: did you mean 'demo'?"),
        (["train"], "Missing"),
        (["train", "x", "--steps", "many"], "Error parsing --steps"),
        (["train", "x", "--nosuch", "3"], "Unrecognized options: --nosuch"),
    ],
)
def test_a_wrong_command_is_explained(run, arguments, message):
    code, _, error = run(*arguments)
    assert code == 2
    assert message in error
    assert "Traceback" not in error


def test_every_command_is_known(run):
    _, out, _ = run("--help")
    usage = re.search(r"{([\w,-]+)}", out)[1].split(",")
    assert set(usage) == set(command_line._COMMANDS)
    _, out, _ = run("plan", "--help")
    assert re.search(r"{([\w,-]+)}", out)[1].split(",") == list(command_line._COMMANDS["plan"])


@pytest.mark.parametrize("width", [80, 200])
def test_tables_fit_the_terminal(run, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, _ = run("plan", "demo")
    assert status == 0
    assert max(map(len, out.splitlines())) <= width


def test_integers_are_written_as_budgets_are(run):
    sizes = ["--shapes", "512", "8", "--model.vocab-size"]
    plans = [run("plan", "custom", "--budgets", "1e18", *sizes, size) for size in ("32e3", "32000")]
    assert plans[0][0] == 0
    assert plans[0] == plans[1]


def test_work_that_fails_has_another_status(run, corpus, tmp_path):
    rate = ["--recipe.learning-rate", "1e30", "--recipe.warmup-steps", "0"]
    folder = tmp_path / "run"
    status, _, error = run("train", folder, *SIZES, "--steps", 20, *rate, *corpus)
    assert status == 1
    assert "a smaller learning rate than 1e+30 may help" in error.splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupted_sweep_ends_in_a_line(run, corpus, tmp_path):
    folder = tmp_path / "sweep"
    # Hours of steps, so that no run can end before the signal, however late that comes.
    family = ["--budgets", "1e12", "--shapes", "4", "1", "8", "1", "--validations", "1"]
    command = [sys.executable, "-m", "models", "sweep", folder, "custom", *family, *corpus]
    # Seldom enough that a slow disk does not keep runs waiting for it, which nothing can end.
    command += ["--checkpoint-steps", "500"]
    sweep = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 600
        while sum(steps_done(run) > 0 for run in folder.glob("runs/*")) < 2:
            assert time.monotonic() < deadline
            assert sweep.poll() is None, sweep.communicate()
            time.sleep(0.01)
        os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does: to the sweep and to all its runs
        _, error = sweep.communicate(timeout=600)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(sweep.pid, signal.SIGKILL)
    assert sweep.returncode == 130
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("interrupted: ")
    assert not (folder / "runs.csv").exists()


class ReachedError(Exception):
    """A command was understood, and would now do its work."""


def commands_of(page):
    """The arguments of each ``-m models`` in a page's code blocks."""
    for block in re.findall(r"```(?:bash)?\n(.*?)```", page, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if "-m models" in line:
                yield shlex.split(line.partition("-m models")[2])


@pytest.mark.parametrize(("page", "count"), [("training.md", 3), ("scale.md", 3)])
def test_the_commands_of_the_pages_are_understood(run, monkeypatch, page, count):
    def reached(*_, **__):
        raise ReachedError

    for work in ("train", "run_sweep", "kill_test"):
        monkeypatch.setattr(command_line, work, reached)
    commands = list(commands_of((DOCS / page).read_text()))
    assert len(commands) == count
    for command in commands:
        with pytest.raises(ReachedError):
            run(*command)
    # The twin: a shape that is not two words.
    status, *_ = run("sweep", "x", "custom", "--budgets", "1e18", "--shapes", "512,8")
    assert status == 2


def test_a_sweep_has_the_steps_of_the_planners_family(run, capsys):
    page = (DOCS / "isoflop.md").read_text()
    (command,) = commands_of(page)
    status, out, _ = run(*command)
    assert status == 0
    plan = re.search(r"```\nflopcount (plan .*?)```", page, flags=re.DOTALL)[1]
    assert flopcount.cli.main(shlex.split(plan.replace("\\\n", " "))) == 0
    planned = capsys.readouterr().out
    for steps in ("513,066", "326,411", "132,596"):
        assert all(steps in text for text in (out, planned, page))
