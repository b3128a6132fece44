"""The report of a sweep: one HTML file that needs nothing else, and its plots as PNG beside it."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

import flopcount
from models.configuration import read_config
from models.sweep import SweepConfig, plan_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from flopcount.fitting import Profile, ProfilesFit

_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def fit_sweep(folder: Path) -> ProfilesFit:
    """Fit a finished sweep's final validation losses: a parabola in log N per budget.

    Args:
        folder: of the sweep, with its ``runs.csv``.

    Raises:
        ValueError: if the folder holds no finished sweep.

    """
    if not (folder / "runs.csv").exists():
        raise ValueError(f"{folder} must hold a finished sweep, got no runs.csv")
    runs = flopcount.read_runs(folder / "runs.csv", loss="validation_loss")
    return flopcount.fit_isoflop_profiles(runs)


def write_report(folder: Path) -> Path:
    """Fit a finished sweep and write ``report.html``, with ``*.png`` beside it.

    Per budget a parabola of the loss in log N gives the best size (approach 2 of arXiv
    2203.15556); one that has no minimum between the sizes tried is reported as such.

    Args:
        folder: of the sweep, ``runs.csv`` and all.

    Returns:
        The path of the report.

    Raises:
        ValueError: if the folder holds no finished sweep.

    """
    config = read_config(SweepConfig, folder)
    fitted = fit_sweep(folder)
    runs = _read_table(folder / "runs.csv")
    curves = {run["run"]: _read_table(folder / "runs" / run["run"] / "metrics.csv") for run in runs}
    plots = {
        "loss_against_flops": plot_curves(runs, curves),
        "loss_against_parameters": plot_profiles(fitted.profiles),
    }
    for name, content in plots.items():
        (folder / f"{name}.png").write_bytes(content)
    first = folder / "runs" / plan_runs(config)[0].name
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_TEMPLATE.read_text()).render(
        plots={name: base64.b64encode(content).decode() for name, content in plots.items()},
        profiles=fitted.profiles,
        fit=str(fitted),
        runs=runs,
        noise=_noise(runs),
        config=(folder / "config.json").read_text(),
        environment=json.loads((first / "environment.json").read_text()),
        commit=_commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        hours=sum(run["seconds"] for run in runs) / 3600,
    )
    path = folder / "report.html"
    path.write_text(page)
    return path


def plot_curves(runs: list[dict[str, Any]], curves: dict[str, list[dict[str, Any]]]) -> bytes:
    """Draw validation loss against FLOPs, a line per run, coloured by its size; a PNG."""
    figure, axes = _axes("training FLOPs (causal)")
    sizes = sorted({run["parameters"] for run in runs})
    colours = dict(zip(sizes, colormaps["viridis"](np.linspace(0, 0.95, len(sizes))), strict=True))
    for run in runs:
        rows = curves[run["run"]]
        axes.plot(
            [row["flops"] for row in rows],
            [row["validation_loss"] for row in rows],
            color=colours[run["parameters"]],
            linewidth=1.2,
            marker=".",
            markersize=4,
        )
    for budget in sorted({run["budget"] for run in runs}):
        axes.axvline(budget, color="0.6", linestyle="--", linewidth=0.8)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda flops, _: _short(flops))
    lines = [Line2D([], [], color=colours[size]) for size in sizes]
    axes.legend(lines, [f"N = {size:,.0f}" for size in sizes], frameon=False)
    return _png(figure)


def plot_profiles(profiles: Sequence[Profile]) -> bytes:
    """Draw loss against N, one colour per budget, with its parabola and vertex; a PNG."""
    figure, axes = _axes("parameters N")
    for profile, colour in zip(profiles, itertools.cycle(colormaps["tab10"].colors), strict=False):
        sizes = profile.params
        axes.plot(sizes, profile.loss, "o", color=colour, label=f"{_short(profile.flops)} FLOPs")
        if profile.coefficients is not None:
            grid = np.geomspace(sizes.min(), sizes.max(), 200)
            parabola = np.polynomial.Polynomial(profile.coefficients)
            axes.plot(grid, parabola(np.log(grid) - profile.centre), color=colour, linewidth=1)
        if profile.n_opt is not None:
            axes.plot(profile.n_opt, profile.loss_opt, "*", color=colour, markersize=13)
    axes.set_xticks(sorted({size for profile in profiles for size in profile.params}))
    axes.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
    axes.legend(frameon=False)
    return _png(figure)


def _axes(xlabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xscale="log", xlabel=xlabel, ylabel="validation loss, nats per token")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _short(flops: float) -> str:
    return f"{flops:.3g}".replace("e+", "e")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _read_table(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return [
            {name: value if name == "run" else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def _noise(runs: list[dict[str, Any]]) -> float | None:
    """Pool the standard deviation over seeds of runs alike; None with one seed."""
    groups: dict[tuple[float, float], list[float]] = {}
    for run in runs:
        groups.setdefault((run["budget"], run["parameters"]), []).append(run["validation_loss"])
    repeated = [np.var(losses, ddof=1) for losses in groups.values() if len(losses) > 1]
    return float(np.sqrt(np.mean(repeated))) if repeated else None


def _commit() -> str:
    """Name the checkout's commit, or say that there is none."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "not a checkout"
