"""The fused attention kernels against their specification in float64, in Triton's interpreter."""

import pytest
import torch

from kernels.attention.attention import causal_attention, prefix_attention
from kernels.attention.launches import launch_forward, unsupported
from kernels.attention.reference import admitted_pairs, reference_attention
from kernels.attention.tilings import (
    TILINGS,
    head_dim_parts,
    padded_head_dim,
    shipped_tiling,
)

pytestmark = pytest.mark.interpreter

# (batch, queries, prefix, heads, key-value heads, head dim): odd lengths, one query, no prefix,
# several blocks, grouped heads, head dims of one to three parts.
SHAPES = [
    (1, 1, 0, 1, 1, 1),
    (2, 5, 0, 2, 2, 3),
    (1, 1, 7, 2, 1, 16),
    (1, 33, 31, 2, 2, 73),
    (2, 37, 19, 4, 2, 54),
    (1, 70, 1, 1, 1, 91),
    (1, 40, 65, 3, 1, 112),
    (1, 17, 9, 1, 1, 200),
    (2, 19, 14, 8, 8, 73),
    (1, 9, 4, 8, 4, 78),
]
FP16_SHAPES = [
    (1, 130, 70, 1, 1, 91), (1, 129, 0, 2, 1, 64), (2, 33, 70, 8, 8, 73), (1, 40, 9, 8, 8, 91),
    (1, 20, 5, 8, 4, 54),
]  # fmt: skip


def operands(shape, dtype, seed=0):
    batch, queries, prefix, heads, key_heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)

    def drawn(length, num_heads):
        size = (batch, length, num_heads, head_dim)
        return torch.randn(size, generator=generator).to(dtype).requires_grad_()

    return (
        drawn(queries, heads),
        drawn(prefix + queries, key_heads),
        drawn(prefix + queries, key_heads),
    )


def results(attention, q, k, v, grad):
    out = attention(q, k, v)
    out = out[0] if isinstance(out, tuple) else out
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(out.dtype)))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, torch.float32) for shape in SHAPES]
    + [(shape, torch.float16) for shape in FP16_SHAPES],
    ids=str,
)
def test_error_is_that_of_plain_pytorch(shape, dtype):
    q, k, v = operands(shape, dtype)
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    exact = results(
        reference_attention, *(x.detach().double().requires_grad_() for x in (q, k, v)), grad
    )
    plain = results(reference_attention, q, k, v, grad)
    fused = results(prefix_attention, q, k, v, grad)
    floor = torch.finfo(dtype).eps
    for factor, truth, usual, ours in zip((2, 3, 3, 3), exact, plain, fused, strict=True):
        bound = factor * (usual - truth).abs().max() + floor * truth.abs().max()
        assert (ours - truth).abs().max() <= bound


def test_without_a_prefix_it_is_causal():
    q, k, v = operands((1, 21, 0, 2, 2, 9), torch.float32)
    assert torch.equal(causal_attention(q, k, v), prefix_attention(q, k, v))


def test_prefix_given_apart_is_the_same():
    q, k, v = operands((1, 21, 14, 2, 1, 9), torch.float32)
    apart = prefix_attention(q, k[:, 14:], v[:, 14:], k[:, :14], v[:, :14])
    whole = prefix_attention(q, k, v)
    assert torch.equal(apart, whole)
    for one, other in zip(
        torch.autograd.grad(apart.sum(), (q, k, v)),
        torch.autograd.grad(whole.sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_later_key_changes_no_earlier_query():
    q, k, v = operands((1, 40, 10, 1, 1, 8), torch.float32)
    before = prefix_attention(q, k, v)
    with torch.no_grad():
        k[:, 10 + 25] += 1
    after = prefix_attention(q, k, v)
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.equal(before[:, 25:], after[:, 25:])


def test_inputs_by_strides():
    q, k, v = operands((2, 13, 6, 4, 4, 10), torch.float32)
    # The same values stored as (batch, heads, length, channels), and in every other channel.
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k)]
    wide = torch.stack((v.detach(), torch.full_like(v, float("nan"))), dim=-1)[..., 0]
    assert not wide.is_contiguous()
    assert torch.equal(prefix_attention(*strided, wide), prefix_attention(q, k, v).detach())


def test_unwritten_memory_is_never_returned(monkeypatch):
    def poisoned(make):
        return lambda *arguments, **options: make(*arguments, **options).fill_(float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    q, k, v = operands((1, 35, 17, 2, 1, 73), torch.float32)
    found = results(prefix_attention, q, k, v, torch.ones(q.shape))
    assert all(torch.isfinite(x).all() for x in found)


def test_backward_is_deterministic():
    q, k, v = operands((1, 50, 30, 4, 2, 16), torch.float32)
    grad = torch.ones(q.shape)
    first, second = (results(prefix_attention, q, k, v, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_log_sum_exp():
    q, k, v = (x.detach() for x in operands((2, 19, 11, 2, 2, 12), torch.float32))
    _, lse, _ = torch.ops.flopcount.attention(q, k, v, None, None, 0.3, 12)
    torch.testing.assert_close(lse, reference_attention(q, k, v, 0.3)[1], rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow():
    q, k, v = operands((1, 8, 8, 1, 1, 16), torch.float32)
    with torch.no_grad():
        q *= 1e3
        k *= 1e3
    exact = reference_attention(q.double(), k.double(), v.double())[0]
    torch.testing.assert_close(prefix_attention(q, k, v).double(), exact, rtol=1e-4, atol=1e-4)


def first_keys_without_weight(shape, dtype, how):
    """Operands of which the latents' own keys, which are visited first, have scores of −inf."""
    q, k, v = operands(shape, dtype)
    with torch.no_grad():
        q.abs_()
        if how == "infinite keys":
            k[:, shape[2] :] = float("-inf")
        else:  # products that overflow fp32, of finite keys
            q += 1e20
            k.mul_(1e-20)
            k[:, shape[2] :] = -1e20
    return q, k, v


@pytest.mark.parametrize(
    ("shape", "dtype", "how"),
    [
        ((1, 4, 8, 1, 1, 16), torch.float32, "infinite keys"),
        ((2, 37, 19, 4, 2, 48), torch.float32, "infinite keys"),
        ((2, 37, 19, 4, 2, 54), torch.float32, "overflow"),
        ((1, 70, 65, 2, 2, 73), torch.float32, "overflow"),
        ((1, 33, 9, 1, 1, 200), torch.float32, "overflow"),
        ((1, 130, 70, 2, 1, 64), torch.float16, "infinite keys"),
    ],
    ids=str,
)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of NumPy
def test_rows_that_first_meet_scores_of_minus_infinity(shape, dtype, how, apart):
    q, k, v = first_keys_without_weight(shape, dtype, how)
    prefix = shape[2]

    def ours(q, k, v):
        if not apart:
            return prefix_attention(q, k, v)
        return prefix_attention(q, k[:, prefix:], v[:, prefix:], k[:, :prefix], v[:, :prefix])

    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    found = results(ours, q, k, v, grad)
    expected = results(reference_attention, q, k, v, grad)
    # The specification's output is finite; so are its gradients, but of queries that meet an
    # infinite key: 0 · −inf is no number there.
    assert torch.isfinite(expected[0]).all()
    assert all(torch.isfinite(x).all() for x in expected[2:])
    assert torch.isfinite(expected[1]).all() == (how == "overflow")
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_without_a_finite_score_are_not_a_number():
    # 40 queries without a prefix; keys 0 to 2 have scores of −inf, so queries 0 to 2 have no other.
    q, k, v = operands((1, 40, 0, 2, 1, 16), torch.float32)
    with torch.no_grad():
        q.abs_().add_(1e20)
        k.mul_(1e-20)
        k[:, :3] = -1e20
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    found = results(prefix_attention, q, k, v, grad)
    expected = results(reference_attention, q, k, v, grad)
    for name, x in zip(("out", "q", "k"), expected, strict=False):
        rows = x.isnan().any(dim=(0, 2, 3))
        assert rows.nonzero().flatten().tolist() == [0, 1, 2], name
    for one, other in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, equal_nan=True)
    # The specification's softmax gives hidden keys weights that are not numbers, too; here the
    # gradients of values are those of admitted pairs alone: without the first three queries, from
    # key 3 on.
    assert expected[3].isnan().all()
    assert found[3][:, :3].isnan().all()
    grad[:, :3] = 0
    rest = torch.autograd.grad(reference_attention(q[:, 3:], k, v)[0], v, grad[:, 3:])[0]
    torch.testing.assert_close(found[3][:, 3:], rest[:, 3:], rtol=1e-4, atol=1e-4)
    # All keys: everything is NaN, in the log-sum-exp −inf.
    with torch.no_grad():
        k.fill_(-1e20)
    for x in results(prefix_attention, q, k, v, grad):
        assert x.isnan().all()
    lse = launch_forward(*(x.detach() for x in (q, k, v)), None, None, 1.0, 16)[1]
    assert torch.equal(lse, torch.full_like(lse, float("-inf")))


def test_bf16_is_refused_in_the_interpreter():
    q = torch.randn(1, 4, 2, 8)
    half = q.bfloat16()
    message = "q is torch.bfloat16 on cpu: Triton's interpreter multiplies the raw bits"
    for attend in (causal_attention, prefix_attention):
        with pytest.raises(ValueError, match=message):
            attend(half, half, half)
    with (
        torch.autocast("cpu"),
        pytest.raises(ValueError, match=r"q is torch.bfloat16 on cpu, by autocast: Triton's"),
    ):
        causal_attention(q, q, q)
    with pytest.raises(ValueError, match=r"operands are torch.bfloat16 on cpu: Triton's"):
        torch.ops.flopcount.attention(half, half, half, None, None, 1.0, 8)
    lse = torch.zeros(1, 2, 4)
    with pytest.raises(ValueError, match=r"operands are torch.bfloat16 on cpu: Triton's"):
        torch.ops.flopcount.attention_backward(
            half, half, half, half, None, None, half, lse, 1.0, [8, 8, 8]
        )
    on_meta = half.to("meta")  # nothing is computed there
    assert causal_attention(on_meta, on_meta, on_meta).dtype == torch.bfloat16
    for dtype, refused in ((torch.bfloat16, True), (torch.float16, False), (torch.float32, False)):
        for device in ("cpu", "cuda"):
            assert bool(unsupported(torch.device(device), dtype)) == refused


def test_mask_of_the_specification():
    assert admitted_pairs(3, 5).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1] * 5]


@pytest.mark.parametrize("head_dim", [*range(1, 257, 15), 54, 64, 73, 78, 91, 96, 128, 256])
def test_head_dims_are_padded_to_a_multiple_of_16_only(head_dim):
    parts = head_dim_parts(head_dim)
    assert sum(parts) == padded_head_dim(head_dim) == -(-head_dim // 16) * 16
    assert all(part & (part - 1) == 0 for part in parts)
    assert padded_head_dim(73) == 80


def test_owned_blocks_are_multiples_of_visited_ones():
    for (pass_name, size), by_width in TILINGS.items():
        for tiling in by_width.values():
            blocks = tiling.block_queries, tiling.block_keys
            owned, visited = blocks[::-1] if pass_name == "key_value" else blocks
            assert owned % visited == 0
            if size == 2:
                assert owned % 64 == 0  # the rows of one wgmma


def tensors(q=(1, 4, 2, 8), k=(1, 6, 2, 8), v=(1, 6, 2, 8), dtype=torch.float32):
    return [torch.zeros(shape, dtype=dtype) for shape in (q, k, v)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (tensors(k=(1, 3, 2, 8), v=(1, 3, 2, 8)), ValueError, "4 positions at least"),
        (tensors(v=(1, 5, 2, 8)), ValueError, "shape of k"),
        (tensors(q=(1, 4, 3, 8)), ValueError, "must divide"),
        (tensors(q=(2, 4, 2, 8)), ValueError, "batch 2"),
        (tensors(q=(1, 4, 2, 9)), ValueError, "head dim 9"),
        (tensors(q=(1, 0, 2, 8)), ValueError, "a query and a head at least"),
        (tensors(q=(4, 2, 8)), ValueError, "batch, length, heads"),
        (tensors(*[(1, 4, 1, 257)] * 3), ValueError, "from 1 to 256"),
        (tensors(dtype=torch.float64), TypeError, "fp32, fp16 or bf16"),
        ([*tensors()[:2], tensors(dtype=torch.float16)[2]], TypeError, "q's dtype"),
        ([*tensors()[:2], tensors()[2].to("meta")], ValueError, "q's device"),
    ],
)
def test_bad_input_is_refused_before_a_launch(arguments, error, message):
    with pytest.raises(error, match=message):
        prefix_attention(*arguments)


def test_causal_attention_needs_as_many_keys_as_queries():
    with pytest.raises(ValueError, match="4 positions"):
        causal_attention(*tensors())
    with pytest.raises(ValueError, match="given together"):
        prefix_attention(*tensors(), prefix_k=torch.zeros(1, 2, 2, 8))


@pytest.mark.parametrize(("name", "size"), [("sideways", 2), ("forward", 8)])
def test_unknown_tilings_are_refused(name, size):
    with pytest.raises(ValueError, match="must be"):
        shipped_tiling(name, 64, size, 9)
