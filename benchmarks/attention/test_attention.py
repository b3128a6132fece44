"""Attention under pytest-benchmark: ``pytest benchmarks/attention/test_attention.py`` on a GPU.

The same implementations, shapes, checks and clock as ``python -m benchmarks attention``, whose CSV,
table and plot are the record; this is for comparing two states of a kernel while working on it
(``--benchmark-autosave``, ``--benchmark-compare``).
"""

import pytest
import torch

from benchmarks.attention.implementations import IMPLEMENTATIONS, NotApplicableError
from benchmarks.attention.shapes import PASSES, SETS
from benchmarks.attention.timing import draw, errors
from benchmarks.measurement import device, rounds_ms

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="times a CUDA device: there is none"),
]


class DeviceClock:
    """A clock, in seconds, that advances only by what the device was busy with."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        """Seconds so far."""
        return self.seconds

    def run(self, call):
        """Time ``call`` once, as a median of many, and advance by that."""
        self.seconds += rounds_ms(call, rounds=1)[0] / 1e3


CLOCK = DeviceClock()


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("shape", SETS["article"], ids=str)
@pytest.mark.parametrize("name", ["fused", "sdpa-flash", "cudnn", "flex"])
@pytest.mark.benchmark(timer=CLOCK, warmup=False)
def test_attention(benchmark, name, shape, pass_name):
    try:
        attend = IMPLEMENTATIONS[name].build(shape, device())
    except NotApplicableError as error:
        pytest.skip(str(error))
    assert all(share <= 1 for share in errors(attend, shape, backward=True).values())
    q, k, v, grad = draw(shape)
    out = attend(q, k, v)
    call = (
        (lambda: attend(q, k, v))
        if pass_name == "forward"
        else (lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True))
    )
    benchmark.pedantic(CLOCK.run, args=(call,), rounds=3, iterations=1)
    benchmark.extra_info["causal FLOPs"] = shape.causal_flops(pass_name)
