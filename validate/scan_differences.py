"""Where torch's FlopCounterMode and level ``dense`` part in blocks with a scan, as formulas.

Each is what the counter reports above (or, negative, below) the level, for one layer, forward and
backward; none looks at the formula that it is added to. Letters as in :mod:`flopcount.recurrent`;
B sequences, w taps, T chunks.
"""

from __future__ import annotations

from typing import Any

from flopcount.recurrent import GatedDeltaNet, LightningAttention, Mamba1, Mamba2

Differences = dict[str, tuple[int, int]]


def convolution(batch: int, length: int, channels: int, taps: int) -> tuple[int, int]:
    """A depthwise convolution, work to us: w multiply-adds for n + w - 1 outputs, w - 1 cut off.

    Its backward pass counts as much for the input's gradient, and for the weight's as if every
    channel met every other: the counter's formula does not read the number of groups.
    """
    once = 2 * batch * (length + taps - 1) * channels * taps
    return once, once + once * channels


def differences(block: Any, batch: int, length: int) -> Differences:
    """What the counter sees otherwise in a layer, by reason.

    Args:
        block: One of the four blocks with a scan.
        batch: B.
        length: n.

    Raises:
        TypeError: If the block is another.

    """
    if isinstance(block, LightningAttention):
        state = 2 * batch * block.num_heads * block.head_dim**2
        last = (length - 1) % block.chunk + 1
        return {
            # The first chunk reads a state of zeros, which takes no gradient; nothing reads the
            # state after the last, so neither key nor value does.
            "states at the ends": (0, -state * (min(length, block.chunk) + 2 * last)),
        }
    if isinstance(block, GatedDeltaNet):
        heads = batch * block.num_value_heads
        key, value, chunk = block.key_dim, block.value_dim, block.chunk
        solved = heads * -(-length // chunk) * chunk * (key + value)
        channels = 2 * block.num_key_heads * key + block.num_value_heads * value
        return {
            "convolution": convolution(batch, length, channels, block.taps),
            # Substitution is not counted. Of its two gradients the right-hand side's is another,
            # the system's a whole product of C² where half is needed.
            "triangular systems": (
                -solved * (chunk - 1),
                2 * solved * chunk - 2 * solved * (chunk - 1),
            ),
            # As above; the first chunk reads its zeros twice.
            "states at the ends": (0, -heads * 8 * chunk * key * value),
        }
    if isinstance(block, Mamba2):
        channels = block.num_heads * block.head_dim + 2 * block.groups * block.state
        return {"convolution": convolution(batch, length, channels, block.taps)}
    if isinstance(block, Mamba1):
        update = 2 * batch * length * block.inner * block.state
        return {
            "convolution": convolution(batch, length, block.inner, block.taps),
            # One channel's update is executed as two element-wise products.
            "scan update": (-update, -2 * update),
        }
    raise TypeError(f"block = {block!r}: expected one with a scan")
