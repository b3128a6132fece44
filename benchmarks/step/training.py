"""Training steps of the article's models: ``python -m benchmarks training PART``.

``throughput`` times whole steps (forward, backward, clipping, optimiser) of
``models.training.step.TrainStep`` with each attention, compiled and not, and of a public Perceiver
AR where it is installed. MFU is causal FLOPs over the rate of a large bf16 product, measured in the
same run. ``kernels`` says where the GPU's time of a step goes. ``curves`` trains the same model
with the reference attention and with the fused one from the same seed, and with the reference once
more in two micro-batches: the same mathematics rounded otherwise, which says how much of a
difference is noise.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn, profiler
from torch.autograd import DeviceType

import flopcount as fc
from benchmarks.attention.peers import shapes_of_model, with_attention
from benchmarks.attention.timing import one_line, require_working_device
from benchmarks.counters.steps import SEED_MODELS, TINY, seed_model
from benchmarks.measurement import device, measure_ceilings, require_gpu
from flopcount import commands
from models.data.corpus import CorpusConfig
from models.networks.perceiver_ar import PerceiverAR
from models.results import Table, environment, read_table, write_environment
from models.training.run import ModelConfig, Recipe, TrainConfig, train
from models.training.step import Execution, TrainStep
from models.training.throughput import measure as rated
from models.training.throughput import peak_device, seconds_per_step

VARIANTS = {
    "fused, compiled": ("fused", "default"),
    "fused, graphs": ("fused", "reduce-overhead"),
    "sdpa-flash, compiled": ("sdpa-flash", "default"),
    "flex, compiled": ("flex", "default"),
    "cudnn, compiled": ("cudnn", "default"),
    "eager": ("reference", "off"),
    "fused": ("fused", "off"),
    "reference, compiled": ("reference", "default"),
    "perceiver-ar-pytorch": ("public", "off"),
}
"""Attention and mode of compilation, the most telling first."""

THROUGHPUT_COLUMNS = (
    "device",
    "model",
    "batch_size",
    "implementation",
    "status",
    "ms",
    "tokens_per_second",
    "mfu",
    "hfu",
    "matmul_flops_per_second",
    "peak_memory_bytes",
    "message",
)
KERNEL_COLUMNS = ("device", "model", "implementation", "kernel", "launches", "ms")
"""Launches and milliseconds of one step."""
CURVE_PATHS = {
    "reference": ("reference", 1),
    "fused": ("fused", 1),
    "reference, rounded otherwise": ("reference", 2),
}
"""Attention, and micro-batches."""
CURVE_COLUMNS = ("device", "path", "step", "train_loss", "validation_loss")
POINTS = 25
"""Validations of a curve."""
Model = Literal[*SEED_MODELS]
Step = Callable[[], Any]


def our_step(model: fc.PerceiverAR, batch_size: int, attention: str, compile_mode: str) -> Step:
    """A step of our network and ``models.training.step.TrainStep`` on one random batch."""
    name = with_attention(attention, shapes_of_model(model, batch_size))
    torch.manual_seed(0)
    network = PerceiverAR(**model.arguments(), attention=name).to(device())
    mode = compile_mode if torch.cuda.is_available() else "off"
    step = TrainStep(network, Execution(attention=name, compile=mode), gradient_clip=0.5)
    inputs, targets = _batch(model, batch_size)
    return lambda: step(inputs, targets, learning_rate=1e-4)


def public_step(model: fc.PerceiverAR, batch_size: int) -> Step:
    """The same for perceiver-ar-pytorch, at the sizes of ``model``, under autocast.

    Raises:
        ImportError: If it is not installed.
    """
    package = importlib.import_module("perceiver_ar_pytorch")
    torch.manual_seed(0)
    network = package.PerceiverAR(
        num_tokens=model.vocab_size,
        dim=model.num_channels,
        depth=model.num_layers - 1,
        dim_head=model.num_channels // model.num_heads,
        heads=model.num_heads,
        max_seq_len=model.num_prefix + model.num_latents,
        cross_attn_seq_len=model.num_prefix,
        cross_attn_dropout=0.5,
    ).to(device())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    inputs, targets = _batch(model, batch_size)

    def step() -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=torch.cuda.is_available()):
            logits = network(inputs)
        nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _batch(model: fc.PerceiverAR, batch_size: int) -> tuple[Tensor, Tensor]:
    length = model.num_prefix + model.num_latents
    tokens = torch.randint(model.vocab_size, (batch_size, length + 1), device=device())
    return tokens[:, :-1], tokens[:, -model.num_latents :]


def _chosen(models: tuple[Model, ...], tiny: bool) -> dict[str, fc.PerceiverAR]:
    if tiny:
        return {"tiny": TINY}
    require_gpu("--tiny")
    if not models:
        commands.refuse("--models: expected one at least")
    return {name: seed_model(name) for name in models}


@commands.defaults_of(Recipe)
def throughput(
    out: Path,
    *,
    models: tuple[Model, ...] = tuple(SEED_MODELS),
    variants: tuple[Literal[*VARIANTS], ...] = tuple(VARIANTS),
    batch_size: int,
    tiny: bool = False,
) -> Path:
    """Measure what ``throughput.csv`` under ``out`` does not have yet; returns its path.

    Args:
        out: Folder of the results.
        models: The article's.
        variants: Implementations of the attention, compiled or not.
        batch_size: Sequences of a step.
        tiny: A tiny model, to try the path.
    """
    chosen = _chosen(models, tiny)
    table = Table(
        out / "throughput.csv", THROUGHPUT_COLUMNS, ("model", "batch_size", "implementation")
    )
    rate = measure_ceilings().matmul_flops_per_second
    write_environment(out, "throughput", matmul_flops_per_second=rate)
    for name, model in chosen.items():
        for variant in variants:
            key = {"model": name, "batch_size": batch_size, "implementation": variant}
            if table.has(**key):
                continue
            row = {"device": environment()["device"], **key, "matmul_flops_per_second": rate}
            row |= measure(model, variant, batch_size, rate)
            table.add(**row)
            print(*(row.get(column, "") for column in THROUGHPUT_COLUMNS[1:]))
            torch.compiler.reset()
            require_working_device()
    return table.path


def measure(model: fc.PerceiverAR, variant: str, batch_size: int, rate: float) -> dict[str, Any]:
    """What one variant's row has beside its key."""
    attention, compile_mode = VARIANTS[variant]
    try:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if attention == "public":
            step = public_step(model, batch_size)
        else:
            step = our_step(model, batch_size, attention, compile_mode)
        seconds = seconds_per_step(step)
    except Exception as error:
        require_working_device()
        return {"status": "failed", "message": one_line(error)}
    speed = rated(
        model,
        batch_size=batch_size,
        attention=attention,
        checkpointing=None,
        device=peak_device(None, rate, "bf16"),
        dtype="bf16",
        num_devices=1,
    )
    row = speed.row(seconds)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else ""
    return {
        "status": "ok",
        "ms": f"{1e3 * seconds:.6g}",
        "tokens_per_second": f"{row['tokens_per_second']:.6g}",
        "mfu": f"{row['mfu']:.4f}",
        # What the peers' kernels execute is not known.
        "hfu": f"{row['hfu']:.4f}" if attention in ("reference", "fused") else "",
        "peak_memory_bytes": peak,
    }


@commands.defaults_of(throughput)
def kernels(
    out: Path,
    *,
    models: tuple[Model, ...],
    variant: Literal[*VARIANTS] = next(iter(VARIANTS)),
    batch_size: int,
    steps: int = 3,
    tiny: bool,
) -> Path:
    """Write a step's GPU time by kernel, by PyTorch's profiler, to ``step-kernels.csv``.

    Models that are there already are left out.

    Args:
        out: Folder of the results.
        models: The article's.
        variant: Implementation of the attention, compiled or not.
        batch_size: Sequences of a step.
        steps: That are profiled, after three that are not.
        tiny: A tiny model, to try the path; without a GPU, the time of PyTorch's operators.
    """
    table = Table(out / "step-kernels.csv", KERNEL_COLUMNS, KERNEL_COLUMNS[:4])
    done = {(row["model"], row["implementation"]) for row in read_table(table.path)}
    write_environment(out, "step-kernels")
    attention, compile_mode = VARIANTS[variant]
    device = environment()["device"]
    for name, model in _chosen(models, tiny).items():
        if (name, variant) in done:
            continue
        step = our_step(model, batch_size, attention, compile_mode)
        for _ in range(3):
            step()
        with profiler.profile() as profiled:  # ends when the device has
            for _ in range(steps):
                step()
        rows: list[dict[str, Any]] = []
        for event in profiled.key_averages():
            microseconds = event.self_device_time_total
            if not torch.cuda.is_available():
                microseconds = event.self_cpu_time_total
            elif event.device_type != DeviceType.CUDA or event.is_user_annotation:
                continue
            rows.append(
                {
                    "device": device,
                    "model": name,
                    "implementation": variant,
                    "kernel": event.key,
                    "launches": event.count / steps,
                    "ms": f"{microseconds / steps / 1e3:.6g}",
                }
            )
        for row in rows:
            table.add(**row)
        torch.compiler.reset()
        require_working_device()
    return table.path


@commands.defaults_of(throughput, CorpusConfig)
def curves(
    out: Path,
    *,
    models: tuple[Model, ...],
    steps: int = 500,
    batch_size: int,
    files: tuple[str, ...],
    blank_lines: int | None,
    tiny: bool,
) -> Path:
    """Train along each path, and write ``curves.csv``, ``curves.jsonl`` and ``curves.png``.

    Args:
        out: Folder of the results; runs live in its ``runs`` and resume.
        models: The first is trained.
        steps: Of each path.
        batch_size: Sequences of a step.
        files: The corpus; without any, the standard library's sources.
        blank_lines: That part the documents of a file.
        tiny: A tiny model, to try the path.
    """
    model = next(iter(_chosen(models, tiny).values()))
    sizes = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(ModelConfig)
        if hasattr(model, field.name)
    }
    rows: list[dict[str, Any]] = []
    for path, (attention, micro_batches) in CURVE_PATHS.items():
        config = TrainConfig(
            model=ModelConfig(**sizes),
            corpus=CorpusConfig(
                files=files, blank_lines=blank_lines, cache=out / "runs" / "corpus"
            ),
            recipe=Recipe(batch_size=batch_size),
            steps=steps,
            validations=min(POINTS, steps),
            validation_windows=16,
            execution=Execution(
                attention=attention,
                micro_batches=micro_batches,
            ),
        )
        for row in train(config, out / "runs" / path.replace(", ", "-").replace(" ", "-")):
            rows.append({"device": environment()["device"], "path": path} | row)
    with (out / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CURVE_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_environment(out, "curves", **apart(read_table(out / "curves.csv")))
    curves_plot(read_table(out / "curves.csv"), out / "curves.png")
    return out / "curves.csv"


def apart(rows: list[dict[str, str]]) -> dict[str, float]:
    """Largest distance of each path's training loss from the reference's, in nats per token."""
    by_path: dict[str, dict[str, float]] = {path: {} for path in CURVE_PATHS}
    for row in rows:
        by_path[row["path"]][row["step"]] = float(row["train_loss"])
    reference = by_path.pop("reference")
    return {
        path: max(abs(loss - reference[step]) for step, loss in losses.items())
        for path, losses in by_path.items()
        if losses
    }


def curves_plot(rows: list[dict[str, str]], path: Path) -> None:
    """Training losses of all paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(layout="constrained")
    for name in CURVE_PATHS:
        points = [(int(r["step"]), float(r["train_loss"])) for r in rows if r["path"] == name]
        if points:
            axis.plot(*zip(*points, strict=True), label=name)
    axis.set_xlabel("step")
    axis.set_ylabel("training loss, nats per token")
    axis.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parts = {"throughput": throughput, "kernels": kernels, "curves": curves}
    print(commands.run(parts, "python -m benchmarks training", arguments, __doc__))


if __name__ == "__main__":
    main()
