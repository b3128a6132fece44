"""The documentation's site: a broken link fails its build, and nothing public is missing."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flopcount as fc

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGE = "# Title\n\nSee [here]({}) and {{py:func}}`flopcount.tables.{}`.\n"
REFERENCE = "```{eval-rst}\n.. automodule:: flopcount.tables\n```\n"


def build(folder: Path) -> subprocess.CompletedProcess:
    """As ``make docs`` builds."""
    pytest.importorskip("sphinx", reason="the extra docs is not installed")
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--builder", "html",
         str(folder), str(folder / "built")],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("link", "name", "said"),
    [
        ("index.md", "shown", ""),
        ("nowhere.md", "shown", "nowhere.md"),
        ("#no-such-heading", "shown", "no-such-heading"),
        ("index.md", "no_such_function", "py:func reference target not found"),
    ],
)
def test_a_broken_link_fails_the_build(tmp_path, link, name, said):
    shutil.copy(DOCS / "conf.py", tmp_path)
    (tmp_path / "index.md").write_text(PAGE.format(link, name) + REFERENCE, encoding="utf-8")
    done = build(tmp_path)
    assert (done.returncode != 0) == bool(said), done.stderr
    assert said in done.stderr


def documented() -> set[str]:
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    return set(re.findall(r"automodule:: flopcount\.(\S+)", pages))


def test_every_public_name_is_in_the_reference():
    homes = {getattr(fc, name).__module__.removeprefix("flopcount.") for name in fc.__all__}
    assert len(homes) > 10
    assert homes <= documented()


def test_commands_of_the_site_stand_in_the_makefile_and_in_ci():
    assert "--fail-on-warning" in (ROOT / "Makefile").read_text()
    assert "make docs" in (ROOT / ".ci/run").read_text()


def test_examples_on_pages_are_run():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "--doctest-glob=*.md" in options["addopts"]
    run = {page for pattern in options["testpaths"] for page in ROOT.glob(pattern)}
    pages = {page: page.read_text() for page in (ROOT / "README.md", *DOCS.rglob("*.md"))}
    assert len(examples := {page for page, text in pages.items() if ">>> " in text}) >= 11
    assert examples <= run
    # The loops of libraries that only `make test-adapters` installs, and a test to copy.
    unrun = [page.name for page, text in pages.items() if re.search(r"```python\n(?!>>>)", text)]
    assert unrun == ["in-your-loop.md"]
