"""The command line: each command is a thin shell over a public function."""

from __future__ import annotations

import dataclasses
import json as json_format
import os
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Any, Literal

import tyro

from flopcount.architectures import Architecture, Decoder, PerceiverAR
from flopcount.tables import table


@dataclasses.dataclass(frozen=True)
class PerceiverAROptions:
    """Perceiver AR: a causal decoder whose first layer also attends to a prefix."""

    vocab_size: int
    """V."""
    num_latents: int
    """n, the positions that predict."""
    num_prefix: int
    """m, the positions before them."""
    num_channels: int
    """d."""
    num_layers: int
    """L, the hybrid layer included."""
    num_heads: int = PerceiverAR.num_heads
    """h."""
    prefix_dropout: float = PerceiverAR.prefix_dropout
    """p in [0, 1), in training."""
    num_kept: int | None = PerceiverAR.num_kept
    """k, instead of the prefix dropout."""
    widening_factor: int = PerceiverAR.widening_factor
    """w."""

    def build(self) -> Architecture:
        """The model to count."""
        return PerceiverAR(**vars(self))


@dataclasses.dataclass(frozen=True)
class DecoderOptions:
    """A decoder-only transformer, by default as GPT-2."""

    vocab_size: int
    """V."""
    seq_len: int
    """n, positions."""
    num_channels: int
    """d."""
    num_layers: int
    """L."""
    num_heads: int
    """h."""
    widening_factor: int = Decoder.widening_factor
    """w."""
    bias: bool = Decoder.bias
    """Biases in linear layers and LayerNorms."""
    tie_embeddings: bool = Decoder.tie_embeddings
    """The output layer's weight is the token embedding."""

    def build(self) -> Architecture:
        """The model to count."""
        return Decoder(**vars(self))


Model = (
    Annotated[PerceiverAROptions, tyro.conf.subcommand("perceiver-ar")]
    | Annotated[DecoderOptions, tyro.conf.subcommand("decoder")]
)


def to_json(value: Any) -> str:
    """Plain data as JSON; a fraction that is no integer becomes the text ``"p/q"``.

    >>> print(to_json([Fraction(7, 2)]))
    [
      "7/2"
    ]
    """

    def plain(entry: Any) -> Any:
        return str(entry) if isinstance(entry, Fraction) else list(entry)

    return json_format.dumps(value, indent=2, default=plain, ensure_ascii=False)


def _print(result: Any, json: bool) -> None:
    print(to_json(result.to_dict()) if json else result)


def count(
    model: Model,
    level: Literal["causal", "dense"] | None = None,
    convention: str | None = None,
    training: bool = True,
    batch_size: int = 1,
    checkpointing: Literal["reentrant", "non-reentrant"] | None = None,
    params: bool = False,
    elementwise: bool = False,
    seconds: float | None = None,
    device: str | None = None,
    dtype: str = "bf16",
    json: bool = False,
) -> None:
    """Count FLOPs term by term.

    Args:
        model: The architecture.
        level: Which query-key pairs count; causal unless a convention is given.
        convention: A published way to count instead; ``compare`` lists them.
        training: Forward and backward, or forward alone.
        batch_size: Sequences in a step.
        checkpointing: Activation checkpointing of whole layers.
        params: Also print the parameters.
        elementwise: Also print the element-wise FLOPs.
        seconds: Measured time of a step; with ``--device`` gives MFU and HFU.
        device: A name that ``flopcount devices`` lists.
        dtype: The peak that MFU refers to.
        json: Print JSON.
    """
    if (seconds is None) != (device is None):
        raise ValueError(f"seconds = {seconds}, device = {device}: expected both or neither")
    counted = model.build().flops(
        level,
        convention=convention,
        training=training,
        batch_size=batch_size,
        checkpointing=checkpointing,
    )
    rates = {}
    if seconds is not None and device is not None:
        rates["mfu"] = counted.mfu(seconds, device, dtype)
        rates["hfu"] = counted.hfu(seconds, device, dtype)
    parameters = counted.model.params()
    if json:
        print(to_json(counted.to_dict() | rates | {"params": parameters.to_dict()}))
        return
    print(counted)
    for name, rate in rates.items():
        print(f"{name.upper()} {rate:.2%} of the {dtype} peak of {device}")
    if params:
        print(f"\n{parameters}")
    if elementwise:
        print(f"\n{counted.elementwise or 'element-wise FLOPs: not covered by this convention'}")


def compare(model: Model, training: bool = True, json: bool = False) -> None:
    """Count in every known way, side by side.

    Args:
        model: The architecture.
        training: Forward and backward, or forward alone.
        json: Print JSON.
    """
    from flopcount.comparison import compare as compare_model

    _print(compare_model(model.build(), training=training), json)


def explain(
    architecture: Literal["perceiver-ar", "decoder"] = "perceiver-ar",
    level: Literal["causal", "dense"] | None = None,
    convention: str | None = None,
    latex: bool = False,
    json: bool = False,
) -> None:
    """Print the formula and the source of every term.

    Args:
        architecture: The architecture.
        level: Which query-key pairs count; causal unless a convention is given.
        convention: A published way to count instead.
        latex: Print LaTeX.
        json: Print JSON.
    """
    from flopcount.explanation import explain as explain_terms

    explanation = explain_terms(architecture, level, convention)
    if latex and not json:
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


def devices(json: bool = False) -> None:
    """List the known devices: peak dense FLOP/s by dtype, with the source.

    Args:
        json: Print JSON.
    """
    from flopcount.devices import DEVICES

    if json:
        print(to_json({name: dataclasses.asdict(device) for name, device in DEVICES.items()}))
        return
    rows = [
        [name, dtype, f"{peak.flops_per_second / 1e12:,.1f}", peak.reference]
        for name, device in DEVICES.items()
        for dtype, peak in device.peaks.items()
    ]
    print(table(["device", "dtype", "TFLOP/s", "source"], rows))


COMMANDS: dict[str, Callable[..., None]] = {
    "count": count,
    "compare": compare,
    "explain": explain,
    "article": article,
    "devices": devices,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of the process unless given.

    Returns:
        The exit status: 0, or 2 with one line on standard error where the input is wrong.
    """
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="flopcount",
            description="Exact FLOP counts of transformers.",
            args=arguments,
            config=(
                tyro.conf.CascadeSubcommandArgs,
                tyro.conf.OmitSubcommandPrefixes,
                tyro.conf.OmitArgPrefixes,
            ),
        )
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe; nothing is left to be flushed into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, TypeError, ImportError) as error:
        print(f"flopcount: {error}", file=sys.stderr)
        return 2
    return 0
