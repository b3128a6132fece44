"""Kernels and their callers, for test_profile.py: imported by the profiler, not by tests."""

import torch
import triton
import triton.language as tl

SIZE, BLOCK = 4096, 1024


@triton.jit
def add_kernel(x, y, out, size, BLOCK: tl.constexpr, AGAIN: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.load(x + at, mask=inside) + tl.load(y + at, mask=inside)
    if AGAIN:
        total += tl.load(y + size + at, mask=inside)
    tl.store(out + at, total, mask=inside)


def _added(again):
    x = torch.arange(SIZE, dtype=torch.float32, device="cuda")
    y = torch.ones(2 * SIZE, device=torch.device("cuda", 0))
    out = torch.empty_like(x)
    grid = lambda given: (triton.cdiv(SIZE, given["BLOCK"]),)  # noqa: E731
    add_kernel[grid](x, y, out, SIZE, BLOCK=BLOCK, AGAIN=again)
    return {"out": out}


def add():
    return _added(False)


def add_again():
    return _added(True)


def add_outside():
    x = torch.zeros(SIZE)
    add_kernel[(SIZE // BLOCK + 1,)](x, x, x, SIZE + BLOCK, BLOCK=BLOCK, AGAIN=False)


@triton.autotune([triton.Config({"BLOCK": block}) for block in (256, 512)], key=["size"])
@triton.heuristics({"EVEN": lambda given: given["size"] % given["BLOCK"] == 0})
@triton.jit
def scale_kernel(x, size, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EVEN:
        tl.store(x + at, 2 * tl.load(x + at))
    else:
        tl.store(x + at, 2 * tl.load(x + at, mask=at < size), mask=at < size)


def scale(size=1024):
    x = torch.ones(size)
    scale_kernel[lambda given: (triton.cdiv(size, given["BLOCK"]),)](x, size)
    return x


def scale_odd():
    return scale(1000)


def asks():
    import triton.runtime.driver

    x = torch.randn(8).cuda().to("cuda")
    assert x.is_cuda
    assert (x.device.type, x.device.index, x.get_device()) == ("cuda", 0, 0)
    assert torch.empty_like(x).add(torch.ones(8, device=x.device)).is_cuda
    assert torch.cuda.is_available()
    assert torch.cuda.get_device_capability(x.device) == (9, 0)
    assert "H100" in torch.cuda.get_device_name()
    properties = triton.runtime.driver.active.utils.get_device_properties(0)
    assert properties["max_shared_mem"] == 232_448
    with torch.cuda.device(0):
        torch.cuda.synchronize()
    return scale()


@triton.jit
def product_kernel(x, y, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    place = at[:, None] * SIZE + at[None, :]
    tl.store(out + place, tl.dot(tl.load(x + place), tl.load(y + place)))


def product(dtype=torch.float16):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(32, 32, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(32, 32)
    product_kernel[(1,)](x, y, out, SIZE=32, num_warps=4)
    torch.testing.assert_close(out, x.float() @ y.float(), atol=1e-2, rtol=1e-2)
    return out


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        assert grad.device.type == "cuda"
        return scale()[: len(grad)] * grad


def differentiates():
    x = torch.ones(8, device="cuda", requires_grad=True)
    (grad,) = torch.autograd.grad(Doubled.apply(x), [x], torch.ones_like(x))
    Doubled.apply(x).backward(torch.ones_like(x))
    return grad, x.grad


def raises():
    raise KeyError("what is\nmissing")


def launches_nothing():
    print("only this")


@triton.jit
def exponentials_kernel(x, out, size, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        total += tl.exp(tl.load(x + start + tl.arange(0, BLOCK)))
    tl.store(out + tl.arange(0, BLOCK), total)


def exponentials():
    out = torch.empty(BLOCK // 4)
    exponentials_kernel[(1,)](torch.zeros(SIZE), out, SIZE, BLOCK=BLOCK // 4)
    return out
