"""Kernels compiled for sm_90: one tile's products in each loop, nothing spilled, and twins."""

import dataclasses

import pytest

from kernels.attention.tilings import Tiling
from validate import compiled_record
from validate.witnesses import compiled_code
from validate.witnesses.compiled_code import Launch, compile_all, matrix_segments

# Every dtype, a wide head and narrow ones, with a prefix and without; what they all compile to is
# in the record of validate.compiled_record.
# The first one's tilings are given: what is asked of them below does not depend on what is shipped.
TILED = (("forward", Tiling(128, 64, 8, 3)), ("query", Tiling(128, 64, 8, 2)))
SHIPPED = [
    Launch("bfloat16", 73, tilings=TILED),
    Launch("float16", 249, prefix=0),
    Launch("float32", 25),
]
# The forward kernel spills by its tiling; the gradient of keys and values multiplies scores in both
# warpgroups, since 64 rows feed only one.
BAD = Launch(
    "bfloat16",
    128,
    prefix=0,
    tilings=(("forward", Tiling(128, 64, 4, 3)), ("key_value", Tiling(32, 64, 8, 2))),
)


@pytest.fixture(scope="module")
def compiled():
    return compile_all([*SHIPPED, BAD])


def of(compiled, launch, name="attention"):
    return [k for k in compiled if k.launch == launch and k.name.startswith(name)]


@pytest.mark.parametrize("launch", SHIPPED, ids=str)
def test_shipped_kernels_have_no_fault(compiled, launch):
    kernels = of(compiled, launch)
    # Forward, queries, keys and values; these for the prefix too, or one after the other.
    assert len(kernels) == 4
    for kernel in kernels:
        assert kernel.faults() == []
        assert len(kernel.segments) == len(kernel.loop_products)


@pytest.mark.record("python -m validate.compiled_record")
@pytest.mark.parametrize("launch", SHIPPED, ids=str)
def test_the_record_holds_what_is_compiled(compiled, launch):
    rows = [compiled_record.as_row(kernel) for kernel in of(compiled, launch, "")]
    record = {row["digest"]: row for row in compiled_record.read()}
    recorded = [row for row in rows if row["digest"] in record]
    assert len(recorded) == len(rows) or launch.tilings
    assert recorded
    for row in recorded:  # the record's may come from another launch of the same kernel
        of_launch = {name: row[name] for name in ("prefix", "group", "turned", "tuned for")}
        assert record[row["digest"]] | of_launch == row


def test_what_the_tilings_are_for(compiled):
    (forward,) = of(compiled, SHIPPED[0], "attention_forward")
    assert forward.programs_per_multiprocessor == 1
    # 16 bytes at a time, and 8 where a part has only 16 channels for all threads.
    assert set(forward.copies) == {8, 16}
    assert set(forward.instructions) == {"m64n16k16", "m64n64k16"}


def test_a_kernel_that_spills_is_found(compiled):
    (forward,) = of(compiled, BAD, "attention_forward")
    assert forward.spill_stores > 0
    assert any(fault.startswith("spills") for fault in forward.faults())


def test_products_that_two_warpgroups_repeat_are_found(compiled):
    kernels = of(compiled, BAD, "attention_key_value_gradient")
    assert kernels
    for kernel in kernels:
        # Of four products two are done twice.
        expected = 4 * kernel.product_operations
        assert {segment.operations for segment in kernel.segments} == {expected * 3 // 2}
        assert any("FLOPs in loops" in fault for fault in kernel.faults())


def test_other_faults_are_named(compiled):
    kernel = of(compiled, SHIPPED[0], "attention_forward")[0]
    changes = {
        "wgmma serialised": {"serialized": True},
        "bytes of shared memory": {"shared": 228 * 1024},
        "no wgmma": {"instructions": {"mma.sync": 8}},
        "no asynchronous copies": {"copies": {}},
        "products outside of loops": {
            "segments": tuple(dataclasses.replace(s, in_loop=False) for s in kernel.segments)
        },
        "FLOPs in loops": {"segments": kernel.segments[1:]},
    }
    for fault, change in changes.items():
        assert any(fault in found for found in dataclasses.replace(kernel, **change).faults())


def test_a_square_tiles_diagonal_need_not_be_a_loop(compiled):
    kernel = of(compiled, SHIPPED[0], "attention_forward")[0]
    first, *others = kernel.segments
    straight = (dataclasses.replace(first, in_loop=False), *others)
    assert dataclasses.replace(kernel, segments=straight).faults() == ["products outside of loops"]
    products = kernel.loop_products
    square = kernel.constants | {"BLOCK_QUERIES": 64, "BLOCK_KEYS": 64}
    operations = products[0] * 2 * 64 * 64 * 80
    straight = [dataclasses.replace(s, operations=operations) for s in straight]
    changed = dataclasses.replace(kernel, constants=square, segments=tuple(straight))
    assert changed.faults() == []
    straight[1] = dataclasses.replace(straight[1], in_loop=False)
    changed = dataclasses.replace(changed, segments=tuple(straight))
    assert changed.faults() == ["products outside of loops"]


def test_an_end_need_not_be_a_loop(compiled):
    kernel = of(compiled, SHIPPED[0], "attention_forward")[0]
    *others, last = kernel.segments
    straight = (*others, dataclasses.replace(last, in_loop=False))
    assert dataclasses.replace(kernel, segments=straight).faults() == []
    without = kernel.constants | {"HAS_PREFIX": False}
    changed = dataclasses.replace(kernel, constants=without, segments=straight[2:])
    assert changed.faults() == ["products outside of loops"]


def test_passes_alone(compiled):
    launch = Launch("bfloat16", 16, passes=("query",))
    assert [kernel.name for kernel in compile_all([launch])] == ["attention_query_gradient"]


def test_what_loops_execute(compiled):
    kernel = of(compiled, SHIPPED[0], "attention_forward")[0]
    tile = 2 * 2 * 128 * 64 * 80
    assert kernel.executed([2, 0, 3, 1]) == 6 * tile
    with pytest.raises(ValueError, match="shorter"):
        kernel.executed([2, 0])


CODE = """
        /*0000*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT, gsb0 ;
.L_x_1:
        /*0010*/                   HGMMA.64x32x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
.L_x_2:
        /*0020*/                   HGMMA.64x16x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*0028*/                   MUFU.EX2 R4, R5 ;
        /*0030*/               @P0 BRA `(.L_x_2) ;
        /*0040*/               @P1 BRA `(.L_x_3) ;
        /*0050*/                   HGMMA.64x8x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*0060*/              @!P0 BRA `(.L_x_1) ;
.L_x_3:
        /*0070*/                   EXIT ;
"""


def test_loops_are_told_from_what_surrounds_them():
    segments, instructions = matrix_segments(CODE, num_warps=8)
    # Innermost loops count; two warpgroups each issue 2 · 64 · n · 16.
    assert [(s.in_loop, s.operations) for s in segments] == [
        (False, 2 * 2 * 64 * (64 + 32) * 16),
        (True, 2 * 2 * 64 * 16 * 16),
        (False, 2 * 2 * 64 * 8 * 16),
    ]
    assert [s.instructions for s in segments] == [2, 3, 4]
    assert [s.special for s in segments] == [0, 1, 0]
    assert instructions == {f"m64n{n}k16": 1 for n in (8, 16, 32, 64)}


def test_compiled_code_with_the_interpreters_iterations_is_the_formula():
    ((case, missed),) = compiled_code.differences(compiled_code.SHAPES[:1])
    assert missed == {"executed": 0, "faults": 0}, case
