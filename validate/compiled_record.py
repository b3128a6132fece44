"""``docs/kernels.md``: what every shipped kernel compiles to, and whether that is still current.

``python -m validate.compiled_record`` compiles the kernels that the record ``docs/kernels.csv``
lacks or holds of other code, and writes the page from the record. A row carries a digest of what
Triton compiles its kernel from (:func:`validate.witnesses.compiled_code.kernel_digest`), so whether
the page is current can be told in seconds, without compiling: :func:`stale` lists the kernels that
would have to be compiled again. Other code, comments and launches may change as they like.
"""

from __future__ import annotations

import csv
import functools
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flopcount.sizes import require_choice
from flopcount.tables import table
from kernels.attention.tilings import KERNELS, MAX_HEAD_DIM, padded_head_dim, tuned_tilings
from validate.witnesses.compiled_code import (
    DTYPES,
    CompiledKernel,
    Kernel,
    Launch,
    compile_launch,
    kernels_of,
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


class Shipped(NamedTuple):
    """A kernel, and the first launch that launches it."""

    launch: Launch
    kernel: Kernel


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


@functools.cache
def launched_kernels() -> dict[Launch, tuple[Kernel, ...]]:
    """The kernels of every shipped launch, in a process that does not interpret."""
    launches = shipped_launches()
    with triton_processes(interpret=False) as pool:
        listed = pool.submit(kernels_of, launches).result()
    return {launch: tuple(kernels) for launch, kernels in zip(launches, listed, strict=True)}


def shipped_kernels() -> list[Shipped]:
    """Every kernel of the shipped launches once, in their order."""
    first: dict[str, Shipped] = {}
    for launch, kernels in launched_kernels().items():
        for kernel in kernels:
            first.setdefault(kernel.digest, Shipped(launch, kernel))
    return list(first.values())


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


def stale(rows: Iterable[Row], kernels: Iterable[Shipped]) -> list[Shipped]:
    """Kernels that the record lacks, or that it has of other code."""
    recorded = {(launch_of(row), row["digest"]) for row in rows}
    return [x for x in kernels if (x.launch, x.kernel.digest) not in recorded]


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
        kernel.digest,
    )
    return {name: str(cell) for name, cell in zip(COLUMNS, cells, strict=True)}


def _compiled(kernels: Sequence[Shipped]) -> list[Row]:
    """Rows of kernels of one width and dtype."""
    wanted: dict[Launch, set[str]] = {}
    for launch, kernel in kernels:
        wanted.setdefault(launch, set()).add(kernel.digest)
    return [as_row(kernel) for of in wanted.items() for kernel in compile_launch(*of)]


def write(rows: Iterable[Row]) -> None:
    """The record, in a fixed order, and the page."""
    order = shipped_launches()

    def place(row: Row) -> tuple[int, str, str, str, str]:
        name = row["kernel"], row["causal"], row["gradient"], row["digest"]
        return order.index(launch_of(row)), *name

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

    kernels = shipped_kernels()
    missing = stale(rows, kernels)
    faulty = [row for row in rows if row["faults"]]
    counted = {dtype: sum(row["dtype"] == dtype for row in rows) for dtype in DTYPES}
    verdict = (
        f"{len(rows)} kernels were compiled "
        f"({', '.join(f'{dtype} {count}' for dtype, count in counted.items())}), "
        + (f"**{len(faulty)} of them with a fault**" if faulty else "none with a fault")
        + (
            f"; **{len(missing)} of {len(kernels)} have not been compiled**."
            if missing
            else f": all that the {len(shipped_launches())} shipped launches need."
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
    kernels = [x for x in shipped_kernels() if x.launch.dtype in dtypes]
    rows = read()
    missing = kernels if again else stale(rows, kernels)
    kept = {(x.launch, x.kernel.digest) for x in set(shipped_kernels()) - set(missing)}
    rows = [row for row in rows if (launch_of(row), row["digest"]) in kept]
    tasks: dict[tuple[int, str], list[Shipped]] = {}  # the widest first, which take longest
    for kernel in missing:
        tasks.setdefault((-kernel.launch.head_dim, kernel.launch.dtype), []).append(kernel)
    with triton_processes(interpret=False, jobs=jobs or os.cpu_count() or 1) as pool:
        for compiled in pool.map(_compiled, [tasks[key] for key in sorted(tasks)]):
            rows += compiled
            write(rows)
            for row in compiled:
                print(*(row[name] for name in COLUMNS[:-1]), flush=True)
    write(rows)
    for names in (DTYPES[:2], DTYPES[2:]):
        print(table(HEADINGS, summary(rows, names)))
    return 1 if stale(rows, kernels) or any(row["faults"] for row in rows) else 0


if __name__ == "__main__":
    import tyro

    sys.exit(tyro.cli(main, prog="python -m validate.compiled_record"))
