"""What only a GPU can show of the benchmarks: that ours and the peers are right in bf16."""

import pytest
import torch

from benchmarks.attention import soundness, timing
from benchmarks.attention.implementations import IMPLEMENTATIONS
from benchmarks.attention.shapes import Shape
from benchmarks.measurement import device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: there is none"),
]


@pytest.mark.parametrize("shape", [Shape(2, 130, 70, 3, 73), Shape(2, 256, 0, 2, 64)], ids=str)
@pytest.mark.parametrize("name", ["fused", "sdpa-flash", "flex", "eager"])
def test_a_peer_is_right(name, shape):
    attend = IMPLEMENTATIONS[name].build(shape, device())
    assert all(share <= 1 for share in timing.errors(attend, shape, backward=True).values())


@pytest.mark.parametrize("name", ["cudnn", "cudnn-split", "flash-split"])
def test_a_peer_on_the_hybrid_layer_is_right(name):
    shape = Shape(2, 128, 64, 2, 73)
    attend = IMPLEMENTATIONS[name].build(shape, device())
    assert all(share <= 1 for share in timing.errors(attend, shape, backward=True).values())


def test_drawn_shapes():
    assert soundness.wrong_cases(soundness.drawn_cases(20, largest=200)) == []


def test_equal_bits(tmp_path):
    assert soundness.check_determinism(tmp_path, cases=3, largest=200)
