"""A small model, data and a meter, for the loops of other libraries.

Their tests run in an environment of their own, which `make test-adapters` sets up; elsewhere those
whose library is missing are not collected.
"""

import importlib.util

import pytest
import torch

import flopcount as fc

NEEDED = {
    "test_transformers.py": "accelerate",
    "test_lightning.py": "lightning",
    "test_torchtitan.py": "torchtitan",
}
collect_ignore = [file for file, library in NEEDED.items() if not importlib.util.find_spec(library)]

MODEL = fc.Decoder(vocab_size=17, seq_len=8, num_channels=8, num_layers=1, num_heads=2)


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def model():
    return MODEL


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metered(clock):
    """A function that makes a meter of :data:`MODEL` on two devices of 1e6 FLOP/s."""

    def make(batch_size, **options):
        device = fc.Device("mine", {"bf16": fc.Peak(1e6, "an example")})
        options = dict(warmup_steps=1, price_per_device_hour=3600.0) | options
        return fc.Meter(MODEL, batch_size, device, 2, clock=clock, **options)

    return make


@pytest.fixture
def tokens():
    return torch.randint(17, (48, 8), generator=torch.Generator().manual_seed(0))
