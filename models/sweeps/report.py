"""The report of a sweep: one HTML file that needs nothing else; its plots and tables beside it."""

from __future__ import annotations

import base64
import csv
import io
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup

import flopcount
from flopcount.isoflop.plan import LAWS
from models.configuration import read_config
from models.files import write_atomically
from models.provenance import code_commit
from models.sweeps.conditions import corpus_name, environment, settings
from models.sweeps.plan import SweepConfig, SweepRun, plan_runs
from models.sweeps.plots import (
    optima_along,
    plot_curves,
    plot_frontier,
    plot_profiles,
    plot_terms,
    short,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flopcount.isoflop.profiles import ProfilesFit
    from flopcount.isoflop.results import Optimum

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_BOOTSTRAP = 1000
_SURFACE_SHARE = 10
"""Of the bootstrap fits: a surface takes a search for each, a parabola a small linear system."""
_AHEAD = 10
"""Laws are drawn, and optima predicted, up to so many times the largest budget."""
_LIBRARIES = ("numpy", "matplotlib", "jinja2")
_ELEMENTWISE = "element-wise, not in the total"
_LAYERS = {
    "hybrid": "hybrid layer",
    "self-attention": "self-attention layers",
    "output": "output layer",
}
_GROUPS = {
    "projections": ("query", "key", "value", "out"),
    "scores and values": ("scores", "values"),
    "MLP": ("mlp up", "mlp down"),
    "output layer": ("logits",),
}


def fit_sweep(folder: Path, num_bootstrap: int = _BOOTSTRAP) -> ProfilesFit:
    """Fit a finished sweep's final validation losses: a parabola in log N per budget.

    Args:
        folder: Of the sweep, with its ``runs.csv``.
        num_bootstrap: Fits to runs drawn with replacement, for intervals.

    Raises:
        ValueError: If the folder holds no finished sweep.

    """
    if not (folder / "runs.csv").exists():
        raise ValueError(f"{folder} must hold a finished sweep, got no runs.csv")
    runs = flopcount.read_runs(folder / "runs.csv", loss="validation_loss")
    return flopcount.fit_isoflop_profiles(runs, num_bootstrap=num_bootstrap)


def write_report(folder: Path, num_bootstrap: int = _BOOTSTRAP) -> Path:
    """Fit a finished sweep and write ``report.html``, with plots and tables beside it.

    Per budget a parabola of the loss in log N gives the best size (approach 2 of arXiv
    2203.15556); one that has no minimum between the sizes tried is reported as such. Approaches 1
    and 3 stand beside it, or why they say nothing. ``curves.csv`` holds every validation of every
    run, ``optima.csv`` the fitted optima and published laws, ``terms.csv`` the FLOPs of every
    model by term.

    Args:
        folder: Of the sweep, ``runs.csv`` and all.
        num_bootstrap: Fits to runs drawn with replacement, for intervals.

    Returns:
        The path of the report.

    Raises:
        ValueError: If the folder holds no finished sweep.

    """
    config = read_config(SweepConfig, folder)
    fitted = fit_sweep(folder, num_bootstrap)
    runs = _read_table(folder / "runs.csv")
    curves = {run["run"]: _read_table(folder / "runs" / run["run"] / "metrics.csv") for run in runs}
    planned = plan_runs(config)
    _write_table(folder / "curves.csv", _points(runs, curves))
    terms = _terms(planned)
    _write_table(folder / "terms.csv", terms)
    budgets = np.geomspace(min(config.budgets) / 2, _AHEAD * max(config.budgets), 40).tolist()
    predictions = [] if fitted.frontier is None else [fitted.predict(flops) for flops in budgets]
    _write_table(folder / "optima.csv", _optima(budgets, predictions))
    plots = _plots(fitted, runs, curves, terms, budgets, predictions)
    ran_on = environment([folder / "runs" / run.name for run in planned])
    for name, content in plots.items():
        write_atomically(folder / f"{name}.png", content)
    page = _environment().render(
        plots={name: base64.b64encode(content).decode() for name, content in plots.items()},
        alts=_alts(fitted, runs, terms),
        profiles=fitted.profiles,
        approaches=_approaches(folder, fitted, max(config.budgets), num_bootstrap),
        bias=fitted.bias_statement,
        # What has the size of another run, and another seed, is no oddity of a sweep.
        flagged=[
            flag
            for flag in fitted.flagged
            if len(config.seeds) == 1 or not flag.reason.startswith("repeats the size")
        ],
        tail=50 * (1 - fitted.profiles[0].confidence),
        num_bootstrap=num_bootstrap,
        ahead=_AHEAD,
        runs=runs,
        terms=_by_label(terms),
        models=list(dict.fromkeys(row["model"] for row in terms)),
        utilisations=[
            name for name in ("mfu", "hfu") if all(isinstance(run.get(name), float) for run in runs)
        ],
        noise=_noise(runs),
        model=config.model,
        corpus=corpus_name(config.corpus, ran_on.get("python", "")),
        settings=settings(config, ran_on.get("python", "")),
        environment=ran_on | {f"{name}, for this page": version(name) for name in _LIBRARIES},
        commit=code_commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        spent=_duration(sum(run["seconds"] for run in runs)),
        files=["runs.csv", "curves.csv", "optima.csv", "terms.csv", *(f"{n}.png" for n in plots)],
    )
    path = folder / "report.html"
    write_atomically(path, page.encode())
    return path


def _plots(
    fitted: ProfilesFit,
    runs: list[dict[str, Any]],
    curves: Mapping[str, list[dict[str, Any]]],
    terms: list[dict[str, Any]],
    budgets: list[float],
    predictions: Sequence[Optimum],
) -> dict[str, bytes]:
    used = [profile for profile in fitted.profiles if profile.n_opt is not None]
    laws = {_law_name(name): law() for name, law in LAWS.items()}
    return {
        "loss_against_parameters": plot_profiles(fitted.profiles),
        "parameters_against_flops": plot_frontier(
            "optimal parameters",
            [(p.flops, p.n_opt, p.intervals["n_opt"]) for p in used],
            optima_along(predictions, "params"),
            {name: [law.n_opt(flops) for flops in budgets] for name, law in laws.items()},
            budgets,
        ),
        "tokens_against_flops": plot_frontier(
            "optimal training tokens",
            [(p.flops, p.d_opt, p.intervals["d_opt"]) for p in used],
            optima_along(predictions, "tokens"),
            {name: [law.d_opt(flops) for flops in budgets] for name, law in laws.items()},
            budgets,
        ),
        "loss_against_flops": plot_curves(runs, curves, log=False),
        "loss_against_flops_log": plot_curves(runs, curves, log=True),
        "flops_by_term": plot_terms(_shares(terms)),
    }


def _law_name(name: str) -> str:
    """A published law's name as a reader knows it.

    >>> _law_name("chinchilla-2")
    'Chinchilla, approach 2'
    """
    return name.replace("chinchilla-", "Chinchilla, approach ")


def _alts(
    fitted: ProfilesFit, runs: list[dict[str, Any]], terms: list[dict[str, Any]]
) -> dict[str, str]:
    """What each plot shows, for those who do not see it."""
    minima = [
        f"at {short(profile.flops)} FLOPs "
        + (
            "there is no minimum between the sizes tried"
            if profile.n_opt is None
            else f"the minimum is {profile.loss_opt:.4f} at N = {profile.n_opt:,.0f}"
        )
        for profile in fitted.profiles
    ]
    losses = [run["validation_loss"] for run in runs]
    curves = (
        f"Validation loss against training FLOPs, a line for each of {len(runs)} runs, which end "
        f"between {min(losses):.4f} and {max(losses):.4f} nats per token; "
    )
    law = None if fitted.frontier is None else fitted.frontier.law

    def optima(what: str, exponent: float | None) -> str:
        fit = "too few minima for a law" if exponent is None else f"they grow as C^{exponent:.3f}"
        return (
            f"Optimal {what} against training FLOPs C, both logarithmic: {fit}; beside them the "
            f"three published laws of Chinchilla."
        )

    shares = [
        f"{name}: " + ", ".join(f"{group} {share:.0%}" for group, share in groups.items())
        for name, groups in _shares(terms).items()
    ]
    return {
        "loss_against_parameters": "Validation loss against parameters N on a logarithmic axis, "
        f"a parabola per budget; {'; '.join(minima)}.",
        "parameters_against_flops": optima("parameters", law and law.a),
        "tokens_against_flops": optima("training tokens", law and law.b),
        "loss_against_flops": f"{curves}linear axes.",
        "loss_against_flops_log": f"{curves}logarithmic axes.",
        "flops_by_term": "Shares of training FLOPs, a bar per model. "
        f"{'; '.join(dict.fromkeys((shares[0], shares[-1])))}.",
    }


def _duration(seconds: float) -> str:
    """A time in the unit that a person would take.

    >>> _duration(45), _duration(300), _duration(9000)
    ('45 seconds', '5.0 minutes', '2.5 hours')
    """
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _approaches(
    folder: Path, fitted: ProfilesFit, largest: float, num_bootstrap: int
) -> list[dict[str, Any]]:
    """What each approach says: exponents and the optimum at the largest budget, then beyond it."""
    runs = fitted.runs

    def envelope() -> Any:
        curves = flopcount.read_curves(folder / "curves.csv", loss="validation_loss")
        return flopcount.fit_training_curves(curves, num_bootstrap=num_bootstrap)

    def surface(objective: str) -> Callable[[], Any]:
        return lambda: flopcount.fit_surface(
            runs, objective=objective, num_bootstrap=num_bootstrap // _SURFACE_SHARE
        )

    ways: dict[str, Callable[[], Any]] = {
        "1, envelope of training curves": envelope,
        "2, parabola per budget": lambda: fitted,
        "3, Huber on log loss": surface("huber-log"),
        "3, Huber on loss, variable projection": surface("variable-projection"),
    }
    rows = []
    for name, fit in ways.items():
        try:
            result = fit()
            here, ahead = result.predict(largest), result.predict(_AHEAD * largest)
        except ValueError as error:
            rows.append({"name": name, "reason": _reason(error)})
            continue
        exponents = _exponents(result)
        rows.append({"name": name, "reason": "", "exponents": exponents, "best": here})
        rows.append({"name": "", "reason": "", "exponents": [], "best": ahead})
    return rows


def _reason(error: ValueError) -> str:
    """What a fit says of its runs, without the argument that it names.

    >>> _reason(ValueError("curves: expected two budgets"))
    'expected two budgets'
    >>> _reason(ValueError("flops = 1e+12: no prediction: too few budgets"))
    'no prediction: too few budgets'
    """
    return re.sub(r"^\w+( = [^:]+)?: ", "", str(error))


def _exponents(fit: Any) -> list[tuple[float, Any]]:
    """The exponents of C in N_opt and D_opt, each with its interval."""
    if hasattr(fit, "surface"):
        a, intervals = fit.surface.n_exponent, fit.intervals
        return [(a, intervals.get("a")), (1 - a, intervals.get("b"))]
    law, intervals = fit.frontier.law, fit.frontier.intervals
    return [(law.a, intervals["a"]), (law.b, intervals["b"])]


def _points(
    runs: list[dict[str, Any]], curves: Mapping[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Every validation of every run, as approach 1 reads it."""
    return [
        {
            "run": run["run"],
            "parameters": run["parameters"],
            "tokens": row.get("tokens", run["tokens"] * row["step"] / run["step"]),
            "flops": row["flops"],
            "validation_loss": row["validation_loss"],
        }
        for run in runs
        for row in curves[run["run"]]
    ]


def _optima(budgets: list[float], predictions: Sequence[Optimum]) -> list[dict[str, Any]]:
    """N_opt, D_opt and loss along the budgets, with intervals, and the published laws'."""
    laws = {name: law() for name, law in LAWS.items()}
    rows = []
    for index, flops in enumerate(budgets):
        row: dict[str, Any] = {"flops": flops}
        for name in ("params", "tokens", "loss"):
            best = predictions[index] if predictions else None
            interval = getattr(best, f"{name}_interval", None)
            row[name] = getattr(best, name, None)
            row[f"{name}_low"] = getattr(interval, "low", None)
            row[f"{name}_high"] = getattr(interval, "high", None)
        for name, law in laws.items():
            row[f"params_{name}"], row[f"tokens_{name}"] = law.n_opt(flops), law.d_opt(flops)
        rows.append(row)
    return rows


def _terms(planned: Sequence[SweepRun]) -> list[dict[str, Any]]:
    """FLOPs of training by term and model, per latent token, from smallest to largest."""
    rows = []
    seen = set()
    for run in sorted(planned, key=lambda run: run.parameters):
        model = run.config.model
        name = f"{model.num_channels} × {model.num_layers}"
        if name in seen:
            continue
        seen.add(name)
        count = model.counted().flops()
        tokens = count.tokens
        for term in count.to_dict()["terms"]:
            rows.append(
                {"model": name}
                | {key: term[key] for key in ("part", "layer", "term")}
                | {"flops_per_token": term["total"] / tokens, "share": term["total"] / count.total}
            )
        elementwise = count.elementwise.total
        for term, flops in (("total", count.total), (_ELEMENTWISE, elementwise)):
            rows.append(
                {"model": name, "part": "", "layer": "", "term": term}
                | {"flops_per_token": flops / tokens, "share": flops / count.total}
            )
    return rows


def _by_label(terms: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows by what they count, then by model: in the order of the model with the most terms."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for row in sorted(terms, key=lambda row: row["part"] == ""):
        layer = _LAYERS.get(row["layer"], row["layer"])
        prefix = "prefix" if row["part"] == "cross" else ""
        label = ", ".join(filter(None, (layer, prefix, row["term"])))
        table.setdefault(label, {})[row["model"]] = row
    return table


def _shares(terms: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    group_of = {term: group for group, names in _GROUPS.items() for term in names}
    shares: dict[str, dict[str, float]] = {}
    for row in terms:
        if not row["part"]:
            continue
        group = group_of.get(row["term"], row["term"])
        group = f"{group}, prefix" if row["part"] == "cross" else group
        model = shares.setdefault(row["model"], {})
        model[group] = model.get(group, 0.0) + row["share"]
    return shares


def _environment() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"power": _power, "number": _number, "minimum": _minimum}
    return environment.from_string(_TEMPLATE.read_text("utf-8"))


def _power(value: float) -> Markup:
    """A number as HTML in three digits and a power of ten.

    >>> print(_power(3e10), _power(1e12))
    3 × 10<sup>10</sup> 10<sup>12</sup>
    """
    mantissa, exponent = f"{value:.2e}".split("e")
    digits = mantissa.rstrip("0").rstrip(".")
    front = "" if digits == "1" else f"{digits} × "
    return Markup(f"{front}10<sup>{int(exponent)}</sup>")


def _number(value: float) -> Markup:
    """A count with separators below a billion, else a power of ten.

    >>> print(_number(28722.4), _number(2.5e9))
    28,722 2.5 × 10<sup>9</sup>
    """
    return Markup(f"{value:,.0f}") if value < 1e9 else _power(value)


def _minimum(verdict: str) -> str:
    """Say of a vertex whether it is a minimum inside the range.

    >>> _minimum("used"), _minimum("not used: the parabola has no minimum")
    ('yes', 'no: the parabola has no minimum')
    """
    if verdict.startswith("used"):
        return verdict.replace("used", "yes", 1)
    return verdict.replace("not used", "no", 1)


def _read_table(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [{name: _cell(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _cell(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, table.getvalue().encode())


def _noise(runs: list[dict[str, Any]]) -> float | None:
    """Pool the standard deviation over seeds of runs alike; None with one seed."""
    groups: dict[tuple[float, float], list[float]] = {}
    for run in runs:
        groups.setdefault((run["budget"], run["parameters"]), []).append(run["validation_loss"])
    repeated = [np.var(losses, ddof=1) for losses in groups.values() if len(losses) > 1]
    return float(np.sqrt(np.mean(repeated))) if repeated else None
