"""What a study's committed results say: noise, differences between arms, the count, the clock.

Everything is computed from run tables, curves, calibrations and predictions; nothing is trained.
The standard error of a difference rests on one standard deviation σ of a run's loss, the larger of
two: s over seeds, and r of the runs about the parabolas.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.design import PREDICTION, Study, model_name, stages_of
from benchmarks.prediction import BOOTSTRAP, Row, approaches, columns_of, select
from scipy import stats

import flopcount
from benchmarks.measurement import read_table
from flopcount.fitting import Interval, Profile, ProfilesFit
from flopcount.fitting.results import CONFIDENCE, interval
from models.sweep import SweepRun

NEAR = 0.05
"""Of predicted and measured seconds: the deviation that the planner aims to stay within."""


@dataclasses.dataclass(frozen=True)
class Results:
    """A study's committed results, checked against its design.

    Attributes:
        study: the design.
        planned: all its runs by stage, with those that test the predictions.
        runs: a row per run that has ended, in the plan's order.
        curves: by run, its validations.
        rates: rows of the calibrations.
        calls: of every call, device, versions, commit, date and command, in the order of dates.
        predictions: the files.
    """

    study: Study
    planned: dict[str, list[SweepRun]]
    runs: tuple[Row, ...]
    curves: dict[str, list[Row]]
    rates: tuple[Row, ...]
    calls: tuple[dict[str, Any], ...]
    predictions: tuple[Path, ...]

    def missing(self, stage: str) -> list[str]:
        """Names of the runs of a stage that have no row."""
        there = {row["run"] for row in self.runs}
        return [run.name for run in self.planned[stage] if run.name not in there]

    def of(self, arm: str, convention: str = "causal") -> list[Row]:
        """An arm's runs by one count, without those that test a prediction."""
        return [
            row
            for row in select(self.runs, arm=arm, convention=convention)
            if row["stage"] != PREDICTION and math.isfinite(float(row["validation_loss"]))
        ]


def read_results(study: Study, folders: Sequence[Path]) -> Results:
    """Read ``runs.csv``, ``curves.csv``, ``calibration.csv``, ``*.jsonl``, ``prediction*.json``.

    Raises:
        ValueError: if no run is there, a run is there twice with different values, is not of the
            study, or has other steps; or if the runs differ in text or learning rate, so that
            their losses do not compare.
    """
    predictions = tuple(sorted({p for folder in folders for p in folder.glob("prediction*.json")}))
    planned = stages_of(study)
    for path in predictions:
        [(stage, runs)] = stages_of(study, prediction=path).items()
        planned.setdefault(stage, []).extend(runs)
    by_name = {run.name: run for runs in planned.values() for run in runs}
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
        raise ValueError(f"results must hold rows of runs.csv, got none in {_names(folders)}")
    for name, row in rows.items():
        if name not in by_name:
            why = "without its prediction" if row["stage"] == PREDICTION else "not of the study"
            raise ValueError(f"results must be of the study, got {name}, {why}")
        if int(row["steps"]) != by_name[name].config.steps:
            steps = by_name[name].config.steps
            raise ValueError(f"{name} must have the study's {steps} steps, got {row['steps']}")
    for column in ("corpus", "learning_rate"):
        values = sorted({row[column] for row in rows.values()})
        if len(values) > 1:
            raise ValueError(f"results must be of one {column.replace('_', ' ')}, got {values}")
    calls = [
        json.loads(line)
        for folder in folders
        for path in sorted(folder.glob("*.jsonl"))
        if path.stem in ("study", "calibration")
        for line in path.read_text().splitlines()
    ]
    return Results(
        study,
        planned,
        tuple(rows[name] for name in by_name if name in rows),
        curves,
        tuple(row for folder in folders for row in read_table(folder / "calibration.csv")),
        tuple(sorted(calls, key=lambda call: call["date"])),
        predictions,
    )


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(map(str, folders))


@dataclasses.dataclass(frozen=True)
class Scatter:
    """A standard deviation that was measured.

    Attributes:
        deviation: nats per token.
        freedom: its degrees of freedom ν.
        of: what scatters.
    """

    deviation: float
    freedom: int
    of: str

    def half_width(self, variance: float, comparisons: int = 1) -> float:
        """t·σ·h^½, t Student's for a confidence of 1 - 0.05 / ``comparisons`` (Bonferroni).

        All of so many intervals hold together at 95 %.

        Args:
            variance: h, of what is estimated, in units of σ².
            comparisons: intervals that are to hold together.
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


def seeds(results: Results) -> dict[str, list[float]]:
    """Losses of the models that were trained with several seeds, by shape."""
    study = results.study
    losses: dict[str, list[float]] = {}
    for row in results.of(study.main):
        if float(row["budget"]) == study.seeds_at:
            shape = f"{row['num_channels']}x{row['num_layers']}"
            losses.setdefault(shape, []).append(float(row["validation_loss"]))
    return {shape: each for shape, each in losses.items() if len(each) > 1}


def scatter_of_seeds(results: Results) -> Scatter | None:
    """Pool s = (Σᵢ Σⱼ (Lᵢⱼ - L̄ᵢ)² / ν)^½, ν = Σᵢ (nᵢ - 1), over the sizes i; None without seeds."""
    groups = list(seeds(results).values())
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


def fit_arm(
    results: Results, arm: str, num_bootstrap: int, convention: str = "causal"
) -> tuple[dict[str, Any], dict[str, str]]:
    """What each approach fits to an arm's runs, and why those that fit nothing do not."""
    rows = results.of(arm, convention)
    if not rows:
        return {}, {}
    runs = flopcount.read_runs(columns_of(rows), loss="validation_loss")
    fits, reasons = {}, {}
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
        arm: its name.
        budget: FLOPs.
        run: of the study's first seeds, the run of the least loss.
        profile: its parabola, if there are three sizes.
        num_sizes: sizes trained.
    """

    arm: str
    budget: float
    run: Row
    profile: Profile
    num_sizes: int

    @property
    def n_opt(self) -> float | None:
        """N at the parabola's vertex, inside the sizes tried."""
        return self.profile.n_opt

    @property
    def bracketed(self) -> bool:
        """Whether the parabola has its minimum inside the sizes tried."""
        return self.n_opt is not None

    @property
    def loss(self) -> float:
        """At the parabola's vertex; of the best run where there is none."""
        at_vertex = self.profile.loss_opt
        return float(self.run["validation_loss"]) if at_vertex is None else at_vertex

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
            ValueError: if there is no vertex.
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


def best_of(results: Results, arm: str, fit: ProfilesFit) -> dict[float, Best]:
    """What an arm reaches, by budget."""
    profiles = {profile.flops: profile for profile in fit.profiles}
    found = {}
    first = {str(seed) for seed in results.study.base.seeds}
    for budget in sorted(results.study.shapes):
        rows = [row for row in results.of(arm) if float(row["budget"]) == budget]
        ran = [row for row in rows if row["seed"] in first]
        if ran:
            run = min(ran, key=lambda row: float(row["validation_loss"]))
            found[budget] = Best(arm, budget, run, profiles[budget], len(ran))
    return found


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two arms at the same budget, Δ = L_first - L_second: negative where the first is better.

    Attributes:
        first: the one.
        second: the other.
        delta: Δ of :attr:`Best.loss`, nats per token.
        half_width: of its interval; None where noise has no size yet.
        winner: the arm that is better by more than noise; None if that is not shown.
        verdict: in words.
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
        first: one arm.
        second: the other, at the same budget.
        noise: σ of one run.
        comparisons: that the study makes, which are to hold together.
    """
    delta = first.loss - second.loss
    if noise is None:
        return Difference(first, second, delta, None, None, "not known: noise has no size yet")
    half = noise.half_width(first.variance + second.variance, comparisons)
    better, worse = (first, second) if delta < 0 else (second, first)
    winner = None
    if not abs(delta) > half:
        verdict = "within noise: no difference shown"
    elif not worse.bracketed:
        verdict = f"not decided: {worse.arm} has no minimum inside the sizes tried"
    else:
        winner = better.arm
        verdict = f"{better.arm} is better, by more than noise"
    return Difference(first, second, delta, half, winner, verdict)


def equal_shapes(results: Results, difference: Difference) -> list[float]:
    """L_first - L_second of every shape that both arms have at the budget, of the first seed."""
    losses = []
    for best in (difference.first, difference.second):
        rows = select(results.of(best.arm), seed=str(results.study.base.seeds[0]))
        losses.append(
            {
                (row["num_channels"], row["num_layers"]): float(row["validation_loss"])
                for row in rows
                if float(row["budget"]) == best.budget
            }
        )
    first, second = losses
    return [first[shape] - second[shape] for shape in first if shape in second]


@dataclasses.dataclass(frozen=True)
class Recount:
    """One budget by both counts.

    Attributes:
        causal: the optimum by level ``causal``.
        other: by the convention.
        ratio: N_opt by the convention over that by ``causal``; None without both.
        by_bootstrap: its interval from bootstraps independent of each other.
        by_noise: its interval from σ.
        share: of the bootstrap pairs, those in which both have a vertex.
        difference: of the losses at the optima.
        repeated: losses of the run that both families share, trained once for each.
    """

    causal: Best
    other: Best
    ratio: float | None
    by_bootstrap: Interval | None
    by_noise: Interval | None
    share: float
    difference: Difference
    repeated: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """Whether the choice of counting moves the optimum: both intervals must exclude 1."""
        lacking = " and by ".join(b.arm for b in (self.causal, self.other) if not b.bracketed)
        if lacking:
            return f"not known: no minimum inside the sizes tried by {lacking}"
        if self.by_noise is None or self.by_bootstrap is None:
            return "not known: noise has no size yet"
        if all(not each.low <= 1 <= each.high for each in (self.by_noise, self.by_bootstrap)):
            return "the optimum moves by more than its interval"
        return "the optimum does not move by more than its interval"


def recount(results: Results, num_bootstrap: int, noise: Scatter | None) -> Recount | None:
    """The main arm's optimum by both counts; None without runs by both."""
    study = results.study
    families = {
        "causal": [r for r in results.of(study.main) if float(r["budget"]) == study.recounted_at],
        study.convention: results.of(study.main, study.convention),
    }
    if not all(families.values()):
        return None
    best = {}
    for seed, (name, rows) in enumerate(families.items()):
        runs = flopcount.read_runs(columns_of(rows), loss="validation_loss")
        fit = flopcount.fit_isoflop_profiles(runs, num_bootstrap=num_bootstrap, seed=seed)
        [profile] = fit.profiles
        run = min(rows, key=lambda row: float(row["validation_loss"]))
        best[name] = Best(name, float(rows[0]["budget"]), run, profile, len(rows))
    causal, other = best.values()
    ratio, by_bootstrap, by_noise, share = None, None, None, 0.0
    if causal.n_opt is not None and other.n_opt is not None:
        ratio = other.n_opt / causal.n_opt
        moved = other.profile.vertices[:, 0] - causal.profile.vertices[:, 0]
        share = float(np.isfinite(moved).mean()) if len(moved) else 0.0
        by_bootstrap = interval(np.exp(moved), CONFIDENCE)
        if noise is not None:
            factor = math.exp(noise.half_width(causal.place_variance + other.place_variance))
            by_noise = Interval(ratio / factor, ratio * factor, CONFIDENCE)
    alike = ("num_channels", "num_layers", "steps", "seed")
    causal_rows, other_rows = (
        {tuple(row[name] for name in alike): row for row in rows} for rows in families.values()
    )
    same = causal_rows.keys() & other_rows.keys()
    losses = [
        (float(causal_rows[key]["validation_loss"]), float(other_rows[key]["validation_loss"]))
        for key in same
    ]
    return Recount(
        causal,
        other,
        ratio,
        by_bootstrap,
        by_noise,
        share,
        differ(other, causal, noise, 1),
        losses[0] if losses else None,
    )


@dataclasses.dataclass(frozen=True)
class Timing:
    """Predicted and measured seconds of runs that had the device to themselves.

    Attributes:
        pairs: by run, predicted and measured seconds of training.
        uncalibrated: runs whose model no calibration on their device has.
        side_by_side: runs with others beside them.
    """

    pairs: dict[str, tuple[float, float]]
    uncalibrated: tuple[str, ...]
    side_by_side: tuple[str, ...]

    @property
    def deviations(self) -> dict[str, float]:
        """Measured over predicted, less 1."""
        return {name: measured / said - 1 for name, (said, measured) in self.pairs.items()}


def timing(results: Results) -> Timing:
    """Compare each run's clock with its calibration's prediction."""
    models = {run.name: model_name(run.config) for s in results.planned.values() for run in s}
    rated = {(row["model"], row["device"]) for row in results.rates}
    pairs, uncalibrated, side_by_side = {}, [], []
    for row in results.runs:
        if row["workers"] != "1":
            side_by_side.append(row["run"])
        elif (models[row["run"]], row["device"]) not in rated:
            uncalibrated.append(row["run"])
        else:
            pairs[row["run"]] = float(row["predicted_seconds"]), float(row["seconds"])
    return Timing(pairs, tuple(uncalibrated), tuple(side_by_side))


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """All that the page tells.

    Attributes:
        results: what it is computed from.
        num_bootstrap: fits of each interval of approach 2; a tenth of it of approach 3.
        fits: by arm and approach.
        reasons: by arm and approach, why there is no fit.
        best: by arm and budget.
        from_seeds: the scatter over seeds.
        about_parabolas: the scatter of the runs about the parabolas.
        noise: the larger of both; None without seeds.
        differences: of each pair of arms at each budget that both have.
        comparisons: that the complete study makes.
        recount: one budget by both counts.
        timing: predicted and measured seconds.
    """

    results: Results
    num_bootstrap: int
    fits: dict[str, dict[str, Any]]
    reasons: dict[str, dict[str, str]]
    best: dict[str, dict[float, Best]]
    from_seeds: Scatter | None
    about_parabolas: Scatter | None
    noise: Scatter | None
    differences: tuple[Difference, ...]
    comparisons: int
    recount: Recount | None
    timing: Timing


def find(results: Results, num_bootstrap: int = BOOTSTRAP) -> Findings:
    """Compute all findings."""
    study = results.study
    fitted = {arm: fit_arm(results, arm, num_bootstrap) for arm in study.prefixes}
    profiles = {arm: fits.get("2") for arm, (fits, _) in fitted.items()}
    from_seeds = scatter_of_seeds(results)
    about = scatter_about_parabolas(fit for fit in profiles.values() if fit is not None)
    noise = None
    if from_seeds is not None:
        known = [scatter for scatter in (from_seeds, about) if scatter is not None]
        noise = max(known, key=lambda scatter: scatter.deviation)
    best = {arm: {} if fit is None else best_of(results, arm, fit) for arm, fit in profiles.items()}
    arms = list(study.prefixes)
    pairs = [(one, other) for i, one in enumerate(arms) for other in arms[i + 1 :]]
    comparisons = len(pairs) * len(study.shapes)
    return Findings(
        results,
        num_bootstrap,
        {arm: fits for arm, (fits, _) in fitted.items()},
        {arm: reasons for arm, (_, reasons) in fitted.items()},
        best,
        from_seeds,
        about,
        noise,
        tuple(
            differ(best[one][budget], best[other][budget], noise, comparisons)
            for one, other in pairs
            for budget in sorted(study.shapes)
            if budget in best[one] and budget in best[other]
        ),
        comparisons,
        recount(results, num_bootstrap, noise),
        timing(results),
    )
