"""Where the runs of a sweep are trained, and what every such place shares."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch

from models.training.checkpoints import CheckpointError, steps_done
from models.training.run import DivergedError, train

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from models.sweeps.plan import SweepRun

OnStep: TypeAlias = Callable[[str, int], None] | None
DIVERGED = "diverged: "
"""What the problem of a run begins with whose loss is no longer finite."""
_PATIENCE = 30.0
"""Seconds to wait for a run's process that a killed sweep has left behind."""


class Place(Protocol):
    """Where runs are trained: given some to start, it tells how far they are and which ended.

    Attributes:
        capacity: Runs that may be started and not ended at a time; None for any number.
        done: Steps of each run.

    """

    capacity: int | None
    done: Sequence[int]

    def start(self, index: int) -> None:
        """Start to train a run, from its checkpoint where it has one."""

    def wait(self) -> None:
        """Wait until a run ends, but not for long."""

    def ended(self) -> dict[int, str | None]:
        """Tell what the runs that have ended raised; None if they finished, or died silently."""


def saved_steps(folder: Path) -> int:
    """Count the steps that a run's checkpoint holds; 0 where it is missing or damaged."""
    try:
        return steps_done(folder)
    except CheckpointError:
        return 0  # the run itself will say what is wrong


def train_placed(
    run: SweepRun, folder: Path, threads: int, report: Callable[[int], None] | None
) -> str | None:
    """Train a run in a process of its own; give the problem, where there is one."""
    torch.set_num_threads(threads)
    try:
        train(run.config, folder, report, patience=_PATIENCE)
    except DivergedError as error:
        return f"{DIVERGED}{error}"
    except (ValueError, RuntimeError, OSError) as error:
        return str(error)
    except Exception:
        return traceback.format_exc()
    return None
