"""Clocks of a tile and of a launch, by hand and against what the kernels' loops do."""

import pytest
import torch

from benchmarks.tiling import issue
from kernels.attention.tilings import shipped_tiling
from validate.witnesses.compiled_code import CompiledKernel, Launch, Segment
from validate.witnesses.kernel_tally import AttentionShape, tally

pytestmark = pytest.mark.interpreter


def kernel(name, constants, segments, **changes):
    given = dict(
        name=name, launch=Launch("bfloat16", 73, 0), constants=constants, num_warps=8,
        registers=200, stack=0, spill_stores=0, serialized=False, shared=80 * 1024,
        instructions={}, copies={}, segments=segments,
    )  # fmt: skip
    return CompiledKernel(**{**given, **changes})


@pytest.mark.parametrize("queries", [1, 31, 64, 70, 129])
def test_tiles_are_those_that_the_kernels_visit(queries):
    launches = tally(AttentionShape(1, queries, 0, 1, 1, 9, torch.float16))
    names = {name: key for key, name in issue.KERNELS.items()}
    seen = {names[x.name]: x.trips for x in launches if x.name in names}
    assert set(seen) == set(issue.KERNELS)
    for pass_name, (diagonal, *beside) in seen.items():
        block = shipped_tiling(pass_name, 9, 2, queries)[:2]
        owned, visited = block[::-1] if pass_name == "key_value" else block
        # Blocks of queries that end inside have a loop of their own, and the same tile.
        assert issue.trips(pass_name, owned, visited, queries) == (diagonal, sum(beside))


def test_clocks_of_a_tile_and_of_a_launch():
    # Two products of 128 × 64 over 80 channels: 2 · 2 · 128 · 64 · 80 / 4096 = 640 clocks; of 8
    # warps 488 and 328 instructions at 4 a clock, 34 special functions of 32 threads at 16.
    segments = (Segment(True, 2621440, 488, 34), Segment(True, 2621440, 328, 34))
    constants = {"BLOCK_QUERIES": 128, "BLOCK_KEYS": 64}
    diagonal, beside = issue.lines(
        kernel("attention_forward", constants, segments), 512, 132 * 1000
    )
    assert diagonal[5:9] == ["488", "640", "976", "544"]
    assert beside[5:9] == ["328", "640", "656", "544"]
    # 8 tiles on the diagonals of 4 blocks, 2 + 4 + 6 beside; the unit that binds in each is issue.
    assert (diagonal[9], beside[9]) == (f"{8 * 976:,}", f"{12 * 656:,}")


def test_the_peers_loops_are_told_apart_and_spills_are_named():
    plain, diagonal = Segment(True, 4194304, 562, 34), Segment(True, 4194304, 922, 34)
    blocks = {"BT": 128, "BS": 64}
    forward = kernel("parallel_attn_fwd_kernel", blocks, (plain, diagonal))
    keys = kernel(
        "parallel_attn_bwd_kernel_dkv", blocks, (diagonal, plain), stack=96, spill_stores=96
    )
    found = issue.report([keys, forward], 512, 132)
    assert [(x[1], x[4], x[5]) for x in found] == [
        ("forward", "beside", "562"), ("forward", "diagonal", "922"),
        ("key_value", "beside", "562"), ("key_value", "diagonal", "922"),
    ]  # fmt: skip
    assert all("spills 96 B" in x[10] for x in found[2:])


def test_without_the_peer_there_is_a_way_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(issue, "PEER_FOLDER", tmp_path)
    monkeypatch.setattr(issue.sys, "path", [])
    assert issue.compile_peer((64,), 128, 1) == []
    assert issue.PEER in issue.INSTALL
