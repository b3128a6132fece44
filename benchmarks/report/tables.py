"""Tables and plots from the CSVs of results: ``python -m benchmarks report DIR``.

Nothing is measured here. Ratios are our time over theirs: below 1 we are faster.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from pathlib import Path

import tyro

from benchmarks.attention.cases import OURS, PEERS, Row, best, by_case, over, shape_of
from benchmarks.attention.implementations import IMPLEMENTATIONS
from benchmarks.attention.shapes import PASSES, SETS
from benchmarks.measurement import ROOT
from benchmarks.report.aims import HYBRID_PREFIX, aims_markdown
from flopcount import commands
from models.results import NO_GPU, markdown, read_table

LONGEST_OF_ARTICLE = 512


def attention_markdown(rows: Iterable[Row]) -> str:
    """The table of a run: one line per shape and pass, our time over each peer's."""
    head = ["n", "k", "head dim", "pass", "ms", "TFLOP/s", "of floor", "bound by", *PEERS, "best"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (shape, pass_name), case in by_case(rows).items():
        cells = [str(shape.queries), str(shape.prefix), str(shape.head_dim), pass_name]
        ours = case.get(OURS)
        if ours is None or ours["status"] != "ok":
            status = "not measured" if ours is None else ours["status"]
            cells += [status, "", "", ""]
        else:
            share = float(ours["floor_ms"]) / float(ours["ms"])
            cells += [
                f"{float(ours['ms']):.3f}",
                f"{float(ours['causal_tflops']):.0f}",
                f"{share:.0%}",
                ours["binds"],
            ]
        our_time = best(case, [OURS])
        for names in PEERS.values():
            cells.append(_ratio(our_time, case, names))
        cells.append(_ratio(our_time, case, [name for names in PEERS.values() for name in names]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ratio(ours: float | None, case: dict[str, Row], names: Iterable[str]) -> str:
    theirs = best(case, names)
    if theirs is not None:
        return f"{theirs:.3f} ms" if ours is None else f"{ours / theirs:.2f}×"
    met = [
        case[name]["status"]
        for name in names
        if name in case and case[name]["status"] != "does not apply"
    ]
    return met[0] if met else "–"


HEADLINE = tuple(shape for shape in SETS["article"] if shape.prefix == HYBRID_PREFIX)
README = ROOT / "README.md"
BEGIN, END = "<!-- attention: begin -->", "<!-- attention: end -->"


def headline_markdown(rows: Iterable[Row]) -> str:
    """The short table: the article's longest layers, our time, and its share of the fastest peer's.

    A line for each head dim; a pass that was not measured on both sides is a dash.
    """
    cases = by_case(rows)
    head = ["k", "head dim"]
    for name in PASSES:
        head += [f"{name}, ms", "TFLOP/s", "of floor", "of best peer"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for shape in sorted(HEADLINE, key=lambda shape: (-shape.prefix, shape.head_dim)):
        cells = [str(shape.prefix), str(shape.head_dim)]
        for name in PASSES:
            case = cases.get((shape, name), {})
            ours, ratio = case.get(OURS), over(case, PEERS)
            if ours is None or ours["status"] != "ok" or ratio is None:
                cells += ["–"] * 4
                continue
            share = float(ours["floor_ms"]) / float(ours["ms"])
            cells += [
                f"{float(ours['ms']):.3f}",
                f"{float(ours['causal_tflops']):.0f}",
                f"{share:.0%} ({ours['binds']})",
                f"{ratio:.2f}×",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def with_headline(text: str, rows: list[Row]) -> str:
    """A text with the short table between its two marks, in place of what stands there.

    Raises:
        ValueError: If the text does not have both marks, once and in order, or no GPU was used.
    """
    if not rows or NO_GPU in {row["device"] for row in rows}:
        raise ValueError("rows must be measured on a GPU, and there must be some")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"text must have the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{origin(rows)}\n{headline_markdown(rows)}{END}{after}"


def failures_markdown(rows: Iterable[Row]) -> str:
    """Everything that failed or was wrong: how many cases, and the message."""
    met = collections.Counter(
        (row["implementation"], row["status"], row["message"].replace("|", "\\|"))
        for row in rows
        if row["status"] in ("failed", "wrong")
    )
    lines = ["| implementation | status | cases | message |", "|---|---|---|---|"]
    for (name, status, message), cases in met.items():
        lines.append(f"| {name} | {status} | {cases} | {message} |")
    return "\n".join(lines) + "\n"


def attention_plot(rows: list[Row], path: Path) -> None:
    """TFLOP/s at causal FLOPs, a panel per kind of layer and pass, a line per implementation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[tuple[str, str], list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row["status"] == "ok":
            shape = shape_of(row)
            long = shape.queries > LONGEST_OF_ARTICLE
            kind = (
                f"head dim {shape.head_dim}" if long else f"n = {shape.queries}, k = {shape.prefix}"
            )
            panels[kind, row["pass"]].append(row)
    if not panels:
        raise ValueError("rows must hold a measured one at least, got none")
    kinds = list(dict.fromkeys(kind for kind, _ in panels))
    figure, axes = pyplot.subplots(
        len(kinds), 2, figsize=(11, 3 * len(kinds)), squeeze=False, layout="constrained"
    )
    for line, kind in enumerate(kinds):
        for column, pass_name in enumerate(("forward", "backward")):
            axis = axes[line][column]
            axis.set_title(f"{kind}, {pass_name}")
            axis.set_ylabel("TFLOP/s (causal FLOPs)")
            across = "queries" if kind.startswith("head dim") else "head_dim"
            axis.set_xlabel("sequence length" if across == "queries" else "head dim")
            for name in IMPLEMENTATIONS:
                points = sorted(
                    (int(row[across]), float(row["causal_tflops"]))
                    for row in panels[kind, pass_name]
                    if row["implementation"] == name
                )
                if points:
                    width = 2.5 if name == OURS else 1
                    axis.plot(*zip(*points, strict=True), marker="o", label=name, linewidth=width)
            if across == "queries":
                axis.set_xscale("log", base=2)
            if axis.lines:
                axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def origin(rows: list[Row]) -> str:
    """Which device the rows are from, and what a run without one is worth."""
    devices = sorted({row["device"] for row in rows})
    if devices == [NO_GPU]:
        return "Run without a GPU: every path was tried, nothing was measured.\n"
    return f"Device: {', '.join(devices)}.\n"


OTHER_TABLES = {
    "block": ("channels", "queries", "prefix", "implementation", "status", "ms", "message"),
    "throughput": (
        "model",
        "implementation",
        "status",
        "ms",
        "tokens_per_second",
        "mfu",
        "hfu",
        "message",
    ),
    "counters": ("case", "kernel", "metric", "executed", "counted", "difference", "verdict"),
    "soundness": ("check", "cases", "status", "message"),
    "step": ("model", "kernel", "layer", "term", "phase", "causal", "dense", "counted", "verdict"),
}
"""Columns that the report shows of the other results' CSVs."""


def write_report(folder: Path) -> list[Path]:
    """Write what the folder's CSVs give: a table each, and plots of the attention's times.

    ``aims.md`` says which aims of :mod:`benchmarks.report.aims` are reached.

    Raises:
        ValueError: If the folder holds no results.
    """
    written = []
    for name, what in {"attention": "", "replayed": "Replays of CUDA graphs.\n"}.items():
        if rows := read_table(folder / f"{name}.csv"):
            page, plot = (folder / f"{name}.{suffix}" for suffix in ("md", "png"))
            page.write_text(
                "\n".join((origin(rows) + what, attention_markdown(rows), failures_markdown(rows))),
                encoding="utf-8",
            )
            attention_plot(rows, plot)
            written += [page, plot]
    for name, columns in OTHER_TABLES.items():
        if rows := read_table(folder / f"{name}.csv"):
            page = folder / f"{name}.md"
            page.write_text(origin(rows) + "\n" + markdown(rows, columns), encoding="utf-8")
            written.append(page)
    measured = [
        row for name in ("attention", "throughput") for row in read_table(folder / f"{name}.csv")
    ]
    if aims := aims_markdown(folder):
        page = folder / "aims.md"
        page.write_text(origin(measured) + "\n" + aims, encoding="utf-8")
        written.append(page)
    if not written:
        raise ValueError(f"{folder} must hold the CSV of a benchmark, got none")
    return written


def report(folder: tyro.conf.Positional[Path], readme: bool = False) -> None:
    """Write the report, and print what it consists of.

    Args:
        folder: Of the results.
        readme: Put the short table between README.md's marks.
    """
    print(*write_report(folder), sep="\n")
    if readme:
        rows = read_table(folder / "attention.csv")
        README.write_text(with_headline(README.read_text(encoding="utf-8"), rows), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    try:
        commands.run(report, "python -m benchmarks report", arguments, __doc__)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
