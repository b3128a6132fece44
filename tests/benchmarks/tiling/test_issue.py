"""Clocks of a tile and of a launch, by hand and against what the kernels' loops do."""

import inspect
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl

from benchmarks.tiling import issue, tune
from kernels.attention import backward, forward, tiles
from kernels.attention.tilings import PASSES, TILINGS, Tiling, padded_head_dim, shipped_tiling
from models.results import read_table
from validate.compiled_record import MISSING
from validate.witnesses import compiled_code
from validate.witnesses.compiled_code import CompiledKernel, Launch, Segment, compile_all
from validate.witnesses.kernel_tally import AttentionShape, tally
from validate.witnesses.processes import triton_processes

pytestmark = pytest.mark.interpreter
ROOT = Path(__file__).parent.parent.parent.parent
NOTES = (ROOT / "kernels/attention/NOTES.md").read_text(encoding="utf-8")
SCORES = {"forward": 32, "key_value": 16, "query": 32}
"""Scores of a thread that the notes state instructions for."""


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
    constants = {"BLOCK_QUERIES": 128, "BLOCK_KEYS": 64, "HAS_PREFIX": False}
    diagonal, beside = issue.lines(kernel("attention_forward", constants, segments), 512, 0)
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
    with pytest.raises(ValueError, match="3 loops, expected"):
        issue.lines(kernel("attention_forward", constants, segments[:3]), 512, 100)
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
    found, (headings, *launches) = issue.report([together, keys, forward], 512, 132, 0)
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


@triton.jit
def _forward_kernel(x, head_dim):
    """A peer's kernel by name, whose code is one for all multiples of 16."""
    tl.store(x, head_dim)


def peer():
    return lambda queries, heads, head_dim: _forward_kernel[(1,)](torch.empty(1), head_dim)


def test_a_kernel_that_serves_several_head_dims_is_there_for_each():
    with triton_processes(interpret=False) as pool:
        kernels = pool.submit(issue.compile_peer, peer, (64, 96, 73), 128, 1).result()
    assert [kernel.launch.head_dim for kernel in kernels] == [64, 96, 73]
    assert kernels[0].digest == kernels[1].digest != kernels[2].digest


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


def rows(text):
    """Cells of the tables in a text by their first cell."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in cells}


_BEFORE, _AFTER = NOTES.split("## As shipped, after measuring")
COUNTED = rows(_BEFORE)
_SHIPPED, _MASKED = _AFTER.split("Instructions that a masked loop")
_MASKED, _LARGER, _PARTS = re.split("Registers bind|In masked loops", _MASKED)
SHIPPED, MASKED, LARGER, PARTS = map(rows, (_SHIPPED, _MASKED, _LARGER, _PARTS))
TUNING = ROOT / "benchmarks/results/nvidia-h200/tuning/tilings.csv"


def test_the_notes_have_the_tiles_that_ship_and_shares_of_what_was_before():
    assert {row.split(",")[0] for row in SHIPPED} >= {str(c) for c in issue.HEAD_DIMS}
    for case, cells in list(SHIPPED.items())[2:]:
        head_dim, keys = (int(size.replace(",", "")) for size in case.split(", "))
        before = COUNTED[f"{head_dim}, before"]
        aim = 0.85 if head_dim in (64, 96, 128) else 0.80
        for pass_name, cell, old in zip(PASSES, cells, before, strict=True):
            tiling = shipped_tiling(pass_name, head_dim, 2, keys)
            tile, counts, bold, shares = re.fullmatch(
                r"(.*): (.*) \((\*\*)?([^*]*)(?:\*\*)?\)", cell
            ).groups()
            assert tile == f"{tiling.block_queries} × {tiling.block_keys}", case
            shares = [float(share) for share in shares.split(", ")]
            for new, was, share in zip(counts.split(" / "), old.split(" / "), shares, strict=True):
                assert share == pytest.approx(int(new) / int(was), abs=0.0075)
            assert bool(bold) == (max(shares) > aim)


def larger_tiles():
    """Of each tile that ships and misses its aim, what the notes have of larger ones."""
    known = tune.facts()
    times = {}
    for row in read_table(TUNING):
        width = padded_head_dim(int(row["head_dim"]))
        if row["status"] == "ok" and row["batch"] == "80":
            ms = f"{float(row['ms']):.3f} ms"
            times[row["pass"], width, row["prefix"], row["tiling"]] = ms

    def scores(tiling):  # of a thread
        return tiling.block_queries * tiling.block_keys / (32 * tiling.num_warps)

    def warps(case):  # of a multiprocessor
        return known[case].programs_per_multiprocessor * case[2].num_warps

    def cell(case, prefix):
        fact, tiling = known[case], tune.written(case[2])
        ms = times.get((*case[:2], prefix, tiling), "not timed")
        return f"`{tiling}`: {fact.registers}, {fact.programs_per_multiprocessor}, {ms}"

    found = {}
    for at, cells in list(SHIPPED.items())[2:]:
        head_dim, keys = (int(size.replace(",", "")) for size in at.split(", "))
        for pass_name, said in zip(PASSES, cells, strict=True):
            width = padded_head_dim(head_dim)
            ships = pass_name, width, shipped_tiling(pass_name, head_dim, 2, keys)
            heading = f"{pass_name}, {width}, `{tune.written(ships[2])}`"
            if "**" not in said or heading in found:
                continue
            larger = [
                case
                for case, fact in known.items()
                if case[:2] == ships[:2] and not fact.faulty and warps(case) >= warps(ships)
                if scores(case[2]) > scores(ships[2])
            ]
            prefix = str(keys - 512)
            _, ours = cell(ships, prefix).split(": ")
            found[heading] = [ours, "; ".join(cell(case, prefix) for case in larger) or "none"]
    return found


def test_the_notes_have_the_larger_tiles_that_keep_as_many_warps():
    assert dict(list(LARGER.items())[2:]) == larger_tiles()


def test_the_notes_say_why_a_faster_tile_does_not_ship():
    launches = []
    for group, cap in ((4, 168), (1, None)):
        tilings = (("forward", Tiling(64, 64, 4, 2, cap)),)
        of = dict(group=group, tilings=tilings, passes=("forward",))
        launches.append(Launch("bfloat16", 96 - MISSING, 768, **of))
    grouped, padded = compile_all(launches, jobs=1)
    notes = " ".join(NOTES.split())
    assert f"padded by {MISSING} channels it spills {grouped.spill_stores} bytes." in notes
    assert padded.programs_per_multiprocessor == 2
    assert f"it takes {padded.registers} registers where heads are padded so" in notes


@pytest.fixture(scope="module")
def compiled():
    """Lines of 73 channels by variant, pass and loop: as shipped with and without a prefix, and
    with the tilings that static counts chose.
    """
    chosen = tuple(
        (name, next(x for width, x in TILINGS[name, 2].items() if padded_head_dim(73) <= width))
        for name in PASSES
    )
    variants = {
        "shipped": Launch("bfloat16", 73, 768, passes=PASSES),
        "counted": Launch("bfloat16", 73, 768, passes=PASSES, tilings=chosen),
        "no prefix": Launch("bfloat16", 73, 0, passes=PASSES),
    }
    names = {launch: name for name, launch in variants.items()}
    return {
        (names[kernel.launch], line.layout.pass_name, line.loop): line
        for kernel in compile_all(variants.values(), jobs=1)
        for line in issue.lines(kernel, 512, kernel.launch.prefix)
    }


def test_the_notes_have_what_the_kernels_compile_to(compiled):
    for variant, cells in (("shipped", SHIPPED["73, 1,280"]), ("counted", COUNTED["73"])):
        for pass_name, cell in zip(PASSES, cells, strict=True):
            found = [
                int(compiled[variant, pass_name, loop].per_score * SCORES[pass_name] + 0.5)
                for loop in ("beside", "prefix")
            ]
            assert "{} / {} (".format(*found) in cell
    for pass_name, cell in zip(PASSES, MASKED["73, 1,280"], strict=True):
        plain, masked = (compiled["shipped", pass_name, x] for x in ("beside", "diagonal"))
        more = round(masked.per_score - plain.per_score, 1)
        told = f"**{more}**" if masked.segment.in_loop else "once"
        programs = plain.kernel.programs_per_multiprocessor
        assert re.fullmatch(rf"{re.escape(told)}, .*; {programs}, was 1", cell)
        assert not plain.kernel.faults()


def masks():
    """Lines that compare positions of scores, or select by it, by file."""
    count, first = compiled_code.inspect_source(tiles.not_before)
    lines = {"tiles.py": set(range(first, first + count))}
    for module in (forward, backward):
        text = inspect.getsource(module).splitlines()
        lines[f"{module.__name__.rpartition('.')[2]}.py"] = {
            number for number, line in enumerate(text, 1) if re.search("tl.where|inside =", line)
        }
    return lines


def of_masks(launch):
    """Instructions of each loop by pass, and those of them that come from :func:`masks`."""
    codes, lines, segments = [], masks(), compiled_code.matrix_segments

    def noted(code, num_warps):
        codes.append((code, num_warps))
        return segments(code, num_warps)

    with mock.patch.object(compiled_code, "matrix_segments", noted):
        kernels = compiled_code.compile_launch(launch)
    counted = {}
    for kernel, (code, num_warps) in zip(kernels, codes, strict=True):
        masked, marked = False, []
        for line in code.replace("MUFU", "").splitlines():
            if source := re.search(r'//## File ".*/(.*)", line (\d+)', line):
                masked = int(source[2]) in lines.get(source[1], ())
            marked.append(line.replace(";", "MUFU ;") if masked else line)
        special, _ = segments("\n".join(marked), num_warps)  # what is marked counts as special
        for line, segment in zip(issue.lines(kernel, 512, launch.prefix), special, strict=False):
            counted[line.layout.pass_name, line.loop] = segment.instructions, segment.special
    return counted


def test_the_notes_have_what_masked_loops_are_made_of():
    names = dict(zip(("forward", "key and value gradients", "query gradient"), PASSES, strict=True))
    launches = {c: Launch("bfloat16", c, 768, keys=1280, passes=PASSES) for c in (73, 96, 128)}
    with triton_processes(interpret=False, jobs=1) as pool:
        counted = dict(zip(launches, pool.map(of_masks, launches.values()), strict=True))
    for said, cells in list(PARTS.items())[2:]:
        name, head_dim = re.match(r"(.*) at (\d+),", said).groups()
        of = counted[int(head_dim)]
        loops = ("prefix", "prefix end") if "end of the prefix" in said else ("beside", "diagonal")
        (plain, none), (masked, parts) = (of[names[name], loop] for loop in loops)
        assert none == 0
        assert cells == [str(masked - plain), str(parts), str(masked - plain - parts)], said


def test_the_readme_has_clocks_of_the_tilings_that_ship(compiled):
    kernels = {name: x.kernel for (of, name, _), x in compiled.items() if of == "no prefix"}
    _, (_, *launches) = issue.report(kernels.values(), 512, 80 * 8, 0)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = ("forward", "key and value gradients", "query gradient", "both gradients")
    for name, (_, _, ours) in zip(names, launches, strict=True):
        assert f"| 73 | {name} | {ours} |" in readme
