"""Sizes: what a dimension may be, and exact arithmetic on it.

A size is a Python int, a NumPy integer array or a SymPy expression. Formulas use only
``+ - * //`` and the helpers of this module, so that one text serves all three. NumPy and SymPy are
never imported here before the caller has handed in one of their objects.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, TypeAlias

Size: TypeAlias = Any
"""A Python int, a NumPy array of integers or a SymPy expression."""

INT64_MAX = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Assumption:
    """What is taken to hold of symbols, where numbers would be checked.

    Attributes:
        relation: ``"multiple of"`` or ``"at most"``.
        name: What the argument is called.
        value: The argument.
        other_name: What it is held against is called.
        other: That.
    """

    relation: str
    name: str
    value: Size
    other_name: str
    other: Size


_ASSUMED: contextvars.ContextVar[list[Assumption] | None] = contextvars.ContextVar(
    "assumed", default=None
)


@contextlib.contextmanager
def assumptions() -> Iterator[list[Assumption]]:
    """Note what is taken to hold of symbols within the block."""
    noted: list[Assumption] = []
    token = _ASSUMED.set(noted)
    try:
        yield noted
    finally:
        _ASSUMED.reset(token)


def _assume(*noted: Any) -> None:
    known, assumption = _ASSUMED.get(), Assumption(*noted)
    if known is not None and assumption not in known:
        known.append(assumption)


def is_array(value: object) -> bool:
    """Whether ``value`` is a NumPy array; never imports NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_symbolic(value: object) -> bool:
    """Whether ``value`` is a SymPy expression; never imports SymPy."""
    sympy = sys.modules.get("sympy")
    return sympy is not None and isinstance(value, sympy.Basic)


def quoted(value: object) -> str:
    """The value as an error quotes it, on one line and of bounded length."""
    if type(value) is int and value.bit_length() > 200:
        sign = "-" if value < 0 else ""
        return f"an integer of {value.bit_length()} bits (sign '{sign or '+'}')"
    try:
        text = " ".join(repr(value).split())
    except (
        ValueError,
        RecursionError,
    ):  # too many digits of an integer in it, or too deep
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def require_size(name: str, value: object, minimum: int = 1) -> Size:
    """Return ``value`` as an exact size, or raise.

    Args:
        name: The argument's name, for the error.
        value: A Python or NumPy integer, a NumPy array of integers, or a SymPy expression.
        minimum: The smallest value allowed.

    Returns:
        A Python int, an int64 array (an object array of Python ints where int64 does not hold the
        values), or the SymPy expression itself.

    Raises:
        TypeError: If ``value`` is of another type: a bool, a float, a string, a list.
        ValueError: If a value is below ``minimum``, or if a symbol's assumptions exclude it.

    """
    expected = f"expected an integer >= {minimum}"
    if type(value) is int:
        if value < minimum:
            raise ValueError(f"{name} = {quoted(value)}: {expected}")
        return value
    if is_array(value):
        return _require_array(name, value, minimum)
    if is_symbolic(value):
        return _require_expression(name, value, minimum)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.integer):
        return require_size(name, int(value), minimum)
    raise TypeError(
        f"{name} = {quoted(value)} is a {type(value).__name__}: {expected}, "
        "a NumPy array of integers or a SymPy expression"
    )


def require_int(name: str, value: object, minimum: int = 1) -> int:
    """Return ``value`` as one Python int.

    Raises:
        TypeError: As :func:`require_size`, and if ``value`` is an array or has symbols.
        ValueError: As :func:`require_size`.

    """
    size = require_size(name, value, minimum)
    if type(size) is not int:
        raise TypeError(f"{name} = {quoted(value)}: expected one integer >= {minimum}")
    return size


def _require_array(name: str, array: Any, minimum: int) -> Size:
    import numpy as np

    expected = f"expected integers >= {minimum}"
    if array.dtype == object:
        if not all(type(entry) is int for entry in array.flat):
            raise TypeError(
                f"{name} is an array of objects that are not all Python ints: {expected}"
            )
    elif array.dtype.kind not in "iu":
        raise TypeError(f"{name} is an array of dtype {array.dtype}: {expected}")
    if array.size == 0:
        raise ValueError(f"{name} is an empty array of shape {array.shape}: {expected}")
    if array.ndim == 0:
        return require_size(name, int(array[()]), minimum)
    smallest = array.min()
    if smallest < minimum:
        raise ValueError(f"{name} contains {quoted(int(smallest))}: {expected}")
    if int(array.max()) <= INT64_MAX:
        return array.astype(np.int64)
    return array.astype(object)


def _require_expression(name: str, expression: Any, minimum: int) -> Size:
    sympy = sys.modules["sympy"]
    if not isinstance(expression, sympy.Expr) or not expression.is_commutative:
        raise TypeError(
            f"{name} = {quoted(expression)} is not a number: expected a SymPy expression for an "
            f"integer >= {minimum}"
        )
    if expression.is_Integer:
        return require_size(name, int(expression), minimum)
    no_integers = (sympy.Float, sympy.nan, sympy.oo, -sympy.oo, sympy.zoo)
    if expression.is_integer is False or expression.has(*no_integers):
        raise TypeError(f"{name} = {quoted(expression)}: expected an integer expression")
    if (expression - minimum).is_negative:
        raise ValueError(f"{name} = {quoted(expression)}: expected an integer >= {minimum}")
    return expression


def require_fraction(name: str, value: object, *, with_one: bool = False) -> Any:
    """Return ``value`` as a float in [0, 1), an array of such, or a SymPy expression.

    Args:
        name: The argument's name, for the error.
        value: A number, a NumPy array of numbers, or a SymPy expression.
        with_one: Whether it may be 1.

    Raises:
        TypeError: If ``value`` is not a number, an array of numbers or an expression.
        ValueError: If a value lies outside or is NaN.

    """
    expected = f"expected a number in [0, 1{']' if with_one else ')'}"
    largest = 1.0 if with_one else math.nextafter(1.0, 0.0)
    if is_symbolic(value):
        if getattr(value, "is_number", False):
            return require_fraction(name, _as_float(name, value, expected), with_one=with_one)
        sympy = sys.modules["sympy"]
        is_number = isinstance(value, sympy.Expr) and value.is_commutative
        if not is_number or value.is_real is False:  # type: ignore[attr-defined]
            raise TypeError(f"{name} = {quoted(value)}: {expected}")
        return value
    if is_array(value):
        import numpy as np

        array: Any = value
        if array.dtype.kind not in "iuf":
            raise TypeError(f"{name} is an array of dtype {array.dtype}: {expected}")
        if array.size == 0:
            raise ValueError(f"{name} is an empty array of shape {array.shape}: {expected}")
        fractions = array.astype(np.float64)
        outside = ~((fractions >= 0) & (fractions <= largest))
        if outside.any():
            raise ValueError(f"{name} contains {fractions[outside].flat[0]}: {expected}")
        return fractions if fractions.ndim else float(fractions[()])
    numpy = sys.modules.get("numpy")
    real = (int, float) if numpy is None else (int, float, numpy.integer, numpy.floating)
    if isinstance(value, bool) or not isinstance(value, real):
        raise TypeError(f"{name} = {quoted(value)} is a {type(value).__name__}: {expected}")
    fraction = _as_float(name, value, expected)
    if not 0 <= fraction <= largest:
        raise ValueError(f"{name} = {quoted(value)}: {expected}")
    return fraction


def _as_float(name: str, value: Any, expected: str) -> float:
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{name} = {quoted(value)}: {expected}") from error


def require_choice(name: str, value: object, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``known``, else raise an error that lists them.

    Raises:
        TypeError: If ``value`` is not a string.
        ValueError: If ``value`` is not one of ``known``.

    """
    choices = ", ".join(repr(choice) for choice in known)
    if not isinstance(value, str):
        raise TypeError(
            f"{name} = {quoted(value)} is a {type(value).__name__}: expected one of {choices}"
        )
    if value not in known:
        raise ValueError(f"{name} = {quoted(value)}: expected one of {choices}")
    return value


def require_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is a bool.

    Raises:
        TypeError: If it is anything else.

    """
    if not isinstance(value, bool):
        raise TypeError(
            f"{name} = {quoted(value)} is a {type(value).__name__}: expected True or False"
        )
    return value


def require_positive_number(name: str, value: object) -> float:
    """Return ``value``, an int or a float, as a positive finite float.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If it is not positive and finite.

    """
    numpy = sys.modules.get("numpy")
    real = (int, float) if numpy is None else (int, float, numpy.integer, numpy.floating)
    expected = "expected a positive, finite number"
    if isinstance(value, bool) or not isinstance(value, real):
        raise TypeError(f"{name} = {quoted(value)} is a {type(value).__name__}: {expected}")
    number = _as_float(name, value, expected)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} = {quoted(value)}: {expected}")
    return number


def require_at_most(name: str, value: Size, limit_name: str, limit: Size, reason: str = "") -> None:
    """Raise unless ``value`` is at most ``limit``, element by element; of symbols, if it may be."""
    excess = value - limit
    if is_symbolic(excess):
        too_large = bool(excess.is_positive)
        if excess.is_nonpositive is None:
            _assume("at most", name, value, limit_name, limit)
    else:
        too_large = bool((excess > 0).any()) if is_array(excess) else excess > 0
    if too_large:
        raise ValueError(
            f"{name} = {quoted(value)}: expected at most {limit_name} = {quoted(limit)}"
            f"{reason and ', '}{reason}"
        )


def require_same_kind(arguments: dict[str, Any]) -> dict[str, Any]:
    """Check that arrays among ``arguments`` broadcast, and that none meets a symbol.

    Returns:
        The arguments, integer arrays as object arrays of Python ints where one of the ints among
        the arguments does not fit int64.

    Raises:
        TypeError: If some arguments are arrays and others symbols.
        ValueError: If the arrays' shapes do not broadcast.

    """
    arrays = {name: value for name, value in arguments.items() if is_array(value)}
    if not arrays:
        return arguments
    symbols = [name for name, value in arguments.items() if is_symbolic(value)]
    if symbols:
        raise TypeError(
            f"{', '.join(arrays)} given as array and {', '.join(symbols)} as symbol: "
            "expected arrays or symbols, not both"
        )
    import numpy as np

    try:
        np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"array shapes do not broadcast: {shapes}") from None
    if all(value <= INT64_MAX for value in arguments.values() if type(value) is int):
        return arguments
    return {
        name: value.astype(object) if name in arrays and value.dtype.kind == "i" else value
        for name, value in arguments.items()
    }


def halve(even: Size) -> Size:
    """Half of a size that is even, exactly."""
    if is_symbolic(even):
        return even / 2
    return even >> 1 if is_array(even) else even // 2  # NumPy divides several times as slowly


def ceil_divide(numerator: Size, denominator: Size) -> Size:
    """⌈numerator / denominator⌉."""
    if is_symbolic(numerator) or is_symbolic(denominator):
        from sympy import ceiling

        return ceiling(numerator / denominator)
    return (numerator + (denominator - 1)) // denominator


def minimum(left: Size, right: Size) -> Size:
    """The smaller of two sizes, element by element."""
    if is_symbolic(left) or is_symbolic(right):
        from sympy import Min

        return Min(left, right)
    if is_array(left) or is_array(right):
        import numpy as np

        return np.minimum(left, right)
    return min(left, right)


def maximum(left: Any, right: Any) -> Any:
    """The larger of two numbers or expressions."""
    if is_symbolic(left) or is_symbolic(right):
        from sympy import Max

        # What it finds out about its arguments to simplify itself takes longer than all the rest.
        return Max(left, right, evaluate=False)
    return max(left, right)


def equal(left: Size, right: Size) -> bool:
    """Whether two sizes are the same, in every element."""
    differ = left != right
    return not (differ.any() if is_array(differ) else differ)


def divide(name: str, numerator: Size, divisor_name: str, divisor: Size) -> Size:
    """``numerator / divisor`` where it must be an integer.

    Raises:
        ValueError: If ``divisor`` does not divide ``numerator``.

    """
    if is_symbolic(numerator) or is_symbolic(divisor):
        quotient = numerator / divisor
        if not quotient.is_integer:
            _assume("multiple of", name, numerator, divisor_name, divisor)
        return quotient
    quotient = numerator // divisor
    differ = quotient * divisor != numerator
    if differ.any() if is_array(differ) else differ:
        if is_array(differ):
            import numpy as np

            numerator, divisor = np.broadcast_arrays(numerator, divisor)
            numerator, divisor = int(numerator[differ][0]), int(divisor[differ][0])
        raise ValueError(
            f"{name} = {quoted(numerator)} is not divisible by {divisor_name} = {quoted(divisor)}: "
            f"expected {name} to be a multiple of {divisor_name}"
        )
    return quotient


def as_objects(value: Size) -> Size:
    """An array's values as Python ints, which never overflow; anything else as it is."""
    return value.astype(object) if is_array(value) else value


def exact_ratio(numerator: Size, denominator: Size) -> Any:
    """``numerator / denominator``, exactly: an int where it divides, else a fraction.

    Arrays stay integer arrays where every element divides, and become object arrays of ints and
    fractions otherwise; symbols give an expression.

    >>> exact_ratio(6, 3), exact_ratio(7, 2)
    (2, Fraction(7, 2))
    """
    if is_symbolic(numerator) or is_symbolic(denominator):
        return numerator / denominator
    if is_array(numerator) or is_array(denominator):
        import numpy as np

        if not np.any(numerator % denominator):
            return numerator // denominator
        # As objects, a plain int too: a fraction over a NumPy integer would overflow.
        over, under = np.broadcast_arrays(
            *(np.asarray(value, dtype=object) for value in (numerator, denominator))
        )
        ratios = [exact_ratio(a, b) for a, b in zip(over.flat, under.flat, strict=True)]
        return np.array(ratios, dtype=object).reshape(over.shape)
    ratio = Fraction(numerator, denominator)
    return ratio.numerator if ratio.denominator == 1 else ratio


def kept_positions(num_prefix: Size, prefix_dropout: Any) -> Size:
    """Prefix positions that prefix dropout keeps: ``k = m - int(m * p)``.

    The product is one float64 multiplication, as in the model, so that an int, an array and the
    model agree to the bit. On symbols ``k = m - floor(m * p)``.

    Args:
        num_prefix: m, positions.
        prefix_dropout: p in [0, 1).

    Raises:
        ValueError: If ``m * p`` cannot be computed as a float.

    Source: the reference implementation of the model; see ``models.networks.perceiver_ar``.

    >>> kept_positions(1536, 0.5), kept_positions(5, 0.3)
    (768, 4)

    """
    if is_symbolic(num_prefix) or is_symbolic(prefix_dropout):
        from sympy import floor

        return num_prefix - floor(num_prefix * prefix_dropout)
    if is_array(num_prefix) or is_array(prefix_dropout):
        return _kept_positions_in_arrays(num_prefix, prefix_dropout)
    try:
        dropped = int(num_prefix * prefix_dropout)
    except OverflowError:
        dropped = num_prefix + 1
    if dropped > num_prefix:
        raise ValueError(
            f"num_prefix = {quoted(num_prefix)} is too large for float arithmetic with "
            f"prefix_dropout = {prefix_dropout}: give num_kept instead"
        )
    return num_prefix - dropped


def _kept_positions_in_arrays(num_prefix: Size, prefix_dropout: Any) -> Size:
    import numpy as np

    positions = np.asarray(num_prefix)
    if positions.dtype == object:
        prefix, dropout = np.broadcast_arrays(positions, prefix_dropout)
        pairs = zip(prefix.flat, dropout.flat, strict=True)
        kept = np.array([kept_positions(m, float(p)) for m, p in pairs], dtype=object)
        return _require_array("num_kept", kept.reshape(prefix.shape), 0)
    dropped = (positions * prefix_dropout).astype(np.int64)
    if (dropped > positions).any():
        raise ValueError(
            f"num_prefix contains {positions.max()}, too large for float arithmetic with "
            "prefix_dropout: give num_kept instead"
        )
    return positions - dropped


def multiply(left: Size, right: Size) -> Size:
    """``left · right``, in Python ints where int64 might not hold it.

    >>> multiply(2**40, 2**40) == 2**80
    True
    """
    if is_array(left) or is_array(right):
        magnitudes = [
            int(abs(side).max()) if is_array(side) else abs(side) for side in (left, right)
        ]
        if magnitudes[0] * magnitudes[1] > INT64_MAX:
            left, right = as_objects(left), as_objects(right)
    return left * right


def map_sizes(tree: Any, function: Callable[[Size], Size]) -> Any:
    """A tree of dataclasses and tuples with ``function`` applied to each size in it.

    Flags, names and None are no sizes, and stay.
    """
    if (names := getattr(tree, "__dataclass_fields__", None)) is not None:
        return type(tree)(**{name: map_sizes(getattr(tree, name), function) for name in names})
    if isinstance(tree, tuple):
        return tuple(map_sizes(entry, function) for entry in tree)
    return function(tree) if type(tree) is int or is_array(tree) or is_symbolic(tree) else tree


def safe_for(tree: Any, formula: Callable[[Any], object]) -> Any:
    """A tree of sizes in a form on which ``formula`` cannot overflow.

    If there are arrays, ``formula`` is evaluated once, in Python ints, at the maximum of each size,
    and the largest number that occurs anywhere on the way is recorded (:class:`Bound`). Sizes are
    not negative and formulas are sums and products of them, so no element can exceed it. Where it
    does not fit int64, the arrays become object arrays of Python ints; ints and symbols are exact
    as they are.
    """
    sizes: list[Size] = []
    map_sizes(tree, sizes.append)
    if not any(is_array(size) for size in sizes):
        return tree
    largest = [0]
    maxima = {id(size): _largest(size) for size in {id(size): size for size in sizes}.values()}
    formula(map_sizes(tree, lambda size: Bound(maxima[id(size)], largest)))
    return tree if largest[0] <= INT64_MAX else map_sizes(tree, as_objects)


def _largest(value: Size) -> int:
    return int(value.max()) if is_array(value) else value


class Bound:
    """An upper bound on a size's magnitude; records the largest bound that arithmetic meets."""

    def __init__(self, value: int, largest: list[int]) -> None:
        self.value = value
        self._largest = largest
        largest[0] = max(largest[0], value)

    def _new(self, value: int) -> Bound:
        return Bound(value, self._largest)

    def __add__(self, other: Bound | int) -> Bound:
        return self._new(self.value + _magnitude(other))

    def __sub__(self, other: Bound | int) -> Bound:
        return self._new(max(self.value, _magnitude(other)))

    def __rsub__(self, other: int) -> Bound:
        return self._new(max(self.value, abs(other)))

    def __mul__(self, other: Bound | int) -> Bound:
        return self._new(self.value * _magnitude(other))

    def __floordiv__(self, other: Bound | int) -> Bound:
        return self._new(self.value)

    def __rfloordiv__(self, other: int) -> Bound:
        return self._new(abs(other))

    def __lt__(self, other: Bound | int) -> bool:
        return self.value < _magnitude(other)

    def __gt__(self, other: Bound | int) -> bool:
        return self.value > _magnitude(other)

    __radd__ = __add__
    __rmul__ = __mul__


def _magnitude(value: Bound | int) -> int:
    return value.value if isinstance(value, Bound) else abs(value)
