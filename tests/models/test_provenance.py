"""The commit that a result names is that of the code, or none."""

import re
import subprocess

import pytest

from models.provenance import code_commit


@pytest.fixture(autouse=True)
def _no_stated_commit(monkeypatch):
    monkeypatch.delenv("FLOPCOUNT_COMMIT", raising=False)


@pytest.fixture
def repository(tmp_path):
    """A repository with one committed file."""
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    (tmp_path / "code.py").write_text("1")
    for command in (["init", "-q"], ["add", "code.py"], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_commit_is_named_and_a_change_marked(repository):
    commit = code_commit(repository / "code.py")
    assert re.fullmatch("[0-9a-f]{12}", commit)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True)
    assert head.stdout.decode().startswith(commit)
    (repository / "code.py").write_text("2")
    assert code_commit(repository / "code.py") == f"{commit}-dirty"


def test_a_surrounding_repository_is_not_the_codes(repository):
    """As where the package is installed below another project's checkout."""
    installed = repository / "site-packages" / "models"
    installed.mkdir(parents=True)
    (installed / "code.py").touch()
    assert code_commit(installed / "code.py").startswith("unknown: ")


def test_without_git_nothing_is_named_unless_stated(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert code_commit(repository / "code.py").startswith("unknown: ")
    monkeypatch.setenv("FLOPCOUNT_COMMIT", "abc")
    assert code_commit(repository / "code.py") == "abc"
