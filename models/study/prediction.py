"""A prediction from a study's runs, written down before its run, and what came out."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flopcount
from flopcount.isoflop.results import CONFIDENCE, Interval, interval_text
from flopcount.isoflop.surface import SurfaceFit
from models.results import environment, timestamp
from models.study.design import PREDICTION, Row, Shape, Study, at_rule, sized
from models.study.findings import SURFACE, Findings, runs_of
from models.study.minima import Best, Scatter, averaged, best_of, difference

_HEADS = (
    "approach", "of", "predicted", "interval", "came out", "interval there", "inside", "agree",
)  # fmt: skip


def predict(findings: Findings, arm: str, budget: float, out: Path) -> dict[str, Any]:
    """Write down N_opt, D_opt and the loss of an arm at a budget not yet trained.

    By approach 2 and both objectives of approach 3, each with bootstrap intervals, or why it says
    nothing. ``approach`` names the one that is judged, a surface where there is one: the power law
    of approach 2's losses has no floor. ``noise`` is σ of a run, by which what comes out has
    intervals, too. ``shapes`` are what to train to test it: of the study's candidates, the nearest
    to that N_opt, to half and to twice of it.

    Raises:
        ValueError: If ``out`` exists, runs reach the budget already, or none predicts.
    """
    study, results = findings.results.study, findings.results
    if out.exists():
        raise ValueError(f"out must be a new file: a prediction is never changed, got {out}")
    if arm not in study.arms:
        raise ValueError(f"arm must be one of {list(study.arms)}, got {arm!r}")
    reached = [float(row["budget"]) for row in at_rule(results.runs, arm)]
    if not budget > (largest := max(reached, default=0.0)):
        raise ValueError(f"budget must lie above all trained budgets, up to {largest:g}: {budget}")
    by_approach: dict[str, Any] = {}
    for name, fit in findings.fits[arm].items():
        try:
            if isinstance(fit, str):
                raise ValueError(fit)
            if isinstance(fit, SurfaceFit):
                at = findings.widths[arm].optimum(fit, budget)
            else:
                at = fit.predict(budget)
            by_approach[name] = at.to_dict() | {"fit": str(fit)}
        except ValueError as error:
            by_approach[name] = {"reason": str(error)}
    trained = [row["run"] for row in results.fitted(arm)]
    judged = [name for name in (SURFACE, *by_approach) if "params" in by_approach.get(name, {})]
    if not judged:
        raise ValueError(f"no approach predicts from {len(trained)} runs: {by_approach}")
    noise = findings.noise[arm]
    prediction = {
        "arm": arm,
        "budget": budget,
        "approach": judged[0],
        "approaches": by_approach,
        "noise": noise and dataclasses.asdict(noise),
        "shapes": _shapes_near(study, arm, by_approach[judged[0]]["params"]),
        "runs": trained,
    } | {name: environment()[name] for name in ("commit", "command")}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        json.dumps(prediction | {"date": timestamp()}, indent=1) + "\n", encoding="utf-8"
    )
    return prediction


def _shapes_near(study: Study, arm: str, params: float) -> list[Shape]:
    """Candidates nearest to N, N/2 and 2·N in log N; each once."""
    sizes = {shape: sized(study, arm, shape).counted().params().total for shape in study.candidates}
    nearest = [
        min(sizes, key=lambda shape: abs(math.log(sizes[shape] / target)))
        for target in (params, params / 2, 2 * params)
    ]
    return list(dict.fromkeys(nearest))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A prediction beside what came out.

    Attributes:
        made: The prediction.
        trained: The runs at its budget.
        best: The vertex of the parabola in log N through three runs or more, where it lies inside
            them; else the run with the least loss.
        rows: By approach, what was predicted, its interval, and what came out.
    """

    made: Mapping[str, Any]
    trained: tuple[Row, ...]
    best: Best
    rows: list[Row]


def outcome(prediction: Path, runs: Iterable[Row]) -> Outcome:
    """What came of a prediction at its budget.

    Raises:
        ValueError: If no run at its budget is among ``runs``, or one had begun before, its seconds
            of training before its end.
    """
    made = json.loads(prediction.read_text(encoding="utf-8"))
    trained = [
        row
        for row in runs
        if row["arm"] == made["arm"]
        and row["stage"].startswith(PREDICTION)
        and float(row["budget"]) == made["budget"]
    ]
    if not trained:
        raise ValueError(f"runs must hold one at {made['budget']:g} FLOPs of {made['arm']}")
    at = datetime.datetime.fromisoformat(made["date"])
    early = [row["run"] for row in trained if _began(row) < at]
    if early:
        raise ValueError(f"{prediction.name} was made after {early} had begun: no prediction")
    noise = made["noise"] and Scatter(**made["noise"])
    sizes = averaged(trained)
    [profile] = flopcount.fit_isoflop_profiles(runs_of(sizes)).profiles
    [best] = best_of(sizes, [profile], noise).values()
    rows = []
    for name, said in made["approaches"].items():
        if "reason" in said:
            rows.append(dict.fromkeys(_HEADS, "") | {"approach": name, "of": said["reason"]})
            continue
        for what, (came, there) in _measured(best).items():
            ends = said[f"{what}_interval"]
            range_ = None if ends is None else Interval(**ends)
            cells = (
                name,
                what,
                f"{said[what]:.5g}",
                interval_text(range_),
                f"{came:.5g}",
                interval_text(there),
                "" if range_ is None else _yes(range_.low <= came <= range_.high),
                _agree((said[what], range_), (came, there), what != "loss"),
            )
            rows.append(dict(zip(_HEADS, cells, strict=True)))
    return Outcome(made, tuple(trained), best, rows)


def _measured(best: Best) -> dict[str, tuple[float, Interval | None]]:
    """N, D and loss with intervals; at one budget log D falls as log N rises, one for one."""
    half = best.half_width
    loss = None if half is None else Interval(best.loss - half, best.loss + half, CONFIDENCE)
    params = float(best.n_opt or best.run["parameters"])
    tokens = float(best.profile.d_opt or best.run["tokens"])
    factor = None if best.n_interval is None else best.n_interval.high / params
    return {
        "params": (params, best.n_interval),
        "tokens": (tokens, factor and Interval(tokens / factor, tokens * factor, CONFIDENCE)),
        "loss": (best.loss, loss),
    }


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _agree(
    predicted: tuple[float, Interval | None], came: tuple[float, Interval | None], log: bool
) -> str:
    """Whether two estimates, or their logarithms, are told apart by their intervals."""
    sides = []
    for value, range_ in (predicted, came):
        if range_ is None:
            return ""
        ends = [value, range_.low, range_.high]
        if log:
            ends = [-math.inf if end == 0 else math.log(end) for end in ends]
        sides.append((ends[0], Interval(ends[1], ends[2], range_.confidence)))
    _, between = difference(*sides)
    return _yes(between.low <= 0 <= between.high)


def _began(row: Row) -> datetime.datetime:
    ended = datetime.datetime.fromisoformat(row["date"])
    return ended - datetime.timedelta(seconds=float(row["seconds"]))
