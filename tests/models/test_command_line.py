"""The command line, from training to text."""

import subprocess
import sys

import pytest


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


def run(*arguments):
    command = [sys.executable, "-m", "models", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_is_trained_resumed_and_heard(corpus, tmp_path):
    folder = tmp_path / "run"
    sizes = ["--model.num-channels", "8", "--model.num-layers", "2", "--steps", "6"]
    trained = run("train", folder, *sizes, "--validations", "2", *corpus)
    assert "FLOPs, validation loss" in trained.stdout, trained.stderr
    last = trained.stdout.splitlines()[-1]
    assert run("resume", folder).stdout.splitlines()[-1] == last
    text = run("generate", folder, "--prompt", "the quick", "--num-tokens", 5).stdout
    assert text.startswith("the quick")
    assert len(text) > len("the quick\n")


def test_a_sweep_is_trained_and_reported(corpus, tmp_path):
    folder = tmp_path / "sweep"
    family = [
        "--budgets",
        "1e7",
        "--shapes",
        *map(str, (4, 1, 8, 1, 12, 1, 16, 1)),
        "--validations",
        "1",
    ]
    trained = run("sweep", folder, "custom", *family, *corpus)
    assert trained.stdout.splitlines()[-1] == f"report: {folder / 'report.html'}", trained.stderr
    assert "parabola in log N per budget" in trained.stdout
    (folder / "report.html").unlink()
    assert run("report", folder).returncode == 0
    assert (folder / "report.html").exists()


def test_mistakes_are_one_line(corpus, tmp_path):
    nothing = run("resume", tmp_path / "nothing")
    assert nothing.returncode == 1
    assert nothing.stderr.startswith("error: ")
    assert len(nothing.stderr.splitlines()) == 1
