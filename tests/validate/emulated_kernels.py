"""Kernels for test_emulated_kernels.py, each with what plain PyTorch says of its results."""

import dataclasses
import re

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from validate.emulator import assembly, launching, operations, safety

SIZE = 256
INT32, INT64, FP16, BF16, FP32, FP64 = (
    torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip


def drawn(*shape, dtype=FP32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def integers(low, high, *shape, dtype=INT32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


@triton.jit
def atomics_kernel(x, sums, integers, seen, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    number = at + SIZE * tl.program_id(0)
    tl.atomic_add(sums + at % 4, tl.load(x + at))
    tl.store(seen + number, tl.atomic_add(integers + tl.zeros((SIZE,), tl.int32), 1))
    tl.atomic_max(integers + 4 + at % 4, number)
    tl.atomic_min(integers + 8 + at % 4, -number)
    tl.atomic_or(integers + 12 + at % 4, number)
    tl.atomic_and(integers + 16 + at % 4, number | 256)
    tl.atomic_xor(integers + 20 + at % 4, number)
    tl.atomic_xchg(integers + 24, 7)
    tl.atomic_cas(integers + 25, 3, 5)
    tl.atomic_cas(integers + 26, 3, 5)


def atomics():
    """Two programs of 256: sums, and what integers are at the end; each number is seen once."""
    x = integers(-9, 9, SIZE).float()
    sums, seen = torch.zeros(4), torch.full((2 * SIZE,), -1, dtype=INT32)
    held = torch.zeros(28, dtype=INT32)
    held[16:20], held[25] = -1, 3
    atomics_kernel[(2,)](x, sums, held, seen, SIZE=SIZE)
    number = torch.arange(2 * SIZE, dtype=INT32).view(-1, 4)
    yield sums, 2 * x.view(-1, 4).sum(0)
    yield seen.sort().values, torch.arange(2 * SIZE, dtype=INT32)
    yield held[0], torch.tensor(2 * SIZE)
    yield held[4:8], number.max(0).values
    yield held[8:12], -number.max(0).values
    bits = number[:, :, None] >> torch.arange(9) & 1
    yield held[12:16], (bits.any(0) << torch.arange(9)).sum(-1)
    yield held[16:20], 256 + torch.arange(4)  # of every fourth number, the last two bits stay
    yield held[20:24], (bits.sum(0) % 2 << torch.arange(9)).sum(-1)
    yield held[24:27], torch.tensor([7, 5, 0])


@triton.jit
def wide_atomics_kernel(halves, sums, longs, reals, x, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.atomic_add(sums + at % 8, tl.load(halves + at))
    tl.atomic_add(longs + at % 4, at.to(tl.int64) << 33)
    tl.atomic_max(longs + 4 + at % 4, at.to(tl.int64) << 33)
    tl.atomic_max(reals + at % 4, tl.load(x + at))


def wide_atomics():
    """Sums of halves that are exact, of 64 bits, and the largest of reals of either sign."""
    for dtype in (FP16, BF16):
        halves = integers(-2, 3, SIZE).to(dtype)
        sums, longs = torch.zeros(8, dtype=dtype), torch.zeros(8, dtype=INT64)
        x, reals = drawn(SIZE), torch.full((4,), -torch.inf)
        wide_atomics_kernel[(1,)](halves, sums, longs, reals, x, SIZE=SIZE)
        yield sums, halves.view(-1, 8).sum(0)
        number = torch.arange(SIZE).view(-1, 4) << 33
        yield longs, torch.cat((number.sum(0), number.max(0).values))
        yield reals, x.view(-1, 4).max(0).values


@triton.jit
def histogram_kernel(x, out, SIZE: tl.constexpr, BINS: tl.constexpr):
    counts = tl.histogram(tl.load(x + tl.arange(0, SIZE)), BINS)
    tl.store(out + tl.arange(0, BINS), counts)


def histogram():
    """Atomics and votes in shared memory."""
    x, out = integers(0, 16, SIZE), torch.zeros(16, dtype=INT32)
    histogram_kernel[(1,)](x, out, SIZE=SIZE, BINS=16)
    yield out, x.bincount(minlength=16)


@triton.jit
def bytes_kernel(x, chosen, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = tl.load(x + at).to(tl.int32)
    tl.store(out + at, tl.where(tl.load(chosen + at), x >> 1, -x).to(tl.int8))


def single_bytes():
    """Loads and stores of signed bytes and of truth values."""
    for size in (SIZE, SIZE // 2):  # two of each thread, and one
        x, out = integers(-40, 40, size, dtype=torch.int8), torch.zeros(size, dtype=torch.int8)
        chosen = drawn(size) > 0
        bytes_kernel[(1,)](x, chosen, out, SIZE=size)
        yield out, torch.where(chosen, x >> 1, -x)


@triton.jit
def integers_kernel(x, out, by, shift, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = tl.load(x + at)
    tl.store(out + at, x // by)
    tl.store(out + SIZE + at, x % by)
    tl.store(out + 2 * SIZE + at, x << shift)
    tl.store(out + 3 * SIZE + at, x >> at % 32)
    tl.store(out + 4 * SIZE + at, tl.umulhi(x, x * 7))


def whole_numbers():
    """Division, remainder and shifts by what only the run knows, in 32 and 64 bits, by calls."""
    for dtype in (INT32, INT64):
        x = (torch.arange(SIZE) * 12345 - 999_999).to(dtype)
        out = torch.zeros(5 * SIZE, dtype=dtype)
        by, shift = 7, 3
        integers_kernel[(1,)](x, out, by, shift, SIZE=SIZE)
        # Division cuts towards zero, and the remainder has the dividend's sign.
        found = out.view(5, SIZE)
        yield found[0], torch.div(x, by, rounding_mode="trunc")
        yield found[1], torch.fmod(x, by)
        yield found[2], x << shift
        yield found[3], x >> (torch.arange(SIZE) % 32).to(dtype)
        bits = 32 if dtype == INT32 else 64
        high = [
            int(a) % 2**bits * (int(a) * 7 % 2**bits) >> bits for a in x.tolist()
        ]  # as numbers without a sign
        signed = [value - 2**bits if value >= 2 ** (bits - 1) else value for value in high]
        yield found[4], torch.tensor(signed, dtype=dtype)


@triton.jit
def reals_kernel(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = tl.load(x + at)
    tl.store(out + at, tl.erf(x))
    tl.store(out + SIZE + at, tl.sqrt_rn(x * x + 1))
    tl.store(out + 2 * SIZE + at, tl.rsqrt(x * x + 1))
    tl.store(out + 3 * SIZE + at, tl.floor(x))
    tl.store(out + 4 * SIZE + at, tl.ceil(x))
    tl.store(out + 5 * SIZE + at, libdevice.tanh(x))
    tl.store(out + 6 * SIZE + at, tl.exp(x) / (1 + tl.abs(x)))
    tl.store(out + 7 * SIZE + at, tl.log(tl.abs(x) + 1))
    tl.store(out + 8 * SIZE + at, tl.div_rn(x, x * x + 1))
    tl.store(out + 9 * SIZE + at, libdevice.pow(tl.abs(x), x))
    tl.store(out + 10 * SIZE + at, libdevice.log1p(x * x))
    tl.store(out + 11 * SIZE + at, libdevice.trunc(x))


def reals():
    """Functions that are made of special functions, roundings, checks and slow paths."""
    x, out = 3 * drawn(SIZE), torch.zeros(12 * SIZE)
    x[0], x[1] = 1e30, 1e-30
    reals_kernel[(1,)](x, out, SIZE=SIZE)
    x = x.double()
    expected = (
        x.erf(), (x * x + 1).sqrt(), (x * x + 1).rsqrt(), x.floor(), x.ceil(), x.tanh(),
        x.exp() / (1 + x.abs()), x.abs().log1p(), x / (x * x + 1), x.abs() ** x,
        (x * x).log1p(), x.trunc(),
    )  # fmt: skip
    for found, truth in zip(out.view(12, SIZE)[:, 2:], expected, strict=True):
        yield found, truth[2:]
    yield out.view(12, SIZE)[[3, 4, 5, 8, 11], 1], torch.tensor([0, 1, 1e-30, 1e-30, 0])


@triton.jit
def order_kernel(x, largest, ordered, gathered, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = tl.load(x + at)
    tl.store(largest, tl.argmax(x, 0))
    tl.store(ordered + at, tl.sort(x))
    tl.store(gathered + at, tl.gather(x, (at * 37) % SIZE, 0))


def order():
    """Where the largest is, sorting, and gathering."""
    x = drawn(SIZE)
    largest, ordered, gathered = torch.zeros(1, dtype=INT32), torch.zeros(SIZE), torch.zeros(SIZE)
    order_kernel[(1,)](x, largest, ordered, gathered, SIZE=SIZE)
    yield largest[0], x.argmax()
    yield ordered, x.sort().values
    yield gathered, x[torch.arange(SIZE) * 37 % SIZE]


@triton.jit
def multiplied(a_decay, a, b_decay, b):
    return a_decay * b_decay, b_decay * a + b


@triton.jit
def scan_kernel(x, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = tl.load(x + at)
    tl.store(out + at, tl.cumsum(x, 0))
    tl.store(out + SIZE + at, tl.cumsum(x, 0, reverse=True))
    _, state = tl.associative_scan((tl.full((SIZE,), 0.9, tl.float32), x), 0, multiplied)
    tl.store(out + 2 * SIZE + at, state)


def scan():
    """Sums of all before, of all after, and a recurrence."""
    x, out = drawn(SIZE), torch.zeros(3, SIZE)
    scan_kernel[(1,)](x, out, SIZE=SIZE)
    x = x.double()
    yield out[0], x.cumsum(0)
    yield out[1], x.flip(0).cumsum(0).flip(0)
    powers = 0.9 ** (torch.arange(SIZE)[:, None] - torch.arange(SIZE)).double()
    yield out[2], powers.tril() @ x


@triton.jit
def product_kernel(a, b, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    row, column, k = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    a = tl.load(a + row[:, None] * DEPTH + k[None, :])
    b = tl.load(b + k[:, None] * COLUMNS + column[None, :])
    at = row[:, None] * COLUMNS + column[None, :]
    tl.store(out + at, tl.dot(a, b, tl.load(out + at)))


def products():
    """Products of a warp, in 16 bits and, with ten bits of the significand, in fp32."""
    for dtype in (FP16, BF16, FP32):
        a, b = drawn(32, 48, dtype=dtype), drawn(48, 16, dtype=dtype, seed=1)
        a, b = (torch.cat((x, x[:, :16]), 1) for x in (a, b.T))
        b = b.T.contiguous()
        out = drawn(32, 16, seed=2)
        exact = out.double() + a.double() @ b.double()
        product_kernel[(1,)](a, b, out, ROWS=32, COLUMNS=16, DEPTH=64)
        yield out, exact, 2e-3 if dtype == FP32 else 1e-5


@triton.jit
def halves_kernel(x, y, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x, y = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, x * y)
    tl.store(out + SIZE + at, x + y)
    tl.store(out + 2 * SIZE + at, tl.fma(x, y, y))
    tl.store(out + 3 * SIZE + at, tl.maximum(x, y))
    tl.store(out + 4 * SIZE + at, tl.where(x > y, x - y, y))


def halves():
    """Arithmetic on pairs of halves, rounded once."""
    for dtype in (FP16, BF16):
        x, y = drawn(SIZE, dtype=dtype), drawn(SIZE, dtype=dtype, seed=1)
        out = torch.zeros(5, SIZE, dtype=dtype)
        halves_kernel[(1,)](x, y, out, SIZE=SIZE)
        wide, other = x.double(), y.double()
        yield out[0], (wide * other).to(dtype), 0
        yield out[1], (wide + other).to(dtype), 0
        yield out[2], (wide * other + other).to(dtype), 0
        yield out[3], torch.maximum(x, y), 0
        yield out[4], torch.where(x > y, (wide - other).to(dtype), y), 0


@triton.jit
def conversions_kernel(x, numbers, longs, out, wide, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x, integer, long = tl.load(x + at), tl.load(numbers + at), tl.load(longs + at)
    tl.store(numbers + at, x.to(tl.int32))
    tl.store(longs + at, x.to(tl.int64))
    tl.store(out + at, integer.to(tl.float32))
    tl.store(out + SIZE + at, long.to(tl.float32))
    tl.store(wide + at, x.to(tl.float64) * x + integer)
    tl.store(wide + SIZE + at, long.to(tl.float64) / (1 + tl.abs(x.to(tl.float64))))


def conversions():
    """Between integers of 32 and 64 bits, fp32 and fp64, and arithmetic in fp64."""
    x = 1000 * drawn(SIZE)
    numbers = integers(-(2**31), 2**31, SIZE)
    longs = integers(-(2**62), 2**62, SIZE, dtype=INT64, seed=1)
    given = numbers.clone(), longs.clone()
    out, wide = torch.zeros(2, SIZE), torch.zeros(2, SIZE, dtype=FP64)
    conversions_kernel[(1,)](x, numbers, longs, out, wide, SIZE=SIZE)
    yield numbers, x.to(INT32)
    yield longs, x.to(INT64)
    yield out[0], given[0].float(), 0
    yield out[1], given[1].float(), 0
    yield wide[0], x.double() * x.double() + given[0], 1e-15
    yield wide[1], given[1].double() / (1 + x.double().abs()), 1e-15


CASES = (
    atomics, wide_atomics, histogram, single_bytes, whole_numbers, reals, order, scan, products,
    halves, conversions,
)  # fmt: skip


def edited(launch, pattern, replacement, which=0):
    """A launch in which one instruction of those that match is changed, or (None) each of them."""
    lines, matches = [], 0
    for at in launch.code.instructions:
        text = changed = at.text.removeprefix(f"@{at.guard} ")
        if re.search(pattern, text):
            if which in (None, matches):
                changed = "NOP" if replacement == "NOP" else re.sub(pattern, replacement, text)
            matches += 1
        guard = f"@{at.guard} " if at.guard else ""
        file, line = at.source.rsplit(":", 1)
        lines.append(f'//## File "{file}", line {line}')
        lines.append(f"/*{16 * at.index:04x}*/ {guard}{changed} ;")
    instructions, _ = assembly.parsed("\n".join(lines))
    code = dataclasses.replace(launch.code, instructions=instructions)
    return dataclasses.replace(launch, code=code, operations=operations.decoded(code))


def errors(name, fault=None):
    """Of each result, the largest difference over what it may be; and the memory checks' findings.

    It may be 2⁻²⁰ of the largest value, unless a case says so; whole numbers must be equal.

    Args:
        name: The case's.
        fault: A pattern of instructions, and what to put in their place.
    """
    found, findings = [], []
    case = next(case for case in CASES if case.__name__ == name)

    def run(launch):
        findings.extend(safety.check(edited(launch, *fault, which=None) if fault else launch))

    with launching.emulating(run):
        for result, truth, *bound in case():
            if not result.is_floating_point():
                found.append(float((result.long() - truth.long()).abs().max()) * 2)
                continue
            largest = truth.double().abs().max()
            allowed = largest * (bound[0] if bound else 2**-20)
            error = (result.double() - truth.double()).abs().max()
            share = float(error / allowed) if allowed else float(error) and float("inf")
            found.append(share if error.isfinite() else float("inf"))
    return found, findings
