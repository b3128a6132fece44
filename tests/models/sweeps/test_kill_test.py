"""The kill test: nothing is lost, and what would be lost is found."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from models.configuration import read_config
from models.sweeps import kill_test
from models.sweeps.kill_test import Journal, find_problems
from models.sweeps.plan import SweepConfig, plan_runs
from models.training.checkpoints import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A sweep after twenty kills, and its twin."""
    folder = tmp_path_factory.mktemp("kill") / "test"
    result = kill_test.kill_test(folder, kills=20)
    return folder, result


def test_twenty_kills_lose_nothing_and_train_nothing_twice(killed):
    folder, result = killed
    assert result.problems == ()
    assert (result.kills, result.sweep_kills, result.runs) == (20, 2, 4)
    assert result.restarts >= 2
    assert 0 < result.most_repeated <= result.checkpoint_steps == 10
    assert result.steps >= 800
    assert json.loads((folder / "kill_test.json").read_text())["kills"] == 20


@pytest.fixture
def copied(killed, tmp_path):
    """A copy of the folder to damage, its first run, and what is then found."""
    folder = shutil.copytree(killed[0], tmp_path / "copy")
    runs = plan_runs(read_config(SweepConfig, folder / "killed"))

    def problems():
        return list(find_problems(runs, folder / "alone", folder / "killed", journal))

    journal = Journal(folder / "journal")
    assert problems() == []
    return folder, runs[0], problems


def test_one_other_bit_is_found(copied):
    folder, run, problems = copied
    place = folder / "killed" / "runs" / run.name
    step, tensors, state = load_checkpoint(place)
    weight = tensors["model.embedding.token.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    save_checkpoint(place, step, tensors, state)
    (problem,) = problems()
    assert problem.startswith(f"{run.name}: other tensors")
    assert problem.endswith("model.embedding.token.weight")


def test_another_loss_is_found(copied):
    folder, run, problems = copied
    place = folder / "killed" / "runs" / run.name
    step, tensors, state = load_checkpoint(place)
    state["rows"][1]["train_loss"] *= 1 + 1e-15
    save_checkpoint(place, step, tensors, state)
    assert problems() == [f"{run.name}: another loss curve than the run left alone"]


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        (([0, 1, 2, 3], [0, 1, 2]), "was not trained from its first step to its last"),
        (([0, 2], [5, "end"]), "steps 3 to 5 were left out"),
        (([0, "end"], [0, "end"]), "trained again from step 0 after it had ended"),
        (([0, 25], [10, 12], [0, "end"]), "went back to step 0, behind its checkpoint"),
        (([0, 25], [10, "end"]), "15 steps were done again from step 10"),
        (([1, "end"],), "was not trained from its first step to its last"),
    ],
)
def test_a_journal_of_lost_or_repeated_work_is_found(copied, steps, problem):
    folder, run, problems = copied
    ends = [
        [run.config.steps if step == "end" else step for step in (part[0], part[-1])]
        for part in steps
    ]
    records = [(pid, step) for pid, (a, b) in enumerate(ends) for step in range(a, b + 1)]
    np.array(records, kill_test._RECORD).tofile(folder / "journal" / run.name)
    assert f"{run.name}: {problem}" in problems()


def test_a_kill_between_the_last_checkpoint_and_its_record_loses_nothing(copied):
    folder, run, problems = copied
    path = folder / "journal" / run.name
    records = Journal(folder / "journal").read(run.name)
    end = np.flatnonzero(records["step"] == run.config.steps)[0]
    records[:end].tofile(path)
    assert problems() == []
    missing = f"{run.name}: was not trained from its first step to its last"
    records[: end - 1].tofile(path)
    assert problems() == [missing]
    records.tofile(path)
    place = folder / "killed" / "runs" / run.name
    _, tensors, state = load_checkpoint(place)
    save_checkpoint(place, run.config.steps - 1, tensors, state)
    assert problems() == [missing]


def test_a_kill_during_a_write_is_told_from_others(killed, tmp_path):
    run = next((killed[0] / "killed" / "runs").iterdir())
    run = shutil.copytree(run, tmp_path / "run")
    assert kill_test._unfinished(run) - set() == set()
    (run / ".step-000000020.safetensors.new").write_bytes(b"half")
    (run / "step-000000030.safetensors").write_bytes(b"not named yet")
    (run / ".metrics.csv.new").write_bytes(b"no checkpoint")
    assert len(kill_test._unfinished(run)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kills": 0}, "kills must be at least 1, got 0"),
        ({"sweep_share": 1.5}, "sweep_share must be from 0 to 1, got 1.5"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"seed": -1}, r"seed must be from 0 to 2\^64 - 1, got -1"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        kill_test.kill_test(tmp_path, **arguments)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="folder must be new or empty"):
        kill_test.kill_test(tmp_path)
