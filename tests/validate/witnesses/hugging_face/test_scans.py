"""Blocks with a scan against transformers' own modules, on the meta device."""

import dataclasses
import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flopcount.blocks import Norm
from flopcount.count import product_term
from flopcount.operations import Pass
from flopcount.recurrent import GatedDeltaNet, LightningAttention, Mamba1, Mamba2
from flopcount.rows import Product, Tensor
from validate.witnesses.hugging_face.scan_differences import convolution, differences

transformers = pytest.importorskip("transformers")
CONFIGURATIONS = 15


def executed(module, batch, length, channels, **arguments):
    """FLOPs that torch's counter sees, forward and backward, and those by operation."""
    module = module.to("meta").train()
    inputs = torch.empty(batch, length, channels, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        outputs = module(inputs, **arguments)
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    with FlopCounterMode(display=False) as backward:
        outputs.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def lightning(draw):
    from transformers.models.minimax.modeling_minimax import (
        MiniMaxConfig,
        MiniMaxLightningAttention,
    )

    block = LightningAttention(draw(3, 40), draw(1, 5), 2 * draw(1, 5), draw(1, 12))
    config = MiniMaxConfig(
        hidden_size=block.channels, num_attention_heads=block.num_heads,
        num_key_value_heads=1, head_dim=block.head_dim, block_size=block.chunk,
        num_hidden_layers=2, layer_types=["linear_attention"] * 2,
    )  # fmt: skip
    arguments = {"position_embeddings": None, "attention_mask": None}
    return block, MiniMaxLightningAttention(config, 0), arguments


def delta_net(draw):
    from transformers.models.qwen3_next.modeling_qwen3_next import (
        Qwen3NextConfig,
        Qwen3NextGatedDeltaNet,
    )

    key_heads = draw(1, 3)
    block = GatedDeltaNet(
        draw(3, 40),
        key_heads,
        key_heads * draw(1, 3),
        draw(1, 9),
        draw(1, 9),
        draw(1, 5),
        chunk=64,
    )
    config = Qwen3NextConfig(
        hidden_size=block.channels, linear_num_key_heads=block.num_key_heads,
        linear_num_value_heads=block.num_value_heads, linear_key_head_dim=block.key_dim,
        linear_value_head_dim=block.value_dim, linear_conv_kernel_dim=block.taps,
        num_hidden_layers=2, layer_types=["linear_attention"] * 2,
    )  # fmt: skip
    return block, Qwen3NextGatedDeltaNet(config, 0), {}


def mamba2(draw):
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    groups = draw(1, 3)
    heads, head_dim, expand = groups * draw(1, 3), 2 * draw(1, 6), draw(1, 2)
    # einsum multiplies sizes of 1 element by element, so they are drawn from 2 on.
    block = Mamba2(
        heads * head_dim // expand, heads, head_dim, draw(2, 9), groups, draw(1, 5), draw(2, 12),
        draw(0, 1) == 1, draw(0, 1) == 1,
    )  # fmt: skip
    config = Mamba2Config(
        hidden_size=block.channels, num_heads=heads, head_dim=head_dim, expand=expand,
        state_size=block.state, n_groups=groups, conv_kernel=block.taps, chunk_size=block.chunk,
        use_bias=block.bias, use_conv_bias=block.convolution_bias, num_hidden_layers=2,
    )  # fmt: skip
    return block, Mamba2Mixer(config, 0), {}


def mamba1(draw):
    from transformers.models.jamba.modeling_jamba import JambaConfig, JambaMambaMixer

    channels, expand = draw(2, 20), draw(1, 3)
    block = Mamba1(
        channels, expand * channels, draw(1, 9), draw(1, 7), draw(1, 5),
        draw(0, 1) == 1, draw(0, 1) == 1,
    )  # fmt: skip
    config = JambaConfig(
        hidden_size=channels, num_attention_heads=1, num_key_value_heads=1, mamba_expand=expand,
        mamba_d_state=block.state, mamba_dt_rank=block.rank, mamba_d_conv=block.taps,
        mamba_proj_bias=block.bias, mamba_conv_bias=block.convolution_bias, num_hidden_layers=2,
    )  # fmt: skip
    return block, JambaMambaMixer(config, 0), {}


# Lengths: shorter than a chunk, one and more of them, and what does not divide.
DRAWN = {lightning: (1, 40), delta_net: (1, 140), mamba2: (1, 40), mamba1: (1, 12)}


def counted(block, at, level="dense"):
    terms = [
        product_term(row, level, None, True, None)
        for row in block.rows(at)
        if isinstance(row, Product)
    ]
    return sum(term.forward for term in terms), sum(term.backward for term in terms)


def compared(block, module, arguments, batch, length, without=()):
    """What the counter sees, and what is expected: the count and the stated differences."""
    stated = differences(block, batch, length)
    more = [difference for reason, difference in stated.items() if reason not in without]
    expected = tuple(
        phase + sum(difference[index] for difference in more)
        for index, phase in enumerate(counted(block, Pass(batch, length)))
    )
    return executed(module, batch, length, block.channels, **arguments), expected


@pytest.mark.parametrize("draw_block", DRAWN)
def test_blocks_with_a_scan_are_what_transformers_executes(draw_block):
    generator = random.Random(draw_block.__name__)
    for _ in range(CONFIGURATIONS):
        block, module, arguments = draw_block(generator.randint)
        batch, length = generator.randint(1, 3), generator.randint(*DRAWN[draw_block])
        tensors = [row for row in block.rows(Pass(1, 1)) if isinstance(row, Tensor)]
        for is_buffer, held in ((False, module.parameters()), (True, module.buffers())):
            scalars = sum(row.count for row in tensors if row.is_buffer == is_buffer)
            assert scalars == sum(tensor.numel() for tensor in held), block
        seen, expected = compared(block, module, arguments, batch, length)
        assert seen == expected, (block, batch, length)


@pytest.mark.parametrize("draw_block", DRAWN)
def test_no_difference_can_be_left_out_and_no_size_be_wrong(draw_block):
    block, module, arguments = draw_block(random.Random(1).randint)
    for reason in differences(block, 2, 11):
        seen, expected = compared(block, module, arguments, 2, 11, without=[reason])
        assert seen != expected, reason
    for field in dataclasses.fields(block):
        size = getattr(block, field.name)
        if type(size) is int and field.name != "channels":
            other = dataclasses.replace(block, **{field.name: size + 1})
            seen, expected = compared(other, module, arguments, 2, 11)
            assert seen != expected, field.name


def test_another_block_has_no_differences_stated():
    with pytest.raises(TypeError, match="expected one with a scan"):
        differences(Norm("norm", 3), 1, 1)


def test_the_counter_ignores_the_groups_of_a_convolution_backward():
    batch, length, channels, taps = 2, 7, 6, 3
    layer = torch.nn.Conv1d(channels, channels, taps, groups=channels, padding=taps - 1)
    inputs = torch.empty(batch, channels, length, device="meta", requires_grad=True)
    layer = layer.to("meta")
    with FlopCounterMode(display=False) as forward:
        outputs = layer(inputs)
    with FlopCounterMode(display=False) as backward:
        outputs.sum().backward()
    # w multiply-adds for each of n + w - 1 outputs of each of 6 channels.
    once = 2 * 2 * (7 + 2) * 6 * 3
    assert forward.get_total_flops() == once
    # The input's gradient costs the same. So does the weight's, whose w·6 scalars are sums over
    # B·(n + w - 1) positions each; the counter says six times that.
    assert backward.get_total_flops() == once + 6 * once
    assert (once, 7 * once) == convolution(batch, length, channels, taps)
