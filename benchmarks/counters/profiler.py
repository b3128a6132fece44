"""Nsight Compute from the command line: is it there, how it is called, and what it answers.

A counter that is missing is ``None``, never 0: nothing is confirmed by it.
"""

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.measurement import ROOT
from models.processes import output
from validate.emulator import counts

_PATH = "sm__ops_path_tensor"
PATHS = {
    "bfloat16": {
        "total": f"{_PATH}_src_bf16_dst_fp32.sum",
        "wgmma": f"{_PATH}_op_hgmma_src_bf16_dst_fp32_sparsity_off.sum",
        "mma": f"{_PATH}_op_hmma_src_bf16_dst_fp32_sparsity_off.sum",
    },
    "float16": {
        "wgmma": f"{_PATH}_op_hgmma_src_fp16_sparsity_off.sum",
        "mma": f"{_PATH}_op_hmma_src_fp16_sparsity_off.sum",
    },
    "tf32": {
        "wgmma": f"{_PATH}_op_hgmma_src_tf32_dst_fp32_sparsity_off.sum",
    },
}
"""Counters of tensor-core operations on Hopper, by dtype; a multiply-add is 2, as a FLOP is.

``total`` holds what ``wgmma`` and ``mma`` hold, and is never added to them.
"""

OPERATIONS = tuple(PATHS["bfloat16"].values())
"""All that says how many operations a bf16 kernel executes."""

EXPONENTIALS = "sm__inst_executed_pipe_xu.sum"
FLOAT_PIPE = {
    "smsp__sass_thread_inst_executed_op_fadd_pred_on.sum": 1,
    "smsp__sass_thread_inst_executed_op_fmul_pred_on.sum": 1,
    "smsp__sass_thread_inst_executed_op_ffma_pred_on.sum": 2,
}
"""FLOPs of each instruction of the fp32 pipe: shown beside, confirming nothing."""

TIMES = ("gpu__time_duration.sum", "sm__cycles_elapsed.max")
"""Nanoseconds and clocks of a launch, profiled; kept in the profiler's own output."""

METRICS = tuple(
    dict.fromkeys(
        (
            *(name for paths in PATHS.values() for name in paths.values()),
            EXPONENTIALS,
            *FLOAT_PIPE,
            *counts.METRICS,
        )
    )
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One profiled launch.

    Attributes:
        name: The kernel's function, without its arguments.
        counts: By metric, None where the profiler gave no number.
    """

    name: str
    counts: dict[str, int | None]

    def tensor_ops(self, dtype: str) -> int | None:
        """Tensor-core operations of one dtype: the total, or the sum of all paths; else None.

        >>> paths = PATHS["bfloat16"]
        >>> Kernel("k", {paths["wgmma"]: 6, paths["mma"]: 4}).tensor_ops("bfloat16")
        10
        >>> Kernel("k", {paths["wgmma"]: 6}).tensor_ops("bfloat16") is None
        True
        """
        paths = dict(PATHS[dtype])
        total = self.counts.get(paths.pop("total", ""))
        if total is not None:
            return total
        parts = [self.counts.get(name) for name in paths.values()]
        return None if None in parts else sum(part for part in parts if part is not None)


def verdict(executed: int, counted: int | None) -> str:
    """What a formula and a counter say of each other.

    >>> verdict(10, 10), verdict(10, 12), verdict(10, None)
    ('confirmed', 'differs', 'not confirmed: the counter is missing')
    """
    if counted is None:
        return "not confirmed: the counter is missing"
    return "confirmed" if executed == counted else "differs"


class ProfilerError(RuntimeError):
    """Nsight Compute is not there, not permitted, or gave nothing that can be read."""


def parse(text: str) -> list[Kernel]:
    """Kernels of ``ncu --csv --page details --print-units base``, in the order of launch.

    The format: messages that begin with ``==``, a header, and one row per kernel and metric with
    the columns ID, Kernel Name, Metric Name, Metric Unit and Metric Value among others; values may
    have thousands separators, or be ``n/a``.

    Raises:
        ProfilerError: If there is no table, or one of :data:`METRICS` is in a unit with a prefix
            ("Mops", "Kinst", where digits are lost), or neither a whole number nor ``n/a``.
    """
    lines = [line for line in text.splitlines() if line.startswith('"')]
    if not lines or "Metric Value" not in lines[0]:
        raise ProfilerError(f"the profiler printed no table: {_end(text)}")
    kernels: dict[str, Kernel] = {}
    for row in csv.DictReader(lines):
        name = row["Kernel Name"].split("(")[0].strip()
        kernel = kernels.setdefault(row["ID"], Kernel(name, {}))
        kernel.counts[row["Metric Name"]] = _count(row)
    return [kernels[launch] for launch in sorted(kernels, key=int)]


def _count(row: dict[str, str]) -> int | None:
    name, unit, value = row["Metric Name"], row["Metric Unit"], row["Metric Value"]
    if value.strip().lower() in ("", "n/a", "nan"):
        return None
    if unit[:1].isupper() and name in METRICS:
        raise ProfilerError(f"{name} is rounded: got {value} {unit}, expected a plain count")
    plain = value.replace(",", "")
    if not re.fullmatch(r"\d+(\.0+)?", plain):
        if name in METRICS:
            raise ProfilerError(f"{name} must be a whole number, got {value}")
        return None
    return int(plain.split(".")[0])


def command(module: str, arguments: Sequence[str], log: Path, metrics: Iterable[str]) -> list[str]:
    """The command that profiles ``python -m module arguments`` into ``log``.

    Only what runs between ``cudaProfilerStart`` and ``cudaProfilerStop`` is profiled; clocks and
    caches are left as they are.
    """
    ncu = shutil.which("ncu") or "ncu"
    options = [
        *("--csv", "--page", "details", "--print-units", "base", "--log-file", str(log)),
        *("--profile-from-start", "no", "--target-processes", "all"),
        *("--clock-control", "none", "--cache-control", "none", "--metrics", ",".join(metrics)),
    ]
    return [ncu, *options, sys.executable, "-m", module, *arguments]


def profile(
    module: str, arguments: Sequence[str], log: Path, metrics: Sequence[str] = METRICS
) -> list[Kernel]:
    """Run a module under Nsight Compute.

    Metrics that this version does not know are left out, and so missing in the result.

    Raises:
        ProfilerError: With what is wrong and what to do, if nothing could be read.
    """
    if shutil.which("ncu") is None:
        wanted = " ".join(command(module, arguments, log, metrics))
        raise ProfilerError(f"ncu is not on the PATH. Where it is, run: {wanted}")
    unknown: set[str] = set()
    for _ in range(2):
        asked = [name for name in metrics if name not in unknown]
        called = command(module, arguments, log, asked)
        log.unlink(missing_ok=True)
        run = output(called, cwd=ROOT)
        said = run.stdout + run.stderr + (log.read_text(encoding="utf-8") if log.exists() else "")
        newly = unknown_metrics(said) & set(asked)
        if not newly:
            break
        unknown |= newly
    if "ERR_NVGPUCTRPERM" in said:
        raise ProfilerError(
            "ncu may not read the counters (ERR_NVGPUCTRPERM): run as an administrator, or have "
            "one set NVreg_RestrictProfilingToAdminUsers=0. Then run: " + " ".join(called)
        )
    if not log.exists():
        raise ProfilerError(f"ncu wrote no log: {_end(said)}")
    if run.returncode:
        errors = "\n".join(line for line in said.splitlines() if line.startswith("==ERROR=="))
        raise ProfilerError(
            f"ncu ended with {run.returncode}: {_end(run.stderr + run.stdout + errors)}"
        )
    return parse(log.read_text(encoding="utf-8"))


def unknown_metrics(text: str) -> set[str]:
    """Names that the profiler says it cannot find.

    >>> sorted(unknown_metrics("==ERROR== Failed to find metric sm__ops_new.sum"))
    ['sm__ops_new.sum']
    """
    lists = re.findall(r"Failed to find metrics?:? ([\w.,: ]+)", text)
    return {name.rstrip(".") for names in lists for name in re.split(r"[,: ]+", names) if name}


def _end(text: str) -> str:
    return " ".join(text.split())[-400:] or "nothing at all"
