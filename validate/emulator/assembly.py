"""Assembled code: instructions as Triton's nvdisasm prints them, and the tables of the cubin."""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator, Sequence

from validate.witnesses.compiled_code import disassembled

WORD = 4
INSTRUCTION_BYTES = 16
EIATTR_PARAM_CBANK, EIATTR_KPARAM_INFO, EIATTR_REGCOUNT = 0x0A, 0x17, 0x2F
"""Attributes of ``.nv.info.<kernel>``: where parameters start, and where each of them lies; and of
``.nv.info``: registers of a thread."""
FORMATS = {1: 0, 2: 2, 3: 2}
"""Bytes of an attribute that has no size of its own, by the attribute's format."""


class UnknownCodeError(ValueError):
    """Code that the emulator does not know, named with its line."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        index: Its place in the kernel's code.
        text: As nvdisasm prints it, without hints for the operand cache.
        guard: The predicate that it is executed under, ``"P0"``, ``"!UP1"``; empty where none.
        opcode: Its name, without modifiers.
        modifiers: What follows the name.
        operands: In the order of the text.
        source: File and line that it comes from.
    """

    index: int
    text: str
    guard: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    source: str

    def __str__(self) -> str:
        return f"{self.text!r} at {self.index * INSTRUCTION_BYTES:#06x}, {self.source}"

    def unknown(self, what: str) -> UnknownCodeError:
        """The error to raise where a part of it is not known."""
        return UnknownCodeError(f"{what} is not known to the emulator: {self}")

    def lacks(self, error: Exception) -> UnknownCodeError:
        """The error to raise where something was looked up or read that is not there."""
        return self.unknown(f"this form ({type(error).__name__}: {error})")


@dataclasses.dataclass(frozen=True)
class Code:
    """A kernel.

    Attributes:
        name: The kernel's.
        instructions: In order.
        labels: Index of the instruction at each label.
        parameters: Offset in constant bank 0 and bytes of each parameter, in order.
        words: The machine code, 16 bytes for each instruction.
        registers: Of a thread.
    """

    name: str
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    parameters: tuple[tuple[int, int], ...]
    words: bytes = b""
    registers: int = 0


ACCESSES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
"""Bytes of an access by its modifier; 4 where it has none."""


def access_bytes(at: Instruction) -> int:
    """Bytes that each lane accesses."""
    return next((ACCESSES[m] for m in at.modifiers if m in ACCESSES), 4)


def read_code(name: str, cubin: bytes) -> Code:
    """The kernel of a cubin."""
    instructions, labels = parsed(disassembled(cubin))
    tables = sections(cubin)
    refuse_relocations(instructions, tables)
    words = tables[f".text.{name}"]
    registers = max(
        struct.unpack("<II", data)[1]
        for attribute, data in attributes(".nv.info", tables)
        if attribute == EIATTR_REGCOUNT
    )
    return Code(name, instructions, labels, parameters(name, tables), words, registers)


def parsed(text: str) -> tuple[tuple[Instruction, ...], dict[str, int]]:
    """Instructions and labels of what nvdisasm prints.

    Raises:
        UnknownCodeError: If a line is no instruction, label, directive or comment, or addresses
            do not follow one another.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    source = "no line"
    for line in text.splitlines():
        if match := re.match(r'\s*//## File "(.*)", line (\d+)(.*)', line):
            source = f"{'/'.join(match[1].split('/')[-2:])}:{match[2]}"
        elif match := re.match(r"\s*/\*([0-9a-f]+)\*/\s+(?:(@\S+)\s+)?(.*?)\s*;\s*$", line):
            words = match[3].replace(".reuse", "").split(None, 1)
            opcode, *modifiers = words[0].split(".")
            operands = tuple(x.strip() for x in words[1].split(",")) if words[1:] else ()
            guard = (match[2] or "").removeprefix("@")
            if int(match[1], 16) != INSTRUCTION_BYTES * len(instructions):
                raise UnknownCodeError(f"code must follow its addresses, got {line!r}")
            instructions.append(
                Instruction(
                    len(instructions), f"{match[2] or ''} {' '.join(words)}".strip(), guard,
                    opcode, tuple(modifiers), operands, source,
                )
            )  # fmt: skip
        elif match := re.match(r"([.$\w]+):\s*$", line):
            labels[match[1]] = len(instructions)
        elif line.strip() and not re.match(r"\s*(\.|//)", line):
            raise UnknownCodeError(f"nvdisasm printed a line of no known kind: {line!r}")
    return tuple(instructions), labels


def sections(cubin: bytes) -> dict[str, bytes]:
    """The sections of an ELF file by name."""
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError(f"a cubin must be a 64-bit ELF file, got {cubin[:5]!r}")
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    parts = []
    for i in range(count):
        name, kind, _, _, offset, length = struct.unpack_from("<IIQQQQ", cubin, start + i * size)
        parts.append((name, b"" if kind == 8 else cubin[offset : offset + length]))
    texts = parts[names][1]
    return {texts[name : texts.index(b"\0", name)].decode(): data for name, data in parts}


def attributes(section: str, tables: dict[str, bytes]) -> Iterator[tuple[int, bytes]]:
    """The attributes of a table of the cubin that have data of their own."""
    table, at = tables[section], 0
    while at < len(table):
        form, attribute, size = struct.unpack_from("<BBH", table, at)
        at += 4
        if form == 4:
            yield attribute, table[at : at + size]
            at += size
        elif form not in FORMATS:
            raise UnknownCodeError(f"attribute format {form} of {section}")


def refuse_relocations(instructions: Sequence[Instruction], tables: dict[str, bytes]) -> None:
    """Raise an error that names the first instruction that the loader would change.

    Raises:
        UnknownCodeError: If there is one.
    """
    for section, table in tables.items():
        if section.startswith((".rel.text", ".rela.text")) and table:
            (offset,) = struct.unpack_from("<Q", table)
            raise instructions[offset // INSTRUCTION_BYTES].unknown(f"a relocation in {section}")


def parameters(name: str, tables: dict[str, bytes]) -> tuple[tuple[int, int], ...]:
    """Offset in constant bank 0 and bytes of each parameter, as the cubin's own tables say.

    Raises:
        UnknownCodeError: If its tables lack what is asked for.
    """
    base = None
    places = {}
    for attribute, data in attributes(f".nv.info.{name}", tables):
        if attribute == EIATTR_KPARAM_INFO:
            _, ordinal, offset, packed = struct.unpack("<IHHI", data)
            places[ordinal] = offset, packed >> 18
        elif attribute == EIATTR_PARAM_CBANK:
            _, base, _ = struct.unpack("<IHH", data)
    if base is None or sorted(places) != list(range(len(places))):
        raise UnknownCodeError(
            f".nv.info.{name} must place every parameter, got {places} from {base}"
        )
    return tuple((base + places[i][0], places[i][1]) for i in range(len(places)))
