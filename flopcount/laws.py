"""Scaling laws N_opt = k_N · C^a, D_opt = k_D · C^b, and the published estimates behind them."""

from __future__ import annotations

import dataclasses
import math


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

    def n_opt(self, flops: float) -> float:
        """Compute-optimal parameters for a budget of ``flops`` training FLOPs."""
        return self.k_n * math.pow(flops, self.a)

    def d_opt(self, flops: float) -> float:
        """Compute-optimal training tokens for a budget of ``flops`` training FLOPs."""
        return self.k_d * math.pow(flops, self.b)


def fit_factors(estimates: tuple[Estimate, ...], a: float, b: float, source: str) -> ScalingLaw:
    """Fit k_N and k_D through given exponents by least squares in linear space.

    The minimum of Σ(N - k·C^a)² lies at k = Σ N·C^a / Σ C^2a.

    Args:
        estimates: Published (N, C, D).
        a: Exponent of the parameters.
        b: Exponent of the tokens.
        source: Where the estimates come from.

    Source: derived here from the least-squares condition; the article fits the same way.
    """

    def factor(values: list[float], exponent: float) -> float:
        powers = [math.pow(estimate.flops, exponent) for estimate in estimates]
        products = sum(value * power for value, power in zip(values, powers, strict=True))
        return products / sum(power * power for power in powers)

    k_n = factor([estimate.params for estimate in estimates], a)
    k_d = factor([estimate.tokens for estimate in estimates], b)
    return ScalingLaw(a, b, k_n, k_d, source)


def chinchilla_approach_1() -> ScalingLaw:
    """The law through Chinchilla's Table 3 with a = b = 0.50.

    >>> f"{chinchilla_approach_1().k_n:.4f}, {chinchilla_approach_1().k_d:.4f}"
    '0.0877, 1.8960'
    """
    return fit_factors(CHINCHILLA_TABLE_3, 0.50, 0.50, "arXiv 2203.15556, Table 3")


def chinchilla_approach_2() -> ScalingLaw:
    """The law through Chinchilla's Table A3 with a = 0.49, b = 0.51.

    >>> f"{chinchilla_approach_2().k_n:.4f}, {chinchilla_approach_2().k_d:.4f}"
    '0.1448, 1.1519'
    """
    return fit_factors(CHINCHILLA_TABLE_A3, 0.49, 0.51, "arXiv 2203.15556, Table A3")
