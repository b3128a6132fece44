"""What the kernels compile to for Hopper: wide accesses before the attention, 64-bit offsets."""

import re

import pytest
import torch
import triton
import triton.language as tl

from kernels.attention.launches import launch_backward, launch_forward
from kernels.attention.preparation import launch_preparation, padded
from validate.witnesses.compiled_code import compiling
from validate.witnesses.processes import triton_processes


@triton.jit
def narrow_offsets(x, stride):
    """A twin whose offset wraps: program times stride in 32 bits."""
    tl.store(x + tl.program_id(0) * stride, 0.0)


def compiled():
    """Name, channels loaded, stored, turned or not, ptxas's log, Triton's code and PTX of each."""

    def drawn(*shape):
        return torch.empty(shape, dtype=torch.bfloat16)

    found = []
    with compiling(found):
        for loaded, stored in ((64, 64), (73, 80), (80, 73)):
            q, k = drawn(2, 512, 8, loaded), drawn(2, 1280, 8, loaded)
            # Half of a head turns, and all of one that has several parts.
            table = torch.empty(1, 1280, 18 if loaded == 64 else 36, 2)
            launch_preparation(q, k, None, table, stored, stored < loaded)
        q, k, out = drawn(2, 512, 8, 73), drawn(2, 1280, 8, 73), drawn(2, 512, 8, 73)
        operands = padded(q, k, k, None, None, head_dim=73)
        launch_forward(*operands, 0.1, 73)
        launch_backward(out, *operands, out, torch.empty(2, 8, 512), 0.1, 3 * [73])
        narrow_offsets[(4,)](q, 4099)
    return [
        (
            kernel.metadata.name,
            (options.get("LOADED"), options.get("STORED"), options.get("TURNED", 0) > 0),
            log,
            kernel.asm["ttir"],
            kernel.asm["ptx"],
        )
        for kernel, log, options, _ in found
    ]


@pytest.fixture(scope="module")
def kernels():
    with triton_processes(interpret=False) as pool:
        return pool.submit(compiled).result()


def accesses(ptx, kind):
    """Bytes of each global load or store that stands in the code."""
    found = re.findall(rf"{kind}\.global(?:\.\w+)*?(?:\.v(\d))?\.b(\d+)", ptx)
    return {int(width or 1) * int(bits) // 8 for width, bits in found}


def test_the_pass_before_the_attention_spills_nothing_and_moves_16_bytes_at_a_time(kernels):
    seen = {
        channels: (accesses(ptx, "ld"), accesses(ptx, "st"))
        for name, channels, log, _, ptx in kernels
        if name == "prepare_rows" and "0 bytes stack frame, 0 bytes spill stores" in log
    }
    assert seen[64, 64, True] == ({16}, {16})
    # Rows of 73 channels start at any multiple of 2 bytes; those of 80, their padded form, at 16.
    # A thread's part of the 16 channels from 64 on is 8 bytes.
    assert seen[73, 80, True] == ({2, 16}, {8, 16})
    assert seen[73, 80, False] == ({2}, {8, 16})
    assert seen[80, 73, True] == ({8, 16}, {2})


def narrow(ttir):
    """Offsets in 32 bits that move a pointer to 16-bit rows outside of a tile.

    Statistics, in fp32, have one element a position, and positions fit 32 bits.
    """
    return re.findall(r"tt\.addptr [^:]*: !tt\.ptr<[^>]*16>, i32", ttir)


def test_pointers_move_by_64_bits(kernels):
    names = {name for name, *_ in kernels}
    assert names == {
        "prepare_rows",
        "attention_forward",
        "row_products",
        "attention_key_value_gradient",
        "attention_query_gradient",
        "narrow_offsets",
    }
    for name, _, _, ttir, _ in kernels:
        assert "tt.addptr" in ttir
        assert bool(narrow(ttir)) == (name == "narrow_offsets"), name
