"""Approach 1: the envelope of training curves, and power laws along it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flopcount.isoflop.columns import (
    FlaggedRow,
    cell_text,
    cells_of,
    describe_selection,
    find_columns,
    listed,
    missing,
    no_usable_row,
    parse_rows,
    read_table,
    rows_where,
    telling_columns,
)
from flopcount.isoflop.frontier import NO_FLOOR, Frontier, LawsFit, fit_frontier
from flopcount.isoflop.laws import FLOPS_PER_PARAM_TOKEN
from flopcount.isoflop.results import CONFIDENCE, require_bootstrap, rows_of
from flopcount.isoflop.runs import described, flag_notes, read_warnings, warning_lines
from flopcount.sizes import quoted
from flopcount.tables import Table

if TYPE_CHECKING:
    from flopcount.isoflop.results import FloatArray

MOST_BUDGETS = 100_000
NUM_BUDGETS = 1500
"""Budgets at which the envelope is read: Hoffmann et al. 2022, section 3.1."""


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One training run's loss against its FLOPs.

    Attributes:
        run: Its name.
        params: N.
        flops: C spent so far, rising.
        tokens: D seen so far.
        loss: Loss at each point.
    """

    run: str
    params: float
    flops: FloatArray
    tokens: FloatArray
    loss: FloatArray


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """Training curves and the rows that are not in them.

    Attributes:
        curves: One per run with at least two points.
        flagged: Rows left out, with reasons.
        columns: The heading used for each role.
        selection: Which rows were asked for, and how many others there are; empty if all were.
        warnings: What a reader should know before using a fit of them.
    """

    curves: tuple[Curve, ...]
    flagged: tuple[FlaggedRow, ...]
    columns: dict[str, str]
    selection: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        """What was read as what, and warnings, a line each."""
        lines = [described(self.columns, "", self.selection), *warning_lines(self.warnings)]
        return "\n".join(lines)


def read_curves(
    source: object,
    *,
    run: str | Sequence[str] | None = None,
    params: str | None = None,
    tokens: str | None = None,
    flops: str | None = None,
    loss: str | None = None,
    where: Mapping[str, str] | None = None,
) -> Curves:
    """Read training curves: one row per run and point of training, in any order.

    Units and contradictions are dealt with as by :func:`~flopcount.isoflop.runs.read_runs`. A name
    identifies a run: one N, and one loss at equal FLOPs. A row that repeats another is left out.

    Args:
        source: A CSV or TSV file, a mapping from heading to column, or a pandas frame.
        run: Heading of the run's name, or several headings whose values together name it; needed
            only where it is not recognised, as the rest.
        params: Heading of N.
        tokens: Heading of D so far.
        flops: Heading of C so far; where one of D and C is missing, C = 6·N·D.
        loss: Heading of the loss.
        where: Value by heading: only the rows with these values are read.

    Raises:
        TypeError: If ``source`` is neither a path, a mapping nor a frame.
        ValueError: If a role has no column or several, if names do not identify runs (with the
            columns that would), if columns cannot be what they are taken for, or if no curve has
            two points.

    >>> table = {"run": "aabb", "N": [1e6, 1e6, 2e6, 2e6], "D": [1e7, 2e7, 1e7, 2e7],
    ...          "loss": [4.0, 3.0, 3.9, 2.8]}
    >>> [curve.run for curve in read_curves(table).curves]
    ['a', 'b']
    """
    import numpy as np

    headings, rows = read_table(source)
    if not isinstance(run, str | Sequence | None):
        raise TypeError(f"run = {quoted(run)}: expected a column's name, or several")
    names = [run] if run is None or isinstance(run, str) else list(run)
    for name in names[1:]:
        find_columns(headings, {"run": name}, ["run"])
    given = {
        "run": names[0] if names else None,
        "params": params,
        "tokens": tokens,
        "flops": flops,
        "loss": loss,
    }
    columns = find_columns(headings, given, list(given))
    wanted = {"run", "params", "loss"}
    if not wanted <= columns.keys() or not {"tokens", "flops"} & columns.keys():
        raise missing(headings, columns, "run, params, loss, and tokens or flops")
    key = (columns["run"], *(name for name in names[1:] if name is not None))
    numeric = {role: heading for role, heading in columns.items() if role != "run"}
    good, flagged, decimal_commas = parse_rows(headings, rows, numeric)
    selected = rows_where(headings, rows, where)
    flagged = [flag for flag in flagged if flag.row in selected]
    points = {}
    for number, values in good:
        if number in selected:
            size, seen = values["params"], values.get("tokens", 0.0)
            cost = values.get("flops", FLOPS_PER_PARAM_TOKEN * size * seen)
            seen = values.get("tokens", cost / FLOPS_PER_PARAM_TOKEN / size)
            points[number] = _Point(size, cost, seen, values["loss"])
    if not points:
        raise no_usable_row("curve of two points", len(selected), flagged)
    values_of = {
        "params": np.array([point.params for point in points.values()]),
        "flops": np.array([point.flops for point in points.values()]),
        "tokens": np.array([point.tokens for point in points.values()]),
    }
    sizes = {number: point.params for number, point in points.items()}
    given_of = {role: heading for role, heading in given.items() if role != "run"}
    warnings = read_warnings(
        headings, rows, numeric, given_of, values_of, sizes, decimal_commas, ignored=key
    )
    cells = {heading: cells_of(headings, rows, heading) for heading in headings}

    def named(number: int, by: Sequence[str]) -> tuple[str, ...]:
        return tuple(cell_text(cells[heading][number]) for heading in by)

    contradiction = _contradiction({number: named(number, key) for number in points}, points)
    if contradiction:
        others = telling_columns(
            headings,
            {*key, *numeric.values()} - {columns["params"]},
            lambda more: _identifies(
                {number: named(number, (*key, *more)) for number in points}, points
            ),
        )
        telling = " or ".join(listed((*key, *more), " and ") + " together" for more in others[:3])
        raise ValueError(
            f"run = {listed(key, ' + ')} names no run: {contradiction}; "
            + (f"each is named by {telling}" if others else "no other columns tell them apart")
        )
    by_run: dict[tuple[str, ...], list[int]] = {}
    for number in points:
        by_run.setdefault(named(number, key), []).append(number)
    costs = {number: point.flops for number, point in points.items()}
    for heading in headings:
        if heading not in {*key, *numeric.values()}:
            for name_parts, numbers in by_run.items():
                values_along = {number: named(number, (heading,))[0] for number in numbers}
                if _interleaved(values_along, costs):
                    warnings += (
                        f"run {', '.join(name_parts)!r} has several values of {heading!r} over the "
                        "same FLOPs: if each is a run of its own, name runs by "
                        f"{listed((*key, heading), ' and ')} together",
                    )
                    break
    curves = []
    for name_parts, numbers in by_run.items():
        label = ", ".join(name_parts)
        along: dict[float, _Point] = {}
        for number in numbers:
            if points[number].flops in along:
                reason = f"repeats the FLOPs of an earlier point of run {label!r}"
                flagged.append(FlaggedRow(number, reason, used=False))
            along.setdefault(points[number].flops, points[number])
        if len(along) < 2:
            flagged.append(FlaggedRow(numbers[0], f"run {label!r} has a single point", used=False))
            continue
        path = np.array([dataclasses.astuple(along[cost]) for cost in sorted(along)])
        curves.append(Curve(label, float(path[0, 0]), path[:, 1], path[:, 2], path[:, 3]))
    flagged.sort(key=lambda flag: flag.row)
    if not curves:
        raise no_usable_row("curve of two points", len(selected), flagged)
    columns["run"] = " + ".join(key)
    return Curves(
        tuple(sorted(curves, key=lambda curve: (curve.params, curve.run))),
        tuple(flagged),
        columns,
        describe_selection(where, len(selected), len(rows)),
        warnings,
    )


@dataclasses.dataclass(frozen=True)
class _Point:
    """A row of a table of curves: N, C and D so far, and the loss."""

    params: float
    flops: float
    tokens: float
    loss: float


def _contradiction(names: Mapping[int, tuple[str, ...]], points: Mapping[int, _Point]) -> str:
    """Two rows under one name that one run cannot have; empty where there are none."""
    first: dict[tuple[Any, ...], int] = {}
    for number, point in points.items():
        name = names[number]
        other = points[first.setdefault((name,), number)]
        rows = f"(rows {first[(name,)]} and {number})"
        if other.params != point.params:
            return f"run {', '.join(name)!r} has N = {other.params:g} and {point.params:g} {rows}"
        at = (name, point.flops)
        other = points[first.setdefault(at, number)]
        if other != point:
            rows = f"(rows {first[at]} and {number})"
            return (
                f"run {', '.join(name)!r} has losses {other.loss:.6g} and {point.loss:.6g} at "
                f"{point.flops:.4g} FLOPs {rows}"
            )
    return ""


def _interleaved(values: Mapping[int, str], costs: Mapping[int, float]) -> bool:
    """Whether two values of a column, each at several points, lie over the same FLOPs."""
    spans: dict[str, list[float]] = {}
    for number, value in values.items():
        spans.setdefault(value, []).append(costs[number])
    ranges = sorted((min(span), max(span)) for span in spans.values() if len(span) >= 2)
    return any(nxt[0] < one[1] for one, nxt in itertools.pairwise(ranges))


def _identifies(names: Mapping[int, tuple[str, ...]], points: Mapping[int, _Point]) -> bool:
    """Whether each name is one run; a column that is new at every point names points, not runs."""
    if _contradiction(names, points):
        return False
    paths: dict[tuple[str, ...], set[float]] = {}
    for number, point in points.items():
        paths.setdefault(names[number], set()).add(point.flops)
    return 2 * sum(len(costs) >= 2 for costs in paths.values()) >= len(paths)


@dataclasses.dataclass(frozen=True, eq=False)
class CurvesFit(LawsFit):
    """The envelope of training curves and the power laws along it.

    Attributes:
        frontier: The power laws; None if one size has the least loss at all budgets used.
        flops: Budgets at which the envelope is used.
        params: N of the best run at each.
        tokens: D of that run there.
        loss: Its loss there.
        at_edge: Budgets not used since the best run is the smallest or the largest of all.
        residuals: log N on the line less log N of the best run, per budget used.
        curves: What was fitted.
    """

    frontier: Frontier | None
    flops: FloatArray
    params: FloatArray
    tokens: FloatArray
    loss: FloatArray
    at_edge: int
    residuals: FloatArray
    curves: Curves = dataclasses.field(repr=False)
    _method = "approach 1, envelope of training curves"

    @property
    def _sampled(self) -> tuple[FloatArray, FloatArray]:
        return self.params, self.tokens

    @property
    def _lacks(self) -> str:
        return f": {self.degenerate}"

    @property
    def degenerate(self) -> str:
        """Why the envelope carries no law; empty if it does."""
        if self.frontier is not None:
            return ""
        return (
            f"degenerate: N = {self.params[0]:.4g} has the least loss at all {len(self.flops)} "
            "budgets used, which gives N_opt no slope; train sizes between its neighbours"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fit as plain data."""
        return {
            "method": "approach 1",
            **self._laws(),
            "degenerate": self.degenerate,
            "num_curves": len(self.curves.curves),
            "num_budgets": len(self.flops),
            "num_budgets_at_edge": self.at_edge,
            "flops_range": [float(self.flops.min()), float(self.flops.max())],
            "residuals": None if self.frontier is None else self.residuals.tolist(),
            "warnings": list(self.curves.warnings),
            "flagged": [dataclasses.asdict(flag) for flag in self.curves.flagged],
        }

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per budget used: the envelope there."""
        columns = ("flops", "params", "tokens", "loss")
        return rows_of({name: getattr(self, name).tolist() for name in columns})

    def _draw(self, axes: Any) -> None:
        for curve in self.curves.curves:
            axes.plot(curve.flops, curve.loss, color="0.7", linewidth=0.8)
        axes.plot(self.flops, self.loss, ".", label="envelope, where it is used")
        axes.set(
            xscale="log", xlabel="training FLOPs", ylabel="loss",
            title="Approach 1: training curves",
        )  # fmt: skip
        axes.legend(fontsize="small")

    def _tables(self) -> list[Table | str]:
        notes = [
            f"envelope of {len(self.curves.curves)} curves at {len(self.flops)} budgets from "
            f"{self.flops.min():.3g} to {self.flops.max():.3g} FLOPs; {self.at_edge} more not "
            "used: the best run there is the smallest or the largest",
            f"{len(set(self.params.tolist()))} sizes have the least loss at the budgets used",
        ]
        read = [self.curves.described, *flag_notes(self.curves.flagged)]
        title = "Approach 1: power laws along the envelope of training curves"
        if self.frontier is None:
            return ["\n".join([title, self.degenerate, notes[0], *read])]
        return [self.frontier.table(title, *notes, NO_FLOOR, *read)]


def fit_training_curves(
    curves: Curves,
    *,
    num_budgets: int = NUM_BUDGETS,
    num_bootstrap: int = 0,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> CurvesFit:
    """Fit power laws along the envelope of training curves (approach 1).

    At budgets evenly spaced in log C, the run with the least loss, each curve interpolated in
    log C, gives N and D. Budgets at which the smallest or the largest model wins are counted and
    not used, since a better size may lie beyond. If a single size wins at all the others, the line
    through it has a = 0 whatever the truth: no law is given, and a bootstrap sample of that kind
    fails. The bootstrap draws runs with replacement.

    Args:
        curves: At least three sizes, as :func:`read_curves` returns them.
        num_budgets: Budgets at which the envelope is read.
        num_bootstrap: Bootstrap fits; 0 gives no intervals.
        seed: Of the bootstrap's draws.
        confidence: Share of the bootstrap distribution that an interval holds.

    Returns:
        A :class:`CurvesFit`.

    Raises:
        TypeError: If ``curves`` or another argument has the wrong type.
        ValueError: If there are fewer than three sizes, or no budget has its best run inside.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.1. Curves recorded under one long
    learning-rate schedule understate short runs, as its Appendix B says.
    """
    import numpy as np

    if not isinstance(curves, Curves):
        raise TypeError(f"curves = {quoted(curves)}: expected what read_curves returns")
    if type(num_budgets) is not int or not 2 <= num_budgets <= MOST_BUDGETS:
        raise ValueError(
            f"num_budgets = {quoted(num_budgets)}: expected an integer from 2 to {MOST_BUDGETS:,}"
        )
    require_bootstrap(num_bootstrap, seed, confidence)
    sizes = np.array([curve.params for curve in curves.curves])
    if len(np.unique(sizes)) < 3:
        raise ValueError(f"curves has {len(np.unique(sizes))} different sizes: expected at least 3")
    lowest = min(curve.flops[0] for curve in curves.curves)
    highest = max(curve.flops[-1] for curve in curves.curves)
    log_flops = np.linspace(np.log(lowest), np.log(highest), num_budgets)
    losses, log_tokens = _interpolated(curves, log_flops)
    runs = np.arange(len(sizes))
    values, at_edge = _envelope(runs, sizes, losses, log_tokens)
    used = np.isfinite(values[0])
    if used.sum() < 2:
        raise ValueError("curves: expected budgets at which a middle size has the least loss")
    generator = np.random.default_rng(seed)
    samples = np.empty((num_bootstrap, 3, num_budgets))
    for index in range(num_bootstrap):
        drawn = np.unique(generator.integers(len(sizes), size=len(sizes)))
        samples[index], _ = _envelope(drawn, sizes, losses, log_tokens)
    samples[~_several_sizes(samples)] = np.nan
    flops = np.exp(log_flops[used])
    params, tokens, loss = np.exp(values[:, used])
    frontier, residuals = None, np.full_like(flops, np.nan)
    if _several_sizes(values[None])[0]:
        source = f"approach 1, {len(sizes)} training curves"
        frontier = fit_frontier(log_flops, values, log_flops, samples, confidence, source)
        line = np.log(frontier.law.k_n) + frontier.law.a * log_flops[used]
        residuals = line - values[0, used]
    return CurvesFit(frontier, flops, params, tokens, loss, at_edge, residuals, curves)


def _interpolated(curves: Curves, log_flops: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Loss and log D of every run at every budget; an infinite loss outside a curve."""
    import numpy as np

    losses, tokens = [], []
    for curve in curves.curves:
        x = np.log(curve.flops)
        losses.append(np.interp(log_flops, x, curve.loss, left=np.inf, right=np.inf))
        tokens.append(np.interp(log_flops, x, np.log(curve.tokens)))
    return np.array(losses), np.array(tokens)


def _several_sizes(values: FloatArray) -> Any:
    """Whether the optima of each sample have several sizes; values as ``fit_frontier``'s."""
    import numpy as np

    log_n = values[:, 0]
    present = np.isfinite(log_n)
    least = np.where(present, log_n, np.inf).min(axis=1)
    return np.where(present, log_n, -np.inf).max(axis=1) > least


def _envelope(
    runs: Any, sizes: FloatArray, losses: FloatArray, log_tokens: FloatArray
) -> tuple[FloatArray, int]:
    """Log N, log D, log loss of the best of ``runs`` per budget, NaN at an edge; how often so."""
    import numpy as np

    best = runs[np.argmin(losses[runs], axis=0)]
    budgets = np.arange(losses.shape[1])
    least = losses[best, budgets]
    chosen = sizes[runs]
    inner = (sizes[best] > chosen.min()) & (sizes[best] < chosen.max())
    covered = np.isfinite(least)
    values = np.log([sizes[best], np.exp(log_tokens[best, budgets]), np.where(covered, least, 1.0)])
    values[:, ~(inner & covered)] = np.nan
    return values, int((covered & ~inner).sum())
