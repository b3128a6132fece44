"""How fast the counter is: `pytest benchmarks/test_counter.py`.

One million Perceiver AR configurations are to take at most 1 s on one core, as many of Llama's
shape at most three times as long. The import is to take at most 15 ms more than
``test_import[pass]``, an empty interpreter: compare the medians.
"""

import subprocess
import sys

import numpy as np
import pytest

import flopcount as fc

MILLION = 1_000_000


@pytest.fixture(scope="module")
def million():
    """A million drawn configurations, every size an array."""
    generator = np.random.default_rng(0)
    heads = generator.integers(1, 17, MILLION)
    return dict(
        vocab_size=generator.integers(256, 50_000, MILLION),
        num_latents=generator.integers(1, 2048, MILLION),
        num_prefix=generator.integers(0, 8192, MILLION),
        num_channels=heads * generator.integers(1, 129, MILLION),
        num_layers=generator.integers(1, 64, MILLION),
        num_heads=heads,
        prefix_dropout=0.5,
    )


@pytest.mark.parametrize("level", ["causal", "dense"])
def test_million_configurations(benchmark, million, level):
    total = benchmark(lambda: fc.PerceiverAR(**million).flops(level=level).total)
    assert total.shape == (MILLION,)
    alone = fc.PerceiverAR(
        **{
            name: size if name == "prefix_dropout" else int(size[7])
            for name, size in million.items()
        }
    )
    assert total[7] == alone.flops(level=level).total


@pytest.fixture(scope="module")
def million_llamas(million):
    """As many of Llama's shape: grouped heads, free head dims, windows."""
    generator = np.random.default_rng(1)
    groups = generator.integers(1, 5, MILLION)
    return dict(
        vocab_size=million["vocab_size"],
        seq_len=million["num_latents"],
        num_channels=million["num_channels"],
        num_layers=million["num_layers"],
        num_heads=groups * generator.integers(1, 5, MILLION),
        num_key_value_heads=groups,
        head_dim=2 * generator.integers(1, 65, MILLION),
        intermediate_size=generator.integers(1, 20_000, MILLION),
        window=generator.integers(1, 4096, MILLION),
    )


def test_million_llamas(benchmark, million_llamas):
    total = benchmark(lambda: fc.Llama(**million_llamas).flops().total)
    alone = fc.Llama(**{name: int(size[7]) for name, size in million_llamas.items()})
    assert total[7] == alone.flops().total


@pytest.mark.parametrize(
    "statement", ["pass", "import flopcount", "from flopcount import PerceiverAR"]
)
def test_import(benchmark, statement):
    benchmark.pedantic(
        lambda: subprocess.run([sys.executable, "-c", statement], check=True), rounds=15
    )


def test_one_model(benchmark):
    model = fc.PerceiverAR(
        vocab_size=32_000,
        num_latents=512,
        num_prefix=1536,
        num_channels=512,
        num_layers=9,
        prefix_dropout=0.5,
    )
    assert benchmark(lambda: model.flops().total) == 149_398_487_040
