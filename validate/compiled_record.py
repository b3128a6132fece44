"""``docs/kernels.md``: what every shipped kernel compiles to, and whether that is still current.

``python -m validate.compiled_record`` compiles what the record ``docs/kernels.csv`` lacks or holds
of other sources, and writes the page from the record. A row carries a digest of the code and the
tilings that it was compiled from, so whether the page is current can be told in seconds, without
compiling: :func:`stale` lists the launches that would have to be compiled again.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flopcount.sizes import require_choice
from flopcount.tables import table
from kernels.attention.tilings import (
    KERNELS,
    MAX_HEAD_DIM,
    WIDEST_CUT,
    gradient_launches,
    padded_head_dim,
    part_ranges,
    row_options,
    tuned_tilings,
)
from validate.witnesses.compiled_code import (
    DTYPES,
    CompiledKernel,
    Launch,
    compile_launch,
    kernel_code,
)
from validate.witnesses.processes import triton_processes

DOCS = Path(__file__).parent.parent / "docs"
RECORD, PAGE = DOCS / "kernels.csv", DOCS / "kernels.md"
VARIANTS = ((768, 1, False), (0, 1, False), (768, 4, False), (768, 1, True))
"""What specialises a kernel: positions of the prefix, query heads of a key-value head, and whether
there is a rotary embedding."""
MISSING = 7
"""Channels that padding adds to the recorded heads, as to those of 73."""
NAMES = {kernel: name for name, kernel in KERNELS.items()}
"""The pass of each kernel."""
HEAD_DIMS = (54, 64, 73, 78, 91, 96, 128)
"""Head dims of interest, whose padded work the page states."""

Row = dict[str, str]
COLUMNS = (
    "dtype", "head dim", "channels", "prefix", "group", "turned", "tuned for", "kernel", "causal",
    "gradient", "queries", "keys", "warps", "registers", "stack", "spill stores", "shared bytes",
    "programs per SM",
    "instructions", "faults", "digest",
)  # fmt: skip


Kernel = tuple[str, str, str]
"""Its name, CAUSAL and GRADIENT."""


def shipped_launches(dtypes: Iterable[str] = DTYPES) -> list[Launch]:
    """Every padded head dim at each dtype in all variants, with each tiling tuned for it."""
    dtypes = tuple(dtypes)
    tuned: dict[tuple[int, int], set[int | None]] = {}
    for (_, size, padded), by_keys in tuned_tilings().items():
        tuned.setdefault((size, padded), set()).update(by_keys)
    return [
        Launch(dtype, padded - MISSING, prefix, group, turned, keys)
        for prefix, group, turned in VARIANTS
        for dtype in dtypes
        for padded in range(16, MAX_HEAD_DIM + 1, 16)
        for keys in sorted(tuned.get((4 if dtype == "float32" else 2, padded), {None}), key=str)
    ]


def expected_kernels(launches: Iterable[Launch]) -> dict[Launch, set[Kernel]]:
    """The kernels of each launch that no launch before it compiles."""
    kernels: dict[Launch, set[Kernel]] = {}
    identities = set()
    for launch in dict.fromkeys(launches):
        kernels[launch] = set()
        tilings = launch.shipped
        parts = ("True", "False") if launch.prefix else ("True",)
        gradients = gradient_launches(launch.head_dim)
        compiled = [(name, "", "") for name in ("attention_forward", "attention_query_gradient")]
        compiled += [("attention_key_value_gradient", c, g) for c in parts for g in gradients]
        compiled += [("row_products", "", ""), ("prepare_rows", "", "")]
        for kernel in compiled:
            identity: tuple[object, ...] = (launch.dtype, launch.head_dim, kernel)
            if pass_name := NAMES.get(kernel[0]):
                # The gradient of keys and values sees one of two parts, whatever the other is; the
                # gradients of queries and keys are cut where these were not given padded.
                has_prefix = launch.prefix > 0 and pass_name != "key_value"
                cut = padded_head_dim(launch.head_dim) <= WIDEST_CUT
                turned = launch.turned and cut and pass_name != "forward" and kernel[2] != "v"
                identity += (launch.group, turned, has_prefix, tilings[pass_name])
            elif kernel[0] == "prepare_rows":
                identity += (launch.turned,)
            if identity not in identities:
                identities.add(identity)
                kernels[launch].add(kernel)
    return kernels


def digest(launch: Launch) -> str:
    """Of all that decides what a launch compiles to: sources, tilings, Triton's version."""
    decisive = (
        kernel_code(),
        list(launch.shipped.values()),
        part_ranges(launch.head_dim),
        gradient_launches(launch.head_dim),
        importlib.metadata.version("triton"),
        *row_options(launch.head_dim).items(),
    )
    return hashlib.sha256(repr(decisive).encode()).hexdigest()[:12]


def read() -> list[Row]:
    """The record's rows; none where there is no record, or one with other columns."""
    if not RECORD.exists():
        return []
    with RECORD.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader) if tuple(reader.fieldnames or ()) == COLUMNS else []


def launch_of(row: Row) -> Launch:
    """The launch that a row's kernel came from."""
    return Launch(
        row["dtype"],
        int(row["channels"]),
        int(row["prefix"]),
        int(row["group"]),
        bool(row["turned"]),
        int(row["tuned for"]) if row["tuned for"] else None,
    )


def stale(rows: Iterable[Row], launches: Iterable[Launch]) -> list[Launch]:
    """Launches that the record lacks, in part or in whole, or that it has of other code."""
    recorded: dict[Launch, set[Kernel]] = {}
    for row in rows:
        if row["digest"] == digest(launch_of(row)):
            kernel = row["kernel"], row["causal"], row["gradient"]
            recorded.setdefault(launch_of(row), set()).add(kernel)
    launches = tuple(launches)
    expected = expected_kernels((*shipped_launches(), *launches))
    return [x for x in launches if not expected[x] <= recorded.get(x, set())]


def as_row(kernel: CompiledKernel) -> Row:
    """A kernel's line of the record."""
    cells: tuple[Any, ...] = (
        kernel.launch.dtype,
        padded_head_dim(kernel.launch.head_dim),
        kernel.launch.head_dim,
        kernel.launch.prefix,
        kernel.launch.group,
        kernel.launch.turned or "",
        kernel.launch.keys or "",
        kernel.name,
        kernel.constants.get("CAUSAL", ""),
        kernel.constants.get("GRADIENT", ""),
        kernel.constants.get("BLOCK_QUERIES", kernel.constants.get("BLOCK", "")),
        kernel.constants.get("BLOCK_KEYS", ""),
        kernel.num_warps,
        kernel.registers,
        kernel.stack,
        kernel.spill_stores,
        kernel.shared,
        kernel.programs_per_multiprocessor,
        " ".join(kernel.instructions),
        "; ".join(kernel.faults()),
        digest(kernel.launch),
    )
    return {name: str(cell) for name, cell in zip(COLUMNS, cells, strict=True)}


def _compiled(launches: Sequence[Launch]) -> list[Row]:
    """Rows of launches of one width and dtype; a kernel that several of them take stands once."""
    expected = expected_kernels(shipped_launches())
    rows = [as_row(kernel) for launch in launches for kernel in compile_launch(launch)]
    return [
        row
        for row in rows
        if (row["kernel"], row["causal"], row["gradient"]) in expected[launch_of(row)]
    ]


def write(rows: Iterable[Row]) -> None:
    """The record, in a fixed order, and the page."""
    order = shipped_launches()

    def place(row: Row) -> tuple[int, str, str, str]:
        return order.index(launch_of(row)), row["kernel"], row["causal"], row["gradient"]

    rows = sorted(rows, key=place)
    with RECORD.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    PAGE.write_text(page(rows), encoding="utf-8")


def spread(values: Iterable[str]) -> str:
    """One value, or the least and the greatest: "127", "120–127"."""
    numbers = sorted({int(value) for value in values})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


HEADINGS = (
    "head dim", "pass", "queries × keys", "warps", "registers", "shared bytes",
    "programs per SM", "instructions", "kernels", "faults",
)  # fmt: skip


def summary(rows: Iterable[Row], dtypes: Sequence[str]) -> list[list[object]]:
    """A line for each padded head dim and pass, over dtypes, prefixes and groups of heads."""
    lines: list[list[object]] = []
    rows = [row for row in rows if row["dtype"] in dtypes]
    for padded in range(16, MAX_HEAD_DIM + 1, 16):
        for kernel, name in NAMES.items():
            of = [r for r in rows if (r["head dim"], r["kernel"]) == (str(padded), kernel)]
            if not of:
                lines.append([padded, name, *[""] * 6, 0, "**not compiled**"])
                continue
            blocks = {(row["queries"], row["keys"], row["warps"]) for row in of}
            shapes = sorted({shape for row in of for shape in row["instructions"].split()})
            faults = sorted({row["faults"] for row in of if row["faults"]})
            lines.append(
                [
                    padded,
                    name,
                    ", ".join(f"{queries} × {keys}" for queries, keys, _ in sorted(blocks)),
                    spread(warps for _, _, warps in blocks),
                    *(spread(r[c] for r in of) for c in HEADINGS[4:7]),
                    ", ".join(shapes) or "FMA, full fp32",
                    len(of),
                    f"**{'; '.join(faults)}**" if faults else "none",
                ]
            )
    return lines


def padding(head_dims: Iterable[int]) -> list[list[str]]:
    """What is executed over what is asked for."""
    return [[str(c), str(padded_head_dim(c)), f"{padded_head_dim(c) / c:.3f}"] for c in head_dims]


def padding_of_widths() -> list[list[str]]:
    """For each padded head dim, the head dims it serves and the ratio of the least of them."""
    return [
        [str(padded), f"{padded - 15} to {padded}", f"{padded / (padded - 15):.3f}"]
        for padded in range(16, MAX_HEAD_DIM + 1, 16)
    ]


def page(rows: Sequence[Row]) -> str:
    """docs/kernels.md."""

    def markdown(headings: Iterable[object], lines: Iterable[Iterable[object]]) -> str:
        drawn = (headings, ["---" for _ in headings], *lines)
        return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in drawn)

    missing = stale(rows, shipped_launches())
    faulty = [row for row in rows if row["faults"]]
    counted = {dtype: sum(row["dtype"] == dtype for row in rows) for dtype in DTYPES}
    verdict = (
        f"{len(rows)} kernels were compiled "
        f"({', '.join(f'{dtype} {count}' for dtype, count in counted.items())}), "
        + (f"**{len(faulty)} of them with a fault**" if faulty else "none with a fault")
        + (
            f"; **{len(missing)} of {len(shipped_launches())} launches have not been compiled**."
            if missing
            else f", for all {len(shipped_launches())} launches."
        )
    )
    return f"""# Kernels as compiled for Hopper (sm_90)

Generated by `python -m validate.compiled_record` from [kernels.csv](kernels.csv), without a GPU:
registers and spills by `ptxas -v`, instructions by `nvdisasm`. A fault would be a spilled register,
a stack frame, serialised wgmma, no asynchronous copies (fp32 aside), too much shared memory, or a
loop whose multiplications do not add up to exactly one tile's products. Nothing here is a measured
speed.

Every padded head dim is compiled for lengths that are multiples of 16: with a prefix, without one,
with four query heads to a key-value head, and with a rotary embedding before it. A line gives the
least and the greatest of what these show.

{verdict}

## fp16 and bf16

Products run on tensor cores (wgmma) with fp32 accumulation.

{markdown(HEADINGS, summary(rows, DTYPES[:2]))}

## fp32

Products run as fused multiply-adds in full precision: no tf32.

{markdown(HEADINGS, summary(rows, DTYPES[2:]))}

## Work that padding adds

Executed over dense products of a tile, at head dims of interest and at the least head dim that each
padded one serves; it falls to 1 at the padded head dim itself.

{markdown(("head dim", "padded", "ratio"), padding(HEAD_DIMS))}

{markdown(("padded", "head dims", "greatest ratio"), padding_of_widths())}
"""


def main(dtypes: tuple[str, ...] = DTYPES, again: bool = False, jobs: int | None = None) -> int:
    """Compile what the record lacks, write it and the page; exit with 1 where a kernel has a fault.

    Args:
        dtypes: Of bfloat16, float16 and float32.
        again: Compile what the record has, too.
        jobs: Processes; one for each core unless given.
    """
    for dtype in dtypes:
        require_choice("dtypes", dtype, DTYPES)
    launches = shipped_launches(dtypes)
    rows = read()
    missing = launches if again else stale(rows, launches)
    kept = set(shipped_launches()) - set(missing)
    rows = [row for row in rows if launch_of(row) in kept]
    tasks: dict[tuple[int, str], list[Launch]] = {}  # the widest first, which take longest
    for launch in missing:
        tasks.setdefault((-launch.head_dim, launch.dtype), []).append(launch)
    with triton_processes(interpret=False, jobs=jobs or os.cpu_count() or 1) as pool:
        for compiled in pool.map(_compiled, [tasks[key] for key in sorted(tasks)]):
            rows += compiled
            write(rows)
            for row in compiled:
                print(*(row[name] for name in COLUMNS[:-1]), flush=True)
    write(rows)
    for names in (DTYPES[:2], DTYPES[2:]):
        print(table(HEADINGS, summary(rows, names)))
    return 1 if stale(rows, launches) or any(row["faults"] for row in rows) else 0


if __name__ == "__main__":
    import tyro

    sys.exit(tyro.cli(main, prog="python -m validate.compiled_record"))
