"""What a study's committed results say: rates, noise, optima, differences, the count, the clock.

Everything is computed from run tables, curves, calibrations and predictions; nothing is trained.
Intervals of optima and differences rest on one standard deviation σ of a run's loss, the larger of
two: s over seeds, and r of the runs about the parabolas. Losses are nats per byte.
"""

from __future__ import annotations

import dataclasses
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
from flopcount.isoflop.surface import SurfaceFit
from models.results import read_table
from models.study.design import PREDICTION, Planned, Row, Study, off_rule, plan, sized
from models.study.prediction import BOOTSTRAP, approaches, columns_of
from models.training.run import ModelConfig
from models.training.throughput import measure

SURFACE = "3, variable-projection"
"""The fit whose optimum is recounted."""


@dataclasses.dataclass(frozen=True)
class Results:
    """A study's committed results, checked against its design.

    Attributes:
        study: The design.
        planned: All its runs that are known, with those that test the predictions.
        runs: A row per run that has ended, in the plan's order.
        curves: By run, its validations.
        calls: Of every call, device, versions, commit, date and command, in the order of dates.
        predictions: The files.
    """

    study: Study
    planned: tuple[Planned, ...]
    runs: tuple[Row, ...]
    curves: dict[str, list[Row]]
    calls: tuple[dict[str, Any], ...]
    predictions: tuple[Path, ...]

    def of(self, arm: str, convention: str = "causal") -> list[Row]:
        """An arm's runs by one count at the rule's rate, without those that test a prediction."""
        return [
            row
            for row in self.runs
            if (row["arm"], row["convention"]) == (arm, convention)
            and not off_rule(row)
            and not row["stage"].startswith(PREDICTION)
            and math.isfinite(float(row["validation_loss"]))
        ]


def read_results(study: Study, folders: Sequence[Path]) -> Results:
    """Read ``runs.csv``, ``curves.csv``, ``*.jsonl`` and ``prediction*.json``.

    Raises:
        ValueError: If no run is there, a run is there twice with different values, is not of the
            study, or has other steps; or if runs of an arm differ in text, so that their losses do
            not compare.
    """
    predictions = tuple(sorted({p for folder in folders for p in folder.glob("prediction*.json")}))
    rows: dict[str, Row] = {}
    curves: dict[str, list[Row]] = {}
    for folder in folders:
        for row in read_table(folder / "runs.csv"):
            if rows.setdefault(row["run"], row) != row:
                raise ValueError(f"results must hold a run once, got two of {row['run']}")
        by_run: dict[str, list[Row]] = {}
        for row in read_table(folder / "curves.csv"):
            by_run.setdefault(row["run"], []).append(row)
        curves |= by_run
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
        curves,
        tuple(sorted(calls, key=lambda call: call["date"])),
        predictions,
    )


def nats_per_byte(row: Row) -> float:
    """Validation loss: nats of the targets over their bytes."""
    return float(row["validation_loss"]) / float(row["bytes_per_token"])


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


def fit_arm(rows: Sequence[Row], num_bootstrap: int) -> tuple[dict[str, Any], dict[str, str]]:
    """What each approach fits to an arm's runs, and why those that fit nothing do not."""
    fits, reasons = {}, {}
    if rows:
        runs = flopcount.read_runs(columns_of(rows), loss="nats_per_byte")
        for name, fit in approaches(runs, num_bootstrap).items():
            try:
                fits[name] = fit()
            except ValueError as error:
                reasons[name] = str(error)
    return fits, reasons


@dataclasses.dataclass(frozen=True, eq=False)
class Best:
    """What an arm reaches at one budget.

    Attributes:
        arm: Its name.
        budget: FLOPs.
        run: Of seed 0, the run of the least loss.
        profile: Its parabola, if there are three sizes.
    """

    arm: str
    budget: float
    run: Row
    profile: Profile

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

    def n_interval(self, noise: Scatter | None) -> Interval | None:
        """Of N_opt: N_opt · e^±half width of log N_opt; None without a vertex or noise."""
        if self.n_opt is None or noise is None:
            return None
        factor = math.exp(noise.half_width(self.place_variance))
        return Interval(self.n_opt / factor, self.n_opt * factor, CONFIDENCE)


def best_of(rows: Sequence[Row], fit: ProfilesFit) -> dict[float, Best]:
    """What an arm reaches, by budget."""
    found = {}
    for profile in fit.profiles:
        ran = [row for row in rows if float(row["budget"]) == profile.flops and row["seed"] == "0"]
        if ran:
            run = min(ran, key=nats_per_byte)
            found[profile.flops] = Best(run["arm"], profile.flops, run, profile)
    return found


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two arms at the same budget, Δ = L_first - L_second: negative where the first is better.

    Attributes:
        first: The one.
        second: The other.
        delta: Δ of :attr:`Best.loss`, nats per byte.
        half_width: Of its interval; None where noise has no size yet.
        winner: The arm that is better by more than noise; None if that is not shown.
        verdict: In words.
    """

    first: Best
    second: Best
    delta: float
    half_width: float | None
    winner: str | None
    verdict: str


def differ(first: Best, second: Best, noise: Scatter | None, comparisons: int) -> Difference:
    """Δ ± t·σ·(h₁ + h₂)^½, and what it allows to say.

    An arm without a minimum inside the sizes tried may be better than its best
    run, so that it may win and not lose.

    Args:
        first: One arm.
        second: The other, at the same budget.
        noise: σ of one run.
        comparisons: That the study makes, which are to hold together.
    """
    delta = first.loss - second.loss
    if noise is None:
        return Difference(first, second, delta, None, None, "not known: noise has no size yet")
    half = noise.half_width(first.variance + second.variance, comparisons)
    better, worse = (first, second) if delta < 0 else (second, first)
    winner = None
    if not abs(delta) > half:
        verdict = "within noise"
    elif worse.n_opt is None:
        verdict = f"not decided: {worse.arm} has no minimum inside the sizes tried"
    else:
        winner = better.arm
        verdict = f"{better.arm} is better"
    return Difference(first, second, delta, half, winner, verdict)


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
    surface = fit.surface
    point = [surface.e, surface.a, surface.b, surface.alpha, surface.beta]
    fits = np.vstack([[point], fit.samples])
    places: dict[str, Any] = {}
    for count in counts[0]:
        per_token = np.array([each[count] for each in counts]) / tokens
        spent = np.full(len(fits), float(budget))
        if count != "causal":
            causal = np.array([each["causal"] for each in counts]) / tokens
            at = np.interp(places["causal"], log_n, np.log(per_token / causal))
            spent = budget * np.exp(at)
        places[count] = np.array(
            [
                _minimum(log_n, _losses(parameters, log_n, np.log(c / per_token)))
                for parameters, c in zip(fits, spent, strict=True)
            ]
        )
    found = []
    for count, place in places.items():
        moved = np.exp(place - places["causal"])
        found.append(
            Recount(
                arm,
                count,
                math.exp(place[0]),
                float(moved[0]),
                interval(moved[1:], CONFIDENCE),
            )
        )
    return found


def _losses(parameters: Any, log_n: Any, log_d: Any) -> Any:
    e, a, b, alpha, beta = parameters
    return e + a * np.exp(-alpha * log_n) + b * np.exp(-beta * log_d)


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
        ratio: N_opt by the convention over that by ``causal``; None without both minima.
        interval: Of ``ratio``, from σ; None without noise.
    """

    causal: Best
    other: Best
    convention: str
    ratio: float | None
    interval: Interval | None


def trained_by_count(
    results: Results, stage: str, best: dict[str, dict[float, Best]], noise: Scatter | None
) -> list[Trained]:
    """What a stage of runs by a convention found, beside the same budget by level ``causal``."""
    asked = results.study.stages[stage]
    found = []
    for arm in asked.arms if asked.convention else ():
        rows = results.of(arm, asked.convention or "")
        causal = best.get(arm, {}).get(asked.budgets[0])
        fits, _ = fit_arm(rows, 0)
        if causal is None or "2" not in fits:
            continue
        for other in best_of(rows, fits["2"]).values():
            ratio, range_ = None, None
            if causal.n_opt is not None and other.n_opt is not None:
                ratio = other.n_opt / causal.n_opt
                if noise is not None:
                    both = causal.place_variance + other.place_variance
                    factor = math.exp(noise.half_width(both))
                    range_ = Interval(ratio / factor, ratio * factor, CONFIDENCE)
            found.append(Trained(causal, other, asked.convention or "", ratio, range_))
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """All that the page's tables tell.

    Attributes:
        results: What it is computed from.
        fits: By arm and approach.
        reasons: By arm and approach, why there is no fit.
        best: By arm and budget.
        from_seeds: The scatter over seeds.
        about_parabolas: The scatter of the runs about the parabolas.
        noise: The larger of both; None without seeds.
        differences: Of each pair of arms with one tokenizer at each budget that both have.
        recounts: Of each arm with a fitted surface, at its largest budget.
        trained: Budgets that were trained by another count, too.
    """

    results: Results
    fits: dict[str, dict[str, Any]]
    reasons: dict[str, dict[str, str]]
    best: dict[str, dict[float, Best]]
    from_seeds: Scatter | None
    about_parabolas: Scatter | None
    noise: Scatter | None
    differences: tuple[Difference, ...]
    recounts: tuple[Recount, ...]
    trained: tuple[Trained, ...]


def find(results: Results, num_bootstrap: int = BOOTSTRAP) -> Findings:
    """Compute all findings."""
    study = results.study
    rows = {arm: results.of(arm) for arm in study.arms}
    fitted = {arm: fit_arm(rows[arm], num_bootstrap) for arm in study.arms}
    profiles = {arm: fits["2"] for arm, (fits, _) in fitted.items() if "2" in fits}
    from_seeds = scatter_of_seeds(group for each in rows.values() for group in seeds(each).values())
    about = scatter_about_parabolas(profiles.values())
    noise = None
    if from_seeds is not None:
        known = [scatter for scatter in (from_seeds, about) if scatter is not None]
        noise = max(known, key=lambda scatter: scatter.deviation)
    best = {arm: best_of(rows[arm], fit) for arm, fit in profiles.items()}
    arms = list(study.arms)
    pairs = [
        (other, one, budget)
        for i, one in enumerate(arms)
        for other in arms[i + 1 :]
        if study.arms[one].tokenizer == study.arms[other].tokenizer
        for budget in study.arms[one].shapes
        if budget in study.arms[other].shapes
    ]
    return Findings(
        results,
        {arm: fits for arm, (fits, _) in fitted.items()},
        {arm: reasons for arm, (_, reasons) in fitted.items()},
        best,
        from_seeds,
        about,
        noise,
        tuple(
            differ(best[one][budget], best[other][budget], noise, len(pairs))
            for one, other, budget in pairs
            if budget in best.get(one, {}) and budget in best.get(other, {})
        ),
        tuple(
            each
            for arm, (fits, _) in fitted.items()
            if SURFACE in fits and best.get(arm)
            for each in recounts(study, arm, fits[SURFACE], max(best[arm]))
        ),
        tuple(
            each for stage in study.stages for each in trained_by_count(results, stage, best, noise)
        ),
    )
