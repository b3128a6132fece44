"""What the interpreter cannot show: bf16 products, autocast, torch.compile, huge tensors."""

import pytest
import torch

from benchmarks.attention.accuracy import shares_of_allowed
from kernels.attention import causal_attention, prefix_attention
from kernels.attention.launches import unsupported
from kernels.attention.reference import reference_attention, reference_preparation

REASON = (
    unsupported(torch.device("cuda"), torch.bfloat16)
    if torch.cuda.is_available()
    else "needs a CUDA device"
)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

# (batch, queries, prefix, heads, key-value heads, head dim)
SHAPES = [
    (2, 512, 768, 8, 8, 64),
    (2, 512, 0, 8, 8, 73),
    (1, 511, 257, 4, 2, 91),
    (2, 1, 300, 2, 1, 96),
    (1, 1000, 33, 2, 2, 128),
    (1, 130, 70, 2, 2, 200),
    (1, 129, 64, 1, 1, 256),
    (3, 77, 1, 2, 2, 1),
]


def operands(shape, dtype):
    batch, queries, prefix, heads, key_heads, head_dim = shape
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(batch, length, num, head_dim, generator=generator, device="cuda")
        .to(dtype)
        .requires_grad_()
        for length, num in ((queries, heads), *[(prefix + queries, key_heads)] * 2)
    )
    positions = torch.arange(prefix + queries, device="cuda", dtype=torch.float32)
    frequencies = 10_000 ** -torch.linspace(0, 1, head_dim // 4, device="cuda")
    return q, k, v, positions[None, :, None] * frequencies


def plain(q, k, v, angles):
    head_dim = q.shape[-1]
    q = reference_preparation(q, angles[:, -q.shape[1] :], head_dim)
    return reference_attention(q, reference_preparation(k, angles, head_dim), v)[0]


def with_gradients(function, q, k, v, angles):
    out = function(q, k, v, angles)
    # Made in fp32: CUDA counts the steps in the dtype, and fp16 ends at 65,504. Of eight bits, so
    # that it is the same in each dtype.
    grad = torch.linspace(-1, 1, out.numel(), device="cuda").bfloat16().reshape(out.shape)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(out.dtype))]


def fused(q, k, v, angles):
    return prefix_attention(q, k, v, angles=angles)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_that_of_plain_pytorch(shape, dtype):
    q, k, v, angles = operands(shape, dtype)
    doubled = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = with_gradients(plain, *doubled, angles.double())
    usual = with_gradients(plain, q, k, v, angles)
    ours = with_gradients(fused, q, k, v, angles)
    again = with_gradients(fused, q, k, v, angles)
    # One query leaves plain PyTorch little error in fp32; our sums are chains of multiply-adds.
    allowed = 1.25 if dtype == torch.float32 and shape[1] == 1 else 1
    assert max(shares_of_allowed(ours, usual, exact, dtype).values()) <= allowed
    assert all(map(torch.equal, ours, again))


def test_autocast_and_compile():
    q, k, v, angles = operands(SHAPES[1], torch.float32)

    def call(q, k, v, angles):
        with torch.autocast("cuda", torch.bfloat16):
            return fused(q, k, v, angles)

    expected = with_gradients(call, q, k, v, angles)
    assert expected[0].dtype == torch.bfloat16
    compiled = torch.compile(call, fullgraph=True)
    for one, other in zip(with_gradients(compiled, q, k, v, angles), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("head_dim", [64, 73])
def test_tensors_of_more_than_two_to_the_31_elements(head_dim):
    # Each tensor passes 2³¹ elements; the last sequence alone must give the same.
    batch = 2**31 // (512 * 64 * head_dim) + 2
    free, _ = torch.cuda.mem_get_info()
    if free < 12 * 2 * batch * 512 * 64 * 80:
        pytest.skip(f"needs twelve tensors of more than 2³¹ elements, {free:,} bytes are free")
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(
            batch, 512, 64, head_dim, generator=generator, device="cuda", dtype=torch.bfloat16
        ).requires_grad_()
        for _ in range(3)
    )
    causal_attention(q, k, v).sum().backward()
    last = [x.detach()[-1:].clone().requires_grad_() for x in (q, k, v)]
    causal_attention(*last).sum().backward()
    for whole, alone in zip((q, k, v), last, strict=True):
        assert torch.equal(whole.grad[-1:], alone.grad)
