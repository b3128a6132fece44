"""Heads whose width is no multiple of 16 are read where they lie, or copied where they can't be."""

import pytest
import torch

from kernels.attention import launches
from kernels.attention.attention import prefix_attention
from kernels.attention.launches import are_alike, launch_backward, launch_forward, unit_of, visited
from kernels.attention.reference import reference_attention

pytestmark = pytest.mark.interpreter


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("shape", "unit"),
    [
        ((2, 5, 8, 64), 0),  # a multiple of 16
        ((2, 5, 8, 73), 8),  # heads start 0 to 7 elements after 16 bytes; 73 + 7 = 80
        ((2, 5, 8, 54), 8),  # up to 6; 54 + 6 < 64
        ((2, 5, 8, 78), 4),  # 78 + 6 > 80; 0 or 2 elements after 8 bytes, 78 + 2 = 80
        ((2, 5, 8, 91), 4),  # 91 + 3 < 96
        ((2, 5, 8, 79), None),  # 79 + 3 > 80
        ((2, 5, 8, 61), None),  # 61 + 7 > 64; too narrow for copies of 8 bytes
        ((2, 5, 4, 73), 4),  # rows of 584 bytes, no multiple of 16
        ((2, 5, 2, 73), None),  # rows of 292 bytes, no multiple of 8
        ((2, 5, 1, 72), None),  # a tile of 80 would end outside of its row
        ((2, 5, 8, 105), None),  # wide
    ],
)
def test_units_of_half_precision(shape, unit):
    assert unit_of(torch.empty(shape, dtype=torch.float16), shape[-1]) == unit


def test_units_by_place():
    x = torch.empty(2, 6, 3, 8, 73, dtype=torch.float16)
    assert unit_of(x[:, :, 1], 73) == 8  # one of three in a row
    assert unit_of(x[:, 1:, 1], 73) == 8
    assert unit_of(x.movedim(4, 2), 73) is None  # channels apart
    assert unit_of(torch.empty(2, 8, 6, 73, dtype=torch.float16).transpose(1, 2), 73) is None
    moved = torch.empty(2 * 5 * 8 * 73 + 4, dtype=torch.float16)
    assert unit_of(moved[4:].view(2, 5, 8, 73), 73) == 4  # 8 bytes further
    assert unit_of(moved[1:-3].view(2, 5, 8, 73), 73) is None  # 2 bytes further
    assert unit_of(torch.empty(2, 5, 8, 80, dtype=torch.float16), 73) == 0  # with zeros
    assert unit_of(torch.empty(2, 5, 8, 73), 73) == 4  # fp32


def test_ranges_are_visited_alike_or_copied():
    x = drawn(1, 7, 8, 73)
    unit, (prefix, _) = visited(x[:, :3], x[:, 3:], head_dim=73)
    assert unit == 4
    assert prefix.data_ptr() == x.data_ptr()
    other = torch.cat((x, x), dim=2)[:, :, ::2]  # heads further apart
    unit, ranges = visited(x[:, :3], other[:, 3:], head_dim=73)
    assert unit == 0
    for copy, original in zip(ranges, (x[:, :3], other[:, 3:]), strict=True):
        assert copy.shape[-1] == 80
        assert torch.equal(copy[..., :73], original)
        assert not copy[..., 73:].any()
    assert visited(x, head_dim=73, padded=True)[0] == 0
    assert visited(x[:, :0], x, head_dim=73)[0] == 4
    assert are_alike(x, x, 4, 73)
    assert not are_alike(other, x, 4, 73)
    assert not are_alike(x[:, :, :4], x, 4, 73)


def results(function, q, k, v, grad):
    out = function(q, k, v)
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(out.dtype)))


def assert_right(q, k, v):
    grad = drawn(*q.shape, seed=7)
    ours = results(prefix_attention, q, k, v, grad)
    doubled = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = results(lambda *x: reference_attention(*x)[0], *doubled, grad)
    for found, truth in zip(ours, exact, strict=True):
        torch.testing.assert_close(found.double(), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head_dim", [73, 78, 91, 54, 89])
def test_nothing_but_the_heads_of_the_rows_is_read(head_dim):
    # Rows lie in a sea of NaN: before the first, between any two, and after the last.
    def adrift(length, seed):
        buffer = torch.full((2, length + 2, 8 * head_dim + 16), float("nan"))
        rows = buffer[:, 1:-1, 8:-8].unflatten(-1, (8, head_dim))
        rows.copy_(drawn(2, length, 8, head_dim, seed=seed))
        assert unit_of(rows, head_dim) == 4
        return rows.detach().requires_grad_()

    assert_right(adrift(9, 1), adrift(23, 2), adrift(23, 3))


def test_queries_keys_and_values_packed_in_a_row():
    packed = drawn(2, 17, 3, 8, 73)
    q, k, v = (packed[:, :, i].detach().requires_grad_() for i in range(3))
    assert unit_of(k, 73) == 4
    assert_right(q, k, v)


@pytest.mark.parametrize("heads", [(8, 8), (8, 4), (3, 3), (1, 1)])
def test_head_counts(heads):
    q, k, v = (
        drawn(1, length, num, 73, seed=i).requires_grad_()
        for i, (length, num) in enumerate(
            zip((6, 11, 11), (heads[0], *[heads[1]] * 2), strict=True)
        )
    )
    assert_right(q, k, v)


@pytest.mark.parametrize("padded", ["q", "k", "v", "qk", "kv", "qkv", "", "g"])
def test_operands_stored_with_zeros_beside_others(padded):
    # The operators take any mixture; gradients have their operand's channels, zeros beyond C.
    tensors = {name: drawn(1, 7, 8, 73, seed=i) for i, name in enumerate("qkvg")}
    stored = {
        name: torch.nn.functional.pad(x, (0, 7)) if name in padded else x
        for name, x in tensors.items()
    }
    q, k, v = (stored[name] for name in "qkv")
    out, lse = launch_forward(q, k, v, None, None, 0.3, 73)
    grads = launch_backward(tensors["g"], q, k, v, None, None, out, lse, 0.3)
    doubled = [tensors[name].double().requires_grad_() for name in "qkv"]
    expected, _ = reference_attention(*doubled, scale=0.3)
    torch.testing.assert_close(out.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    truths = torch.autograd.grad(expected, doubled, tensors["g"].double())
    for grad, x, truth in zip(grads, (q, k, v), truths, strict=True):
        assert grad.shape == x.shape
        torch.testing.assert_close(grad[..., :73].double(), truth, rtol=1e-4, atol=1e-5)
        assert not grad[..., 73:].any()


def test_a_shift_that_is_wrong_is_found(monkeypatch):
    # A unit that does not hold every head: the last channels of some are lost.
    monkeypatch.setattr(launches, "unit_of", lambda x, head_dim: 8)
    x = drawn(1, 5, 8, 78, dtype=torch.float16)
    out, _ = launch_forward(x, x, x, None, None, 0.3, 78)
    expected, _ = reference_attention(*[x.double()] * 3, scale=0.3)
    assert not torch.allclose(out.double(), expected, rtol=1e-2, atol=1e-2)
