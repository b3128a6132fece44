"""Approach 3: the parametric surface L(N, D) = E + A / N^α + B / D^β, by three objectives."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import TYPE_CHECKING, Any

from flopcount.isoflop.laws import LossSurface
from flopcount.isoflop.results import (
    CONFIDENCE,
    Interval,
    Optimum,
    interval,
    interval_text,
    optimum,
    plain,
    require_bootstrap,
)
from flopcount.isoflop.runs import Runs, flag_notes
from flopcount.pictures import Drawn
from flopcount.sizes import quoted, require_choice, require_positive_number
from flopcount.tables import Shown, Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from flopcount.isoflop.results import FloatArray

    IntArray = npt.NDArray[np.intp]

OBJECTIVES = {
    "huber-log": "Huber on the log of the loss",
    "variable-projection": "Huber on the loss by variable projection",
    "least-squares-log": "least squares on the log of the loss",
}
"""What a fit of a surface may minimise."""
HUBER_DELTA = 1e-3
"""Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3 and Appendix D.3: of log loss. On the loss,
the same share of the runs' median loss, so that both objectives forgive the same outliers."""

PARAMETERS = ("E", "A", "B", "α", "β")
EXPONENTS = (1e-3, 20.0)
"""Bounds of α and β; at the upper one, a term that is 1 at a size is 1e-6 at twice it."""
_LOWEST = (0.0, 0.0, 0.0, EXPONENTS[0], EXPONENTS[0])
_HIGHEST = (math.inf, math.inf, math.inf, EXPONENTS[1], EXPONENTS[1])

_GRID = (0.03, 6.0, 6)
"""Exponents from which a search starts, each α with each β."""
_SHARES = (0.6, 0.2, 0.2)
"""Of the median loss, in E and in the terms of the smallest sizes, where a search starts."""
_MOST_STEPS = 300
_NUMBERS_AT_ONCE = 6_000
"""Searches times runs in one array operation: more leave the cache."""
_SAMPLES_AT_ONCE = 256
_CONVERGED = 1e-11
_NOTHING = 1e-20
"""A sum of residuals below this is what rounding leaves of none."""
_SAME = 1e-9
"""A value at a bound that is no higher by more than this share is as good, and is taken."""


@dataclasses.dataclass(frozen=True, eq=False)
class SurfaceFit(Shown, Drawn):
    """A fitted loss surface.

    Attributes:
        surface: The point estimate.
        objective: A key of :data:`OBJECTIVES`.
        delta: Huber's δ, of log-loss residuals, or as a share of the median loss; None for least
            squares.
        value: The objective's value: the sum over the runs of Huber losses of log-loss residuals,
            or of loss residuals, or of half their squares.
        residuals: Fitted minus observed, per run: of log losses or of losses, as the objective.
        samples: Bootstrap fits, one row of E, A, B, α, β each.
        intervals: By parameter name; empty without a bootstrap.
        failed: Bootstrap fits that did not end in finite parameters.
        runs: What was fitted, with flagged rows.
        confidence: Share of the bootstrap distribution in an interval.
    """

    surface: LossSurface
    objective: str
    delta: float | None
    value: float
    residuals: FloatArray
    samples: FloatArray = dataclasses.field(repr=False)
    intervals: dict[str, Interval | None]
    failed: int
    runs: Runs = dataclasses.field(repr=False)
    confidence: float

    @property
    def bounds(self) -> tuple[str, ...]:
        """The parameters that ended at a bound of the search, so that the runs do not fix them."""
        s = self.surface
        low, high = EXPONENTS
        factors = {"E": s.e, "A": s.a, "B": s.b}
        bounds = [f"{name} = 0" for name, value in factors.items() if value == 0]
        for name, value, factor in (("α", s.alpha, s.a), ("β", s.beta, s.b)):
            if factor and not low < value < high:
                bounds.append(f"{name} = {value:g}")
        return tuple(bounds)

    def predict(self, flops: float) -> Optimum:
        """N_opt, D_opt and the loss there for a budget of ``flops``, with intervals.

        Raises:
            TypeError: If ``flops`` is no number.
            ValueError: If it is not positive and finite, or the surface has no optimum.
        """
        import numpy as np

        budget = require_positive_number("flops", flops)
        best = self.surface.n_opt(budget), self.surface.d_opt(budget)
        e, a, b, alpha, beta = self.samples.T
        log_product = math.log(budget / self.surface.flops_per_param_token)
        # A sample with A or B = 0 has its optimum at infinity, which no interval counts.
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            log_n = (np.log(alpha * a) - np.log(beta * b) + beta * log_product) / (alpha + beta)
            log_d = log_product - log_n
            loss = e + a * np.exp(-alpha * log_n) + b * np.exp(-beta * log_d)
            sizes = np.exp(log_n), np.exp(log_d)
        return optimum(
            budget,
            (*best, self.surface.loss(*best)),
            (*sizes, loss),
            self.confidence,
            f"approach 3, {OBJECTIVES[self.objective]}",
            (self.runs.params, self.runs.tokens),
            "" if self.surface.e else "E = 0, its bound: no floor was found",
        )

    def _values(self) -> dict[str, float]:
        s = self.surface
        a = s.n_exponent
        values = (s.e, s.a, s.b, s.alpha, s.beta)
        return {**dict(zip(PARAMETERS, values, strict=True)), "a": a, "b": 1 - a}

    def to_dict(self) -> dict[str, Any]:
        """The fit as plain data."""
        return {
            "method": "approach 3",
            "surface": dataclasses.asdict(self.surface),
            "objective": self.objective,
            "objective_name": OBJECTIVES[self.objective],
            "objective_value": self.value,
            "delta": self.delta,
            "at_bounds": self.bounds,
            "parameters": self._values(),
            "flops_per_param_token": self.surface.flops_per_param_token,
            "intervals": plain(self.intervals),
            "num_bootstrap": len(self.samples) + self.failed,
            "failed_bootstrap": self.failed,
            "residuals": self.residuals.tolist(),
            "runs": self.runs.to_dict(),
        }

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per run, with its residual."""
        return self.runs.records(residual=self.residuals.tolist())

    def _draw(self, axes: Any) -> None:
        import numpy as np

        params, tokens = (
            np.geomspace(values.min() / 1.5, values.max() * 1.5, 40)
            for values in (self.runs.params, self.runs.tokens)
        )
        losses = [[self.surface.loss(n, d) for n in params.tolist()] for d in tokens.tolist()]
        lines = axes.contour(params, tokens, losses, levels=12, colors="0.6", linewidths=0.8)
        axes.clabel(lines, fontsize="small")
        drawn = axes.scatter(self.runs.params, self.runs.tokens, c=self.runs.loss, zorder=3)
        axes.figure.colorbar(drawn, label="loss of the run")
        if self.surface.a and self.surface.b:
            budgets = np.geomspace(self.runs.flops.min(), self.runs.flops.max(), 40).tolist()
            best = [(self.surface.n_opt(c), self.surface.d_opt(c)) for c in budgets]
            axes.plot(*zip(*best, strict=True), "--", color="black", label="compute-optimal")
            axes.legend(fontsize="small")
        axes.set(
            xscale="log", yscale="log", xlabel="parameters N", ylabel="tokens D",
            xlim=(params[0], params[-1]), ylim=(tokens[0], tokens[-1]),
            title="Approach 3: contours of the loss",
        )  # fmt: skip

    def _tables(self) -> list[Table | str]:
        kappa = self.surface.flops_per_param_token
        notes = [
            f"at a bound of the search, not fixed by the runs: {bound}" for bound in self.bounds
        ]
        notes += [
            f"objective {self.value:.6g} over {len(self.runs.rows)} runs; optimum under "
            f"C = {kappa:.4g}·N·D",
            "a, b: exponents of C in N_opt, D_opt",
            self.runs.described,
        ]
        if self.failed:
            notes.append(f"{self.failed} bootstrap fits failed and are not in the intervals")
        notes += flag_notes(self.runs.flagged)
        return [
            Table(
                ["", "value", f"{self.confidence:.0%} interval"],
                [
                    [name, f"{value:.5g}", interval_text(self.intervals.get(name))]
                    for name, value in self._values().items()
                ],
                title=f"Approach 3, L = E + A/N^α + B/D^β: {OBJECTIVES[self.objective]}",
                note="\n".join(notes),
            )
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class _Problem:
    """Samples of the same runs, in coordinates in which no search has far to go.

    Sizes count from the smallest that is drawn, so that A' and B' are shares of a loss there: as
    an exponent grows, the loss at that size stands still and the others' terms vanish.

    Attributes:
        x: log N less its smallest, a row per sample.
        y: log D less its smallest.
        weights: How often each sample holds each run.
        target: Losses, or their logs.
        log: Whether residuals are of logs.
        unit: Residuals are divided by this.
        cap: Where Huber's parabola ends, in units; infinite for least squares.
    """

    x: FloatArray
    y: FloatArray
    weights: FloatArray
    target: FloatArray
    log: bool
    unit: float
    cap: float

    def values(self, theta: FloatArray, sample: IntArray) -> tuple[FloatArray, ...]:
        """The sum of losses, its gradient, its Hessian and a matrix that bounds it, per row.

        The loss is ρ(r) of a residual r of the model m. A run beyond the cap κ counts κ/|r| in the
        bound: the parabola so weighted touches ρ at r from above (Huber and Ronchetti 2009, Robust
        Statistics, section 7.8).

        Args:
            theta: E, A', B', α, β, a row per search.
            sample: The sample that each row is fitted to.
        """
        import numpy as np

        x, y, weights = self.x[sample], self.y[sample], self.weights[sample]
        e, a, b, alpha, beta = theta.T[:, :, None]
        n_term, d_term = np.exp(-alpha * x), np.exp(-beta * y)
        by_alpha, by_beta = -x * n_term, -y * d_term
        model = e + a * n_term + b * d_term
        slopes = np.stack([np.ones_like(x), n_term, d_term, a * by_alpha, b * by_beta], axis=1)
        residual = ((np.log(model) if self.log else model) - self.target) / self.unit
        size = np.maximum(np.abs(residual), sys.float_info.min)
        inner = np.minimum(size, self.cap)
        total = (weights * inner * (size - 0.5 * inner)).sum(axis=1)
        weights = weights / self.unit
        force = weights * np.clip(residual, -self.cap, self.cap)
        bound = weights / self.unit * inner / size
        curvature = np.where(size <= self.cap, weights / self.unit, 0)
        if self.log:
            curvature = (curvature - force) / model**2
            bound, force = bound / model**2, force / model
        across = slopes.transpose(0, 2, 1)
        gradient = (slopes @ force[:, :, None])[:, :, 0]
        hessian = (slopes * curvature[:, None]) @ across
        for factor, exponent, slope, where in ((1, 3, by_alpha, x), (2, 4, by_beta, y)):
            mixed = (force * slope).sum(axis=1)
            hessian[:, factor, exponent] += mixed
            hessian[:, exponent, factor] += mixed
            bent = -(force * where * slope).sum(axis=1)
            hessian[:, exponent, exponent] += theta[:, factor] * bent
        return total, gradient, hessian, (slopes * bound[:, None]) @ across


def _descend(
    problem: _Problem, theta: FloatArray, sample: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Every row of E, A', B', α, β where damped Newton steps within the bounds end, and the sums.

    A parameter at a bound stays there while the gradient pushes it outwards. Damping adds a
    multiple of the bounding matrix, with which the step is one of reweighted least squares.
    """
    import numpy as np

    ends = []
    rows = max(16, _NUMBERS_AT_ONCE // len(problem.target))
    for first in range(0, len(theta), rows):
        chunk = slice(first, first + rows)
        ends.append(_descend_together(problem, theta[chunk], sample[chunk]))
    thetas, values = zip(*ends, strict=True)
    return np.concatenate(thetas), np.concatenate(values)


def _descend_together(
    problem: _Problem, theta: FloatArray, sample: IntArray
) -> tuple[FloatArray, FloatArray]:
    import numpy as np

    lowest, highest = np.array(_LOWEST), np.array(_HIGHEST)
    diagonal = np.arange(len(PARAMETERS))
    here = [theta.copy(), *problem.values(theta, sample)]
    damping = np.full(len(theta), 1e-2)
    live = np.arange(len(theta))
    for _ in range(_MOST_STEPS):
        at, value, gradient, hessian, bound = (array[live] for array in here)
        lam = damping[live]
        free = ~((at <= lowest) & (gradient > 0) | (at >= highest) & (gradient <= 0))
        spread = bound[:, diagonal, diagonal]
        scale = np.sqrt(np.maximum(spread, 1e-12 * spread.max(axis=1, keepdims=True)))
        matrix = (hessian + lam[:, None, None] * bound) / (scale[:, :, None] * scale[:, None])
        matrix *= free[:, :, None] & free[:, None]
        matrix[:, diagonal, diagonal] += ~free + 1e-10 + 1e-3 * lam[:, None]
        pull = free * gradient / scale
        step = -np.linalg.solve(matrix, pull[:, :, None])[:, :, 0]
        expected = -(step * pull).sum(axis=1)
        uphill = ~(expected > 0)
        step[uphill] = 0
        there = np.clip(at + step / scale, lowest, highest)
        new = [there, *problem.values(there, sample[live])]
        better = new[1] < value
        for array, arrived in zip(here, new, strict=True):
            array[live[better]] = arrived[better]
        gain = np.where(better, value - new[1], 0)
        ended = better & (gain <= _CONVERGED * value) & (lam <= 1)
        ended |= (lam > 1e8) | ~uphill & (expected <= 1e-2 * _CONVERGED * value)
        ended |= value < _NOTHING
        lam = np.where(better, np.where(gain > 0.2 * expected, 0.2, 1.0), 6.0) * lam
        damping[live] = np.maximum(lam, 1e-9)
        live = live[~ended]
        if not len(live):
            break
    return here[0], here[1]


def _search(problem: _Problem) -> FloatArray:
    """E, A', B', α, β of the least sum per sample, of descents from every pair of exponents.

    Each goes to its end: those ahead after some steps are not always those that win.
    """
    import numpy as np

    grid = np.geomspace(*_GRID)
    median = float(np.median(np.exp(problem.target) if problem.log else problem.target))
    factors = median * np.array(_SHARES)
    starts = np.array([[*factors, alpha, beta] for alpha in grid for beta in grid])
    fits = []
    for first in range(0, len(problem.weights), _SAMPLES_AT_ONCE):
        samples = np.arange(first, min(first + _SAMPLES_AT_ONCE, len(problem.weights)))
        theta = np.tile(starts, (len(samples), 1))
        ends, values = _descend(problem, theta, np.repeat(samples, len(starts)))
        values = np.where(np.isnan(values), np.inf, values).reshape(len(samples), -1)
        best = np.arange(len(samples)) * len(starts) + values.argmin(axis=1)
        fits.append(_settle(problem, ends[best], samples))
    return np.concatenate(fits)


def _settle(problem: _Problem, theta: FloatArray, sample: IntArray) -> FloatArray:
    """The same fits with every parameter at its bound whose bound is as good.

    A term that is nothing becomes 0, and an exponent that only ever grew is at its highest.
    """
    import numpy as np

    theta = theta.copy()
    value, *_ = problem.values(theta, sample)
    good = np.maximum(value * (1 + _SAME), _NOTHING)
    for index, bound in ((0, 0.0), (1, 0.0), (2, 0.0), (3, EXPONENTS[1]), (4, EXPONENTS[1])):
        moved = theta.copy()
        moved[:, index] = bound
        as_good = problem.values(moved, sample)[0] <= good
        if index > 2:
            as_good &= theta[:, index - 2] > 0
        theta[as_good] = moved[as_good]
    return theta


def fit_surface(
    runs: Runs,
    *,
    objective: str = "huber-log",
    delta: float | None = None,
    num_bootstrap: int = 0,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> SurfaceFit:
    """Fit L(N, D) = E + A / N^α + B / D^β (approach 3), E, A, B >= 0, α and β in 1e-3 to 20.

    Objective ``"huber-log"`` is the published one: Σ Huber_δ(log L̂ - log L), δ = 1e-3.
    ``"variable-projection"`` is Σ Huber_δ(L̂ - L), δ = 1e-3 times the median loss.
    ``"least-squares-log"`` is Σ (log L̂ - log L)² / 2, which outliers move.

    None is convex, so that a descent from one start may end elsewhere, most of all where a factor
    is 0 and its exponent has no effect. Each fit, bootstrap fits too, therefore descends from
    every pair of exponents of a grid by Newton's method within the bounds. The bootstrap draws
    runs with replacement.

    Args:
        runs: At least 5 runs, as :func:`~flopcount.isoflop.runs.read_runs` returns them.
        objective: A key of :data:`OBJECTIVES`.
        delta: Huber's δ; 1e-3 unless given, and none for ``"least-squares-log"``.
        num_bootstrap: Bootstrap fits; 0 gives no intervals.
        seed: Of the bootstrap's draws.
        confidence: Share of the bootstrap distribution that an interval holds.

    Returns:
        A :class:`SurfaceFit`; optima follow from C = κ·N·D, κ being the runs' own mean ratio.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there are fewer than 5 runs or fewer than 3 different N or D, or an
            argument is out of range.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3; on the loss itself arXiv
    2603.22339.

    >>> from flopcount import read_runs
    >>> from flopcount.isoflop.laws import CHINCHILLA_SURFACE
    >>> grid = [(n, d) for n in (1e8, 1e9, 1e10) for d in (1e9, 1e10, 1e11)]
    >>> table = {"N": [n for n, _ in grid], "D": [d for _, d in grid],
    ...          "loss": [CHINCHILLA_SURFACE.loss(n, d) for n, d in grid]}
    >>> fit = fit_surface(read_runs(table))
    >>> f"{fit.surface.e:.3f} {fit.surface.alpha:.3f} {fit.surface.beta:.3f}"
    '1.690 0.340 0.280'
    """
    import numpy as np

    if not isinstance(runs, Runs):
        raise TypeError(f"runs = {quoted(runs)}: expected what read_runs returns")
    require_choice("objective", objective, OBJECTIVES)
    delta = _require_delta(delta, objective)
    require_bootstrap(num_bootstrap, seed, confidence)
    distinct = len(np.unique(runs.params)), len(np.unique(runs.tokens))
    if len(runs.rows) < len(PARAMETERS) or min(distinct) < 3:
        raise ValueError(
            f"runs holds {len(runs.rows)} runs with {distinct[0]} different N and {distinct[1]} "
            "different D: expected at least 5 runs and 3 of each"
        )
    size = len(runs.loss)
    # A trial may overflow, or have a loss of 0 whose log is infinite: it is infinitely bad.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        points, _ = _fits(runs, np.ones((1, size)), objective, delta)
        if not len(points):
            raise ValueError("runs: A or B of the fitted surface exceeds a float; scale N or D")
        best = points[0]
        draws = np.random.default_rng(seed).multinomial(
            size, np.full(size, 1 / size), size=num_bootstrap
        )
        samples, failed = _fits(runs, draws, objective, delta)
    e, a, b, alpha, beta = best.tolist()
    source = f"approach 3, {OBJECTIVES[objective]}, {size} runs"
    surface = LossSurface(e, a, b, alpha, beta, source, runs.flops_per_param_token)
    residuals, value = _residuals(surface, runs, objective, delta)
    columns = dict(zip(PARAMETERS, samples.T, strict=True))
    columns["a"] = columns["β"] / (columns["α"] + columns["β"])
    columns["b"] = 1 - columns["a"]
    return SurfaceFit(
        surface=surface,
        objective=objective,
        delta=delta,
        value=value,
        residuals=residuals,
        samples=samples,
        intervals={
            name: interval(column, confidence) for name, column in columns.items() if num_bootstrap
        },
        failed=failed,
        runs=runs,
        confidence=confidence,
    )


def _require_delta(delta: object, objective: str) -> float | None:
    if objective == "least-squares-log":
        if delta is not None:
            raise ValueError(f"delta = {quoted(delta)}: expected none with {objective!r}")
        return None
    return HUBER_DELTA if delta is None else require_positive_number("delta", delta)


def _fits(
    runs: Runs, draws: npt.NDArray[Any], objective: str, delta: float | None
) -> tuple[FloatArray, int]:
    """E, A, B, α, β of every draw, and how many failed: too few N or D, or beyond a float."""
    import numpy as np

    log_n, log_d = np.log(runs.params), np.log(runs.tokens)
    enough = [min(len(set(log_n[draw > 0])), len(set(log_d[draw > 0]))) >= 3 for draw in draws]
    drawn = draws[enough]
    is_log = objective != "variable-projection"
    # Least squares too have a unit in which a start is neither near nor far.
    unit = (delta or HUBER_DELTA) * (1.0 if is_log else float(np.median(runs.loss)))
    smallest = [
        np.where(drawn > 0, logs, np.inf).min(axis=1, initial=np.inf, keepdims=True)
        for logs in (log_n, log_d)
    ]
    problem = _Problem(
        # A run that is not drawn may be smaller, and has no weight.
        x=np.maximum(log_n - smallest[0], 0),
        y=np.maximum(log_d - smallest[1], 0),
        weights=drawn.astype(np.float64),
        target=np.log(runs.loss) if is_log else runs.loss,
        log=is_log,
        unit=unit,
        cap=1.0 if delta else math.inf,
    )
    fits = _search(problem) if len(drawn) else np.empty((0, len(PARAMETERS)))
    for factor, exponent, logs in ((1, 3, smallest[0]), (2, 4, smallest[1])):
        present = fits[:, factor] > 0
        fits[present, factor] *= np.exp(fits[present, exponent] * logs[present, 0])
    finite = np.isfinite(fits).all(axis=1)
    return fits[finite], len(draws) - int(finite.sum())


def _residuals(
    surface: LossSurface, runs: Runs, objective: str, delta: float | None
) -> tuple[FloatArray, float]:
    """Fitted less observed, and the objective: r²/2 up to δ, δ·(|r| - δ/2) beyond."""
    import numpy as np

    fitted = surface.e + surface.a * runs.params**-surface.alpha
    fitted = fitted + surface.b * runs.tokens**-surface.beta
    if objective == "variable-projection":
        residuals, cap = fitted - runs.loss, (delta or 1) * float(np.median(runs.loss))
    else:
        residuals, cap = np.log(fitted) - np.log(runs.loss), delta or math.inf
    inner = np.minimum(np.abs(residuals), cap)
    return residuals, float((inner * (np.abs(residuals) - 0.5 * inner)).sum())
