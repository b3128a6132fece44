"""What a study's committed results say: noise, optima, differences, what another count moves.

Everything is computed from run tables and predictions; nothing is trained. Intervals of optima and
differences rest on one standard deviation σ of a run's loss, the larger of two: s over seeds, and r
of the runs about the parabolas. Losses are nats per byte.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import flopcount
from flopcount.conventions import CONVENTIONS
from flopcount.count import Count
from flopcount.isoflop.profiles import Profile, ProfilesFit
from flopcount.isoflop.results import CONFIDENCE, Interval, interval
from flopcount.isoflop.runs import Runs
from flopcount.isoflop.surface import SurfaceFit
from models.results import read_table
from models.study.design import (
    BOOTSTRAP,
    PREDICTION,
    Planned,
    Row,
    Study,
    at_rule,
    plan,
    sized,
)
from models.training.run import ModelConfig
from models.training.throughput import measure

SURFACE = "3, variable-projection"
"""The fit whose optimum is recounted."""


def nats_per_byte(row: Row) -> float:
    """Validation loss: nats of the targets over their bytes."""
    return float(row["validation_loss"]) / float(row["bytes_per_token"])


def runs_of(rows: Sequence[Row]) -> Runs:
    """Rows of a run table as the fits read them, with the loss in nats per byte."""
    columns: dict[str, list[Any]] = {
        name: [row[name] for row in rows] for name in ("budget", "parameters", "tokens", "flops")
    }
    losses = [nats_per_byte(row) for row in rows]
    return flopcount.read_runs(columns | {"nats_per_byte": losses}, loss="nats_per_byte")


def approaches(
    rows: Sequence[Row], num_bootstrap: int
) -> dict[str, ProfilesFit | SurfaceFit | str]:
    """Approach 2 and both objectives of approach 3, by name; in words why one fits nothing.

    A surface takes a search for each bootstrap fit, a parabola a small linear system: the former
    get a tenth of them. Without rows there are none.
    """
    if not rows:
        return {}
    runs, fewer = runs_of(rows), num_bootstrap // 10
    fits: dict[str, ProfilesFit | SurfaceFit | str] = {
        "2": flopcount.fit_isoflop_profiles(runs, num_bootstrap=num_bootstrap)
    }
    for objective in ("huber-log", "variable-projection"):
        name = f"3, {objective}"
        try:
            fits[name] = flopcount.fit_surface(runs, objective=objective, num_bootstrap=fewer)
        except ValueError as error:
            fits[name] = str(error)
    return fits


@dataclasses.dataclass(frozen=True)
class Results:
    """A study's committed results, checked against its design.

    Attributes:
        study: The design.
        planned: All its runs that are known, with those that test the predictions.
        runs: A row per run that has ended, in the plan's order.
        calls: Of every call, device, versions, commit, date and command, in the order of dates.
        predictions: The files.
    """

    study: Study
    planned: tuple[Planned, ...]
    runs: tuple[Row, ...]
    calls: tuple[dict[str, Any], ...]
    predictions: tuple[Path, ...]

    def of(self, arm: str, convention: str = "causal") -> list[Row]:
        """An arm's runs by one count at the rule's rate, without those that test a prediction."""
        return [
            row
            for row in at_rule(self.runs, arm, convention)
            if not row["stage"].startswith(PREDICTION)
            and math.isfinite(float(row["validation_loss"]))
        ]


def read_results(study: Study, folders: Sequence[Path]) -> Results:
    """Read ``runs.csv``, ``*.jsonl`` and ``prediction*.json``.

    Raises:
        ValueError: If no run is there, a run is there twice with different values, is not of the
            study, or has other steps; or if runs of an arm differ in text, so that their losses do
            not compare.
    """
    predictions = tuple(sorted({p for folder in folders for p in folder.glob("prediction*.json")}))
    rows: dict[str, Row] = {}
    for folder in folders:
        for row in read_table(folder / "runs.csv"):
            if rows.setdefault(row["run"], row) != row:
                raise ValueError(f"results must hold a run once, got two of {row['run']}")
    if not rows:
        where = ", ".join(map(str, folders))
        raise ValueError(f"results must hold rows of runs.csv, got none in {where}")
    planned = plan(study, rows.values(), predictions=predictions)
    by_name = {each.name: each.run.config for each in planned}
    for name, row in rows.items():
        if name not in by_name:
            raise ValueError(f"results must be of the study, got {name}, which is not")
        was = int(row["steps"]), float(row["learning_rate"])
        now = by_name[name].steps, by_name[name].recipe.learning_rate
        if was != now:
            raise ValueError(f"{name} must have the study's steps and rate {now}, got {was}")
    for tokenizer in {arm.tokenizer for arm in study.arms.values()}:
        arms = [name for name, arm in study.arms.items() if arm.tokenizer == tokenizer]
        texts = sorted({row["corpus"] for row in rows.values() if row["arm"] in arms})
        if len(texts) > 1:
            raise ValueError(f"results must be of one corpus for {tokenizer}, got {texts}")
    calls = [
        json.loads(line)
        for folder in folders
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return Results(
        study,
        tuple(planned),
        tuple(rows[each.name] for each in planned if each.name in rows),
        tuple(sorted(calls, key=lambda call: call["date"])),
        predictions,
    )


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

    def half_width(self, variance: float, comparisons: int = 1) -> float:
        """t·σ·h^½, t Student's for a confidence of 1 - 0.05 / ``comparisons`` (Bonferroni).

        All of so many intervals hold together at 95 %.

        Args:
            variance: h, of what is estimated, in units of σ².
            comparisons: Intervals that are to hold together.
        """
        quantile = stats.t.ppf(1 - (1 - CONFIDENCE) / comparisons / 2, self.freedom)
        return float(quantile * self.deviation * math.sqrt(variance))

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


def seeds(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[float]]:
    """Losses of what was trained with several seeds, by arm, budget and shape."""
    losses: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        key = row["arm"], row["budget"], f"{row['num_channels']}×{row['num_layers']}"
        losses.setdefault(key, []).append(nats_per_byte(row))
    return {key: each for key, each in losses.items() if len(each) > 1}


def scatter_of_seeds(groups: Iterable[Sequence[float]]) -> Scatter | None:
    """Pool s = (Σᵢ Σⱼ (Lᵢⱼ - L̄ᵢ)² / ν)^½, ν = Σᵢ (nᵢ - 1), over groups i; None without seeds."""
    groups = list(groups)
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    squares = sum(float(np.var(group)) * len(group) for group in groups)
    return Scatter(math.sqrt(squares / freedom), freedom, "over seeds")


def scatter_about_parabolas(fits: Iterable[ProfilesFit]) -> Scatter | None:
    """Pool r = (Σ residual² / ν)^½, ν = Σ (n - 3), over the profiles; None without a spare run."""
    profiles = [p for fit in fits for p in fit.profiles if p.coefficients and len(p.loss) > 3]
    freedom = sum(len(profile.loss) - 3 for profile in profiles)
    if not freedom:
        return None
    squares = sum(float((profile.residuals**2).sum()) for profile in profiles)
    return Scatter(math.sqrt(squares / freedom), freedom, "about the parabolas")


@dataclasses.dataclass(frozen=True, eq=False)
class Best:
    """What an arm reaches at one budget.

    Attributes:
        run: Of seed 0, the run of the least loss.
        profile: Its budget's parabola, if there are three sizes.
        noise: σ of one run; None while it has no size.
    """

    run: Row
    profile: Profile
    noise: Scatter | None

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
        """At the parabola's vertex; of the best run where there is none."""
        at_vertex = self.profile.loss_opt
        return nats_per_byte(self.run) if at_vertex is None else at_vertex

    @property
    def variance(self) -> float:
        """Of ``loss``, in units of σ²: zᵀ(XᵀX)⁻¹z at the vertex, z = (1, x, x²); 1 of one run.

        At the vertex the slope is 0, so that where it lies adds nothing in first order.
        """
        if self.n_opt is None:
            return 1.0
        x = math.log(self.n_opt) - self.profile.centre
        return self._variance_along(1.0, x, x * x)

    @property
    def half_width(self) -> float | None:
        """Of the interval of ``loss``; None without noise."""
        return None if self.noise is None else self.noise.half_width(self.variance)

    @property
    def place_variance(self) -> float:
        """Of log N_opt, in units of σ²: gᵀ(XᵀX)⁻¹g, g = (0, -1, -2x) / 2c₂ at the vertex x.

        From x = -c₁ / 2c₂, in first order.

        Raises:
            ValueError: If there is no vertex.
        """
        if self.n_opt is None or self.profile.coefficients is None:
            raise ValueError(f"{self.arm} must have a vertex at {self.budget:g} FLOPs")
        x = math.log(self.n_opt) - self.profile.centre
        curvature = 2 * self.profile.coefficients[2]
        return self._variance_along(0.0, -1 / curvature, -2 * x / curvature)

    def _variance_along(self, *gradient: float) -> float:
        """Of a function of c₀, c₁, c₂ with this gradient, in units of σ²."""
        x = np.log(self.profile.params) - self.profile.centre
        design = np.vander(x, 3, increasing=True)
        return float(np.square(np.linalg.pinv(design).T @ gradient).sum())

    @property
    def n_interval(self) -> Interval | None:
        """Of N_opt; None without a vertex or noise."""
        return None if self.n_opt is None else _about(self.n_opt, self.noise, self.place_variance)


def _about(value: float, noise: Scatter | None, variance: float) -> Interval | None:
    """Of a value whose logarithm has a variance in units of σ²: value · e^±half width."""
    if noise is None:
        return None
    factor = math.exp(noise.half_width(variance))
    return Interval(value / factor, value * factor, CONFIDENCE)


def best_of(rows: Sequence[Row], fit: ProfilesFit, noise: Scatter | None) -> dict[float, Best]:
    """What an arm reaches, by budget."""
    best = {}
    for profile in fit.profiles:
        ran = [row for row in rows if float(row["budget"]) == profile.flops and row["seed"] == "0"]
        if ran:
            best[profile.flops] = Best(min(ran, key=nats_per_byte), profile, noise)
    return best


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two arms at the same budget, Δ = L_first - L_second: negative where the first is better.

    Attributes:
        first: The one.
        second: The other.
        comparisons: That the study makes, whose intervals are to hold together.
    """

    first: Best
    second: Best
    comparisons: int

    @property
    def delta(self) -> float:
        """Δ of :attr:`Best.loss`, nats per byte."""
        return self.first.loss - self.second.loss

    @property
    def half_width(self) -> float | None:
        """t·σ·(h₁ + h₂)^½; None where noise has no size yet."""
        variance = self.first.variance + self.second.variance
        noise = self.first.noise
        return None if noise is None else noise.half_width(variance, self.comparisons)

    @property
    def verdict(self) -> str:
        """What Δ allows to say.

        An arm without a minimum inside the sizes tried may be better than its best run, so that it
        may win and not lose.
        """
        better, worse = sorted((self.second, self.first), key=lambda each: each.loss)
        if self.half_width is None:
            return "not known: noise has no size yet"
        if not abs(self.delta) > self.half_width:
            return "within noise"
        if worse.n_opt is None:
            return f"not decided: {worse.arm} has no minimum inside the sizes tried"
        return f"{better.arm} is better"


@dataclasses.dataclass(frozen=True)
class Recount:
    """The optimum of an arm's fitted surface, its budget held by one way of counting.

    Attributes:
        arm: Its name.
        count: How FLOPs are counted.
        params: N_opt.
        ratio: To N_opt by level ``causal``.
        interval: Of ``ratio``; None without a bootstrap.
    """

    arm: str
    count: str
    params: float
    ratio: float
    interval: Interval | None


def output_flops(count: Count) -> int:
    """FLOPs of the output layer alone."""
    return sum(term.forward + term.backward for term in count.terms if term.layer == "output")


def step_flops(model: ModelConfig, batch_size: int) -> dict[str, int]:
    """FLOPs of a training step under every level and convention that covers the model."""
    sizes = model.counted()
    causal = sizes.flops(batch_size=batch_size)
    speed = measure(sizes, batch_size, "fused", None, None, "fp32", 1)
    counts = {name: sizes.flops(convention=name, batch_size=batch_size) for name in CONVENTIONS}
    return {
        "causal": causal.total,
        "dense": sizes.flops(level="dense", batch_size=batch_size).total,
        "executed": speed.executed.total,
        "causal, no output layer": causal.total - output_flops(causal),
    } | {name: count.total for name, count in counts.items() if not count.not_covered}


def recounts(study: Study, arm: str, fit: SurfaceFit, budget: float) -> list[Recount]:
    """Where a fitted surface has its minimum at one budget, by each way of counting.

    A budget by a count is what the optimum by level ``causal`` costs by it: a constant factor
    between two counts moves nothing. Models are two layers deep, their widths from 8 to 512, and D
    is what their counted FLOPs leave.

    Args:
        study: The design.
        arm: Whose runs were fitted.
        fit: Its surface.
        budget: FLOPs of level ``causal``.
    """
    models = [sized(study, arm, (width, 2)) for width in range(8, 513, 8)]
    tokens = study.base.recipe.batch_size * study.base.model.num_latents
    log_n = np.log([model.counted().params().total for model in models])
    counts = [step_flops(model, study.base.recipe.batch_size) for model in models]
    per_token = {name: np.array([each[name] for each in counts]) / tokens for name in counts[0]}
    surface = fit.surface
    point = [surface.e, surface.a, surface.b, surface.alpha, surface.beta]

    def places(count: str, spent: Any) -> Any:
        """Log N of the least loss, of the point estimate and of every bootstrap fit."""
        log_d = np.log(spent[:, None] / per_token[count])
        e, a, b, alpha, beta = np.vstack([[point], fit.samples]).T[:, :, None]
        losses = e + a * np.exp(-alpha * log_n) + b * np.exp(-beta * log_d)
        return np.array([_minimum(log_n, each) for each in losses])

    causal = places("causal", np.full(1 + len(fit.samples), float(budget)))
    rows = []
    for count, cost in per_token.items():
        at = np.interp(causal, log_n, np.log(cost / per_token["causal"]))
        place = places(count, budget * np.exp(at))
        moved = np.exp(place - causal)
        range_ = interval(moved[1:], CONFIDENCE)
        rows.append(Recount(arm, count, math.exp(place[0]), float(moved[0]), range_))
    return rows


def _minimum(x: Any, y: Any) -> float:
    """Where a function on a grid is least, refined by a parabola; NaN at an end of the grid."""
    at = int(np.argmin(y))
    if not 0 < at < len(x) - 1:
        return math.nan
    curvature, slope, _ = np.polyfit(x[at - 1 : at + 2] - x[at], y[at - 1 : at + 2], 2)
    return float(x[at] - slope / (2 * curvature))


@dataclasses.dataclass(frozen=True)
class Trained:
    """One budget trained by two counts.

    Attributes:
        causal: The optimum by level ``causal``.
        other: By the convention.
        convention: Its name.
    """

    causal: Best
    other: Best
    convention: str

    @property
    def ratio(self) -> float | None:
        """N_opt by the convention over that by ``causal``; None without both minima."""
        if self.causal.n_opt is None or self.other.n_opt is None:
            return None
        return self.other.n_opt / self.causal.n_opt

    @property
    def interval(self) -> Interval | None:
        """Of ``ratio``, from σ; None without noise."""
        if self.ratio is None:
            return None
        variance = self.causal.place_variance + self.other.place_variance
        return _about(self.ratio, self.causal.noise, variance)


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """All that the page's tables tell.

    Attributes:
        results: What it is computed from.
        fits: By arm and approach; in words why there is none.
        scatters: Over seeds, and of the runs about the parabolas, where they are known.
        noise: The larger of both; None without seeds.
        best: By arm and budget.
        differences: Of each pair of arms with one tokenizer at each budget that both have.
        recounts: Of each arm with a fitted surface, at its largest budget.
        trained: Budgets that were trained by another count, too.
    """

    results: Results
    fits: dict[str, dict[str, ProfilesFit | SurfaceFit | str]]
    scatters: tuple[Scatter, ...]
    noise: Scatter | None
    best: dict[str, dict[float, Best]]
    differences: tuple[Difference, ...]
    recounts: tuple[Recount, ...]
    trained: tuple[Trained, ...]


def find(results: Results, num_bootstrap: int = BOOTSTRAP) -> Findings:
    """Compute all findings."""
    study = results.study
    rows = {arm: results.of(arm) for arm in study.arms}
    fits = {arm: approaches(each, num_bootstrap) for arm, each in rows.items()}
    profiles = {
        arm: fit
        for arm, by_name in fits.items()
        if isinstance(fit := by_name.get("2"), ProfilesFit)
    }
    over_seeds = scatter_of_seeds(group for each in rows.values() for group in seeds(each).values())
    both = over_seeds, scatter_about_parabolas(profiles.values())
    scatters = tuple(scatter for scatter in both if scatter is not None)
    noise = over_seeds and max(scatters, key=lambda scatter: scatter.deviation)
    best = {arm: best_of(rows[arm], fit, noise) for arm, fit in profiles.items()}
    pairs = [
        (other, one, budget)
        for one, other in itertools.combinations(study.arms, 2)
        if study.arms[one].tokenizer == study.arms[other].tokenizer
        for budget in study.arms[one].shapes
        if budget in study.arms[other].shapes
    ]
    return Findings(
        results,
        fits,
        scatters,
        noise,
        best,
        tuple(
            Difference(best[one][budget], best[other][budget], len(pairs))
            for one, other, budget in pairs
            if budget in best.get(one, {}) and budget in best.get(other, {})
        ),
        tuple(
            each
            for arm, by_name in fits.items()
            if isinstance(surface := by_name.get(SURFACE), SurfaceFit) and best.get(arm)
            for each in recounts(study, arm, surface, max(best[arm]))
        ),
        tuple(
            Trained(best[arm][stage.budgets[0]], other, stage.convention)
            for stage in study.stages.values()
            if stage.convention is not None
            for arm in stage.arms
            if stage.budgets[0] in best.get(arm, {})
            if (trained := results.of(arm, stage.convention))
            for other in best_of(
                trained, flopcount.fit_isoflop_profiles(runs_of(trained)), noise
            ).values()
        ),
    )
