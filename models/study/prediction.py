"""A prediction from a study's runs, written down before its run, and what came out."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.design import PREDICTION, RUN_COLUMNS, Study

import flopcount
from benchmarks.measurement import environment, read_table, timestamp
from flopcount.fitting import Runs
from flopcount.tables import table

Row = dict[str, str]
BOOTSTRAP = 1000
"""Fits to runs drawn with replacement, for the intervals of approach 2."""
WIDTHS = range(64, 1025, 64)
DEPTHS = range(2, 17)
ASPECT_RATIOS = (32, 80)
"""Of width and depth, for a model of the predicted size; those of the study's larger models."""
OUTCOME_HEADS = ("approach", "of", "predicted", "interval", "best trained", "ratio, inside")


def select(rows: Iterable[Row], **where: str) -> list[Row]:
    """The rows of run tables that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


def _read(paths: Iterable[Path]) -> list[Row]:
    return [row for path in paths for row in read_table(path)]


def columns_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Rows of a run table as the fits read them."""
    return {name: [row[name] for row in rows] for name in RUN_COLUMNS}


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
    tables: Sequence[Path],
    arm: str,
    budget: float,
    out: Path,
    num_bootstrap: int = BOOTSTRAP,
) -> dict[str, Any]:
    """Fit an arm's runs and write down N_opt, D_opt and the loss at a budget not yet trained.

    Approach 2 and both objectives of approach 3, each with bootstrap intervals, or why it says
    nothing. ``shapes`` are what to train to test it: the study's kind of model nearest to N_opt,
    then to half and to twice of that, of the first approach that has an optimum.

    Raises:
        ValueError: if ``out`` exists, runs reach the budget already, or none predicts.
    """
    if out.exists():
        raise ValueError(f"out must be a new file: a prediction is never changed, got {out}")
    columns = columns_of(select(_read(tables), arm=arm, convention="causal"))
    largest = max(map(float, columns["budget"]), default=0.0)
    if not budget > largest:
        raise ValueError(f"budget must lie above all trained budgets, up to {largest:g}: {budget}")
    runs = flopcount.read_runs(columns, loss="validation_loss")
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
    out.write_text(json.dumps(prediction | {"date": timestamp()}, indent=1) + "\n")
    return prediction


def _shapes_near(study: Study, arm: str, params: float) -> list[tuple[int, int]]:
    """Shapes nearest to N, N/2 and 2·N in log N; each once."""
    candidates = {
        (width, depth): size
        for width in WIDTHS
        for depth in DEPTHS
        if ASPECT_RATIOS[0] <= width / depth <= ASPECT_RATIOS[1]
        for size in [_params(study, arm, width, depth)]
    }
    nearest = [
        min(candidates, key=lambda shape: abs(math.log(candidates[shape] / target)))
        for target in (params, params / 2, 2 * params)
    ]
    return list(dict.fromkeys(nearest))


def _params(study: Study, arm: str, width: int, depth: int) -> int:
    sizes = dataclasses.asdict(study.base.model) | {
        "num_prefix": study.prefixes[arm],
        "num_channels": width,
        "num_layers": depth,
        "num_heads": width // (study.base.head_dim or width),
        "prefix_dropout": 0.0,
    }
    return int(flopcount.PerceiverAR(**sizes).params().total)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A prediction beside what came out.

    Attributes:
        made: the prediction.
        trained: the runs at its budget.
        best: the one of the least validation loss.
        rows: under :data:`OUTCOME_HEADS`.
    """

    made: Mapping[str, Any]
    trained: tuple[Row, ...]
    best: Row
    rows: tuple[tuple[str | None, ...], ...]


def outcome(prediction: Path, runs: Iterable[Row]) -> Outcome:
    """What came of a prediction: the best of the models trained at its budget.

    Raises:
        ValueError: if no run at its budget is among ``runs``, or one had begun before, its seconds
            of training before its end.
    """
    made = json.loads(prediction.read_text())
    trained = [
        row
        for row in select(runs, arm=made["arm"], convention="causal", stage=PREDICTION)
        if float(row["budget"]) == made["budget"]
    ]
    if not trained:
        raise ValueError(f"runs must hold one at {made['budget']:g} FLOPs of {made['arm']}")
    at = datetime.datetime.fromisoformat(made["date"])
    early = [row["run"] for row in trained if _began(row) < at]
    if early:
        raise ValueError(f"{prediction.name} was made after {early} had begun: no prediction")
    best = min(trained, key=lambda row: float(row["validation_loss"]))
    rows: list[tuple[str | None, ...]] = []
    came = {"params": "parameters", "tokens": "tokens", "loss": "validation_loss"}
    for name, said in made["approaches"].items():
        if "reason" in said:
            rows.append((name, said["reason"], None, None, None, None))
            continue
        for what, column in came.items():
            value, range_ = float(best[column]), said[f"{what}_interval"]
            ends = None if range_ is None else (range_["low"], range_["high"])
            inside = "" if ends is None else ("yes" if ends[0] <= value <= ends[1] else "no")
            shown = "" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"
            ratio = f"{value / said[what]:.4f}"
            rows.append(
                (name, what, f"{said[what]:.5g}", shown, f"{value:.5g}", f"{ratio} {inside}")
            )
    return Outcome(made, tuple(trained), best, tuple(rows))


def _began(row: Row) -> datetime.datetime:
    ended = datetime.datetime.fromisoformat(row["date"])
    return ended - datetime.timedelta(seconds=float(row["seconds"]))


def compare(prediction: Path, tables: Sequence[Path]) -> str:
    """:func:`outcome` as text, with the runs that were trained.

    Raises:
        ValueError: as there.
    """
    found = outcome(prediction, _read(tables))
    trained = [
        [
            row["run"],
            int(row["parameters"]),
            f"{float(row['validation_loss']):.4f}",
            f"{float(row['epochs']):.3g}",
        ]
        for row in found.trained
    ]
    title = f"predicted {found.made['date']}, commit {found.made['commit']}"
    of_runs = table(["run", "N", "validation loss", "epochs"], trained)
    return f"{table(OUTCOME_HEADS, found.rows, title=title)}\n\n{of_runs}"
