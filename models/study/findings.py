"""What a study's committed results say: noise, optima, differences, what another count moves.

Everything is computed from run tables and predictions; nothing is trained. Intervals of optima and
differences rest on an arm's noise σ, the larger of two: s over the seeds of all arms, and r of its
sizes about its parabolas. Losses are nats per byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import flopcount
from flopcount.conventions import CONVENTIONS
from flopcount.count import Count
from flopcount.isoflop.profiles import ProfilesFit
from flopcount.isoflop.results import CONFIDENCE, Interval, Optimum, interval, optimum
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
    executed_flops,
    nats_per_byte,
    plan,
    sized,
)
from models.study.minima import (
    Best,
    Change,
    Difference,
    FloatArray,
    Place,
    Scatter,
    averaged,
    best_of,
    difference,
    scatter_about_parabolas,
    scatter_of_seeds,
    seeds,
)
from models.sweeps.plan import SweepConfig
from models.training.run import ModelConfig

SURFACE = "3, variable-projection"
"""The fit whose optimum is recounted."""
WITHOUT_POSITIONS, CROSS = "N without positions", "cross part"
WHOLE, INNER = "all", "without positions, embedding and output layer"


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

    Without rows there are none.
    """
    if not rows:
        return {}
    runs = runs_of(rows)
    fits: dict[str, ProfilesFit | SurfaceFit | str] = {
        "2": flopcount.fit_isoflop_profiles(runs, num_bootstrap=num_bootstrap)
    }
    for objective in ("huber-log", "variable-projection"):
        name = f"3, {objective}"
        try:
            fits[name] = flopcount.fit_surface(
                runs, objective=objective, num_bootstrap=num_bootstrap
            )
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
        corpora: Rows of ``corpora.csv``: the texts, and what each is validated on.
    """

    study: Study
    planned: tuple[Planned, ...]
    runs: tuple[Row, ...]
    calls: tuple[dict[str, Any], ...]
    predictions: tuple[Path, ...]
    corpora: tuple[Row, ...]

    def of(self, arm: str, convention: str = "causal") -> list[Row]:
        """An arm's runs by one count at the rule's rate, without those that test a prediction."""
        return [
            row
            for row in at_rule(self.runs, arm, convention)
            if not row["stage"].startswith(PREDICTION)
            and math.isfinite(float(row["validation_loss"]))
        ]

    def fitted(self, arm: str) -> list[Row]:
        """What is fitted to an arm: a row per size, its seeds' mean, of budgets with every size."""
        ended = {
            (float(row["budget"]), (int(row["num_channels"]), int(row["num_layers"])))
            for row in at_rule(self.runs, arm)
        }
        complete = {
            budget
            for budget, shapes in self.study.arms[arm].shapes.items()
            if all((budget, shape) in ended for shape in shapes)
        }
        return averaged(row for row in self.of(arm) if float(row["budget"]) in complete)


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
    corpora = {
        row["corpus"]: row for folder in folders for row in read_table(folder / "corpora.csv")
    }
    validated = {corpus: row["validation_sha256"] for corpus, row in corpora.items()}
    for tokenizer in {arm.tokenizer for arm in study.arms.values()}:
        arms = [name for name, arm in study.arms.items() if arm.tokenizer == tokenizer]
        texts = sorted({row["corpus"] for row in rows.values() if row["arm"] in arms})
        if len({validated.get(text, text) for text in texts}) > 1:
            raise ValueError(
                f"results must be validated on the same {tokenizer}, as corpora.csv tells, "
                f"got runs of {texts}"
            )
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
        tuple(corpora.values()),
    )


@dataclasses.dataclass(frozen=True)
class Recount:
    """The optimum of an arm's fitted surface, its budget held by one way of counting.

    Attributes:
        arm: Its name.
        count: How FLOPs are counted.
        params: N_opt.
        ratio: To N_opt by level ``causal``.
        interval: Of ``ratio``; None without a bootstrap.
        lost: The share of the bootstrap's fits without a minimum between the widths.
    """

    arm: str
    count: str
    params: float
    ratio: float
    interval: Interval | None
    lost: float


def output_flops(count: Count) -> int:
    """FLOPs of the output layer alone."""
    return sum(term.forward + term.backward for term in count.terms if term.layer == "output")


def step_flops(model: ModelConfig, base: SweepConfig) -> dict[str, int]:
    """FLOPs of a training step under every level and convention that covers the model."""
    sizes, batch_size = model.counted(), base.recipe.batch_size
    causal = sizes.flops(batch_size=batch_size)
    counts = {name: sizes.flops(convention=name, batch_size=batch_size) for name in CONVENTIONS}
    return {
        "causal": causal.total,
        "dense": sizes.flops(level="dense", batch_size=batch_size).total,
        "executed": executed_flops(model, base),
        "causal, no output layer": causal.total - output_flops(causal),
    } | {name: count.total for name, count in counts.items() if not count.not_covered}


class Widths:
    """The two-layer models of an arm, of widths from 8 to 512, and where a surface is least.

    Attributes:
        log_n: Of all parameters.
        log_inner: Of those without positions, embedding and output layer.
        per_token: FLOPs by each way of counting.
    """

    def __init__(self, study: Study, arm: str) -> None:
        widths = (*range(8, 64, 4), *range(64, 513, 8))
        models = [sized(study, arm, (width, 2)) for width in widths]
        batch = study.base.recipe.batch_size
        counts = [step_flops(model, study.base) for model in models]
        tokens = batch * study.base.model.num_latents
        self.log_n, _, self.log_inner = np.log([_params(model) for model in models]).T
        self.per_token = {
            name: np.array([count[name] for count in counts]) / tokens for name in counts[0]
        }

    def places(self, fit: SurfaceFit, count: str, spent: Any) -> FloatArray:
        """Log N of the least loss, of the point estimate and of every bootstrap fit.

        D is what the counted FLOPs of a token leave. The minimum is refined between widths, but
        not by ``executed``, which jumps where heads are padded to another tile. NaN where it is no
        minimum between them.

        Args:
            fit: The surface.
            count: How FLOPs are counted.
            spent: FLOPs, or those of each of the fits.
        """
        spent = np.broadcast_to(spent, 1 + len(fit.samples))
        log_d = np.log(spent[:, None] / self.per_token[count])
        losses = _losses(fit, self.log_n, log_d)
        return np.array([_minimum(self.log_n, each, count != "executed") for each in losses])

    def along(self, values: FloatArray, log_n: FloatArray) -> FloatArray:
        """Positive numbers of each model at other sizes, of powers of N between widths."""
        return np.asarray(np.exp(np.interp(log_n, self.log_n, np.log(values))))

    def optimum(self, fit: SurfaceFit, budget: float) -> Optimum:
        """N, D and loss of the model that is best at a budget of level ``causal``.

        Its FLOPs a token are counted, where ``fit.predict`` takes a constant times N.

        Raises:
            ValueError: If no minimum lies between the widths.
        """
        log_n = self.places(fit, "causal", budget)
        if not math.isfinite(log_n[0]):
            raise ValueError(
                f"the surface has no minimum between N = {np.exp(self.log_n[[0, -1]])}"
            )
        tokens = budget / self.along(self.per_token["causal"], log_n)
        losses = _losses(fit, log_n[:, None], np.log(tokens)[:, None])[:, 0]
        (n, *params), (d, *drawn_tokens), (loss, *drawn) = np.exp(log_n), tokens, losses
        samples = np.array(params), np.array(drawn_tokens), np.array(drawn)
        point = float(n), float(d), float(loss)
        method = f"approach 3, {fit.objective}"
        sampled = fit.runs.params, fit.runs.tokens
        return optimum(budget, point, samples, CONFIDENCE, method, sampled)


def _losses(fit: SurfaceFit, log_n: FloatArray, log_d: FloatArray) -> FloatArray:
    """By the point estimate and every bootstrap fit, along the first dimension."""
    surface = fit.surface
    point = [surface.e, surface.a, surface.b, surface.alpha, surface.beta]
    e, a, b, alpha, beta = np.vstack([[point], fit.samples]).T[:, :, None]
    return np.asarray(e + a * np.exp(-alpha * log_n) + b * np.exp(-beta * log_d))


_ENDS = ("embedding", "output")


def _params(model: ModelConfig) -> tuple[int, int, int]:
    """All parameters; those without positions; and without embedding and output layer, too."""
    params = model.counted().params()
    positions = params.position_embedding.total
    inner = sum(term.count for term in params.terms if term.layer not in _ENDS)
    return params.total, params.total - positions, inner


def recounts(widths: Widths, arm: str, fit: SurfaceFit, budget: float) -> list[Recount]:
    """Where a fitted surface has its minimum at one budget, by each way of counting.

    A budget by a count is what the optimum by level ``causal`` costs by it: a constant factor
    between two counts moves nothing.

    Args:
        widths: The arm's models.
        arm: Whose runs were fitted.
        fit: Its surface.
        budget: FLOPs of level ``causal``.
    """
    causal = widths.places(fit, "causal", budget)
    rows = []
    for count, cost in widths.per_token.items():
        spent = budget * widths.along(cost / widths.per_token["causal"], causal)
        place = widths.places(fit, count, spent)
        moved = np.exp(place - causal)
        at, ratio, lost = math.exp(place[0]), float(moved[0]), _lost(moved[1:])
        rows.append(Recount(arm, count, at, ratio, interval(moved[1:], CONFIDENCE), lost))
    return rows


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """N_opt of an arm over that of an arm of bytes, both by their surfaces at the same FLOPs.

    Attributes:
        arm: The one.
        of_bytes: The other.
        counted: What N and C count.
        budget: C.
        params: N_opt of both.
        ratio: Of these.
        interval: Of ``ratio``, the bootstraps of both unpaired; None without them.
        lost: The share of the bootstrap's fits without a minimum between the widths.
    """

    arm: str
    of_bytes: str
    counted: str
    budget: float
    params: tuple[float, float]
    ratio: float
    interval: Interval | None
    lost: float


def vocabularies(
    arms: Sequence[str], widths: Sequence[Widths], fits: Sequence[SurfaceFit], budget: float
) -> list[Vocabulary]:
    """N_opt of two arms at one budget, with and without positions, embedding and output layer.

    Without, the budget is what the optimum of the arm of bytes spends outside its output layer.

    Args:
        arms: One, and one of bytes.
        widths: Their models.
        fits: Their surfaces.
        budget: FLOPs of level ``causal``.
    """
    of_bytes, inner = widths[1], "causal, no output layer"
    share = of_bytes.per_token[inner] / of_bytes.per_token["causal"]
    optimum = of_bytes.places(fits[1], "causal", budget)[:1]
    left = float(budget * of_bytes.along(share, optimum)[0])
    rows = []
    for counted, count, spent in ((WHOLE, "causal", budget), (INNER, inner, left)):
        one, other = (
            each.along(
                np.exp(each.log_n if counted == WHOLE else each.log_inner),
                each.places(fit, count, spent),
            )
            for each, fit in zip(widths, fits, strict=True)
        )
        fewest = min(len(one), len(other))
        ratios = one[:fewest] / other[:fewest]
        range_, lost = interval(ratios[1:], CONFIDENCE), _lost(ratios[1:])
        at = float(one[0]), float(other[0])
        rows.append(Vocabulary(*arms, counted, spent, at, float(ratios[0]), range_, lost))
    return rows


def _lost(samples: FloatArray) -> float:
    return 0.0 if len(samples) == 0 else float(np.mean(~np.isfinite(samples)))


def _minimum(x: FloatArray, y: FloatArray, refine: bool) -> float:
    """Where a function on a grid is least, refined by a parabola; NaN at an end of the grid."""
    at = int(np.argmin(y))
    if not 0 < at < len(x) - 1:
        return math.nan
    if not refine:
        return float(x[at])
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
    def place(self) -> Place:
        """N_opt by the convention over that by ``causal``."""
        return Place(self.other, self.causal, "N")


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """All that the page's tables tell.

    Attributes:
        results: What it is computed from.
        fits: By arm and approach; in words why there is none.
        scatters: Over seeds, and of each arm's sizes about its parabolas, where they are known.
        noise: By arm, the larger of both; None without seeds.
        best: By arm and budget, where every size has ended.
        widths: Of each arm with a fitted surface.
        optima: By arm and budget, of these surfaces.
        differences: Of each pair of arms at each budget that both have.
        changes: Of these between the smallest and the largest budget.
        places: Where the optima of each pair lie.
        recounts: Of each arm with a fitted surface, at its largest budget.
        vocabularies: Of each pair that differs in its tokenizer alone, at the largest budget.
        trained: Budgets that were trained by another count, too.
    """

    results: Results
    fits: dict[str, dict[str, ProfilesFit | SurfaceFit | str]]
    scatters: tuple[Scatter, ...]
    noise: dict[str, Scatter | None]
    best: dict[str, dict[float, Best]]
    widths: dict[str, Widths]
    optima: dict[tuple[str, float], Optimum]
    differences: tuple[Difference, ...]
    changes: tuple[Change, ...]
    places: tuple[Place, ...]
    recounts: tuple[Recount, ...]
    vocabularies: tuple[Vocabulary, ...]
    trained: tuple[Trained, ...]


def _along(study: Study, rows: Sequence[Row]) -> dict[str, FloatArray]:
    """What :attr:`Best.along` holds of each run."""
    models = [
        sized(study, row["arm"], (int(row["num_channels"]), int(row["num_layers"]))) for row in rows
    ]
    _, without, inner = np.log([_params(model) for model in models]).T
    counts = [model.counted().flops() for model in models]
    cross = np.array([count.cross_part.total / count.total for count in counts])
    return {WITHOUT_POSITIONS: without, INNER: inner, CROSS: cross}


def find(results: Results, num_bootstrap: int = BOOTSTRAP) -> Findings:
    """Compute all findings."""
    study = results.study
    rows = {arm: results.fitted(arm) for arm in study.arms}
    fits = {arm: approaches(each, num_bootstrap) for arm, each in rows.items()}
    profiles = {
        arm: fit.profiles
        for arm, by_name in fits.items()
        if isinstance(fit := by_name.get("2"), ProfilesFit)
    }
    over_seeds = scatter_of_seeds(
        [nats_per_byte(row) for row in group]
        for arm in study.arms
        for group in seeds(results.of(arm)).values()
    )
    about = {arm: scatter_about_parabolas(arm, each) for arm, each in profiles.items()}
    noise = {
        arm: over_seeds and max(over_seeds, about[arm] or over_seeds, key=lambda s: s.deviation)
        for arm in profiles
    }
    best = {
        arm: best_of(rows[arm], each, noise[arm], _along(study, rows[arm]))
        for arm, each in profiles.items()
    }
    pairs = [
        (other, one)
        for one, other in itertools.combinations(study.arms, 2)
        if _alike(study, one, other)
    ]
    shared = [
        (first, second, budget)
        for first, second in pairs
        for budget in study.arms[second].shapes
        if budget in study.arms[first].shapes
    ]
    surfaces = {
        arm: surface
        for arm, by_name in fits.items()
        if isinstance(surface := by_name.get(SURFACE), SurfaceFit) and best.get(arm)
    }
    widths = {arm: Widths(study, arm) for arm in surfaces}
    optima: dict[tuple[str, float], Optimum] = {}
    for arm, surface in surfaces.items():
        for budget in best[arm]:
            with contextlib.suppress(ValueError):  # no minimum between the widths
                optima[arm, budget] = widths[arm].optimum(surface, budget)
    losses = {
        (arm, float(row["budget"]), row["num_channels"], row["num_layers"]): nats_per_byte(row)
        for arm, each in rows.items()
        for row in each
    }
    differences = tuple(
        Difference(
            best[one][budget],
            best[other][budget],
            tuple(
                loss - losses[other, *network]
                for (arm, *network), loss in losses.items()
                if arm == one and network[0] == budget and (other, *network) in losses
            ),
            _apart(optima.get((one, budget)), optima.get((other, budget))),
            len(shared),
        )
        for one, other, budget in shared
        if budget in best.get(one, {}) and budget in best.get(other, {})
    )
    of_pairs = [
        list(each)
        for _, each in itertools.groupby(differences, lambda d: (d.first.arm, d.second.arm))
    ]
    return Findings(
        results,
        fits,
        tuple(scatter for scatter in (over_seeds, *about.values()) if scatter is not None),
        noise,
        best,
        widths,
        optima,
        differences,
        tuple(Change(each[0], each[-1]) for each in of_pairs if len(each) > 1),
        tuple(
            Place(each.first, each.second, size)
            for each in differences
            for size in ("N", _size_of(study, each))
        ),
        tuple(
            each
            for arm, surface in surfaces.items()
            for each in recounts(widths[arm], arm, surface, max(best[arm]))
        ),
        tuple(
            each
            for one, other in pairs
            if study.arms[one].tokenizer != study.arms[other].tokenizer
            if one in surfaces and other in surfaces
            for each in vocabularies(
                (one, other),
                (widths[one], widths[other]),
                (surfaces[one], surfaces[other]),
                max(best[one].keys() & best[other].keys()),
            )
        ),
        tuple(
            Trained(best[arm][stage.budgets[0]], other, stage.convention)
            for stage in study.stages.values()
            if stage.convention is not None
            for arm in stage.arms
            if stage.budgets[0] in best.get(arm, {})
            if (trained := averaged(results.of(arm, stage.convention)))
            for other in best_of(
                trained, flopcount.fit_isoflop_profiles(runs_of(trained)).profiles, noise[arm]
            ).values()
        ),
    )


def _apart(first: Optimum | None, second: Optimum | None) -> tuple[float, Interval | None] | None:
    """Δ of the losses of two optima, and its interval; None without them."""
    if first is None or second is None or first.loss is None or second.loss is None:
        return None
    if first.loss_interval is None or second.loss_interval is None:
        return first.loss - second.loss, None
    return difference((first.loss, first.loss_interval), (second.loss, second.loss_interval))


def _alike(study: Study, one: str, other: str) -> bool:
    """Whether two arms differ in their prefix or in their tokenizer, and not in both."""
    a, b = study.arms[one], study.arms[other]
    return (a.tokenizer == b.tokenizer) != (a.num_prefix == b.num_prefix)


def _size_of(study: Study, difference: Difference) -> str:
    """What a pair's N_opt is compared by, beside N: without what differs between its arms."""
    arms = study.arms[difference.first.arm], study.arms[difference.second.arm]
    return WITHOUT_POSITIONS if arms[0].tokenizer == arms[1].tokenizer else INNER
