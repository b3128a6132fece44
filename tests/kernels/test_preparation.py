"""The pass before the attention: rotary embedding and padding; alone and with the attention."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.attention import causal_attention, prefix_attention
from kernels.attention.operators import prepare
from kernels.attention.preparation import declare_preparation
from kernels.attention.reference import reference_attention, reference_preparation

pytestmark = pytest.mark.interpreter

# (batch, queries, prefix, heads, key-value heads, head dim, pairs that turn, angles' batch): padded
# and aligned rows, one to three parts, no pair, one, all, a block of rows and one row more.
SHAPES = [
    (1, 1, 0, 1, 1, 2, 1, 1),
    (2, 5, 3, 4, 2, 9, 2, 2),
    (2, 33, 4, 2, 1, 13, 3, 1),
    (1, 3, 30, 1, 1, 73, 18, 1),
    (1, 2, 2, 1, 1, 91, 45, 1),
    (2, 6, 0, 2, 2, 64, 16, 2),
    (1, 4, 1, 1, 1, 112, 28, 1),
    (1, 3, 2, 8, 8, 73, 36, 1),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def operands(shape, dtype):
    """q, k, v of a shape and the angles of all positions."""
    batch, queries, prefix, heads, key_heads, head_dim, pairs, angle_batch = shape
    sizes = [(queries, heads), *[(prefix + queries, key_heads)] * 2]
    q, k, v = (
        torch.randn(batch, length, num, head_dim).to(dtype).requires_grad_()
        for length, num in sizes
    )
    return q, k, v, 100 * torch.rand(angle_batch, prefix + queries, pairs)


def table(angles):
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def plain(q, k, v, angles, scale=None):
    """Rotary embedding and attention by the specifications, in the operands' dtype."""
    q = reference_preparation(q, angles[:, -q.shape[1] :], q.shape[-1])
    return reference_attention(q, reference_preparation(k, angles, k.shape[-1]), v, scale)[0]


def with_gradients(function, q, k, v, angles, grad):
    out = function(q, k, v, angles)
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(out.dtype)))


def assert_no_worse(ours, usual, exact, dtype):
    floor = torch.finfo(dtype).eps
    for factor, x, y, truth in zip((2, 3, 3, 3), ours, usual, exact, strict=False):
        bound = factor * (y - truth).abs().max() + floor * truth.abs().max()
        assert (x - truth).abs().max() <= bound


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("apart", [False, True])
def test_attention_of_turned_queries_and_keys(shape, apart):
    q, k, v, angles = operands(shape, torch.float32)
    grad = torch.randn(q.shape)
    doubled = [x.detach().double().requires_grad_() for x in (q, k, v)]

    def ours(q, k, v, angles):
        if not apart:
            return prefix_attention(q, k, v, angles=angles)
        prefix = shape[2]
        split = (k[:, prefix:], v[:, prefix:], k[:, :prefix], v[:, :prefix])
        return prefix_attention(q, *split, angles=angles)

    exact = with_gradients(plain, *doubled, angles.double(), grad)
    usual = with_gradients(plain, q, k, v, angles, grad)
    assert_no_worse(with_gradients(ours, q, k, v, angles, grad), usual, exact, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_the_pass_alone_in_half_precision(shape, dtype):
    q, k, _, angles = operands(shape, dtype)

    def by_specification(dtype):
        return [
            reference_preparation(x.detach().to(dtype), angles[:, -x.shape[1] :].to(dtype), 96)
            for x in (q, k)
        ]

    ours = prepare(q, k, None, table(angles), 96, False)
    assert_no_worse(ours, by_specification(dtype), by_specification(torch.float64), dtype)
    assert not any(x[..., q.shape[-1] :].any() for x in ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_angles_of_a_narrow_dtype_are_widened_first(dtype):
    # A bf16 holds 100 radians exactly, their cosine 0.86231887 to 3 digits.
    q, k, v, angles = operands((2, 5, 3, 4, 2, 9, 4, 1), torch.float32)
    narrow = angles.to(dtype)
    ours = prefix_attention(q, k, v, angles=narrow)
    assert torch.equal(ours, prefix_attention(q, k, v, angles=narrow.float()))
    turned = reference_preparation(k, narrow, 16)
    assert torch.equal(turned, reference_preparation(k, narrow.float(), 16))
    exact = plain(*(x.detach().double() for x in (q, k, v)), narrow.double())
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)


def test_the_scale_is_applied_in_fp32():
    # Queries of about 2e3 times 40 are no fp16; the scores, 2e3 · 1e-5 · 40 · √16 and less, are.
    q, k, v, angles = operands((1, 4, 3, 1, 1, 16, 4, 1), torch.float16)
    with torch.no_grad():
        q.mul_(2e3)
        k.mul_(1e-5)
    assert (40 * q).isinf().any()
    ours = with_gradients(
        lambda *x: prefix_attention(*x[:3], scale=40, angles=x[3]), q, k, v, angles, 0.1 * v[:, :4]
    )
    doubled = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = with_gradients(
        lambda *x: plain(*x, scale=40), *doubled, angles.double(), 0.1 * v[:, :4]
    )
    for one, other in zip(ours, exact, strict=True):
        error = (one.double() - other).abs().max()
        assert error <= 1e-2 * other.abs().max()


def test_turning_back_is_the_transpose():
    # <prepare(x), y> = <x, prepare back(y)> for every x and y.
    q, k, _, angles = operands((2, 5, 3, 4, 2, 9, 4, 2), torch.float32)
    y = [torch.randn(*x.shape[:-1], 16) for x in (q, k)]
    there = prepare(q, k, None, table(angles), 16, False)
    back = prepare(*y, None, table(angles), 9, True)
    for x, prepared, z, returned in zip((q, k), there, y, back, strict=True):
        torch.testing.assert_close((prepared * z).sum(), (x * returned).sum())


def test_it_passes_opcheck():
    q, k, _, angles = operands((1, 2, 1, 2, 1, 5, 2, 1), torch.float32)
    torch.library.opcheck(prepare, (q, k[:, 1:], k[:, :1], table(angles), 16, False))


class Recorded(TorchDispatchMode):
    """The project's operators that run, and where their tensors lie."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "flopcount":
            places = [x.data_ptr() if isinstance(x, torch.Tensor) else None for x in args]
            self.calls.append((function._opname, places))
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("head_dim", "turned", "expected"),
    [
        (16, False, ["attention"]),
        (16, True, ["prepare_attention", "attention"]),
        (9, False, ["attention"]),
        (9, True, ["prepare_attention", "attention"]),
        (105, False, ["prepare_attention", "attention"]),
        (112, False, ["attention"]),
    ],
)
def test_nothing_is_copied_without_need(head_dim, turned, expected):
    q, k, v, angles = operands((1, 4, 3, 2, 1, head_dim, 2, 1), torch.float16)
    with Recorded() as recorded:
        prefix_attention(q, k, v, angles=angles if turned else None)
    assert [name for name, _ in recorded.calls] == expected
    places = recorded.calls[-1][1][:3]
    kept = [x.data_ptr() == place for x, place in zip((q, k, v), places, strict=True)]
    padded = head_dim == 105
    assert kept == [not turned and not padded, not turned and not padded, not padded]


def test_unwritten_memory_is_never_returned(monkeypatch):
    make = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *a, **options: make(*a, **options).fill_(float("nan"))
    )
    q, k, v, angles = operands((1, 35, 3, 2, 1, 9, 2, 1), torch.float32)
    assert torch.empty(0).new_empty(1).isnan().all()
    found = with_gradients(
        lambda *x: prefix_attention(*x[:3], angles=x[3]), q, k, v, angles, torch.ones(q.shape)
    )
    assert all(torch.isfinite(x).all() for x in found)


def test_gradients_are_finite_differences():
    # f(x + εd) − f(x − εd) = 2ε ∇f·d + O(ε³), in each operand's own direction d.
    q, k, v, angles = operands((1, 6, 5, 2, 1, 13, 3, 1), torch.float32)
    grad = torch.randn(q.shape)

    def loss(*operands):
        return (prefix_attention(*operands, angles=angles).double() * grad).sum()

    gradients = torch.autograd.grad(loss(q, k, v), (q, k, v))
    for index, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape)
        ends = []
        for step in (1e-2, -1e-2):
            moved = [x.detach() for x in (q, k, v)]
            moved[index] = moved[index] + step * direction
            ends.append(loss(*moved))
        slope = (ends[0] - ends[1]) / 2e-2
        torch.testing.assert_close(
            slope, (gradient * direction).sum().double(), rtol=2e-3, atol=2e-3
        )


def test_backward_is_deterministic():
    q, k, v, angles = operands((1, 20, 5, 4, 2, 9, 2, 1), torch.float32)
    first, second = (
        with_gradients(
            lambda *x: prefix_attention(*x[:3], angles=x[3]), q, k, v, angles, torch.ones(q.shape)
        )
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


def test_what_a_profile_shows():
    # q 2·3·4 rows, k 2·5·2 rows, of which all turn 2 pairs: 44 · 2 · 6 FLOPs; 44 rows of 9
    # channels read and of 16 written, 2 bytes each; 5 positions of a table that both sequences
    # share, and that has 4 numbers of 4 bytes for each.
    class Metadata:
        name = "prepare_rows"

    shown = declare_preparation(
        None,
        Metadata,
        {
            "batch": 2,
            "lengths": (3, 5),
            "heads": (4, 2),
            "table_stride": 0,
            "num_positions": 5,
            "TURNED": 4,
            "LOADED": 9,
            "STORED": 16,
            "sources": (torch.zeros(1, dtype=torch.float16),),
        },
    )
    assert shown == {"name": "prepare_rows", "flops32": 528, "bytes": 44 * 25 * 2 + 5 * 4 * 4}


@pytest.mark.parametrize(
    ("angles", "error", "message"),
    [
        (torch.zeros(1, 3, 2), ValueError, r"\(1 or 2, 4, at most 4\)"),
        (torch.zeros(3, 4, 2), ValueError, r"\(1 or 2, 4, at most 4\)"),
        (torch.zeros(1, 4, 5), ValueError, r"\(1 or 2, 4, at most 4\)"),
        (torch.zeros(4, 2), ValueError, r"\(1 or 2, 4, at most 4\)"),
        (torch.zeros(1, 4, 2, dtype=torch.long), TypeError, "floating-point"),
        ("angles", TypeError, "floating-point"),
        (torch.zeros(1, 4, 2, device="meta"), ValueError, "q's device"),
        (torch.zeros(1, 4, 2, requires_grad=True), ValueError, "not require gradients"),
    ],
)
def test_wrong_angles_are_refused(angles, error, message):
    q = torch.zeros(2, 4, 2, 8)
    with pytest.raises(error, match=message):
        causal_attention(q, q, q, angles=angles)
