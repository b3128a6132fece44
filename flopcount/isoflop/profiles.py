"""Approach 2: a parabola in log N per budget, power laws through the vertices, and its bias."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flopcount.isoflop.columns import LARGEST, SMALLEST, FlaggedRow
from flopcount.isoflop.frontier import NO_FLOOR, Frontier, LawsFit, fit_frontier
from flopcount.isoflop.laws import CHINCHILLA_SURFACE, LossSurface
from flopcount.isoflop.results import (
    CONFIDENCE,
    Interval,
    interval,
    interval_text,
    plain,
    require_bootstrap,
)
from flopcount.isoflop.runs import Runs, flag_notes
from flopcount.isoflop.surface import fit_surface
from flopcount.sizes import quoted, require_positive_number
from flopcount.tables import Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from flopcount.isoflop.results import FloatArray

    IndexArray = npt.NDArray[np.intp]

MOST_SPAN = 1e6
BUDGET_GAP = 1.2
"""Runs whose FLOPs differ by less than this factor, in steps, share a budget."""
OFF_BUDGET = 1.1
"""A run further than this factor from its budget's median is reported."""
MOST_LOST = 0.05
"""The share of draws without a usable vertex above which a fit says so."""
OFF_CENTRE = 0.25
"""A vertex in the outer quarters of the sampled range of log N is reported as off-centre."""


@dataclasses.dataclass(frozen=True, eq=False)
class Profile:
    """One budget's parabola, loss = c₀ + c₁·x + c₂·x², x = log N - centre.

    Attributes:
        flops: The budget: the planned one, else the runs' geometric mean.
        rows: The rows of its runs.
        params: Their N.
        loss: Their losses.
        centre: The mean of log N.
        coefficients: c₀, c₁, c₂.
        residuals: Fitted minus observed loss, per run.
        n_opt: N at the vertex; None where the vertex is not used.
        d_opt: D at the vertex, on the parabola of log D in log N.
        loss_opt: Loss at the vertex.
        verdict: "used", perhaps with a remark, or why the vertex is not used.
        samples: Bootstrap samples of c₀, c₁, c₂, shape (samples, 3).
        vertices: Of log N, log D and loss at the vertex, NaN where it is not used.
        confidence: Share of the bootstrap distribution in an interval.
    """

    flops: float
    rows: tuple[int, ...]
    params: FloatArray
    loss: FloatArray
    centre: float
    coefficients: tuple[float, float, float] | None
    residuals: FloatArray
    n_opt: float | None
    d_opt: float | None
    loss_opt: float | None
    verdict: str
    samples: FloatArray = dataclasses.field(repr=False)
    vertices: FloatArray = dataclasses.field(repr=False)
    confidence: float

    @property
    def intervals(self) -> dict[str, Interval | None]:
        """Of ``n_opt``, ``d_opt`` and ``loss_opt``; None without a bootstrap or a vertex."""
        import numpy as np

        if self.n_opt is None:
            return dict.fromkeys(("n_opt", "d_opt", "loss_opt"))
        log_n, log_d, loss = self.vertices.T
        columns = {"n_opt": np.exp(log_n), "d_opt": np.exp(log_d), "loss_opt": loss}
        return {name: interval(column, self.confidence) for name, column in columns.items()}

    @property
    def lost(self) -> float:
        """The share of the bootstrap's draws without a usable vertex: no interval has them."""
        import numpy as np

        return float(np.isnan(self.vertices[:, 0]).mean()) if len(self.vertices) else 0.0

    def band(self, params: FloatArray) -> tuple[FloatArray, FloatArray] | None:
        """The interval of the parabola at each of some sizes; None with fewer than two samples.

        Args:
            params: N, shape (sizes,).
        """
        import numpy as np

        finite = self.samples[np.isfinite(self.samples).all(axis=1)]
        if len(finite) < 2:
            return None
        x = np.log(params) - self.centre
        losses = finite @ np.stack([np.ones_like(x), x, x * x])
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(losses, [tail, 1 - tail], axis=0)
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain data; of the bootstrap the intervals alone."""
        left_out = ("samples", "vertices")
        names = [field.name for field in dataclasses.fields(self) if field.name not in left_out]
        data = {name: getattr(self, name) for name in names}
        return data | {
            "params": self.params.tolist(),
            "loss": self.loss.tolist(),
            "residuals": None if self.coefficients is None else self.residuals.tolist(),
            "intervals": plain(self.intervals),
            "lost": self.lost,
        }


@dataclasses.dataclass(frozen=True)
class Bias:
    """What approach 2 finds on losses without noise, against the truth.

    Attributes:
        surface: The surface that the losses come from.
        budgets: C.
        span: Largest over smallest N of a profile, in the median.
        off_centre: Geometric mean of a profile's N over the true optimum, per budget.
        num_models: Models per budget, in the median.
        a: The exponent that approach 2 finds.
        true_a: The surface's.
        n_ratio: N_opt found over the true one, at the largest budget.
        d_ratio: D_opt likewise.
    """

    surface: LossSurface
    budgets: tuple[float, ...]
    span: float
    off_centre: tuple[float, ...]
    num_models: int
    a: float
    true_a: float
    n_ratio: float
    d_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """The bias as plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        ends = f"{min(self.off_centre):.3g}", f"{max(self.off_centre):.3g}"
        centre = " to ".join(dict.fromkeys(ends))
        return (
            "Approach 2 is biased even without noise (arXiv 2603.22339). On the surface of "
            f"{self.surface.source}, with {self.num_models} models over {self.span:.3g}x in N "
            f"around {centre} times the true optimum, it finds a = {self.a:.4f} where "
            f"{self.true_a:.4f} is true, and at "
            f"{max(self.budgets):.3g} FLOPs N_opt off by {self.n_ratio - 1:+.1%}, D_opt by "
            f"{self.d_ratio - 1:+.1%}."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ProfilesFit(LawsFit):
    """Parabolas per budget and the power laws through their vertices.

    Attributes:
        profiles: One per budget, in rising order.
        frontier: The power laws; None with fewer than two usable vertices.
        bias: What the method itself gets wrong at these sizes, on a surface fitted to the same
            runs; None where there is none.
        bias_note: Why there is none, or which budgets it leaves out.
        flagged: Rows left out, and rows used that are odd.
        runs: What was fitted.
    """

    profiles: tuple[Profile, ...]
    frontier: Frontier | None
    bias: Bias | None
    bias_note: str
    flagged: tuple[FlaggedRow, ...]
    runs: Runs = dataclasses.field(repr=False)
    _method = "approach 2, parabolas in log N"

    @property
    def bias_statement(self) -> str | None:
        """The bias in words, or why it is not known; None without a power law."""
        parts = ["" if self.bias is None else str(self.bias), self.bias_note]
        return " ".join(part for part in parts if part) or None

    @property
    def num_runs_used(self) -> int:
        """Runs of the profiles whose vertices are used."""
        return sum(len(profile.rows) for profile in self.profiles if profile.n_opt is not None)

    @property
    def _lacks(self) -> str:
        return (
            ", since it takes usable vertices at two budgets, and the fit has fewer; name the "
            "budgets where they are not found"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fit as plain data."""
        return {
            "method": "approach 2",
            **self._laws(),
            "profiles": [profile.to_dict() for profile in self.profiles],
            "bias": None if self.bias is None else self.bias.to_dict(),
            "bias_statement": self.bias_statement,
            "num_runs_used": self.num_runs_used,
            "flagged": [dataclasses.asdict(flag) for flag in self.flagged],
            "runs": self.runs.to_dict(),
        }

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per budget."""
        names = ("flops", "n_opt", "d_opt", "loss_opt", "verdict")
        return [
            {name: getattr(profile, name) for name in names} | {"runs": len(profile.rows)}
            for profile in self.profiles
        ]

    def _draw(self, axes: Any) -> None:
        import numpy as np

        for index, profile in enumerate(self.profiles):
            colour = f"C{index % 10}"
            axes.plot(
                profile.params, profile.loss, "o", color=colour, label=f"{profile.flops:.3g} FLOPs"
            )
            if profile.coefficients is not None:
                grid = np.geomspace(profile.params.min(), profile.params.max(), 200)
                parabola = np.polynomial.Polynomial(profile.coefficients)
                axes.plot(grid, parabola(np.log(grid) - profile.centre), color=colour)
                band = profile.band(grid)
                if band is not None:
                    axes.fill_between(grid, *band, color=colour, alpha=0.15, linewidth=0)
            if profile.n_opt is not None:
                axes.plot(profile.n_opt, profile.loss_opt, "*", color=colour, markersize=14)
        axes.set(
            xscale="log", xlabel="parameters N", ylabel="loss",
            title="Approach 2: a parabola per budget; stars: vertices used",
        )  # fmt: skip
        axes.legend(fontsize="small")

    def _tables(self) -> list[Table | str]:
        bootstrapped = any(p.intervals["n_opt"] for p in self.profiles)
        rows = [
            [
                p.flops,
                str(len(p.rows)),
                p.n_opt,
                *([interval_text(p.intervals["n_opt"])] if bootstrapped else []),
                p.d_opt,
                _digits(p.loss_opt),
                p.verdict,
            ]
            for p in self.profiles
        ]
        columns = ["FLOPs", "runs", "N_opt", "D_opt", "loss", "vertex"]
        if bootstrapped:
            columns.insert(3, f"{self.profiles[0].confidence:.0%} interval")
        title = "Approach 2: a parabola in log N per budget"
        notes = [self.runs.described, *flag_notes(self.flagged)]
        notes += [
            f"{p.flops:.3g} FLOPs: {p.lost:.0%} of the bootstrap's draws have no usable vertex and "
            "are not in its intervals"
            for p in self.profiles
            if p.n_opt is not None and p.lost > MOST_LOST
        ]
        if self.num_runs_used < len(self.runs.rows):
            notes.append(f"{self.num_runs_used} of {len(self.runs.rows)} runs are in profiles used")
        if self.bias_statement:
            notes.append(self.bias_statement)
        if self.frontier is None:
            notes.append("no power law: it takes usable vertices at two budgets")
            return [Table(columns, rows, title, note="\n".join(notes))]
        return [Table(columns, rows, title), self.frontier.table("", NO_FLOOR, *notes)]


def _digits(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.5g}"


def _groups(runs: Runs, budgets: Sequence[float] | None) -> list[IndexArray]:
    """Indices of the runs of each budget: given, planned, or with FLOPs close together."""
    import numpy as np

    if budgets is not None:
        if isinstance(budgets, str) or not isinstance(budgets, Sequence | np.ndarray):
            raise TypeError(f"budgets = {quoted(budgets)}: expected a sequence of numbers")
        centres = np.log(sorted({require_positive_number("budgets", value) for value in budgets}))
        if len(centres) == 0:
            raise ValueError("budgets is empty: expected at least one, or None")
        distance = np.abs(np.log(runs.flops)[:, None] - centres)
        nearest = np.where(
            distance.min(axis=1) <= math.log(BUDGET_GAP), distance.argmin(axis=1), -1
        )
        groups = [np.flatnonzero(nearest == index) for index in range(len(centres))]
        return [group for group in groups if len(group)]
    if runs.budget is not None:
        return [np.flatnonzero(runs.budget == budget) for budget in np.unique(runs.budget)]
    order = np.argsort(runs.flops, kind="stable")
    gaps = np.diff(np.log(runs.flops[order])) > math.log(BUDGET_GAP)
    return list(np.split(order, np.flatnonzero(gaps) + 1))


def _vertices(
    x: FloatArray, losses: FloatArray, log_tokens: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weighted parabolas and their vertices.

    Args:
        x: Centred log N, shape (runs,).
        losses: Loss, shape (runs,).
        log_tokens: log D, shape (runs,).
        weights: How often each run counts, shape (samples, runs).

    Returns:
        Coefficients of the loss (samples, 3), and x, log D and loss at the vertex (samples, 3):
        NaN where there are fewer than three sizes, no minimum, or a minimum out of range.
    """
    import numpy as np

    scale = np.abs(x).max() or 1.0
    powers = np.stack([np.ones_like(x), x / scale, (x / scale) ** 2])
    sizes, index = np.unique(x, return_inverse=True)
    present = np.stack([weights[:, index == i].sum(axis=1) > 0 for i in range(len(sizes))])
    enough = present.sum(axis=0) >= 3
    normal = np.einsum("ir,jr,sr->sij", powers, powers, weights)
    normal[~enough] = np.eye(3)
    right = np.einsum("ir,kr,sr->sik", powers, np.stack([losses, log_tokens]), weights)
    solution = np.linalg.solve(normal, right)
    solution[~enough] = np.nan
    c0, c1, c2 = solution[:, :, 0].T
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = np.where(c2 > 0, -c1 / (2 * c2), np.nan)
    outside = (vertex * scale < x.min()) | (vertex * scale > x.max())
    vertex = np.where(outside, np.nan, vertex)
    tokens = solution[:, 0, 1] + solution[:, 1, 1] * vertex + solution[:, 2, 1] * vertex**2
    loss = c0 + c1 * vertex + c2 * vertex**2
    coefficients = solution[:, :, 0] / np.array([1.0, scale, scale**2])
    return coefficients, np.stack([vertex * scale, tokens, loss], axis=1)


def _profile(
    runs: Runs,
    group: IndexArray,
    num_bootstrap: int = 0,
    generator: np.random.Generator | None = None,
    confidence: float = CONFIDENCE,
) -> Profile:
    import numpy as np

    log_n = np.log(runs.params[group])
    loss = runs.loss[group]
    centre = float(log_n.mean())
    x = log_n - centre
    planned = runs.budget
    flops = float(
        np.exp(np.log(runs.flops[group]).mean()) if planned is None else planned[group[0]]
    )
    rows = tuple(runs.rows[index] for index in group)
    distinct = len(np.unique(x))
    spread = float(runs.flops[group].max() / runs.flops[group].min())
    of_budget = functools.partial(
        Profile, flops, rows, runs.params[group], loss, centre, confidence=confidence
    )
    verdict = ""
    if distinct < 3:
        verdict = f"not used: {distinct} different sizes, expected at least 3"
    elif planned is None and spread > BUDGET_GAP**2:
        verdict = f"not used: FLOPs differ by a factor of {spread:.3g}: give budgets"
    if verdict:
        blank, no_samples = np.full_like(x, np.nan), np.empty((0, 3))
        return of_budget(None, blank, None, None, None, verdict, no_samples, no_samples)
    log_tokens = np.log(runs.tokens[group])
    coefficients, vertices = _vertices(x, loss, log_tokens, np.ones((1, len(x))))
    c0, c1, c2 = coefficients[0].tolist()
    residuals = c0 + c1 * x + c2 * x * x - loss
    at, log_d, loss_opt = vertices[0].tolist()
    if math.isnan(at):
        verdict = "not used: the parabola has no minimum"
        if c2 > 0:
            size = centre - c1 / (2 * c2)
            verdict = f"not used: vertex at N = {_exp(size)}, out of the range sampled"
        vertex: tuple[float | None, float | None, float | None] = (None, None, None)
    else:
        share = (at - x.min()) / (x.max() - x.min())
        centred = OFF_CENTRE <= share <= 1 - OFF_CENTRE
        verdict = "used" if centred else f"used, off-centre: at {share:.0%} of the range of log N"
        vertex = (math.exp(centre + at), math.exp(log_d), loss_opt)
    size = len(group)
    weights = np.empty((0, size))
    if generator is not None:
        counts = generator.multinomial(size, np.full(size, 1 / size), size=num_bootstrap)
        weights = counts.astype(np.float64)
    samples, drawn = _vertices(x, loss, log_tokens, weights)
    drawn += np.array([centre, 0.0, 0.0])
    return of_budget((c0, c1, c2), residuals, *vertex, verdict, samples, drawn)


def _exp(exponent: float) -> str:
    return f"{math.exp(exponent):.3g}" if abs(exponent) < 700 else f"e^{exponent:.3g}"


def _flagged(
    runs: Runs, groups: Sequence[IndexArray], profiles: Sequence[Profile]
) -> list[FlaggedRow]:
    """Odd rows of the table and of its profiles; of a profile that is not used no row is."""
    import numpy as np

    grouped = {int(index) for group in groups for index in group}
    flagged = [
        FlaggedRow(row, f"{flops:.3g} FLOPs are near no budget given", used=False)
        for index, (row, flops) in enumerate(zip(runs.rows, runs.flops.tolist(), strict=True))
        if index not in grouped
    ]
    for group in groups:
        middle = float(np.median(runs.flops[group]))
        for index in group:
            ratio = float(runs.flops[index]) / middle
            if not 1 / OFF_BUDGET <= ratio <= OFF_BUDGET:
                reason = f"off its budget's median, {middle:.3g} FLOPs, by {ratio - 1:+.0%}"
                flagged.append(FlaggedRow(runs.rows[index], reason, used=True))
    used = {row for profile in profiles if profile.n_opt is not None for row in profile.rows}
    return sorted(
        (
            dataclasses.replace(flag, used=flag.used and flag.row in used)
            for flag in (*runs.flagged, *flagged)
        ),
        key=lambda flag: flag.row,
    )


def fit_isoflop_profiles(
    runs: Runs,
    *,
    budgets: Sequence[float] | None = None,
    num_bootstrap: int = 0,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> ProfilesFit:
    """Fit a parabola of the loss in log N per budget, and power laws through the vertices.

    Runs share a budget if their FLOPs lie within a factor of 1.2 of one given in ``budgets``; else
    if they were planned for it (a column of budgets); else if their FLOPs follow each other within
    that factor, and then a chain that spreads over more than its square is no budget. A vertex
    that is no minimum, or lies outside the sizes sampled, is reported and not used. The bootstrap
    draws runs with replacement within each budget.

    Args:
        runs: As :func:`~flopcount.isoflop.runs.read_runs` returns them.
        budgets: C of the profiles, FLOPs; runs near none of them are reported and not used.
        num_bootstrap: Bootstrap fits; 0 gives no intervals.
        seed: Of the bootstrap's draws.
        confidence: Share of the bootstrap distribution that an interval holds.

    Returns:
        A :class:`ProfilesFit`, with the method's own bias at the sizes sampled, on a surface fitted
        to the same runs by :func:`~flopcount.isoflop.surface.fit_surface`.

    Raises:
        TypeError: If ``runs`` is of another type, or an argument of the wrong type.
        ValueError: If an argument is out of range.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.2.

    >>> from flopcount import read_runs
    >>> from flopcount.isoflop.laws import CHINCHILLA_SURFACE as surface
    >>> sizes = [(c, surface.n_opt(c) * r) for c in (1e20, 1e22) for r in (0.5, 1, 2)]
    >>> fit = fit_isoflop_profiles(read_runs({
    ...     "C": [c for c, _ in sizes], "N": [n for _, n in sizes],
    ...     "loss": [surface.loss(n, c / 6 / n) for c, n in sizes]}))
    >>> round(fit.frontier.law.a, 3), round(surface.n_exponent, 3)
    (0.452, 0.452)
    """
    import numpy as np

    if not isinstance(runs, Runs):
        raise TypeError(f"runs = {quoted(runs)}: expected what read_runs returns")
    require_bootstrap(num_bootstrap, seed, confidence)
    groups = _groups(runs, budgets)
    generator = np.random.default_rng(seed)
    profiles = tuple(
        _profile(runs, group, num_bootstrap, generator, confidence) for group in groups
    )
    frontier = _frontier(profiles, confidence)
    bias, reason = (None, "") if frontier is None else _bias_of(runs, profiles)
    flagged = tuple(_flagged(runs, groups, profiles))
    reported = dataclasses.replace(runs, flagged=flagged)
    return ProfilesFit(profiles, frontier, bias, reason, flagged, reported)


def _frontier(profiles: Sequence[Profile], confidence: float) -> Frontier | None:
    import numpy as np

    used = [profile for profile in profiles if profile.n_opt is not None]
    if len(used) < 2:
        return None
    log_flops = np.log([profile.flops for profile in used])
    points = np.array([[p.n_opt, p.d_opt, p.loss_opt] for p in used], dtype=np.float64)
    points[points <= 0] = np.nan  # a parabola's loss may fall below 0
    optima = np.log(points).T
    samples = np.stack([profile.vertices for profile in used], axis=2)
    loss = samples[:, 2]
    samples[:, 2] = np.log(np.where(loss > 0, loss, np.nan))
    num_runs = sum(len(profile.rows) for profile in profiles)
    source = f"approach 2, {len(used)} vertices of {num_runs} runs"
    return fit_frontier(log_flops, optima, log_flops, samples, confidence, source)


def _bias_of(runs: Runs, profiles: Sequence[Profile]) -> tuple[Bias | None, str]:
    """The bias at the profiles' sizes on a surface fitted to the runs, or why there is none."""
    used = [profile for profile in profiles if profile.n_opt is not None]
    try:
        fit = fit_surface(runs)
    except ValueError as error:
        return None, f"no bias: it takes a surface fitted to the same runs: {error}"
    if fit.bounds:
        return None, f"no bias: the surface is not determined: {', '.join(fit.bounds)}"
    surface = fit.surface
    exact = [_noise_free(surface, profile.flops, profile.params) for profile in used]
    left_out = [f"{profile.flops:.4g}" for profile in exact if profile.n_opt is None]
    where = f"at {', '.join(left_out)} FLOPs that surface has no vertex between the sizes"
    if len(left_out) > len(exact) - 2:
        return None, f"no bias: on a surface fitted to the same runs, {where}"
    bias = _bias(surface, [profile for profile in exact if profile.n_opt is not None])
    return bias, f"Left out: {where}." if left_out else ""


def approach_2_bias(
    budgets: Sequence[float],
    *,
    span: float = 16.0,
    num_models: int = 15,
    off_centre: float | Sequence[float] = 1.0,
    surface: LossSurface = CHINCHILLA_SURFACE,
) -> Bias:
    """Fit approach 2 to losses computed from a known surface, and say by how much it misses.

    The loss along a budget is no parabola in log N unless α = β; a parabola through it therefore
    has its vertex elsewhere, by a factor that grows with the span sampled. Where every budget is
    sampled alike, the factor is common and the exponent survives; where the centre drifts from
    budget to budget, the exponent is wrong as well.

    Args:
        budgets: C, FLOPs; at least two.
        span: Largest over smallest N per budget.
        num_models: Models per budget, evenly spaced in log N.
        off_centre: Geometric mean of the sizes over the true optimum: one number, or one each.
        surface: The truth.

    Returns:
        A :class:`Bias`.

    Raises:
        TypeError: If a number is not one.
        ValueError: If there are fewer than two budgets or three models, a number is not positive,
            the span is not above 1, or a budget has no vertex in range.

    Source: arXiv 2603.22339; reproduced here by fitting such losses.

    >>> bias = approach_2_bias([1e18, 1e20, 1e22])
    >>> abs(bias.a - bias.true_a) < 1e-9, round(bias.n_ratio, 4)
    (True, 1.0132)
    """
    import numpy as np

    costs = [require_positive_number("budgets", budget) for budget in budgets]
    if not all(SMALLEST <= cost <= LARGEST for cost in costs):
        raise ValueError(f"budgets = {quoted(budgets)}: expected {SMALLEST:g} to {LARGEST:g} FLOPs")
    if len(set(costs)) < 2:
        raise ValueError(f"budgets = {quoted(budgets)}: expected at least two different ones")
    if not 1 < require_positive_number("span", span) <= MOST_SPAN:
        raise ValueError(f"span = {quoted(span)}: expected a ratio above 1, to {MOST_SPAN:g}")
    if type(num_models) is not int or num_models < 3:
        raise ValueError(f"num_models = {quoted(num_models)}: expected an integer >= 3")
    centres = list(off_centre) if isinstance(off_centre, Sequence) else [off_centre] * len(costs)
    if len(centres) != len(costs):
        raise ValueError(f"off_centre = {quoted(off_centre)}: expected one number or one a budget")
    for centre in centres:
        if not 1 / MOST_SPAN <= require_positive_number("off_centre", centre) <= MOST_SPAN:
            raise ValueError(
                f"off_centre = {quoted(centre)}: expected a ratio from {1 / MOST_SPAN:g} to "
                f"{MOST_SPAN:g}"
            )
    half = math.log(span) / 2
    ratios = np.exp(np.linspace(-half, half, num_models))
    exact = [
        _noise_free(surface, cost, surface.n_opt(cost) * centre * ratios)
        for cost, centre in zip(costs, centres, strict=True)
    ]
    for profile in exact:
        if profile.n_opt is None:
            what = profile.verdict.removeprefix("not used: ")
            raise ValueError(
                f"off_centre = {quoted(off_centre)}, span = {span:g}: the parabola at "
                f"{profile.flops:.4g} FLOPs gives no optimum between N = "
                f"{profile.params.min():.4g} and {profile.params.max():.4g} ({what}): expected "
                "sizes on both sides of every optimum"
            )
    return _bias(surface, exact)


def _noise_free(surface: LossSurface, flops: float, params: FloatArray) -> Profile:
    """The profile of a surface's own losses at a budget, at some sizes."""
    import numpy as np

    sizes = np.sort(params)
    tokens = flops / surface.flops_per_param_token / sizes
    losses = [surface.loss(n, d) for n, d in zip(sizes.tolist(), tokens.tolist(), strict=True)]
    cost = np.full_like(sizes, flops)
    rows = tuple(range(1, len(sizes) + 1))
    runs = Runs(sizes, tokens, cost, np.array(losses), cost, rows, (), {}, "")
    return _profile(runs, np.arange(len(sizes)))


def _bias(surface: LossSurface, profiles: Sequence[Profile]) -> Bias:
    """What approach 2 makes of a surface's own profiles, against the surface's optima."""
    import numpy as np

    frontier = _frontier(profiles, CONFIDENCE)
    if frontier is None:
        raise ValueError(f"{len(profiles)} profiles: expected two budgets with a vertex each")
    budgets = [profile.flops for profile in profiles]
    law, largest = frontier.law, max(budgets)
    centres = [math.exp(profile.centre) / surface.n_opt(profile.flops) for profile in profiles]
    return Bias(
        surface=surface,
        budgets=tuple(budgets),
        span=float(np.median([p.params.max() / p.params.min() for p in profiles])),
        off_centre=tuple(centres),
        num_models=int(np.median([len(np.unique(p.params)) for p in profiles])),
        a=law.a,
        true_a=surface.n_exponent,
        n_ratio=law.n_opt(largest) / surface.n_opt(largest),
        d_ratio=law.d_opt(largest) / surface.d_opt(largest),
    )
