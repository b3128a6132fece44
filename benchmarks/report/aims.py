"""What the kernels and the training step aim at, held against the CSVs of results.

Nothing is measured here. An aim over several cases is reached where its worst case is, and only
where all of them were measured.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.attention.cases import OURS, Row, by_case, over
from benchmarks.attention.shapes import PASSES, SETS, Shape
from models.results import read_table

UNALIGNED = (73, 78, 91)
"""Head dims of the article that peers pad by more than we do."""
ANY_PEER = ("SDPA-flash", "cuDNN", "FlexAttention")
AT_MOST, AT_LEAST = "at most", "at least"
OF_UNALIGNED = 0.8
HYBRID_PREFIX, HYBRID_SHARE = 1792, 0.55
MFU = {"728x13-V32000-m1536": 0.55, "512x9-V262-m3584": 0.40}
OF_COMPILED = ("sdpa-flash, compiled", "flex, compiled", "cudnn, compiled", "reference, compiled")
"""The same model with PyTorch's attention under torch.compile."""
FASTER_THAN = {OF_COMPILED: 1.15, ("eager",): 3.0, ("perceiver-ar-pytorch",): 3.0}


@dataclasses.dataclass(frozen=True)
class Aim:
    """A bound on one figure, and the figure in each case that it is about.

    Attributes:
        about: What is compared with what.
        bound: In words and as a number; None where the figure is reported as it is.
        figures: Of each case; None where it was not measured.
    """

    about: str
    bound: tuple[str, float] | None
    figures: tuple[float | None, ...]

    @property
    def measured(self) -> list[float]:
        """The figures that there are."""
        return [figure for figure in self.figures if figure is not None]

    @property
    def verdict(self) -> str:
        """``reached``, ``missed``, or what keeps it from being either."""
        if not self.measured:
            return "not measured"
        missing = len(self.figures) - len(self.measured)
        if self.bound is None:
            return "reported" + (f", {missing} not measured" if missing else "")
        words, number = self.bound
        if words == AT_MOST:
            missed = sum(figure > number for figure in self.measured)
        else:
            missed = sum(figure < number for figure in self.measured)
        if missed:
            return f"missed in {missed} of {len(self.figures)}"
        return f"{missing} not measured" if missing else "reached"


def attention_aims(rows: Iterable[Row], matmul_rate: float | None) -> Iterator[Aim]:
    """Of the kernels: ratios of our time to a peer's, and the share of the matmul rate.

    Args:
        rows: Of ``attention.csv``.
        matmul_rate: FLOP/s of a large product in the same run.
    """
    cases = by_case(rows)

    def ratios(
        shapes: Iterable[Shape], pass_name: str, peers: tuple[str, ...]
    ) -> tuple[float | None, ...]:
        return tuple(over(cases.get((shape, pass_name), {}), peers) for shape in shapes)

    article = SETS["article"]
    for head_dim in dict.fromkeys(shape.head_dim for shape in article):
        shapes = [shape for shape in article if shape.head_dim == head_dim]
        for pass_name in PASSES:
            what = f"head dim {head_dim}, {pass_name}: time over"
            if head_dim in UNALIGNED:
                bound = AT_MOST, OF_UNALIGNED
                values = ratios(shapes, pass_name, ANY_PEER)
                yield Aim(f"{what} the best of {', '.join(ANY_PEER)}", bound, values)
            else:
                for peer in ("SDPA-flash", "FlexAttention"):
                    yield Aim(f"{what} {peer}", (AT_MOST, 1.0), ratios(shapes, pass_name, (peer,)))
                for peer in ("cuDNN", "FA3"):
                    yield Aim(f"{what} {peer}", None, ratios(shapes, pass_name, (peer,)))
    for shape in article:
        if shape.prefix == HYBRID_PREFIX:
            ours = cases.get((shape, "forward"), {}).get(OURS, {})
            share = None
            if matmul_rate and ours.get("status") == "ok":
                share = 1e12 * float(ours["causal_tflops"]) / matmul_rate
            about = f"head dim {shape.head_dim}, forward, k = {HYBRID_PREFIX}: share of matmul rate"
            yield Aim(about, (AT_LEAST, HYBRID_SHARE), (share,))
    for head_dim in dict.fromkeys(shape.head_dim for shape in SETS["long"]):
        shapes = [shape for shape in SETS["long"] if shape.head_dim == head_dim]
        for pass_name in PASSES:
            what = f"1k to 16k, head dim {head_dim}, {pass_name}: time over"
            yield Aim(
                f"{what} FlexAttention",
                (AT_MOST, 1.0),
                ratios(shapes, pass_name, ("FlexAttention",)),
            )
            yield Aim(f"{what} cuDNN", None, ratios(shapes, pass_name, ("cuDNN",)))


def training_aims(rows: Iterable[Row]) -> Iterator[Aim]:
    """Of the training step: MFU, and tokens per second over those of others.

    Args:
        rows: Of ``throughput.csv``.
    """
    models: dict[str, dict[str, Row]] = {name: {} for name in MFU}
    for row in rows:
        if row["status"] == "ok":
            models.setdefault(row["model"], {})[row["implementation"]] = row
    for model, by_implementation in models.items():
        ours = [row for name, row in by_implementation.items() if name.startswith("fused")]
        fastest = max((float(row["tokens_per_second"]) for row in ours), default=None)
        if model in MFU:
            mfu = max((float(row["mfu"]) for row in ours), default=None)
            yield Aim(f"{model}: MFU", (AT_LEAST, MFU[model]), (mfu,))
        for names, factor in FASTER_THAN.items():
            others = [
                float(by_implementation[name]["tokens_per_second"])
                for name in names
                if name in by_implementation
            ]
            gain = fastest / max(others) if others and fastest is not None else None
            label = "PyTorch's attention, compiled" if names == OF_COMPILED else names[0]
            yield Aim(f"{model}: tokens/s over {label}", (AT_LEAST, factor), (gain,))


def aims_markdown(folder: Path) -> str | None:
    """The table of all aims of a folder's results; None where it has neither of the two CSVs."""
    aims: list[Aim] = []
    if rows := read_table(folder / "attention.csv"):
        aims += attention_aims(rows, _matmul_rate(folder))
    if rows := read_table(folder / "throughput.csv"):
        aims += training_aims(rows)
    if not aims:
        return None
    lines = ["| aim | bound | best | worst | verdict |", "|---|---|---|---|---|"]
    for aim in aims:
        bound = "" if aim.bound is None else f"{aim.bound[0]} {aim.bound[1]:g}"
        ends = sorted(aim.measured, reverse=aim.bound is not None and aim.bound[0] == AT_LEAST)
        best, worst = (f"{ends[0]:.3f}", f"{ends[-1]:.3f}") if ends else ("", "")
        lines.append(f"| {aim.about} | {bound} | {best} | {worst} | {aim.verdict} |")
    return "\n".join(lines) + "\n"


def _matmul_rate(folder: Path) -> float | None:
    """Of the last run that measured the article's shapes, which are the default."""
    path = folder / "attention.jsonl"
    if not path.exists():
        return None
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    asked = [run.get("command", "").partition("--shapes")[2].partition("--")[0] for run in runs]
    rates = [
        float(run["ceilings"]["matmul_flops_per_second"])
        for run, shapes in zip(runs, asked, strict=True)
        if not shapes or "article" in shapes
    ]
    return rates[-1] if rates else None
