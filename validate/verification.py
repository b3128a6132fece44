"""``docs/verification.md``: what has been verified, by whom, and what has not.

``python -m validate --write-docs`` runs every check in full and the mutation run, records what they
found in ``docs/verification.json`` and writes the page from the record. The page is a function of
the record and of what the code declares, so whether it is current can be told in seconds:
:func:`stale` compares the record with formulas, witnesses, mutants and draws as they are, and with
the code of every file on which a verdict depends. Comments, docstrings, tests, pages and a file's
place in the project do not matter. A run takes over what the record, or a run that was interrupted,
had found right with the same code, and does the rest: a changed kernel asks for the checks that run
kernels, a changed formula for all of them. Of mutants the record's word holds as long as the tests
that found them stand: more tests find no fewer.
"""

from __future__ import annotations

import ast
import datetime
import functools
import hashlib
import importlib.metadata
import json
import platform
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

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
from validate.witnesses.source_code import code_of, placeless

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PART = DOCS / "verification.part.jsonl"
DRAWN = 1000
WITNESSES = ("torch", "fvcore", "transformers", "triton")
"""Packages whose code is a witness, or runs one."""
SEPARATOR = " × "

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


def known_numbers() -> str:
    """Digests of the statements of the tests that find mutants, without their imports."""
    texts = ((ROOT / path).read_text(encoding="utf-8") for path in judging.KNOWN_NUMBER_TESTS)
    statements = (statement for text in texts for statement in ast.parse(code_of(text)).body)
    return " ".join(
        sorted(
            hashlib.sha256(ast.unparse(statement).encode()).hexdigest()[:8]
            for statement in statements
            if not isinstance(statement, ast.Import | ast.ImportFrom)
        )
    )


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


@functools.cache
def _read(path: Path) -> tuple[str, tuple[str, ...]]:
    """A digest of a file's code, and what it imports."""
    source = path.read_text(encoding="utf-8")
    digest = hashlib.sha256(placeless(source).encode()).hexdigest()[:16]
    return digest, tuple(_imported(ast.parse(source)))


def _closure(modules: Iterable[str]) -> dict[str, str]:
    """A digest of the code of modules, and of all of the project that they import, by file."""
    waiting = list(modules)
    digests: dict[str, str] = {}
    while waiting:
        path = ROOT.joinpath(*waiting.pop().split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        name = path.relative_to(ROOT).as_posix()
        if name not in digests and path.is_file():
            digests[name], imports = _read(path)
            waiting += imports
    if any(name.startswith("kernels/") for name in digests):
        table = TUNED.relative_to(ROOT).as_posix()
        digests[table] = hashlib.sha256(TUNED.read_bytes()).hexdigest()[:16]
    return digests


def sources() -> dict[str, str]:
    """A digest of the code of every file on which a verdict depends, and where the file is now.

    Those are the formulas that are changed, the matrix, and all of the project that they import:
    witnesses, networks and kernels, with the table of tilings that these read.
    """
    formulas = [entry.target.module for entry in judging.FORMULAS]
    digests = _closure(["validate.matrix", "validate.mutation.judging", *formulas])
    return dict(sorted(digests.items()))


def _names(code: CodeType) -> Iterator[str]:
    """Global names that a function uses, those inside of it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _modules(part: Any) -> Iterator[str]:
    """Modules that a check names: its functions' in the matrix one by one, others whole."""
    if isinstance(part, functools.partial):
        for inside in (part.func, *part.args):
            yield from _modules(inside)
    elif isinstance(part, matrix.Check | matrix.Standalone):
        yield from _modules(part.compare if isinstance(part, matrix.Check) else part.cases)
    elif isinstance(part, ModuleType):
        yield part.__name__
    elif getattr(part, "__module__", matrix.__name__) != matrix.__name__:
        yield part.__module__
    elif isinstance(part, FunctionType):
        for name in _names(part.__code__):
            yield from _modules(part.__globals__.get(name))


def files_of(check: Callable[[], matrix.Verdict]) -> set[str]:
    """The files on whose code a check's verdict depends: the counter's, and the witness's."""
    return {"validate/matrix.py", *_closure(["flopcount", *_modules(check)])}


def files_of_judges(names: Iterable[str]) -> set[str]:
    """The files on whose code it depends what judges find, the counter's apart."""
    files = {f"validate/mutation/{name}.py" for name in ("judging", "mutants")}
    witnesses = {
        judging.ROWS: matrix.CHECKS,
        judging.DOTS: (judging.kernel_tally,),
        judging.KNOWN_NUMBERS: (),
    }
    for name in names:
        for part in witnesses[name]:
            files |= {"validate/matrix.py", *_closure(_modules(part))}
    return files


def expected(quick: bool) -> list[list[str]]:
    """Formula and witness of everything that a run checks."""
    steps = [s for s in proof.STEPS if not quick or (s.training and not s.checkpointing)]
    return [
        *(list(matrix.proof_names(step)) for step in steps),
        *([check.formula, check.witness] for check in (*matrix.CHECKS, *matrix.STANDALONE)),
        *([name, ""] for name in matrix.WITHOUT_WITNESS),
    ]


def _checks(quick: bool) -> dict[str, Callable[[], matrix.Verdict]]:
    """What a run checks, by formula and witness."""
    runs = matrix.runs(quick)
    names = [_name(*of) for of in expected(quick)]
    return dict(zip(names[: len(runs)], runs, strict=True))


def _name(formula: str, witness: str) -> str:
    return f"{formula}{SEPARATOR}{witness}"


def versions(quick: bool, now: dict[str, Any]) -> dict[str, str]:
    """A digest of all that each verdict depends on, and each module's mutants.

    Args:
        quick: As of :func:`record`.
        now: What :func:`current` says, or a record.
    """
    counter = {name for name in now["sources"] if name.startswith("flopcount/")}
    common = [quick, now["census"], now["versions"]]
    parts: dict[str, tuple[Any, set[str]]] = {
        name: (common, files_of(check)) for name, check in _checks(quick).items()
    }
    for entry in judging.FORMULAS:
        module = entry.target.module
        mutated = [now["mutants"].get(module), now["versions"]]
        parts[module] = mutated, files_of_judges(entry.judges)
    return {
        name: hashlib.sha256(
            json.dumps(
                [said, {file: now["sources"].get(file) for file in sorted(counter | files)}]
            ).encode()
        ).hexdigest()[:16]
        for name, (said, files) in parts.items()
    }


def _keep(version: str, name: str, entry: dict[str, Any], holds: bool) -> None:
    """Write down what one check, or one module's mutants, came to."""
    line = json.dumps({"version": version, "name": name, "entry": entry, "holds": holds})
    with PART.open("a", encoding="utf-8") as part:
        part.write(line + "\n")


def _kept(now: dict[str, str]) -> dict[str, Any]:
    """What an interrupted run of the same code found, and found right."""
    lines = PART.read_text(encoding="utf-8").splitlines() if PART.is_file() else []
    entries = [json.loads(line) for line in lines]
    return {
        entry["name"]: entry["entry"]
        for entry in entries
        if entry["version"] == now.get(entry["name"]) and entry["holds"]
    }


def _carried(recorded: dict[str, Any], now: dict[str, str], tests: str) -> dict[str, Any]:
    """What the record says of code that is the same today, and found right.

    Args:
        recorded: The record.
        now: Of the code as it is, by :func:`versions`.
        tests: Those that find mutants, by :func:`known_numbers`: all that the record had are there.
    """
    then = versions(recorded["quick"], recorded)
    entries = {_name(entry["formula"], entry["witness"]): entry for entry in recorded["verdicts"]}
    if "tests" in recorded and set(recorded["tests"].split()) <= set(tests.split()):
        listed = judging.equivalent_mutants()
        entries |= {
            module: entry
            for module, entry in recorded["mutation"].items()
            if entry["equivalent"] == sum(name.startswith(f"{module}.") for name in listed)
        }
    return {
        name: entry
        for name, entry in entries.items()
        if name in now and now[name] == then.get(name) and not _wrong(entry)
    }


def judged(modules: list[str], now: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What became of some modules' mutants, which entries are stale, and how long it took."""
    listed = judging.equivalent_mutants()
    entries = {}
    for result in judging.each(judging.formulas_of(modules)):
        ((module, entry),) = result.to_dict(listed).items()
        entry |= {"no_mutants": result.stale(listed), "seconds": round(result.seconds, 1)}
        _keep(now[module], module, entry, not _wrong(entry))
        entries[module] = entry
    return entries


def _checked(name: str, run: Callable[[], matrix.Verdict], version: str) -> matrix.Verdict:
    try:
        verdict = matrix.timed(run)
    except Exception as error:  # a witness that cannot answer confirms nothing; the others go on
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
        verdict = matrix.Verdict(*name.split(SEPARATOR), "nothing", None, said)
    _keep(version, name, vars(verdict), verdict.holds)
    print(
        f"{name}, {verdict.covered}: {verdict.finding} ({verdict.seconds:.0f} s)",
        file=sys.stderr,
        flush=True,
    )
    return verdict


def record(processes: int = 1, quick: bool = False, anew: bool = False) -> dict[str, Any]:
    """Run everything that has not been found right with the code as it is.

    Args:
        processes: How many checks, or modules' mutants, run at the same time.
        quick: As ``python -m validate --quick``; the mutants are judged all the same.
        anew: Whether what the committed record says of the same code is run again too.
    """
    now = current(quick)
    to_do = versions(quick, now)
    carried = {} if anew else _carried(read(), to_do, now["tests"])
    kept = carried | _kept(to_do)
    checks = _checks(quick)
    modules = [entry.target.module for entry in judging.FORMULAS]
    waiting = [name for name in modules if name not in kept]
    shares = [waiting[start::processes] for start in range(processes)]
    with fresh_processes(processes) as pool:
        mutated = [pool.submit(judged, share, to_do) for share in shares if share]
        checked = {
            name: pool.submit(_checked, name, run, to_do[name])
            for name, run in checks.items()
            if name not in kept
        }
        kept |= {name: vars(future.result()) for name, future in checked.items()}
        for future in mutated:
            kept |= future.result()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "quick": quick,
        "verdicts": [*(kept[name] for name in checks), *map(vars, matrix.unverified())],
        "mutation": {name: kept[name] for name in modules},
        **{name: now[name] for name in ("versions", "census", "mutants", "tests", "sources")},
    }


def current(quick: bool) -> dict[str, Any]:
    """What a record made now would say of formulas, witnesses, mutants and draws."""
    return {
        "names": expected(quick),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in WITNESSES},
        },
        "mutants": mutants(),
        "tests": known_numbers(),
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

Generated by `python -m validate --write-docs`, which runs what has changed since, or all of it with
`--anew` ({minutes} minutes, summed over its processes, {date}, Python {python}, PyTorch {torch}); a
test tells from the code whether it is current.{extent}

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


def write(processes: int = 1, quick: bool = False, anew: bool = False) -> dict[str, Any]:
    """Write record and page, as :func:`record` takes the arguments; returns the record."""
    DOCS.mkdir(exist_ok=True)
    recorded = record(processes, quick, anew)
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
    entries = (*recorded["mutation"].values(), *recorded["verdicts"])
    return [said for entry in entries for said in _wrong(entry)]


def _wrong(entry: dict[str, Any]) -> list[str]:
    """The same of one verdict, or of one module's mutants."""
    if "survivors" in entry:
        return [*entry["survivors"], *entry["no_mutants"]]
    return [] if entry["finding"] in ("equal", "UNVERIFIED") else [str(entry)]


def read() -> dict[str, Any]:
    """The committed record."""
    recorded: dict[str, Any] = json.loads((DOCS / "verification.json").read_text(encoding="utf-8"))
    return recorded
