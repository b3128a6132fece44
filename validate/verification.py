"""``docs/verification.md``: what has been verified, by whom, and what has not.

``python -m validate --write-docs`` runs every check in full and the mutation run, records what they
found in ``docs/verification.json`` and writes the page from the record. The page is a function of
the record and of what the code declares, so whether it is current can be told in seconds:
:func:`stale` compares the record with formulas, witnesses, mutants and draws as they are, and with
the code of every file on which a verdict depends. Comments, docstrings, tests, pages and a file's
place in the project do not matter. A run that is interrupted leaves record and page as they
were; the next one of the same code takes what had been found right, and does the rest.
"""

from __future__ import annotations

import ast
import datetime
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from flopcount import testing
from flopcount.conventions import CONVENTIONS
from kernels.attention.tilings import TUNED
from models.processes import fresh_processes
from validate import matrix, proof
from validate.mutation import judging
from validate.mutation.mutants import mutants_of
from validate.witnesses import elementwise_trace
from validate.witnesses.hugging_face import families
from validate.witnesses.networks import head_dim, num_prefix
from validate.witnesses.source_code import placeless

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PART = DOCS / "verification.part.jsonl"
DRAWN = 1000

SMALLEST: dict[str, Callable[[Any], bool]] = {
    "head dim 1": lambda model: head_dim(model) == 1,
    "head dim 2": lambda model: head_dim(model) == 2,
    "head dim 3": lambda model: head_dim(model) == 3,
    "head dim 4": lambda model: head_dim(model) == 4,
    "head dim 5": lambda model: head_dim(model) == 5,
    "an odd head dim above 5": lambda model: head_dim(model) in (7, 9, 11),
    "n = 1": lambda model: model.length == 1,
    "m = 0": lambda model: num_prefix(model) == 0,
    "m = 1": lambda model: num_prefix(model) == 1,
    "k = 0 of m > 0": lambda model: num_prefix(model) > 0 == model.kept(),
    "k = 1": lambda model: num_prefix(model) > 0 and model.kept() == 1,
    "p = 0 and m > 0": lambda model: num_prefix(model) > 0 == model.selected() < model.kept(),
    "h = 1": lambda model: model.num_heads == 1,
    "V = 1": lambda model: model.vocab_size == 1,
    "w = 1": lambda model: getattr(model, "widening_factor", 0) == 1,
    "L = 1": lambda model: model.num_layers == 1,
}
"""Sizes that the symbolic trace's ranges exclude, or that are easily got wrong."""


def census() -> dict[str, int]:
    """How many of the drawn configurations have each of the smallest sizes."""
    drawn = testing.draw(testing.models(), DRAWN)
    return {name: sum(map(has, drawn)) for name, has in SMALLEST.items()}


def mutants() -> dict[str, str]:
    """A digest of every module's mutants, by which a changed formula is told."""
    return {
        entry.target.module: hashlib.sha256(
            "\n".join(
                mutant.name.removeprefix(entry.target.module) for mutant in mutants_of(entry.target)
            ).encode()
        ).hexdigest()[:16]
        for entry in judging.FORMULAS
    }


def _imported(tree: ast.AST) -> Iterator[str]:
    """Names of modules, and of what may be modules, that run when the code runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imported(node)


def sources() -> dict[str, str]:
    """A digest of the code of every file on which a verdict depends, and where the file is now.

    Those are the formulas that are changed, the matrix, and all of the project that they import:
    witnesses, networks and kernels, with the table of tilings that these read.
    """
    formulas = [entry.target.module for entry in judging.FORMULAS]
    waiting = ["validate.matrix", "validate.mutation.judging", *formulas]
    table = TUNED.relative_to(ROOT).as_posix()
    found = {table: hashlib.sha256(TUNED.read_bytes()).hexdigest()[:16]}
    while waiting:
        path = ROOT.joinpath(*waiting.pop().split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        name = path.relative_to(ROOT).as_posix()
        if name in found or not path.is_file():
            continue
        source = path.read_text(encoding="utf-8")
        found[name] = hashlib.sha256(placeless(source).encode()).hexdigest()[:16]
        waiting += _imported(ast.parse(source))
    return dict(sorted(found.items()))


def expected(quick: bool) -> list[list[str]]:
    """Formula and witness of everything that a run checks."""
    steps = [s for s in proof.STEPS if not quick or (s.training and not s.checkpointing)]
    return [
        *(list(matrix.proof_names(step)) for step in steps),
        *([check.formula, check.witness] for check in (*matrix.CHECKS, *matrix.STANDALONE)),
        *([name, ""] for name in matrix.WITHOUT_WITNESS),
    ]


def _version(quick: bool, now: dict[str, Any]) -> str:
    """A digest of all that a verdict depends on, by :func:`current`."""
    return hashlib.sha256(json.dumps([quick, now]).encode()).hexdigest()[:16]


def _keep(version: str, name: str, entry: dict[str, Any], holds: bool) -> None:
    """Write down what one check, or one module's mutants, came to."""
    line = json.dumps({"version": version, "name": name, "entry": entry, "holds": holds})
    with PART.open("a", encoding="utf-8") as part:
        part.write(line + "\n")


def _kept(version: str) -> dict[str, Any]:
    """What an earlier run of the same code found, and found right."""
    lines = PART.read_text(encoding="utf-8").splitlines() if PART.is_file() else []
    entries = [json.loads(line) for line in lines]
    return {
        entry["name"]: entry["entry"]
        for entry in entries
        if entry["version"] == version and entry["holds"]
    }


def judged(modules: list[str], version: str) -> dict[str, dict[str, Any]]:
    """What became of some modules' mutants, which entries are stale, and how long it took."""
    listed = judging.equivalent_mutants()
    entries = {}
    for result in judging.each(judging.formulas_of(modules)):
        ((module, entry),) = result.to_dict(listed).items()
        entry |= {"no_mutants": result.stale(listed), "seconds": round(result.seconds, 1)}
        _keep(version, module, entry, not (entry["survivors"] or entry["no_mutants"]))
        entries[module] = entry
    return entries


def _checked(index: int, run: Callable[[], matrix.Verdict], version: str) -> matrix.Verdict:
    verdict = matrix.timed(run)
    _keep(version, str(index), vars(verdict), verdict.holds)
    print(
        f"{verdict.formula} × {verdict.witness}, {verdict.covered}: {verdict.finding} "
        f"({verdict.seconds:.0f} s)",
        file=sys.stderr,
        flush=True,
    )
    return verdict


def record(processes: int = 1, quick: bool = False) -> dict[str, Any]:
    """Run everything that an interrupted run of the same code has not found right.

    Args:
        processes: How many checks, or modules' mutants, run at the same time.
        quick: As ``python -m validate --quick``; the mutants are judged all the same.
    """
    now = current(quick)
    version = _version(quick, now)
    kept = _kept(version)
    checks = matrix.runs(quick)
    modules = [entry.target.module for entry in judging.FORMULAS]
    waiting = [name for name in modules if name not in kept]
    shares = [waiting[start::processes] for start in range(processes)]
    with fresh_processes(processes) as pool:
        mutated = [pool.submit(judged, share, version) for share in shares if share]
        checked = {
            index: pool.submit(_checked, index, run, version)
            for index, run in enumerate(checks)
            if str(index) not in kept
        }
        found = [
            vars(checked[index].result()) if index in checked else kept[str(index)]
            for index in range(len(checks))
        ]
        for future in mutated:
            kept |= future.result()
    became = {name: kept[name] for name in modules}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "quick": quick,
        "verdicts": [*found, *map(vars, matrix.unverified())],
        "mutation": became,
        **{name: now[name] for name in ("census", "mutants", "sources")},
    }


def current(quick: bool) -> dict[str, Any]:
    """What a record made now would say of formulas, witnesses, mutants and draws."""
    return {
        "names": expected(quick),
        "mutants": mutants(),
        "census": census(),
        "sources": sources(),
    }


def _changed(recorded: dict[str, str], now: dict[str, str]) -> list[str]:
    """Names whose content only one of two has; what lies elsewhere has not changed."""
    new = {name for name, content in now.items() if content not in recorded.values()}
    gone = {name for name, content in recorded.items() if content not in now.values()}
    return sorted(new | gone)


def stale(recorded: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What the record says differently from the code as it is now, by :func:`current`."""
    reasons = []
    names = [[entry["formula"], entry["witness"]] for entry in recorded["verdicts"]]
    if names != now["names"]:
        reasons.append("formulas or witnesses have changed")
    reasons += [
        f"formulas of {name} have changed" for name in _changed(recorded["mutants"], now["mutants"])
    ]
    if recorded["census"] != now["census"]:
        reasons.append("other configurations are drawn")
    reasons += [
        f"{name} has changed" for name in _changed(recorded.get("sources", {}), now["sources"])
    ]
    return reasons


def _table(headings: list[str], rows: list[list[Any]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _matrix(recorded: dict[str, Any]) -> str:
    rows = []
    for entry in recorded["verdicts"]:
        verdict = matrix.Verdict(**entry)
        finding = verdict.finding if verdict.holds else f"**{verdict.finding}**"
        witness = verdict.witness or "**none**"
        largest = "" if verdict.largest_difference is None else f"{verdict.largest_difference:,}"
        seconds = f"{verdict.seconds:,.0f} s"
        rows.append([verdict.formula, witness, verdict.covered, largest, finding, seconds])
    return _table(["formula", "witness", "covered", "largest difference", "finding", "took"], rows)


def _assumptions() -> str:
    guards = dict.fromkeys(
        guard
        for layers in proof.listed_assumptions().values()
        for assumptions in layers.values()
        for guard in assumptions["guards"]
    )
    ranges: dict[str, dict[str, str]] = {}
    for step, layers in proof.listed_assumptions().items():
        architecture = step.split()[0]
        ranges[architecture] = layers["2"]["ranges"]
    sizes = list(dict.fromkeys(size for of in ranges.values() for size in of))
    table = _table(
        ["", *sizes], [[name, *(of.get(size, "") for size in sizes)] for name, of in ranges.items()]
    )
    return table + "\n\nGuards:\n\n" + "\n".join(f"- `{guard}`" for guard in guards)


def _mutation(recorded: dict[str, Any]) -> str:
    kinds = list(judging.JUDGES)
    modules = recorded["mutation"]
    rows = [
        [
            f"`{module}`",
            entry["mutants"],
            *(entry["found"].get(kind, 0) for kind in kinds),
            entry["equivalent"],
            len(entry["survivors"]),
        ]
        for module, entry in modules.items()
    ]
    columns = zip(*(row[1:] for row in rows), strict=True)
    rows.append(["all", *(sum(column) for column in columns)])
    headings = ["module", "mutants", *(f"found by {kind}" for kind in kinds)]
    by_reason: dict[str, list[str]] = {}
    for name, reason in judging.equivalent_mutants().items():
        by_reason.setdefault(reason, []).append(name)
    equivalent = "\n".join(
        f"- {reason}: {'; '.join(f'`{name}`' for name in names)}"
        for reason, names in by_reason.items()
    )
    return f"{_table([*headings, 'equivalent', 'survivors'], rows)}\n\nEquivalent:\n\n{equivalent}"


def _unclaimed() -> str:
    by_reason: dict[str, list[str]] = {}
    for (module, name), reason in elementwise_trace.UNCLAIMED.items():
        place = module or "the network itself"
        by_reason.setdefault(reason, []).append(f"`{name}` in `{place}`")
    return "\n".join(f"- {reason}: {'; '.join(where)}" for reason, where in by_reason.items())


PAGE = """\
# Verification

Generated by `python -m validate --write-docs`, which runs all of it ({minutes} minutes, summed over
its processes, {date}, Python {python}, PyTorch {torch}); a test tells from the code whether it is
current.{extent}

## Formula × witness

A witness never sees the formula that it confirms. Every comparison is exact; one that is off by one
FLOP is a disagreement, and the command exits with 1.

{matrix}

A family read from its config is tried on {configs} drawn configs, the same ones every time, which
show every option, and on published sizes. Products of the forward pass are compared module by
module. Published sizes run without data, for their parameters and the products of both passes;
drawn ones on real tensors, which shows recomputation in both flavours and the pairs that the
network's own masks admit as well. The network's attention is not fused and its experts' products
are not grouped, since these count as 0. What transformers' code executes beyond the model, such as
Llama-4's experts that no token was routed to, or what FlopCounterMode counts otherwise, such as
convolutions, is a formula of its own.

## Not verified

{unverified}

## What the symbolic trace assumes

The trace holds for every size in these ranges that meets the guards; no size is replaced and no
guard is an equality. `K <= M` says that no more is kept than there is. The other guards hold for
every size in the ranges (a test evaluates them). L is a number in each trace, 1 to 4, and the
counter is linear in L: every further layer is one more module equal to the last. With C ≥ 6, what
the ranges exclude is covered by concrete runs, below.

{assumptions}

## The smallest sizes

Of the {drawn:,} configurations that hypothesis draws for each concrete witness in a full run, the
same ones every time, so many have

{census}

## Mutants

Every constant, sign, operator, factor, term, choice and default of the formulas is changed, one at
a time; the witnesses, traced once and kept, or the tests' known numbers, published or derived by
hand, must find it ({mutation_seconds} s; `python -m validate.mutation`).

{mutation}

## Element-wise work that no row counts

The trace of element-wise operations shows these, and no row of the counter claims them:

{unclaimed}
"""


QUICK = (
    "\n\n**This is the record of a quick run** (`--quick`): without it, every kind of step is "
    "proved at L = 1 to 4, and each concrete witness is tried on 1,000 drawn configurations and "
    "all ten of the article's models."
)


def page(recorded: dict[str, Any]) -> str:
    """The page as Markdown."""
    unverified = [
        f"- **UNVERIFIED**: {entry['formula']}"
        for entry in recorded["verdicts"]
        if entry["finding"] == "UNVERIFIED"
    ]
    conventions = ", ".join(f"`{name}`" for name in CONVENTIONS)
    unverified.append(
        f"- Published conventions ({conventions}) have no witness in a network: they are held "
        "against their publications' numbers"
    )
    mutation_seconds = sum(entry["seconds"] for entry in recorded["mutation"].values())
    seconds = mutation_seconds + sum(entry["seconds"] for entry in recorded["verdicts"])
    census_rows = [[name, f"{number:,}"] for name, number in recorded["census"].items()]
    return PAGE.format(
        extent=QUICK if recorded["quick"] else "",
        minutes=round(seconds / 60),
        date=recorded["date"],
        python=recorded["versions"]["python"],
        torch=recorded["versions"]["torch"],
        matrix=_matrix(recorded),
        configs=families.DRAWN,
        unverified="\n".join(unverified),
        assumptions=_assumptions(),
        drawn=DRAWN,
        census=_table(["size", "configurations"], census_rows),
        mutation_seconds=round(mutation_seconds),
        mutation=_mutation(recorded),
        unclaimed=_unclaimed(),
    )


def write(processes: int = 1, quick: bool = False) -> dict[str, Any]:
    """Run everything and write record and page; returns the record."""
    DOCS.mkdir(exist_ok=True)
    recorded = record(processes, quick)
    texts = {
        "verification.json": json.dumps(recorded, indent=1, ensure_ascii=False) + "\n",
        "verification.md": page(recorded),
    }
    for name, text in texts.items():
        part = DOCS / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(DOCS / name)
    if not wrong(recorded):
        PART.unlink(missing_ok=True)
    return recorded


def wrong(recorded: dict[str, Any]) -> list[str]:
    """Every survivor, every listed mutant that is none, and every verdict that does not hold."""
    mutated = recorded["mutation"].values()
    return [
        *(name for entry in mutated for name in (*entry["survivors"], *entry["no_mutants"])),
        *(
            str(entry)
            for entry in recorded["verdicts"]
            if entry["finding"] not in ("equal", "UNVERIFIED")
        ),
    ]


def read() -> dict[str, Any]:
    """The committed record."""
    recorded: dict[str, Any] = json.loads((DOCS / "verification.json").read_text(encoding="utf-8"))
    return recorded
