"""The assertion that a network executes what an architecture says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flopcount.architectures import Architecture
from flopcount.differences import PHASES
from flopcount.sizes import quoted, require_flag
from flopcount.tables import shown

if TYPE_CHECKING:
    from torch import nn

    from flopcount.torch import ModuleCount


def assert_counts(
    module: nn.Module,
    architecture: Architecture,
    *inputs: Any,
    keywords: Mapping[str, Any] | None = None,
    batch_size: int = 2,
    level: str = "dense",
    training: bool = True,
    checkpointing: str | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
    custom_mapping: Mapping[Any, Callable[..., int]] | None = None,
) -> None:
    """Assert that a module has the parameters and executes the FLOPs that an architecture states.

    It is run once, by :func:`flopcount.torch.count`: forward and, in training, backward, in each
    phase to the FLOP, and with ``names`` term by term. Nothing may be left uncounted.

    Args:
        module: Called with token ids, (batch, positions); in the mode that ``training`` says.
        architecture: What it is said to be, for example ``fc.from_hf(config, seq_len)``.
        *inputs: What it is called with, of ``batch_size`` sequences, where that is not ids of
            ``architecture.length`` positions and those of a prefix.
        keywords: What it is called with by name.
        batch_size: Sequences.
        level: ``"dense"`` or, of fused attention whose masks count, ``"causal"``.
        training: Forward and backward, or forward alone.
        checkpointing: How the module recomputes: None, ``"reentrant"`` or ``"non-reentrant"``.
        names: The counter's names of the products, as of :func:`flopcount.torch.counting`.
        custom_mapping: FLOPs of operators of one's own, as of :func:`flopcount.torch.counting`.

    Raises:
        AssertionError: If they differ, naming the parameters, phases or terms that do; or if an
            operator could not be counted.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or the module is in the other mode.

    """
    from flopcount import torch as meter

    if not isinstance(architecture, Architecture):
        raise TypeError(f"architecture = {quoted(architecture)}: expected one of flopcount's")
    meter.require_module(module)
    if (
        type(stated := architecture.params().total) is not int
        or type(architecture.length) is not int
    ):
        raise TypeError("architecture has sizes that are no ints: expected one network, of ints")
    if module.training is not require_flag("training", training):
        mode = "train" if training else "eval"
        raise ValueError(
            f"training = {training} of a module in the other mode: expected module.{mode}()"
        )
    if not inputs and not keywords:
        inputs = (_ids(module, architecture, batch_size),)
    measured = meter.count(
        module,
        *inputs,
        keywords=keywords,
        level=level,
        backward=training,
        batch_size=batch_size,
        names=names,
        custom_mapping=custom_mapping,
    )
    formula = architecture.flops(
        level, training=training, batch_size=batch_size, checkpointing=checkpointing
    )
    own = sum(parameter.numel() for parameter in module.parameters())
    problems = [f"could not be counted: {uncounted}" for uncounted in measured.not_counted]
    if own != stated:
        problems.append(
            f"parameters: the module has {shown(own)}, {architecture.title} {shown(stated)}"
        )
    problems += _differences(measured, formula, named=names is not None)
    if problems:
        raise AssertionError("\n".join(problems))


def _ids(module: nn.Module, architecture: Architecture, batch_size: int) -> Any:
    import torch

    positions: Any = architecture.length + getattr(architecture, "num_prefix", 0)
    devices = {parameter.device for parameter in module.parameters()}
    device = devices.pop() if len(devices) == 1 else None
    return torch.zeros((batch_size, positions), dtype=torch.long, device=device)


def _differences(measured: ModuleCount, formula: Any, *, named: bool) -> list[str]:
    if named:
        difference = (measured - formula).nonzero
        return [str(difference)] if difference.terms else []
    sums = [(phase, getattr(measured, phase), getattr(formula, phase)) for phase in PHASES]
    return [
        f"{phase}: the module executes {shown(own)} FLOPs, {formula.model.title} says {shown(said)}"
        for phase, own, said in sums
        if own != said
    ]
