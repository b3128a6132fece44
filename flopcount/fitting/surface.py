"""Approach 3: the parametric surface L(N, D) = E + A / N^α + B / D^β, by two objectives."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from flopcount import extras
from flopcount.fitting.results import (
    CONFIDENCE,
    Interval,
    Optimum,
    interval,
    interval_text,
    optimum,
    require_bootstrap,
)
from flopcount.fitting.runs import Runs, flag_notes
from flopcount.laws import LossSurface
from flopcount.sizes import quoted, require_choice, require_positive_number
from flopcount.tables import table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]

OBJECTIVES = {
    "huber-log": "Huber on the log of the loss",
    "variable-projection": "Huber on the loss by variable projection",
}
HUBER_DELTA = 1e-3
"""Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3 and Appendix D.3: of log loss. On the loss,
the same share of the runs' median loss, so that both objectives forgive the same outliers."""

PARAMETERS = ("E", "A", "B", "α", "β")
_GRID = (0.02, 2.0, 24)
_EXPONENTS = (1e-3, 5.0)
_MOST_REWEIGHTINGS = 200
_ABSENT = 1e-9
"""A term that is a smaller share of the loss at the runs' centre is none: its factor becomes 0."""


@dataclasses.dataclass(frozen=True, eq=False)
class SurfaceFit:
    """A fitted loss surface.

    Attributes:
        surface: The point estimate.
        objective: A key of :data:`OBJECTIVES`.
        value: The objective's value: the sum over the runs of Huber losses of log-loss residuals,
            or of loss residuals.
        residuals: Fitted minus observed, per run: of log losses or of losses, as the objective.
        samples: Bootstrap fits, one row of E, A, B, α, β each.
        intervals: By parameter name; empty without a bootstrap.
        failed: Bootstrap fits that did not end in finite parameters.
        runs: What was fitted, with flagged rows.
        confidence: Share of the bootstrap distribution in an interval.
    """

    surface: LossSurface
    objective: str
    value: float
    residuals: FloatArray
    samples: FloatArray = dataclasses.field(repr=False)
    intervals: dict[str, Interval | None]
    failed: int
    runs: Runs = dataclasses.field(repr=False)
    confidence: float

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
            "parameters": self._values(),
            "flops_per_param_token": self.surface.flops_per_param_token,
            "intervals": {
                name: found and dataclasses.asdict(found) for name, found in self.intervals.items()
            },
            "num_bootstrap": len(self.samples) + self.failed,
            "failed_bootstrap": self.failed,
            "residuals": self.residuals.tolist(),
            "runs": self.runs.to_dict(),
        }

    def __str__(self) -> str:
        kappa = self.surface.flops_per_param_token
        notes = [
            f"objective {self.value:.6g} over {len(self.runs.rows)} runs; optimum under "
            f"C = {kappa:.4g}·N·D",
            "a, b: exponents of C in N_opt, D_opt",
            self.runs.described,
        ]
        if self.failed:
            notes.append(f"{self.failed} bootstrap fits failed and are not in the intervals")
        notes += flag_notes(self.runs.flagged)
        return table(
            ["", "value", f"{self.confidence:.0%} interval"],
            [
                [name, f"{value:.5g}", interval_text(self.intervals.get(name))]
                for name, value in self._values().items()
            ],
            title=f"Approach 3, L = E + A/N^α + B/D^β: {OBJECTIVES[self.objective]}",
            note="\n".join(notes),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Points:
    """Runs in coordinates in which factors and exponents are nearly independent.

    Attributes:
        x: log N less its mean.
        y: log D less its mean.
        loss: L.
        weights: How often each run counts.
        delta: Huber's δ for residuals of the loss.
    """

    x: FloatArray
    y: FloatArray
    loss: FloatArray
    weights: FloatArray
    delta: float


def _design(points: _Points, alpha: float, beta: float) -> FloatArray:
    """The columns 1, N^-α, D^-β: with α and β given, the loss is linear in E, A', B'."""
    import numpy as np

    terms = np.exp(-alpha * points.x), np.exp(-beta * points.y)
    return np.stack([np.ones_like(points.x), *terms], axis=1)


def _least_squares(design: FloatArray, loss: FloatArray, weights: FloatArray) -> FloatArray:
    """E, A', B' ≥ 0 of least weighted squares."""
    import numpy as np

    root = np.sqrt(weights)
    weighted = design * root[:, None]
    scale = np.sqrt((weighted * weighted).sum(axis=0))
    target = loss * root
    solution: FloatArray = np.linalg.lstsq(weighted / scale, target, rcond=None)[0]
    if (solution < 0).any():
        solution = extras.load("scipy.optimize", "fit").nnls(weighted / scale, target)[0]
    result: FloatArray = solution / scale
    return result


def _huber_losses(residuals: FloatArray, delta: float) -> FloatArray:
    """r²/2 up to δ, δ·(|r| - δ/2) beyond."""
    import numpy as np

    size = np.abs(residuals)
    result: FloatArray = np.where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta))
    return result


def _robust(design: FloatArray, points: _Points, start: FloatArray) -> tuple[FloatArray, float]:
    """E, A', B' ≥ 0 of least Huber loss, and that loss, by iteratively reweighted least squares.

    A run beyond δ counts δ/|r| as much: the parabola so weighted touches the Huber loss at r from
    above, so that no step raises the sum, which is convex.

    Source: Huber and Ronchetti 2009, Robust Statistics, section 7.8.
    """
    import numpy as np

    factors, value = start, math.inf
    for _ in range(_MOST_REWEIGHTINGS):
        residuals = design @ factors - points.loss
        reached = float(points.weights @ _huber_losses(residuals, points.delta))
        if not reached < value * (1 - 1e-13):
            break
        best, value = factors, reached
        weights = points.weights / np.maximum(np.abs(residuals) / points.delta, 1)
        factors = _least_squares(design, points.loss, weights)
    return best, value


def _projected_residuals(exponents: FloatArray, points: _Points) -> FloatArray:
    import numpy as np

    design = _design(points, *exponents)
    factors = _least_squares(design, points.loss, points.weights)
    result: FloatArray = np.sqrt(points.weights) * (design @ factors - points.loss)
    return result


def _best_on_grid(points: _Points) -> FloatArray:
    """The pair of exponents on a coarse grid whose least squares are least."""
    import numpy as np

    grid = np.geomspace(*_GRID)
    values = {
        (alpha, beta): float((_projected_residuals(np.array([alpha, beta]), points) ** 2).sum())
        for alpha in grid[::2]
        for beta in grid[::2]
    }
    return np.array(min(values, key=values.__getitem__))


def _squares(points: _Points, start: FloatArray | None) -> FloatArray:
    """E, A', B', α, β of least squares: two exponents searched, three factors solved for."""
    import numpy as np

    optimize = extras.load("scipy.optimize", "fit")
    found = optimize.least_squares(
        _projected_residuals,
        # A fit without bounds may have found exponents beyond them.
        _best_on_grid(points) if start is None else np.clip(start[3:], *_EXPONENTS),
        args=(points,),
        bounds=_EXPONENTS,
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
        x_scale=(0.1, 0.1),
    )
    factors = _least_squares(_design(points, *found.x), points.loss, points.weights)
    return np.concatenate([factors, found.x])


def _variable_projection(points: _Points, start: FloatArray | None) -> FloatArray:
    """E, A', B', α, β of least Huber loss: two exponents searched, three factors solved for.

    With the factors at their optimum, the sum changes with an exponent as if they stood still, so
    that its gradient has two terms only.
    """
    import numpy as np

    optimize = extras.load("scipy.optimize", "fit")
    first = _squares(points, start)
    factors = first[:3]

    def projected(exponents: FloatArray) -> tuple[float, FloatArray]:
        nonlocal factors
        design = _design(points, *exponents)
        factors, value = _robust(design, points, factors)
        slope = points.weights * np.clip((design @ factors - points.loss) / points.delta, -1, 1)
        terms = design[:, 1:] * factors[1:]
        by_exponent = -(slope @ (terms[:, 0] * points.x)), -(slope @ (terms[:, 1] * points.y))
        return value / points.delta**2, np.array(by_exponent) / points.delta

    found = optimize.minimize(
        projected,
        first[3:],
        jac=True,
        method="L-BFGS-B",
        bounds=[_EXPONENTS, _EXPONENTS],
        options={"ftol": 1e-15, "gtol": 1e-6},
    )
    factors, _ = _robust(_design(points, *found.x), points, factors)
    return np.concatenate([factors, found.x])


def _huber(theta: FloatArray, points: _Points, log_loss: FloatArray) -> tuple[float, FloatArray]:
    """Sum of Huber losses in units of δ², and its gradient in log E, log A', log B', α, β."""
    import numpy as np

    e, a, b, alpha, beta = theta
    terms = np.stack([np.full_like(points.x, e), a - alpha * points.x, b - beta * points.y])
    highest = terms.max(axis=0)
    shares = np.exp(terms - highest)
    total = shares.sum(axis=0)
    shares /= total
    residual = (highest + np.log(total) - log_loss) / HUBER_DELTA
    size = np.abs(residual)
    value = np.where(size <= 1, 0.5 * residual * residual, size - 0.5)
    slope = points.weights * np.clip(residual, -1, 1) / HUBER_DELTA
    by_factor = shares @ slope
    by_exponent = -(shares[1] * points.x) @ slope, -(shares[2] * points.y) @ slope
    return float(points.weights @ value), np.concatenate([by_factor, by_exponent])


def _huber_log(points: _Points, start: FloatArray | None) -> FloatArray:
    """E, A', B', α, β of least Huber loss of the log, by BFGS from a variable projection."""
    import numpy as np

    optimize = extras.load("scipy.optimize", "fit")
    first = _squares(points, start)
    tiny = _ABSENT * 1e-3 * points.loss.min()
    theta = np.concatenate([np.log(np.maximum(first[:3], tiny)), first[3:]])
    log_loss = np.log(points.loss)
    found = optimize.minimize(
        _huber, theta, args=(points, log_loss), jac=True, method="BFGS", options={"gtol": 1e-4}
    )
    best = found.x if np.isfinite(found.fun) else theta
    return np.concatenate([np.exp(best[:3]), best[3:]])


_SOLVERS = {"huber-log": _huber_log, "variable-projection": _variable_projection}


def _solve(points: _Points, start: FloatArray | None, objective: str) -> FloatArray:
    import numpy as np

    found = _SOLVERS[objective](points, start)
    factors = np.where(found[:3] < _ABSENT * points.loss.min(), 0.0, found[:3])
    return np.concatenate([factors, found[3:]])


def fit_surface(
    runs: Runs,
    *,
    objective: str = "huber-log",
    num_bootstrap: int = 0,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> SurfaceFit:
    """Fit L(N, D) = E + A / N^α + B / D^β (approach 3).

    Objective ``"huber-log"`` is the published one: Σ Huber_δ(log L̂ - log L), δ = 1e-3. It is not
    separable, so BFGS polishes a start by variable projection. ``"variable-projection"`` is
    Σ Huber_δ(L̂ - L), δ = 1e-3 times the median loss: for given α and β the rest is a linear, robust
    problem with E, A, B >= 0, solved by reweighted least squares, so that the search runs in two
    dimensions. Both start from the least squares on the loss. The bootstrap draws runs with
    replacement.

    Args:
        runs: At least 5 runs, as :func:`~flopcount.fitting.read_runs` returns them.
        objective: ``"huber-log"`` or ``"variable-projection"``.
        num_bootstrap: Bootstrap fits; 0 gives no intervals.
        seed: Of the bootstrap's draws.
        confidence: Share of the bootstrap distribution that an interval holds.

    Returns:
        A :class:`SurfaceFit`; optima follow from C = κ·N·D, κ being the runs' own mean ratio.

    Raises:
        ImportError: If SciPy is not installed (extra ``fit``).
        TypeError: If an argument has the wrong type.
        ValueError: If there are fewer than 5 runs or fewer than 3 different N or D, or an
            argument is out of range.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3; variable projection as in Golub
    and Pereyra 1973, for scaling laws arXiv 2603.22339.

    >>> from flopcount.fitting import read_runs
    >>> from flopcount.laws import CHINCHILLA_SURFACE
    >>> grid = [(n, d) for n in (1e8, 1e9, 1e10) for d in (1e9, 1e10, 1e11)]
    >>> table = {"N": [n for n, _ in grid], "D": [d for _, d in grid],
    ...          "loss": [CHINCHILLA_SURFACE.loss(n, d) for n, d in grid]}
    >>> fit = fit_surface(read_runs(table), objective="variable-projection")
    >>> f"{fit.surface.e:.3f} {fit.surface.alpha:.3f} {fit.surface.beta:.3f}"
    '1.690 0.340 0.280'
    """
    import numpy as np

    if not isinstance(runs, Runs):
        raise TypeError(f"runs = {quoted(runs)}: expected what read_runs returns")
    require_choice("objective", objective, OBJECTIVES)
    require_bootstrap(num_bootstrap, seed, confidence)
    extras.load("scipy.optimize", "fit")
    distinct = len(np.unique(runs.params)), len(np.unique(runs.tokens))
    if len(runs.rows) < len(PARAMETERS) or min(distinct) < 3:
        raise ValueError(
            f"runs holds {len(runs.rows)} runs with {distinct[0]} different N and {distinct[1]} "
            "different D: expected at least 5 runs and 3 of each"
        )
    log_n, log_d = np.log(runs.params), np.log(runs.tokens)
    centre = float(log_n.mean()), float(log_d.mean())
    points = _Points(
        log_n - centre[0],
        log_d - centre[1],
        runs.loss,
        np.ones_like(runs.loss),
        HUBER_DELTA * float(np.median(runs.loss)),
    )
    # A steep exponent over a wide range overflows: such a trial, or sample, is infinitely bad.
    with np.errstate(over="ignore", invalid="ignore"):
        best = _solve(points, None, objective)
        residuals, value = _residuals(best, points, objective)
        samples, failed = _bootstrap(points, best, objective, num_bootstrap, seed)
        e, a, b, alpha, beta = _uncentred(best, centre).tolist()
        samples = _uncentred(samples, centre)
    columns = dict(zip(PARAMETERS, samples.T, strict=True))
    columns["a"] = columns["β"] / (columns["α"] + columns["β"])
    columns["b"] = 1 - columns["a"]
    source = f"approach 3, {OBJECTIVES[objective]}, {len(runs.rows)} runs"
    return SurfaceFit(
        surface=LossSurface(e, a, b, alpha, beta, source, runs.flops_per_param_token),
        objective=objective,
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


def _uncentred(parameters: FloatArray, centre: tuple[float, float]) -> FloatArray:
    """Factors of N^-α and D^-β from those of (N / N̄)^-α and (D / D̄)^-β."""
    import numpy as np

    result = np.array(parameters)
    result[..., 1] *= np.exp(result[..., 3] * centre[0])
    result[..., 2] *= np.exp(result[..., 4] * centre[1])
    return result


def _residuals(parameters: FloatArray, points: _Points, objective: str) -> tuple[FloatArray, float]:
    import numpy as np

    fitted = _design(points, *parameters[3:]) @ parameters[:3]
    if objective == "variable-projection":
        residuals, delta = fitted - points.loss, points.delta
    else:
        residuals, delta = np.log(fitted) - np.log(points.loss), HUBER_DELTA
    return residuals, float(_huber_losses(residuals, delta).sum())


def _bootstrap(
    points: _Points, best: FloatArray, objective: str, num_bootstrap: int, seed: int
) -> tuple[FloatArray, int]:
    """Fits to draws with replacement, each started from the best; too few N or D in one fail."""
    import numpy as np

    size = len(points.loss)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(size, np.full(size, 1 / size), size=num_bootstrap)
    fits = []
    for counts in draws:
        drawn = counts > 0
        weights = counts[drawn].astype(np.float64)
        sample = _Points(
            points.x[drawn], points.y[drawn], points.loss[drawn], weights, points.delta
        )
        if min(len(np.unique(sample.x)), len(np.unique(sample.y))) < 3:
            continue
        fit = _solve(sample, best, objective)
        if np.isfinite(fit).all():
            fits.append(fit)
    samples = np.array(fits).reshape(len(fits), len(PARAMETERS))
    return samples, num_bootstrap - len(fits)
