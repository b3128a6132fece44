"""Which commit of the code produced a result."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def code_commit(file: Path = Path(__file__)) -> str:
    """Name the commit of the code that runs, ``-dirty`` where tracked files differ from it.

    The environment variable ``FLOPCOUNT_COMMIT`` names it where there is no git, as on a cluster's
    nodes. A repository that merely surrounds installed code, and does not track it, is not its
    commit.

    Args:
        file: Of the code.

    Returns:
        What ``git describe`` says, or a sentence that begins with ``unknown``.

    """
    if stated := os.environ.get("FLOPCOUNT_COMMIT"):
        return stated
    # Without optional locks: a process killed now would leave one in the user's repository.
    git = ["git", "-C", str(file.parent), "--no-optional-locks"]
    for command in (
        ["ls-files", "--error-unmatch", file.name],
        ["describe", "--always", "--dirty", "--abbrev=12"],
    ):
        try:
            said = subprocess.run([*git, *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return "unknown: not a git checkout; FLOPCOUNT_COMMIT may name it"
    return said.stdout.strip()
