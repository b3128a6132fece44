"""What each instruction does, as functions on groups of warps.

Opcodes are those of the kernels as the pinned Triton's ptxas makes them. One that is not in
:data:`DECODERS` is an error that names it before anything runs.

Letters: a, b, c operands; m the lanes that execute, None where all do.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from validate.emulator import atomics, doubles, halves, products
from validate.emulator.assembly import (
    ACCESSES,
    INSTRUCTION_BYTES,
    Code,
    Instruction,
    UnknownCodeError,
    access_bytes,
)
from validate.emulator.comparisons import COMPARISONS, JOINTS, REALS, compared
from validate.emulator.decoding import (
    BYTES_OF_WORD,
    DECODERS,
    HALVES,
    I64,
    LAST,
    LOW,
    PREDICATE,
    REGISTER,
    SCOPES,
    U32,
    U64,
    UNIFORM,
    Decoder,
    Reader,
    Run,
    as_words,
    flushed,
    hints,
    lanes_of,
    no_effect,
    nothing,
    opcode,
    put_words,
    rounded,
    signed,
    words_of,
)
from validate.emulator.machine import LANES, LOCAL_BYTES, NEVER_WRITTEN, Group, Operation
from validate.emulator.memory import Array, MachineError

FAMILIES = (atomics, doubles, halves)
"""Where further opcodes are decoded: importing them registers these."""


def decoded(code: Code) -> list[Operation]:
    """What each instruction of a kernel does.

    Raises:
        UnknownCodeError: For the first that is not known.
    """
    operations = []
    for at in code.instructions:
        try:
            operations.append(_decoded(at, code))
        except UnknownCodeError:
            raise
        except (LookupError, ValueError) as error:
            raise at.lacks(error) from error
    return operations


def _decoded(at: Instruction, code: Code) -> Operation:
    decoder = Decoder(at, code)
    decoder.uniform = at.opcode in UNIFORM
    name = at.opcode.removeprefix("U") if decoder.uniform else at.opcode
    if name not in DECODERS:
        raise at.unknown(f"opcode {at.opcode!r}")
    guard = None
    if at.guard and at.guard not in ("PT", "UPT"):
        guard = decoder.predicate(at.guard)
    run = DECODERS[name](decoder)
    if decoder.modifiers:
        raise at.unknown(f"modifier {decoder.modifiers[0]!r}")
    if at.guard in ("!PT", "!UPT"):  # never executed: what ptxas puts before some copies
        guard = _never
    if decoder.condition is not None:
        guard = decoder.condition if guard is None else _both(guard, decoder.condition)
    return Operation(
        at, run, guard, decoder.uniform, decoder.uses, decoder.defines, decoder.wait,
        decoder.observe, decoder.observed, decoder.from_memory, tuple(decoder.bitwise),
        decoder.target,
    )  # fmt: skip


def _never(g: Group) -> Array:
    return np.zeros((len(g.warps), LANES), bool)


def _both(a: Reader, b: Reader) -> Reader:
    """Two guards of lanes as one."""
    return lambda g: np.logical_and(a(g).reshape(len(g.warps), -1), b(g).reshape(len(g.warps), -1))


# Integers.


@opcode("IADD3")
def _add3(d: Decoder) -> Run:
    """A + b + c, with carries out, and with ``X`` carries in; ``64`` on pairs of registers."""
    extended, wide = d.take("X"), d.take("64")
    if wide:
        d.number_of_operands(4)
        put = d.write_long(d.operand(0))
        a, b, c = (d.long(d.operand(i)) for i in (1, 2, 3))
        return lambda g, m: put(g, a(g) + b(g) + c(g), m)
    texts = list(d.at.operands)
    result = d.write(texts.pop(0))
    carries = []
    while texts and PREDICATE.fullmatch(texts[0]):
        carries.append(d.write_predicate(texts.pop(0)))
    if len(texts) != (5 if extended else 3) or len(carries) > 2:
        raise d.at.unknown(f"a form with {len(d.at.operands)} operands")
    if not carries and not extended:
        a, b, c = (d.integer(text) for text in texts)
        if texts[2] in ("RZ", "URZ"):
            return lambda g, m: result(g, a(g) + b(g), m)
        return lambda g, m: result(g, a(g) + b(g) + c(g), m)
    terms = [d.addend(text, bool(extended)) for text in texts[:3] if text not in ("RZ", "URZ")]
    inputs = [d.predicate(text) for text in texts[3:] if text not in ("!PT", "!UPT")]

    def run(g: Group, m: Array | None) -> None:
        total = U64(0)
        for term in terms:
            total = total + term(g)
        for carry in inputs:
            total = total + carry(g).astype(U64)
        result(g, (total & LOW).astype(U32), m)
        for i, carry_out in enumerate(carries):
            carry_out(g, total >> U64(32) > i, m)
        if len(carries) == 1 and (total >> U64(33)).any():
            raise MachineError(f"a carry of more than one: {d.at}")

    return run


@opcode("VIADD")
def _add(d: Decoder) -> Run:
    d.number_of_operands(3)
    put, a, b = d.write(d.operand(0)), d.integer(d.operand(1)), d.integer(d.operand(2))
    return lambda g, m: put(g, a(g) + b(g), m)


@opcode("IMAD")
def _multiply_add(d: Decoder) -> Run:
    """A · b + c: low or high 32 bits, 64 bits (``WIDE``), with a carry in (``X``)."""
    kind = d.take("MOV", "IADD", "SHL", "WIDE", "HI", "X")
    unsigned = d.take("U32")
    if kind in ("WIDE", "HI") and (d.take("X") or len(d.at.operands) > 4):
        return _multiply_add_with_carry(d, kind, unsigned)
    if kind in ("WIDE", "HI"):
        d.number_of_operands(4)
        a, b = (d.integer(d.operand(i)) for i in (1, 2))
        c = d.long(d.operand(3))

        def product(g: Group) -> Any:
            if unsigned:
                return a(g).astype(U64) * b(g).astype(U64) + c(g)
            wide = signed(a(g)).astype(I64) * signed(b(g)).astype(I64)
            return wide.astype(U64) + c(g)

        if kind == "WIDE":
            put = d.write_long(d.operand(0))
            return lambda g, m: put(g, product(g), m)
        high = d.write(d.operand(0))
        return lambda g, m: high(g, (product(g) >> U64(32)).astype(U32), m)
    d.number_of_operands(5 if kind == "X" else 4)
    put = d.write(d.operand(0))
    a, b, c = (d.integer(d.operand(i)) for i in (1, 2, 3))
    if kind == "MOV" and d.operand(1) == d.operand(2) == "RZ":
        d.by_bits(d.operand(0), d.operand(3))
    if kind == "X":
        if d.operand(3).startswith("-"):
            raise d.at.unknown("a negated number beside a carry")
        carry = d.predicate(d.operand(4))
        return lambda g, m: put(g, a(g) * b(g) + c(g) + carry(g).astype(U32), m)
    if d.operand(1) in ("RZ", "URZ"):
        return lambda g, m: put(g, c(g), m)
    if d.operand(3) in ("RZ", "URZ"):
        return lambda g, m: put(g, a(g) * b(g), m)
    return lambda g, m: put(g, a(g) * b(g) + c(g), m)


def _multiply_add_with_carry(d: Decoder, kind: str, unsigned: str) -> Run:
    """A · b + c in 64 bits with a carry out, if it has a second result, and one in."""
    texts = list(d.at.operands)
    put = d.write_long(texts.pop(0)) if kind == "WIDE" else d.write(texts.pop(0))
    carry_out = d.write_predicate(texts.pop(0)) if PREDICATE.fullmatch(texts[0]) else None
    if not unsigned or len(texts) not in (3, 4):
        raise d.at.unknown(f"a form with {len(d.at.operands)} operands")
    a, b, c = d.integer(texts[0]), d.integer(texts[1]), d.long(texts[2])
    carry_in = d.predicate(texts[3]) if texts[3:] else None

    def run(g: Group, m: Array | None) -> None:
        product = a(g).astype(U64) * b(g).astype(U64)
        total = product + c(g)
        carry = total < product
        if carry_in is not None:
            total = total + carry_in(g).astype(U64)
            carry |= (total == 0) & carry_in(g)
        put(g, total if kind == "WIDE" else (total >> U64(32)).astype(U32), m)
        if carry_out is not None:
            carry_out(g, carry, m)

    return run


@opcode("LEA")
def _shift_add(d: Decoder) -> Run:
    """(a << s) + b; with ``HI`` the high word of ({c, a} << s), or of a extended, + b."""
    high, extended, sign = d.take("HI"), d.take("X"), d.take("SX32")
    texts = list(d.at.operands)
    put = d.write(texts.pop(0))
    carry_out = d.write_predicate(texts.pop(0)) if PREDICATE.fullmatch(texts[0]) else None
    carry_in = d.predicate(texts.pop()) if extended else None
    if len(texts) != (4 if high and not sign else 3):
        raise d.at.unknown(f"a form with {len(d.at.operands)} operands")
    a = d.integer(texts[0])
    b = d.addend(texts[1], bool(extended))
    c = d.integer(texts[2]) if high and not sign else None
    shift = int(texts[-1], 16)
    if shift > 31:
        raise d.at.unknown(f"a shift by {shift}")

    def run(g: Group, m: Array | None) -> None:
        if sign:
            moved = (signed(a(g)).astype(I64) << shift).astype(U64) >> U64(32)
        elif c is not None:
            moved = (a(g).astype(U64) | c(g).astype(U64) << U64(32)) << U64(shift) >> U64(32)
        else:
            moved = a(g).astype(U64) << U64(shift) & LOW
        total = (moved & LOW) + b(g)
        if carry_in is not None:
            total = total + carry_in(g).astype(U64)
        put(g, (total & LOW).astype(U32), m)
        if carry_out is not None:
            carry_out(g, total >> U64(32) != 0, m)

    return run


@opcode("SHF")
def _funnel_shift(d: Decoder) -> Run:
    """{c, a} shifted: the low word, or with ``HI`` the high one.

    By at most all of its kind's bits, or (``W``) by the remainder of them.
    """
    d.number_of_operands(4)
    left = d.take("L", "R") == "L"
    wraps = d.take("W")
    kind = d.take("U32", "S32", "U64", "S64")
    high = d.take("HI")
    fixed = re.fullmatch(r"0x[0-9a-f]+", d.operand(2))
    put, a, c = d.write(d.operand(0)), d.integer(d.operand(1)), d.integer(d.operand(3))
    amount = d.integer(d.operand(2))
    if not kind:
        raise d.at.unknown("a shift of no kind")
    shift = int(d.operand(2), 16) if fixed else 32
    if shift < 32 and kind == "U32" and left and not high and d.operand(3) in ("RZ", "URZ"):
        return lambda g, m: put(g, a(g) << U32(shift), m)
    if shift < 32 and kind == "U32" and not left and high:
        return lambda g, m: put(g, c(g) >> U32(shift), m)
    if shift < 32 and kind == "S32" and not left and high:
        return lambda g, m: put(g, (signed(c(g)) >> np.int32(shift)).view(U32), m)
    bits = 64 if kind.endswith("64") else 32

    def run(g: Group, m: Array | None) -> None:
        pair = a(g).astype(U64) | c(g).astype(U64) << U64(32)
        by = amount(g).astype(U64)
        by = by & U64(bits - 1) if wraps else np.minimum(by, U64(bits))
        least = np.minimum(by, U64(63))  # in two steps, since 64 at once is not defined
        rest = by - least
        if left:
            pair = pair << least << rest
        elif kind.startswith("S"):
            pair = (pair.view(I64) >> least.astype(I64) >> rest.astype(I64)).view(U64)
        else:
            pair = pair >> least >> rest
        put(g, (pair >> U64(32) if high else pair & LOW).astype(U32), m)

    return run


def _looked_up(table: int, a: Any, b: Any, c: Any, one: Any) -> Any:
    """The function of three bits, bit by bit, that a table of eight gives."""
    known = {
        0x00: lambda: one & ~one, 0xC0: lambda: a & b, 0xFC: lambda: a | b, 0x3C: lambda: a ^ b,
        0x33: lambda: ~b, 0xFE: lambda: a | b | c, 0x80: lambda: a & b & c,
        0x96: lambda: a ^ b ^ c, 0xF8: lambda: a | b & c, 0x78: lambda: a ^ b & c,
        0xEA: lambda: a & b | c, 0x0F: lambda: ~a, 0xC8: lambda: (a | c) & b,
    }  # fmt: skip
    if table in known:
        return known[table]()
    result = one & ~one
    for index in range(8):
        if table >> index & 1:
            term = one
            for bit, x in ((4, a), (2, b), (1, c)):
                term = term & (x if index & bit else ~x)
            result = result | term
    return result


@opcode("LOP3")
def _logic(d: Decoder) -> Run:
    """A function of three numbers, bit by bit; the predicate says whether it is not 0."""
    d.take("LUT")
    texts = list(d.at.operands)
    put_predicate = d.write_predicate(texts.pop(0)) if PREDICATE.fullmatch(texts[0]) else None
    if len(texts) != 6 or texts[5] not in ("!PT", "!UPT"):
        raise d.at.unknown("this form of an operation on bits")
    if any(text.startswith("-") and REGISTER.fullmatch(text[1:]) for text in texts[1:4]):
        raise d.at.unknown("a negated number in an operation on bits")
    put, table = d.write(texts[0]), int(texts[4], 16)
    a, b, c = (d.integer(text) for text in texts[1:4])
    ones = U32(0xFFFFFFFF)
    for i, text in enumerate(texts[1:4]):
        d.by_bits(texts[0], text, _depends(table, texts[1:4], i))

    def run(g: Group, m: Array | None) -> None:
        result = _looked_up(table, a(g), b(g), c(g), ones)
        put(g, result, m)
        if put_predicate is not None:
            put_predicate(g, result != 0, m)

    return run


def _depends(table: int, texts: Sequence[str], i: int) -> int:
    """The bits of a table's result that depend on operand i, where others may be known."""
    ones, mask = 0xFFFFFFFF, 0
    values = [
        (int(x, 16),) if re.match("-?0x", x) else (0,) if x.endswith("RZ") else (0, ones)
        for x in texts
    ]
    values[i] = (0,)
    for chosen in itertools.product(*values):
        flipped = (*chosen[:i], ones, *chosen[i + 1 :])
        mask |= _looked_up(table, *chosen, ones) ^ _looked_up(table, *flipped, ones)
    return mask & ones


@opcode("PLOP3")
def _predicate_logic(d: Decoder) -> Run:
    d.number_of_operands(7)
    d.take("LUT")
    puts = [d.write_predicate(d.operand(i)) for i in (0, 1)]
    a, b, c = (d.predicate(d.operand(i)) for i in (2, 3, 4))
    tables = [int(d.operand(i), 16) for i in (5, 6)]

    def run(g: Group, m: Array | None) -> None:
        values = a(g), b(g), c(g)
        for put, table in zip(puts, tables, strict=True):
            put(g, _looked_up(table, *values, np.bool_(True)), m)

    return run


STRICT = {"GE": "GT", "LE": "LT", "GT": "GT", "LT": "LT"}


@opcode("ISETP")
def _compare(d: Decoder) -> Run:
    """A compared with b, and (or) a predicate; ``EX`` goes on from the low words' comparison."""
    name = d.take(*COMPARISONS)
    unsigned, joint, extended = d.take("U32"), d.take(*JOINTS), d.take("EX")
    d.number_of_operands(6 if extended else 5)
    puts = [d.write_predicate(d.operand(i)) for i in (0, 1)]
    a, b = (d.integer(d.operand(i)) for i in (2, 3))
    other = d.predicate(d.operand(4))
    below = d.predicate(d.operand(5)) if extended else None
    if not name or not joint:
        raise d.at.unknown("this form of a comparison")

    def run(g: Group, m: Array | None) -> None:
        x, y = a(g), b(g)
        if not unsigned:
            x, y = signed(x), signed(y)
        if below is None:
            holds = COMPARISONS[name](x, y)
        elif name == "EQ":
            holds = (x == y) & below(g)
        elif name == "NE":
            holds = (x != y) | below(g)
        else:
            holds = COMPARISONS[STRICT[name]](x, y) | (x == y) & below(g)
        beside = other(g)
        for put, value in zip(puts, (holds, np.logical_not(holds)), strict=True):
            put(g, JOINTS[joint](value, beside), m)

    return run


@opcode("SEL")
def _select(d: Decoder) -> Run:
    d.number_of_operands(4)
    put, a, b = d.write(d.operand(0)), d.integer(d.operand(1)), d.integer(d.operand(2))
    chosen = d.predicate(d.operand(3))
    return lambda g, m: put(g, np.where(chosen(g), a(g), b(g)), m)


@opcode("VIMNMX", "VIADDMNMX")
def _integer_minimum(d: Decoder) -> Run:
    """The least of a (plus b) and c, or the greatest where the predicate is false."""
    unsigned = d.take("U32")
    added = d.at.opcode == "VIADDMNMX"
    d.number_of_operands(5 if added else 4)
    put = d.write(d.operand(0))
    *terms, last = (d.integer(d.operand(i)) for i in range(1, 4 if added else 3))
    least = d.predicate(d.operand(4 if added else 3))

    def run(g: Group, m: Array | None) -> None:
        a, c = terms[0](g), last(g)
        if added:
            a = a + terms[1](g)
        if not unsigned:
            a, c = signed(a), signed(c)
        result = np.where(least(g), np.minimum(a, c), np.maximum(a, c))
        put(g, result.view(U32), m)

    return run


@opcode("IABS")
def _absolute(d: Decoder) -> Run:
    d.number_of_operands(2)
    put, a = d.write(d.operand(0)), d.integer(d.operand(1))
    return lambda g, m: put(g, np.abs(signed(a(g))).view(U32), m)


@opcode("SGXT")
def _extend(d: Decoder) -> Run:
    """The low bits, extended by their sign or by zeros."""
    d.number_of_operands(3)
    unsigned = d.take("U32")
    put, a = d.write(d.operand(0)), d.integer(d.operand(1))
    rest = 32 - int(d.operand(2), 16)
    if not 0 <= rest < 32:
        raise d.at.unknown("this number of bits")
    if unsigned:
        return lambda g, m: put(g, a(g) & U32(0xFFFFFFFF >> rest), m)
    return lambda g, m: put(g, (signed(a(g) << U32(rest)) >> np.int32(rest)).view(U32), m)


@opcode("PRMT")
def _permute(d: Decoder) -> Run:
    """Four bytes of {c, a}, as digits choose them; 8 and more, their signs in all bits."""
    d.number_of_operands(4)
    put, a, c = d.write(d.operand(0)), d.integer(d.operand(1)), d.integer(d.operand(3))
    select = d.integer(d.operand(2))

    def run(g: Group, m: Array | None) -> None:
        pair = a(g).astype(U64) | c(g).astype(U64) << U64(32)
        chosen = select(g)
        result = U32(0)
        for place in range(4):
            digit = chosen >> U32(4 * place)
            byte = (pair >> (U64(8) * (digit & U32(7)).astype(U64))).astype(U32) & U32(0xFF)
            sign = np.where(byte & U32(0x80), U32(0xFF), U32(0))
            byte = np.where(digit & U32(8), sign, byte)
            result = result | byte << U32(8 * place)
        put(g, result, m)

    return run


@opcode("MOV")
def _move(d: Decoder) -> Run:
    d.number_of_operands(2)
    put, a = d.write(d.operand(0)), d.integer(d.operand(1))
    d.by_bits(*d.at.operands)
    return lambda g, m: put(g, a(g), m)


@opcode("CS2R")
def _zero_pair(d: Decoder) -> Run:
    if d.operand(1) != "SRZ":
        raise d.at.unknown(f"operand {d.operand(1)!r}")
    put = d.write_long(d.operand(0))
    return lambda g, m: put(g, U64(0), m)


@opcode("S2R", "S2UR")
def _special_register(d: Decoder) -> Run:
    d.number_of_operands(2)
    d.uniform = d.at.opcode == "S2UR"
    put, name = d.write(d.operand(0)), d.operand(1)
    warps_only = d.uniform

    def lane(g: Group) -> Array:
        return (g.warps % g.machine.num_warps)[:, None] * LANES + np.arange(LANES)

    def program(axis: int) -> Reader:
        def read(g: Group) -> Array:
            identifiers = g.machine.programs[g.programs, axis]
            return identifiers if warps_only else identifiers[:, None]

        return read

    readers: dict[str, Reader] = {f"SR_CTAID.{'XYZ'[axis]}": program(axis) for axis in range(3)}
    readers["SR_CgaCtaId"] = lambda g: U32(0)  # clusters have one program
    if not warps_only:
        readers["SR_TID.X"] = lane
        number = np.arange(LANES, dtype=U32)
        readers["SR_LANEID"] = lambda g: number
        for kind, mask in (
            ("EQ", U32(1) << number),
            ("LT", (U32(1) << number) - U32(1)),
            ("LE", (U32(2) << number) - U32(1)),
            ("GT", ~((U32(2) << number) - U32(1))),
            ("GE", ~((U32(1) << number) - U32(1))),
        ):
            readers[f"SR_{kind}MASK"] = lambda g, mask=mask: mask
    if name not in readers:
        raise d.at.unknown(f"special register {name!r}")
    read = readers[name]
    return lambda g, m: put(g, read(g).astype(U32), m)


@opcode("R2UR")
def _to_warp(d: Decoder) -> Run:
    """A number that all executing lanes agree on, to the warp's register."""
    d.number_of_operands(2)
    a = d.integer(d.operand(1))
    kind, number = d.register(d.operand(0), written=True)
    if kind != "UR" or number == LAST["UR"]:
        raise d.at.unknown(f"result {d.operand(0)!r}")

    def run(g: Group, m: Array | None) -> None:
        values = a(g)
        lanes = g.lanes if m is None else m
        some = lanes.any(1)
        first = values[np.arange(len(g.warps)), lanes.argmax(1)]
        if ((values != first[:, None]) & lanes).any():
            raise MachineError(f"lanes of a warp disagree: {d.at}")
        g.UR[number] = np.where(some, first, g.UR[number])

    return run


@opcode("P2R", "P2UR")
def _from_predicates(d: Decoder) -> Run:
    """The predicates as bits where the mask has ones, else a's bits."""
    d.number_of_operands(4)
    put, a, bits = d.write(d.operand(0)), d.integer(d.operand(2)), int(d.operand(3), 16)
    kind = "UP" if d.uniform else "P"
    if d.operand(1) != f"{kind}R" or bits > 0x7F:
        raise d.at.unknown("this form")
    d.by_bits(d.operand(0), d.operand(2), 0xFFFFFFFF & ~bits)
    chosen = [(i, d.predicate(f"{kind}{i}")) for i in range(7) if bits >> i & 1]

    def run(g: Group, m: Array | None) -> None:
        value = a(g) & U32(0xFFFFFFFF & ~bits)
        for i, predicate in chosen:
            value = value | predicate(g).astype(U32) << U32(i)
        put(g, value, m)

    return run


@opcode("R2P")
def _to_predicates(d: Decoder) -> Run:
    d.number_of_operands(3)
    a, bits = d.integer(d.operand(1)), int(d.operand(2), 16)
    if d.operand(0) != "PR" or bits > 0x7F:
        raise d.at.unknown("this form")
    chosen = [(i, d.write_predicate(f"P{i}")) for i in range(7) if bits >> i & 1]

    def run(g: Group, m: Array | None) -> None:
        value = a(g)
        for i, put in chosen:
            put(g, (value >> U32(i) & U32(1)).astype(bool), m)

    return run


# Constants.


@opcode("LDC")
def _load_constant(d: Decoder) -> Run:
    d.number_of_operands(2)
    words = 2 if d.take("64") else 1
    index = d.constant(d.operand(1))
    if index is None:
        raise d.at.unknown(f"operand {d.operand(1)!r}")
    kind, number = d.register(d.operand(0), written=True, words=words)
    puts = [d.write(f"{kind}{number + i}") for i in range(words)]

    def run(g: Group, m: Array | None) -> None:
        for i, put in enumerate(puts):
            put(g, g.machine.constants[index + i], m)

    return run


# fp32.


@opcode("FADD", "FMUL", "FFMA")
def _real_arithmetic(d: Decoder) -> Run:
    """A + b, a · b, or a · b + c, rounded once.

    The last is twice where fp64 holds the sum just between two of fp32.
    """
    fused = d.at.opcode == "FFMA"
    d.number_of_operands(4 if fused else 3)
    flush, mode = d.take("FTZ"), d.take("RM", "RP", "RZ")
    put = d.write_real(d.operand(0))
    a, b, *c = (d.real(d.operand(i)) for i in range(1, 4 if fused else 3))
    apply = np.add if d.at.opcode == "FADD" else np.multiply

    def run(g: Group, m: Array | None) -> None:
        with np.errstate(all="ignore"):
            x, y = a(g), b(g)
            if flush:
                x, y = flushed(x), flushed(y)
            if not fused and not mode:
                result = apply(x, y)
            else:
                exact = apply(x, y, dtype=np.float64)
                if fused:
                    exact += flushed(c[0](g)) if flush else c[0](g)
                result = rounded(exact, mode)
            put(g, flushed(result) if flush else result, m)

    return run


@opcode("FMNMX")
def _real_minimum(d: Decoder) -> Run:
    """The least of a and b, or the greatest where the predicate is false; with ``NAN``, any NaN."""
    d.number_of_operands(4)
    put, a, b = d.write_real(d.operand(0)), d.real(d.operand(1)), d.real(d.operand(2))
    nans = d.take("NAN")
    least = d.predicate(d.operand(3))
    smaller, larger = (np.minimum, np.maximum) if nans else (np.fmin, np.fmax)
    if d.operand(3) in ("PT", "!PT"):
        pick = smaller if d.operand(3) == "PT" else larger
        return lambda g, m: put(g, pick(a(g), b(g)), m)

    def run(g: Group, m: Array | None) -> None:
        x, y = a(g), b(g)
        put(g, np.where(least(g), smaller(x, y), larger(x, y)), m)

    return run


@opcode("FSEL")
def _real_select(d: Decoder) -> Run:
    d.number_of_operands(4)
    put, a, b = d.write_real(d.operand(0)), d.real(d.operand(1)), d.real(d.operand(2))
    chosen = d.predicate(d.operand(3))
    return lambda g, m: put(g, np.where(chosen(g), a(g), b(g)), m)


@opcode("FSETP")
def _real_compare(d: Decoder) -> Run:
    """A compared with b; a name that ends in U holds also where one is not a number."""
    name = d.take(*REALS)
    flush, joint = d.take("FTZ"), d.take(*JOINTS)
    d.number_of_operands(5)
    puts = [d.write_predicate(d.operand(i)) for i in (0, 1)]
    a, b, other = d.real(d.operand(2)), d.real(d.operand(3)), d.predicate(d.operand(4))
    if not name or not joint:
        raise d.at.unknown("this form of a comparison")

    def run(g: Group, m: Array | None) -> None:
        x, y = a(g), b(g)
        if flush:
            x, y = flushed(x), flushed(y)
        holds = compared(name, x, y)
        beside = other(g)
        for put, value in zip(puts, (holds, ~holds), strict=True):
            put(g, JOINTS[joint](value, beside), m)

    return run


SPECIAL: dict[str, Callable[[Any], Any]] = {
    "EX2": np.exp2,
    "RCP": lambda x: 1.0 / x,
    "LG2": np.log2,
    "RSQ": lambda x: 1.0 / np.sqrt(x),
    "SQRT": np.sqrt,
    "SIN": np.sin,
    "COS": np.cos,
    "TANH": np.tanh,
}


@opcode("MUFU")
def _special(d: Decoder) -> Run:
    """Special functions, without numbers below the least normal one, on either side."""
    d.number_of_operands(2)
    if half := d.take("RCP64H", "RSQ64H"):
        return doubles.special(d, SPECIAL[half[:3]])
    name = d.take(*SPECIAL)
    put, a = d.write_real(d.operand(0)), d.real(d.operand(1))
    if not name:
        raise d.at.unknown("this special function")
    function = SPECIAL[name]

    def run(g: Group, m: Array | None) -> None:
        with np.errstate(all="ignore"):
            exact = function(flushed(a(g)).astype(np.float64))
            put(g, flushed(exact.astype(np.float32)), m)

    return run


# Conversions.


@opcode("I2F")
def _integer_to_real(d: Decoder) -> Run:
    """A number of 32 or 64 bits as fp32 or fp64, to nearest or rounded up."""
    d.number_of_operands(2)
    wide = d.take("F64")
    kind = d.take("U32", "S32", "U64", "S64") or "S32"
    mode = d.take("RP", "RZ", "RM")
    if wide and mode:
        raise d.at.unknown("this rounding")
    a = d.long(d.operand(1)) if kind.endswith("64") else d.integer(d.operand(1))
    put_wide = d.write_long(d.operand(0)) if wide else None
    put = None if wide else d.write_real(d.operand(0))

    def run(g: Group, m: Array | None) -> None:
        exact = np.asarray(a(g))
        if kind.startswith("S"):
            exact = exact.view(np.int32 if kind == "S32" else I64)
        if put_wide is not None:
            put_wide(g, exact.astype(np.float64).view(U64), m)
            return
        near = exact.astype(np.float32)
        if mode:
            # What was rounded, as an integer again: powers of two beyond it are too large.
            top = np.float64(2.0 ** (8 * exact.dtype.itemsize - kind.startswith("S")))
            beyond = near.astype(np.float64) >= top
            back = np.where(beyond, 0, near.astype(np.float64)).astype(exact.dtype)
            below, above = ~beyond & (back < exact), beyond | (back > exact)
            if mode == "RP":
                near = np.where(below, np.nextafter(near, np.float32(np.inf)), near)
            elif mode == "RM":
                near = np.where(above, np.nextafter(near, np.float32(-np.inf)), near)
            else:
                away = np.where(exact < 0, below, above)
                near = np.where(away, np.nextafter(near, np.float32(0)), near)
        assert put is not None
        put(g, near, m)

    return run


@opcode("I2FP")
def _integer_to_nearest(d: Decoder) -> Run:
    d.number_of_operands(2)
    target, kind = d.take("F32"), d.take("S32", "U32")
    if not target or not kind:
        raise d.at.unknown("this conversion")
    put, a = d.write_real(d.operand(0)), d.integer(d.operand(1))
    return lambda g, m: put(
        g, (a(g) if kind == "U32" else signed(a(g))).astype(np.float32), m
    )  # fmt: skip


ROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil, "": np.rint,
}  # fmt: skip


@opcode("F2I")
def _real_to_integer(d: Decoder) -> Run:
    """An fp32 or fp64 number as an integer, what is too large or too small the nearest.

    What is not a number is 0 (``NTZ``, and unsigned ones), or the least number of all.
    """
    d.number_of_operands(2)
    flush = d.take("FTZ")
    kind = d.take("U32", "S32", "U64", "S64") or "S32"
    wide_source = d.take("F64")
    to_integral = ROUNDINGS[d.take("TRUNC", "FLOOR", "CEIL")]
    zero = d.take("NTZ") or kind.startswith("U")
    wide = kind.endswith("64")
    put = d.write_long(d.operand(0)) if wide else d.write(d.operand(0))
    a = doubles.number(d, d.operand(1)) if wide_source else d.real(d.operand(1))
    bits = 64 if wide else 32
    low, high = (
        (0, 2**bits - 1) if kind.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    target = np.dtype(f"{'u' if kind.startswith('U') else 'i'}{bits // 8}")

    def run(g: Group, m: Array | None) -> None:
        exact = np.asarray(a(g))
        if flush:
            exact = flushed(exact)
        whole = to_integral(exact.astype(np.float64))
        # Beyond 2⁵³ the largest number is no fp64: what reaches its successor is replaced after.
        beyond, below = whole >= float(high) + (0 if wide else 1), whole < low
        with np.errstate(invalid="ignore"):
            integer = np.where(beyond | below | np.isnan(whole), 0, whole).astype(target)
        integer = np.where(beyond, target.type(high), np.where(below, target.type(low), integer))
        integer = np.where(np.isnan(whole), target.type(0 if zero else low), integer)
        put(g, integer.view(U64 if wide else U32), m)

    return run


@opcode("FRND")
def _real_to_integral(d: Decoder) -> Run:
    """An fp32 number rounded to an integral one."""
    d.number_of_operands(2)
    flush = d.take("FTZ")
    to_integral = ROUNDINGS[d.take("TRUNC", "FLOOR", "CEIL")]
    put, a = d.write_real(d.operand(0)), d.real(d.operand(1))
    return lambda g, m: put(g, to_integral(flushed(a(g)) if flush else a(g)), m)


@opcode("FCHK")
def _needs_care(d: Decoder) -> Run:
    """Whether a / b needs more than the short sequence of multiplications that follows.

    NVIDIA does not say from where on; the long sequence is right wherever it is taken. Here: where
    an exponent comes near the ends of fp32, or theirs are 120 apart.
    """
    d.number_of_operands(3)
    put, a, b = d.write_predicate(d.operand(0)), d.real(d.operand(1)), d.real(d.operand(2))

    def run(g: Group, m: Array | None) -> None:
        x, y = (np.asarray(read(g)).view(U32) >> U32(23) & U32(0xFF) for read in (a, b))
        x, y = x.astype(np.int32), y.astype(np.int32)
        ends = (x < 27) | (x > 252) | (y < 3) | (y > 250)
        put(g, ends | (np.abs(x - y) > 120), m)

    return run


@opcode("F2FP")
def _pack(d: Decoder) -> Run:
    """Two fp32 numbers as halves of a register, a the high one."""
    d.number_of_operands(3)
    kind = d.take(*HALVES)
    if not kind or d.take("F32") != "F32" or d.take("PACK_AB") != "PACK_AB":
        raise d.at.unknown("this conversion")
    put, a, b = d.write(d.operand(0)), d.real(d.operand(1)), d.real(d.operand(2))
    convert = HALVES[kind]

    def run(g: Group, m: Array | None) -> None:
        put(g, convert(a(g)) << U32(16) | convert(b(g)), m)

    return run


@opcode("F2F")
def _between_reals(d: Decoder) -> Run:
    """Fp32 as a half; fp64 as fp32, and fp32 as fp64."""
    d.number_of_operands(2)
    kind, source = d.take(*HALVES, "F32", "F64"), d.take("F32", "F64")
    if kind in HALVES and source == "F32":
        put, a = d.write(d.operand(0)), d.real(d.operand(1))
        convert = HALVES[kind]
        return lambda g, m: put(g, convert(a(g)), m)
    if (kind, source) == ("F64", "F32"):
        put, a = d.write_long(d.operand(0)), d.real(d.operand(1))
        return lambda g, m: put(g, np.asarray(a(g)).astype(np.float64).view(U64), m)
    if (kind, source) == ("F32", "F64"):
        put, a = d.write_real(d.operand(0)), doubles.number(d, d.operand(1))

        def run(g: Group, m: Array | None) -> None:
            with np.errstate(all="ignore"):
                put(g, rounded(a(g)), m)

        return run
    raise d.at.unknown("this conversion")


# Memory.


@opcode("LDG", "STG")
def _global_access(d: Decoder) -> Run:
    """Load from global memory, or store to it."""
    d.number_of_operands(2)
    d.take("E")
    hints(d)
    sign = d.take(*ACCESSES).startswith("S")
    hints(d)
    size = access_bytes(d.at)
    stores = d.at.opcode == "STG"
    address = d.global_address(d.operand(1 - stores))

    def tell(g: Group, m: Array | None) -> None:
        for observer in g.machine.observers:
            observer.global_access(g, d.at, address(g), lanes_of(g, m), size, stores)

    d.observes(tell)
    d.from_memory = not stores
    number, words = d.registers_of(d.operand(stores), size, written=not stores)

    def run(g: Group, m: Array | None) -> None:
        addresses, lanes, memory = address(g), lanes_of(g, m), g.machine.memory
        tell(g, m)
        if stores:
            memory.store(d.at, addresses, lanes, size, words_of(g, number, words, size))
        else:
            data = memory.load(d.at, addresses, lanes, size)
            data = data.view(f"i{size}") if sign else data
            put_words(g, number, as_words(data, words), m)

    return run


@opcode("LDS", "STS")
def _shared_access(d: Decoder) -> Run:
    """Load from shared memory, or store to it."""
    d.number_of_operands(2)
    sign = d.take(*ACCESSES).startswith("S")
    size = access_bytes(d.at)
    stores = d.at.opcode == "STS"
    address = d.shared_address(d.operand(1 - stores))
    tell = _told_of_shared(d, address, size, stores)
    number, words = d.registers_of(d.operand(stores), size, written=not stores)

    def run(g: Group, m: Array | None) -> None:
        lanes, shared = lanes_of(g, m), g.machine.shared
        where = shared.offsets(d.at, g.programs, address(g), lanes, size)
        units = shared.units(size)
        if not stores:
            tell(g, m)
            data = units[where].view(f"i{size}") if sign else units[where]
            put_words(g, number, as_words(data, words), m)
            return
        data = words_of(g, number, words, size)
        tell(g, m, data)
        if lanes is None:
            units[where] = data
        else:
            units[where[lanes]] = data[lanes]

    return run


def _told_of_shared(d: Decoder, address: Reader, size: int, stores: bool) -> Callable[..., None]:
    """Tell observers of an access to shared memory, and of the data that are stored if known."""

    def tell(g: Group, m: Array | None, data: Array | None = None) -> None:
        for observer in g.machine.observers:
            observer.shared_access(g, d.at, address(g), lanes_of(g, m), size, stores, data)

    d.from_memory = not stores
    d.observes(tell)
    return tell


@opcode("LDGSTS")
def _copy(d: Decoder) -> Run:
    """Global to shared memory, zeros where the last predicate is false."""
    d.number_of_operands(3)
    d.take("E")
    d.take("BYPASS")
    hints(d)
    d.take("64", "128")
    size = access_bytes(d.at)
    target, source = d.shared_address(d.operand(0)), d.global_address(d.operand(1))
    wanted = d.predicate(d.operand(2))

    def read(g: Group, m: Array | None) -> Array:
        reads = np.broadcast_to(wanted(g), (len(g.warps), LANES))
        lanes = lanes_of(g, m)
        return reads if lanes is None else reads & lanes

    def tell(g: Group, m: Array | None) -> None:
        for observer in g.machine.observers:
            observer.global_access(g, d.at, source(g), read(g, m), size, False)
            observer.copy(g, d.at, target(g), lanes_of(g, m), size)

    d.observes(tell)

    def run(g: Group, m: Array | None) -> None:
        lanes, shared, reads = lanes_of(g, m), g.machine.shared, read(g, m)
        where = shared.offsets(d.at, g.programs, target(g), lanes, size)
        tell(g, m)
        if reads.any():
            every = None if reads.all() else reads
            data = g.machine.memory.load(d.at, source(g), every, size)
        else:
            data = np.zeros((*reads.shape, size // BYTES_OF_WORD), U32)
        if lanes is None:
            shared.units(size)[where] = data
        else:
            shared.units(size)[where[lanes]] = data[lanes]

    return run


@opcode("LDL")
def _load_local(d: Decoder) -> Run:
    d.number_of_operands(2)
    d.take("LU")
    d.take("64", "128")
    size = access_bytes(d.at)
    number, words = d.registers_of(d.operand(0), size, written=True)
    address = d.shared_address(d.operand(1))
    d.uses |= d.slots(d.operand(1), words)

    def run(g: Group, m: Array | None) -> None:
        local, at = _local(d.at, g, address(g), lanes_of(g, m), size)
        rows, columns = g.warps[:, None], np.arange(LANES)
        data = np.stack([local[at + i, rows, columns] for i in range(words)], axis=-1)
        put_words(g, number, data, m)

    return run


@opcode("STL")
def _store_local(d: Decoder) -> Run:
    d.number_of_operands(2)
    d.take("64", "128")
    size = access_bytes(d.at)
    number, words = d.registers_of(d.operand(1), size, written=False)
    address = d.shared_address(d.operand(0))
    d.defines |= d.slots(d.operand(0), words)

    def run(g: Group, m: Array | None) -> None:
        lanes = g.lanes if m is None else m
        local, at = _local(d.at, g, address(g), lanes, size)
        rows, columns = np.nonzero(lanes)
        data = words_of(g, number, words, size)
        for i in range(words):
            local[at[lanes] + i, g.warps[rows], columns] = data[lanes][:, i]

    return run


def _local(
    at: Instruction, g: Group, addresses: Array, lanes: Array | None, size: int
) -> tuple[Array, Array]:
    """The stacks of all threads, (words, warps, 32), and each lane's word in them."""
    active = addresses if lanes is None else addresses[lanes]
    if (active % U32(size)).any() or int(active.max()) + size > LOCAL_BYTES:
        raise MachineError(f"local access outside of {LOCAL_BYTES} bytes, or misaligned: {at}")
    machine = g.machine
    if machine.local is None:
        shape = (LOCAL_BYTES // BYTES_OF_WORD, len(machine.exited), LANES)
        machine.local = np.full(shape, NEVER_WRITTEN)
    if lanes is not None:
        addresses = np.where(lanes, addresses, U32(0))
    return machine.local, addresses // U32(BYTES_OF_WORD)


@opcode("LDSM", "STSM")
def _matrices(d: Decoder) -> Run:
    """8 × 8 matrices of 16-bit elements: lane i of 8·j to 8·j + 7 addresses a row of matrix j.

    Lane t holds elements 2·(t mod 4) and the next of row t / 4 of each matrix, or (``MT88``) of
    its column t / 4.
    """
    d.number_of_operands(2)
    stores = d.at.opcode == "STSM"
    kind = d.take("16") and d.take("M88", "MT88")
    if not kind:
        raise d.at.unknown("this form of a matrix")
    count = int(d.take("2", "4") or 1)
    every = d.shared_address(d.operand(1 - stores))

    def address(g: Group) -> Array:
        return every(g)[:, : 8 * count]

    tell = _told_of_shared(d, address, 16, stores)
    number, _ = d.registers_of(d.operand(stores), 4 * count, written=not stores)

    def run(g: Group, m: Array | None) -> None:
        if m is not None or g.mask is not None:
            raise MachineError(f"a matrix that some lanes do not take part in: {d.at}")
        shared = g.machine.shared
        where = shared.offsets(d.at, g.programs, address(g), None, 16)
        rows = shared.units(16)
        registers = g.R[number : number + count]
        if stores:
            data = registers.reshape(count, len(g.warps), 8, 4).transpose(1, 0, 2, 3)
            data = _turned(data, kind).reshape(len(g.warps), 8 * count, 4)
            tell(g, None, data)
            rows[where] = data
        else:
            tell(g, None)
            data = _turned(rows[where].reshape(len(g.warps), count, 8, 4), kind)
            registers[:] = data.reshape(len(g.warps), count, LANES).transpose(1, 0, 2)

    return run


def _turned(matrices: Array, kind: str) -> Array:
    """Matrices, (…, 8, 4) words of two elements each, transposed where ``kind`` says so."""
    if kind == "M88":
        return matrices
    elements = np.ascontiguousarray(matrices).view(np.uint16)
    return np.ascontiguousarray(elements.swapaxes(-1, -2)).view(U32)


@opcode("SHFL")
def _shuffle(d: Decoder) -> Run:
    """Another lane's register: by its number, exclusive or, or so many lanes up or down.

    As PTX's ``shfl.sync``: c holds the last lane to read and, from bit 8 on, which bits of the
    number stay; who would read beyond it reads its own, and has no predicate.
    """
    d.number_of_operands(5)
    kind = d.take("BFLY", "IDX", "UP", "DOWN")
    if not kind:
        raise d.at.unknown("this form of a shuffle")
    within = d.write_predicate(d.operand(0))
    put, a, b = d.write(d.operand(1)), d.integer(d.operand(2)), d.integer(d.operand(3))
    c = d.integer(d.operand(4))
    lane = np.arange(LANES)

    def run(g: Group, m: Array | None) -> None:
        if m is not None or g.mask is not None:
            raise MachineError(f"a shuffle that some lanes do not take part in: {d.at}")
        by, bounds = (
            np.broadcast_to(read(g), (len(g.warps), LANES)).astype(I64) & 0x1F1F for read in (b, c)
        )
        by, kept = by & 31, bounds >> 8
        last = lane & kept | bounds & 31 & ~kept
        other = {
            "UP": lane - by, "DOWN": lane + by, "BFLY": lane ^ by, "IDX": lane & kept | by & ~kept,
        }[kind]  # fmt: skip
        inside = other >= last if kind == "UP" else other <= last
        other = np.where(inside, other, lane)
        put(g, np.take_along_axis(a(g), other, axis=1), m)
        within(g, inside, m)

    return run


@opcode("VOTE", "VOTEU")
def _ballot(d: Decoder) -> Run:
    """Lanes in which a predicate holds as bits, and whether there is one, or it holds in all.

    To lanes, or (``VOTEU``) to the warp.
    """
    kind = d.take("ANY", "ALL")
    *results, source = d.at.operands
    if not kind or not 1 <= len(results) <= 2:
        raise d.at.unknown("this form of a vote")
    read = d.predicate(source)
    d.uniform = warps = d.at.opcode == "VOTEU"  # of its results alone
    put = d.write(results.pop(0)) if REGISTER.fullmatch(results[0]) else nothing
    put_predicate = d.write_predicate(results[0]) if results else nothing
    d.uniform = False
    bit = U32(1) << np.arange(LANES, dtype=U32)

    def run(g: Group, m: Array | None) -> None:
        lanes = g.lanes if m is None else m
        holds = np.broadcast_to(read(g), lanes.shape)
        bits = np.where(holds & lanes, bit, U32(0)).sum(1, dtype=U32)
        every = (holds & lanes).any(1) if kind == "ANY" else (holds | ~lanes).all(1)
        if warps:
            put_predicate(g, every, lanes.any(1))
            put(g, bits, lanes.any(1))
        else:
            put_predicate(g, every[:, None], m)
            put(g, bits[:, None], m)

    return run


@opcode("POPC", "BREV", "FLO")
def _of_bits(d: Decoder) -> Run:
    """How many bits there are, all in reverse, or which the highest is (none: all ones)."""
    d.number_of_operands(2)
    kind = d.at.opcode
    if kind == "FLO":
        d.take("U32")
    from_above = d.take("SH")
    put, a = d.write(d.operand(0)), d.integer(d.operand(1))

    def run(g: Group, m: Array | None) -> None:
        bits = np.asarray(a(g))[..., None] >> np.arange(LANES, dtype=U32) & U32(1)
        if kind == "POPC":
            result = bits.sum(-1, dtype=U32)
        elif kind == "BREV":
            result = (bits << np.arange(31, -1, -1, dtype=U32)).sum(-1, dtype=U32)
        else:
            highest = 31 - bits[..., ::-1].argmax(-1)
            place = (31 - highest if from_above else highest).astype(U32)
            result = np.where(bits.any(-1), place, U32(0xFFFFFFFF))
        put(g, result, m)

    return run


# Control.


@opcode("BRA")
def _branch(d: Decoder) -> Run:
    """To a label, under a second predicate, too, where one stands before it."""
    if d.number_of_operands(1, 2) == 2:
        d.condition = d.predicate(d.operand(0))
    d.take("U")
    d.label(-1)
    d.wait = "branch"
    return no_effect


@opcode("CALL")
def _call(d: Decoder) -> Run:
    """To a function's label; a register that was set before holds where it returns to."""
    d.number_of_operands(1)
    if d.take("REL") != "REL" or d.take("NOINC") != "NOINC":
        raise d.at.unknown("this form of a call")
    d.label(0)
    d.wait = "branch"
    return no_effect


@opcode("RET")
def _return(d: Decoder) -> Run:
    """To the address in two registers, counted from a label."""
    match = re.fullmatch(r"(R\d+) (`\(.*\))", ", ".join(d.at.operands))
    if not match or d.take("REL") != "REL" or d.take("NODEC") != "NODEC" or d.at.guard:
        raise d.at.unknown("this form of a return")
    if match[2][2:-1] not in d.code.labels:
        raise d.at.unknown(f"label {match[2]}")
    start, read = d.code.labels[match[2][2:-1]], d.long(match[1])
    d.target = lambda g: start + (read(g) // U64(INSTRUCTION_BYTES)).astype(I64)
    d.wait = "return"
    return no_effect


@opcode("EXIT")
def _exit(d: Decoder) -> Run:
    d.number_of_operands(0)
    d.wait = "exit"
    return no_effect


@opcode("BSSY")
def _will_converge(d: Decoder) -> Run:
    d.number_of_operands(2)
    d.label(1)
    name = d.operand(0)

    def run(g: Group, m: Array | None) -> None:
        held = g.machine.convergence.setdefault(name, np.zeros_like(g.machine.exited))
        held[g.warps] = g.lanes if m is None else m

    return run


@opcode("BREAK")
def _will_not_converge(d: Decoder) -> Run:
    """Lanes that take leave of those that will converge, which do not wait for them."""
    d.number_of_operands(1)
    name = d.operand(0)

    def run(g: Group, m: Array | None) -> None:
        lanes = g.lanes if m is None else m
        g.machine.convergence[name][g.warps] &= ~lanes

    return run


@opcode("BSYNC")
def _converge(d: Decoder) -> Run:
    d.number_of_operands(1)
    if d.at.guard:
        raise d.at.unknown("a guarded convergence")
    d.wait = "convergence"
    return no_effect


@opcode("WARPSYNC")
def _meet(d: Decoder) -> Run:
    """All lanes of the warp that have not ended."""
    d.number_of_operands(0)
    if d.take("ALL") != "ALL" or d.at.guard:
        raise d.at.unknown("this meeting of lanes")
    d.wait = "convergence"
    return no_effect


@opcode("BAR")
def _barrier(d: Decoder) -> Run:
    d.number_of_operands(1)
    if d.take("SYNC") != "SYNC" or d.operand(0) != "0x0":
        raise d.at.unknown("a barrier that is not the program's")
    d.take("DEFER_BLOCKING")
    d.wait = "barrier"
    return no_effect


@opcode("NOP")
def _nop(d: Decoder) -> Run:
    d.number_of_operands(0)
    return no_effect


@opcode("LDGDEPBAR")
def _commit_copies(d: Decoder) -> Run:
    d.number_of_operands(0)

    def run(g: Group, m: Array | None) -> None:
        for observer in g.machine.observers:
            observer.commit_copies(g, d.at)

    return run


@opcode("DEPBAR")
def _wait_for_copies(d: Decoder) -> Run:
    d.number_of_operands(2)
    if d.take("LE") != "LE" or d.operand(0) != "SB0":
        raise d.at.unknown("a wait for anything but copies")
    pending = int(d.operand(1), 16)

    def run(g: Group, m: Array | None) -> None:
        for observer in g.machine.observers:
            observer.wait_for_copies(g, d.at, pending)

    return run


@opcode("ERRBAR", "CGAERRBAR", "CCTL")
def _around_fences(d: Decoder) -> Run:
    """Errors waited for, and caches that forget: what comes with a fence of the whole device."""
    d.number_of_operands(0)
    d.take("IVALL")
    return no_effect


@opcode("MEMBAR", "FENCE")
def _fence(d: Decoder) -> Run:
    """Memory in order: everything is, here. Observers ask whether descriptors may read."""
    d.number_of_operands(0)
    if d.at.opcode == "MEMBAR" and d.take("ALL", "SC") and d.take(*SCOPES):
        return no_effect
    if d.at.opcode == "MEMBAR" or not (d.take("VIEW") and d.take("ASYNC") and d.take("S")):
        raise d.at.unknown("this fence")

    def run(g: Group, m: Array | None) -> None:
        for observer in g.machine.observers:
            observer.proxy_fence(g, d.at)

    return run


@opcode("WARPGROUP")
def _warpgroup(d: Decoder) -> Run:
    """``ARRIVE``: registers are ready for products. ``DEPBAR``: products are waited for."""
    if d.take("ARRIVE"):
        d.number_of_operands(0)

        def arrive(g: Group, m: Array | None) -> None:
            for observer in g.machine.observers:
                observer.products_arrive(g, d.at)

        return arrive
    d.number_of_operands(2)
    if d.take("DEPBAR") != "DEPBAR" or d.take("LE") != "LE" or d.operand(0) != "gsb0":
        raise d.at.unknown("this wait of a warpgroup")
    pending = int(d.operand(1), 16)

    def wait(g: Group, m: Array | None) -> None:
        g.land()
        for observer in g.machine.observers:
            observer.wait_for_products(g, d.at, pending)

    return wait


@opcode("HMMA")
def _warp_product(d: Decoder) -> Run:
    """Rows of A times columns of B for each warp: :mod:`validate.emulator.products`."""
    d.from_memory = True
    return products.decode_warp(d)


@opcode("HGMMA")
def _product(d: Decoder) -> Run:
    """Rows of A times columns of B, added to accumulators: :mod:`validate.emulator.products`."""
    d.wait = "warpgroup"
    d.from_memory = True
    return products.decode(d)
