"""Everything that needs a GPU, most valuable first: ``python -m benchmarks schedule --out DIR``.

Each part is a process of its own with a time limit, and writes its results as they come. What is
finished is noted in ``schedule.json`` and skipped by the next call, so that several short calls do
what one long one would; a part that ran out of time or failed is tried again, twice at most.
``--dry-run`` goes through every part at tiny sizes, also without a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Literal

import torch

from benchmarks.measurement import FINDING, ROOT, require_gpu
from benchmarks.report.tables import write_report
from flopcount import commands
from models.processes import program

TRIES = 3
LEAST_SECONDS = 20
"""With less time left no part is begun."""
MARGIN_SECONDS = 15
"""Kept at the end for the report and the archive."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One process of the schedule.

    Attributes:
        name: As in ``schedule.json`` and of its log.
        arguments: Of ``python -m``; ``{out}`` stands for the folder of the results.
        minutes: The most it gets in one go.
        tiny: What it gets in a dry run; the same where it is empty.
        findings: Exit codes of a part that ran to its end and found something.
    """

    name: str
    arguments: str
    minutes: float
    tiny: str
    findings: tuple[int, ...] = (FINDING,)


_DIRECT = "fused sdpa-flash cudnn flex flash-split cudnn-split fa2 fa3 fa4"

PARTS = (
    Part("probe", "benchmarks counters probe --out {out}", 1, ""),
    Part(
        "attention",
        f"benchmarks attention --out {{out}} --shapes article --implementations {_DIRECT}"
        " --jobs 12",
        5,
        "benchmarks attention --out {out} --shapes tiny",
    ),
    Part(
        "counters",
        "benchmarks counters kernels --out {out} --jobs 14",
        5,
        "benchmarks counters kernels --out {out} --drawn 20",
    ),
    Part(
        "random",
        "benchmarks soundness random --out {out} --cases 1000 --jobs 14",
        4,
        "benchmarks soundness random --out {out} --cases 2 --largest 4",
    ),
    Part(
        "throughput",
        "benchmarks training throughput --out {out}",
        6,
        "benchmarks training throughput --out {out} --tiny --batch-size 2 "
        "--variants eager fused perceiver-ar-pytorch",
    ),
    Part(
        "replayed",
        "benchmarks attention --out {out} --shapes article --implementations fused sdpa-flash"
        " cudnn flex --jobs 12 --replayed",
        4,
        "benchmarks attention --out {out} --shapes tiny --implementations fused --replayed",
    ),
    Part(
        "kernels",
        "benchmarks training kernels --out {out}",
        2,
        "benchmarks training kernels --out {out} --tiny --batch-size 2",
    ),
    Part(
        "block",
        "benchmarks block --out {out}",
        4,
        "benchmarks block --out {out} --tiny",
    ),
    Part(
        "tune",
        "benchmarks tune --out {out} --minutes 6.5 --jobs 12 --ship",
        9,
        "benchmarks tune --out {out} --tiny --head-dims 9 --limit 1",
    ),
    Part(
        "long",
        f"benchmarks attention --out {{out}} --shapes long --implementations {_DIRECT} --jobs 8",
        4,
        "benchmarks attention --out {out} --shapes tiny",
    ),
    Part(
        "step",
        "benchmarks counters step --out {out}",
        3,
        "benchmarks counters step --out {out} --models tiny --batch-size 2 --attention reference",
    ),
    Part(
        "determinism",
        "benchmarks soundness determinism --out {out}",
        1.5,
        "benchmarks soundness determinism --out {out} --runs 2 --largest 2",
    ),
    Part("sanitizer", "benchmarks soundness sanitizer --out {out}", 3, ""),
    Part(
        "tests",
        "pytest -m gpu -q -rs --continue-on-collection-errors tests/kernels tests/models "
        "tests/benchmarks",
        3,
        "pytest -m gpu -q -rs tests/benchmarks",
        (1, 5),
    ),
    Part(
        "curves",
        "benchmarks training curves --out {out} --models 512x9-V262-m3584",
        5,
        "benchmarks training curves --out {out} --tiny --batch-size 2 --steps 2 "
        "--files benchmarks/*.py",
    ),
    Part(
        "autotuned",
        "benchmarks attention --out {out} --shapes article --implementations flex-max flex-max-tma",
        8,
        "benchmarks attention --out {out} --shapes tiny --implementations flex-max",
    ),
    Part(
        "evaluation",
        f"benchmarks attention --out {{out}} --shapes evaluation --implementations {_DIRECT}"
        " --jobs 12",
        3,
        "benchmarks attention --out {out} --shapes tiny --implementations fused",
    ),
)

PartName = Literal[*(part.name for part in PARTS)]


class Progress:
    """What has been done, in ``schedule.json``: tries, seconds and the end of each part."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "schedule.json"
        self.parts = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def is_open(self, name: str) -> bool:
        """Whether a part should run (again)."""
        part = self.parts.get(name, {"tries": 0, "end": ""})
        return not part["end"].startswith("done") and part["tries"] < TRIES

    def note(self, name: str, end: str, seconds: float) -> None:
        """Note how a part ended."""
        tries = self.parts.get(name, {"tries": 0})["tries"] + 1
        self.parts[name] = {"tries": tries, "end": end, "seconds": round(seconds, 1)}
        self.path.write_text(json.dumps(self.parts, indent=1) + "\n", encoding="utf-8")


def run_part(
    arguments: list[str], log: Path, seconds: float, findings: tuple[int, ...] = ()
) -> str:
    """Run a module, its output into a log; ended with all its processes when time is up.

    Returns:
        ``"done"``, ``"done, with findings"``, ``"ended with N"`` or ``"out of time"``.
    """
    environment = dict(os.environ, PYTHONUNBUFFERED="1", MPLBACKEND="Agg")
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ python -m {' '.join(arguments)}\n")
        file.flush()
        into_log = {"stdout": file, "stderr": subprocess.STDOUT}
        command = [sys.executable, "-m", *arguments]
        with program(command, cwd=ROOT, env=environment, **into_log) as process:
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                return "out of time"
    if code in findings:
        return "done, with findings"
    return "done" if code == 0 else f"ended with {code}"


def pack(folder: Path, path: Path) -> None:
    """Pack the results into one file, without checkpoints and corpora; replaces an older one."""
    partial = path.with_name(path.name + ".partial")
    with tarfile.open(partial, "w:gz") as packed:
        for file in sorted(folder.rglob("*")):
            inside = file.relative_to(folder)
            if file.is_file() and inside.parts[0] != "runs" and file not in (path, partial):
                packed.add(file, arcname=str(inside))
    partial.replace(path)


def run(
    out: Path,
    minutes: float = 60,
    parts: tuple[PartName, ...] = (),
    dry_run: bool = False,
    archive: Path | None = None,
) -> dict[str, dict[str, object]]:
    """Run the open parts in order, again those that failed, until they are done or time is up.

    Args:
        out: Folder of the results.
        minutes: From now; the call ends within them.
        parts: To run, in this order; all by default.
        dry_run: Tiny sizes, GPU or not.
        archive: Pack the results into this .tar.gz after each part.

    Returns:
        What ``schedule.json`` holds.

    Raises:
        ValueError: If a name is unknown.
    """
    by_name = {part.name: part for part in PARTS}
    unknown = [name for name in parts if name not in by_name]
    if unknown:
        raise ValueError(f"parts must be of {list(by_name)}, got {unknown}")
    if not dry_run:
        require_gpu("--dry-run")
    end = time.monotonic() + 60 * minutes - MARGIN_SECONDS
    out.mkdir(parents=True, exist_ok=True)
    progress = Progress(out)
    for _ in range(TRIES):
        for name in parts or by_name:
            part = by_name[name]
            if not progress.is_open(name) or end - time.monotonic() < LEAST_SECONDS:
                continue
            text = part.tiny if dry_run and part.tiny else part.arguments
            arguments = [word.replace("{out}", str(out.resolve())) for word in text.split()]
            started = time.monotonic()
            limit = min(60 * part.minutes, end - started)
            ended = run_part(arguments, out / "logs" / f"{name}.log", limit, part.findings)
            progress.note(name, ended, time.monotonic() - started)
            print(f"{name}: {ended} after {time.monotonic() - started:.0f} s", flush=True)
            if archive is not None:
                pack(out, archive)
    try:
        write_report(out)
    except ValueError as error:
        print(error)
    if archive is not None:
        pack(out, archive)
    for name in by_name:
        if (end_of := progress.parts.get(name, {}).get("end", "not begun")) != "done":
            print(f"{name}: {end_of}; see {out / 'logs' / name}.log")
    return progress.parts


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    commands.run(run, "python -m benchmarks schedule", arguments, __doc__)


if __name__ == "__main__":
    main()
