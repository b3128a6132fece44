"""The tables and plots of a study's page, put between the marks of a page written by hand."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from flopcount.isoflop.results import interval_text
from models.files import write_atomically
from models.results import between_marks, markdown
from models.study.design import (
    TRIALS,
    Row,
    best_rates,
    fit_rule,
    sized,
)
from models.study.findings import (
    Findings,
    nats_per_byte,
    output_flops,
    seeds,
)
from models.study.prediction import OUTCOME_HEADS, outcome
from models.sweeps.plots import plot_arms, plot_profiles, plot_times, short

ROOT = Path(__file__).parents[2]
NONE_YET = "*No results yet.*\n"
LOSS = "validation loss, nats per byte"


def fill(page: Path, found: Findings) -> list[Path]:
    """Put every table between its marks, and the plots into the folder named as the page.

    Returns:
        The files that were written.

    Raises:
        ValueError: If a mark is missing.
    """
    text = page.read_text(encoding="utf-8")
    folder = page.with_suffix("")
    written = [page]
    for name, plot in plots_of(found).items():
        content = plot(found)
        shown = NONE_YET
        if content is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / f"{name}.png", content)
            written.append(folder / f"{name}.png")
            shown = f"![{name}]({folder.name}/{name}.png)\n"
        text = between_marks(text, f"plot {name}", shown)
    for name, table in TABLES.items():
        text = between_marks(text, name, table(found) or NONE_YET)
    write_atomically(page, text.encode())
    return written


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _size(row: Row) -> str:
    return f"{row['num_channels']}×{row['num_layers']}"


def stages(found: Findings) -> str:
    """Runs planned and ended, FLOPs and hours spent, by stage."""
    rows = []
    for stage, planned in itertools.groupby(found.results.planned, lambda each: each.stage):
        names = {each.name for each in planned}
        ended = [row for row in found.results.runs if row["run"] in names]
        seconds = [float(row["seconds"]) for row in ended]
        rows.append(
            {
                "stage": stage,
                "runs ended": f"{len(ended)} of {len(names)}",
                "causal FLOPs": short(sum(float(row["flops"]) for row in ended)),
                "hours of one core": f"{sum(filter(math.isfinite, seconds)) / 3600:.1f}",
            }
        )
    unknown = [stage for stage in found.results.study.stages if stage not in _column(rows, "stage")]
    rows += [
        {"stage": stage, "runs ended": "not known yet", "causal FLOPs": "", "hours of one core": ""}
        for stage in unknown
    ]
    return markdown(rows, rows[0])


def _column(rows: Sequence[dict[str, str]], name: str) -> list[str]:
    return [row[name] for row in rows]


def sizes(found: Findings) -> str:
    """N with and without positions, the cross part's share of the FLOPs, by arm and shape."""
    study = found.results.study
    rows = []
    for arm, side in study.arms.items():
        for shape in sorted({shape for shapes in side.shapes.values() for shape in shapes}):
            sizes = sized(study, arm, shape).counted()
            params, count = sizes.params(), sizes.flops()
            rows.append(
                {
                    "arm": arm,
                    "width × depth": f"{shape[0]}×{shape[1]}",
                    "N": _number(params.total),
                    "N without positions": _number(params.total - params.position_embedding.total),
                    "cross part of FLOPs": f"{count.cross_part.total / count.total:.1%}",
                    "output layer of FLOPs": f"{output_flops(count) / count.total:.1%}",
                    "budgets": ", ".join(short(b) for b, s in side.shapes.items() if shape in s),
                }
            )
    return markdown(rows, rows[0])


def rates(found: Findings) -> str:
    """Losses of the trials, the best rate of each size, and the rule's."""
    trials = [row for row in found.results.runs if row["stage"] == TRIALS]
    if not trials:
        return ""
    tried = sorted({float(row["learning_rate"]) for row in trials})
    best = best_rates(trials)
    known = len({width for _, width, _ in best}) > 1
    a, b = fit_rule(trials) if known else (math.nan, math.nan)
    rows = []
    for (arm, width, depth), (rate, inside) in best.items():
        losses = {
            float(row["learning_rate"]): nats_per_byte(row)
            for row in trials
            if (row["arm"], _size(row)) == (arm, f"{width}×{depth}")
        }
        rows.append(
            {"arm": arm, "width × depth": f"{width}×{depth}"}
            | {f"{rate:g}": f"{losses[rate]:.4f}" if rate in losses else "" for rate in tried}
            | {"best": f"{rate:.3g}" + ("" if inside else ", at an end")}
            | {
                "rule": f"{a * width**b:.3g}" if known else "–",
                "best / rule": f"{rate / (a * width**b):.2f}" if known else "–",
            }
        )
    rule = f"peak = {a:.3g} · width^{b:.3g}\n" if known else ""
    return f"{markdown(rows, rows[0])}\n{rule}{_rate_check(found)}"


def _rate_check(found: Findings) -> str:
    """Losses at other multiples of the rule's rate, beside those at the rule's."""
    by_run = {row["run"]: row for row in found.results.runs}
    rows = [
        {
            "arm": row["arm"],
            "budget": short(float(row["budget"])),
            "width × depth": _size(row),
            "of the rule's rate": times,
            LOSS: f"{loss:.4f}",
            "less that at the rule's": f"{loss - nats_per_byte(by_run[at_rule]):+.4f}",
        }
        for name, row in by_run.items()
        for at_rule, _, times in [name.partition("-times")]
        for loss in [nats_per_byte(row)]
        if times and at_rule in by_run
    ]
    return f"\n{markdown(rows, rows[0])}" if rows else ""


def noise(found: Findings) -> str:
    """The losses of several seeds, and both scatters."""
    rows = [
        {
            "arm": arm,
            "budget": short(float(budget)),
            "width × depth": shape,
            "losses": ", ".join(f"{loss:.4f}" for loss in losses),
            "standard deviation": f"{statistics.stdev(losses):.4f}",
        }
        for each in found.results.study.arms
        for (arm, budget, shape), losses in seeds(found.results.of(each)).items()
    ]
    scatters = [
        {
            "scatter": scatter.of,
            "nats per byte": f"{scatter.deviation:.4f}",
            "95 %": str(scatter.interval()),
            "degrees of freedom": str(scatter.freedom),
            "": "σ of the intervals" if scatter == found.noise else "",
        }
        for scatter in (found.from_seeds, found.about_parabolas)
        if scatter is not None
    ]
    return "\n".join(markdown(each, each[0]) for each in (rows, scatters) if each)


def optima(found: Findings) -> str:
    """Minimum of each arm at each budget: N, D and loss with 95 % intervals from σ."""
    rows = []
    for arm, by_budget in found.best.items():
        for budget, best in by_budget.items():
            half = None if found.noise is None else found.noise.half_width(best.variance)
            inside = best.n_opt is not None
            rows.append(
                {
                    "arm": arm,
                    "budget": short(budget),
                    "N_opt": _number(best.n_opt) if best.n_opt is not None else "–",
                    "95 % of N_opt": interval_text(best.n_interval(found.noise)),
                    "D_opt": f"{best.profile.d_opt:.4g}" if inside else "–",
                    LOSS: f"{best.loss:.4f}" + ("" if half is None else f" ± {half:.4f}"),
                    "best run": f"{_size(best.run)}, {nats_per_byte(best.run):.4f}",
                    "minimum": best.profile.verdict,
                }
            )
    return markdown(rows, rows[0]) if rows else ""


def differences(found: Findings) -> str:
    """What separates two arms at the same budget; intervals hold together at 95 %."""
    rows = [
        {
            "first − second": f"{each.first.arm} − {each.second.arm}",
            "budget": short(each.first.budget),
            "nats per byte": f"{each.delta:+.4f}"
            + ("" if each.half_width is None else f" ± {each.half_width:.4f}"),
            "verdict": each.verdict,
        }
        for each in found.differences
    ]
    return markdown(rows, rows[0]) if rows else ""


def fits(found: Findings) -> str:
    """What approaches 2 and 3 fit to each arm, as they print it."""
    blocks = []
    for arm in found.fits:
        for name, fit in found.fits[arm].items():
            blocks.append(f"{arm}, approach {name}:\n\n```\n{fit}\n```\n")
        for name, reason in found.reasons[arm].items():
            blocks.append(f"{arm}, approach {name}: no fit, {reason}.\n")
    return "\n".join(blocks)


def counts(found: Findings) -> str:
    """N_opt of each arm's surface under every way of counting, beside the causal one."""
    rows = [
        {
            "arm": each.arm,
            "counted as": each.count,
            "N_opt": _number(each.params) if math.isfinite(each.params) else "–",
            "over causal": f"{each.ratio:.3f}" if math.isfinite(each.ratio) else "–",
            "95 %": interval_text(each.interval),
        }
        for each in found.recounts
    ]
    trained = [
        {
            "trained": each.causal.arm,
            "causal budget": short(each.causal.budget),
            "budget held by": each.convention,
            "N_opt": "–" if each.other.n_opt is None else _number(each.other.n_opt),
            "over causal": "–" if each.ratio is None else f"{each.ratio:.3f}",
            "95 %": interval_text(each.interval),
            LOSS: f"{each.other.loss:.4f}",
            "less causal": f"{each.other.loss - each.causal.loss:+.4f}",
        }
        for each in found.trained
    ]
    return "\n".join(markdown(each, each[0]) for each in (rows, trained) if each)


def predictions(found: Findings) -> str:
    """Each prediction with its date and commit, beside what came out."""
    blocks = []
    for path in found.results.predictions:
        try:
            came = outcome(path, found.results.runs)
        except ValueError as error:
            blocks.append(f"{path.name}: not tested, {error}.\n")
            continue
        rows = [dict(zip(OUTCOME_HEADS, row, strict=True)) for row in came.rows]
        kind = "vertex of three" if came.is_vertex else "best run, no vertex inside"
        blocks.append(
            f"{came.made['arm']} at {short(came.made['budget'])} FLOPs, predicted "
            f"{came.made['date']} at commit {came.made['commit']}; came out: {kind}.\n\n"
            + markdown(rows, OUTCOME_HEADS)
        )
        trained = [
            {
                "run": row["run"],
                "N": _number(float(row["parameters"])),
                LOSS: f"{nats_per_byte(row):.4f}",
                "ended": row["date"],
            }
            for row in came.trained
        ]
        blocks.append(markdown(trained, trained[0]))
    return "\n".join(blocks)


def _timed(found: Findings) -> list[Row]:
    return [row for row in found.results.runs if math.isfinite(float(row["seconds"]))]


def seconds(found: Findings) -> str:
    """Measured over planned seconds by stage, with the load while they ran."""
    rows = []
    for stage, each in itertools.groupby(_timed(found), lambda row: row["stage"]):
        ran = list(each)
        ratios = [float(row["seconds"]) / float(row["predicted_seconds"]) for row in ran]
        loads = [float(row["load"]) for row in ran]
        rows.append(
            {
                "stage": stage,
                "runs": str(len(ran)),
                "measured / planned, median": f"{statistics.median(ratios):.2f}",
                "least": f"{min(ratios):.2f}",
                "most": f"{max(ratios):.2f}",
                "load at the end of a run": f"{min(loads):g} to {max(loads):g}",
            }
        )
    return markdown(rows, rows[0]) if rows else ""


def conditions(found: Findings) -> str:
    """What the results ran on, and the commands."""
    names = ("device", "python", "torch")
    rows = [
        {name: ", ".join(sorted({str(call[name]) for call in found.results.calls})) or "?"}
        for name in names
    ]
    commits = dict.fromkeys(row["commit"] for row in found.results.runs)
    said = [f"- {name}: {value}" for row in rows for name, value in row.items()]
    said.append(f"- commits: {', '.join(commits)}")
    texts = dict.fromkeys(row["corpus"] for row in found.results.runs)
    said.append(f"- digests of the tokenised text: {', '.join(texts)}")
    return "\n".join(said) + "\n"


TABLES: dict[str, Callable[[Findings], str]] = {
    each.__name__: each
    for each in (
        stages,
        sizes,
        rates,
        noise,
        optima,
        differences,
        fits,
        counts,
        predictions,
        seconds,
        conditions,
    )
}


def plot_of_arm(arm: str) -> Callable[[Findings], bytes | None]:
    """Loss against N of an arm, a parabola per budget."""

    def plot(found: Findings) -> bytes | None:
        fit = found.fits.get(arm, {}).get("2")
        return None if fit is None else plot_profiles(fit.profiles, loss=LOSS)

    return plot


def plot_differences(found: Findings) -> bytes | None:
    """The least loss of each arm against budget."""
    if not any(found.best.values()):
        return None

    def half_width(variance: float) -> float | None:
        return None if found.noise is None else found.noise.half_width(variance)

    return plot_arms(
        {
            arm: [
                (each.budget, each.loss, half_width(each.variance), each.n_opt is not None)
                for each in best.values()
            ]
            for arm, best in found.best.items()
            if best
        },
        loss=LOSS,
    )


def plot_seconds(found: Findings) -> bytes | None:
    """Measured over planned seconds."""
    pairs = [(float(row["predicted_seconds"]), float(row["seconds"])) for row in _timed(found)]
    return plot_times(pairs, 0.05) if pairs else None


def plots_of(found: Findings) -> dict[str, Callable[[Findings], bytes | None]]:
    """The plots that a page shows, by name."""
    of_arms = {f"profiles-{arm}": plot_of_arm(arm) for arm in found.results.study.arms}
    return {"arms": plot_differences} | of_arms | {"seconds": plot_seconds}
