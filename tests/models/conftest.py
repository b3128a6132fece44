import subprocess
import sys

import pytest
import torch


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
