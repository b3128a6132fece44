"""What the fits share: intervals, and the optimum at a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flopcount.sizes import quoted
from flopcount.tables import Shown, Table, shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
"""The share of the bootstrap distribution that an interval holds, unless another is given."""
MOST_BOOTSTRAP = 100_000
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Interval:
    """A percentile interval of a bootstrap distribution.

    Attributes:
        low: Lower end.
        high: Upper end.
        confidence: Share of the distribution in between.

    >>> print(Interval(0.45, 0.5, 0.95))
    0.45 … 0.5
    """

    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.low:.4g} … {self.high:.4g}"


def interval(samples: FloatArray, confidence: float) -> Interval | None:
    """The central interval of the finite samples; None where there are fewer than two.

    Source: the percentile bootstrap, Efron and Tibshirani 1993, section 13.3.

    >>> import numpy as np
    >>> interval(np.arange(101.0), 0.5)
    Interval(low=25.0, high=75.0, confidence=0.5)
    """
    import numpy as np

    finite = samples[np.isfinite(samples)]
    if finite.size < 2:
        return None
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), confidence)


def require_bootstrap(num_bootstrap: object, seed: object, confidence: object) -> None:
    """Raise unless a fit can take them.

    Raises:
        TypeError: If ``num_bootstrap`` or ``seed`` is no integer or ``confidence`` no float.
        ValueError: If ``num_bootstrap`` or ``seed`` is out of range, or ``confidence`` outside
            (0, 1).
    """
    if type(seed) is not int:
        raise TypeError(f"seed = {quoted(seed)}: expected an integer >= 0")
    if seed < 0:
        raise ValueError(f"seed = {quoted(seed)}: expected an integer >= 0")
    if type(num_bootstrap) is not int:
        raise TypeError(f"num_bootstrap = {quoted(num_bootstrap)}: expected an integer >= 0")
    if not 0 <= num_bootstrap <= MOST_BOOTSTRAP:
        raise ValueError(
            f"num_bootstrap = {quoted(num_bootstrap)}: expected an integer from 0 to "
            f"{MOST_BOOTSTRAP:,}"
        )
    if not isinstance(confidence, float):
        raise TypeError(f"confidence = {quoted(confidence)}: expected a float in (0, 1)")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: expected a float in (0, 1)")


def plain(intervals: Mapping[str, Interval | None]) -> dict[str, Any]:
    """Intervals as plain data, each with its ends and confidence, or None."""
    return {name: interval and dataclasses.asdict(interval) for name, interval in intervals.items()}


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns of equal length as one dictionary per row.

    >>> rows_of({"N": [1.0, 2.0], "loss": [4.0, 3.0]})
    [{'N': 1.0, 'loss': 4.0}, {'N': 2.0, 'loss': 3.0}]
    """
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@dataclasses.dataclass(frozen=True)
class Optimum(Shown):
    """The compute-optimal model at a budget, as a fit predicts it.

    Attributes:
        flops: C, training FLOPs.
        params: N_opt.
        tokens: D_opt.
        loss: Predicted loss at the optimum; None from a fit without losses.
        params_interval: Bootstrap interval of ``params``; None without a bootstrap.
        tokens_interval: Of ``tokens``.
        loss_interval: Of ``loss``.
        method: The fit that predicts it.
        remarks: What to know beside ``params``, ``tokens`` or ``loss``: how far it lies outside
            the runs, or that the fit does not determine it.
    """

    flops: float
    params: float
    tokens: float
    loss: float | None
    params_interval: Interval | None
    tokens_interval: Interval | None
    loss_interval: Interval | None
    method: str
    remarks: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain data."""
        return dataclasses.asdict(self)

    def records(self) -> list[dict[str, Any]]:
        """The prediction as one dictionary."""
        return [self.to_dict()]

    def _tables(self) -> list[Table | str]:
        values = [("N_opt", "params", 4), ("D_opt", "tokens", 4), ("loss", "loss", 5)]
        rows = [
            [
                label,
                f"{getattr(self, name):.{digits}g}",
                interval_text(getattr(self, f"{name}_interval")),
                self.remarks.get(name, ""),
            ]
            for label, name, digits in values
            if getattr(self, name) is not None
        ]
        return [
            Table(
                ["", "value", "interval", "against the runs"][: 4 if self.remarks else 3],
                [row[: 4 if self.remarks else 3] for row in rows],
                title=f"Optimum at {shown(self.flops)} FLOPs: {self.method}",
            )
        ]


def interval_text(interval: Interval | None) -> str:
    """The interval as a table cell; empty where there is none."""
    return "" if interval is None else str(interval)


def outside(value: float, sampled: FloatArray) -> str:
    """How far a value lies outside those sampled; empty if it lies inside.

    >>> import numpy as np
    >>> outside(1e12, np.array([1e8, 3e9])), outside(2e7, np.array([1e8, 3e9]))
    ('333 times the largest', '0.2 times the smallest')
    """
    low, high = float(sampled.min()), float(sampled.max())
    if value > high * (1 + _ROUNDING):
        return f"{value / high:.3g} times the largest"
    if value < low * (1 - _ROUNDING):
        return f"{value / low:.3g} times the smallest"
    return ""


def optimum(
    flops: float,
    point: tuple[float, float, float | None],
    samples: tuple[FloatArray, FloatArray, FloatArray],
    confidence: float,
    method: str,
    sampled: tuple[FloatArray, FloatArray],
    loss_remark: str = "",
) -> Optimum:
    """An :class:`Optimum` from a point estimate and bootstrap samples of N, D and loss.

    Args:
        flops: C.
        point: N, D and loss.
        samples: Of each.
        confidence: Share of the bootstrap distribution in an interval.
        method: The fit.
        sampled: N and D of what was fitted.
        loss_remark: What to know beside the loss.
    """
    params, tokens, loss = (interval(sample, confidence) for sample in samples)
    remarks = {
        "params": outside(point[0], sampled[0]),
        "tokens": outside(point[1], sampled[1]),
        "loss": loss_remark,
    }
    said = {name: remark for name, remark in remarks.items() if remark}
    return Optimum(flops, *point, params, tokens, loss, method, said)
