"""The page of the IsoFLOP study: every sentence with a number in it is computed from results."""

from __future__ import annotations

import os
import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.design import PREDICTION, TINY_STUDY, Study, causal_flops
from benchmarks.findings import (
    NEAR,
    Best,
    Difference,
    Findings,
    equal_shapes,
    find,
    read_results,
    seeds,
)
from benchmarks.prediction import BOOTSTRAP, OUTCOME_HEADS, Row, outcome

from benchmarks.measurement import NO_GPU, ROOT
from benchmarks.report import plain_markdown
from flopcount.fitting.results import interval_text
from models.checkpoints import write_atomically
from models.plots import plot_arms, plot_curves, plot_profiles, plot_times, short

COMMAND = "python -m benchmarks.study"
CONDITIONS = ("device", "driver", "python", "torch", "cuda", "triton", "commit")


def tell(
    study: Study, folders: Sequence[Path], out: Path, plots: Path | None, num_bootstrap: int
) -> list[Path]:
    """Write the page, and its plots into a folder of their own.

    Args:
        study: the design.
        folders: of the results.
        out: the page.
        plots: the folder; by default, that of ``out`` without its suffix.
        num_bootstrap: fits of each interval.

    Returns:
        The files that were written.

    Raises:
        ValueError: if the results are none of the study's, or do not compare.
    """
    words = ["page", "--results", *map(_from_root, folders), "--out", _from_root(out)]
    words += [] if plots is None else ["--plots", _from_root(plots)]
    words += [] if num_bootstrap == BOOTSTRAP else ["--bootstrap", str(num_bootstrap)]
    words += ["--dry-run"] if study is TINY_STUDY else []
    found = find(read_results(study, folders), num_bootstrap)
    plots = plots or out.with_suffix("")
    drawn = draw(found)
    plots.mkdir(parents=True, exist_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, content in drawn.items():
        write_atomically(plots / f"{name}.png", content)
    where = os.path.relpath(plots, out.parent)
    links = {name: f"{where}/{name}.png" for name in drawn}
    write_atomically(out, page_text(found, links, f"{COMMAND} {shlex.join(words)}").encode())
    return [out, *(plots / f"{name}.png" for name in drawn)]


def _from_root(path: Path) -> str:
    """A path as the command names it: from the root of the checkout where it lies there."""
    whole = path.resolve()
    return str(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else path)


def draw(found: Findings) -> dict[str, bytes]:
    """The plots that there are results for, as PNG, by name."""
    drawn = {}
    for arm, fits in found.fits.items():
        if "2" in fits:
            drawn[f"profiles-{arm}"] = plot_profiles(fits["2"].profiles)
    for arm in found.fits:
        runs = [row for row in found.results.of(arm) if row["run"] in found.results.curves]
        if runs:
            drawn[f"curves-{arm}"] = _curves(runs, found.results.curves)
    if any(found.best.values()):
        drawn["arms"] = plot_arms(
            {
                arm: [(b.budget, b.loss, _half_width(found, b), b.bracketed) for b in best.values()]
                for arm, best in found.best.items()
                if best
            }
        )
    if found.recount is not None:
        by_count = (found.recount.causal, found.recount.other)
        drawn["count"] = plot_profiles(
            [each.profile for each in by_count], [f"by {each.arm}" for each in by_count]
        )
    if found.timing.pairs:
        drawn["seconds"] = plot_times(list(found.timing.pairs.values()), NEAR)
    return drawn


def _curves(runs: Sequence[Row], curves: Mapping[str, Sequence[Row]]) -> bytes:
    numbers = [
        {"run": row["run"]} | {name: float(row[name]) for name in ("parameters", "budget")}
        for row in runs
    ]
    points = {
        row["run"]: [
            {name: float(each[name]) for name in ("flops", "validation_loss")}
            for each in curves[row["run"]]
        ]
        for row in runs
    }
    return plot_curves(numbers, points, log=True)


def _half_width(found: Findings, best: Best) -> float | None:
    """Of the 95 % interval of one arm's loss at one budget; None where noise has no size."""
    return None if found.noise is None else found.noise.half_width(best.variance)


def page_text(found: Findings, links: Mapping[str, str], command: str) -> str:
    """The page as markdown.

    Args:
        found: what it tells.
        links: to the plots, by name.
        command: that makes it.
    """
    sections = [
        _head(found, command),
        _short(found),
        _design(found),
        _what_was_run(found),
        _prefix(found, links),
        _fits(found, links),
        _noise(found),
        _count(found, links),
        _predictions(found),
        _seconds(found, links),
        _training(found, links),
        _limits(found),
    ]
    page = "\n\n".join(section.strip() for section in sections) + "\n"
    return re.sub(r"\n{3,}", "\n\n", page)  # a plot that is not there leaves an empty line


def _head(found: Findings, command: str) -> str:
    results = found.results
    lines = ["# What a prefix buys at equal compute: the IsoFLOP study", ""]
    missing = sum(len(results.missing(stage)) for stage in results.planned)
    planned = sum(map(len, results.planned.values()))
    lines.append(
        "Does a Perceiver AR with a prefix reach a lower loss than the same blocks without one, at "
        "the same training FLOPs? The article leaves that open. This page is made from the results "
        "alone, numbers, verdicts and plots, by"
    )
    lines += ["", "```", command, "```"]
    if results.study is TINY_STUDY:
        lines += ["", "**The tiny study: it tries every path, and what it says means nothing.**"]
    if {row["device"] for row in results.runs} == {NO_GPU}:
        lines += ["", "**Run without a GPU: its seconds say nothing about one.**"]
    if missing or not results.predictions:
        lacking = [f"{missing} of {planned} planned runs are missing"] if missing else []
        lacking += [] if results.predictions else ["no prediction has been made"]
        lines += ["", f"**Not complete: {'; '.join(lacking)}.** What follows is said of the rest."]
    return "\n".join(lines)


def _short(found: Findings) -> str:
    lines = ["## In short", ""]
    lines += [f"- {_pair_in_words(found, *pair)}" for pair in _pairs(found)]
    if found.recount is None:
        lines.append("- The count: not known, its runs are missing.")
    else:
        lines.append(f"- The count, causal or {found.results.study.convention}: ")
        lines[-1] += f"{found.recount.verdict}."
    if not found.results.predictions:
        lines.append("- Prediction: none has been made.")
    for path in found.results.predictions:
        lines.append(f"- Prediction: {_prediction_in_words(found, path)}")
    if not found.timing.pairs:
        lines.append("- Predicted seconds: not tested.")
    else:
        lines.append(f"- Predicted seconds: {_seconds_in_words(found)}")
    return "\n".join(lines)


def _pairs(found: Findings) -> list[tuple[str, str]]:
    arms = list(found.results.study.prefixes)
    return [(one, other) for i, one in enumerate(arms) for other in arms[i + 1 :]]


def _pair_in_words(found: Findings, one: str, other: str) -> str:
    """At which budgets which arm wins, and where nothing is shown."""
    budgets = sorted(found.results.study.shapes)
    by_budget = {
        each.first.budget: each
        for each in found.differences
        if (each.first.arm, each.second.arm) == (one, other)
    }
    said: dict[str, list[str]] = {}
    for budget in budgets:
        each = by_budget.get(budget)
        verdict = "not trained in both" if each is None else each.verdict
        said.setdefault(verdict, []).append(short(budget))
    parts = [f"{verdict} at {_listed(where)} FLOPs" for verdict, where in said.items()]
    return f"{_arm(found, one)} against {_arm(found, other)}: {'; '.join(parts)}."


def _arm(found: Findings, name: str) -> str:
    prefix = found.results.study.prefixes[name]
    return f"{name} (m = {prefix:,})" if prefix else f"{name} (no prefix)"


def _listed(words: Iterable[str]) -> str:
    """Words in a row.

    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _design(found: Findings) -> str:
    study = found.results.study
    base = study.base
    runs = [run for each in found.results.planned.values() for run in each]
    tokens = [run.config.steps * base.recipe.batch_size * base.model.num_latents for run in runs]
    budgets = sorted(study.shapes)
    rows = [
        {
            "budget, FLOPs": short(budget),
            "sizes, channels × layers": ", ".join(f"{w}×{d}" for w, d in study.shapes[budget]),
        }
        for budget in budgets
    ]
    arms = _listed(_arm(found, name) for name in study.prefixes)
    some = [run for run in runs if run.config.model.prefix_dropout]
    dropout = some[0].config.model.prefix_dropout if some else 0.0
    [rate] = {row["learning_rate"] for row in found.results.runs}
    lines = [
        "## Question and design",
        "",
        f"- Arms of the same blocks: {arms}.",
        "- Every model of a budget spends the same training FLOPs, counted by `flopcount` at level "
        f"`causal`, to within one step. {len(budgets)} budgets over a factor of "
        f"{budgets[-1] / budgets[0]:.3g}.",
        f"- Tokens are bytes, vocabulary {base.model.vocab_size}; n = {base.model.num_latents} "
        f"predicted bytes a sequence, batch {base.recipe.batch_size}; {min(tokens):,} to "
        f"{max(tokens):,} bytes predicted by a run, in {min(r.config.steps for r in runs):,} to "
        f"{max(r.config.steps for r in runs):,} steps.",
        f"- Prefix dropout {dropout:g} where there is a prefix; heads of {base.head_dim} channels.",
        f"- Learning rate {float(rate):g} for all models, chosen before, not tuned; warm-up, then "
        f"a cosine to {base.recipe.final_fraction:g} of it at the last step.",
        f"- Validation loss, nats per byte, on {base.validation_windows:,} windows at equal "
        "distances over text held out, the prefix seen whole; the bytes to predict are the same "
        "for every arm.",
        f"- Seeds {_listed(map(str, (*base.seeds, *study.seeds)))} of {study.main} at "
        f"{short(study.seeds_at)} FLOPs, seed {_listed(map(str, base.seeds))} elsewhere; "
        f"{study.main} at {short(study.recounted_at)} FLOPs once more, its budget held by the "
        f"`{study.convention}` count.",
        "",
        plain_markdown(rows, rows[0]),
    ]
    return "\n".join(lines)


def _what_was_run(found: Findings) -> str:
    results = found.results
    stages = []
    for stage, planned in results.planned.items():
        missing = results.missing(stage)
        stages.append(
            {
                "stage": stage,
                "planned": str(len(planned)),
                "there": str(len(planned) - len(missing)),
                "missing": ", ".join(missing) or "none",
            }
        )
    if PREDICTION not in results.planned:
        nothing = {"stage": PREDICTION, "planned": "0", "there": "0"}
        stages.append(nothing | {"missing": "the prediction itself"})
    configs = {run.name: run.config for each in results.planned.values() for run in each}
    exact = sum(int(float(r["flops"])) == causal_flops(configs[r["run"]]) for r in results.runs)
    over = [
        float(row["flops"]) / float(row["budget"]) - 1
        for row in results.runs
        if row["convention"] == "causal"
    ]
    dates = sorted(row["date"] for row in results.runs)
    conditions = [
        {"": name, "values": "; ".join(dict.fromkeys(str(call[name]) for call in results.calls))}
        for name in CONDITIONS
    ]
    trained = {name: dict.fromkeys(r[name] for r in results.runs) for name in ("device", "commit")}
    lines = [
        "## What was run",
        "",
        plain_markdown(stages, stages[0]),
        f"Runs ended from {dates[0]} to {dates[-1]}, on {_listed(trained['device'])}, by commit "
        f"{_listed(trained['commit'])}. FLOPs recorded in training equal the counter's in {exact} "
        f"of {len(results.runs)} runs"
        + (f"; they lie above the budget by at most {max(over):.2%}." if over else "."),
        "",
    ]
    if results.calls:
        lines += [plain_markdown(conditions, conditions[0]), "Commands as run:", "", "```"]
        lines += [f"{call['date']}  {_as_typed(call['command'])}" for call in results.calls]
        lines.append("```")
    else:
        lines.append("`study.jsonl` is missing: versions and commands are not known.")
    return "\n".join(lines)


def _as_typed(command: str) -> str:
    """A recorded command without the path that Python saw.

    >>> _as_typed("/somewhere/benchmarks/study.py run --out results")
    'python -m benchmarks.study run --out results'
    """
    program, _, rest = command.partition(" ")
    return f"{COMMAND} {rest}" if program.endswith("benchmarks/study.py") else command


def _prefix(found: Findings, links: Mapping[str, str]) -> str:
    lines = ["## What the prefix buys", ""]
    if not any(found.best.values()):
        return "\n".join([*lines, "No run of a budget has ended."])
    lines += [_image(links, "arms", "least validation loss against budget, a line per arm"), ""]
    rows = []
    for budget in sorted(found.results.study.shapes):
        for best in (each[budget] for each in found.best.values() if budget in each):
            inside = best.n_opt is not None
            rows.append(
                {
                    "budget": short(budget),
                    "arm": best.arm,
                    "sizes": str(best.num_sizes),
                    "N_opt": f"{best.n_opt:,.0f}" if inside else "–",
                    "loss at the vertex": f"{best.loss:.4f}" if inside else "–",
                    "best run": f"{best.run['num_channels']}×{best.run['num_layers']}",
                    "its loss": f"{float(best.run['validation_loss']):.4f}",
                    "its epochs": f"{float(best.run['epochs']):.2g}",
                    "minimum inside the sizes tried": _inside(best),
                }
            )
    lines.append(plain_markdown(rows, rows[0]))
    lines += _differences(found)
    return "\n".join(lines)


def _inside(best: Best) -> str:
    if best.bracketed:
        return best.profile.verdict.replace("used", "yes", 1)
    return best.profile.verdict.replace("not used", "no", 1)


def _differences(found: Findings) -> list[str]:
    if not found.differences:
        return ["No two arms have runs at the same budget: nothing can be compared."]
    rows = []
    for each in found.differences:
        best = float(each.first.run["validation_loss"]) - float(each.second.run["validation_loss"])
        rows.append(
            {
                "budget": short(each.first.budget),
                "arms": f"{each.first.arm} − {each.second.arm}",
                "Δ loss": f"{each.delta:+.4f}",
                "±": "–" if each.half_width is None else f"{each.half_width:.4f}",
                "of": _what_differs(each),
                "Δ of best runs": f"{best:+.4f}",
                "Δ of equal shapes": _spread(equal_shapes(found.results, each)),
                "verdict": each.verdict,
            }
        )
    lines = [plain_markdown(rows, rows[0])]
    if found.noise is None:
        lacking = "No model has been trained with several seeds: noise has no size, and nothing"
        return [*lines, f"{lacking} can be said about a difference."]
    noise = found.noise
    return [
        *lines,
        "Δ below 0: the first is better. ± is t·σ·(h₁ + h₂)^½, t Student's and σ = "
        f"{noise.deviation:.4f} nats per byte, the scatter {noise.of} ({noise.freedom} degrees of "
        "freedom, see Noise); h is the variance of a parabola's value at its vertex in units of "
        f"σ², 1 of a single run. All {found.comparisons} comparisons that the study plans hold "
        "together at 95 % (Bonferroni). Of equal shapes, the first seed: mean (least … greatest), "
        "of which no verdict is made.",
    ]


def _spread(differences: Sequence[float]) -> str:
    """Mean and range.

    >>> _spread([0.1, 0.3])
    '+0.2000 (+0.1000 … +0.3000)'
    """
    if not differences:
        return "–"
    middle = statistics.fmean(differences)
    return f"{middle:+.4f} ({min(differences):+.4f} … {max(differences):+.4f})"


def _what_differs(each: Difference) -> str:
    kinds = ["vertex" if best.bracketed else "best run" for best in (each.first, each.second)]
    return "vertices" if kinds == ["vertex", "vertex"] else " − ".join(kinds)


def _image(links: Mapping[str, str], name: str, alternative: str) -> str:
    return f"![{alternative}]({links[name]})" if name in links else ""


def _fits(found: Findings, links: Mapping[str, str]) -> str:
    lines = [
        "## Fits",
        "",
        f"By arm, of its runs at level `causal`: approach 2 with {found.num_bootstrap:,} bootstrap "
        f"fits, approach 3 with {found.num_bootstrap // 10:,}. N counts all parameters.",
    ]
    for arm, fits in found.fits.items():
        lines += ["", f"### {_arm(found, arm)}", ""]
        if not (fits or found.reasons[arm]):
            lines.append("No run has ended.")
            continue
        lines += [_image(links, f"profiles-{arm}", f"loss against N, a parabola per budget, {arm}")]
        best = found.best[arm]
        verdicts = {short(budget): _inside(each) for budget, each in best.items()}
        inside = [budget for budget, said in verdicts.items() if said.startswith("yes")]
        if best:
            lines += ["", f"A minimum lies inside the sizes tried at {len(inside)} of {len(best)} "]
            lines[-1] += f"budgets with runs; {len(found.results.study.shapes)} are planned."
        aside = [f"- {budget} FLOPs: {said}" for budget, said in verdicts.items() if said != "yes"]
        lines += ["", *aside] if aside else []
        for name, fit in fits.items():
            lines += ["", f"Approach {name}:", "", "```", str(fit), "```"]
        for name, reason in found.reasons[arm].items():
            lines += ["", f"Approach {name}: no fit, {reason}."]
    return "\n".join(lines)


def _noise(found: Findings) -> str:
    study = found.results.study
    lines = ["## Noise", ""]
    if found.from_seeds is None:
        return "\n".join([*lines, "No model has been trained with several seeds: not measured."])
    rows = [
        {
            "channels × layers": shape.replace("x", "×"),
            "seeds": str(len(losses)),
            "losses": ", ".join(f"{loss:.4f}" for loss in losses),
            "standard deviation": f"{statistics.stdev(losses):.4f}",
        }
        for shape, losses in seeds(found.results).items()
    ]
    scatter = found.from_seeds
    lines += [
        f"{study.main} at {short(study.seeds_at)} FLOPs, everything alike but the seed of weights, "
        "windows and prefix dropout:",
        "",
        plain_markdown(rows, rows[0]),
        f"Over seeds, pooled over sizes: s = {scatter.deviation:.4f} ({scatter.interval()} at "
        f"95 %, {scatter.freedom} degrees of freedom).",
    ]
    about = found.about_parabolas
    if about is None:
        lines.append("About the parabolas: not known, no budget has more runs than coefficients.")
    else:
        lines.append(
            f"About the parabolas, pooled over arms and budgets: r = {about.deviation:.4f} "
            f"({about.freedom} degrees of freedom), noise and what is no parabola in one."
        )
    if found.noise is not None:
        lines.append(f"σ is the larger, {found.noise.of}: {found.noise.deviation:.4f}.")
    return "\n".join(lines)


def _count(found: Findings, links: Mapping[str, str]) -> str:
    study, recount = found.results.study, found.recount
    lines = ["## Does the count move the optimum", ""]
    if recount is None:
        wanted = f"{study.main} at {short(study.recounted_at)} FLOPs"
        return "\n".join([*lines, f"Not known: runs of {wanted} by either count are missing."])
    rows = []
    for best in (recount.causal, recount.other):
        known = best.n_opt is not None
        rows.append(
            {
                "count": best.arm,
                "budget by it": short(best.budget),
                "runs": str(best.num_sizes),
                "N_opt": f"{best.n_opt:,.0f}" if known else "–",
                "interval": interval_text(best.profile.intervals["n_opt"]) if known else "–",
                "loss at the vertex": f"{best.loss:.4f}" if known else "–",
                "best run": f"{best.run['num_channels']}×{best.run['num_layers']}",
                "its loss": f"{float(best.run['validation_loss']):.4f}",
                "minimum inside the sizes tried": _inside(best),
            }
        )
    lines += [
        f"The same sizes at a budget held by either count; the middle size costs the same by both. "
        f"Verdict: {recount.verdict}.",
        "",
        _image(links, "count", "loss against N by either count"),
        "",
        plain_markdown(rows, rows[0]),
    ]
    if recount.ratio is not None:
        lines.append(
            f"N_opt by `{study.convention}` over N_opt by `causal`: {recount.ratio:.3f}. Interval "
            f"by bootstrap {interval_text(recount.by_bootstrap) or 'not known'} (of the "
            f"{recount.share:.0%} of pairs that have both vertices), by the noise σ "
            f"{interval_text(recount.by_noise) or 'not known'}; a move must show in both."
        )
    each = recount.difference
    if each.half_width is not None:
        lines.append(
            f"Loss by `{study.convention}` less loss by `causal` ({_what_differs(each)}): "
            f"{each.delta:+.4f} ± {each.half_width:.4f} (95 % by itself); {each.verdict}."
        )
    if recount.repeated is not None:
        one, other = recount.repeated
        lines.append(
            f"The run that both share was trained for each: {one:.6f} and {other:.6f}, "
            f"{'the same' if one == other else f'{abs(one - other):.2g} apart, not by its seed'}."
        )
    return "\n".join(lines)


def _predictions(found: Findings) -> str:
    lines = ["## Prediction and outcome", ""]
    if not found.results.predictions:
        return "\n".join([*lines, "No prediction has been made."])
    for path in found.results.predictions:
        lines += [_prediction_in_words(found, path), ""]
        try:
            came = outcome(path, found.results.runs)
        except ValueError:
            continue
        rows = [
            dict(zip(OUTCOME_HEADS, (cell or "" for cell in row), strict=True)) for row in came.rows
        ]
        lines += [plain_markdown(rows, OUTCOME_HEADS)]
        trained = [
            {
                "run": row["run"],
                "N": f"{int(row['parameters']):,}",
                "validation loss": f"{float(row['validation_loss']):.4f}",
                "epochs": f"{float(row['epochs']):.3g}",
                "ended": row["date"],
            }
            for row in came.trained
        ]
        lines += [plain_markdown(trained, trained[0])]
        sizes = sorted(int(row["parameters"]) for row in came.trained)
        edge = int(came.best["parameters"]) in (sizes[0], sizes[-1])
        if len(sizes) < 3 or edge:
            lines.append(
                f"{len(sizes)} trained, the best at an end of them: a test of the loss, and of "
                "N_opt and D_opt none."
            )
    return "\n".join(lines)


def _prediction_in_words(found: Findings, path: Path) -> str:
    """What was predicted when, and whether the loss came out inside the intervals."""
    try:
        came = outcome(path, found.results.runs)
    except ValueError as error:
        return f"{path.name} is not tested: {error}."
    made = came.made
    loss = float(came.best["validation_loss"])
    head = (
        f"{made['arm']} at {short(made['budget'])} FLOPs, predicted {made['date']} (commit "
        f"{made['commit']}) from {len(made['runs'])} runs and, by the dates, before any there "
        f"began; best validation loss {loss:.4f}"
    )
    said = []
    for name, each in made["approaches"].items():
        if "reason" in each:
            said.append(f"approach {name} said nothing")
            continue
        ends = each["loss_interval"]
        inside = "without an interval"
        if ends is not None:
            inside = "inside" if ends["low"] <= loss <= ends["high"] else "outside"
            inside += " its interval"
        said.append(f"approach {name} said {each['loss']:.4f}, {inside}")
    return f"{head}; {'; '.join(said)}."


def _seconds_in_words(found: Findings) -> str:
    deviations = found.timing.deviations
    worst = max(deviations, key=lambda name: abs(deviations[name]))
    near = sum(abs(each) <= NEAR for each in deviations.values())
    return (
        f"measured over predicted, median {1 + statistics.median(deviations.values()):.3f}, "
        f"furthest {1 + deviations[worst]:.3f} ({worst}); {near} of {len(deviations)} runs within "
        f"{NEAR:.0%}."
    )


def _seconds(found: Findings, links: Mapping[str, str]) -> str:
    timing = found.timing
    lines = ["## Predicted and measured seconds", ""]
    if timing.pairs:
        lines += [
            "Predicted: causal FLOPs over the rate of that model's step, timed alone on the same "
            "device. Measured: seconds of training without validation, one run at a time. Result: "
            + _seconds_in_words(found),
            "",
            _image(links, "seconds", "measured over predicted seconds against predicted seconds"),
            "",
        ]
    else:
        lines += ["No run had the device to itself and a calibration: not tested.", ""]
    if timing.uncalibrated:
        lines.append(f"No calibration on their device, left out: {_listed(timing.uncalibrated)}.")
    if timing.side_by_side:
        lines.append(f"{len(timing.side_by_side)} runs had others beside them and are left out.")
    return "\n".join(lines)


def _training(found: Findings, links: Mapping[str, str]) -> str:
    lines = ["## Training curves", ""]
    there = [arm for arm in found.fits if f"curves-{arm}" in links]
    if not there:
        lines.append("No run has validations in `curves.csv`.")
    for arm in there:
        text = f"validation loss against FLOPs of every run, {arm}"
        lines += [_image(links, f"curves-{arm}", text), ""]
    without = [r["run"] for r in found.results.runs if r["run"] not in found.results.curves]
    if without:
        lines.append(f"Without a curve: {_listed(without)}.")
    return "\n".join(lines)


def _limits(found: Findings) -> str:
    results, study = found.results, found.results.study
    runs = results.runs
    said = []
    for stage in results.planned:
        missing = results.missing(stage)
        if missing:
            said.append(f"Stage {stage}: {len(missing)} of {len(results.planned[stage])} missing.")
    for arm, best in found.best.items():
        open_ = [short(budget) for budget, each in best.items() if not each.bracketed]
        if open_:
            said.append(
                f"{arm} has no minimum inside the sizes tried at {_listed(open_)} FLOPs: its least "
                "loss there may lie lower than its best run."
            )
        exact = [
            short(budget)
            for budget, each in best.items()
            if each.bracketed and len(set(each.profile.params)) == 3
        ]
        if exact:
            said.append(
                f"{arm}'s parabola goes exactly through three sizes at {_listed(exact)} FLOPs: its "
                "bootstrap interval has no width there, or next to none, and means nothing."
            )
        aside = [
            short(budget) for budget, each in best.items() if "off-centre" in each.profile.verdict
        ]
        if aside:
            said.append(f"{arm}'s minimum lies near an end of the sizes at {_listed(aside)} FLOPs.")
    epochs = {row["run"]: float(row["epochs"]) for row in runs}
    again = [f"{name} ({each:.2f})" for name, each in epochs.items() if each > 1]
    if again:
        said.append(f"Runs that saw text more than once, with epochs: {_listed(again)}.")
    else:
        most = max(epochs.values())
        said.append(f"Nothing about repeated text: no run took more than {most:.2f} epochs.")
    heads = sorted({r.config.model.num_heads for each in results.planned.values() for r in each})
    [rate] = {row["learning_rate"] for row in runs}
    [corpus] = {row["corpus"] for row in runs}
    contexts = _listed(
        f"{name} {prefix + study.base.model.num_latents:,}"
        for name, prefix in study.prefixes.items()
    )
    steps = min(int(row["steps"]) for row in runs)
    budgets = sorted(study.shapes)
    said += [
        f"One learning rate, {float(rate):g}, not tuned: an arm or a size that it suits less looks "
        f"worse than it is. The shortest run has {steps:,} steps.",
        f"One corpus (digest {corpus}), as bytes: nothing about other text, nor about a vocabulary "
        "of word pieces.",
        f"Context is not held equal, only compute. Bytes that a window holds: {contexts}; the last "
        "byte of a window is predicted from all before it. What a decoder of the same context "
        "would reach was not trained.",
        "The noise between seeds is not known: nothing here is larger than noise."
        if found.from_seeds is None
        else f"Seeds were repeated for {study.main} at {short(study.seeds_at)} FLOPs alone; "
        "elsewhere the same noise is assumed, independent between runs.",
        "A best run is the least of several noisy losses and so lies too low, the more runs there "
        "are. A parabola is not the loss's true shape (see the bias that approach 2 prints), and "
        "a bootstrap of a few runs per budget is rough.",
        f"Heads have {study.base.head_dim} channels, so that their number, {heads[0]} to "
        f"{heads[-1]}, changes with the width; depth and width were not varied apart.",
        "Arms with a prefix train with prefix dropout and the decoder does not: a difference is of "
        "both together.",
        "N counts all parameters, the table of positions too, which grows with the context: "
        f"{_same_shape(found)}. N_opt compares within an arm, losses between arms.",
        f"Nothing beyond {short(budgets[-1])} FLOPs but what a prediction above tests.",
    ]
    for name in ("device", "commit"):
        values = list(dict.fromkeys(row[name] for row in runs))
        if len(values) > 1:
            said.append(f"Runs are of more than one {name}: {_listed(values)}.")
    lines = ["## What this cannot say", "", *(f"- {each}" for each in said)]
    return "\n".join(lines)


def _same_shape(found: Findings) -> str:
    """N of the smallest shape, by arm."""
    study = found.results.study
    budget, shapes = min(study.shapes.items())
    sizes = {
        arm: study.sweep(arm, budget, shapes[:1], study.base.seeds[:1])[0].parameters
        for arm in study.prefixes
    }
    width, depth = shapes[0]
    return f"{width}×{depth} has " + _listed(f"{size:,} ({arm})" for arm, size in sizes.items())
