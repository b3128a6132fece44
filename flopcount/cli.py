"""The command line: each command is a thin shell over a public function."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import json as json_format
import operator
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import docstring_parser
import tyro

from flopcount import __version__
from flopcount.architectures import (
    ARCHITECTURES,
    Architecture,
    Dimension,
    Flag,
    PerceiverAR,
    Probability,
)
from flopcount.commands import any_encoding, default_of, defaults_of, whole_numbers, wrong_command
from flopcount.comparison import compare as compare_model
from flopcount.count import described
from flopcount.devices import DEFAULT_DTYPE, Bandwidth, find_device, given_device
from flopcount.distributed import per_device
from flopcount.executed import Tiling
from flopcount.explanation import explain as explain_terms
from flopcount.extras import advice
from flopcount.finetuning import FineTuning
from flopcount.inference import reading
from flopcount.isoflop.curves import fit_training_curves, read_curves
from flopcount.isoflop.laws import read_law
from flopcount.isoflop.optima import fit_optima
from flopcount.isoflop.plan import LAWS, Search, budget_from_gpu_hours, throughput
from flopcount.isoflop.plan import plan as plan_families
from flopcount.isoflop.profiles import fit_isoflop_profiles
from flopcount.isoflop.runs import read_runs
from flopcount.isoflop.surface import fit_surface
from flopcount.isoflop.ways_to_count import compare_optima
from flopcount.parallel import Parallel
from flopcount.rooflines import roofline as roofline_of
from flopcount.tables import paragraph, shown, table

if TYPE_CHECKING:
    from flopcount.devices import Peak


KINDS = {Dimension: int, Probability: float, Flag: bool}
"""What the command line takes for each kind of field of an architecture."""

BLOCKS = ("forward", "key_value", "query")
NEEDED = "expected --tiling.forward, --tiling.key-value and --tiling.query, QUERIES KEYS each"
OWN_TILINGS = "expected LAYER=FORWARD,KEY-VALUE,QUERY, for example hybrid=128x64,32x64,128x64"


def options(described: Any, types: dict[str, Any], prefix: str = "") -> Any:
    """The fields of a dataclass as a dataclass of options, with its docstring's words as help.

    Args:
        described: The dataclass.
        types: What the command line takes for each field.
        prefix: Before the options' names.
    """
    words = docstring_parser.parse(described.__doc__)
    helps = {param.arg_name: " ".join((param.description or "").split()) for param in words.params}
    fields = []
    for field in dataclasses.fields(described):
        flag = (prefix + field.name).replace("_", "-")
        argument = tyro.conf.arg(name=flag, help=" ".join(str(helps[field.name]).split()))
        default = field.default
        if default is dataclasses.MISSING and NoneType in get_args(types[field.name]):
            default = None
        given = dataclasses.field(default=default, kw_only=True)
        fields.append((field.name, Annotated[types[field.name], argument], given))
    return dataclasses.make_dataclass(
        f"{described.__name__}Options", fields, namespace={"__doc__": words.short_description}
    )


def model_options(name: str, architecture: type[Architecture]) -> Any:
    """An architecture as a subcommand; ``build()`` of what it gives is the model to count."""
    types = {field: KINDS[type(kind)] for field, kind in architecture.kinds().items()}
    optional = {
        field: types[field] | None for field in types if getattr(architecture, field, 0) is None
    }
    made = options(architecture, types | optional)
    made.build = lambda given: architecture(**vars(given))
    return Annotated[made, tyro.conf.subcommand(name)]


@dataclasses.dataclass
class ConfigOptions:
    """Read the model from a Hugging Face config."""

    config: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(help="A config.json, or its folder.")
    ]
    seq_len: Annotated[int | None, tyro.conf.arg(help="n, positions of a sequence.")] = None
    target_len: Annotated[
        int | None, tyro.conf.arg(help="Of an encoder-decoder, positions of the decoder.")
    ] = None
    mtp: Annotated[
        bool, tyro.conf.arg(help="Count the modules that predict further tokens, too.")
    ] = False

    def build(self) -> Architecture:
        """The model to count."""
        from flopcount.hf import from_hf

        built: Architecture = from_hf(
            self.config, self.seq_len, target_len=self.target_len, mtp=self.mtp
        )
        return built


FROM_CONFIG = "hf"
"""The subcommand that reads a config."""

if TYPE_CHECKING:
    Model = Any
    ArchitectureName = str
    TilingOptions: Any = Any
    SearchOptions = Any
    TuningOptions: Any = Any
    ParallelOptions: Any = Any
else:
    Model = functools.reduce(
        operator.or_,
        itertools.starmap(model_options, ARCHITECTURES.items()),
        Annotated[ConfigOptions, tyro.conf.subcommand(FROM_CONFIG)],
    )
    ArchitectureName = Literal[tuple(ARCHITECTURES)]
    block = tuple[int, int] | None
    TilingOptions = options(
        Tiling,
        dict.fromkeys(BLOCKS, block)
        | dict(head_dim_multiple=int, key_value_products=int, row_lanes=int),
        "tiling.",
    )
    SearchOptions = options(Search, get_type_hints(Search) | {"law": str})
    TuningOptions = options(
        FineTuning,
        dict(
            trainable=tuple[str, ...],
            lora_rank=int | None,
            lora_targets=tuple[str, ...],
            frozen_layers=int,
            input_gradients=bool,
        ),
    )
    ParallelOptions = options(
        Parallel,
        dict.fromkeys(("tensor", "pipeline", "data", "expert", "zero", "chunks"), int)
        | dict.fromkeys(("sequence", "reshard"), bool)
        | dict(stages=tuple[int, ...] | None, vocab_multiple=int | None, capacity=float | None),
    )


NO_TILING = TilingOptions()
NO_TUNING = TuningOptions()
ONE_DEVICE = ParallelOptions()


def tilings_of(
    given: Any, own: tuple[str, ...], level: str | None
) -> tuple[Tiling | None, dict[str, Tiling]]:
    """The tiling that options give, or None where none is given, and those of single layers.

    Raises:
        ValueError: If not all tiles are given, or the level is another.
    """
    if given == NO_TILING and not own:
        return None, {}
    if level != "executed":
        raise ValueError(f"--tiling options with level = {level!r}: expected --level executed")
    if None in (getattr(given, name) for name in BLOCKS):
        raise ValueError(f"--tiling options are missing: {NEEDED}")
    tiling = Tiling(**vars(given))
    layers = {}
    for text in own:
        layer, _, blocks = text.partition("=")
        try:
            pairs = [tuple(map(int, block.split("x"))) for block in blocks.split(",")]
            own_blocks: dict[str, Any] = dict(zip(BLOCKS, pairs, strict=True))
            layers[layer] = dataclasses.replace(tiling, **own_blocks)
        except (TypeError, ValueError) as error:
            raise ValueError(f"--tilings {text}: {OWN_TILINGS} ({error})") from None
    return tiling, layers


def to_json(value: Any) -> str:
    """Plain data as JSON; a fraction that is no integer becomes the text ``"p/q"``.

    >>> print(to_json([Fraction(7, 2)]))  # what is not ASCII is escaped: any terminal prints it
    [
      "7/2"
    ]
    """

    def plain(entry: Any) -> Any:
        return str(entry) if isinstance(entry, Fraction) else list(entry)

    return json_format.dumps(value, indent=2, default=plain)


def _print(result: Any, json: bool) -> None:
    print(to_json(result.to_dict()) if json else result)


@defaults_of(Architecture.flops)
def count(
    model: Model,
    *,
    level: Literal["causal", "dense", "executed"] | None,
    convention: str | None,
    tiling: TilingOptions = NO_TILING,
    tilings: tuple[str, ...] = (),
    training: bool,
    batch_size: int,
    checkpointing: Literal["reentrant", "non-reentrant"] | None,
    recompute: tuple[str, ...] = (),
    tuning: TuningOptions = NO_TUNING,
    documents: tuple[int, ...] = (),
    params: bool = False,
    elementwise: bool = False,
    seconds: float | None = None,
    tokens_per_second: float | None = None,
    device: str | None = None,
    peak_flops: float | None = None,
    dtype: str | None = None,
    num_devices: int | None = None,
    json: bool = False,
) -> None:
    """Count FLOPs term by term.

    Args:
        model: The architecture.
        level: What attention counts; causal unless a convention is given.
        convention: A published way to count instead; ``compare`` lists them.
        tiling: How fused attention kernels cut their work, for level executed.
        tilings: How they cut single layers' work: LAYER=FORWARD,KEY-VALUE,QUERY, each QUERIESxKEYS.
        training: Forward and backward, or forward alone.
        batch_size: Sequences in a step.
        checkpointing: Activation checkpointing of whole layers.
        recompute: Of these terms alone: patterns, or "attention core".
        tuning: What is trained, where that is not everything.
        documents: Lengths of documents packed into the batch's sequences.
        params: Also print the parameters.
        elementwise: Also print the element-wise FLOPs.
        seconds: Measured time of a step; with ``--device`` or ``--peak-flops`` gives MFU and HFU.
        tokens_per_second: Instead, measured tokens per second of all devices.
        device: A name that ``flopcount devices`` lists, or what torch.cuda.get_device_name() says.
        peak_flops: Instead, the peak FLOP/s of one device.
        dtype: The device's peak that MFU refers to; bf16 unless given.
        num_devices: Devices that share a step; 1 unless given.
        json: Print JSON.
    """
    utilisation = _utilisation(seconds, tokens_per_second, device, peak_flops, dtype, num_devices)
    if json and (params or elementwise):
        raise ValueError(
            "--params or --elementwise with --json: expected --json alone, which holds both"
        )
    tiles, own_tiles = tilings_of(tiling, tilings, level)
    tuned = None if tuning == NO_TUNING else FineTuning(**vars(tuning))
    step: dict[str, Any] = dict(
        training=training,
        batch_size=batch_size,
        checkpointing=checkpointing,
        recompute=recompute or None,
        tuning=tuned,
    )
    if level == "executed" and convention is None:
        if tiles is None:
            raise ValueError(f"level = 'executed' without the kernels' tiling: {NEEDED}")
        if documents:
            raise ValueError("documents with level = 'executed': expected none, or another level")
        counted = model.build().executed(tiles, tilings=own_tiles, **step)
    else:
        counted = model.build().flops(
            level, convention=convention, documents=documents or None, **step
        )
    rates = {}
    if utilisation:
        if level != "executed":
            rates["mfu"] = counted.mfu(**utilisation)
        rates["hfu"] = counted.hfu(**utilisation)
    parameters = counted.model.params(tuned)
    if json:
        print(to_json(counted.to_dict() | rates | {"params": parameters.to_dict()}))
        return
    if isinstance(model, ConfigOptions):
        print(f"{counted.model}\n")
    print(counted)
    for name, rate in rates.items():
        of = f"{dtype or DEFAULT_DTYPE} peak of {device}" if device else f"peak of {peak_flops:g}"
        print(f"{name.upper()} {rate:.2%} of the {of}{f' × {num_devices}' if num_devices else ''}")
    if params:
        print(f"\n{parameters}")
    if elementwise:
        print(f"\n{counted.elementwise or f'element-wise FLOPs: not covered by {counted.label}'}")


def _utilisation(
    seconds: float | None,
    tokens_per_second: float | None,
    device: str | None,
    peak_flops: float | None,
    dtype: str | None,
    num_devices: int | None,
) -> dict[str, Any]:
    """The arguments of ``Count.mfu``, or none where no utilisation is asked for.

    Raises:
        ValueError: If options contradict each other, or would do nothing.
    """
    measured = {"--seconds": seconds, "--tokens-per-second": tokens_per_second}
    peaks = {"--device": device, "--peak-flops": peak_flops}
    details = {"--dtype": dtype, "--num-devices": num_devices}
    given = [name for name, value in (measured | peaks | details).items() if value is not None]
    if not given:
        return {}
    for names in (measured, peaks):
        if sum(name in given for name in names) != 1:
            raise ValueError(
                f"{', '.join(given)}: expected one of {' and '.join(measured)} with one of "
                f"{' and '.join(peaks)}, for MFU and HFU"
            )
    if dtype is not None and device is None:
        raise ValueError("--dtype with --peak-flops: expected --peak-flops alone, of any dtype")
    arguments = {
        "seconds": seconds,
        "tokens_per_second": tokens_per_second,
        "device": device if peak_flops is None else given_device(peak_flops),
        "dtype": dtype,
        "num_devices": num_devices,
    }
    return {name: value for name, value in arguments.items() if value is not None}


def params(model: Model, json: bool = False) -> None:
    """Count parameters, tensor by tensor.

    Args:
        model: The architecture.
        json: Print JSON.
    """
    built = model.build()
    if json:
        print(to_json({"model": described(built)} | built.params().to_dict()))
        return
    if isinstance(model, ConfigOptions):
        print(f"{built}\n")
    print(built.params())


@defaults_of(Architecture.generate)
def generate(
    model: Model,
    *,
    prompt_len: int,
    new_tokens: int,
    level: Literal["causal", "dense"] | None,
    batch_size: int,
    chunk: int | None,
    mla: Literal["expanded", "latent", "absorbed"] | None,
    prompt_latents: int | None = None,
    json: bool = False,
) -> None:
    """Count what it costs to answer a prompt, and what is cached then.

    Args:
        model: The architecture.
        prompt_len: Positions of each prompt.
        new_tokens: Tokens that answer it.
        level: What attention counts; causal unless given.
        batch_size: Prompts.
        chunk: Positions of the passes that read the prompt; all unless given.
        mla: How latent attention uses its latents behind a cache; latent unless given.
        prompt_latents: Of Perceiver AR: how many of the prompt's last positions are latents.
        json: Print JSON.
    """
    built = model.build()
    own: dict[str, Any] = dict(batch_size=batch_size, mla=mla, num_latents=prompt_latents)
    whole = built.generate(prompt_len, new_tokens, level, chunk=chunk, **own)
    own["mla"] = reading(mla)
    read = built.prefill(prompt_len, level, chunk=chunk, **own)
    # Every position read is cached; Perceiver AR counts its latents alone.
    latents = whole.tokens // batch_size if isinstance(built, PerceiverAR) else None
    own |= dict(mla=mla, num_latents=latents)
    kept = built.cache(prompt_len + new_tokens - 1, **own)
    if json:
        counts = {"generate": whole, "prefill": read, "cache": kept}
        print(to_json({name: count.to_dict() for name, count in counts.items()}))
        return
    if isinstance(model, ConfigOptions):
        print(f"{built}\n")
    rest = whole.total - read.total
    print(whole)
    print(f"the prompt {shown(read.total)}, the tokens behind it {shown(rest)}\n")
    print(kept)


@defaults_of(roofline_of)
def roofline(
    model: Model,
    *,
    device: str,
    cached: int,
    positions: int,
    batch_size: int,
    dtype: str,
    weights: str,
    cache: str,
    mla: Literal["expanded", "latent", "absorbed"] | None,
    bandwidth: float | None = None,
    plot: Path | None = None,
    json: bool = False,
) -> None:
    """Tell what bounds the time of one pass of inference, term by term: at least.

    Args:
        model: The architecture.
        device: A name that ``flopcount devices`` lists, whose bandwidth is known or given.
        cached: Positions before those that are read.
        positions: Positions read of each sequence: 1 is a step of decoding, more a prompt.
        batch_size: Sequences.
        dtype: Of computing and activations.
        weights: Of weights, as they are stored.
        cache: Of the cache.
        mla: How latent attention uses its latents behind a cache; latent unless given.
        bandwidth: Bytes/s between the device and its memory, in place of the vendor's.
        plot: Also draw it into this file.
        json: Print JSON.
    """
    chosen = find_device(device)
    if bandwidth is not None:
        stated = Bandwidth(bandwidth, "given by the user")
        chosen = dataclasses.replace(chosen, bandwidth=stated)
    roofline = roofline_of(
        model.build(),
        chosen,
        cached=cached,
        positions=positions,
        batch_size=batch_size,
        dtype=dtype,
        weights=weights,
        cache=cache,
        mla=mla,
    )
    _print(roofline, json)
    if plot is not None:
        roofline.plot(plot)


def explore(model: Model, *, out: Path = Path("explore.html")) -> None:
    """Write a page with sliders for every size, computed in the browser by the same formulas.

    Args:
        model: The architecture.
        out: The file: one page of HTML that needs nothing else.
    """
    from flopcount.explorer import explore as page_of

    out.write_text(page_of(model.build()), encoding="utf-8")
    print(f"{out}: open it in a browser")


@defaults_of(per_device)
def parallel(
    model: Model,
    devices: ParallelOptions = ONE_DEVICE,
    *,
    level: Literal["causal", "dense"] | None,
    batch_size: int | None,
    microbatch_size: int,
    training: bool,
    checkpointing: Literal["reentrant", "non-reentrant"] | None,
    dtype: str,
    gradients: str,
    json: bool = False,
) -> None:
    """Count what each of many devices multiplies in a step, and the bytes that it sends at least.

    Args:
        model: The architecture.
        devices: How they share the step.
        level: What attention counts; causal unless given.
        batch_size: Sequences in a step; a microbatch for each replica unless given.
        microbatch_size: Sequences that pass through a replica at once.
        training: Forward and backward, or forward alone.
        checkpointing: Activation checkpointing of whole layers.
        dtype: Of activations, their gradients and parameters as they are sent.
        gradients: Of the parameters' gradients as they are sent.
        json: Print JSON.
    """
    share = per_device(
        model.build(),
        Parallel(**vars(devices)),
        level=level,
        batch_size=batch_size,
        microbatch_size=microbatch_size,
        training=training,
        checkpointing=checkpointing,
        dtype=dtype,
        gradients=gradients,
    )
    _print(share, json)


@defaults_of(compare_model, compare_optima)
def compare(
    model: Model,
    *,
    training: bool,
    optimum: float | None = None,
    law: str | None = None,
    part: Literal["total", "self"],
    json: bool = False,
) -> None:
    """Count in every known way, side by side; or tell how each moves the optimum of a budget.

    Args:
        model: The architecture.
        training: Forward and backward, or forward alone.
        optimum: Training FLOPs: where this budget has its optimum by each way, for models shaped
            as this one.
        law: For ``--optimum``: a file that ``flopcount fit --approach surface --json`` wrote;
            chinchilla-3 unless given.
        part: For ``--optimum``: what the budget pays for.
        json: Print JSON.
    """
    if optimum is None:
        if law is not None or part != default_of(compare, "part"):
            raise ValueError("--law or --part without --optimum: it would do nothing")
        _print(compare_model(model.build(), training=training), json)
        return
    if not training:
        raise ValueError("--no-training with --optimum: expected one of the two")
    own: dict[str, Any] = {}
    if law is not None:
        own["law"] = LAWS[law]() if law in LAWS else read_law(law)
    _print(compare_optima(model.build(), optimum, part=part, **own), json)


@defaults_of(explain_terms)
def explain(
    config: tyro.conf.Positional[str | None] = None,
    *,
    architecture: ArchitectureName,
    level: Literal["causal", "dense", "executed"] | None,
    convention: str | None,
    tiling: TilingOptions = NO_TILING,
    latex: bool = False,
    json: bool = False,
) -> None:
    """Print the formula and the source of every term.

    Args:
        config: A config.json, or its folder: the formulas of its family, with its sizes beside.
        architecture: Instead, an architecture.
        level: What attention counts; causal unless a convention is given.
        convention: A published way to count instead.
        tiling: How fused attention kernels cut their work, for level executed.
        latex: Print LaTeX.
        json: Print JSON.
    """
    if latex and json:
        raise ValueError("--latex with --json: expected --json alone, which holds LaTeX, too")
    explained: Any = architecture
    if config is not None:
        explained = ConfigOptions(config).build()
    explanation = explain_terms(explained, level, convention, tilings_of(tiling, (), level)[0])
    if latex:
        print(explanation.to_latex())
    else:
        _print(explanation, json)


def article(json: bool = False) -> None:
    """Print the article's tables and numbers, computed, as published and as corrected.

    Args:
        json: Print JSON.
    """
    from flopcount.article import reproduce

    _print(reproduce(), json)


def plan(
    budgets: tuple[float, ...] = (),
    gpu_hours: tuple[float, ...] = (),
    device: str | None = None,
    mfu: float | None = None,
    *,
    search: SearchOptions,
    by_convention: bool = False,
    json: bool = False,
) -> None:
    """Propose a family of models for each budget, around the optimum that a law predicts.

    Args:
        budgets: FLOPs of a run.
        gpu_hours: Instead, hours of a run times its devices; needs ``--device`` and ``--mfu``.
        device: The device, for the hours and, without ``--flops-per-second``, for the time.
        mfu: Its measured model FLOPs utilisation.
        search: What is searched and priced.
        by_convention: Also print the FLOPs of every run at each level and by each convention.
        json: Print JSON.
    """
    wanted = Search(**vars(search))
    rate, law = wanted.flops_per_second, str(wanted.law)
    if bool(budgets) == bool(gpu_hours):
        raise ValueError("budgets, gpu_hours: expected one of the two")
    if (device is None) != (mfu is None) or (gpu_hours and device is None):
        raise ValueError(f"device = {device}, mfu = {mfu}: expected both, and so with gpu_hours")
    if device is not None and rate is not None and not gpu_hours:
        raise ValueError(
            f"device = {device!r} with flops_per_second = {rate}: expected one of the two, for "
            "the time"
        )
    if by_convention and json:
        raise ValueError("by_convention with json: expected one of the two; the JSON has it anyhow")
    if device is not None and mfu is not None:
        rate = rate or throughput(device, mfu)
        budgets = budgets or tuple(budget_from_gpu_hours(hours, device, mfu) for hours in gpu_hours)
    is_file = Path(law).exists() or Path(law).suffix != ""
    wanted = dataclasses.replace(
        wanted,
        flops_per_second=rate,
        law=law if law in LAWS or not is_file else read_law(law),
    )
    planned = plan_families(budgets, wanted)
    _print(planned, json)
    if by_convention and not json:
        print(f"\n{planned.by_convention()}")


def as_typed(message: str, flags: Mapping[str, str]) -> str:
    """An error's text with options as they are typed, where Python's arguments stand in it.

    Args:
        message: The text.
        flags: The option by the argument's name.

    >>> as_typed("'N' and 'n' may be it: give one as params='N'", {"params": "--params"})
    "'N' and 'n' may be it: give one as --params N"
    """
    value = r"(?:='(?P<text>[^']*)'| ?= ?(?=['\[({\d-]|None\b))"
    return re.sub(
        rf"(?<![\w-])(?P<name>{'|'.join(flags)}){value}",
        lambda match: (
            f"{flags[match['name']]} {shlex.quote(match['text'] or '') * bool(match['text'])}"
        ),
        message,
    )


def naming_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with errors that name its options as they are typed."""
    flags = {name: f"--{name.replace('_', '-')}" for name in inspect.signature(command).parameters}

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except ValueError as error:
            raise ValueError(as_typed(str(error), flags)) from error

    return run


@naming_flags
@defaults_of(fit_surface, fit_optima, read_runs, read_curves)
def fit(
    runs: tyro.conf.Positional[Path],
    *,
    approach: Literal["profiles", "surface", "curves", "power-law"] = "profiles",
    objective: Literal["huber-log", "variable-projection", "least-squares-log"],
    delta: float | None,
    params: str | None,
    tokens: str | None,
    flops: str | None,
    loss: str | None,
    budget: str | None,
    budgets: tuple[float, ...] = (),
    run: tuple[str, ...] | None,
    where: tuple[str, ...] = (),
    a: float | None,
    b: float | None,
    drop_highest: int,
    num_bootstrap: int,
    seed: int,
    predict: tuple[float, ...] = (),
    json: bool = False,
) -> None:
    """Fit scaling laws to a table of runs.

    Args:
        runs: A CSV file: final losses, or for ``curves`` every validation of every run.
        approach: ``curves`` (1, envelope), ``profiles`` (2, parabolas), ``surface`` (3), or
            ``power-law`` through a table of optima.
        objective: Of ``surface``: Huber on the log of the loss or on the loss, or least squares.
        delta: Huber's δ of ``surface``: of log loss, or as a share of the median loss; 1e-3 unless
            given.
        params: Heading of N, where it is not recognised; so for the next four.
        tokens: Heading of D.
        flops: Heading of C; 6ND for C = 6·N·D in place of a column.
        loss: Heading of the loss.
        budget: Heading of the planned budget.
        budgets: Budgets of ``profiles``, where neither a column nor the FLOPs tell them apart.
        run: Heading of the run's name, for ``curves``; several headings name it together.
        where: Read only rows with these values: HEADING=VALUE, of a table of several experiments.
        a: Exponent of N_opt, given instead of fitted, for ``power-law``.
        b: Exponent of D_opt, likewise.
        drop_highest: How many of the highest losses to leave out.
        num_bootstrap: Bootstrap fits, for intervals.
        seed: Of the bootstrap.
        predict: Budgets at which to predict N_opt, D_opt and the loss.
        json: Print JSON.
    """
    options = dict(locals())
    bootstrap: dict[str, Any] = dict(num_bootstrap=num_bootstrap, seed=seed)
    headings = dict(params=params, tokens=tokens, flops=flops, loss=loss)
    fitted: Any
    if (a, b) != (None, None) and approach != "power-law":
        raise ValueError(f"a = {a}, b = {b}: expected approach = 'power-law' with them")
    does_nothing = {
        "objective": approach != "surface",
        "delta": approach != "surface",
        "budgets": approach != "profiles",
        "budget": approach == "curves",
        "drop_highest": approach == "curves",
        "run": approach != "curves",
        "seed": not num_bootstrap,
    }
    idle = [
        f"--{name.replace('_', '-')}"
        for name, nothing in does_nothing.items()
        if nothing and options[name] != default_of(fit, name)
    ]
    if idle:
        named = ", ".join(idle)
        beside = "without --num-bootstrap" if named == "--seed" else f"with --approach {approach}"
        raise ValueError(f"{named} {beside}: it would do nothing")
    if approach == "curves":
        curves = read_curves(runs, run=run, where=_conditions(where), **headings)
        fitted = fit_training_curves(curves, **bootstrap)
    else:
        table_of_runs = read_runs(
            runs,
            budget=budget,
            drop_highest=drop_highest,
            where=_conditions(where),
            optima=approach == "power-law",
            **headings,
        )
        if approach == "power-law":
            fitted = fit_optima(table_of_runs, a=a, b=b, **bootstrap)
        elif approach == "profiles":
            fitted = fit_isoflop_profiles(table_of_runs, budgets=budgets or None, **bootstrap)
        else:
            fitted = fit_surface(table_of_runs, objective=objective, delta=delta, **bootstrap)
    if not json:
        print(fitted)
    try:
        optima = [fitted.predict(budget_flops) for budget_flops in predict]
    except ValueError as error:
        raise ValueError(as_typed(str(error), {"flops": "--predict"})) from error
    if json:
        print(to_json(fitted.to_dict() | {"predictions": [o.to_dict() for o in optima]}))
        return
    for best in optima:
        print(f"\n{best}")
    if not num_bootstrap:
        print(paragraph("\nno intervals: they take bootstrap fits, as of --num-bootstrap 1000"))


def _conditions(where: tuple[str, ...]) -> dict[str, str]:
    conditions = dict(condition.partition("=")[::2] for condition in where)
    if not all("=" in condition for condition in where):
        raise ValueError(f"--where {' '.join(where)}: expected HEADING=VALUE")
    return conditions


def devices(json: bool = False) -> None:
    """List the known devices: peak dense FLOP/s by dtype, memory and its bandwidth, with sources.

    Args:
        json: Print JSON.
    """
    from flopcount.devices import ADDING, DEVICES, DTYPES

    if json:
        print(to_json({name: dataclasses.asdict(device) for name, device in DEVICES.items()}))
        return
    rows = [
        [
            name,
            *(_teraflops(device.peaks.get(dtype)) for dtype in DTYPES),
            "" if device.bandwidth is None else f"{device.bandwidth.bytes_per_second / 1e12:g}",
            "" if device.memory is None else f"{device.memory.size_bytes / 1e9:.4g}",
        ]
        for name, device in DEVICES.items()
    ]
    sources = [
        f"{name}: {reference}"
        for name, device in DEVICES.items()
        for stated in [(*device.peaks.values(), device.bandwidth, device.memory)]
        for reference in dict.fromkeys(entry.reference for entry in stated if entry is not None)
    ]
    unread = "empty: no document that states it was read, or the device comes in several sizes"
    note = "\n".join([unread, *sources, f"for another, in Python: {ADDING}"])
    title = (
        "Peak TFLOP/s of one device, without sparsity; TB/s to its memory, and its memory in GB "
        "(10^9 bytes)"
    )
    print(table(["device", *DTYPES, "TB/s", "GB"], rows, title=title, note=note))


def _teraflops(peak: Peak | None) -> str:
    return "" if peak is None else f"{peak.flops_per_second / 1e12:g}"


COMMANDS: dict[str, Callable[..., None]] = {
    "count": count,
    "params": params,
    "generate": generate,
    "roofline": roofline,
    "explore": explore,
    "parallel": parallel,
    "compare": compare,
    "explain": explain,
    "article": article,
    "plan": plan,
    "fit": fit,
    "devices": devices,
}


TAKE_A_MODEL = ("count", "params", "generate", "roofline", "explore", "parallel", "compare")


def with_config(words: list[str]) -> list[str]:
    """The words of a command line, with ``hf`` where a config stands without it.

    >>> with_config(["count", "config.json", "--seq-len", "8"])
    ['count', 'hf', 'config.json', '--seq-len', '8']
    """
    command, following = words[:1], words[1:2]
    if command == ["explain"] and following == [FROM_CONFIG]:
        return [*command, *words[2:]]
    if command and command[0] in TAKE_A_MODEL and any(map(_is_config, following)):
        return [*command, FROM_CONFIG, *words[1:]]
    return words


def _is_config(word: str) -> bool:
    from flopcount.hf import file_of

    # A dot or a slash is a path's, or a hub's name, which `from_hf` answers.
    named = "." in word or "/" in word or file_of(word) is not None
    return named and not word.startswith("-") and word not in {FROM_CONFIG, *ARCHITECTURES}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of the process unless given.

    Returns:
        The exit status: 0, or 2 with one line on standard error where the input is wrong.
    """
    any_encoding()
    words = with_config(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"flopcount {__version__}")
        return 0
    takes = {
        name: [FROM_CONFIG, *ARCHITECTURES] if name in TAKE_A_MODEL else () for name in COMMANDS
    }
    if wrong := wrong_command(words, takes):
        print(f"flopcount: {wrong}", file=sys.stderr)
        return 2
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="flopcount",
            description="Exact FLOP counts of transformers.",
            args=words,
            registry=whole_numbers(),
            config=(
                tyro.conf.CascadeSubcommandArgs,
                tyro.conf.OmitSubcommandPrefixes,
                tyro.conf.OmitArgPrefixes,
            ),
        )
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe; nothing is left to be flushed into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, TypeError, ImportError, OSError) as error:
        said = advice(error) if isinstance(error, ImportError) else error
        print(f"flopcount: {said}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
