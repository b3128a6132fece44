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


@pytest.mark.parametrize("prefix", [0, 48, 100])
@pytest.mark.parametrize("queries", [1, 64, 70, 129])
def test_tiles_are_those_that_the_kernels_visit(queries, prefix):
    launches = tally(AttentionShape(1, queries, prefix, 1, 1, 9, torch.float16))
    names = {name: key for key, name in issue.KERNELS.items()}
    seen = set()
    for launch in launches:
        if not (pass_name := names.get(launch.name)):
            continue
        seen.add(pass_name)
        block = shipped_tiling(pass_name, 9, 2, queries + prefix)[:2]
        owned, visited = block[::-1] if pass_name == "key_value" else block
        trips = issue.trips(pass_name, owned, visited, queries, prefix)
        # Blocks of queries that end inside have a loop of their own, and the same tile.
        if not launch.constants.get("CAUSAL", True):
            assert trips["prefix"] == sum(launch.trips)
        elif pass_name == "key_value":
            assert (trips["diagonal"], trips["beside"]) == (launch.trips[0], sum(launch.trips[1:]))
        else:
            loops = issue.LAYOUTS[launch.name].loops[: len(launch.trips)]
            assert [trips[loop] for loop in loops] == list(launch.trips)
            assert len(loops) == (4 if prefix else 2)
    assert seen == set(issue.KERNELS)


def test_clocks_of_a_tile_and_of_a_launch():
    # Two products of 128 × 64 over 80 channels: 2 · 2 · 128 · 64 · 80 / 4096 = 640 clocks; of 8
    # warps 488 and 328 instructions at 4 a clock, 34 special functions of 32 threads at 16.
    # 128 · 64 scores are 32 for each of 256 threads: 488 / 32 = 15.25, 328 / 32 = 10.25.
    segments = (Segment(True, 2621440, 488, 34), Segment(True, 2621440, 328, 34))
    constants = {"BLOCK_QUERIES": 128, "BLOCK_KEYS": 64}
    diagonal, beside = issue.lines(kernel("attention_forward", constants, segments), 512)
    assert diagonal.clocks == (640, 976, 544)
    assert beside.clocks == (640, 656, 544)
    assert (diagonal.per_score, beside.per_score) == (15.25, 10.25)
    # 8 tiles on the diagonals of 4 blocks, 2 + 4 + 6 beside; the unit that binds in each is issue.
    assert (diagonal.launch(132 * 1000), beside.launch(132 * 1000)) == (8 * 976e3, 12 * 656e3)


def test_with_a_prefix_there_are_its_loops():
    segments = tuple(Segment(True, 1, instructions) for instructions in (4, 3, 2, 1))
    constants = {"BLOCK_QUERIES": 128, "BLOCK_KEYS": 64}
    found = issue.lines(kernel("attention_forward", constants, segments), 512, 100)
    # 4 blocks of queries: one whole block of the prefix each, and its end.
    assert [(x.loop, x.segment.instructions, x.trips) for x in found] == [
        ("diagonal", 4, 8), ("beside", 3, 12), ("prefix", 2, 4), ("prefix end", 1, 4),
    ]  # fmt: skip
    gradient = kernel("attention_key_value_gradient", constants | {"CAUSAL": False}, segments[:1])
    # Two blocks of 64 keys of the prefix, each with 4 of 128 queries.
    assert [(x.loop, x.trips) for x in issue.lines(gradient, 512, 100)] == [("prefix", 8)]


def test_the_peers_loops_are_told_apart_and_launches_added_up():
    plain, diagonal = Segment(True, 4194304, 562, 34), Segment(True, 4194304, 922, 34)
    blocks = {"BT": 128, "BS": 64}
    forward = kernel("parallel_attn_fwd_kernel", blocks, (plain, diagonal))
    keys = kernel("parallel_attn_bwd_kernel_dkv", blocks, (diagonal, plain), spill_stores=96)
    together = kernel(
        "_create_backward_kernel", {"BLOCK_Q_ROWS_SIZE": 64, "BLOCK_KV_COLS_SIZE": 64}, (plain,)
    )
    found, (headings, *launches) = issue.report([together, keys, forward], 512, 132)
    of = [issue.HEADINGS.index(x) for x in ("pass", "whose", "loop", "instructions", "spilled")]
    assert [tuple(line[x] for x in of) for line in found] == [
        ("forward", "fla-core", "beside", "562", "0"),
        ("forward", "fla-core", "diagonal", "922", "0"),
        ("key_value", "fla-core", "beside", "562", "96"),
        ("key_value", "fla-core", "diagonal", "922", "96"),
        ("gradients", "fa-triton", "all", "562", "0"),
    ]
    assert headings == ["head dim", "launch", "ours", "fla-core", "fa-triton"]
    # 12 tiles of 2 · 562 clocks and 8 of 2 · 922; 8 + 28 of 64 × 64 of 2 · 562.
    assert launches == [
        ["73", "forward", "", "28", ""],
        ["73", "key_value", "", "28", ""],
        ["73", "gradients", "", "28", "40"],
    ]


@pytest.mark.parametrize("installed", [issue.fla, issue.flash_attention_triton])
def test_without_a_peer_there_is_a_way_to_get_it(installed, monkeypatch, tmp_path):
    monkeypatch.setattr(issue, "PEER_FOLDER", tmp_path)
    monkeypatch.setattr(issue.sys, "path", [])
    assert issue.compile_peer(installed, (64,), 128, 1) == []
    assert all(peer in issue.INSTALL for peer in issue.PEERS)


def test_what_is_compiled_has_the_tilings_of_the_positions_asked_for(monkeypatch, capsys):
    wanted = []
    monkeypatch.setattr(issue, "compile_all", lambda launches: wanted.extend(launches) or [])
    assert issue.compare((73, 73), queries=2048, prefix=2048) == 0
    (launch,) = wanted
    assert (launch.head_dim, launch.prefix, launch.keys) == (73, 2048, 4096)
    assert "fla-core" not in capsys.readouterr().out  # it has no prefix


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"head_dims": (64, 300)}, "head-dims = 64 300: expected one or more from 1 to 256"),
        ({"head_dims": ()}, "head-dims = none: expected one or more from 1 to 256"),
        ({"queries": 0}, "queries = 0"),
        ({"prefix": -1}, "prefix = -1"),
        ({"batch": 0}, "batch = 0"),
        ({"heads": -8}, "heads = -8"),
    ],
)
def test_a_wrong_size_is_refused_in_a_line(wrong, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        issue.compare(**wrong)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
