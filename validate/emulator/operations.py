"""What each instruction does, as functions on groups of warps.

Opcodes are those of the kernels as the pinned Triton's ptxas makes them. One that is not in
:data:`DECODERS`, a modifier that its decoder does not name, or an operand of another kind, raises
:class:`validate.emulator.assembly.UnknownCodeError` before anything runs.

Letters: a, b, c operands; m the lanes that execute, None where all do.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from validate.emulator import products
from validate.emulator.assembly import Code, Instruction
from validate.emulator.machine import LANES, LOCAL_BYTES, Group, Operation
from validate.emulator.memory import Array, MachineError

Reader = Callable[[Group], Any]
Run = Callable[[Group, Any], None]
Writer = Callable[[Group, Any, Any], None]
U32, U64, I64 = np.uint32, np.uint64, np.int64
LOW = U64(0xFFFFFFFF)
FIRST_BIT = {"R": 0, "UR": 256, "P": 320, "UP": 328}
"""Where each kind of register starts in a set of bits."""
SLOTS = 336
"""Where words of the stack start in it, from the stack pointer on."""
LAST = {"R": 255, "UR": 63, "P": 7, "UP": 7}
"""The register of each kind that only reads as 0 or true."""
REGISTER = re.compile(r"(UR|R)(\d+|Z)")
PREDICATE = re.compile(r"(!?)(UP|P)(\d|T)")
SIZES = {"U16": 2, "": 4, "64": 8, "128": 16}
"""Bytes of an access by its modifier."""
BYTES_OF_WORD = 4


def signed(x: Any) -> Any:
    """32-bit numbers as signed ones."""
    return x.view(np.int32)


def rounded(x: Any) -> Any:
    """An fp64 result as fp32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(x).astype(np.float32)


class Decoder:
    """Turns one instruction into what it does, noting the registers that it uses and defines."""

    def __init__(self, at: Instruction, code: Code) -> None:
        self.at = at
        self.code = code
        self.uses = 0
        self.defines = 0
        self.uniform = False
        self.wait = ""
        self.observe: Run | None = None
        self.observed = 0
        self.from_memory = False
        self.bitwise: list[tuple[int, int, int]] = []
        self.modifiers = list(at.modifiers)

    # Operands.

    def operand(self, i: int) -> str:
        """Operand i of the text.

        Raises:
            UnknownCodeError: if there is none.
        """
        if i >= len(self.at.operands):
            raise self.at.unknown(f"a form with {len(self.at.operands)} operands")
        return self.at.operands[i]

    def number_of_operands(self, *expected: int) -> int:
        """How many there are, which must be one of these."""
        if len(self.at.operands) not in expected:
            raise self.at.unknown(f"a form with {len(self.at.operands)} operands")
        return len(self.at.operands)

    def take(self, *names: str) -> str:
        """The next modifier if it is one of these, else none."""
        if self.modifiers and self.modifiers[0] in names:
            return self.modifiers.pop(0)
        return ""

    def register(self, text: str, written: bool = False, words: int = 1) -> tuple[str, int]:
        """Kind and number of a register, noted as used or defined."""
        found = REGISTER.fullmatch(text)
        if not found:
            raise self.at.unknown(f"operand {text!r}")
        kind = found[1]
        number = LAST[kind] if found[2] == "Z" else int(found[2])
        if number != LAST[kind]:
            bits = ((1 << words) - 1) << (FIRST_BIT[kind] + number)
            if number + words > LAST[kind] or (words > 1 and number % min(words, 4)):
                raise self.at.unknown(f"a register of {words} words at {text!r}")
            if written:
                self.defines |= bits
            else:
                self.uses |= bits
        return kind, number

    def word(self, kind: str, number: int) -> Reader:
        """Reader of a register: (warps, 32), or (warps, 1) of the warp's where lanes read it."""
        if kind == "R":
            if self.uniform:
                raise self.at.unknown("a lane's register in an instruction of the warp's")
            return lambda g: g.R[number]
        if self.uniform:
            return lambda g: g.UR[number]
        return lambda g: g.UR[number, :, None]

    def constant(self, text: str) -> int | None:
        """Index of a 32-bit word of constant bank 0; None if the operand is of another kind."""
        found = re.fullmatch(r"c\[(0x[0-9a-f]+)\]\[(0x[0-9a-f]+)\]", text)
        if not found:
            return None
        if int(found[1], 16) != 0:
            raise self.at.unknown(f"constant bank {found[1]}")
        return int(found[2], 16) // BYTES_OF_WORD

    def integer(self, text: str) -> Reader:
        """Reader of a 32-bit number, unsigned."""
        if re.fullmatch(r"-?0x[0-9a-f]+", text):
            value = U32(int(text, 16) & 0xFFFFFFFF)
            return lambda g: value
        if (index := self.constant(text)) is not None:
            return lambda g: g.machine.constants[index]
        sign = text[0] if text[0] in "-~" else ""
        kind, number = self.register(text.removeprefix(sign))
        read = self.word(kind, number)
        if number == LAST[kind]:
            value = U32(0xFFFFFFFF if sign == "~" else 0)
            return lambda g: value
        if sign == "-":
            return lambda g: np.negative(read(g))
        if sign == "~":
            return lambda g: np.invert(read(g))
        return read

    def addend(self, text: str, extended: bool) -> Reader:
        """Reader of a number whose carries count, in 64 bits: −x as ~x + 1, which may carry."""
        if text.startswith("-") and REGISTER.fullmatch(text[1:]):
            if extended:
                raise self.at.unknown("a negated number beside a carry")
            read = self.integer(text[1:])
            return lambda g: np.invert(read(g)).astype(U64) + U64(1)
        read = self.integer(text)
        return lambda g: read(g).astype(U64)

    def long(self, text: str) -> Reader:
        """Reader of a 64-bit number in two registers; an immediate is extended by its sign."""
        if re.fullmatch(r"-?0x[0-9a-f]+", text):
            value = U64(int(text, 16) & (2**64 - 1))
            return lambda g: value
        sign = text[0] if text[0] == "-" else ""
        kind, number = self.register(text.removeprefix(sign), words=2)
        if number == LAST[kind]:
            return lambda g: U64(0)
        low, high = self.word(kind, number), self.word(kind, number + 1)

        def read(g: Group) -> Any:
            return low(g).astype(U64) | high(g).astype(U64) << U64(32)

        return (lambda g: np.negative(read(g))) if sign else read

    def real(self, text: str) -> Reader:
        """Reader of an fp32 number."""
        plain = re.fullmatch(r"(-?)(\|?)([^|]+)\|?", text)
        assert plain
        if REGISTER.fullmatch(plain[3]):
            kind, number = self.register(plain[3])
            word = self.word(kind, number)
            if number == LAST[kind]:
                zero = np.float32(-0.0 if plain[1] else 0.0)
                return lambda g: zero
            if kind == "R":
                read: Reader = lambda g: g.F[number]  # noqa: E731
            else:
                read = lambda g: word(g).view(np.float32)  # noqa: E731
            if plain[2]:
                inner = read
                read = lambda g: np.abs(inner(g))  # noqa: E731
            if plain[1]:
                positive = read
                return lambda g: np.negative(positive(g))
            return read
        if (index := self.constant(plain[3])) is not None and not plain[1] and not plain[2]:
            return lambda g: g.machine.constants[index].view(np.float32)
        if not re.fullmatch(r"[-+]?(INF|QNAN|[0-9.]+(e[-+]?[0-9]+)?)", text):
            raise self.at.unknown(f"operand {text!r}")
        value = np.float32(text.replace("QNAN", "NAN"))
        return lambda g: value

    def predicate(self, text: str) -> Reader:
        """Reader of a predicate."""
        found = PREDICATE.fullmatch(text)
        if not found:
            raise self.at.unknown(f"operand {text!r}")
        kind, number = found[2], LAST[found[2]] if found[3] == "T" else int(found[3])
        if number == LAST[kind]:
            value = np.bool_(not found[1])
            return lambda g: value
        self.uses |= 1 << FIRST_BIT[kind] + number
        if kind == "P":
            if self.uniform:
                raise self.at.unknown("a lane's predicate in an instruction of the warp's")
            read: Reader = lambda g: g.P[number]  # noqa: E731
        elif self.uniform:
            read = lambda g: g.UP[number]  # noqa: E731
        else:
            read = lambda g: g.UP[number, :, None]  # noqa: E731
        return (lambda g: ~read(g)) if found[1] else read

    # Results.

    def write(self, text: str) -> Writer:
        """Writer of a 32-bit register."""
        kind, number = self.register(text, written=True)
        if (kind == "UR") != self.uniform:
            raise self.at.unknown(f"result {text!r}")

        def put(g: Group, value: Any, m: Array | None) -> None:
            registers = g.UR if kind == "UR" else g.R
            if m is None:
                registers[number] = value
            else:
                np.copyto(registers[number], value, where=m)

        return _nothing if number == LAST[kind] else put

    def write_long(self, text: str) -> Writer:
        """Writer of a 64-bit number to two registers."""
        kind, number = self.register(text, written=True, words=2)
        if number == LAST[kind]:
            return _nothing
        prefix = kind
        low = self.write(f"{prefix}{number}")
        high = self.write(f"{prefix}{number + 1}")

        def put(g: Group, value: Any, m: Array | None) -> None:
            low(g, (value & LOW).astype(U32), m)
            high(g, (value >> U64(32)).astype(U32), m)

        return put

    def write_real(self, text: str) -> Writer:
        """Writer of an fp32 register."""
        kind, number = self.register(text, written=True)
        if kind != "R" or self.uniform:
            raise self.at.unknown(f"result {text!r}")

        def put(g: Group, value: Any, m: Array | None) -> None:
            if m is None:
                g.F[number] = value
            else:
                np.copyto(g.F[number], value, where=m)

        return _nothing if number == LAST[kind] else put

    def write_predicate(self, text: str) -> Writer:
        """Writer of a predicate."""
        found = PREDICATE.fullmatch(text)
        if not found or found[1] or (found[2] == "UP") != self.uniform:
            raise self.at.unknown(f"result {text!r}")
        if found[3] == "T":
            return _nothing
        number = int(found[3])
        self.defines |= 1 << FIRST_BIT[found[2]] + number
        kind = found[2]

        def put(g: Group, value: Any, m: Array | None) -> None:
            registers = g.UP if kind == "UP" else g.P
            if m is None:
                registers[number] = value
            else:
                np.copyto(registers[number], value, where=m)

        return put

    # Addresses.

    def shared_address(self, text: str) -> Reader:
        """Reader of the address in ``[R0+UR4+0x10]``, (warps, 32)."""
        if not (text.startswith("[") and text.endswith("]")):
            raise self.at.unknown(f"operand {text!r}")
        parts = [self.integer(part.strip()) for part in text[1:-1].split("+")]

        def read(g: Group) -> Array:
            total = parts[0](g)
            for part in parts[1:]:
                total = total + part(g)
            return np.broadcast_to(total, (len(g.warps), LANES))

        return read

    def global_address(self, text: str) -> Reader:
        """Reader of the address in ``desc[UR4][R0.64+0x10]``, (warps, 32) of 64 bits."""
        found = re.fullmatch(r"desc\[UR\d+\]\[(R\d+)\.64(?:\+(-?0x[0-9a-f]+))?\]", text)
        if not found:
            raise self.at.unknown(f"operand {text!r}")
        base = self.long(found[1])
        offset = U64(int(found[2] or "0", 16) & (2**64 - 1))
        return lambda g: base(g) + offset

    def registers_of(self, text: str, size: int, written: bool) -> tuple[int, int]:
        """First register and number of words of data of so many bytes."""
        words = max(1, size // BYTES_OF_WORD)
        kind, number = self.register(text, written, words)
        if kind != "R":
            raise self.at.unknown(f"operand {text!r}")
        return number, words

    def slots(self, text: str, words: int) -> int:
        """Words of the stack at ``[R1+0x10]``, as a set of bits beside the registers'."""
        found = re.fullmatch(r"\[R1(?:\+0x([0-9a-f]+))?\]", text)
        if not found:
            raise self.at.unknown(f"an address on the stack like {text!r}")
        return ((1 << words) - 1) << SLOTS + int(found[1] or "0", 16) // BYTES_OF_WORD

    def observes(self, observe: Run) -> Run:
        """Note what tells observers of an access; registers used so far are what it needs."""
        self.observe, self.observed = observe, self.uses
        return observe

    def by_bits(self, result: str, text: str, mask: int = 0xFFFFFFFF) -> None:
        """Note that bits of a register are needed by the same bits of the result alone."""
        found, operand = REGISTER.fullmatch(result), REGISTER.fullmatch(text.removeprefix("~"))
        if found and operand and operand[2] != "Z":
            of = LAST[found[1]] if found[2] == "Z" else int(found[2])
            self.bitwise.append(
                (FIRST_BIT[found[1]] + of, FIRST_BIT[operand[1]] + int(operand[2]), mask)
            )

    def label(self, i: int) -> None:
        """Require operand i to be a label of the code."""
        if not re.fullmatch(r"`\(\.L_x_\d+\)", self.operand(i)):
            raise self.at.unknown(f"operand {self.operand(i)!r}")
        if self.operand(i)[2:-1] not in self.code.labels:
            raise self.at.unknown(f"label {self.operand(i)}")


def _nothing(g: Group, value: Any, m: Array | None) -> None:
    """Write to a register that always reads as 0 or true."""


def _no_effect(g: Group, m: Array | None) -> None:
    """What has no effect on results: scheduling, hints, what execution in order implies."""


DECODERS: dict[str, Callable[[Decoder], Run]] = {}
"""By opcode. An instruction of the warp's, ``UIADD3``, is decoded as its lanes' one, ``IADD3``."""
UNIFORM = frozenset(
    (
        "UIADD3",
        "UIMAD",
        "ULEA",
        "ULOP3",
        "USHF",
        "USEL",
        "UISETP",
        "UMOV",
        "USGXT",
        "UPLOP3",
        "ULDC",
    )
)


def opcode(*names: str) -> Callable[[Callable[[Decoder], Run]], Callable[[Decoder], Run]]:
    """Register a decoder."""

    def add(decode: Callable[[Decoder], Run]) -> Callable[[Decoder], Run]:
        for name in names:
            DECODERS[name] = decode
        return decode

    return add


def decoded(code: Code) -> list[Operation]:
    """What each instruction of a kernel does.

    Raises:
        UnknownCodeError: for the first that is not known.
    """
    found = []
    for at in code.instructions:
        decoder = Decoder(at, code)
        decoder.uniform = at.opcode in UNIFORM
        name = at.opcode[1:] if decoder.uniform else at.opcode
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
        found.append(
            Operation(
                at, run, guard, decoder.uniform, decoder.uses, decoder.defines, decoder.wait,
                decoder.observe, decoder.observed, decoder.from_memory, tuple(decoder.bitwise),
            )
        )  # fmt: skip
    return found


def _never(g: Group) -> Array:
    return np.zeros((len(g.warps), LANES), bool)


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
    """{c, a} shifted: the low word, or with ``HI`` the high one."""
    d.number_of_operands(4)
    left = d.take("L", "R") == "L"
    kind = d.take("U32", "S32", "U64", "S64")
    high = d.take("HI")
    if not re.fullmatch(r"0x[0-9a-f]+", d.operand(2)):
        raise d.at.unknown("a shift by a register")
    shift = int(d.operand(2), 16)
    if shift > 31 or not kind:
        raise d.at.unknown(f"a shift by {shift} of {kind or 'no kind'}")
    put, a, c = d.write(d.operand(0)), d.integer(d.operand(1)), d.integer(d.operand(3))
    if kind == "U32" and left and not high and d.operand(3) in ("RZ", "URZ"):
        return lambda g, m: put(g, a(g) << U32(shift), m)
    if kind == "U32" and not left and high:
        return lambda g, m: put(g, c(g) >> U32(shift), m)
    if kind == "S32" and not left and high:
        return lambda g, m: put(g, (signed(c(g)) >> np.int32(shift)).view(U32), m)
    if kind in ("U32", "S32"):
        raise d.at.unknown("this form of a shift")

    def run(g: Group, m: Array | None) -> None:
        pair = a(g).astype(U64) | c(g).astype(U64) << U64(32)
        if left:
            pair = pair << U64(shift)
        elif kind == "S64":
            pair = (pair.view(I64) >> I64(shift)).view(U64)
        else:
            pair = pair >> U64(shift)
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
    found = d.write_predicate(texts.pop(0)) if PREDICATE.fullmatch(texts[0]) else None
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
        if found is not None:
            found(g, result != 0, m)

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


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge,
    "EQ": operator.eq, "NE": operator.ne,
}  # fmt: skip
STRICT = {"GE": "GT", "LE": "LT", "GT": "GT", "LT": "LT"}


@opcode("ISETP")
def _compare(d: Decoder) -> Run:
    """A compared with b, and (or) a predicate; ``EX`` goes on from the low words' comparison."""
    name = d.take(*COMPARISONS)
    unsigned, joint, extended = d.take("U32"), d.take("AND", "OR"), d.take("EX")
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
            put(g, value & beside if joint == "AND" else value | beside, m)

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
    """Four bytes of {c, a}, as the digits of an immediate choose them."""
    d.number_of_operands(4)
    put, a, c = d.write(d.operand(0)), d.integer(d.operand(1)), d.integer(d.operand(3))
    if not re.fullmatch(r"0x[0-9a-f]{1,4}", d.operand(2)):
        raise d.at.unknown("a permutation that is no immediate")
    digits = [int(d.operand(2), 16) >> 4 * i & 15 for i in range(4)]
    if any(digit & 8 for digit in digits):
        raise d.at.unknown("a permutation that repeats signs")

    def run(g: Group, m: Array | None) -> None:
        words = a(g), c(g)
        result = U32(0)
        for place, digit in enumerate(digits):
            byte = words[digit >> 2] >> U32(8 * (digit & 3)) & U32(0xFF)
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


@opcode("P2R")
def _from_predicates(d: Decoder) -> Run:
    """The predicates as bits where the mask has ones, else a's bits."""
    d.number_of_operands(4)
    put, a, bits = d.write(d.operand(0)), d.integer(d.operand(2)), int(d.operand(3), 16)
    if d.operand(1) != "PR" or bits > 0x7F:
        raise d.at.unknown("this form")
    d.by_bits(d.operand(0), d.operand(2), 0xFFFFFFFF & ~bits)
    chosen = [i for i in range(7) if bits >> i & 1]
    for i in chosen:
        d.predicate(f"P{i}")

    def run(g: Group, m: Array | None) -> None:
        value = a(g) & U32(0xFFFFFFFF & ~bits)
        for i in chosen:
            value = value | g.P[i].astype(U32) << U32(i)
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


@opcode("VOTEU")
def _vote(d: Decoder) -> Run:
    """Whether a predicate holds in any executing lane, to the warp's predicate."""
    kind = d.take("ANY", "ALL")
    d.number_of_operands(2)
    read = d.predicate(d.operand(1))
    found = PREDICATE.fullmatch(d.operand(0))
    if not kind or not found or found[1] or found[2] != "UP" or found[3] == "T":
        raise d.at.unknown("this form of a vote")
    number = int(found[3])
    d.defines |= 1 << FIRST_BIT["UP"] + number

    def run(g: Group, m: Array | None) -> None:
        lanes = g.lanes if m is None else m
        values = np.broadcast_to(read(g), lanes.shape)
        g.UP[number] = (values & lanes).any(1) if kind == "ANY" else (values | ~lanes).all(1)

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


@opcode("FADD")
def _real_add(d: Decoder) -> Run:
    d.number_of_operands(3)
    put, a, b = d.write_real(d.operand(0)), d.real(d.operand(1)), d.real(d.operand(2))

    def run(g: Group, m: Array | None) -> None:
        with np.errstate(all="ignore"):
            put(g, a(g) + b(g), m)

    return run


@opcode("FMUL")
def _real_multiply(d: Decoder) -> Run:
    d.number_of_operands(3)
    put, a, b = d.write_real(d.operand(0)), d.real(d.operand(1)), d.real(d.operand(2))

    def run(g: Group, m: Array | None) -> None:
        with np.errstate(all="ignore"):
            put(g, a(g) * b(g), m)

    return run


def flushed(x: Any) -> Any:
    """Numbers below the least normal one as zeros of their sign."""
    return np.where(np.abs(x) < np.float32(2.0**-126), x * np.float32(0), x)


@opcode("FFMA")
def _real_multiply_add(d: Decoder) -> Run:
    """A · b + c, rounded once (twice where fp64 holds the sum just between two of fp32)."""
    d.number_of_operands(4)
    flush = d.take("FTZ")
    put = d.write_real(d.operand(0))
    a, b, c = (d.real(d.operand(i)) for i in (1, 2, 3))

    def run(g: Group, m: Array | None) -> None:
        with np.errstate(all="ignore"):
            x, y, z = a(g), b(g), c(g)
            if flush:
                x, y, z = flushed(x), flushed(y), flushed(z)
            exact = np.multiply(x, y, dtype=np.float64)
            exact += z
            result = exact.astype(np.float32)
            put(g, flushed(result) if flush else result, m)

    return run


@opcode("FMNMX")
def _real_minimum(d: Decoder) -> Run:
    d.number_of_operands(4)
    put, a, b = d.write_real(d.operand(0)), d.real(d.operand(1)), d.real(d.operand(2))
    if d.operand(3) not in ("PT", "!PT"):
        raise d.at.unknown("a minimum or maximum by a predicate")
    pick = np.fmin if d.operand(3) == "PT" else np.fmax
    return lambda g, m: put(g, pick(a(g), b(g)), m)


@opcode("FSEL")
def _real_select(d: Decoder) -> Run:
    d.number_of_operands(4)
    put, a, b = d.write_real(d.operand(0)), d.real(d.operand(1)), d.real(d.operand(2))
    chosen = d.predicate(d.operand(3))
    return lambda g, m: put(g, np.where(chosen(g), a(g), b(g)), m)


@opcode("FSETP")
def _real_compare(d: Decoder) -> Run:
    """A compared with b; a name that ends in U holds also where one is not a number."""
    name = d.take(*COMPARISONS, *(f"{name}U" for name in COMPARISONS))
    joint = d.take("AND", "OR")
    d.number_of_operands(5)
    puts = [d.write_predicate(d.operand(i)) for i in (0, 1)]
    a, b, other = d.real(d.operand(2)), d.real(d.operand(3)), d.predicate(d.operand(4))
    if not name or not joint:
        raise d.at.unknown("this form of a comparison")
    compare = COMPARISONS[name.removesuffix("U")]

    def run(g: Group, m: Array | None) -> None:
        x, y = a(g), b(g)
        unordered = np.isnan(x) | np.isnan(y)
        holds = compare(x, y)
        holds = holds | unordered if name.endswith("U") else holds & ~unordered
        beside = other(g)
        for put, value in zip(puts, (holds, ~holds), strict=True):
            put(g, value & beside if joint == "AND" else value | beside, m)

    return run


SPECIAL: dict[str, Callable[[Any], Any]] = {
    "EX2": np.exp2,
    "RCP": lambda x: 1.0 / x,
    "LG2": np.log2,
    "RSQ": lambda x: 1.0 / np.sqrt(x),
    "SQRT": np.sqrt,
}


@opcode("MUFU")
def _special(d: Decoder) -> Run:
    """Special functions, without numbers below the least normal one, on either side."""
    d.number_of_operands(2)
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
    """A 32-bit number as fp32, rounded up."""
    d.number_of_operands(2)
    unsigned = d.take("U32")
    if d.take("RP") != "RP":
        raise d.at.unknown("this rounding")
    put, a = d.write_real(d.operand(0)), d.integer(d.operand(1))

    def run(g: Group, m: Array | None) -> None:
        exact = (a(g) if unsigned else signed(a(g))).astype(np.float64)
        near = exact.astype(np.float32)
        put(g, np.where(near < exact, np.nextafter(near, np.float32(np.inf)), near), m)

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


@opcode("F2I")
def _real_to_integer(d: Decoder) -> Run:
    """An fp32 number cut to an unsigned one, what is too large or too small the nearest."""
    d.number_of_operands(2)
    if [d.take(x) for x in ("FTZ", "U32", "TRUNC", "NTZ")] != ["FTZ", "U32", "TRUNC", "NTZ"]:
        raise d.at.unknown("this conversion")
    put, a = d.write(d.operand(0)), d.real(d.operand(1))

    def run(g: Group, m: Array | None) -> None:
        exact = np.nan_to_num(a(g).astype(np.float64), nan=0.0)
        put(g, np.clip(np.trunc(exact), 0, 2**32 - 1).astype(U32), m)

    return run


def as_bf16(x: Any) -> Any:
    """Fp32 as the bits of bf16 in 32, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(x).view(U32)
    near = bits + U32(0x7FFF) + (bits >> U32(16) & U32(1)) >> U32(16)
    return np.where(np.isnan(x), U32(0x7FFF), near)


def as_fp16(x: Any) -> Any:
    """Fp32 as the bits of fp16 in 32."""
    with np.errstate(all="ignore"):
        return x.astype(np.float16).view(np.uint16).astype(U32)


HALVES = {"BF16": as_bf16, "F16": as_fp16}


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
def _to_half(d: Decoder) -> Run:
    d.number_of_operands(2)
    kind = d.take(*HALVES)
    if not kind or d.take("F32") != "F32":
        raise d.at.unknown("this conversion")
    put, a = d.write(d.operand(0)), d.real(d.operand(1))
    convert = HALVES[kind]
    return lambda g, m: put(g, convert(a(g)), m)


@opcode("HADD2")
def _from_half(d: Decoder) -> Run:
    """One half of a register, fp16, as fp32."""
    d.number_of_operands(3)
    found = re.fullmatch(r"(R\d+)\.H([01])_H\2", d.operand(2))
    if d.take("F32") != "F32" or d.operand(1) != "-RZ" or not found:
        raise d.at.unknown("this form of an addition of halves")
    put, a, shift = d.write_real(d.operand(0)), d.integer(found[1]), U32(16 * int(found[2]))

    def run(g: Group, m: Array | None) -> None:
        half = (a(g) >> shift).astype(np.uint16).view(np.float16)
        put(g, half.astype(np.float32), m)

    return run


@opcode("HFMA2")
def _half_constants(d: Decoder) -> Run:
    """−0 · 0 + two constants in fp16, the first of them the high one: how ptxas loads a number."""
    d.take("MMA")
    d.number_of_operands(5)
    if d.at.operands[1:3] != ("-RZ", "RZ"):
        raise d.at.unknown("a multiplication of halves")
    put = d.write(d.operand(0))
    high, low = (int(np.float16(float(d.operand(i))).view(np.uint16)) for i in (3, 4))
    value = U32(high << 16 | low)
    return lambda g, m: put(g, value, m)


# Memory.


def _words(data: Array, words: int) -> Array:
    """16-bit data as one word; wider data as they are, (…, words)."""
    return data.astype(U32)[..., None] if data.dtype == np.uint16 else data.reshape(
        *data.shape[:2], words
    )  # fmt: skip


def _put_words(g: Group, number: int, data: Array, m: Array | None) -> None:
    if number == LAST["R"]:
        return
    for i in range(data.shape[-1]):
        if m is None:
            g.R[number + i] = data[..., i]
        else:
            np.copyto(g.R[number + i], data[..., i], where=m)


def _words_of(g: Group, number: int, words: int, size: int) -> Array:
    """Registers as data to store, (warps, 32) of 16 bits or (warps, 32, words)."""
    if number == LAST["R"]:
        data = np.zeros((len(g.warps), LANES, words), U32)
    else:
        data = g.R[number : number + words].transpose(1, 2, 0)
    return data[..., 0].astype(np.uint16) if size == 2 else data


def _lanes(g: Group, m: Array | None) -> Array | None:
    """The mask of an access; None where every lane makes it."""
    return g.mask if m is None else m


@opcode("LDG", "STG")
def _global_access(d: Decoder) -> Run:
    """Load from global memory, or store to it."""
    d.number_of_operands(2)
    d.take("E")
    size = SIZES[d.take("U16", "64", "128")]
    stores = d.at.opcode == "STG"
    address = d.global_address(d.operand(1 - stores))

    def tell(g: Group, m: Array | None) -> None:
        for observer in g.machine.observers:
            observer.global_access(g, d.at, address(g), _lanes(g, m), size, stores)

    d.observes(tell)
    d.from_memory = not stores
    number, words = d.registers_of(d.operand(stores), size, written=not stores)

    def run(g: Group, m: Array | None) -> None:
        addresses, lanes, memory = address(g), _lanes(g, m), g.machine.memory
        tell(g, m)
        if stores:
            memory.store(d.at, addresses, lanes, size, _words_of(g, number, words, size))
        else:
            data = memory.load(d.at, addresses, lanes, size)
            _put_words(g, number, _words(data, words), m)

    return run


@opcode("LDS", "STS")
def _shared_access(d: Decoder) -> Run:
    """Load from shared memory, or store to it."""
    d.number_of_operands(2)
    size = SIZES[d.take("U16", "64", "128")]
    stores = d.at.opcode == "STS"
    address = d.shared_address(d.operand(1 - stores))
    tell = _told_of_shared(d, address, size, stores)
    number, words = d.registers_of(d.operand(stores), size, written=not stores)

    def run(g: Group, m: Array | None) -> None:
        lanes, shared = _lanes(g, m), g.machine.shared
        where = shared.offsets(d.at, g.programs, address(g), lanes, size)
        units = shared.units(size)
        if not stores:
            tell(g, m)
            _put_words(g, number, _words(units[where], words), m)
            return
        data = _words_of(g, number, words, size)
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
            observer.shared_access(g, d.at, address(g), _lanes(g, m), size, stores, data)

    d.from_memory = not stores
    d.observes(tell)
    return tell


@opcode("LDGSTS")
def _copy(d: Decoder) -> Run:
    """Global to shared memory, zeros where the last predicate is false."""
    d.number_of_operands(3)
    d.take("E")
    d.take("BYPASS")
    size = SIZES[d.take("64", "128")]
    target, source = d.shared_address(d.operand(0)), d.global_address(d.operand(1))
    wanted = d.predicate(d.operand(2))

    def read(g: Group, m: Array | None) -> Array:
        reads = np.broadcast_to(wanted(g), (len(g.warps), LANES))
        lanes = _lanes(g, m)
        return reads if lanes is None else reads & lanes

    def tell(g: Group, m: Array | None) -> None:
        for observer in g.machine.observers:
            observer.global_access(g, d.at, source(g), read(g, m), size, False)
            observer.copy(g, d.at, target(g), _lanes(g, m), size)

    d.observes(tell)

    def run(g: Group, m: Array | None) -> None:
        lanes, shared, reads = _lanes(g, m), g.machine.shared, read(g, m)
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
    size = SIZES[d.take("64", "128")]
    number, words = d.registers_of(d.operand(0), size, written=True)
    address = d.shared_address(d.operand(1))
    d.uses |= d.slots(d.operand(1), words)

    def run(g: Group, m: Array | None) -> None:
        local, at = _local(d.at, g, address(g), _lanes(g, m), size)
        rows, columns = g.warps[:, None], np.arange(LANES)
        data = np.stack([local[at + i, rows, columns] for i in range(words)], axis=-1)
        _put_words(g, number, data, m)

    return run


@opcode("STL")
def _store_local(d: Decoder) -> Run:
    d.number_of_operands(2)
    size = SIZES[d.take("64", "128")]
    number, words = d.registers_of(d.operand(1), size, written=False)
    address = d.shared_address(d.operand(0))
    d.defines |= d.slots(d.operand(0), words)

    def run(g: Group, m: Array | None) -> None:
        lanes = g.lanes if m is None else m
        local, at = _local(d.at, g, address(g), lanes, size)
        rows, columns = np.nonzero(lanes)
        data = _words_of(g, number, words, size)
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
        machine.local = np.full(shape, 0x7FDEADBE, U32)
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
    """Another lane's register, by exclusive or of the lane's number, or by its number."""
    d.number_of_operands(5)
    kind = d.take("BFLY", "IDX")
    if d.operand(0) != "PT" or d.operand(4) != "0x1f" or not kind:
        raise d.at.unknown("this form of a shuffle")
    put, a, b = d.write(d.operand(1)), d.integer(d.operand(2)), d.integer(d.operand(3))
    lane = np.arange(LANES)

    def run(g: Group, m: Array | None) -> None:
        if m is not None or g.mask is not None:
            raise MachineError(f"a shuffle that some lanes do not take part in: {d.at}")
        other = np.broadcast_to(b(g), (len(g.warps), LANES)).astype(I64)
        other = lane ^ other if kind == "BFLY" else other & (LANES - 1)
        put(g, np.take_along_axis(a(g), other, axis=1), m)

    return run


# Control.


@opcode("BRA")
def _branch(d: Decoder) -> Run:
    d.number_of_operands(1)
    d.label(0)
    d.wait = "branch"
    return _no_effect


@opcode("EXIT")
def _exit(d: Decoder) -> Run:
    d.number_of_operands(0)
    d.wait = "exit"
    return _no_effect


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
    return _no_effect


@opcode("WARPSYNC")
def _meet(d: Decoder) -> Run:
    """All lanes of the warp that have not ended."""
    d.number_of_operands(0)
    if d.take("ALL") != "ALL" or d.at.guard:
        raise d.at.unknown("this meeting of lanes")
    d.wait = "convergence"
    return _no_effect


@opcode("BAR")
def _barrier(d: Decoder) -> Run:
    d.number_of_operands(1)
    if d.take("SYNC") != "SYNC" or d.operand(0) != "0x0":
        raise d.at.unknown("a barrier that is not the program's")
    d.take("DEFER_BLOCKING")
    d.wait = "barrier"
    return _no_effect


@opcode("NOP")
def _nop(d: Decoder) -> Run:
    d.number_of_operands(0)
    return _no_effect


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


@opcode("MEMBAR", "FENCE")
def _fence(d: Decoder) -> Run:
    """Memory in order: everything is, here. Observers ask whether descriptors may read."""
    d.number_of_operands(0)
    if (d.at.opcode, *d.at.modifiers) not in (
        ("MEMBAR", "ALL", "CTA"),
        ("FENCE", "VIEW", "ASYNC", "S"),
    ):
        raise d.at.unknown("this fence")
    d.modifiers.clear()
    if d.at.opcode == "MEMBAR":
        return _no_effect

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


@opcode("HGMMA")
def _product(d: Decoder) -> Run:
    """Rows of A times columns of B, added to accumulators: :mod:`validate.emulator.products`."""
    d.wait = "warpgroup"
    d.from_memory = True
    return products.decode(d)
