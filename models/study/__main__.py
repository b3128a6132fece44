"""IsoFLOP studies of what a prefix buys at equal compute: plan, train, predict, tell.

::

    python -m models.study plan --study cpu --runs DIR/runs.csv
    python -m models.study calibrate --study cpu --out DIR --minutes 3
    python -m models.study run --study cpu --out DIR --corpus 'train*' --validation 'val*'
    python -m models.study predict --study cpu --results DIR --arm 3n --budget 1e14 \
--out DIR/prediction-3n.json
    python -m models.study page --study cpu --results DIR --page docs/isoflop-study.md

The studies are those of :data:`models.study.design.STUDIES`. ``runs.csv`` gets a row as soon as a
run has ended, ``curves.csv`` its validations; checkpoints lie in ``--state``, which need not last.
A run that has a row, in ``--out`` or in a file given by ``--done``, is never trained
again. Stages that depend on results (the rule of learning rates, the sizes around a minimum, the
test of a prediction) are known as soon as those are there.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Literal

from flopcount import commands
from models.data.corpus import CorpusConfig
from models.results import read_table
from models.study.design import BOOTSTRAP, STUDIES, every_size, plan
from models.study.running import Clock, Schedule, calibrate, plan_text, run

StudyName = Literal[*STUDIES]
MINUTES = 9.0
"""That a call takes."""


@commands.defaults_of(plan, Clock)
def plan_runs(
    *,
    study: StudyName,
    stages: tuple[str, ...],
    predictions: tuple[Path, ...],
    runs: tuple[Path, ...] = (),
    flops_per_second: float,
    calibration: Path | None,
) -> None:
    """Print the runs that are known.

    Args:
        study: The design.
        stages: These alone, in this order.
        predictions: Files of predict.
        runs: Tables of runs.
        flops_per_second: Assumed for models that calibration.csv does not have.
        calibration: The table calibration.csv.
    """
    rows = [row for path in runs for row in read_table(path)]
    planned = plan(STUDIES[study], rows, stages, predictions)
    clock = Clock(calibration, flops_per_second)
    print(plan_text(planned, clock, [row["run"] for row in rows]))


def calibrate_models(*, study: StudyName, minutes: float = MINUTES, out: Path) -> None:
    """Time the training step of every model.

    Args:
        study: The design.
        minutes: End within.
        out: Folder of the results.
    """
    calibrate(every_size(STUDIES[study]), out, minutes)


@commands.defaults_of(plan_runs, Schedule)
def train(
    *,
    study: StudyName,
    stages: tuple[str, ...],
    predictions: tuple[Path, ...],
    flops_per_second: float,
    minutes: float = MINUTES,
    calibration: Path | None,
    out: Path,
    corpus: tuple[str, ...],
    validation: tuple[str, ...] = (),
    blank_lines: int = 3,
    state: Path | None = None,
    done: tuple[Path, ...],
    workers: int,
) -> None:
    """Train what is known, then what is known from its results.

    Args:
        study: The design.
        stages: These alone, in this order.
        predictions: Files of predict.
        flops_per_second: Assumed for models that calibration.csv does not have.
        minutes: End within.
        calibration: The table calibration.csv; that of ``--out`` by default.
        out: Folder of the results.
        corpus: Files or globs.
        validation: Files or globs held out.
        blank_lines: That part the documents.
        state: Of checkpoints; DIR/state by default.
        done: The runs.csv of earlier calls.
        workers: Runs side by side.
    """
    end = time.monotonic() + 60 * minutes
    state = state or out / "state"
    text = CorpusConfig(
        files=corpus, validation_files=validation, blank_lines=blank_lines, cache=state / "corpora"
    )
    trained: list[str] = []
    while True:
        rows = [row for path in (out / "runs.csv", *done) for row in read_table(path)]
        planned = plan(STUDIES[study], rows, stages, predictions)
        if [each.name for each in planned] == trained:
            left = []
            break
        clock = Clock(calibration or out / "calibration.csv", flops_per_second)
        remaining = (end - time.monotonic()) / 60
        left = run(Schedule(planned, text, out, state, remaining, clock, workers, done))
        if left:
            break
        trained = [each.name for each in planned]
    print(f"{len(left)} runs are left" + (f", {left[0]} first" if left else ""))


def predict_optimum(
    *,
    study: StudyName,
    results: tuple[Path, ...],
    arm: str,
    budget: float,
    out: Path,
    bootstrap: int = BOOTSTRAP,
) -> None:
    """Write a prediction down.

    Args:
        study: The design.
        results: Folders.
        arm: Of the design.
        budget: FLOPs, not yet trained.
        out: A new file, prediction*.json.
        bootstrap: Fits per interval.
    """
    # SciPy, which training does not need.
    from models.study.findings import find, read_results
    from models.study.prediction import predict

    made = predict(find(read_results(STUDIES[study], results), bootstrap), arm, budget, out)
    for name, said in made["approaches"].items():
        print(f"approach {name}: {said.get('reason') or _in_words(said)}")
    print(f"train {made['shapes']}; written to {out}: commit it before training")


def _in_words(said: dict[str, Any]) -> str:
    return f"N {said['params']:.4g}, D {said['tokens']:.4g}, loss {said['loss']:.4f}"


def fill_page(
    *, study: StudyName, results: tuple[Path, ...], page: Path, bootstrap: int = BOOTSTRAP
) -> None:
    """Fill a page's tables and plots.

    Args:
        study: The design.
        results: Folders.
        page: Markdown with marks.
        bootstrap: Fits per interval.
    """
    # Matplotlib and SciPy, which training does not need.
    from models.study.findings import find, read_results
    from models.study.page import fill

    for path in fill(page, find(read_results(STUDIES[study], results), bootstrap)):
        print(path)


def main(arguments: list[str] | None = None) -> int:
    """Command line.

    Returns:
        The exit status: 0; with one line on standard error, 2 where the input is wrong, 1 where
        a run failed.
    """
    parts = {
        "plan": plan_runs,
        "calibrate": calibrate_models,
        "run": train,
        "predict": predict_optimum,
        "page": fill_page,
    }
    try:
        commands.run(parts, "python -m models.study", arguments, __doc__)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
