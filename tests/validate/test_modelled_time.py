"""The modelled time: of tiny kernels by hand, and of what its parameters change."""

import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from validate.emulator import assembly
from validate.profile import scheduling, timing
from validate.profile.multiprocessor import simulate
from validate.profile.scheduling import Control, controls, scheduled

VALUES = {
    "global latency": 100, "global bytes": 32, "shared latency": 30, "special latency": 20,
    "other latency": 10, "product latency": 24, "products queued": 1, "accesses queued": 4,
    "barrier latency": 15, "start": 50, "warp products": 1.5, "launch": 0, "code line": 0,
    "least product": 0,
}  # fmt: skip


def control(stall=1, write=7, read=7, waits=()):
    return Control(stall, True, write, read, waits)


def word(given):
    bits = given.stall | given.yields << 4 | given.write << 5 | given.read << 8
    return struct.pack("<QQ", 0, (bits | sum(1 << 11 + b for b in given.waits)) << 41)


def counts(lines, sectors=0, wavefronts=1):
    """Of a kernel whose lines are each a text and its control word, every one executed once."""
    text = "\n".join(f"/*{16 * i:04x}*/ {line} ;" for i, (line, _) in enumerate(lines))
    instructions, labels = assembly.parsed(text)
    words = b"".join(word(given) for _, given in lines)
    memory = np.array([at.opcode in ("LDGSTS", "LDG", "LDS", "STS") for at in instructions])
    traffic = SimpleNamespace(sectors=sectors * memory, wavefronts=wavefronts * memory)
    code = assembly.Code("kernel", instructions, labels, (), words)
    return SimpleNamespace(code=code, executed=np.ones(len(lines), int), traffic=traffic)


def time(lines, warps=1, programs=1, at_once=1, sectors=0, **given):
    """Clocks of programs that execute a kernel from its first line to its last, and stalls."""
    executed = tuple(((0, len(lines) - 1),) for _ in range(warps))
    code = scheduled(counts(lines, sectors), **(VALUES | given))
    clocks, stalls = simulate(code, [executed] * programs, at_once)
    return clocks, dict(zip(scheduling.REASONS, stalls, strict=True))


def test_control_words_are_read():
    given = [control(5, 2, 3, (0, 4)), control(15)]
    assert controls(b"".join(map(word, given))) == given


EXPONENTIAL = [
    ("IADD3 R0, R1, R2, RZ", control(4)),
    ("MUFU.EX2 R3, R0", control(1, write=0)),
    ("FADD R4, R3, R3", control(4, waits=(0,))),
    ("EXIT", control()),
]


def test_a_straight_line_by_hand():
    # 0: the sum; 4: the exponential, 8 clocks of its unit and 20 more: 32; 36: the end.
    clocks, stalls = time(EXPONENTIAL)
    assert clocks == 32 + 4 + 1
    assert stalls["issued"] == 4
    assert stalls["fixed latency"] == 3 + 3  # after each sum; none after the exponential's clock
    assert stalls["special functions"] == 32 - 5
    assert sum(stalls.values()) == clocks


@pytest.mark.parametrize("more", [1, 17])
def test_a_slower_latency_is_waited_for(more):
    assert time(EXPONENTIAL, **{"special latency": 20 + more})[0] == 37 + more


def test_a_latency_that_nobody_waits_for_costs_nothing():
    alone = [*EXPONENTIAL[:2], ("EXIT", control())]
    assert time(alone)[0] == time(alone, **{"special latency": 200})[0] == 4 + 1 + 1


def test_warps_of_a_scheduler_share_its_units():
    # Warps 0 and 4 have one scheduler: the second one's exponential waits for 8 clocks of the
    # unit, of which one is the scheduler's anyway.
    apart, together = time(EXPONENTIAL, warps=4), time(EXPONENTIAL, warps=5)
    assert apart[0] == 37
    assert together[0] == 37 + 8
    assert together[1]["throttles"] > apart[1]["throttles"] == 0


def test_one_instruction_a_clock():
    # 8 warps of 10 instructions on each of 4 schedulers; each could issue every clock.
    lines = [("WARPSYNC.ALL", control())] * 9
    clocks, stalls = time([*lines, ("EXIT", control())], warps=32)
    assert clocks == 8 * 10
    assert stalls["issued"] == 32 * 10


COPY = [
    ("LDGSTS.E.BYPASS.128 [R0], desc[UR4][R2.64]", control()),
    ("LDGDEPBAR", control(write=0)),
    ("DEPBAR.LE SB0, 0x0", control()),
    ("EXIT", control()),
]


def test_copies_are_waited_for_by_group():
    # 16 sectors of 32 bytes at 32 bytes a clock, then 100; the wait is issued then.
    assert time(COPY, sectors=16)[0] == 16 + 100 + 1 + 1
    for left, clocks in ((1, 16 + 100), (0, 16 + 16 + 100)):  # the first group of two, or both
        wait = (f"DEPBAR.LE SB0, {left:#x}", control())
        found, stalls = time([*COPY[:2], *COPY[:2], wait, COPY[3]], sectors=16)
        assert found == clocks + 1 + 1
        assert stalls["copies"] == clocks - 4
    assert time(COPY, sectors=16, **{"global latency": 150})[0] == 16 + 150 + 1 + 1


def test_shared_memory_gives_a_wavefront_a_clock():
    load = ("LDS.128 R0, [R4]", control(write=0))
    lines = [load, load, ("FADD R1, R0, R0", control(waits=(0,))), ("EXIT", control())]

    def loaded(wavefronts, **given):
        code = scheduled(counts(lines, wavefronts=wavefronts), **(VALUES | given))
        clocks, stalls = simulate(code, [(((0, 3),),)], 1)
        return clocks, stalls[scheduling.THROTTLE]

    # Two loads of 4 wavefronts, and 30 until the data of the second are there.
    assert loaded(4)[0] == 2 * 4 + 30 + 1 + 1
    # Of 8 the second is issued when no more than 4 clocks wait, at 4 rather than 1.
    clocks, throttled = loaded(8)
    assert clocks == 2 * 8 + 30 + 1 + 1
    assert throttled == 8 - 4 - 1
    assert loaded(8, **{"accesses queued": 8})[1] == 0


def test_operands_are_read_before_results_are_there():
    store = ("STS.128 [R4], R0", control(read=0))
    lines = [store, ("MOV R0, RZ", control(waits=(0,))), ("EXIT", control())]
    assert time(lines)[0] == 1 + 1 + 1  # its wavefront is done at 1, nothing comes 30 later


def test_products_that_wait_are_few():
    product = ("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24", control())
    lines = [product, product, product, ("EXIT", control())]
    # One works and one waits at most: the third is issued when the first is done.
    clocks, stalls = time(lines)
    assert clocks == 64 + 1 + 1
    assert stalls["throttles"] == 64 - 2
    assert time(lines, **{"products queued": 2})[0] == 4


def test_products_keep_tensor_cores_busy():
    product = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24"
    wait = ("WARPGROUP.DEPBAR.LE gsb0, 0x0", control())
    lines = [(product, control()), (f"{product}, gsb0", control()), wait, ("EXIT", control())]
    # 2·64·128·16 FLOPs at 4,096 a clock are 64 clocks each; 24 more until they are there.
    assert time(lines, warps=4)[0] == 64 + 64 + 24 + 1 + 1
    # Another warpgroup's follow on the same tensor cores, before either's wait.
    assert time(lines, warps=8)[0] == 4 * 64 + 24 + 1 + 1
    # Of 16 columns, B's 512 bytes and A's 2,048 take 20 clocks of shared memory, 8 of products.
    narrow = [(text.replace("64x128x16", "64x16x16"), given) for text, given in lines]
    assert time(narrow, warps=4)[0] == 20 + 20 + 24 + 1 + 1


def test_a_warps_own_product_keeps_its_tensor_core_busy():
    lines = [("HMMA.16816.F32.BF16 R0, R4, R6, R8", control())] * 2 + [("EXIT", control())]
    # 2·16·8·16 FLOPs at 1,024 a clock are 4 clocks, and 6 at 1.5 times as many.
    assert time(lines)[0] == 6 + 1 + 1
    assert time(lines, **{"warp products": 1})[0] == 4 + 1 + 1
    assert time(lines, warps=4)[0] == 6 + 1 + 1
    assert time(lines, warps=5)[0] == 3 * 6 + 1 + 1


def test_a_barrier_waits_for_the_last():
    lines = [*EXPONENTIAL[:3], ("BAR.SYNC.DEFER_BLOCKING 0x0", control()), ("EXIT", control())]
    # The last of 5 warps arrives at 36 + 8, all go on 15 later, two of them on one scheduler.
    clocks, stalls = time(lines, warps=5)
    assert clocks == 44 + 15 + 1 + 1
    assert stalls["barriers"] >= 4 * 8


def test_programs_follow_one_another():
    assert time(EXPONENTIAL, programs=2)[0] == 2 * 37 - 1 + 50
    assert time(EXPONENTIAL, programs=2, at_once=2)[0] == 37


def test_a_launch_takes_as_long_as_its_busiest_multiprocessor():
    executed = (((0, 3),),)
    code = counts(EXPONENTIAL)
    alone, more = (
        timing.modelled(code, [executed] * n, 1, 2, 0.0, **VALUES) for n in (2, 3)
    )  # fmt: skip
    assert alone.least == alone.middle == alone.most == 37
    assert more.middle == 2 * 37 - 1 + 50
    floor = timing.modelled(code, [executed], 1, 2, 1e6, **VALUES)
    assert floor.middle == floor.bytes == 1e6


def test_the_multiprocessors_with_the_most_instructions_are_run():
    # Five additions of 4 clocks and an exit, on one; on the other fewer instructions, 37 clocks.
    many, few = ((*5 * [(0, 0)], (3, 3)),), (((0, 3),),)
    for simulated, clocks in ((1, 5 * 4 + 1), (2, 37)):
        found = timing.modelled(
            counts(EXPONENTIAL), [few, many], 1, 2, 0.0, simulated=simulated, **VALUES
        )
        assert found.middle == clocks


def test_a_program_that_no_multiprocessor_holds_is_refused():
    code = assembly.Code("wide", (), {}, (), registers=255)
    launch = SimpleNamespace(name="wide", code=code, num_warps=8, shared=100_000)
    assert timing.held_at_once(launch) == 1  # by registers; 2 by shared memory
    launch.shared = 240_000
    with pytest.raises(ValueError, match="wide needs 240,000 bytes of shared memory"):
        timing.held_at_once(launch)


def test_the_range_is_that_of_the_parameters():
    none = {"launch": 0, "code line": 0}
    found = timing.modelled(counts(EXPONENTIAL), [(((0, 3),),)], 1, 1, 0.0, **none)
    latency = scheduling.PARAMETERS["special latency"]
    assert (found.least, found.middle, found.most) == tuple(17 + x for x in latency[:3])
    slower = timing.Modelled(20, 40, 60)
    assert slower.against(timing.Modelled(10, 40, 80)) == (0.75, 2)
    assert timing.is_tie(*slower.against(timing.Modelled(10, 40, 80)))
    assert not timing.is_tie(*slower.against(timing.Modelled(30, 50, 70)))


def test_every_parameter_has_a_source_and_a_range_on_the_page():
    page = (Path(__file__).parents[2] / "docs" / "profiler.md").read_text()
    for name, (least, middle, most, source) in scheduling.PARAMETERS.items():
        assert f"| {name} | {least:g} | {middle:g} | {most:g} | {source} |" in page
        assert (least <= middle <= most) or (least >= middle >= most), name
        assert any(word in source for word in ("guess", "doi", "calibrated")), name


def test_a_launch_takes_time_and_so_does_code_that_is_new():
    # 8 instructions are a line of code. The second program finds it there.
    lines = [("NOP", control())] * 8 + [("EXIT", control())]
    at_once = time(lines, programs=2, at_once=2)[0]
    for fetch in (10, 40):
        clocks, stalls = time(lines, programs=2, at_once=2, **{"code line": fetch})
        assert clocks - at_once == 2 * fetch
        assert stalls["code"] > 0
    (least, middle, most), executed = scheduling.PARAMETERS["launch"][:3], [(((0, 8),),)]
    found = timing.modelled(counts(lines), executed, 1, 1, 0.0, **{"code line": 0})
    assert (found.middle - least, found.most - found.least) == (9 + middle - least, most - least)
