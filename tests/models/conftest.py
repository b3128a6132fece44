import pytest
import torch


@pytest.fixture(autouse=True)
def _one_seeded_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)
