"""Attention as its users call it, forward and backward, on the emulated kernels."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from flopcount.executed import KernelWork, kernel_work
from kernels.attention.tilings import KERNELS, WIDEST_CUT, padded_head_dim
from models.training.throughput import tiling_of
from validate.emulator.counts import Counts, count
from validate.emulator.launching import EmulatedLaunch, emulating
from validate.witnesses.compiled_code import Kernel, compiling, product_lines
from validate.witnesses.processes import triton_processes

PASS_OF = {kernel: name for name, kernel in KERNELS.items()} | {"row_products": "rows"}
"""The counter's name of each kernel that it declares the work of."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of the attention, and its gradients.

    Attributes:
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        head_dim: Channels of a head.
        queries: n, the latents.
        prefix: k, further keys before them.
        heads: Query heads.
        key_heads: Key-value heads, which divide them.
        apart: Whether the prefix's keys and values are tensors of their own.
        pairs: Pairs of channels that the rotary embedding turns.
        batch: Sequences.
    """

    dtype: str
    head_dim: int
    queries: int
    prefix: int = 0
    heads: int = 1
    key_heads: int = 1
    apart: bool = False
    pairs: int = 0
    batch: int = 1

    @property
    def element_size(self) -> int:
        """Bytes of an element."""
        return 4 if self.dtype == "float32" else 2

    def operands(self, values: bool = True) -> tuple[list[Any], Any, Any]:
        """Queries, keys and values (and the prefix's), angles, and the output's gradient.

        Without ``values`` they hold what memory held, and take none before they are touched.
        """
        import torch

        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, self.dtype)

        def drawn(length: int, heads: int) -> Any:
            size = (self.batch, length, heads, self.head_dim)
            if not values:
                return torch.empty(size, dtype=dtype, requires_grad=True)
            return torch.randn(size, generator=generator).to(dtype).requires_grad_()

        keys = self.queries + (0 if self.apart else self.prefix)
        tensors = [drawn(self.queries, self.heads)]
        tensors += [drawn(keys, self.key_heads) for _ in range(2)]
        tensors += [drawn(self.prefix, self.key_heads) for _ in range(2 if self.apart else 0)]
        positions = self.queries + self.prefix
        angles = 3 * torch.randn(1, positions, self.pairs, generator=generator)
        grad = drawn(self.queries, self.heads).detach()
        return tensors, angles if self.pairs else None, grad


def results(attention: Callable[..., Any], tensors: Sequence[Any], angles: Any, grad: Any) -> Any:
    """Output and gradients, one after the other."""
    import torch

    out = attention(*tensors, angles=angles)
    return [out.detach(), *torch.autograd.grad(out, list(tensors), grad.to(out.dtype))]


def plain_attention(
    q: Any, k: Any, v: Any, prefix_k: Any = None, prefix_v: Any = None, angles: Any = None
) -> Any:
    """The specification in plain PyTorch, in the operands' dtype."""
    import torch

    from kernels.attention.reference import reference_attention, reference_preparation

    if prefix_k is not None:
        k, v = torch.cat((prefix_k, k), 1), torch.cat((prefix_v, v), 1)
    if angles is not None:
        q = reference_preparation(q, angles[:, -q.shape[1] :], q.shape[-1])
        k = reference_preparation(k, angles, k.shape[-1])
    return reference_attention(q, k, v)[0]


def launched(case: Case, run: Callable[[EmulatedLaunch], Any], backward: bool = True) -> list[Any]:
    """Output and gradients, where ``run`` computes them; memory left unwritten is NaN.

    Args:
        case: The call.
        run: Takes each launch.
        backward: Whether to ask for gradients.
    """
    from unittest import mock

    import torch

    def poisoned(make: Any) -> Any:
        return lambda *arguments, **options: make(*arguments, **options).fill_(float("nan"))

    with (
        mock.patch.object(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty)),
        mock.patch.object(torch, "empty_like", poisoned(torch.empty_like)),
    ):
        return called(case, run, backward)


def called(
    case: Case,
    run: Callable[[EmulatedLaunch], Any],
    backward: bool = True,
    values: bool = True,
) -> list[Any]:
    """Output and gradients of a call, whose launches ``run`` takes."""
    from kernels.attention import prefix_attention

    tensors, angles, grad = case.operands(values)
    with emulating(run):
        if backward:
            return results(prefix_attention, tensors, angles, grad)
        return [prefix_attention(*tensors, angles=angles)]


def kernels_of(case: Case) -> list[Kernel]:
    """The kernels that a call launches, forward and backward; none is compiled."""
    from unittest import mock

    import triton

    from kernels.attention import attention, prefix_attention

    kernels: list[Kernel] = []
    with (
        triton.knobs.nvidia.scope(),
        triton.knobs.compilation.scope(),
        compiling([], wanted=(), launched=kernels),
        mock.patch.object(attention, "unsupported", return_value=None),
    ):
        results(prefix_attention, *case.operands(values=False))
    return kernels


def errors(case: Case, run: Callable[[EmulatedLaunch], Any] = EmulatedLaunch.run) -> list[float]:
    """Largest errors of output and gradients, as shares of what they may be.

    The bound is that of the tests in the interpreter and on a GPU: against the specification in
    float64, 2 (gradients: 3) times the error of plain PyTorch in the same dtype, and one unit of
    the dtype's precision of the largest value beside it.

    Returns:
        Output, and gradients of queries, keys, values, and prefix: right where at most 1; infinite
        where a value is not a number.
    """
    ours = launched(case, run)
    tensors, angles, grad = case.operands()
    exact = [x.detach().double().requires_grad_() for x in tensors]
    truths = results(plain_attention, exact, None if angles is None else angles.double(), grad)
    usuals = results(plain_attention, tensors, angles, grad)
    return [
        error_share(result, usual, truth, 3 if i else 2)
        for i, (result, usual, truth) in enumerate(zip(ours, usuals, truths, strict=True))
        if truth.numel()  # an empty prefix has no gradients
    ]


def error_share(result: Any, usual: Any, truth: Any, times: int) -> float:
    """The largest error as a share of what it may be; infinite where a value is not a number.

    Args:
        result: What is judged.
        usual: What plain PyTorch computes in the same dtype.
        truth: The same in float64.
        times: How many times plain PyTorch's error it may be, and one unit of precision.
    """
    import torch

    error = (result - truth).abs().max()
    floor = torch.finfo(usual.dtype).eps * truth.abs().max()
    bound = times * (usual - truth).abs().max() + floor
    return float(error / bound) if error.isfinite() else float("inf")


def counted(
    case: Case, results: bool = False, distinct: bool = True, backward: bool = True
) -> list[Counts]:
    """What the launches of a forward and a backward pass execute, in order.

    Args:
        case: What to run.
        results: As of :func:`validate.emulator.counts.count`.
        distinct: As of :func:`validate.emulator.counts.count`.
        backward: Whether to run the backward pass, too.
    """
    counts: list[Counts] = []

    def run(launch: EmulatedLaunch) -> None:
        counts.append(count(launch, results, distinct))

    called(case, run, backward, values=results)
    return counts


def seen(case: Case) -> dict[str, dict[str, int]]:
    """What is executed, and how far the kernels' own declarations are from it.

    Returns:
        ``executed``: FLOPs of tile products by pass, on tensor cores, or of fused multiply-adds in
        fp32. ``declared``: of each kernel, the bytes that a launch declares more or less than the
        distinct ones that it touches, summed over launches. ``work``: exponentials, distinct bytes
        and requested ones by the counter's name of the kernel.
    """
    return seen_in(case, counted(case))


def seen_in(case: Case, launches: Iterable[Counts]) -> dict[str, dict[str, int]]:
    """What :func:`seen` says, of launches that were counted."""
    lines = [f"attention/tiles.py:{line}" for line in product_lines()]
    executed = {"forward": 0, "backward": 0}
    declared: collections.Counter[str] = collections.Counter()
    work: collections.Counter[str] = collections.Counter()
    for counts in launches:
        name = counts.code.name
        phase = "forward" if name == "attention_forward" else "backward"
        executed[phase] += sum(counts.tensor_flops().values())
        if case.dtype == "float32":
            executed[phase] += counts.lane_flops(lines)
        distinct, requested = counts.global_bytes("distinct bytes"), counts.global_bytes("bytes")
        declared[name] += abs(counts.declared["bytes"] - distinct)
        if name in PASS_OF:
            work[f"exponentials of {PASS_OF[name]}"] += counts.special().get("EX2", 0)
            work[f"distinct bytes of {PASS_OF[name]}"] += distinct
            work[f"requested bytes of {PASS_OF[name]}"] += requested
    return {"executed": executed, "declared": dict(declared), "work": dict(work)}


def difference(case: Case, counts: dict[str, dict[str, int]]) -> dict[str, int]:
    """What the counter says minus what :func:`seen` saw.

    Executed FLOPs by pass; exponentials, distinct and requested bytes by kernel, without those
    exponentials that the compiler leaves out. And the distinct bytes that kernels themselves
    declare to profilers.
    """
    formula = _formula(case)
    missed = {phase: formula[phase] - flops for phase, flops in counts["executed"].items()}
    work = {
        f"{what.replace('_', ' ')} of {name}": number
        for name, kernel in _work(case).items()
        for what, number in dataclasses.asdict(kernel).items()
        if number is not None
    }
    for name in LEFT_OUT:
        work[f"exponentials of {name}"] -= left_out(case, name)
    # A kernel that was refused before its end executed nothing that counts.
    missed |= {name: number - counts["work"].get(name, 0) for name, number in work.items()}
    return missed | {f"declared by {name}": n for name, n in counts["declared"].items()}


LEFT_OUT = {"forward": 4, "query": 8}
"""Columns of whose scores the compiler evaluates no exponential: see :func:`left_out`."""


def left_out(case: Case, name: str) -> int:
    """Exponentials that the compiler leaves out, since it knows what is masked.

    A tile on the diagonal that is a square of M on tensor cores is no loop, so that the compiler
    knows its mask: rows whose number lacks the 8 end at M - 9 and admit none of the last 8 keys.
    These are M/2 rows of each of the ⌈n/M⌉ tiles. The query gradient's weights are zero there. In
    the forward pass both scores that a thread holds of such a row are -∞, and have one exponential.
    """
    tiling = tiling_of(case.head_dim, case.element_size, case.queries + case.prefix)
    rows, keys = getattr(tiling, name)
    if case.element_size != 2 or rows != keys:
        return 0
    return case.batch * case.heads * -(-case.queries // rows) * rows // 2 * LEFT_OUT[name]


def _work(case: Case) -> dict[str, KernelWork]:
    padded = padded_head_dim(case.head_dim)
    # Heads of which gradients are not cut, and those that are turned, are padded before.
    natural = padded if padded > WIDEST_CUT else case.head_dim
    return kernel_work(
        tiling_of(case.head_dim, case.element_size, case.queries + case.prefix),
        num_latents=case.queries,
        num_prefix=case.prefix,
        num_heads=case.heads,
        num_key_heads=case.key_heads,
        head_dim=case.head_dim,
        element_size=case.element_size,
        batch_size=case.batch,
        gradient_dims=(padded if case.pairs else natural, natural),
    )


def differences(cases: Iterable[Case], jobs: int = 1) -> Iterator[tuple[Case, dict[str, int]]]:
    """What :func:`difference` says of cases, executed in processes of their own.

    Args:
        cases: What to compare; the kernels of each are compiled for it.
        jobs: Processes.
    """
    cases = tuple(cases)
    with triton_processes(interpret=False, jobs=jobs) as pool:
        for case, counts in zip(cases, pool.map(seen, cases), strict=True):
            yield case, difference(case, counts)


def _formula(case: Case) -> dict[str, int]:
    import torch

    from validate.witnesses import kernel_tally

    shape = kernel_tally.AttentionShape(
        case.batch, case.queries, case.prefix, case.heads, case.key_heads, case.head_dim,
        getattr(torch, case.dtype),
    )  # fmt: skip
    by_part = kernel_tally.formula(shape)
    return {
        phase: sum(flops for part, flops in by_part.items() if part.endswith(phase))
        for phase in ("forward", "backward")
    }


CASES = (
    Case("bfloat16", 73, 131, 100, 8, 8),
    Case("float32", 19, 70, 33, 2, 1),
    Case("bfloat16", 64, 256, 130, 4, 1),
    Case("float16", 54, 35, 70, 4, 4, apart=True),
    Case("bfloat16", 200, 66, 33),
    Case("float16", 128, 256, 66, 2, 2),
    Case("bfloat16", 91, 140, 0, 8, 8, batch=2),
    Case("float16", 1, 5, 3, 2, 1),
    Case("float32", 128, 40, 20),
    Case("bfloat16", 256, 70, 65),
    Case("bfloat16", 41, 150, 80),  # keeps the warp's predicates in a register
)
"""What the matrix compares; the first in a quick run."""
