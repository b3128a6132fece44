"""This machine as the place of a sweep's runs: one process and one thread for each.

Small models run far below a machine's peak, so as many runs are trained side by side as there are
cores. When the sweep's own process is killed, those of its runs end with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from models.processes import end_with_parent
from models.sweeps.placement import saved_steps, train_placed

if TYPE_CHECKING:
    from ctypes import Array, c_longlong
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

    from models.sweeps.placement import OnStep
    from models.sweeps.plan import SweepRun


class OneMachine:
    """This machine: a process with one thread for each run, ``workers`` side by side."""

    def __init__(self, runs: list[SweepRun], folder: Path, workers: int, on_step: OnStep) -> None:
        self.runs, self.folder, self.capacity, self.on_step = runs, folder, workers, on_step
        # A fork server imports torch once, and what the program imports, which each of its
        # children would import again; they start in milliseconds and share no state. Torch's
        # optimisers import torch._dynamo when the first is made, which takes a second.
        self._context = multiprocessing.get_context("forkserver")
        program = sys.modules["__main__"].__spec__
        names = [__name__, "torch._dynamo", *([program.name] if program else [])]
        self._context.set_forkserver_preload(names)
        # Without a lock: a process killed while it held one would stop all others.
        saved = [saved_steps(folder / "runs" / run.name) for run in runs]
        self.done = self._context.RawArray("q", saved)
        self._processes: dict[int, tuple[ForkServerProcess, Connection]] = {}

    def start(self, index: int) -> None:
        """Start to train a run, from its checkpoint where it has one."""
        receiver, sender = self._context.Pipe(duplex=False)
        run = self.runs[index]
        arguments = (run, self.folder / "runs" / run.name, self.done, index, self.on_step, sender)
        process = self._context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        sender.close()
        self._processes[index] = process, receiver

    def wait(self) -> None:
        """Wait until a run ends, half a second at most."""
        wait([process.sentinel for process, _ in self._processes.values()], timeout=0.5)

    def ended(self) -> dict[int, str | None]:
        """Tell what the runs that have ended raised; None if they finished, or died silently."""
        ended: dict[int, str | None] = {}
        for index, (process, receiver) in list(self._processes.items()):
            if process.is_alive():
                continue
            process.join()
            del self._processes[index]
            ended[index] = None
            with receiver, contextlib.suppress(EOFError, OSError):
                ended[index] = receiver.recv()
        return ended

    def close(self) -> None:
        """End the runs that are being trained; they keep their checkpoints."""
        for process, _ in self._processes.values():
            process.terminate()
            process.join()


def _work(
    run: SweepRun,
    folder: Path,
    done: Array[c_longlong],
    index: int,
    on_step: OnStep,
    problems: Connection,
) -> None:
    """Train one run in this process; its steps go to ``done[index]``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep is interrupted, and ends its runs
    end_with_parent()  # another sweep may take over its run

    def report(step: int) -> None:
        done[index] = step
        if on_step is not None:
            on_step(run.name, step)

    problem = train_placed(run, folder, threads=1, report=report)
    if problem is not None:
        problems.send(problem)
        raise SystemExit(1)
