"""Power laws of N_opt, D_opt and loss against budget: what approaches 1 and 2 end in."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from flopcount.isoflop.laws import ScalingLaw, power
from flopcount.isoflop.results import Interval, Optimum, interval, interval_text, optimum, plain
from flopcount.pictures import Drawn
from flopcount.sizes import quoted, require_positive_number
from flopcount.tables import Shown, Table

if TYPE_CHECKING:
    from flopcount.isoflop.results import FloatArray
    from flopcount.isoflop.runs import Runs

NAMES = ("a", "b", "loss exponent")
NO_FLOOR = (
    "the loss is a power law without a floor: it describes the budgets fitted, no larger ones"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Frontier:
    """log N_opt, log D_opt and log loss as straight lines in log C.

    Attributes:
        law: The laws of N_opt and D_opt.
        loss_factor: k_L in L = k_L·C^q; a local description, since it has no floor. None without
            losses.
        loss_exponent: q, negative.
        slopes: Bootstrap samples of the three slopes, one row each.
        intercepts: Of the three intercepts in log space.
        failed: Bootstrap samples in which fewer than two budgets had an optimum.
        confidence: Share of the bootstrap distribution in an interval.
        given: Exponents that were not fitted.
    """

    law: ScalingLaw
    loss_factor: float | None
    loss_exponent: float | None
    slopes: FloatArray = dataclasses.field(repr=False)
    intercepts: FloatArray = dataclasses.field(repr=False)
    failed: int
    confidence: float
    given: tuple[str, ...] = ()

    @property
    def intervals(self) -> dict[str, Interval | None]:
        """Of the exponents a, b and q."""
        samples = zip(NAMES, self.slopes.T, strict=True)
        return {name: interval(column, self.confidence) for name, column in samples}

    def predict(self, flops: float, method: str, sampled: tuple[FloatArray, FloatArray]) -> Optimum:
        """N_opt, D_opt and loss on the lines at a budget of ``flops``.

        Args:
            flops: C.
            method: The fit.
            sampled: N and D of what was fitted: how far outside they lie is said.
        """
        import numpy as np

        budget = require_positive_number("flops", flops)
        loss_opt = None
        if self.loss_factor is not None and self.loss_exponent is not None:
            loss_opt = power(self.loss_factor, budget, self.loss_exponent)
        point = self.law.n_opt(budget), self.law.d_opt(budget), loss_opt
        with np.errstate(over="ignore"):
            params, tokens, loss = np.exp(self.intercepts + self.slopes * np.log(budget)).T
        samples = params, tokens, loss
        return optimum(budget, point, samples, self.confidence, method, sampled)

    def table(self, title: str = "", *notes: str) -> Table:
        """Exponents and factors, with lines below."""
        intervals = self.intervals
        values = (
            ("a", self.law.a, self.law.k_n),
            ("b", self.law.b, self.law.k_d),
            ("loss exponent", self.loss_exponent, self.loss_factor),
        )
        rows = [
            [
                name,
                f"{exponent:.4f}",
                "given" if name in self.given else interval_text(intervals[name]),
                f"{factor:.5g}",
            ]
            for name, exponent, factor in values
            if exponent is not None
        ]
        columns = ["exponent of C", "value", f"{self.confidence:.0%} interval", "factor"]
        return Table(columns, rows, title, note="\n".join(notes))

    def to_dict(self) -> dict[str, Any]:
        """The lines as plain data."""
        return {
            "loss_factor": self.loss_factor,
            "loss_exponent": self.loss_exponent,
            "intervals": plain(self.intervals),
            "given": list(self.given),
            "num_bootstrap": len(self.slopes) + self.failed,
            "failed_bootstrap": self.failed,
        }


class LawsFit(Shown, Drawn):
    """A fit that ends in power laws through optima.

    Attributes:
        frontier: The power laws; None where there are none.
        runs: What was fitted.
    """

    frontier: Frontier | None
    runs: Runs
    _method: str

    @property
    def _lacks(self) -> str:
        """Why there are no power laws."""
        raise NotImplementedError

    @property
    def _sampled(self) -> tuple[FloatArray, FloatArray]:
        """N and D of what was fitted."""
        return self.runs.params, self.runs.tokens

    def predict(self, flops: float) -> Optimum:
        """N_opt, D_opt and, where there are losses, the loss for a budget, with intervals.

        Args:
            flops: C, FLOPs.

        Raises:
            TypeError: If ``flops`` is no number.
            ValueError: If it is not positive and finite, or the fit carries no power laws.
        """
        if self.frontier is None:
            raise ValueError(f"flops = {quoted(flops)}: no prediction{self._lacks}")
        return self.frontier.predict(flops, self._method, self._sampled)

    def _laws(self) -> dict[str, Any]:
        """The power laws as plain data."""
        if self.frontier is None:
            return {"law": None, "frontier": None}
        law = dataclasses.asdict(self.frontier.law)
        return {"law": law, "frontier": self.frontier.to_dict()}


def lines(log_flops: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Slopes and intercepts of least-squares lines through the finite values.

    Args:
        log_flops: log C of each optimum, shape (optima,), or one row per sample.
        values: log N, log D, log loss: shape (samples, 3, optima); NaN where there is no optimum.

    Returns:
        Two arrays of shape (samples, 3); NaN where fewer than two different budgets remain.
    """
    import numpy as np

    x = np.broadcast_to(np.asarray(log_flops)[..., None, :], values.shape)
    valid = np.isfinite(values)
    count = valid.sum(axis=-1)
    safe = np.maximum(count, 1)
    filled = np.where(valid, values, 0.0)
    x_mean = np.where(valid, x, 0.0).sum(axis=-1) / safe
    y_mean = filled.sum(axis=-1) / safe
    centred = np.where(valid, x - x_mean[..., None], 0.0)
    spread = (centred * centred).sum(axis=-1)
    enough = (count >= 2) & (spread > 1e-12)
    slope = (centred * filled).sum(axis=-1) / np.where(enough, spread, 1.0)
    slope = np.where(enough, slope, np.nan)
    return slope, y_mean - slope * x_mean


def fit_frontier(
    log_flops: FloatArray,
    values: FloatArray,
    sample_log_flops: FloatArray,
    samples: FloatArray,
    confidence: float,
    source: str,
) -> Frontier:
    """The lines through optima, and those through every bootstrap sample's optima.

    Args:
        log_flops: log C of the optima.
        values: log N, log D, log loss at the optima, shape (3, optima).
        sample_log_flops: log C in the samples, as :func:`lines` takes it.
        samples: Shape (samples, 3, optima), NaN where a sample has no optimum.
        confidence: Share of the bootstrap distribution in an interval.
        source: Names the fit in the law.
    """
    import numpy as np

    slope, intercept = (part[0] for part in lines(log_flops, values[None]))
    slopes, intercepts = lines(sample_log_flops, samples)
    usable = np.isfinite(slopes[:, :2]).all(axis=1)
    has_loss = bool(np.isfinite(slope[2]))
    with np.errstate(over="ignore"):
        k_n, k_d, k_l = np.exp(intercept).tolist()
    return Frontier(
        law=ScalingLaw(float(slope[0]), float(slope[1]), k_n, k_d, source),
        loss_factor=k_l if has_loss else None,
        loss_exponent=float(slope[2]) if has_loss else None,
        slopes=slopes[usable],
        intercepts=intercepts[usable],
        failed=int((~usable).sum()),
        confidence=confidence,
    )
