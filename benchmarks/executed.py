"""What our kernels issue for a shape, by the counter's formula: a kernel's name, and its FLOPs."""

from __future__ import annotations

from benchmarks.shapes import Shape
from flopcount.executed import tiles_by_key_block, tiles_by_query_block, tiles_in_rectangle
from kernels.attention.tilings import KERNELS
from models.throughput import tiling_of


def executed_ops(shape: Shape, element_size: int) -> dict[str, int]:
    """FLOPs that each kernel issues in a forward and a backward pass, all its launches together.

    Per kernel: heads · tiles visited · products per tile · 2·M·J·c̄; the prefix and the latents are
    two ranges of keys.

    Args:
        shape: the attention call.
        element_size: bytes of an element, which decide the tiling.

    Source: :mod:`flopcount.executed`.
    """
    tiling = tiling_of(shape.head_dim, element_size, shape.queries + shape.prefix)
    products = {"forward": 2, "key_value": tiling.key_value_products, "query": 3}
    found = {}
    for name, kernel in KERNELS.items():
        block = getattr(tiling, name)
        square = tiles_by_key_block if name == "key_value" else tiles_by_query_block
        tiles = square(shape.queries, block)
        tiles += tiles_in_rectangle(shape.queries, shape.prefix, block)
        per_tile = 2 * block[0] * block[1] * tiling.padded(shape.head_dim)
        found[kernel] = shape.batch * shape.heads * tiles * products[name] * per_tile
    return found
