"""Scaling laws N_opt = k_N · C^a, D_opt = k_D · C^b, and the published estimates behind them."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from flopcount.sizes import quoted, require_positive_number


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A published compute-optimal model.

    Attributes:
        params: N, parameters.
        flops: C, training FLOPs.
        tokens: D, training tokens.
    """

    params: float
    flops: float
    tokens: float


CHINCHILLA_TABLE_3 = (
    Estimate(400e6, 1.92e19, 8.0e9),
    Estimate(1e9, 1.21e20, 20.2e9),
    Estimate(10e9, 1.23e22, 205.1e9),
    Estimate(67e9, 5.76e23, 1.5e12),
    Estimate(175e9, 3.85e24, 3.7e12),
    Estimate(280e9, 9.90e24, 5.9e12),
    Estimate(520e9, 3.43e25, 11.0e12),
    Estimate(1e12, 1.27e26, 21.2e12),
    Estimate(10e12, 1.30e28, 216.2e12),
)
"""Hoffmann et al. 2022 (arXiv 2203.15556), Table 3: approach 1."""

CHINCHILLA_TABLE_A3 = (
    Estimate(400e6, 1.84e19, 7.7e9),
    Estimate(1e9, 1.20e20, 20.0e9),
    Estimate(10e9, 1.32e22, 219.5e9),
    Estimate(67e9, 6.88e23, 1.7e12),
    Estimate(175e9, 4.54e24, 4.3e12),
    Estimate(280e9, 1.18e25, 7.1e12),
    Estimate(520e9, 4.19e25, 13.4e12),
    Estimate(1e12, 1.59e26, 26.5e12),
    Estimate(10e12, 1.75e28, 292.0e12),
)
"""Hoffmann et al. 2022 (arXiv 2203.15556), Table A3: approach 2."""


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """N_opt = k_N · C^a and D_opt = k_D · C^b, factors unrounded.

    Attributes:
        a: Exponent of the parameters.
        b: Exponent of the tokens.
        k_n: Factor of the parameters.
        k_d: Factor of the tokens.
        source: Where the law comes from.

    >>> round(ScalingLaw(0.5, 0.5, 0.1, 2.0, "example").n_opt(1e20))
    1000000000
    """

    a: float
    b: float
    k_n: float
    k_d: float
    source: str

    def __post_init__(self) -> None:
        _require_finite(self)

    def n_opt(self, flops: float) -> float:
        """Compute-optimal parameters for a budget of ``flops`` training FLOPs.

        Raises:
            TypeError: If ``flops`` is not a number.
            ValueError: If it is not positive and finite, or if they exceed a float.
        """
        return power(self.k_n, flops, self.a)

    def d_opt(self, flops: float) -> float:
        """Compute-optimal training tokens for a budget of ``flops`` training FLOPs.

        Raises:
            TypeError: If ``flops`` is not a number.
            ValueError: If it is not positive and finite, or if they exceed a float.
        """
        return power(self.k_d, flops, self.b)


def power(factor: float, flops: float, exponent: float) -> float:
    """Return factor · C^exponent.

    Raises:
        TypeError: If C is not a number.
        ValueError: If it is not positive and finite, or if the result exceeds a float.

    >>> power(3.0, 16.0, 0.5)
    12.0
    """
    budget = require_positive_number("flops", flops)
    try:
        return factor * math.pow(budget, exponent)
    except OverflowError:
        raise ValueError(
            f"flops = {quoted(flops)}: {factor:.4g} · C^{exponent:.4g} exceeds a float"
        ) from None


def _require_finite(law: ScalingLaw | LossSurface) -> None:
    """Make every number of a law a finite float, so that no prediction meets another type."""
    for field in dataclasses.fields(law):
        value = getattr(law, field.name)
        if field.name == "source":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{field.name} = {quoted(value)}: expected a finite number")
        if not -sys.float_info.max <= value <= sys.float_info.max:
            raise ValueError(f"{field.name} = {quoted(value)}: expected a finite number")
        object.__setattr__(law, field.name, float(value))


FLOPS_PER_PARAM_TOKEN = 6
"""C = 6·N·D, Kaplan et al. 2020 (arXiv 2001.08361), section 2.1."""


@dataclasses.dataclass(frozen=True)
class LossSurface:
    """L(N, D) = E + A / N^α + B / D^β, and the optimum it implies under C = κ·N·D.

    With N·D = C/κ fixed, dL/dN = 0 at αA/N^α = βB/D^β, so N_opt = G·(C/κ)^a with
    G = (αA / βB)^(1 / (α + β)), a = β / (α + β), and D_opt = (C/κ) / N_opt.

    Attributes:
        e: E, the loss that remains at infinite N and D.
        a: A, factor of the parameters' term.
        b: B, factor of the tokens' term.
        alpha: α.
        beta: β.
        source: Where the numbers come from.
        flops_per_param_token: κ.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3 and equation 4.

    >>> round(LossSurface(1.0, 100.0, 100.0, 0.5, 0.5, "example").n_opt(6e12))
    1000000
    """

    e: float
    a: float
    b: float
    alpha: float
    beta: float
    source: str
    flops_per_param_token: float = FLOPS_PER_PARAM_TOKEN

    def __post_init__(self) -> None:
        _require_finite(self)

    @property
    def n_exponent(self) -> float:
        """The exponent of C in N_opt: β / (α + β)."""
        return self.beta / (self.alpha + self.beta)

    def loss(self, params: float, tokens: float) -> float:
        """Loss of N parameters after D tokens.

        Raises:
            TypeError: If one of them is not a number.
            ValueError: If one of them is not positive and finite.
        """
        n = require_positive_number("params", params)
        d = require_positive_number("tokens", tokens)
        return self.e + self.a * math.pow(n, -self.alpha) + self.b * math.pow(d, -self.beta)

    def n_opt(self, flops: float) -> float:
        """Compute-optimal parameters for a budget of ``flops`` training FLOPs.

        Raises:
            TypeError: If ``flops`` is not a number.
            ValueError: If ``flops`` is not positive and finite, if no size is optimal, since A, B,
                α or β is not positive, or if the optimal one exceeds a float.
        """
        if min(self.a, self.b, self.alpha, self.beta, self.flops_per_param_token) <= 0:
            raise ValueError(f"{self}: expected A, B, α, β, κ above 0, else no size is optimal")
        log_ratio = math.log(self.alpha) + math.log(self.a) - math.log(self.beta) - math.log(self.b)
        budget = require_positive_number("flops", flops)
        log_product = math.log(budget) - math.log(self.flops_per_param_token)
        try:
            return math.exp((log_ratio + self.beta * log_product) / (self.alpha + self.beta))
        except OverflowError:
            raise ValueError(f"flops = {quoted(flops)}: N_opt exceeds a float") from None

    def d_opt(self, flops: float) -> float:
        """Compute-optimal training tokens for a budget of ``flops`` training FLOPs.

        Raises:
            ValueError: As :meth:`n_opt`.
        """
        n_opt = self.n_opt(flops)
        return float(flops) / self.flops_per_param_token / n_opt


CHINCHILLA_SURFACE = LossSurface(
    1.69, 406.4, 410.7, 0.34, 0.28, "Hoffmann et al. 2022 (arXiv 2203.15556), equation 10"
)


def fit_power_law(
    estimates: Sequence[Estimate], source: str, *, a: float | None = None, b: float | None = None
) -> ScalingLaw:
    """Fit N_opt = k_N·C^a and D_opt = k_D·C^b through estimates of optima.

    Through a given exponent, least squares in linear space: Σ(N - k·C^a)² is least at
    k = Σ N·C^a / Σ C^2a. An exponent that is not given is fitted with its factor, by least squares
    in log space: the slope and intercept of log N on log C.

    Args:
        estimates: Optimal (N, C, D).
        source: Where the estimates come from.
        a: Exponent of the parameters; None to fit it.
        b: Exponent of the tokens; None to fit it.

    Returns:
        A :class:`ScalingLaw`, unrounded.

    Raises:
        ValueError: If a value is not positive, or if there are too few budgets: one for a given
            exponent, two different ones for a fitted exponent.

    Source: derived here from the least-squares conditions; the article fits its factors so.

    >>> estimates = [Estimate(3.0, 1.0, 3.0), Estimate(12.0, 16.0, 6.0)]
    >>> law = fit_power_law(estimates, "example")
    >>> round(law.a, 9), round(law.k_n, 9), round(law.b, 9)
    (0.5, 3.0, 0.25)
    """
    for estimate in estimates:
        if not all(
            math.isfinite(value) and value > 0
            for value in (estimate.params, estimate.flops, estimate.tokens)
        ):
            raise ValueError(f"estimates contains {estimate}: expected positive numbers")
    distinct = len({estimate.flops for estimate in estimates})
    needed = 1 if a is not None and b is not None else 2
    if distinct < needed:
        raise ValueError(
            f"estimates holds {distinct} different budgets: expected at least {needed}"
        )
    flops = [estimate.flops for estimate in estimates]
    params = [estimate.params for estimate in estimates]
    tokens = [estimate.tokens for estimate in estimates]
    fitted_a, k_n = _power_law(flops, params, a)
    fitted_b, k_d = _power_law(flops, tokens, b)
    return ScalingLaw(fitted_a, fitted_b, k_n, k_d, source)


def _power_law(
    flops: list[float], values: list[float], exponent: float | None
) -> tuple[float, float]:
    if exponent is not None:
        # Relative to the largest power, which would overflow first.
        largest = max(flops) if exponent > 0 else min(flops)
        powers = [math.pow(budget / largest, exponent) for budget in flops]
        products = sum(value * each for value, each in zip(values, powers, strict=True))
        factor = products / sum(each * each for each in powers)
        return exponent, power(factor, largest, -exponent)
    line = statistics.linear_regression(
        [math.log(budget) for budget in flops], [math.log(value) for value in values]
    )
    try:
        return line.slope, math.exp(line.intercept)
    except OverflowError:
        raise ValueError(
            f"estimates: the factor e^{line.intercept:.4g} exceeds a float: expected budgets that "
            "lie further apart"
        ) from None


def chinchilla_approach_1() -> ScalingLaw:
    """The law through Chinchilla's Table 3 with a = b = 0.50.

    >>> f"{chinchilla_approach_1().k_n:.4f}, {chinchilla_approach_1().k_d:.4f}"
    '0.0877, 1.8960'
    """
    return fit_power_law(CHINCHILLA_TABLE_3, "arXiv 2203.15556, Table 3", a=0.50, b=0.50)


def chinchilla_approach_2() -> ScalingLaw:
    """The law through Chinchilla's Table A3 with a = 0.49, b = 0.51.

    >>> f"{chinchilla_approach_2().k_n:.4f}, {chinchilla_approach_2().k_d:.4f}"
    '0.1448, 1.1519'
    """
    return fit_power_law(CHINCHILLA_TABLE_A3, "arXiv 2203.15556, Table A3", a=0.49, b=0.51)


def read_law(path: str | Path) -> ScalingLaw | LossSurface:
    """The law in a fit that ``flopcount fit --json`` has written.

    Args:
        path: The JSON file.

    Returns:
        The power laws of approaches 1 and 2 or through optima; the surface of approach 3.

    Raises:
        ValueError: If the file cannot be read, or holds no fit, or a fit without a law.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    ...     _ = file.write('{"law": {"a": 0.5, "b": 0.5, "k_n": 0.1, "k_d": 2, "source": "x"}}')
    ...     file.flush()
    ...     round(read_law(file.name).n_opt(1e20))
    1000000000
    """
    try:
        fit = json.loads(Path(path).read_text(encoding="utf-8"))
        fields = dict(fit["surface"] if "surface" in fit else fit["law"])
        source = str(fields.pop("source"))
        law = LossSurface if "surface" in fit else ScalingLaw
        # A surface's factors may be 0: of E that is a loss without a floor, of others no optimum.
        may_be_zero = {"e", "a", "b"} if law is LossSurface else set()
        numbers = {
            name: 0.0
            if value == 0 and name in may_be_zero
            else require_positive_number(name, value)
            for name, value in fields.items()
        }
        return law(**numbers, source=source)
    except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"law = {quoted(str(path))}: expected what `flopcount fit --json` writes, with a law: "
            f"{type(error).__name__} {error}"
        ) from None
