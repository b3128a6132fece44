"""How numbers are compared, and what a comparison is joined to a predicate by."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge,
    "EQ": operator.eq, "NE": operator.ne,
}  # fmt: skip
REALS = (*COMPARISONS, *(f"{name}U" for name in COMPARISONS), "NUM", "NAN")
"""Comparisons of reals: a name that ends in U holds also where one is not a number."""
JOINTS: dict[str, Callable[[Any, Any], Any]] = {
    "AND": operator.and_, "OR": operator.or_, "XOR": operator.xor,
}  # fmt: skip


def compared(name: str, x: Any, y: Any) -> Any:
    """Whether a comparison of reals holds; ``NUM`` and ``NAN`` ask if both are numbers.

    >>> bool(compared("LTU", np.float32("nan"), np.float32(1)))
    True
    """
    unordered = np.isnan(x) | np.isnan(y)
    if name in ("NUM", "NAN"):
        return unordered if name == "NAN" else ~unordered
    holds = COMPARISONS[name.removesuffix("U")](x, y)
    return holds | unordered if name.endswith("U") else holds & ~unordered
