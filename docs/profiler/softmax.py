"""A softmax over rows, and what calls it: the example of docs/profiler.md."""

import torch
import triton
import triton.language as tl


@triton.jit
def softmax_kernel(x, out, columns, BLOCK: tl.constexpr):
    """A row, a program's."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    values = tl.load(x + row * columns + column, mask=inside, other=float("-inf")).to(tl.float32)
    values = tl.exp(values - tl.max(values, axis=0))
    values /= tl.sum(values, axis=0)
    tl.store(out + row * columns + column, values.to(out.dtype.element_ty), mask=inside)


def softmax() -> torch.Tensor:
    """64 rows, held against PyTorch's softmax."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1000, generator=generator).to(torch.bfloat16)
    out = torch.empty_like(x)
    softmax_kernel[(64,)](x, out, 1000, BLOCK=1024, num_warps=4)
    torch.testing.assert_close(out, torch.softmax(x, 1))
    return out
