import subprocess
import sys

import pytest
import torch

from models.data.corpus import CorpusConfig
from models.sweeps.plan import SweepConfig
from models.training.run import ModelConfig, Recipe, TrainConfig


@pytest.fixture(autouse=True)
def _one_seeded_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 512 KiB, where root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    mounted = None
    if sys.platform == "linux":
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted is None or mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs; full disks are simulated beside this test")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Four short documents that a model of any size learns at once."""
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(4):
        (folder / f"{index}.txt").write_text(f"{index} and the quick brown fox; " * 40)
    return CorpusConfig(files=(str(folder / "*.txt"),), cache=folder / "cache")


@pytest.fixture(scope="session")
def train_config(corpus):
    """A run of a second, with prefix dropout, so that it draws random numbers."""
    return TrainConfig(
        model=ModelConfig(
            num_latents=8,
            num_prefix=6,
            num_channels=8,
            num_layers=2,
            num_heads=2,
            prefix_dropout=0.5,
        ),
        corpus=corpus,
        recipe=Recipe(batch_size=3, learning_rate=1e-2),
        steps=30,
        validations=3,
        validation_windows=5,
        checkpoint_steps=4,
        device="cpu",
    )


@pytest.fixture(scope="session")
def sweep_config(corpus):
    """Four runs of a second."""
    return SweepConfig(
        budgets=(2e7, 4e7),
        shapes=((4, 1), (8, 2)),
        model=ModelConfig(num_latents=8, num_prefix=6, num_heads=2, prefix_dropout=0.5),
        corpus=corpus,
        recipe=Recipe(batch_size=2, learning_rate=1e-2),
        validations=2,
        validation_windows=4,
        checkpoint_steps=5,
        device="cpu",
        workers=2,
    )
