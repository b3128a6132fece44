"""Every code path of the kernels runs and is right; head dims, far strides, wrong input."""

import inspect
import math

import pytest
import torch
from torch.autograd import forward_ad

from kernels.attention import backward, causal_attention, forward, prefix_attention
from kernels.attention.reference import reference_attention
from kernels.attention.tilings import PASSES, shipped_tiling

pytestmark = pytest.mark.interpreter


def drawn(shape, dtype=torch.float32, seed=0):
    """q, k, v of (batch, queries, prefix, heads, key-value heads, head dim)."""
    batch, queries, prefix, heads, key_heads, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, length, num, head_dim, generator=generator).to(dtype).requires_grad_()
        for length, num in ((queries, heads), *[(prefix + queries, key_heads)] * 2)
    ]


def with_gradients(function, q, k, v):
    out = function(q, k, v)
    out = out[0] if isinstance(out, tuple) else out
    grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), grad))


def assert_no_worse_than_plain(q, k, v):
    """Error against float64 at most 2× (gradients 3×) that of plain PyTorch."""
    exact = with_gradients(
        reference_attention, *(x.detach().double().requires_grad_() for x in (q, k, v))
    )
    plain = with_gradients(reference_attention, q, k, v)
    ours = with_gradients(prefix_attention, q, k, v)
    # Of the largest of all: a single key's weight is 1, so that gradients of q and k are 0, as the
    # difference of two equal sums, which plain PyTorch may round alike.
    floor = torch.finfo(q.dtype).eps * max(truth.abs().max() for truth in exact)
    for factor, truth, usual, found in zip((2, 3, 3, 3), exact, plain, ours, strict=True):
        bound = factor * (usual - truth).abs().max() + floor
        assert (found - truth).abs().max() <= bound


@pytest.mark.parametrize("head_dim", [2, 7, 15, 17, 32, 48, 65, 113, 127, 128, 144, 241, 255, 256])
def test_head_dims_between_1_and_256(head_dim):
    # Of few queries, plain PyTorch's largest error is now and then far below its usual one.
    assert_no_worse_than_plain(*drawn((1, 20, 2, 1, 1, head_dim)))


def tiles_visited(monkeypatch):
    """Names of the loops over tiles that run at least once, as they are visited."""
    seen = set()

    def record(module, name, label):
        loop = getattr(module, name)
        parameters = inspect.signature(loop.fn).parameters

        def recorded(*arguments):
            given = dict(zip(parameters, arguments, strict=True))
            if number(given["first"]) < number(given["last"]):
                seen.add((label, getattr(given["MASK"], "value", given["MASK"])))
            return loop(*arguments)

        monkeypatch.setattr(module, name, recorded)

    record(forward, "attend_tiles", "forward")
    record(backward, "add_query_tiles", "query")
    record(backward, "add_key_value_tiles", "key and value")
    return seen


def number(x):
    return int(x.handle.data.item()) if hasattr(x, "handle") else int(x)


EVERY_LOOP = {
    (name, mask)
    for name in ("forward", "query", "key and value")
    for mask in ("none", "end", "causal")
}


def test_every_loop_over_tiles_runs(monkeypatch):
    # One query, and one key of the prefix, more than the largest block.
    block = max(max(shipped_tiling(name, 16, 4, 9)[:2]) for name in PASSES)
    operands = drawn((1, block + 1, block + 1, 2, 1, 16))
    seen = tiles_visited(monkeypatch)
    assert_no_worse_than_plain(*operands)
    assert seen == EVERY_LOOP


def test_one_query_without_a_prefix_visits_the_diagonal_alone(monkeypatch):
    operands = drawn((1, 1, 0, 1, 1, 16))
    seen = tiles_visited(monkeypatch)
    assert_no_worse_than_plain(*operands)
    assert seen == {("forward", "causal"), ("query", "causal"), ("key and value", "causal")}


@pytest.mark.parametrize("head_dim", [16, 9], ids=["by strides", "padded"])
def test_offsets_pass_two_to_the_31(head_dim):
    # Three sequences, each 2³⁰ + 8 elements after the one before: the third starts beyond 2³¹. The
    # memory between them is never touched, so the system never provides it. An offset that
    # wrapped would read outside of the process's memory.
    gap = 2**30 + 8
    operands = [x.detach() for x in drawn((3, 2, 1, 1, 1, head_dim), torch.float16)]
    far = []
    for x in operands:
        try:
            storage = torch.empty(2 * gap + x[0].numel(), dtype=x.dtype)
        except RuntimeError as error:
            pytest.skip(f"the system reserves no memory that is not there: {error}")
        far.append(storage.as_strided(x.shape, (gap, *x.stride()[1:])).copy_(x).requires_grad_())
    near = [x.requires_grad_() for x in operands]
    for one, other in zip(
        with_gradients(prefix_attention, *far),
        with_gradients(prefix_attention, *near),
        strict=True,
    ):
        assert torch.equal(one, other)


def zeros(q=(1, 4, 2, 8), k=(1, 4, 2, 8), v=(1, 4, 2, 8), dtype=torch.float32):
    return [torch.zeros(shape, dtype=dtype) for shape in (q, k, v)]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (zeros(dtype=torch.long), {}, TypeError, "q must be fp32, fp16 or bf16, got torch.int64"),
        (["q", *zeros()[1:]], {}, TypeError, "q must be fp32, fp16 or bf16, got str"),
        ([*zeros()[:2], None], {}, TypeError, "v must be fp32, fp16 or bf16, got NoneType"),
        (zeros(), {"scale": math.nan}, ValueError, "scale must be .*finite in fp32, got nan"),
        (zeros(), {"scale": math.inf}, ValueError, "scale must be .*finite in fp32, got inf"),
        (zeros(), {"scale": 1e39}, ValueError, "scale must be .*finite in fp32, got 1e"),
        (zeros(), {"scale": 1e-50}, ValueError, "scale must be positive .*in fp32, got 1e-50"),
        (zeros(), {"scale": "1"}, TypeError, "scale must be a number, got str"),
        (zeros(), {"scale": torch.ones(1)}, TypeError, "scale must be a number, got torch.float"),
        ([zeros()[0].to_sparse(), *zeros()[1:]], {}, ValueError, "q must be a dense tensor"),
        (zeros(k=(1, 4, 0, 8), v=(1, 4, 0, 8)), {}, ValueError, "must divide q's 2 heads, got 0"),
        (zeros(q=(1, 4, 2, 0), k=(1, 4, 2, 0), v=(1, 4, 2, 0)), {}, ValueError, "got 0"),
        (
            zeros(),
            {"prefix_k": torch.zeros(1, 2, 1, 8), "prefix_v": torch.zeros(1, 2, 1, 8)},
            ValueError,
            "prefix_k must have 2 heads, got 1",
        ),
        (
            zeros(),
            {"prefix_k": torch.zeros(1, 2, 2, 8), "prefix_v": torch.zeros(1, 3, 2, 8)},
            ValueError,
            "prefix_v must have the shape of prefix_k",
        ),
        (
            zeros(),
            {"prefix_k": torch.zeros(1, 2, 2, 8), "prefix_v": torch.zeros(1, 2, 2, 8).half()},
            TypeError,
            "prefix_v must have q's dtype",
        ),
        (
            zeros(k=(1, 5, 2, 8), v=(1, 5, 2, 8)),
            {"prefix_k": torch.zeros(1, 2, 2, 8), "prefix_v": torch.zeros(1, 2, 2, 8)},
            ValueError,
            "k must have 4 positions as q has, got 5",
        ),
        (
            [torch.empty(1, 4, 2, 8, device="meta").as_strided((1, 4, 2, 8), (0, 2**23, 8, 1))] * 3,
            {},
            ValueError,
            "add up to less than 8388608",
        ),
    ],
)
def test_bad_input_is_refused_before_a_launch(arguments, options, error, message):
    with pytest.raises(error, match=message):
        prefix_attention(*arguments, **options)


def test_an_output_gradient_that_lies_too_far_apart_is_copied():
    # The last of a tile's 128 rows lies 127 · 17 · 2²⁰ > 2³¹ elements after its first: an offset in
    # 32 bits would wrap. As above, only the rows themselves are ever touched.
    apart = 17 * 2**20
    q, k, v = drawn((1, 128, 0, 1, 1, 16), torch.float16)
    near = torch.linspace(-1, 1, q.numel(), dtype=q.dtype).reshape(q.shape)
    try:
        storage = torch.empty(128 * apart, dtype=q.dtype)
    except RuntimeError as error:
        pytest.skip(f"the system reserves no memory that is not there: {error}")
    far = storage.as_strided(q.shape, (0, apart, 16, 1)).copy_(near)
    for one, other in zip(
        *(torch.autograd.grad(causal_attention(q, k, v), (q, k, v), grad) for grad in (near, far)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_device_without_kernels_is_named(monkeypatch):
    monkeypatch.setattr("kernels.attention.launches.INTERPRETED", False)
    with pytest.raises(ValueError, match=r"q is torch.float32 on cpu: the kernels run on CUDA"):
        causal_attention(*zeros())


def test_second_derivatives_are_refused():
    q, k, v = drawn((1, 3, 0, 1, 1, 16))
    (gradient,) = torch.autograd.grad(causal_attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="attention_backward has no derivative"):
        gradient.sum().backward()
    # Nor is a term left out where there are others.
    (gradient,) = torch.autograd.grad(causal_attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="attention_backward has no derivative"):
        (gradient.square().sum() + q.sum()).backward()


def test_forward_mode_is_refused():
    q, k, v = (x.detach() for x in drawn((1, 3, 0, 1, 1, 16)))
    with pytest.raises(NotImplementedError, match="attention has no forward-mode derivative"):
        torch.func.jvp(lambda q: causal_attention(q, k, v), (q,), (torch.ones_like(q),))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(NotImplementedError, match="prepare_attention has no forward-mode"):
            causal_attention(dual, k, v, angles=torch.ones(1, 3, 2))


def test_a_gradient_that_is_not_there():
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(False)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    q, k, v = drawn((1, 3, 0, 1, 1, 16))
    out = Nothing.apply(causal_attention(q, k, v)).sum() + q.sum()
    (gradient,) = torch.autograd.grad(out, q)
    assert torch.equal(gradient, torch.ones_like(q))


def test_the_operator_in_a_frame_that_is_not_compiled():
    q, k, v = drawn((1, 3, 0, 1, 1, 16))

    def attend(q, k, v):
        try:
            torch._dynamo.graph_break()
            return torch.ops.flopcount.attention(q, k, v, None, None, 0.4, 16)[0]
        finally:
            pass

    def gradients(function):
        return torch.autograd.grad(function(q, k, v).sum(), (q, k, v))

    compiled = torch.compile(lambda q, k, v: attend(q, k, v), backend="aot_eager")
    assert all(map(torch.equal, gradients(compiled), gradients(attend)))
