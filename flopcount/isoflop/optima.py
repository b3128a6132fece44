"""Power laws through optima that are known already, with given or fitted exponents."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from flopcount.isoflop.frontier import Frontier, LawsFit, lines
from flopcount.isoflop.laws import Estimate, fit_power_law
from flopcount.isoflop.results import CONFIDENCE, require_bootstrap
from flopcount.isoflop.runs import Runs, flag_notes, warning_lines
from flopcount.sizes import quoted, require_positive_number
from flopcount.tables import Table

if TYPE_CHECKING:
    from flopcount.isoflop.results import FloatArray


SAME_BUDGET = 1.1
"""Runs whose FLOPs differ by less than this factor have one optimum,"""
SAME_SIZE = 2.0
"""and estimates of it do not differ by more than this factor, nor from the law."""


@dataclasses.dataclass(frozen=True, eq=False)
class OptimaFit(LawsFit):
    """Power laws through a table of optima.

    Attributes:
        frontier: The power laws.
        residuals: log N and log D on the laws less those of the optima, shape (2, optima).
        runs: The optima, with flagged rows.
    """

    frontier: Frontier
    residuals: FloatArray
    runs: Runs = dataclasses.field(repr=False)
    _method = "power laws through optima"

    @property
    def doubt(self) -> str:
        """Why the rows may be ordinary runs and no optima; empty if nothing says so."""
        advice = "; ordinary runs are no optima: fit them by --approach profiles or surface"
        runs = self.runs
        for index, flops in enumerate(runs.flops):
            # Runs come in the order of their FLOPs.
            end = int(runs.flops.searchsorted(flops * SAME_BUDGET, side="right"))
            sizes = runs.params[index:end]
            if sizes.max() > SAME_SIZE * sizes.min():
                pair = sorted(runs.rows[index + int(at)] for at in (sizes.argmin(), sizes.argmax()))
                return (
                    f"rows {pair[0]} and {pair[1]} hold N = {sizes.min():.4g} and "
                    f"{sizes.max():.4g} at about {flops:.4g} FLOPs{advice}"
                )
        worst = self._worst[0]
        if worst > SAME_SIZE:
            return f"a row's N is a factor of {worst:.3g} off the law{advice}"
        return ""

    @property
    def _worst(self) -> list[float]:
        """The factors by which N and D are off the laws at most."""
        import numpy as np

        worst: list[float] = np.exp(abs(self.residuals).max(axis=1)).tolist()
        return worst

    def to_dict(self) -> dict[str, Any]:
        """The fit as plain data."""
        return {
            "method": self._method,
            **self._laws(),
            "doubt": self.doubt,
            "residuals": {
                "params": self.residuals[0].tolist(),
                "tokens": self.residuals[1].tolist(),
            },
            "runs": self.runs.to_dict(),
        }

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per optimum, with how far the laws are off it, as logarithms."""
        params, tokens = self.residuals.tolist()
        return self.runs.records(params_residual=params, tokens_residual=tokens)

    def _draw(self, axes: Any) -> None:
        ends = [float(self.runs.flops.min()), float(self.runs.flops.max())]
        for name, values, law in (
            ("parameters", self.runs.params, self.frontier.law.n_opt),
            ("tokens", self.runs.tokens, self.frontier.law.d_opt),
        ):
            (marks,) = axes.plot(self.runs.flops, values, "o", label=name)
            axes.plot(ends, [law(end) for end in ends], color=marks.get_color())
        axes.set(
            xscale="log", yscale="log", xlabel="training FLOPs", title="Optima, with their laws"
        )
        axes.legend(fontsize="small")

    def _tables(self) -> list[Table | str]:
        params, tokens = self._worst
        notes = [
            f"{len(self.runs.rows)} optima; off the laws by factors of at most {params:.4g} in N, "
            f"{tokens:.4g} in D",
            *warning_lines([self.doubt] if self.doubt else []),
            self.runs.described,
            *flag_notes(self.runs.flagged),
        ]
        return [self.frontier.table("Power laws through optima", *notes)]


def fit_optima(
    runs: Runs,
    *,
    a: float | None = None,
    b: float | None = None,
    num_bootstrap: int = 0,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> OptimaFit:
    """Fit N_opt = k_N·C^a and D_opt = k_D·C^b to optima.

    An exponent that is not given is fitted with its factor in log space; a factor of a given
    exponent in linear space. The bootstrap draws optima with replacement.

    Args:
        runs: Optima, as ``read_runs(source, optima=True)`` returns them: a loss may be missing.
        a: Exponent of the parameters; None to fit it.
        b: Exponent of the tokens; None to fit it.
        num_bootstrap: Bootstrap fits; 0 gives no intervals.
        seed: Of the bootstrap's draws.
        confidence: Share of the bootstrap distribution that an interval holds.

    Returns:
        An :class:`OptimaFit`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or there are too few budgets.

    Source: as :func:`~flopcount.isoflop.laws.fit_power_law`.

    >>> from flopcount import read_runs
    >>> table = {"N": [3e6, 6e6, 12e6], "C": [1e12, 4e12, 16e12], "D": [2e6, 4e6, 8e6]}
    >>> fit = fit_optima(read_runs(table, optima=True))
    >>> round(fit.frontier.law.a, 9), round(fit.frontier.law.k_n, 9)
    (0.5, 3.0)
    """
    import numpy as np

    if not isinstance(runs, Runs):
        raise TypeError(f"runs = {quoted(runs)}: expected what read_runs returns")
    exponents = {
        name: None if value is None else require_positive_number(name, value)
        for name, value in (("a", a), ("b", b))
    }
    require_bootstrap(num_bootstrap, seed, confidence)
    rows = list(zip(runs.params.tolist(), runs.flops.tolist(), runs.tokens.tolist(), strict=True))
    estimates = [Estimate(*row) for row in rows]
    law = fit_power_law(estimates, f"power laws through {len(rows)} optima", **exponents)
    log_flops, log_loss = np.log(runs.flops), np.log(runs.loss)
    generator = np.random.default_rng(seed)
    slopes, intercepts = [], []
    for _ in range(num_bootstrap):
        drawn = generator.integers(len(rows), size=len(rows))
        try:
            sample = fit_power_law([estimates[index] for index in drawn], "a sample", **exponents)
        except ValueError:
            continue  # one budget alone was drawn: counted as failed below
        slope, intercept = _loss_line(log_flops[drawn], log_loss[drawn])
        slopes.append((sample.a, sample.b, slope))
        intercepts.append((math.log(sample.k_n), math.log(sample.k_d), intercept))
    loss_exponent, log_factor = _loss_line(log_flops, log_loss)
    has_loss = math.isfinite(loss_exponent)
    frontier = Frontier(
        law=law,
        loss_factor=math.exp(log_factor) if has_loss else None,
        loss_exponent=loss_exponent if has_loss else None,
        slopes=np.array(slopes).reshape(-1, 3),
        intercepts=np.array(intercepts).reshape(-1, 3),
        failed=num_bootstrap - len(slopes),
        confidence=confidence,
        given=tuple(name for name, value in exponents.items() if value is not None),
    )
    residuals = np.log(
        [[law.n_opt(flops) / params, law.d_opt(flops) / tokens] for params, flops, tokens in rows]
    ).T
    return OptimaFit(frontier, residuals, runs)


def _loss_line(log_flops: FloatArray, log_loss: FloatArray) -> tuple[float, float]:
    """Slope and intercept of log loss on log C; NaN without losses."""
    slope, intercept = lines(log_flops, log_loss[None, None])
    return float(slope[0, 0]), float(intercept[0, 0])
