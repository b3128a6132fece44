"""Arithmetic on pairs of 16-bit numbers, fp16 or (``BF16_V2``) bf16, in one register.

A pair is (…, 2): the low half first. Each result is rounded once.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from validate.emulator.comparisons import JOINTS, REALS, compared
from validate.emulator.decoding import (
    U32,
    Decoder,
    Reader,
    Run,
    as_bf16,
    as_fp16,
    opcode,
)
from validate.emulator.machine import Group
from validate.emulator.memory import Array

NUMBER = r"[-+]?(INF|QNAN|[0-9.]+(e[-+]?[0-9]+)?)"


def as_pair(words: Any, bf16: bool) -> Any:
    """The halves of 32-bit words as fp64."""
    bits = np.stack([words & U32(0xFFFF), words >> U32(16)], axis=-1)
    if bf16:
        return (bits << U32(16)).view(np.float32).astype(np.float64)
    return bits.astype(np.uint16).view(np.float16).astype(np.float64)


def as_words(pair: Any, bf16: bool) -> Any:
    """Fp64 pairs as 32-bit words, each half rounded to nearest, ties to even."""
    with np.errstate(all="ignore"):
        if bf16:
            near = pair.astype(np.float32)
            # Towards zero, and odd where bits are lost: a second rounding then finds no false tie.
            cut = np.where(np.abs(near) > np.abs(pair), np.nextafter(near, np.float32(0)), near)
            bits = cut.view(U32) | (cut != pair).astype(U32)
            halves = as_bf16(np.where(np.isfinite(pair), bits.view(np.float32), near))
        else:
            halves = pair.astype(np.float16).view(np.uint16).astype(U32)
    return halves[..., 0] | halves[..., 1] << U32(16)


def operands(d: Decoder, texts: list[str], bf16: bool) -> list[Reader]:
    """Readers of pairs; two constants are one, the first of them the high half."""
    readers = []
    while texts:
        text = texts.pop(0)
        if re.fullmatch(NUMBER, text):
            if not texts or not re.fullmatch(NUMBER, texts[0]):
                raise d.at.unknown("one constant of a pair")
            high, low = (np.float64(x.replace("QNAN", "NAN")) for x in (text, texts.pop(0)))
            readers.append(_constant(np.stack([low, high])))
        else:
            readers.append(_register(d, text, bf16))
    return readers


def _constant(pair: Any) -> Reader:
    return lambda g: pair


def _register(d: Decoder, text: str, bf16: bool) -> Reader:
    form = re.fullmatch(r"(-?)(\|?)([^|.]+)\|?(?:\.H([01])_H\4)?(\|?)", text)
    if not form:
        raise d.at.unknown(f"operand {text!r}")
    read, half = d.integer(form[3]), form[4]

    def pair(g: Group) -> Array:
        values = as_pair(np.asarray(read(g)), bf16)
        if half:
            values = np.repeat(values[..., int(half) :][..., :1], 2, axis=-1)
        if form[2] or form[5]:
            values = np.abs(values)
        return np.negative(values) if form[1] else values

    return pair


@opcode("HADD2", "HMUL2", "HFMA2")
def _arithmetic(d: Decoder) -> Run:
    """A + b, a · b, or a · b + c; ``HADD2.F32`` gives one half of b as fp32."""
    d.take("MMA")
    texts = list(d.at.operands)
    if d.take("F32"):
        return _one_half(d, texts)
    bf16 = bool(d.take("BF16_V2"))
    put = d.write(texts.pop(0))
    if d.at.opcode == "HFMA2" and texts[:2] == ["-RZ", "RZ"] and len(texts) == 4:
        # How ptxas loads a number: its bits, whatever they mean as halves.
        convert = as_bf16 if bf16 else as_fp16
        high, low = (int(convert(np.float32(x.replace("QNAN", "NAN")))) for x in texts[2:])
        value = U32(high << 16 | low)
        return lambda g, m: put(g, value, m)
    given = operands(d, texts, bf16)
    if len(given) != (3 if d.at.opcode == "HFMA2" else 2):
        raise d.at.unknown(f"a form with {len(d.at.operands)} operands")

    def run(g: Group, m: Array | None) -> None:
        a, b, *c = (read(g) for read in given)
        with np.errstate(all="ignore"):
            result = a + b if d.at.opcode == "HADD2" else a * b
            if c:
                result = result + c[0]
        put(g, as_words(result, bf16), m)

    return run


def _one_half(d: Decoder, texts: list[str]) -> Run:
    match = re.fullmatch(r"(R\d+)\.H([01])_H\2", texts[-1])
    if len(texts) != 3 or texts[1] != "-RZ" or not match:
        raise d.at.unknown("this form of an addition of halves")
    put, a, shift = d.write_real(texts[0]), d.integer(match[1]), U32(16 * int(match[2]))

    def run(g: Group, m: Array | None) -> None:
        half = (a(g) >> shift).astype(np.uint16).view(np.float16)
        put(g, half.astype(np.float32), m)

    return run


@opcode("HMNMX2")
def _minimum(d: Decoder) -> Run:
    """The lesser halves of a and b, or the greater where the predicate is false."""
    bf16, nans = bool(d.take("BF16_V2")), d.take("NAN")
    texts = list(d.at.operands)
    put, least = d.write(texts.pop(0)), d.predicate(texts.pop())
    given = operands(d, texts, bf16)
    if len(given) != 2:
        raise d.at.unknown(f"a form with {len(d.at.operands)} operands")
    smaller, larger = (np.minimum, np.maximum) if nans else (np.fmin, np.fmax)

    def run(g: Group, m: Array | None) -> None:
        a, b = (read(g) for read in given)
        chosen = np.asarray(least(g))[..., None]
        put(g, as_words(np.where(chosen, smaller(a, b), larger(a, b)), bf16), m)

    return run


@opcode("HSETP2")
def _compare(d: Decoder) -> Run:
    """Each half of a compared with b's, and (or, exclusive or) a predicate; the low one first."""
    bf16 = bool(d.take("BF16_V2"))
    name, joint = d.take(*REALS), d.take(*JOINTS)
    texts = list(d.at.operands)
    puts = [d.write_predicate(texts.pop(0)) for _ in range(2)]
    other = d.predicate(texts.pop())
    given = operands(d, texts, bf16)
    if not (name and joint) or len(given) != 2:
        raise d.at.unknown("this form of a comparison")

    def run(g: Group, m: Array | None) -> None:
        a, b = (read(g) for read in given)
        holds = compared(name, a, b)
        beside = other(g)
        for i, put in enumerate(puts):
            put(g, JOINTS[joint](holds[..., i], beside), m)

    return run
