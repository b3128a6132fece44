"""What our kernels issue for a shape, by the counter's formula: a kernel's name, and its FLOPs."""

from __future__ import annotations

from benchmarks.attention.shapes import Shape
from flopcount.masks import Causal, Full, Owner
from kernels.attention.tilings import KERNELS
from models.training.throughput import tiling_of


def executed_ops(shape: Shape, element_size: int) -> dict[str, int]:
    """FLOPs that each kernel issues in a forward and a backward pass, all its launches together.

    Per kernel: heads · tiles visited · products per tile · 2·M·J·c̄; the prefix and the latents are
    two ranges of keys.

    Args:
        shape: The attention call.
        element_size: Bytes of an element, which decide the tiling.

    Source: :mod:`flopcount.executed`.
    """
    tiling = tiling_of(shape.head_dim, element_size, shape.queries + shape.prefix)
    products = {"forward": 2, "key_value": tiling.key_value_products, "query": 3}
    flops = {}
    for name, kernel in KERNELS.items():
        block = getattr(tiling, name)
        owner: Owner = "keys" if name == "key_value" else "queries"
        tiles = Causal().tiles(shape.queries, shape.queries, block, owner)
        tiles += Full().tiles(shape.queries, shape.prefix, block, owner)
        per_tile = 2 * block[0] * block[1] * tiling.padded(shape.head_dim)
        flops[kernel] = shape.batch * shape.heads * tiles * products[name] * per_tile
    return flops
