"""A prediction from a study's runs, written down before its run, and what came out."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import flopcount
from flopcount.isoflop.profiles import ProfilesFit
from flopcount.isoflop.results import Interval, interval_text
from flopcount.isoflop.runs import Runs
from flopcount.isoflop.surface import SurfaceFit
from models.results import environment, timestamp
from models.study.design import (
    PREDICTION,
    Row,
    Shape,
    Study,
    at_rule,
    sized,
)

BOOTSTRAP = 1000
"""Fits to runs drawn with replacement, for the intervals of approach 2."""
_HEADS = ("approach", "of", "predicted", "interval", "came out", "inside")


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


def predict(
    study: Study,
    rows: Sequence[Row],
    arm: str,
    budget: float,
    out: Path,
    num_bootstrap: int = BOOTSTRAP,
) -> dict[str, Any]:
    """Fit an arm's runs and write down N_opt, D_opt and the loss at a budget not yet trained.

    Approach 2 and both objectives of approach 3, each with bootstrap intervals, or why it says
    nothing. ``shapes`` are what to train to test it: of the study's candidates, the nearest to
    N_opt, then to half and to twice of that, of the first approach that has an optimum.

    Raises:
        ValueError: If ``out`` exists, runs reach the budget already, or none predicts.
    """
    if out.exists():
        raise ValueError(f"out must be a new file: a prediction is never changed, got {out}")
    if arm not in study.arms:
        raise ValueError(f"arm must be one of {list(study.arms)}, got {arm!r}")
    trained = at_rule(rows, arm)
    largest = max((float(row["budget"]) for row in trained), default=0.0)
    if not budget > largest:
        raise ValueError(f"budget must lie above all trained budgets, up to {largest:g}: {budget}")
    by_approach: dict[str, Any] = {}
    for name, fit in approaches(trained, num_bootstrap).items():
        try:
            if isinstance(fit, str):
                raise ValueError(fit)
            by_approach[name] = fit.predict(budget).to_dict() | {"fit": str(fit)}
        except ValueError as error:
            by_approach[name] = {"reason": str(error)}
    sizes = [made["params"] for made in by_approach.values() if "params" in made]
    if not sizes:
        raise ValueError(f"no approach predicts from {len(trained)} runs: {by_approach}")
    prediction = {
        "arm": arm,
        "budget": budget,
        "approaches": by_approach,
        "shapes": _shapes_near(study, arm, sizes[0]),
        "runs": [row["run"] for row in trained],
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
        best: N, D and loss: the vertex of the parabola in log N through three runs or more, where
            it lies inside them; else those of the run with the least loss.
        is_vertex: Which of both.
        rows: By approach, what was predicted, its interval, and what came out.
    """

    made: Mapping[str, Any]
    trained: tuple[Row, ...]
    best: dict[str, float]
    is_vertex: bool
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
    runs_there = runs_of(trained)
    [profile] = flopcount.fit_isoflop_profiles(runs_there).profiles
    least = int(np.argmin(runs_there.loss))
    best = {
        "params": profile.n_opt or float(runs_there.params[least]),
        "tokens": profile.d_opt or float(runs_there.tokens[least]),
        "loss": profile.loss_opt or float(runs_there.loss[least]),
    }
    rows = []
    for name, said in made["approaches"].items():
        if "reason" in said:
            rows.append(dict.fromkeys(_HEADS, "") | {"approach": name, "of": said["reason"]})
            continue
        for what, came in best.items():
            ends = said[f"{what}_interval"]
            range_ = None if ends is None else Interval(**ends)
            inside = (
                "" if range_ is None else ("yes" if range_.low <= came <= range_.high else "no")
            )
            cells = name, what, f"{said[what]:.5g}", interval_text(range_), f"{came:.5g}", inside
            rows.append(dict(zip(_HEADS, cells, strict=True)))
    return Outcome(made, tuple(trained), best, profile.n_opt is not None, rows)


def _began(row: Row) -> datetime.datetime:
    ended = datetime.datetime.fromisoformat(row["date"])
    return ended - datetime.timedelta(seconds=float(row["seconds"]))
