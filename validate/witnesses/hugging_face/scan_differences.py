"""Where torch's FlopCounterMode and level ``dense`` part in blocks with a scan, as formulas.

Each is what the counter reports above (or, negative, below) the level, for one layer, forward and
backward; none looks at the formula that it is added to. Letters as in :mod:`flopcount.recurrent`;
B sequences, w taps, T chunks.
"""

from __future__ import annotations

from typing import Any

from flopcount.recurrent import GatedDeltaNet, LightningAttention, Mamba1, Mamba2

Differences = dict[str, tuple[int, int]]
CONVOLUTION = "convolution"
"""The term of a convolution, which is work; the others are products."""


def convolution(batch: int, length: int, channels: int, taps: int) -> tuple[int, int]:
    """A depthwise convolution, work to us: w multiply-adds for n + w - 1 outputs, w - 1 cut off.

    Its backward pass counts as much for the input's gradient, and for the weight's as if every
    channel met every other: the counter's formula does not read the number of groups.
    """
    once = 2 * batch * (length + taps - 1) * channels * taps
    return once, once + once * channels


def differences(block: Any, batch: int, length: int) -> Differences:
    """What the counter sees otherwise in a layer, by term.

    The first chunk reads a state of zeros, which takes no gradient; nothing reads the state after
    the last chunk, so what updates it takes none either.

    Args:
        block: One of the four blocks with a scan.
        batch: B.
        length: n.

    Raises:
        TypeError: If the block is another.

    """
    if isinstance(block, LightningAttention):
        state = 2 * batch * block.num_heads * block.head_dim**2
        first, last = min(length, block.chunk), (length - 1) % block.chunk + 1
        return {"scan read": (0, -state * first), "scan update": (0, -2 * state * last)}
    if isinstance(block, GatedDeltaNet):
        key, value, chunk = block.key_dim, block.value_dim, block.chunk
        heads, chunks = batch * block.num_value_heads, -(-length // chunk)
        state = 2 * heads * chunk * key * value
        # Substitution is not counted. Of its two gradients the right-hand side's is another, the
        # system's a whole product of C² where the strict triangle is needed.
        solved, squared = (
            2 * heads * chunks * pairs for pairs in (chunk * (chunk - 1) // 2, chunk**2)
        )
        channels = 2 * block.num_key_heads * key + block.num_value_heads * value
        return {
            CONVOLUTION: convolution(batch, length, channels, block.taps),
            "chunk value system": (-solved * value, (squared - 2 * solved) * value),
            "chunk key system": (-solved * key, (squared - 2 * solved) * key),
            "scan recall": (0, -state),
            "scan read": (0, -state),
            "scan update": (0, -2 * state),
        }
    if isinstance(block, Mamba2):
        channels = block.num_heads * block.head_dim + 2 * block.groups * block.state
        return {CONVOLUTION: convolution(batch, length, channels, block.taps)}
    if isinstance(block, Mamba1):
        # One channel's update is executed as two element-wise products.
        update = 2 * batch * length * block.inner * block.state
        return {
            CONVOLUTION: convolution(batch, length, block.inner, block.taps),
            "scan update": (-update, -2 * update),
        }
    raise TypeError(f"block = {block!r}: expected one with a scan")
