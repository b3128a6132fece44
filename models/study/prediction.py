"""A prediction from a study's runs, written down before its run, and what came out."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import flopcount
from flopcount.isoflop.runs import Runs
from models.results import environment, timestamp
from models.study.design import (
    PREDICTION,
    RUN_COLUMNS,
    Row,
    Shape,
    Study,
    off_rule,
    sized,
)

BOOTSTRAP = 1000
"""Fits to runs drawn with replacement, for the intervals of approach 2."""
OUTCOME_HEADS = ("approach", "of", "predicted", "interval", "came out", "inside")


def columns_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows of a run table as the fits read them, with the loss in nats per byte."""
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in RUN_COLUMNS}
    losses = [float(row["validation_loss"]) / float(row["bytes_per_token"]) for row in rows]
    return columns | {"nats_per_byte": losses}


def approaches(runs: Runs, num_bootstrap: int) -> dict[str, Callable[[], Any]]:
    """Approach 2 and both objectives of approach 3, by name; each fits when it is called.

    A surface takes a search for each bootstrap fit, a parabola a small linear system: the former
    get a tenth of them.
    """
    return {
        "2": lambda: flopcount.fit_isoflop_profiles(runs, num_bootstrap=num_bootstrap),
        "3, huber-log": lambda: flopcount.fit_surface(runs, num_bootstrap=num_bootstrap // 10),
        "3, variable-projection": lambda: flopcount.fit_surface(
            runs, objective="variable-projection", num_bootstrap=num_bootstrap // 10
        ),
    }


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
    columns = columns_of(
        [
            row
            for row in rows
            if row["arm"] == arm and row["convention"] == "causal" and not off_rule(row)
        ]
    )
    largest = max(map(float, columns["budget"]), default=0.0)
    if not budget > largest:
        raise ValueError(f"budget must lie above all trained budgets, up to {largest:g}: {budget}")
    runs = flopcount.read_runs(columns, loss="nats_per_byte")
    found: dict[str, Any] = {}
    for name, fit in approaches(runs, num_bootstrap).items():
        try:
            fitted = fit()
            found[name] = fitted.predict(budget).to_dict() | {"fit": str(fitted)}
        except ValueError as error:
            found[name] = {"reason": str(error)}
    sizes = [made["params"] for made in found.values() if "params" in made]
    if not sizes:
        raise ValueError(f"no approach predicts from {len(runs.rows)} runs: {found}")
    prediction = {
        "arm": arm,
        "budget": budget,
        "approaches": found,
        "shapes": _shapes_near(study, arm, sizes[0]),
        "runs": columns["run"],
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
        rows: Under :data:`OUTCOME_HEADS`.
    """

    made: Mapping[str, Any]
    trained: tuple[Row, ...]
    best: dict[str, float]
    is_vertex: bool
    rows: tuple[tuple[str, ...], ...]


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
    read = flopcount.read_runs(columns_of(trained), loss="nats_per_byte")
    [profile] = flopcount.fit_isoflop_profiles(read).profiles
    least = int(np.argmin(read.loss))
    best = {
        "params": profile.n_opt or float(read.params[least]),
        "tokens": profile.d_opt or float(read.tokens[least]),
        "loss": profile.loss_opt or float(read.loss[least]),
    }
    rows = []
    for name, said in made["approaches"].items():
        if "reason" in said:
            rows.append((name, said["reason"], "", "", "", ""))
            continue
        for what, came in best.items():
            range_ = said[f"{what}_interval"]
            ends = None if range_ is None else (range_["low"], range_["high"])
            shown = "" if ends is None else f"{ends[0]:.4g} … {ends[1]:.4g}"
            inside = "" if ends is None else ("yes" if ends[0] <= came <= ends[1] else "no")
            rows.append((name, what, f"{said[what]:.5g}", shown, f"{came:.5g}", inside))
    return Outcome(made, tuple(trained), best, profile.n_opt is not None, tuple(rows))


def _began(row: Row) -> datetime.datetime:
    ended = datetime.datetime.fromisoformat(row["date"])
    return ended - datetime.timedelta(seconds=float(row["seconds"]))
