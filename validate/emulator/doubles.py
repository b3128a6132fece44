"""Arithmetic in fp64, whose numbers lie in two registers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from validate.emulator.comparisons import JOINTS, REALS, compared
from validate.emulator.decoding import U32, U64, Decoder, Reader, Run, opcode
from validate.emulator.machine import Group
from validate.emulator.memory import Array

SPLIT = np.float64(2**27 + 1)


def number(d: Decoder, text: str) -> Reader:
    """Reader of an fp64 number."""
    form = re.fullmatch(r"(-?)(\|?)([^|]+)\|?", text)
    assert form
    if re.fullmatch(r"\+?(INF|QNAN|[0-9.]+(e[-+]?[0-9]+)?)", form[3]):
        value = np.float64(text.replace("QNAN", "NAN").replace("|", ""))
        return lambda g: value
    if (index := d.constant(form[3])) is not None:

        def bits(g: Group) -> Any:
            low, high = g.machine.constants[index : index + 2].astype(U64)
            return low | high << U64(32)
    else:
        bits = d.long(form[3])

    def read(g: Group) -> Any:
        double = np.asarray(bits(g)).view(np.float64)
        if form[2]:
            double = np.abs(double)
        return np.negative(double) if form[1] else double

    return read


def fused(a: Any, b: Any, c: Any, mode: str = "") -> Any:
    """A · b + c, rounded to nearest, up (RP), down (RM) or towards zero (RZ).

    The product's and the sum's errors are added to the sum of both, and what that leaves out
    decides where it is rounded in a direction.

    Source: T. J. Dekker, A floating-point technique for extending the available precision, 1971.
    """
    product = a * b
    high_a, high_b = SPLIT * a - (SPLIT * a - a), SPLIT * b - (SPLIT * b - b)
    low_a, low_b = a - high_a, b - high_b
    lost = low_a * low_b - (product - high_a * high_b - low_a * high_b - high_a * low_b)
    total = product + c
    part = total - product
    lost = lost + (product - (total - part)) + (c - part)
    near = np.where(np.isfinite(lost), total + lost, total)
    rest = lost - (near - total)
    if mode == "RP" or mode == "RM":
        end = np.inf if mode == "RP" else -np.inf
        return np.where(rest > 0 if mode == "RP" else rest < 0, np.nextafter(near, end), near)
    if mode == "RZ":
        return np.where(rest * near < 0, np.nextafter(near, 0), near)
    return near


@opcode("DADD", "DMUL", "DFMA")
def _arithmetic(d: Decoder) -> Run:
    """A + b, a · b, or a · b + c."""
    d.number_of_operands(4 if d.at.opcode == "DFMA" else 3)
    mode = d.take("RP", "RM", "RZ")
    put = d.write_long(d.operand(0))
    given = [number(d, text) for text in d.at.operands[1:]]

    def run(g: Group, m: Array | None) -> None:
        a, b, *c = (read(g) for read in given)
        with np.errstate(all="ignore"):
            if d.at.opcode == "DADD":
                result = fused(a, 1.0, b, mode) if mode else a + b
            elif c or mode:
                result = fused(a, b, *(c or (0.0,)), mode)
            else:
                result = a * b
        put(g, np.asarray(result, np.float64).view(U64), m)

    return run


@opcode("DSETP")
def _compare(d: Decoder) -> Run:
    """A compared with b, and (or, exclusive or) a predicate."""
    name, joint = d.take(*REALS), d.take(*JOINTS)
    d.number_of_operands(5)
    if not name or not joint:
        raise d.at.unknown("this form of a comparison")
    puts = [d.write_predicate(d.operand(i)) for i in (0, 1)]
    a, b, other = number(d, d.operand(2)), number(d, d.operand(3)), d.predicate(d.operand(4))

    def run(g: Group, m: Array | None) -> None:
        holds = compared(name, a(g), b(g))
        for put, value in zip(puts, (holds, ~holds), strict=True):
            put(g, JOINTS[joint](value, other(g)), m)

    return run


def special(d: Decoder, function: Callable[[Any], Any]) -> Run:
    """The high word of a function of the fp64 number that has this high word, and no low one."""
    put, a = d.write(d.operand(0)), d.integer(d.operand(1))

    def run(g: Group, m: Array | None) -> None:
        with np.errstate(all="ignore"):
            value = function((np.asarray(a(g)).astype(U64) << U64(32)).view(np.float64))
        put(g, (value.view(U64) >> U64(32)).astype(U32), m)

    return run
