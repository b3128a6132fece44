"""The tables and plots of a study's page, put between the marks of a page written by hand."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from flopcount.isoflop.results import Interval, interval_text
from models.files import write_atomically
from models.results import between_marks, markdown
from models.study.design import TRIALS, Row, best_rates, fit_rule, nats_per_byte, sized
from models.study.findings import (
    CROSS,
    WHOLE,
    WITHOUT_POSITIONS,
    Findings,
    output_flops,
)
from models.study.minima import half_width, seeds
from models.study.prediction import outcome
from models.sweeps.plots import plot_arms, plot_profiles, plot_times, short

NONE_YET = "*No results yet.*\n"
LOSS = "validation loss, nats per byte"
STAGE_COLUMNS = ("stage", "runs ended", "causal FLOPs", "hours, summed over runs")
TABLES: dict[str, Callable[[Findings], str]] = {}
"""What stands between a page's marks, by their name."""


def fill(page: Path, findings: Findings) -> list[Path]:
    """Put every table between its marks, and the plots into the folder named as the page.

    Returns:
        The files that were written.

    Raises:
        ValueError: If a mark is missing.
    """
    text = page.read_text(encoding="utf-8")
    folder = page.with_suffix("")
    written = [page]
    for name, content in plots(findings).items():
        shown = NONE_YET
        if content is not None:
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / f"{name}.png")
            write_atomically(written[-1], content)
            shown = f"![{name}]({folder.name}/{name}.png)\n"
        text = between_marks(text, f"plot {name}", shown)
    for name, table in TABLES.items():
        text = between_marks(text, name, table(findings) or NONE_YET)
    write_atomically(page, text.encode())
    return written


def _tables(blocks: Callable[[Findings], Iterable[str | list[Row]]]) -> Callable[[Findings], str]:
    """Enter in TABLES what gives rows of tables, and lines between them; a table may be empty."""

    @functools.wraps(blocks)
    def text(findings: Findings) -> str:
        return "\n".join(
            each if isinstance(each, str) else markdown(each, each[0])
            for each in blocks(findings)
            if each
        )

    TABLES[blocks.__name__] = text
    return text


def _cell(value: float | None, digits: str = ",.0f") -> str:
    return "–" if value is None or math.isnan(value) else format(value, digits)


def _with_width(value: str, half_width: float | None) -> str:
    return value if half_width is None else f"{value} ± {half_width:.4f}"


def _ends(range_: Interval | None, least: float, most: float, digits: str) -> str:
    """An interval, open at an end that is beyond what can be told."""
    if range_ is None:
        return ""
    if range_.low < least:
        return "any" if range_.high > most else f"at most {range_.high:{digits}}"
    high = f"at least {range_.low:{digits}}"
    return high if range_.high > most else f"{range_.low:{digits}} … {range_.high:{digits}}"


def _size(row: Row) -> str:
    return f"{row['num_channels']}×{row['num_layers']}"


@_tables
def stages(findings: Findings) -> Iterable[list[Row]]:
    """Runs planned and ended, FLOPs and hours, by stage and in all; those not known come last."""
    planned: dict[str, set[str]] = {}
    for each in findings.results.planned:
        planned.setdefault(each.stage, set()).add(each.name)

    def row(stage: str, ended: Sequence[Row], number: str) -> Row:
        hours = sum(float(run["seconds"]) for run in _timed(ended)) / 3600
        flops = short(sum(float(run["flops"]) for run in ended))
        cells = stage, number, flops, f"{hours:.1f}"
        return dict(zip(STAGE_COLUMNS, cells, strict=True))

    runs = findings.results.runs
    rows = []
    for stage in planned | dict(findings.results.study.stages):
        known = planned.get(stage, ())
        ended = [run for run in runs if run["run"] in known]
        told = row(stage, ended, f"{len(ended)} of {len(known)}")
        unknown = {"stage": stage, "runs ended": "not known yet"}
        rows.append(told if known else dict.fromkeys(told, "") | unknown)
    yield [*rows, row("all", runs, str(len(runs)))]


@_tables
def sizes(findings: Findings) -> Iterable[list[Row]]:
    """N with and without positions, the cross part's share of the FLOPs, by arm and shape."""
    rows = []
    for arm, side in findings.results.study.arms.items():
        for shape in sorted(set(itertools.chain(*side.shapes.values()))):
            model = sized(findings.results.study, arm, shape).counted()
            params, count = model.params(), model.flops()
            rows.append(
                {
                    "arm": arm,
                    "width × depth": f"{shape[0]}×{shape[1]}",
                    "N": _cell(params.total),
                    "N without positions": _cell(params.total - params.position_embedding.total),
                    "cross part of FLOPs": f"{count.cross_part.total / count.total:.1%}",
                    "output layer of FLOPs": f"{output_flops(count) / count.total:.1%}",
                    "budgets": ", ".join(short(b) for b, s in side.shapes.items() if shape in s),
                }
            )
    yield rows


@_tables
def rates(findings: Findings) -> Iterable[str | list[Row]]:
    """Losses of the trials, each size's best rate and the rule's; then multiples of the rule's."""
    trials = [row for row in findings.results.runs if row["stage"] == TRIALS]
    tried = sorted({float(row["learning_rate"]) for row in trials})
    best = best_rates(trials)
    known = len({width for _, width, _ in best}) > 1
    a, b = fit_rule(trials) if known else (math.nan, math.nan)
    rows = []
    for (arm, width, depth), (rate, inside) in best.items():
        size, rule = f"{width}×{depth}", a * width**b
        losses = {
            float(row["learning_rate"]): f"{nats_per_byte(row):.4f}"
            for row in trials
            if (row["arm"], _size(row)) == (arm, size)
        }
        rows.append(
            {"arm": arm, "width × depth": size}
            | {f"{rate:g}": losses.get(rate, "") for rate in tried}
            | {"best": f"{rate:.3g}" + ("" if inside else ", at an end")}
            | {"rule": _cell(rule, ".3g"), "best / rule": _cell(rate / rule, ".2f")}
        )
    yield rows
    if known:
        yield f"peak = {a:.3g} · width^{b:.3g}\n"
    by_run = {row["run"]: row for row in findings.results.runs}
    multiples = [(*name.split("-times"), row) for name, row in by_run.items() if "-times" in name]
    yield [
        {
            "arm": row["arm"],
            "budget": short(float(row["budget"])),
            "width × depth": _size(row),
            "of the rule's rate": times,
            LOSS: f"{nats_per_byte(row):.4f}",
            "less that at the rule's": _with_width(
                f"{nats_per_byte(row) - nats_per_byte(by_run[name]):+.4f}",
                half_width([(findings.noise.get(row["arm"]), 2.0)]),
            ),
        }
        for name, times, row in multiples
        if name in by_run
    ]


@_tables
def noise(findings: Findings) -> Iterable[list[Row]]:
    """The losses of several seeds, and all scatters."""
    groups = {
        key: [nats_per_byte(row) for row in rows]
        for arm in findings.results.study.arms
        for key, rows in seeds(findings.results.of(arm)).items()
    }
    yield [
        {
            "arm": arm,
            "budget": short(float(budget)),
            "width × depth": shape,
            "losses": ", ".join(f"{loss:.4f}" for loss in losses),
            "standard deviation": f"{statistics.stdev(losses):.4f}",
        }
        for (arm, budget, shape), losses in groups.items()
        if len(losses) > 1
    ]
    yield [
        {
            "scatter": scatter.of,
            "nats per byte": f"{scatter.deviation:.4f}",
            "95 %": str(scatter.interval()),
            "degrees of freedom": str(scatter.freedom),
            "σ of": ", ".join(arm for arm, used in findings.noise.items() if used == scatter),
        }
        for scatter in findings.scatters
    ]


@_tables
def optima(findings: Findings) -> Iterable[list[Row]]:
    """Minimum of each arm at each budget, by approach 2 and by approach 3."""
    reached = [each for by_budget in findings.best.values() for each in by_budget.values()]
    yield [
        {
            "arm": each.arm,
            "budget": short(each.budget),
            "N_opt": _cell(each.n_opt),
            "95 %": _ends(
                each.n_interval, min(each.profile.params), max(each.profile.params), ",.0f"
            ),
            WITHOUT_POSITIONS: _cell(
                each.n_opt and math.exp(each.at(WITHOUT_POSITIONS, each.n_opt))
            ),
            "D_opt": _cell(each.profile.d_opt, ".4g"),
            CROSS: _cell(each.n_opt and each.at(CROSS, each.n_opt), ".1%"),
            LOSS: _with_width(f"{each.loss:.4f}", each.half_width),
            "best size": f"{_size(each.run)}, {nats_per_byte(each.run):.4f}",
            "minimum": each.profile.verdict,
        }
        for each in reached
    ]
    yield [
        {
            "arm, by approach 3": arm,
            "budget": short(budget),
            "N_opt": _cell(each.params),
            "95 % of N_opt": interval_text(each.params_interval),
            "D_opt": _cell(each.tokens, ".4g"),
            "95 % of D_opt": interval_text(each.tokens_interval),
            "loss": _cell(each.loss, ".4f"),
            "95 % of the loss": interval_text(each.loss_interval),
        }
        for (arm, budget), each in findings.optima.items()
    ]


@_tables
def places(findings: Findings) -> Iterable[list[Row]]:
    """Where the optima of two arms lie, at the same budget."""
    yield [
        {
            "N_opt of": f"{each.first.arm} / {each.second.arm}",
            "budget": short(each.first.budget),
            "N counts": WHOLE if each.size == "N" else each.size,
            "ratio": _cell(each.ratio, ".2f"),
            "95 %": _ends(each.interval, 0.01, 100, ".2f"),
            "verdict": each.verdict,
        }
        for each in findings.places
    ]


@_tables
def vocabularies(findings: Findings) -> Iterable[list[Row]]:
    """N_opt of arms that differ in their tokenizer, by their surfaces, N and C counted alike."""
    yield [
        {
            "N_opt of": f"{each.arm} / {each.of_bytes}",
            "N and C count": each.counted,
            "C": short(each.budget),
            each.arm: _cell(each.params[0]),
            each.of_bytes: _cell(each.params[1]),
            "ratio": _cell(each.ratio, ".2f"),
            "95 %": interval_text(each.interval),
            "fits without a minimum": f"{each.lost:.0%}",
        }
        for each in findings.vocabularies
    ]


@_tables
def differences(findings: Findings) -> Iterable[list[Row]]:
    """What separates two arms at a budget by the minima, the same networks, and the surfaces."""
    rows = []
    for each in findings.differences:
        by_size, by_surface = each.mean_by_size or (None, None), each.by_surface or (None, None)
        better = sum(delta > 0 for delta in each.by_size)
        rows.append(
            {
                "first − second": f"{each.first.arm} − {each.second.arm}",
                "budget": short(each.first.budget),
                "nats per byte": _with_width(f"{each.delta:+.4f}", each.half_width),
                "all together": _cell(each.joint_half_width, ".4f"),
                "verdict": each.verdict,
                "mean over the same networks": _with_width(_cell(by_size[0], "+.4f"), by_size[1]),
                "second is better": f"{better} of {len(each.by_size)}",
                "by approach 3": _cell(by_surface[0], "+.4f"),
                "95 % of that": interval_text(by_surface[1]),
            }
        )
    yield rows
    yield [
        {
            "first − second": f"{each.later.first.arm} − {each.later.second.arm}",
            "from": short(each.earlier.first.budget),
            "to": short(each.later.first.budget),
            "changes by": _with_width(f"{each.delta:+.4f}", each.half_width),
        }
        for each in findings.changes
    ]


@_tables
def fits(findings: Findings) -> Iterable[str]:
    """What approaches 2 and 3 fit to each arm, as they print it."""
    for arm, by_name in findings.fits.items():
        for name, fit in by_name.items():
            told = f" no fit, {fit}." if isinstance(fit, str) else f"\n\n```\n{fit}\n```"
            yield f"{arm}, approach {name}:{told}\n"


@_tables
def counts(findings: Findings) -> Iterable[list[Row]]:
    """N_opt of each arm's surface under every way of counting, beside the causal one."""
    yield [
        {
            "arm": each.arm,
            "counted as": each.count,
            "N_opt": _cell(each.params),
            "over causal": _cell(each.ratio, ".3f"),
            "95 %": interval_text(each.interval),
            "fits without a minimum": f"{each.lost:.0%}",
        }
        for each in findings.recounts
    ]
    yield [
        {
            "trained": each.causal.arm,
            "causal budget": short(each.causal.budget),
            "budget held by": each.convention,
            "N_opt": _cell(each.other.n_opt),
            "over causal": _cell(each.place.ratio, ".3f"),
            "95 %": interval_text(each.place.interval),
            LOSS: f"{each.other.loss:.4f}",
            "less causal": f"{each.other.loss - each.causal.loss:+.4f}",
        }
        for each in findings.trained
    ]


@_tables
def predictions(findings: Findings) -> Iterable[str | list[Row]]:
    """Each prediction with its date and commit, beside what came out."""
    for path in findings.results.predictions:
        try:
            came = outcome(path, findings.results.runs)
        except ValueError as error:
            yield f"{path.name}: not tested, {error}.\n"
            continue
        kind = "vertex of three" if came.best.n_opt else "best run, no vertex inside"
        yield (
            f"{came.made['arm']} at {short(came.made['budget'])} FLOPs, predicted "
            f"{came.made['date']} at commit {came.made['commit']}, judged by approach "
            f"{came.made['approach']}; came out: {kind}.\n"
        )
        yield came.rows
        yield [
            {
                "run": row["run"],
                "N": _cell(float(row["parameters"])),
                LOSS: f"{nats_per_byte(row):.4f}",
                "ended": row["date"],
            }
            for row in came.trained
        ]


def _timed(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if math.isfinite(float(row["seconds"]))]


@_tables
def seconds(findings: Findings) -> Iterable[list[Row]]:
    """Measured over planned seconds by stage, with the load while they ran."""
    rows = []
    for stage, each in itertools.groupby(_timed(findings.results.runs), lambda row: row["stage"]):
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
    yield rows


@_tables
def conditions(findings: Findings) -> Iterable[str | list[Row]]:
    """What the results ran on."""
    runs, calls = findings.results.runs, findings.results.calls
    values = {
        name: sorted({str(call[name]) for call in calls}) for name in ("device", "python", "torch")
    } | {"commits": dict.fromkeys(row["commit"][:12] for row in runs)}
    yield [
        {
            "text": row["corpus"],
            "tokenizer": row["tokenizer"],
            "runs": str(sum(run["corpus"] == row["corpus"] for run in runs)),
            "training tokens": f"{int(row['train_tokens']):,}",
            "validation tokens": f"{int(row['validation_tokens']):,}",
            "their SHA-256": row["validation_sha256"][:16],
        }
        for row in findings.results.corpora
    ]
    yield "".join(f"- {name}: {', '.join(each) or '?'}\n" for name, each in values.items())


def plots(findings: Findings) -> dict[str, bytes | None]:
    """The plots that a page shows, by name; None while there is nothing to draw."""
    arms = {
        arm: [
            (each.budget, each.loss, each.half_width, each.n_opt is not None)
            for each in best.values()
        ]
        for arm, best in findings.best.items()
        if best
    }
    drawn = {"arms": plot_arms(arms, loss=LOSS) if arms else None}
    for arm in findings.results.study.arms:
        best = findings.best.get(arm, {}).values()
        drawn[f"profiles-{arm}"] = (
            plot_profiles(
                [each.profile for each in best],
                loss=LOSS,
                intervals=[each.n_interval for each in best],
            )
            if best
            else None
        )
    times = [
        (float(row["predicted_seconds"]), float(row["seconds"]))
        for row in _timed(findings.results.runs)
    ]
    return drawn | {"seconds": plot_times(times, 0.05) if times else None}
