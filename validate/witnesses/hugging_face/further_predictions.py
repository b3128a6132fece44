"""Witness: the modules that predict further tokens, as transformers' ``MtpModel`` builds them.

The modules of a config, beside its network, run on all positions of a sequence, one after the
other, each with the network's own output layer; what :func:`flopcount.from_hf` counts more with
``mtp=True`` is held against them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

import flopcount as fc
from flopcount.testing import draw
from validate.witnesses.hugging_face import families

FAMILIES = ("deepseek_v3", "kimi_k2", "glm4_moe")
"""Families whose modules transformers has code for."""

GENERAL = (
    "llama", "mistral", "qwen2", "qwen3", "olmo2", "phi3", "gemma", "gemma2", "glm", "glm4",
    "mixtral",
)  # fmt: skip
"""Families whose files declare no modules, and which the same code builds some for."""

UNWITNESSED = ("minimax_m2",)
"""Families whose modules it has none for."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What modules are seen to have and to execute in a training step.

    Attributes:
        parameters: Scalars, without those of the embedding and the output layer.
        buffers: Scalars of what else a checkpoint holds of them.
        forward: FLOPs of matrix products of the forward pass.
        backward: Those of the backward pass.
    """

    parameters: int
    buffers: int
    forward: int
    backward: int


def observe(config: dict[str, Any], number: int, seq_len: int) -> Seen:
    """Run the modules of the network that ``config`` describes, without data.

    Args:
        config: The fields of a config.json.
        number: How many modules.
        seq_len: Positions of a sequence.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers.initialization import no_init_weights
    from transformers.modeling_layers import MtpModel

    from validate.witnesses.hugging_face import networks

    network = networks.build(config)
    if getattr(network.config, "num_mtp_layers", None) is None:
        # Modules like the last layer, of a family whose files declare none.
        network.config.num_mtp_layers = number
        if (types := getattr(network.config, "layer_types", None)) is not None:
            network.config.mtp_layer_types = [types[-1]] * number
    with torch.device("meta"), no_init_weights():
        modules = MtpModel(network, number)
    modules.train()
    networks.require_countable(modules)
    batch_size, channels = families.BATCH_SIZE, network.config.hidden_size
    place = {"device": "meta"}
    tokens = torch.zeros((batch_size, seq_len), dtype=torch.long, **place)
    mask = torch.zeros((batch_size, 1, seq_len, seq_len), **place)
    places = torch.arange(seq_len, **place)[None]
    # What the network hands over, whose gradient it goes on with.
    hidden = torch.zeros((batch_size, seq_len, channels), **place, requires_grad=True)
    logits = []
    with FlopCounterMode(display=False) as forward:
        for module in modules.layers:
            hidden = module(
                modules.embed_tokens(tokens),
                hidden,
                position_embeddings=modules.rotary_emb(hidden, position_ids=places),
                attention_mask=mask,
                position_ids=places,
                cache=None,
            )
            logits.append(modules.shared_head(hidden))
        loss = torch.stack(logits).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    saved = modules.layers.state_dict()
    return Seen(
        parameters=sum(parameter.numel() for parameter in modules.layers.parameters()),
        buffers=sum(
            buffer.numel() for name, buffer in modules.layers.named_buffers() if name in saved
        ),
        forward=forward.get_total_flops(),
        backward=backward.get_total_flops(),
    )


def compare(
    config: dict[str, Any], seq_len: int, number: int | None = None
) -> families.Differences:
    """What counts more with the modules than without, minus what is seen of them.

    Args:
        config: The fields of a config.json.
        seq_len: Positions of a sequence.
        number: How many modules; those that the config declares unless given.
    """
    without = fc.from_hf(config, seq_len)
    if number is None:
        model = fc.from_hf(config, seq_len, mtp=True)
    else:
        model = dataclasses.replace(without, num_predictions=number)
    seen = observe(config, model.num_predictions, seq_len)

    def buffers(of: Any) -> int:
        return sum(buffer.count for buffer in of.params().buffers)

    batch_size = families.BATCH_SIZE
    count, less = (of.flops("dense", batch_size=batch_size) for of in (model, without))
    return {
        "parameters": model.params().total - without.params().total - seen.parameters,
        "buffers": buffers(model) - buffers(without) - seen.buffers,
        "forward": count.forward - less.forward - seen.forward,
        "backward": count.backward - less.backward - seen.backward,
    }


def cases(quick: bool) -> Iterable[tuple[str, families.Differences]]:
    """Differences on drawn configs of each family, with up to three modules, and published ones.

    Args:
        quick: A few drawn configs alone.
    """
    for family in FAMILIES:
        strategy = st.tuples(families.STRATEGIES[family], st.integers(1, 3), st.integers(1, 11))
        for config, number, seq_len in draw(strategy, 3 if quick else families.DRAWN):
            modules = {"model_type": family, "num_nextn_predict_layers": number}
            given = config | modules
            yield f"{given}, {seq_len} positions", compare(given, seq_len)
        for case in () if quick else families.published(family):
            if case.config.get("num_nextn_predict_layers") != 0:
                yield case.name, compare(case.config, case.seq_len)
    for family in GENERAL:
        for index, case in enumerate(families.drawn(family, 1 if quick else 10)):
            number = 1 + index % 3
            yield f"{case}, {number} modules", compare(case.config, case.seq_len, number)
