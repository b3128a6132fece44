"""An instruction's operands and results: readers and writers of registers, for who decodes it.

A modifier that a decoder does not name, or an operand of another kind, raises
:class:`validate.emulator.assembly.UnknownCodeError` before anything runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from validate.emulator.assembly import Code, Instruction
from validate.emulator.machine import LANES, Group
from validate.emulator.memory import Array

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
BYTES_OF_WORD = 4
SIZE_WORDS = slice(0, 6)
"""Where constant bank 0 holds a program's threads, and the grid's programs, along three axes."""
DESCRIPTOR_WORDS = (0x208 // BYTES_OF_WORD, 0x20C // BYTES_OF_WORD)
"""Where it holds what ``desc[…]`` of a global access names, and nobody computes with."""
STACK_WORD = 0x28 // BYTES_OF_WORD
"""Where it holds the end of a thread's stack."""


def signed(x: Any) -> Any:
    """32-bit numbers as signed ones."""
    return x.view(np.int32)


DIRECTIONS = {"RP": np.float32(np.inf), "RM": np.float32(-np.inf)}


def rounded(x: Any, mode: str = "") -> Any:
    """An fp64 result as fp32: to nearest, up (RP), down (RM) or towards zero (RZ)."""
    near = np.asarray(x).astype(np.float32)
    if not mode:
        return near
    if mode == "RZ":
        return np.where(np.abs(near) > np.abs(x), np.nextafter(near, np.float32(0)), near)
    misses = near < x if mode == "RP" else near > x
    return np.where(misses, np.nextafter(near, DIRECTIONS[mode]), near)


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
        self.condition: Reader | None = None
        self.target: Reader | None = None
        self.modifiers = list(at.modifiers)

    # Operands.

    def operand(self, i: int) -> str:
        """Operand i of the text.

        Raises:
            UnknownCodeError: If there is none.
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
        match = REGISTER.fullmatch(text)
        if not match:
            raise self.at.unknown(f"operand {text!r}")
        kind = match[1]
        number = LAST[kind] if match[2] == "Z" else int(match[2])
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
        match = re.fullmatch(r"c\[(0x[0-9a-f]+)\]\[(0x[0-9a-f]+)\]", text)
        if not match:
            return None
        index = int(match[2], 16) // BYTES_OF_WORD
        if int(match[1], 16) != 0:
            raise self.at.unknown(f"constant bank {match[1]}")
        placed = any(
            offset // BYTES_OF_WORD <= index < -(-(offset + size) // BYTES_OF_WORD)
            for offset, size in self.code.parameters
        )
        known = (*range(SIZE_WORDS.stop), STACK_WORD, *DESCRIPTOR_WORDS)
        if not placed and index not in known:
            raise self.at.unknown(f"constant {match[2]}")
        return index

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
        if (index := self.constant(plain[3])) is not None:
            factor = np.float32(-1 if plain[1] else 1)

            def stored(g: Group) -> Any:
                value = g.machine.constants[index].view(np.float32)
                return factor * (np.abs(value) if plain[2] else value)

            return stored
        if not re.fullmatch(r"[-+]?(INF|QNAN|[0-9.]+(e[-+]?[0-9]+)?)", text):
            raise self.at.unknown(f"operand {text!r}")
        value = np.float32(text.replace("QNAN", "NAN"))
        return lambda g: value

    def predicate(self, text: str) -> Reader:
        """Reader of a predicate."""
        match = PREDICATE.fullmatch(text)
        if not match:
            raise self.at.unknown(f"operand {text!r}")
        kind, number = match[2], LAST[match[2]] if match[3] == "T" else int(match[3])
        if number == LAST[kind]:
            value = np.bool_(not match[1])
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
        return (lambda g: ~read(g)) if match[1] else read

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

        return nothing if number == LAST[kind] else put

    def write_long(self, text: str) -> Writer:
        """Writer of a 64-bit number to two registers."""
        kind, number = self.register(text, written=True, words=2)
        if number == LAST[kind]:
            return nothing
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

        return nothing if number == LAST[kind] else put

    def write_predicate(self, text: str) -> Writer:
        """Writer of a predicate."""
        match = PREDICATE.fullmatch(text)
        if not match or match[1] or (match[2] == "UP") != self.uniform:
            raise self.at.unknown(f"result {text!r}")
        if match[3] == "T":
            return nothing
        number = int(match[3])
        self.defines |= 1 << FIRST_BIT[match[2]] + number
        kind = match[2]

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
        pattern = r"(?:desc\[UR\d+\])?\[(R\d+)(?:\.64)?(?:\+(-?0x[0-9a-f]+))?\]"
        match = re.fullmatch(pattern, text)
        if not match:
            raise self.at.unknown(f"operand {text!r}")
        base = self.long(match[1])
        offset = U64(int(match[2] or "0", 16) & (2**64 - 1))
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
        match = re.fullmatch(r"\[R1(?:\+0x([0-9a-f]+))?\]", text)
        if not match:
            raise self.at.unknown(f"an address on the stack like {text!r}")
        return ((1 << words) - 1) << SLOTS + int(match[1] or "0", 16) // BYTES_OF_WORD

    def observes(self, observe: Run) -> Run:
        """Note what tells observers of an access; registers used so far are what it needs."""
        self.observe, self.observed = observe, self.uses
        return observe

    def by_bits(self, result: str, text: str, mask: int = 0xFFFFFFFF) -> None:
        """Note that bits of a register are needed by the same bits of the result alone."""
        target, operand = REGISTER.fullmatch(result), REGISTER.fullmatch(text.removeprefix("~"))
        if target and operand and operand[2] != "Z":
            of = LAST[target[1]] if target[2] == "Z" else int(target[2])
            self.bitwise.append(
                (FIRST_BIT[target[1]] + of, FIRST_BIT[operand[1]] + int(operand[2]), mask)
            )

    def label(self, i: int) -> None:
        """Require operand i to be a label of the code."""
        if not re.fullmatch(r"`\(.*\)", self.operand(i)):
            raise self.at.unknown(f"operand {self.operand(i)!r}")
        if self.operand(i)[2:-1] not in self.code.labels:
            raise self.at.unknown(f"label {self.operand(i)}")


def nothing(g: Group, value: Any, m: Array | None) -> None:
    """Write to a register that always reads as 0 or true."""


def no_effect(g: Group, m: Array | None) -> None:
    """What has no effect on results: scheduling, hints, what execution in order implies."""


HINTS = ("EF", "EL", "LU", "NA", "CONSTANT", "LTC64B", "LTC128B", "LTC256B", "WEAK")
"""Of an access: what caches shall do, which no result depends on."""
SCOPES = ("CTA", "SM", "GPU", "SYS")
"""Of an access: for whom it is ordered, which all are here."""


def hints(d: Decoder) -> None:
    """Take what has no effect where accesses happen one after the other."""
    while d.take(*HINTS) or (d.take("STRONG", "MMIO") and d.take(*SCOPES)):
        pass


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
        "UFLO",
        "UPOPC",
        "UBREV",
        "UP2UR",
    )
)


def opcode(*names: str) -> Callable[[Callable[[Decoder], Run]], Callable[[Decoder], Run]]:
    """Register a decoder."""

    def add(decode: Callable[[Decoder], Run]) -> Callable[[Decoder], Run]:
        for name in names:
            DECODERS[name] = decode
        return decode

    return add


# Data.


def as_words(data: Array, words: int) -> Array:
    """8 or 16 bits as one word, signed ones extended; wider data as they are, (…, words)."""
    if data.dtype.itemsize < BYTES_OF_WORD:
        return data.astype(np.int32).view(U32)[..., None]
    return data.reshape(*data.shape[:2], words)


def put_words(g: Group, number: int, data: Array, m: Array | None) -> None:
    """Write (…, words) to registers from ``number`` on."""
    if number == LAST["R"]:
        return
    for i in range(data.shape[-1]):
        if m is None:
            g.R[number + i] = data[..., i]
        else:
            np.copyto(g.R[number + i], data[..., i], where=m)


def words_of(g: Group, number: int, words: int, size: int) -> Array:
    """Registers as data to store, (warps, 32) of 8 or 16 bits or (warps, 32, words)."""
    if number == LAST["R"]:
        data = np.zeros((len(g.warps), LANES, words), U32)
    else:
        data = g.R[number : number + words].transpose(1, 2, 0)
    return data[..., 0].astype(f"u{size}") if size < BYTES_OF_WORD else data


def lanes_of(g: Group, m: Array | None) -> Array | None:
    """The mask of an access; None where every lane makes it."""
    return g.mask if m is None else m


def flushed(x: Any) -> Any:
    """Numbers below the least normal one as zeros of their sign."""
    return np.where(np.abs(x) < np.float32(2.0**-126), x * np.float32(0), x)


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
"""What makes fp32 16-bit numbers, by the type's modifier."""
