"""A sweep's runs as tasks of a Ray cluster, each placed where the cores and GPUs that it needs are.

Ray queues and places the runs. A run whose worker or node dies is given to Ray again and goes on
from its checkpoint, so the sweep's folder and its text must lie on storage that every node shares,
under the same paths. Where the sweep itself is killed, Ray ends its runs at once; of a cluster that
was started for the sweep, two servers remain about a minute, while they wait for another.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flopcount
import kernels
import models
from flopcount.extras import load
from models.provenance import code_commit
from models.sweeps.placement import saved_steps, train_placed

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.sweeps.placement import OnStep
    from models.sweeps.plan import SweepRun


def connect(**options: Any) -> None:
    """Connect to a Ray cluster, or start one on this machine, with this code on every node.

    Args:
        options: Of ``ray.init``.

    Raises:
        ImportError: If Ray is missing; the message names the extra.
        ConnectionError: If there is no cluster where ``RAY_ADDRESS`` says.

    """
    ray = load("ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        runtime_env={
            "py_modules": [flopcount, kernels, models],
            # The nodes get the code without its repository.
            "env_vars": {"FLOPCOUNT_COMMIT": code_commit()},
        },
        **options,
    )


class RayCluster:
    """The Ray cluster of ``RAY_ADDRESS``, or the one running on this machine, or a new one here.

    Args:
        runs: The sweep's.
        folder: The sweep's, on storage that every node shares.
        cpus: Cores of one run.
        gpus: GPUs of one run, or a part of one.
        on_step: Called in the run's process with its name and the number of steps done.

    Raises:
        ImportError: If Ray is missing; the message names the extra.
        RuntimeError: If no node of the cluster has what a run needs.

    """

    capacity = None

    def __init__(
        self, runs: list[SweepRun], folder: Path, cpus: int, gpus: float, on_step: OnStep
    ) -> None:
        self._ray = load("ray", "ray")
        self.runs, self.folder, self.on_step, self.cpus = runs, folder.resolve(), on_step, cpus
        self.done = [self._saved(index) for index in range(len(runs))]
        self._indices: dict[Any, int] = {}
        self._started = not self._ray.is_initialized()
        if self._started:
            connect()
        self._require_a_node(cpus, gpus)
        # Ray's own retries would give a run up that dies now and then over days, and not one that
        # dies at once each time: the sweep decides by the checkpoints.
        self._task = self._ray.remote(_train).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)

    def start(self, index: int) -> None:
        """Give a run to Ray, which starts it when its needs are met."""
        run = self.runs[index]
        arguments = (run, self._run_folder(index), Path.cwd(), self.cpus, self.on_step)
        task = self._task.remote(*arguments)
        self._indices[task] = index

    def wait(self) -> None:
        """Wait half a second, or less if a run ends."""
        self._ray.wait(list(self._indices), timeout=0.5)
        for index in self._indices.values():
            self.done[index] = self._saved(index)

    def ended(self) -> dict[int, str | None]:
        """Tell what the runs that have ended raised; None if they finished, or died silently."""
        tasks = list(self._indices)
        ready, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=0) if tasks else ([], [])
        return {self._indices[task]: self._outcome(task) for task in ready}

    def close(self) -> None:
        """Stop what still runs, and the cluster if it was started for this sweep."""
        for task in self._indices:
            self._ray.cancel(task, force=True)
        if self._started:
            self._ray.shutdown()

    def _require_a_node(self, cpus: int, gpus: float) -> None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            has = "; ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes)
            raise RuntimeError(
                f"a run needs {cpus} CPUs and {gpus:g} GPUs of one node, and the Ray cluster's "
                f"nodes have {has}: start such a node, or set cpus_per_run and gpus_per_run"
            )

    def _outcome(self, task: Any) -> str | None:
        index = self._indices.pop(task)
        try:
            problem, node = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            return str(error)
        except self._ray.exceptions.RayError:
            return None  # the worker or its node died
        self.done[index] = self._saved(index)
        if problem is None and self.done[index] < self.runs[index].config.steps:
            return (
                f"finished on {node}, which does not share {self.folder} with "
                f"{socket.gethostname()}: every node must"
            )
        return problem

    def _run_folder(self, index: int) -> Path:
        return self.folder / "runs" / self.runs[index].name

    def _saved(self, index: int) -> int:
        return saved_steps(self._run_folder(index))


def _train(
    run: SweepRun, folder: Path, home: Path, threads: int, on_step: OnStep
) -> tuple[str | None, str]:
    """Train one run in a Ray worker; give the problem, if there is one, and the node's name."""
    os.chdir(home)  # where the configuration's paths start
    report: Callable[[int], None] | None = None
    if on_step is not None:

        def report(step: int) -> None:
            on_step(run.name, step)

    return train_placed(run, folder, threads, report), socket.gethostname()
