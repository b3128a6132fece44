"""A head sees its own channels alone, whatever lies beside it and however wide it is."""

import random

import pytest
import torch

from kernels.attention import operators, preparation
from kernels.attention.attention import prefix_attention
from kernels.attention.launches import launch_backward, launch_forward
from kernels.attention.preparation import padded
from kernels.attention.reference import reference_attention

pytestmark = pytest.mark.interpreter


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


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
        return rows.detach().requires_grad_()

    assert_right(adrift(9, 1), adrift(23, 2), adrift(23, 3))


def test_queries_keys_and_values_packed_in_a_row():
    packed = drawn(2, 17, 3, 8, 73)
    q, k, v = (packed[:, :, i].detach().requires_grad_() for i in range(3))
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


@pytest.mark.parametrize("with_zeros", ["q", "k", "v", "qk", "kv", "qkv", "", "g"])
def test_operands_stored_with_zeros_beside_others(with_zeros):
    # The operators take any mixture; gradients have their operand's channels, zeros beyond C.
    tensors = {name: drawn(1, 7, 8, 73, seed=i) for i, name in enumerate("qkvg")}
    stored = {
        name: torch.nn.functional.pad(x, (0, 7)) if name in with_zeros else x
        for name, x in tensors.items()
    }
    q, k, v = (stored[name] for name in "qkv")
    widths = [x.shape[-1] for x in (q, k, v)]
    operands = padded(q, k, v, None, None, head_dim=73)
    out, lse = launch_forward(*operands, 0.3, 73)
    grads = launch_backward(tensors["g"], *operands, out, lse, 0.3, widths)
    doubled = [tensors[name].double().requires_grad_() for name in "qkv"]
    expected, _ = reference_attention(*doubled, scale=0.3)
    torch.testing.assert_close(out.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    truths = torch.autograd.grad(expected, doubled, tensors["g"].double())
    for grad, x, truth in zip(grads, (q, k, v), truths, strict=True):
        assert grad.shape == x.shape
        torch.testing.assert_close(grad[..., :73].double(), truth, rtol=1e-4, atol=1e-5)
        assert not grad[..., 73:].any()


def test_what_has_the_padded_head_dim_is_not_copied():
    wide, narrow = drawn(1, 5, 2, 80), drawn(1, 3, 2, 73)
    same, nothing, copy = padded(wide, None, narrow, head_dim=73)
    assert same is wide
    assert nothing is None
    assert torch.equal(copy, torch.nn.functional.pad(narrow, (0, 7)))
    assert padded(wide, head_dim=80)[0] is wide


POISONS = (float("-inf"), float("inf"), float("nan"))


def poisoned(seed):
    """Operands, pairs of channels that turn, and one head, beside which all is poison."""
    draw = random.Random(seed)
    head_dim = draw.choice([*range(2, 257), *(54, 57, 73, 78, 91, 16, 64) * 20])
    key_heads, group = draw.choice([(8, 1), (4, 1), (3, 2), (2, 1), (2, 3)])
    queries, prefix = draw.choice([(4, 8), (1, 5), (17, 3), (33, 0), (20, 40)])
    heads, keys = key_heads * group, prefix + queries
    q = drawn(1, queries, heads, head_dim, seed=seed).abs()
    k, v = (drawn(1, keys, key_heads, head_dim, seed=seed + i) for i in (1, 2))
    grad = drawn(1, queries, heads, head_dim, seed=seed + 3)
    pairs = draw.choice([0, head_dim // 4, head_dim // 2])
    if prefix and not pairs:  # what is visited first has no weight; turned, it is no number
        k[:, prefix:] = float("-inf")
    own = draw.randrange(key_heads)
    for x in (q, k, v, grad):
        size = x.shape[2] // key_heads
        for head in range(x.shape[2]):
            if head // size != own:
                x[:, :, head] = draw.choice(POISONS)
    return (q, k, v, grad), pairs, prefix, own


def of_a_head(operands, pairs, prefix, own, apart, alone):
    """Output and gradients of one key-value head and its queries', in company or alone."""
    key_heads = operands[1].shape[2]

    def of_it(x):
        size = x.shape[2] // key_heads
        return x[:, :, own * size : (own + 1) * size]

    q, k, v, grad = (of_it(x).contiguous() if alone else x for x in operands)
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    angles = torch.linspace(0, 9, k.shape[1] * pairs).reshape(1, k.shape[1], pairs)
    if apart:
        ranges = (k[:, prefix:], v[:, prefix:], k[:, :prefix], v[:, :prefix])
        out = prefix_attention(q, *ranges, angles=angles)
    else:
        out = prefix_attention(q, k, v, angles=angles)
    found = (out.detach(), *torch.autograd.grad(out, (q, k, v), grad))
    return found if alone else tuple(of_it(x) for x in found)


def assert_as_alone(seed):
    drawn_case = poisoned(seed)
    found = of_a_head(*drawn_case, apart=seed % 2 == 0, alone=False)
    expected = of_a_head(*drawn_case, apart=seed % 2 == 0, alone=True)
    assert torch.isfinite(expected[0]).all()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of NumPy
@pytest.mark.parametrize("seed", range(24))
def test_a_head_beside_what_is_no_number_is_as_it_is_alone(seed):
    assert_as_alone(seed)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("shape", [(2, 8), (4, 4), (8, 2), (1, 73), (2, 16)], ids=str)
def test_keys_of_minus_infinity_in_all_heads(shape):
    q, k, v = drawn(1, 4, *shape).abs(), drawn(1, 12, *shape, seed=1), drawn(1, 12, *shape, seed=2)
    k[:, 8:] = float("-inf")
    out = prefix_attention(q, k[:, 8:], v[:, 8:], k[:, :8], v[:, :8])
    torch.testing.assert_close(out, reference_attention(q, k, v)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_neighbours_in_the_padding_would_be_seen(monkeypatch):
    # Of a head's tile the channels beyond its own are its neighbour's, times the queries' zeros.
    def with_neighbours(operands, copies):
        preparation.fill(operands, copies)
        keys = copies[1]
        keys[:, :, :-1, 9:] = keys[:, :, 1:, :7]

    monkeypatch.setattr(operators, "fill", with_neighbours)
    q, k, v = (drawn(1, 6, 2, 9, seed=i) for i in range(3))
    out, *_ = operators.attention(q, k, v, None, None, 1.0, 9)
    torch.testing.assert_close(out, reference_attention(q, k, v, 1.0)[0], rtol=1e-5, atol=1e-5)
    k[:, :, 1] = float("inf")
    out, *_ = operators.attention(q, k, v, None, None, 1.0, 9)
    assert out[:, :, 0].isnan().any()
