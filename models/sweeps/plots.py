"""The plots of a sweep's report, each as PNG bytes, legible at the width of a phone."""

from __future__ import annotations

import io
import itertools
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerLine2D
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogFormatterMathtext, LogLocator, NullFormatter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from flopcount.isoflop.profiles import Profile
    from flopcount.isoflop.results import Interval, Optimum

_LOSS = "validation loss, nats per token"
_FLOPS = "training FLOPs"


def plot_profiles(
    profiles: Sequence[Profile],
    labels: Sequence[str] | None = None,
    loss: str = _LOSS,
    intervals: Sequence[Interval | None] | None = None,
) -> bytes:
    """Draw loss against N, one colour per budget: runs, parabola, its band, minimum with bars.

    Args:
        profiles: One per budget.
        labels: Of each in the legend; its FLOPs by default.
        loss: What the loss is.
        intervals: Of N_opt, 95 %; the bootstrap's by default, and its band.

    """
    if labels is None:
        labels = [f"{short(profile.flops)} FLOPs" for profile in profiles]
    ranges = [p.intervals["n_opt"] for p in profiles] if intervals is None else intervals
    figure, axes = _axes("parameters N", loss)
    axes.set_xscale("log")
    colours = itertools.cycle(colormaps["tab10"].colors)
    drawn = [profile.loss for profile in profiles]
    bands = bars = False
    for profile, interval, label, colour in zip(profiles, ranges, labels, colours, strict=False):
        sizes = profile.params
        axes.plot(sizes, profile.loss, "o", color=colour, label=label)
        if profile.coefficients is not None:
            grid = np.geomspace(sizes.min(), sizes.max(), 200)
            parabola = np.polynomial.Polynomial(profile.coefficients)
            axes.plot(grid, parabola(np.log(grid) - profile.centre), color=colour, linewidth=1)
            band = profile.band(grid) if intervals is None else None
            if band is not None:
                axes.fill_between(grid, *band, color=colour, alpha=0.15, linewidth=0)
                drawn.extend(band)
                bands = True
        if profile.n_opt is not None:
            ends = [[0], [0]]
            if interval is not None:
                low, high = np.clip([interval.low, interval.high], sizes.min() / 2, sizes.max() * 2)
                ends = [[profile.n_opt - low], [high - profile.n_opt]]
                bars = True
            axes.errorbar(
                profile.n_opt,
                profile.loss_opt,
                xerr=np.maximum(ends, 0),
                fmt="*",
                color=colour,
                markeredgecolor="black",
                markersize=9,
                capsize=3,
            )
    losses = np.concatenate(drawn)
    margin = 0.05 * np.ptp(losses) or 0.1
    axes.set_ylim(losses.min() - margin, losses.max() + margin)
    _few_ticks(axes)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    handles, names = axes.get_legend_handles_labels()
    bar = Line2D([], [], color="0.45", marker="|", markersize=7)
    if any(profile.n_opt is not None for profile in profiles):
        handles.append(Line2D([], [], linestyle="", marker="*", markersize=11, color="0.45"))
        names.append("minimum of the parabola")
    if bars:
        handles.append(bar)
        names.append("its bootstrap range" if intervals is None else "its 95 % interval")
    if bands:
        handles.append(Patch(color="0.45", alpha=0.3, linewidth=0))
        names.append("bootstrap band of the parabola")
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
        handler_map={bar: HandlerLine2D(numpoints=2)},
    )
    return _png(figure)


def plot_frontier(
    ylabel: str,
    points: Sequence[tuple[float, float, Any]],
    fitted: Sequence[tuple[float, float, Any]],
    published: Mapping[str, Sequence[float]],
    budgets: Sequence[float],
) -> bytes:
    """Draw optima against budget.

    Args:
        ylabel: What is optimal.
        points: Budget, optimum and its interval (or None) of every vertex that is used.
        fitted: The same along the fitted law.
        published: By name, a published law's values at ``budgets``.
        budgets: Of the laws.

    """
    figure, axes = _axes(_FLOPS, ylabel)
    axes.set(xscale="log", yscale="log")
    styles = itertools.cycle(["--", ":", "-."])
    for name, values in published.items():
        axes.plot(budgets, values, next(styles), color="0.45", linewidth=1.2, label=name)
    if fitted:
        flops, values, intervals = zip(*fitted, strict=True)
        axes.plot(flops, values, color="C0", label="law of this sweep, approach 2")
        if all(interval is not None for interval in intervals):
            low, high = zip(*((each.low, each.high) for each in intervals), strict=True)
            axes.fill_between(
                flops, low, high, color="C0", alpha=0.2, linewidth=0, label="its bootstrap band"
            )
    ranges = any(interval is not None for *_, interval in points)
    label = "minimum at a budget" + (", bootstrap range" if ranges else "")
    for flops, value, interval in points:
        ends = [[0], [0]] if interval is None else [[value - interval.low], [interval.high - value]]
        axes.errorbar(
            flops, value, yerr=np.maximum(ends, 0), fmt="o", color="C0", capsize=3, label=label
        )
        label = None  # one entry for all
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return _png(figure)


def plot_curves(
    runs: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    log: bool,
) -> bytes:
    """Draw validation loss against FLOPs, a line per run, coloured by its size.

    Args:
        runs: With ``run``, ``parameters`` and ``budget``.
        curves: By run, its rows with ``flops`` and ``validation_loss``.
        log: Whether both axes are logarithmic.

    """
    figure, axes = _axes(_FLOPS, _LOSS)
    if log:
        axes.set(xscale="log", yscale="log")
    sizes = sorted({run["parameters"] for run in runs})
    colours = dict(zip(sizes, colormaps["viridis"](np.linspace(0, 0.95, len(sizes))), strict=True))
    for run in runs:
        rows = curves[run["run"]]
        axes.plot(
            [row["flops"] for row in rows],
            [row["validation_loss"] for row in rows],
            color=colours[run["parameters"]],
            linewidth=1,
            marker=".",
            markersize=3,
        )
    for budget in sorted({run["budget"] for run in runs}):
        axes.axvline(budget, color="0.6", linestyle="--", linewidth=0.8)
    if log:
        _few_ticks(axes)
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1, 2, 3, 5) if high > 6 * low else range(1, 10))
        )
        axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    listed = sizes if len(sizes) <= 8 else [sizes[0], *sizes[len(sizes) // 2 :][:1], sizes[-1]]
    lines = [Line2D([], [], color=colours[size]) for size in listed]
    lines.append(Line2D([], [], color="0.6", linestyle="--", linewidth=0.8))
    labels = [*(f"N = {size:,.0f}" for size in listed), "budget"]
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return _png(figure)


def plot_arms(
    arms: Mapping[str, Sequence[tuple[float, float, float | None, bool]]], loss: str = _LOSS
) -> bytes:
    """Draw the least loss against budget, a line per arm; hollow where it is no minimum.

    Args:
        arms: By name, for every budget: FLOPs, loss, half the width of its interval (or None), and
            whether the loss is a minimum inside the sizes tried.
        loss: What the loss is.

    """
    figure, axes = _axes(_FLOPS, loss)
    axes.set_xscale("log")
    # Side by side, so that bars of equal budgets do not hide each other.
    shifts = np.geomspace(0.97, 1.03, len(arms))
    styles = zip(shifts, itertools.cycle("osD^v"), itertools.cycle(colormaps["tab10"].colors))
    for (name, points), (shift, marker, colour) in zip(arms.items(), styles, strict=False):
        flops = [shift * budget for budget, *_ in points]
        axes.plot(flops, [least for _, least, *_ in points], color=colour, linewidth=1)
        for at, (_, least, half_width, minimum) in zip(flops, points, strict=True):
            axes.errorbar(
                at,
                least,
                yerr=half_width,
                fmt=marker,
                color=colour,
                markerfacecolor=colour if minimum else "white",
                capsize=3,
            )
        axes.plot([], [], marker, color=colour, label=name)
    budgets = sorted({budget for points in arms.values() for budget, *_ in points})
    axes.set_xticks(budgets, [short(budget) for budget in budgets])
    axes.xaxis.set_minor_formatter(NullFormatter())
    if not all(minimum for points in arms.values() for *_, minimum in points):
        axes.plot([], [], "o", color="0.45", markerfacecolor="white", label="no minimum inside")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return _png(figure)


def plot_times(pairs: Sequence[tuple[float, float]], near: float) -> bytes:
    """Draw measured over predicted seconds against predicted seconds, a point per run.

    Args:
        pairs: Predicted and measured seconds.
        near: The deviation that is shaded.

    """
    figure, axes = _axes("predicted seconds of training", "measured / predicted seconds")
    axes.set(xscale="log", yscale="log")
    axes.axhspan(
        1 - near, 1 + near, color="C0", alpha=0.15, linewidth=0, label=f"within {near:.0%}"
    )
    axes.axhline(1, color="0.45", linewidth=0.8)
    predicted = [said for said, _ in pairs]
    axes.plot(predicted, [measured / said for said, measured in pairs], "o", markersize=4)
    _few_ticks(axes)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False)
    return _png(figure)


def plot_terms(shares: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draw what share of its FLOPs each model spends on what, a bar per model.

    Args:
        shares: By model, the share of every group of terms.

    """
    figure, axes = _axes("share of training FLOPs", "")
    names = list(shares)
    left = np.zeros(len(names))
    groups = list(dict.fromkeys(group for model in shares.values() for group in model))
    colours = colormaps["tab20"].colors
    for index, group in enumerate(groups):
        widths = np.array([shares[name].get(group, 0.0) for name in names])
        colour = colours[index % len(colours)]
        axes.barh(names, widths, left=left, color=colour, height=0.75, label=group)
        left += widths
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return _png(figure)


def optima_along(predictions: Sequence[Optimum], name: str) -> list[tuple[float, float, Any]]:
    """Budget, optimum and interval of ``params`` or ``tokens`` in predictions."""
    return [
        (each.flops, getattr(each, name), getattr(each, f"{name}_interval")) for each in predictions
    ]


def short(number: float) -> str:
    """A number of FLOPs in three digits, as ``3e10``.

    >>> short(3e10), short(1.25e11), short(2e5)
    ('3e10', '1.25e11', '2e5')
    """
    return re.sub(r"e\+?(-?)0*", r"e\1", f"{number:.3g}")


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _few_ticks(axes: Axes) -> None:
    """Label 1, 2 and 5 of every decade: a range of less than a decade needs more than its power."""
    low, high = axes.get_xlim()
    decades = np.log10(high / low)
    axes.xaxis.set_minor_formatter(NullFormatter())
    if decades > 3:
        axes.xaxis.set_major_formatter(LogFormatterMathtext())
        return
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3)))
    axes.xaxis.set_major_formatter(lambda value, _: short(value))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170)
    return buffer.getvalue()
