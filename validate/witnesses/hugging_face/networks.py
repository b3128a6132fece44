"""Witness: networks that others wrote, those of Hugging Face's transformers.

A config, as a config.json has it, is built by transformers' own class and run forward and backward:
on the meta device, so that published sizes take seconds, or on real tensors for the masks. Nothing
is downloaded. What is read off a network is its parameters, the FLOPs of its matrix products by
torch's FlopCounterMode and, product by product, by module, and which query-key pairs its attention
admits.

Two of transformers' defaults hide work: the grouped product of experts and, on a CPU, the fused
attention are operators for which FlopCounterMode has no formula, so they count 0. :func:`build`
turns both off, and :func:`observe` refuses a network in which one of them is on, or that dispatches
any other product without a formula.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from flopcount.testing.dense_configs import STAND_INS
from flopcount.testing.scan_configs import in_transformers_names
from validate.witnesses.symbolic_trace import Products

TESTED_TRANSFORMERS = "5.24.0"
COUNTABLE = {
    "_attn_implementation": ("eager",),
    "_experts_implementation": ("batched_mm", "eager"),
}
"""What a network is run with, as its config keeps it: what :func:`build` sets comes first.

Eager experts are countable too, but need data: it stays where there are no experts.
"""

RECURRENT = ("minimax", "qwen3_next", "jamba")
"""Families with recurrent layers among others, which make both masks even where they need one."""

# It warns of slow paths and of tokens beyond a small vocabulary, neither of which a count sees.
transformers.logging.set_verbosity_error()

FLAVOURS = {"reentrant": True, "non-reentrant": False}
"""Flavours of activation checkpointing, with ``use_reentrant`` of each."""


class UncountedError(AssertionError):
    """A network multiplies in a way that FlopCounterMode counts as 0."""


def read(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The config of the text model in ``config``, by transformers' class of its ``model_type``.

    Args:
        config: The fields of a config.json.

    Raises:
        ValueError: If transformers has no class for the ``model_type``.
        RuntimeError: On a transformers that has not been tried.
    """
    if transformers.__version__ != TESTED_TRANSFORMERS:
        raise RuntimeError(
            f"transformers = {transformers.__version__}: the networks of {TESTED_TRANSFORMERS} "
            "are the witness; install that"
        )
    own = config.get("model_type")
    name = STAND_INS.get(str(own), own)
    if name not in transformers.CONFIG_MAPPING:
        raise ValueError(f"model_type = {own!r}: expected one that transformers has")
    # Some config classes change the dict that they are given.
    given = {**in_transformers_names(dict(config)), "model_type": name}
    text: PreTrainedConfig = transformers.CONFIG_MAPPING[name].from_dict(given).get_text_config()
    return text


def network_class(config: PreTrainedConfig) -> Any:
    """The class of ``architectures[0]`` if it runs this config, else the language model's."""
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if named is not None and named.config_class is type(config):
        return named
    if config.is_encoder_decoder:
        heads = transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    elif is_encoder(config):
        heads = transformers.MODEL_FOR_MASKED_LM_MAPPING
    else:
        heads = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return heads[type(config)]


def is_encoder(config: PreTrainedConfig) -> bool:
    """Whether a network attends to all positions: it predicts masked tokens, and is no decoder."""
    masked = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    return masked and not config.is_encoder_decoder and not getattr(config, "is_decoder", False)


def build(config: Mapping[str, Any], *, device: str = "meta") -> PreTrainedModel:
    """Build the network that ``config`` describes, for training.

    Args:
        config: The fields of a config.json.
        device: ``"meta"`` holds no data; on ``"cpu"`` the weights are drawn.
    """
    text = read(config)
    text.use_cache = False
    skipped = no_init_weights() if device == "meta" else contextlib.nullcontext()
    with torch.device(device), skipped:
        network: PreTrainedModel = network_class(text)._from_config(
            text, attn_implementation=COUNTABLE["_attn_implementation"][0]
        )
    network.tie_weights()  # which goes the way of the initialisation that is skipped
    if config.get("tie_word_embeddings") is False and text.tie_word_embeddings:
        # T5's class ties whatever the file says, and unties where the file holds both tensors.
        head = network.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    network.set_experts_implementation(COUNTABLE["_experts_implementation"][0])
    return network.train()


def inputs(
    network: PreTrainedModel, *, seq_len: int, batch_size: int, target_len: int | None
) -> dict[str, Any]:
    """What the network is called with: tokens, and without data what it needs to choose its masks.

    Args:
        network: Of :func:`build`.
        seq_len: Positions; of the encoder, where there are two stacks.
        batch_size: Sequences.
        target_len: Positions of the decoder, where there are two stacks; ``seq_len`` unless given.
    """
    config = network.config
    tokens = torch.zeros((batch_size, seq_len), dtype=torch.long, device=network.device)
    given: dict[str, Any] = {"input_ids": tokens}
    if config.is_encoder_decoder:
        given["decoder_input_ids"] = tokens.new_zeros((batch_size, target_len or seq_len))
    elif network.device.type == "meta" and not is_encoder(config):
        if config.model_type in RECURRENT:
            # A recurrent layer looks whether its mask is all ones, and so may not be given one.
            mask = torch.zeros((batch_size, 1, seq_len, seq_len), device=network.device)
            given["attention_mask"] = {"full_attention": mask, "linear_attention": None}
        elif "linear_attention" not in (getattr(config, "layer_types", None) or ()):
            # All ones: the network looks for no packed sequences, and makes masks of its own.
            given["attention_mask"] = torch.ones_like(tokens)
    return given


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a network is seen to have and to execute in a training step.

    FLOPs are those of matrix products by FlopCounterMode; convolutions are apart.

    Attributes:
        parameters: Scalars of all parameters, tied ones once.
        buffers: Scalars of what else a checkpoint of the network holds.
        forward: FLOPs of the forward pass.
        backward: FLOPs of the backward pass.
        convolutions: FLOPs of convolutions, forward and backward.
        recompute: FLOPs that activation checkpointing executes again, by flavour.
        modules: FLOPs of every product of the forward pass, by the module that executes it, in
            order.
        admitted: Query-key pairs that each head attends to in a sequence, and how many there are,
            by module; None without data.
    """

    parameters: int
    buffers: int
    forward: int
    backward: int
    convolutions: tuple[int, int]
    recompute: dict[str, int]
    modules: dict[str, tuple[int, ...]]
    admitted: dict[str, tuple[int, int]] | None


def observe(
    config: Mapping[str, Any],
    *,
    seq_len: int,
    batch_size: int = 1,
    target_len: int | None = None,
    checkpointing: bool = True,
    device: str = "meta",
) -> Seen:
    """Run the network that ``config`` describes for a training step.

    Args:
        config: The fields of a config.json.
        seq_len: As of :func:`inputs`.
        batch_size: As of :func:`inputs`.
        target_len: As of :func:`inputs`.
        checkpointing: Whether both flavours of activation checkpointing are run too.
        device: ``"meta"`` for any size; ``"cpu"`` for a small one, on real tensors, which shows the
            masks too and takes less time.

    Raises:
        UncountedError: If the network multiplies in a way that counts as 0.
        AssertionError: If heads or sequences differ in what they admit.
    """
    torch.manual_seed(0)
    network = build(config, device=device)
    require_countable(network)
    given = inputs(network, seq_len=seq_len, batch_size=batch_size, target_len=target_len)
    recorder = _Recorder()
    with recorder.naming(network):
        forward, backward = _passes(network, given, recorder)
    modules: dict[str, tuple[int, ...]] = {}
    for row in recorder.rows:
        modules[row.module] = (*modules.get(row.module, ()), int(row.flops))
    if sum(map(sum, modules.values())) != forward.products:
        raise UncountedError(
            f"products by module {modules}: FlopCounterMode's total is {forward.products}"
        )
    recompute = {}
    for flavour, reentrant in FLAVOURS.items() if checkpointing else ():
        network.activation_checkpointing_enable({"use_reentrant": reentrant})
        again = sum(counted.products for counted in _passes(network, given))
        recompute[flavour] = again - forward.products - backward.products
    return Seen(
        parameters=num_parameters(network),
        buffers=num_buffers(network),
        forward=forward.products,
        backward=backward.products,
        convolutions=(forward.convolutions, backward.convolutions),
        recompute=recompute,
        modules=modules,
        admitted=None if device == "meta" else _admitted(network, recorder.scores),
    )


def packed_pairs(config: Mapping[str, Any], documents: Sequence[int]) -> dict[str, int]:
    """Pairs that each head attends to where documents lie end to end in one sequence, by module.

    The network finds the documents by their positions, which begin anew.

    Args:
        config: The fields of a config.json.
        documents: Lengths.
    """
    network, recorder = build(config, device="cpu"), _Recorder()
    positions = torch.cat([torch.arange(length) for length in documents])[None]
    with recorder.naming(network), recorder:
        network(input_ids=torch.zeros_like(positions), position_ids=positions)
    return {name: pairs for name, (pairs, _) in _admitted(network, recorder.scores).items()}


def num_parameters(network: PreTrainedModel) -> int:
    """Scalars of all parameters, tied ones once."""
    return sum(parameter.numel() for parameter in network.parameters())


def num_buffers(network: PreTrainedModel) -> int:
    """Scalars that a checkpoint of the network holds beside its parameters."""
    saved = network.state_dict()
    return sum(buffer.numel() for name, buffer in network.named_buffers() if name in saved)


def require_countable(network: PreTrainedModel) -> None:
    """Refuse a network whose attention is fused or whose experts' products are grouped.

    Raises:
        UncountedError: Naming the module and the implementation.
    """
    for name, module in network.named_modules():
        for option, countable in COUNTABLE.items():
            value = getattr(getattr(module, "config", None), option, countable[0])
            if value not in countable:
                raise UncountedError(
                    f"{option.removeprefix('_')} of {name or 'the network'} is {value!r}, which "
                    f"FlopCounterMode counts as 0: expected {countable[0]!r}"
                )


@functools.cache
def _refuse_uncounted(func: Any) -> None:
    """Raise if an operator multiplies matrices and FlopCounterMode has no formula for it."""
    packet = func._overloadpacket
    multiplies = any(part in str(packet) for part in ("mm", "mv", "dot", "conv", "attention"))
    if multiplies and packet not in flop_registry:
        raise UncountedError(f"{packet}: FlopCounterMode counts it as 0")


class _Recorder(Products):
    """Records products and the scores that every attention hands to its softmax, its mask applied.

    Refuses a product that FlopCounterMode has no formula for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[tuple[str, torch.Tensor]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        _refuse_uncounted(func)
        if self.in_backward:
            # By which module, only PyTorch knows, and not always.
            return func(*args, **(kwargs or {}))
        # Scores are (batch, heads, queries, keys); a router's logits have no heads.
        if func is torch.ops.aten._softmax.default and args[0].ndim == 4:
            self.scores.append((self.modules[-1], args[0]))
        return super().__torch_dispatch__(func, types, args, kwargs)


@dataclasses.dataclass(frozen=True)
class _Counted:
    products: int
    convolutions: int


def _passes(
    network: PreTrainedModel, given: dict[str, Any], recorder: _Recorder | None = None
) -> tuple[_Counted, _Counted]:
    """FLOPs of the forward and of the backward pass."""
    recording = contextlib.nullcontext() if recorder is None else recorder
    with FlopCounterMode(display=False) as forward, recording:
        result = network(**given)
        outputs = [value for value in result.values() if isinstance(value, torch.Tensor)]
        loss = torch.stack([output.sum() for output in outputs]).sum()
    if recorder is not None:
        recorder.in_backward = True
    with FlopCounterMode(display=False) as backward, recording:
        loss.backward()
    return _counted(forward), _counted(backward)


def _counted(counter: FlopCounterMode) -> _Counted:
    by_operator = counter.get_flop_counts().get("Global", {})
    convolutions = sum(
        flops for operator, flops in by_operator.items() if "convolution" in str(operator)
    )
    return _Counted(counter.get_total_flops() - convolutions, convolutions)


def _admitted(
    network: PreTrainedModel, scores: list[tuple[str, torch.Tensor]]
) -> dict[str, tuple[int, int]]:
    """Pairs whose score has not been pushed out of its range; a sink's column is no key."""
    admitted = {}
    for name, of_module in scores:
        if hasattr(network.get_submodule(name), "sinks"):
            of_module = of_module[..., :-1]
        masks = (of_module > torch.finfo(of_module.dtype).min / 2).flatten(0, 1)
        assert not of_module.isnan().any(), f"{name}: scores are no numbers"
        assert (masks == masks[0]).all(), f"{name}: heads admit different pairs"
        admitted[name] = int(masks[0].sum()), masks[0].numel()
    return admitted
