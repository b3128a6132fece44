"""Approach 1: the envelope of training curves, and power laws along it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flopcount.fitting.frontier import NO_FLOOR, Frontier, fit_frontier
from flopcount.fitting.results import CONFIDENCE, Optimum, require_bootstrap
from flopcount.fitting.runs import (
    FlaggedRow,
    cell_text,
    describe_selection,
    described,
    find_columns,
    flag_notes,
    parse_rows,
    read_table,
    rows_where,
)
from flopcount.laws import FLOPS_PER_PARAM_TOKEN
from flopcount.sizes import quoted
from flopcount.tables import table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]

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
    """

    curves: tuple[Curve, ...]
    flagged: tuple[FlaggedRow, ...]
    columns: dict[str, str]
    selection: str = ""

    @property
    def described(self) -> str:
        """What was read as what, in a line."""
        return described(self.columns, "", self.selection)


def read_curves(
    source: object,
    *,
    run: str | None = None,
    params: str | None = None,
    tokens: str | None = None,
    flops: str | None = None,
    loss: str | None = None,
    where: Mapping[str, str] | None = None,
) -> Curves:
    """Read training curves: one row per run and point of training.

    Args:
        source: A CSV or TSV file, a mapping from heading to column, or a pandas frame.
        run: Heading of the run's name; needed only where it is not recognised, as the rest.
        params: Heading of N.
        tokens: Heading of D so far.
        flops: Heading of C so far; where one of D and C is missing, C = 6·N·D.
        loss: Heading of the loss.
        where: Value by heading: only the rows with these values are read.

    Raises:
        TypeError: If ``source`` is neither a path, a mapping nor a frame.
        ValueError: If a role has no column or several, or if no curve has two points.

    >>> table = {"run": "aabb", "N": [1e6, 1e6, 2e6, 2e6], "D": [1e7, 2e7, 1e7, 2e7],
    ...          "loss": [4.0, 3.0, 3.9, 2.8]}
    >>> [curve.run for curve in read_curves(table).curves]
    ['a', 'b']
    """
    import numpy as np

    headings, rows = read_table(source)
    given = {"run": run, "params": params, "tokens": tokens, "flops": flops, "loss": loss}
    columns = find_columns(headings, given, list(given))
    missing = [role for role in ("run", "params", "loss") if role not in columns]
    if missing or not {"tokens", "flops"} & set(columns):
        raise ValueError(
            f"found columns {columns}: expected run, params, loss, and tokens or flops; name them, "
            f"as in run={headings[0]!r}; columns are {', '.join(map(repr, headings))}"
        )
    numeric = {role: heading for role, heading in columns.items() if role != "run"}
    good, flagged = parse_rows(headings, rows, numeric)
    selected = rows_where(headings, rows, where or {})
    good = [entry for entry in good if entry[0] in selected]
    flagged = [flag for flag in flagged if flag.row in selected]
    name_at = headings.index(columns["run"])
    by_run: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for number, values in good:
        by_run.setdefault(cell_text(rows[number - 1][name_at]), []).append((number, values))
    curves = []
    for name, points in by_run.items():
        sizes = {values["params"] for _, values in points}
        if len(sizes) > 1:
            raise ValueError(f"run {name!r} has {len(sizes)} values of params: expected one")
        size = sizes.pop()
        along: dict[float, tuple[float, float]] = {}
        for number, values in points:
            cost = values.get("flops", FLOPS_PER_PARAM_TOKEN * size * values.get("tokens", 0.0))
            if cost in along:
                reason = f"repeats the FLOPs of an earlier point of run {name!r}"
                flagged.append(FlaggedRow(number, reason, used=False))
                continue
            along[cost] = values.get("tokens", cost / FLOPS_PER_PARAM_TOKEN / size), values["loss"]
        if len(along) < 2:
            reason = f"run {name!r} has a single point"
            flagged.append(FlaggedRow(points[0][0], reason, used=False))
            continue
        costs = sorted(along)
        seen, losses = (np.array([along[cost][i] for cost in costs]) for i in (0, 1))
        curves.append(Curve(name, size, np.array(costs), seen, losses))
    if not curves:
        raise ValueError(f"no curve with two points among {len(rows)} rows: expected at least one")
    selection = describe_selection(where or {}, len(selected), len(rows))
    return Curves(
        tuple(curves), tuple(sorted(flagged, key=lambda flag: flag.row)), columns, selection
    )


@dataclasses.dataclass(frozen=True, eq=False)
class CurvesFit:
    """The envelope of training curves and the power laws along it.

    Attributes:
        frontier: The power laws.
        flops: Budgets at which the envelope is used.
        params: N of the best run at each.
        tokens: D of that run there.
        loss: Its loss there.
        at_edge: Budgets not used since the best run is the smallest or the largest of all.
        residuals: log N on the line less log N of the best run, per budget used.
        curves: What was fitted.
    """

    frontier: Frontier
    flops: FloatArray
    params: FloatArray
    tokens: FloatArray
    loss: FloatArray
    at_edge: int
    residuals: FloatArray
    curves: Curves = dataclasses.field(repr=False)

    def predict(self, flops: float) -> Optimum:
        """N_opt, D_opt and loss for a budget of ``flops``, with intervals.

        Raises:
            TypeError: If ``flops`` is no number.
            ValueError: If it is not positive and finite.
        """
        return self.frontier.predict(flops, "approach 1, envelope of training curves")

    def to_dict(self) -> dict[str, Any]:
        """The fit as plain data."""
        return {
            "method": "approach 1",
            "law": dataclasses.asdict(self.frontier.law),
            "frontier": self.frontier.to_dict(),
            "num_curves": len(self.curves.curves),
            "num_budgets": len(self.flops),
            "num_budgets_at_edge": self.at_edge,
            "flops_range": [float(self.flops.min()), float(self.flops.max())],
            "residuals": self.residuals.tolist(),
            "flagged": [dataclasses.asdict(flag) for flag in self.curves.flagged],
        }

    def __str__(self) -> str:
        notes = [
            f"envelope of {len(self.curves.curves)} curves at {len(self.flops)} budgets from "
            f"{self.flops.min():.3g} to {self.flops.max():.3g} FLOPs; {self.at_edge} more not "
            "used: the best run there is the smallest or the largest",
            NO_FLOOR,
        ]
        notes += [self.curves.described, *flag_notes(self.curves.flagged)]
        return table(
            ["exponent of C", "value", f"{self.frontier.confidence:.0%} interval", "factor"],
            self.frontier.records(),
            title="Approach 1: power laws along the envelope of training curves",
            note="\n".join(notes),
        )


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
    not used, since a better size may lie beyond. The bootstrap draws runs with replacement.

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
    source = f"approach 1, {len(sizes)} training curves"
    frontier = fit_frontier(log_flops, values, log_flops, samples, confidence, source)
    flops = np.exp(log_flops[used])
    params, tokens, loss = np.exp(values[:, used])
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
