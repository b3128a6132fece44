"""IsoFLOP studies of what a prefix buys at equal compute: plan, train, predict, tell.

::

    python -m models.study plan --study cpu --runs DIR/runs.csv
    python -m models.study calibrate --study cpu --out DIR --minutes 3
    python -m models.study run --study cpu --out DIR --corpus 'train*' --validation 'val*'
    python -m models.study predict --study cpu --arm 3n --budget 1e14 --runs DIR/runs.csv \
--out DIR/prediction-3n.json
    python -m models.study page --study cpu --results DIR --page docs/isoflop-study.md

The studies are those of :data:`models.study.design.STUDIES`. ``runs.csv`` gets a row as soon as a
run has ended, ``curves.csv`` its validations; checkpoints lie in ``--state``, which need not last
A run that has a row, in ``--out`` or in a file given by ``--done``, is never trained
again. Stages that depend on results (the rule of learning rates, the sizes around a minimum, the
test of a prediction) are known as soon as those are there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from flopcount.terminal import Parser
from models.data.corpus import CorpusConfig
from models.results import read_table
from models.study.design import STUDIES, every_size, plan
from models.study.running import Clock, Schedule, calibrate, plan_text, run


def _parser() -> Parser:
    parser = Parser(
        prog="python -m models.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    arguments: dict[str, dict[str, Any]] = {
        "--study": {"choices": STUDIES, "required": True, "help": "the design"},
        "--stages": {"nargs": "+", "help": "these alone, in this order"},
        "--predictions": {"nargs": "+", "type": Path, "default": [], "help": "files of predict"},
        "--runs": {"nargs": "+", "type": Path, "default": [], "help": "tables of runs"},
        "--flops-per-second": {
            "type": float,
            "default": 1e14,
            "help": "assumed for models that calibration.csv does not have",
        },
        "--minutes": {"type": float, "default": 9.0, "help": "end within"},
        "--calibration": {"type": Path, "help": "calibration.csv; that of --out by default"},
        "--out": {"type": Path, "required": True, "help": "folder of the results"},
    }
    asked = {
        "plan": (
            "--study",
            "--stages",
            "--predictions",
            "--runs",
            "--flops-per-second",
            "--calibration",
        ),
        "calibrate": ("--study", "--minutes", "--out"),
        "run": tuple(name for name in arguments if name != "--runs"),
    }
    made = {name: commands.add_parser(name) for name in asked}
    for name, options in asked.items():
        for option in options:
            made[name].add_argument(option, **arguments[option])
    train = made["run"]
    train.add_argument("--corpus", nargs="+", required=True, help="files or globs")
    train.add_argument("--validation", nargs="+", default=[], help="files or globs held out")
    train.add_argument("--blank-lines", type=int, default=3, help="that part the documents")
    train.add_argument("--state", type=Path, help="of checkpoints; DIR/state by default")
    train.add_argument("--done", nargs="+", type=Path, default=[], help="runs.csv of earlier calls")
    train.add_argument("--workers", type=int, default=1, help="runs side by side")
    predicting = commands.add_parser("predict", help="write a prediction down")
    predicting.add_argument("--study", **arguments["--study"])
    predicting.add_argument("--runs", required=True, nargs="+", type=Path, help="tables of runs")
    predicting.add_argument("--arm", required=True)
    predicting.add_argument("--budget", type=float, required=True, help="FLOPs, not yet trained")
    predicting.add_argument("--out", type=Path, required=True, help="a new file, prediction*.json")
    telling = commands.add_parser("page", help="fill a page's tables and plots")
    telling.add_argument("--study", **arguments["--study"])
    telling.add_argument("--results", nargs="+", type=Path, required=True, help="folders")
    telling.add_argument("--page", type=Path, required=True, help="markdown with marks")
    for made_later in (predicting, telling):
        made_later.add_argument("--bootstrap", type=int, default=1000, help="fits per interval")
    return parser


def _obey(given: argparse.Namespace) -> None:
    if given.command == "run":
        _train(given)
        return
    study = STUDIES[given.study]
    if given.command == "calibrate":
        calibrate(every_size(study), given.out, given.minutes)
        return
    if given.command == "page":
        # Matplotlib and SciPy, which training does not need.
        from models.study.findings import find, read_results
        from models.study.page import fill

        for path in fill(given.page, find(read_results(study, given.results), given.bootstrap)):
            print(path)
        return
    rows = [row for path in given.runs for row in read_table(path)]
    if given.command == "predict":
        from models.study.prediction import predict

        made = predict(study, rows, given.arm, given.budget, given.out, given.bootstrap)
        for name, said in made["approaches"].items():
            print(f"approach {name}: {said.get('reason') or _in_words(said)}")
        print(f"train {made['shapes']}; written to {given.out}: commit it before training")
        return
    planned = plan(study, rows, given.stages, given.predictions)
    clock = Clock(given.calibration, given.flops_per_second)
    print(plan_text(planned, clock, [row["run"] for row in rows]))


def _in_words(said: dict[str, Any]) -> str:
    return f"N {said['params']:.4g}, D {said['tokens']:.4g}, loss {said['loss']:.4f}"


def _train(given: argparse.Namespace) -> None:
    """Train what is known, then what is known from its results."""
    end = time.monotonic() + 60 * given.minutes
    state = given.state or given.out / "state"
    corpus = CorpusConfig(
        files=tuple(given.corpus),
        validation_files=tuple(given.validation),
        blank_lines=given.blank_lines,
        cache=state / "corpora",
    )
    trained: list[str] = []
    while True:
        rows = [row for path in (given.out / "runs.csv", *given.done) for row in read_table(path)]
        planned = plan(STUDIES[given.study], rows, given.stages, given.predictions)
        if [each.name for each in planned] == trained:
            left = []
            break
        left = run(
            Schedule(
                planned,
                corpus,
                given.out,
                state,
                (end - time.monotonic()) / 60,
                Clock(given.calibration or given.out / "calibration.csv", given.flops_per_second),
                given.workers,
                tuple(given.done),
            )
        )
        if left:
            break
        trained = [each.name for each in planned]
    print(f"{len(left)} runs are left" + (f", {left[0]} first" if left else ""))


def main(arguments: list[str] | None = None) -> int:
    """Command line.

    Returns:
        The exit status: 0; with one line on standard error, 2 where the input is wrong, 1 where
        a run failed.
    """
    given = _parser().parse_args(arguments)
    try:
        _obey(given)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
