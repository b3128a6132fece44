"""Command line: ``python -m models train | plan | sweep | resume | report | generate | ...``."""

from __future__ import annotations

import sys

from flopcount.commands import defaults_of, prepare, whole_numbers, wrong_command

if __name__ == "__main__":
    prepare()  # first: a package that is missing is said in a line

import logging
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flopcount.extras import advice
from flopcount.tables import table
from models.configuration import read_config, read_fields
from models.networks.generation import generate
from models.sweeps.kill_test import kill_test
from models.sweeps.plan import SweepConfig, plan_runs
from models.sweeps.presets import DEMO
from models.sweeps.report import fit_sweep, write_report
from models.sweeps.run import run_sweep
from models.training.distributed import launched, launched_rank
from models.training.run import (
    ModelConfig,
    TrainConfig,
    choose_device,
    load_model,
    load_tokenizer,
    open_corpus,
    train,
)
from models.training.throughput import rates_of, why_no_utilisation

_CONSOLE = Console(stderr=True)
_Folder = tyro.conf.Positional[Path]
_Sweep = tyro.extras.subcommand_type_from_defaults(
    {"demo": DEMO, "custom": SweepConfig(budgets=tyro.MISSING, shapes=tyro.MISSING)},
    {
        "demo": "Two budgets and six sizes that train in minutes on two cores.",
        "custom": "Budgets and shapes of your own; the recipe is the article's.",
    },
)
app = tyro.extras.SubcommandApp()
_COMMANDS = {
    **dict.fromkeys(("train", "resume", "report", "kill-test", "generate"), ()),
    **dict.fromkeys(("plan", "sweep"), ("demo", "custom")),
}
"""What the word after a command must be."""


@app.command(name="train")
def train_run(folder: _Folder, config: Annotated[TrainConfig, tyro.conf.arg(name="")]) -> None:
    """Train one model.

    Args:
        folder: The run's own; made if need be.
        config: The run.

    """
    _train_with_progress(config, folder)


@app.command(name="plan")
def plan_sweep(config: Annotated[_Sweep, tyro.conf.arg(name="")]) -> None:
    """Print the runs of a sweep: every shape's steps on every budget.

    Args:
        config: The sweep.

    """
    _require_shapes_alone(config)
    runs = plan_runs(config)
    rows = [
        [
            run.name,
            run.parameters,
            run.config.steps,
            run.config.steps * config.recipe.batch_size * config.model.num_latents,
            run.flops,
            f"{run.flops / run.budget:.5f}",
        ]
        for run in runs
    ]
    columns = ["run", "parameters", "steps", "latent tokens", "FLOPs", "FLOPs / budget"]
    print(table(columns, rows, footer=[f"{len(runs)} runs", None, None, None, None, None]))


@app.command(name="sweep")
def sweep_runs(folder: _Folder, config: Annotated[_Sweep, tyro.conf.arg(name="")]) -> None:
    """Train a family of models on equal budgets, side by side, and write the report.

    Args:
        folder: The sweep's own; made if need be.
        config: The sweep.

    """
    _require_shapes_alone(config)
    run_sweep(config, folder)
    _report(folder)


@app.command
def resume(folder: _Folder) -> None:
    """Go on with the run or the sweep in a folder, as its configuration says.

    Args:
        folder: Of the run or the sweep.

    """
    if "budgets" in read_fields(folder):
        run_sweep(read_config(SweepConfig, folder), folder)
        _report(folder)
    else:
        _train_with_progress(read_config(TrainConfig, folder), folder)


@app.command
def report(folder: _Folder) -> None:
    """Write the report of a finished sweep again.

    Args:
        folder: Of the sweep.

    """
    _report(folder)


@app.command(name="kill-test")
@defaults_of(kill_test)
def kill_processes(folder: _Folder, *, kills: int, sweep_share: float, seed: int) -> None:
    """Kill processes of a small sweep at random moments, and compare it with one left alone.

    Args:
        folder: New or empty; the figures go to ``kill_test.json`` in it.
        kills: How many.
        sweep_share: The share of them that hits the sweep's own process, the rest hits workers.
        seed: Of the moments and victims.

    """
    result = kill_test(folder, kills, sweep_share, seed=seed)
    rows = [[name.replace("_", " "), value] for name, value in vars(result).items()]
    print(table(["", ""], [row for row in rows if row[0] != "problems"]))
    if result.problems:
        raise RuntimeError("; ".join(result.problems))
    print("every run equals its twin that was left alone, bit for bit; none was trained twice")


@app.command(name="generate")
@defaults_of(generate)
def generate_text(
    folder: _Folder,
    *,
    prompt: str | None = None,
    num_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None,
    seed: int = 0,
) -> None:
    """Continue a text with a run's model.

    Args:
        folder: Of the run.
        prompt: The text. By default the first M + 1 tokens of the held-out text: a shorter prompt
            is a context that the model never saw in training.
        num_tokens: Tokens to add.
        temperature: 0 for the most probable token each time.
        top_k: Draw from so many most probable tokens only.
        seed: Of the draws.

    """
    if "budgets" in read_fields(folder):
        raise ValueError(f"folder must be of a run, got a sweep: its runs are in {folder / 'runs'}")
    model = load_model(folder)
    tokenizer = load_tokenizer(folder)
    if prompt is None:
        config = read_config(TrainConfig, folder)
        corpus = open_corpus(config)
        start = corpus.validation[: config.model.num_prefix + 1]
    else:
        start = tokenizer.encode(prompt)
    continued = generate(
        model,
        torch.from_numpy(start.astype("int64"))[None],
        num_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    print(tokenizer.decode(continued[0]))


def _require_shapes_alone(config: SweepConfig) -> None:
    for name in ("num_channels", "num_layers"):
        if (value := getattr(config.model, name)) != getattr(ModelConfig, name):
            raise ValueError(f"{name} does nothing in a sweep, got {value}: it has shapes")


def _report(folder: Path) -> None:
    page = write_report(folder)
    print(fit_sweep(folder, num_bootstrap=0))
    print(f"report: {page}")


def _train_with_progress(config: TrainConfig, folder: Path) -> None:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn())
    columns += (TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
    progress = Progress(*columns, console=_CONSOLE, disable=launched_rank() > 0)
    task = progress.add_task("", total=config.steps)

    def show(done: int) -> None:
        progress.start()  # not before there is something to show
        progress.update(task, completed=done)

    try:
        rows = train(config, folder, show)
    finally:
        if progress.live.is_started:
            progress.stop()
    if launched_rank() > 0:
        return
    last = rows[-1] | rates_of(rows)
    print(f"{last['flops']:.4g} FLOPs, validation loss {last['validation_loss']:.4f}")
    rates = [f"{last['tokens_per_second']:,.0f} tokens/s", f"{last['flops_per_second']:.4g} FLOP/s"]
    rates += [f"{name.upper()} {last[name]:.2%}" for name in ("mfu", "hfu") if last.get(name)]
    print(", ".join(rates))
    if "mfu" not in last:
        print(why_no_utilisation(choose_device(config.device)))


def main() -> int:
    """Run the command line.

    Returns:
        The exit status: 0; with one line on standard error, 2 where the input is wrong, 1 where
        the work failed, 130 where it was interrupted.
    """
    handler = RichHandler(console=_CONSOLE, show_time=False, show_level=False, show_path=False)
    logging.basicConfig(format="%(message)s", handlers=[handler])
    logging.getLogger("models").setLevel(logging.INFO if launched_rank() == 0 else logging.WARNING)
    try:
        if wrong := wrong_command(sys.argv[1:], _COMMANDS):
            raise ValueError(wrong)
        app.cli(prog="python -m models", registry=whole_numbers())
    except ImportError as error:
        return _end(2, f"error: {advice(error)}")
    except ValueError as error:
        return _end(2, f"error: {error}")
    except (RuntimeError, OSError) as error:
        return _end(1, f"error: {error}")
    except KeyboardInterrupt:
        return _end(130, "interrupted: python -m models resume FOLDER goes on from here")
    return 0


def _end(status: int, message: str) -> int:
    process = f"process {launched_rank()}: " if launched() else ""
    print(process + message, file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
