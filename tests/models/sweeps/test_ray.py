"""A sweep on a local Ray cluster: as on one machine, also when a worker is killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.provenance import code_commit
from models.sweeps.plan import plan_runs
from models.sweeps.ray import RayCluster, connect
from models.sweeps.run import SweepError, run_sweep

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(sweep_config):
    return dataclasses.replace(
        sweep_config, budgets=(2e7,), shapes=((4, 1), (8, 1)), workers=None, cluster="ray"
    )


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    connect(num_cpus=2, object_store_memory=80_000_000)
    yield
    ray.shutdown()


def without_time(rows):
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def test_killed_worker_is_replaced_and_the_results_are_those_of_one_machine(
    config, tmp_path, cluster
):
    victim = plan_runs(config)[1].name
    seen = tmp_path / "seen"

    def kill_once(name, step):
        with (seen.with_name(f"seen-{name}")).open("a") as file:
            file.write(f"{step}\n")
        if name == victim and step == 12 and not seen.exists():
            seen.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    on_ray = run_sweep(config, tmp_path / "ray", quiet=True, on_step=kill_once)
    assert seen.exists()
    local = dataclasses.replace(config, cluster="local", workers=2)
    here = run_sweep(local, tmp_path / "local", quiet=True)
    assert without_time(on_ray) == without_time(here)
    environments = [
        tmp_path / where / "runs" / victim / "environment.json" for where in ("ray", "local")
    ]
    on_ray_commits, here_commits = (json.loads(e.read_text())["commits"] for e in environments)
    assert on_ray_commits == here_commits == [code_commit()]

    # Killed after step 12, it went on from the checkpoint of step 10; no other run began again.
    for run in plan_runs(config):
        steps = [int(line) for line in (tmp_path / f"seen-{run.name}").read_text().split()]
        whole = list(range(run.config.steps + 1))
        assert steps == ([*range(13), *whole[10:]] if run.name == victim else whole)


def test_a_run_that_raises_is_named_and_the_others_finish(config, tmp_path, cluster):
    broken = plan_runs(config)[0].name

    def break_one(name, step):
        if name == broken and step == 3:
            raise ValueError("not this one")

    with pytest.raises(SweepError, match=rf"1 of 2 runs failed\n{broken}: not this one"):
        run_sweep(config, tmp_path / "ray", quiet=True, on_step=break_one)
    assert len(list((tmp_path / "ray").glob("runs/*/metrics.csv"))) == 1
    rows = run_sweep(config, tmp_path / "ray", quiet=True)
    assert [row["run"] for row in rows] == [run.name for run in plan_runs(config)]


def test_a_folder_that_nodes_do_not_share_is_named(config, tmp_path, cluster):
    runs = plan_runs(config)
    place = RayCluster(runs, tmp_path / "there", cpus=1, gpus=0, on_step=None)
    place.start(0)
    place.folder = tmp_path / "here"
    deadline = time.monotonic() + 600
    while not (ended := place.ended()) and time.monotonic() < deadline:
        place.wait()
    assert "does not share" in ended[0]
    assert "every node must" in ended[0]


def test_a_need_that_no_node_meets_is_named(config, tmp_path, cluster):
    with pytest.raises(RuntimeError, match=r"needs 1 CPUs and 4 GPUs of one node, and .* 2 and 0"):
        run_sweep(dataclasses.replace(config, gpus_per_run=4), tmp_path / "a", quiet=True)
    with pytest.raises(RuntimeError, match=r"needs 3 CPUs and 0 GPUs of one node"):
        run_sweep(dataclasses.replace(config, cpus_per_run=3), tmp_path / "b", quiet=True)
    # Device cuda asks for a GPU by itself.
    with pytest.raises(RuntimeError, match=r"needs 1 CPUs and 1 GPUs of one node"):
        run_sweep(dataclasses.replace(config, device="cuda"), tmp_path / "c", quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cpus_per_run": 0}, "cpus_per_run must be at least 1, got 0"),
        ({"gpus_per_run": -1}, "gpus_per_run must be a finite number, at least 0, got -1"),
        ({"workers": 2}, "workers does nothing with cluster ray, got 2"),
        ({"cluster": "slurm"}, "cluster must be local or ray, got 'slurm'"),
    ],
)
def test_bad_needs_are_named(config, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_sweep(dataclasses.replace(config, **changes), tmp_path / "sweep", quiet=True)


def test_without_ray_the_extra_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"this needs ray, .* pip install '\.\[ray\]'"):
        run_sweep(config, tmp_path / "sweep", quiet=True)


@pytest.mark.parametrize(("also", "loaded"), [("", "False"), ("import ray;", "True")])
def test_only_a_sweep_on_ray_imports_ray(also, loaded):
    if also:
        pytest.importorskip("ray", reason="needs the extra ray")
    code = f"import sys, models.sweeps.run, models.training.run; {also} print('ray' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == loaded
