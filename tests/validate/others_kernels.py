"""Kernels of fla-core and liger-kernel for test_emulated_kernels.py, beside plain PyTorch.

They are no dependencies: ``pip install --no-deps fla-core==0.6.0 liger-kernel==0.8.5 einops``.
"""

import importlib.util
import math

import torch
from torch.nn import functional

NEEDED = ("fla", "liger_kernel", "einops", "validate.profile")
BF16 = torch.bfloat16
ALLOWED = {torch.float32: 1e-6, BF16: 2**-7}
"""Of the largest value."""


def missing():
    """Packages that are not there, in words."""
    return ", ".join(name for name in NEEDED if importlib.util.find_spec(name) is None)


def drawn(*shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def both(function, specification, *operands):
    """Results and gradients, and those of a specification in float64."""
    found = [x.clone().requires_grad_() for x in operands]
    exact = [x.double().requires_grad_() for x in operands]
    for results, call in ((found, function), (exact, specification)):
        out = call(*results)
        grad = drawn(*out.shape, seed=9, dtype=operands[0].dtype) if out.dim() else torch.ones(())
        # The result is copied: some backward passes write over it.
        results[:] = [out.detach().clone(), *torch.autograd.grad(out, results, grad.to(out.dtype))]
    return zip(found, exact, strict=True)


def normed(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def attended(q, k, v, softmax=True):
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    later = ~torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if softmax:
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
    else:
        weights = scores.masked_fill(later, 0)
    return torch.einsum("bhts,bshd->bthd", weights, v)


def rms_norm():
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction as Function

    def run(x, weight):
        return Function.apply(x, weight, 1e-6, 0.0, "llama", False)

    return both(run, normed, drawn(5, 200, seed=1), drawn(200, seed=2))


def layer_norm():
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction as Function

    operands = drawn(5, 200, seed=1), drawn(200, seed=2), drawn(200, seed=3)
    return both(
        lambda x, w, b: Function.apply(x, w, b, 1e-6),
        lambda x, w, b: functional.layer_norm(x, (200,), w, b, 1e-6),
        *operands,
    )


def softmax():
    from liger_kernel.ops.softmax import LigerSoftmaxFunction as Function

    return both(Function.apply, lambda x: x.softmax(-1), drawn(7, 300, seed=1))


def swiglu():
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction as Function

    operands = (drawn(7, 300, seed=seed, dtype=BF16) for seed in (1, 2))
    return both(Function.apply, lambda a, b: functional.silu(a) * b, *operands)


def geglu():
    from liger_kernel.ops.geglu import LigerGELUMulFunction as Function

    operands = (drawn(7, 300, seed=seed) for seed in (1, 2))
    return both(Function.apply, lambda a, b: functional.gelu(a, approximate="tanh") * b, *operands)


def cross_entropy():
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction as Function

    targets = torch.randint(0, 500, (6,), generator=torch.Generator().manual_seed(3))

    def run(x):
        return Function.apply(x, targets, None, -100, 0.0, 0.1, "mean", None, False)[0]

    def plain(x):
        return functional.cross_entropy(x, targets, label_smoothing=0.1)

    return both(run, plain, drawn(6, 500, seed=1))


def rotary():
    from liger_kernel.ops.rope import LigerRopeFunction as Function

    q, k = drawn(2, 4, 6, 32, seed=1), drawn(2, 2, 6, 32, seed=2)
    angles = drawn(1, 6, 16, seed=3).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()

    def turned(x):
        halves = torch.cat((-x[..., 16:], x[..., :16]), -1)
        return x * cos.double().unsqueeze(1) + halves * sin.double().unsqueeze(1)

    return zip(
        Function.apply(q.clone(), k.clone(), cos, sin),
        (turned(q.double()), turned(k.double())),
        strict=True,
    )


def matmul():
    from fla.ops.utils.matmul import matmul

    a, b = drawn(70, 40, seed=1, dtype=BF16), drawn(40, 50, seed=2, dtype=BF16)
    yield matmul(a, b), a.double() @ b.double()


def attention():
    from fla.ops.attn.parallel import parallel_attn

    operands = (drawn(1, 100, 2, 64, seed=seed, dtype=BF16) for seed in (1, 2, 3))
    return both(parallel_attn, attended, *operands)


def linear_attention():
    from fla.ops.linear_attn import chunk_linear_attn

    operands = (drawn(1, 128, 2, 32, seed=seed, dtype=BF16) for seed in (1, 2, 3))
    return both(
        lambda q, k, v: chunk_linear_attn(q, k, v, normalize=False)[0],
        lambda q, k, v: attended(q, k, v, softmax=False),
        *operands,
    )


def recurrence():
    from fla.ops.hgrn import fused_recurrent_hgrn

    def plain(x, gates):
        state, states = torch.zeros(()), []
        for i in range(x.shape[1]):
            state = gates[:, i].exp() * state + x[:, i]
            states.append(state)
        return torch.stack(states, 1)

    operands = drawn(2, 30, 40, seed=1), functional.logsigmoid(drawn(2, 30, 40, seed=2))
    return both(lambda x, gates: fused_recurrent_hgrn(x, gates)[0], plain, *operands)


def sums():
    from fla.ops.utils.cumsum import chunk_local_cumsum

    x = drawn(1, 128, 2, seed=1)
    yield chunk_local_cumsum(x, 64), x.double().view(1, 2, 64, 2).cumsum(2).view(1, 128, 2)


CASES = (
    rms_norm, layer_norm, softmax, swiglu, geglu, cross_entropy, rotary, matmul, attention,
    linear_attention, recurrence, sums,
)  # fmt: skip
NAMES = tuple(case.__name__ for case in CASES)


def errors(name):
    """Of each result, the largest error over what it may be; and the memory checks' findings."""
    from validate.emulator.launching import emulating
    from validate.emulator.safety import check
    from validate.profile.stand_in import standing_in

    findings = []
    with (
        emulating(lambda launch: findings.extend(check(launch))),
        standing_in({}, {}),
    ):
        pairs = list(CASES[NAMES.index(name)]())
    shares = []
    for found, exact in pairs:
        error = (found.double() - exact).abs().max() / exact.abs().max()
        shares.append(float(error) / ALLOWED[found.dtype] if error.isfinite() else math.inf)
    return shares, findings
