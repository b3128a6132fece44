"""Minima of parabolas in log N, and what separates them, with intervals from the noise of a run.

A budget's parabola goes through one loss per size, the mean over its seeds: what is no parabola in
the losses is shared by the seeds of a size, so that each size counts once. Its residuals hold both,
and their standard deviation σ is an arm's noise. Losses are nats per byte.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from flopcount.isoflop.profiles import Profile
from flopcount.isoflop.results import CONFIDENCE, Interval
from models.study.design import Row, nats_per_byte

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Scatter:
    """A standard deviation that was measured.

    Attributes:
        deviation: Nats per byte.
        freedom: Its degrees of freedom ν.
        of: What scatters.
    """

    deviation: float
    freedom: int
    of: str

    def interval(self) -> Interval:
        """95 % of normal noise: ν·s²/σ² has a χ² distribution with ν degrees of freedom.

        >>> print(Scatter(1.0, 10, "seeds").interval())
        0.6987 … 1.755
        """
        tail = (1 - CONFIDENCE) / 2
        low, high = stats.chi2.ppf([1 - tail, tail], self.freedom)
        return Interval(
            self.deviation * math.sqrt(self.freedom / low),
            self.deviation * math.sqrt(self.freedom / high),
            CONFIDENCE,
        )


def half_width(parts: Iterable[tuple[Scatter | None, float]], comparisons: int = 1) -> float | None:
    """t·(Σ vᵢ)^½ of a sum of estimates, vᵢ = σᵢ²·hᵢ; None where a σ is not known.

    t is Student's for a confidence of 1 - 0.05 / ``comparisons`` (Bonferroni: so many intervals
    hold together at 95 %), with Welch and Satterthwaite's (Σ vᵢ)² / Σ (vᵢ²/νᵢ) degrees of freedom.

    Args:
        parts: Of each estimate, σ of a run and h, its variance in units of σ². Those of one σ are
            added first.
        comparisons: Intervals that are to hold together.

    >>> half_width([(Scatter(1.0, 10, ""), 1.0)]) == half_width([(Scatter(1.0, 10, ""), 0.5)] * 2)
    True
    """
    variances: dict[Scatter, float] = {}
    for scatter, variance in parts:
        if scatter is None:
            return None
        variances[scatter] = variances.get(scatter, 0.0) + scatter.deviation**2 * variance
    total = sum(variances.values())
    freedom = total**2 / sum(v**2 / scatter.freedom for scatter, v in variances.items())
    quantile = stats.t.ppf(1 - (1 - CONFIDENCE) / comparisons / 2, freedom)
    return float(quantile * math.sqrt(total))


def seeds(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Runs that differ in their seeds alone, by arm, budget and shape."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        key = row["arm"], row["budget"], f"{row['num_channels']}×{row['num_layers']}"
        groups.setdefault(key, []).append(row)
    return groups


def averaged(rows: Iterable[Row]) -> list[Row]:
    """A row per arm, budget and shape, with the mean loss of its seeds."""
    return [
        group[0]
        | {
            "validation_loss": str(float(np.mean([nats_per_byte(row) for row in group]))),
            "bytes_per_token": "1.0",
        }
        for group in seeds(rows).values()
    ]


def scatter_of_seeds(groups: Iterable[Sequence[float]]) -> Scatter | None:
    """Pool s = (Σᵢ Σⱼ (Lᵢⱼ - L̄ᵢ)² / ν)^½, ν = Σᵢ (nᵢ - 1), over groups i; None without seeds."""
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return None
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(np.var(group)) * len(group) for group in groups)
    return Scatter(math.sqrt(squares / freedom), freedom, "over seeds")


def scatter_about_parabolas(arm: str, profiles: Iterable[Profile]) -> Scatter | None:
    """Pool r = (Σ residual² / ν)^½, ν = Σ (n - 3), over an arm's profiles; None if ν = 0."""
    fitted = [p for p in profiles if p.coefficients and len(p.loss) > 3]
    if not fitted:
        return None
    freedom = sum(len(profile.loss) - 3 for profile in fitted)
    squares = sum(float((profile.residuals**2).sum()) for profile in fitted)
    return Scatter(math.sqrt(squares / freedom), freedom, f"about the parabolas of {arm}")


@dataclasses.dataclass(frozen=True, eq=False)
class Best:
    """What an arm reaches at one budget.

    Attributes:
        run: The size of the least loss, mean over its seeds.
        profile: The budget's parabola through the means.
        noise: σ of one of them; None while it is not known.
        along: What else is known of each size, by name, in rising order; of sizes the logarithms.
    """

    run: Row
    profile: Profile
    noise: Scatter | None
    along: Mapping[str, FloatArray] = dataclasses.field(default_factory=dict)

    @property
    def arm(self) -> str:
        """Its name."""
        return self.run["arm"]

    @property
    def budget(self) -> float:
        """FLOPs."""
        return self.profile.flops

    @property
    def n_opt(self) -> float | None:
        """N at the parabola's vertex, inside the sizes tried."""
        return self.profile.n_opt

    @property
    def loss(self) -> float:
        """At the parabola's vertex; of the best size where there is none."""
        at_vertex = self.profile.loss_opt
        return nats_per_byte(self.run) if at_vertex is None else at_vertex

    @property
    def variance(self) -> float:
        """Of ``loss``, in units of σ²: zᵀVz at the vertex, z = (1, x, x²), V = (XᵀX)⁻¹; 1 of a run.

        At the vertex the slope is 0, so that where it lies adds nothing in first order.
        """
        if self.n_opt is None:
            return 1.0
        x = math.log(self.n_opt) - self.profile.centre
        z = np.array([1.0, x, x * x])
        return float(z @ self._covariance @ z)

    @property
    def half_width(self) -> float | None:
        """Of the interval of ``loss``; None without noise."""
        return half_width([(self.noise, self.variance)])

    @property
    def _covariance(self) -> FloatArray:
        """V = (XᵀX)⁻¹ of c₀, c₁, c₂, in units of σ²."""
        x = np.log(self.profile.params) - self.profile.centre
        inverse = np.linalg.pinv(np.vander(x, 3, increasing=True))
        return np.asarray(inverse @ inverse.T)

    @property
    def n_interval(self) -> Interval | None:
        """Of N_opt; None without a vertex or noise.

        The sizes at which the slope c₁ + 2c₂x is not told from 0, (c₁ + 2c₂x)² ≤ t²·σ²·(V₁₁ +
        4x·V₁₂ + 4x²·V₂₂): all of them, where the curvature is not told from 0.

        Source: Fieller 1954, of a ratio of two normal estimates.
        """
        if self.n_opt is None or self.noise is None or self.profile.coefficients is None:
            return None
        _, c1, c2 = self.profile.coefficients
        covariance = self._covariance
        width = half_width([(self.noise, 1.0)])
        assert width is not None
        a, b, c = (
            factor * (product - width**2 * variance)
            for factor, product, variance in (
                (4, c2 * c2, covariance[2, 2]),
                (4, c1 * c2, covariance[1, 2]),
                (1, c1 * c1, covariance[1, 1]),
            )
        )
        if not a > 0:
            return Interval(0.0, math.inf, CONFIDENCE)
        root = math.sqrt(max(b * b - 4 * a * c, 0.0))
        low, high = ((-b + sign * root) / (2 * a) + self.profile.centre for sign in (-1, 1))
        return Interval(math.exp(low), math.exp(high), CONFIDENCE)

    def at(self, name: str, params: float) -> float:
        """What is known ``along`` the sizes at another N: linear in log N, beyond them, too."""
        x, y = np.log(np.sort(self.profile.params)), self.along[name]
        place = math.log(params)
        index = int(np.clip(np.searchsorted(x, place), 1, len(x) - 1))
        slope = (y[index] - y[index - 1]) / (x[index] - x[index - 1])
        return float(y[index] + slope * (place - x[index]))


def best_of(
    rows: Sequence[Row],
    profiles: Iterable[Profile],
    noise: Scatter | None,
    along: Mapping[str, FloatArray] | None = None,
) -> dict[float, Best]:
    """What an arm reaches, by budget.

    Args:
        rows: The runs that the profiles are of.
        profiles: One per budget.
        noise: σ of one of the runs.
        along: What else is known of each run, by name.
    """
    best = {}
    budgets, params = np.array(
        [[float(row[x]) for x in ("budget", "parameters")] for row in rows]
    ).T
    for profile in profiles:
        [at] = np.nonzero(budgets == profile.flops)
        at = at[np.argsort(params[at])]
        here = {name: values[at] for name, values in (along or {}).items()}
        run = min((rows[index] for index in at), key=nats_per_byte)
        best[profile.flops] = Best(run, profile, noise, here)
    return best


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two arms at the same budget, Δ = L_first - L_second: negative where the first is better.

    Attributes:
        first: The one.
        second: The other.
        by_size: Δ of each network that both have.
        by_surface: Δ of the optima of both surfaces, and its interval; None without them.
        comparisons: That the study makes.
    """

    first: Best
    second: Best
    by_size: tuple[float, ...]
    by_surface: tuple[float, Interval | None] | None
    comparisons: int

    @property
    def parts(self) -> list[tuple[Scatter | None, float]]:
        """Noise and variance of either loss."""
        return [(each.noise, each.variance) for each in (self.first, self.second)]

    @property
    def delta(self) -> float:
        """Δ of :attr:`Best.loss`, nats per byte."""
        return self.first.loss - self.second.loss

    @property
    def half_width(self) -> float | None:
        """Of Δ, alone at 95 %; None where noise has no size yet."""
        return half_width(self.parts)

    @property
    def joint_half_width(self) -> float | None:
        """Of Δ, so that all comparisons hold together at 95 %."""
        return half_width(self.parts, self.comparisons)

    @property
    def mean_by_size(self) -> tuple[float, float | None] | None:
        """Mean of ``by_size``, and t·s/n^½ of 95 %; None without common sizes."""
        if not self.by_size:
            return None
        if len(self.by_size) == 1:
            return self.by_size[0], None
        scatter = Scatter(statistics.stdev(self.by_size), len(self.by_size) - 1, "over sizes")
        return statistics.mean(self.by_size), half_width([(scatter, 1 / len(self.by_size))])

    @property
    def verdict(self) -> str:
        """What Δ allows to say.

        An arm without a minimum inside the sizes tried may be better than its best run, so that it
        may win and not lose.
        """
        better, worse = sorted((self.second, self.first), key=lambda each: each.loss)
        alone, joint = self.half_width, self.joint_half_width
        if alone is None or joint is None:
            return "not known: noise has no size yet"
        if not abs(self.delta) > alone:
            return "within noise"
        if worse.n_opt is None:
            return f"not decided: {worse.arm} has no minimum inside the sizes tried"
        return f"{better.arm} is better" + (", taken alone" if abs(self.delta) <= joint else "")


@dataclasses.dataclass(frozen=True)
class Change:
    """How much Δ of two arms differs between two budgets, Δ_later - Δ_earlier.

    Attributes:
        earlier: At the smaller budget.
        later: At the larger one.
    """

    earlier: Difference
    later: Difference

    @property
    def delta(self) -> float:
        """Nats per byte."""
        return self.later.delta - self.earlier.delta

    @property
    def half_width(self) -> float | None:
        """Of ``delta``, alone at 95 %."""
        return half_width([*self.earlier.parts, *self.later.parts])


def difference(
    first: tuple[float, Interval], second: tuple[float, Interval]
) -> tuple[float, Interval]:
    """Give d = a - b of two independent estimates, and its interval.

    From d - ((a - a_low)² + (b_high - b)²)^½ to d + ((a_high - a)² + (b - b_low)²)^½.

    Source: Donner and Zou 2012, the method of variance estimates recovery.

    >>> difference((3.0, Interval(0.0, 7.0, 0.95)), (1.0, Interval(-2.0, 5.0, 0.95)))
    (2.0, Interval(low=-3.0, high=7.0, confidence=0.95))
    """
    (a, of_a), (b, of_b) = first, second
    low = a - b - math.hypot(a - of_a.low, of_b.high - b)
    high = a - b + math.hypot(of_a.high - a, b - of_b.low)
    return a - b, Interval(low, high, of_a.confidence)


@dataclasses.dataclass(frozen=True)
class Place:
    """N_opt of one arm over that of another at the same budget.

    Attributes:
        first: The one.
        second: The other.
        size: What N counts: "N", or a name in :attr:`Best.along`.
    """

    first: Best
    second: Best
    size: str

    def _log(self, best: Best, params: float) -> float:
        if not 0 < params < math.inf:
            return math.copysign(math.inf, params - 1)
        return math.log(params) if self.size == "N" else best.at(self.size, params)

    @property
    def ratio(self) -> float | None:
        """First over second; None unless both have a minimum."""
        if self.first.n_opt is None or self.second.n_opt is None:
            return None
        return math.exp(
            self._log(self.first, self.first.n_opt) - self._log(self.second, self.second.n_opt)
        )

    @property
    def interval(self) -> Interval | None:
        """Of ``ratio``, from the intervals of both log N_opt; None without noise."""
        logs = []
        for best in (self.first, self.second):
            range_ = best.n_interval
            if range_ is None or best.n_opt is None:
                return None
            low, high = (self._log(best, end) for end in (range_.low, range_.high))
            logs.append((self._log(best, best.n_opt), Interval(low, high, CONFIDENCE)))
        _, between = difference(*logs)
        return Interval(math.exp(between.low), math.exp(between.high), CONFIDENCE)

    @property
    def verdict(self) -> str:
        """Whether the ratio is told from 1."""
        interval = self.interval
        if interval is None:
            return "not known"
        if interval.low > 1:
            return "larger"
        return "smaller" if interval.high < 1 else "not seen"
