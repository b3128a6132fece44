"""The assembled kernels, executed without a GPU: right, and each introduced error is seen."""

import collections
import contextlib
import csv
import dataclasses
import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kernels.attention.reference import reference_preparation
from models.results import between_marks
from tests.validate.emulated_kernels import edited
from validate.compiled_record import launched_kernels, shipped_kernels, shipped_launches
from validate.emulator import (
    assembly,
    cases,
    counts,
    decoding,
    drawn,
    launching,
    operations,
    report,
    safety,
    shipped,
)
from validate.emulator.__main__ import main
from validate.emulator.cases import (
    Case,
    counted,
    difference,
    differences,
    errors,
    launched,
    seen,
)
from validate.emulator.counts import (
    METRICS,
    METRICS_OF_FLOPS,
    METRICS_OF_PIPES,
    Traffic,
    count,
    pipe_of,
    sliced,
)
from validate.emulator.machine import Machine
from validate.emulator.memory import GlobalMemory, MachineError
from validate.emulator.safety import Safety, check
from validate.witnesses.compiled_code import Kernel, Launch, make_launches
from validate.witnesses.processes import triton_processes

# Heads read in place; grouped, turned, with the prefix apart; products without tensor cores. The
# matrix of validate runs many more: wide heads, which take a launch for each gradient, among them.
CASES = [
    Case("bfloat16", 73, 131, 100, 8, 8),
    Case("float16", 54, 35, 70, 4, 2, apart=True, pairs=13),
    Case("float32", 19, 70, 0, 2, 1),
]


@pytest.fixture(scope="module")
def pool():
    with triton_processes(interpret=False, jobs=2) as processes:
        yield processes


@pytest.fixture(scope="module")
def found(pool):
    return {case: pool.submit(errors, case) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_errors_are_those_of_plain_pytorch(found, case):
    assert max(found[case].result()) <= 1


# Each changes one instruction's text, in the forward kernel alone.
FAULTS = {
    "where a copy reads": (r"^(LDGSTS.*\.64)(\+0x[0-9a-f]+)?\]", r"\1+0x10]"),
    "where a copy goes": (r"^(LDGSTS\S* \[R\d+)(\+0x[0-9a-f]+)?\]", r"\1+0x2040]"),
    "a product too few": (
        r"^HGMMA\.64x64x16\S* (R\d+), R\d+, gdesc\[UR\d+\](\.tnspB)?, \1$",
        "NOP",
    ),
    "a product twice": (r"^(HGMMA.*), RZ, !UPT", r"\1, R24"),
    "another exponent": (r"^MUFU\.EX2", "MUFU.RCP"),
    "an order of bytes": (r"^(F2FP\S*) (R\d+), (R\d+), (R\d+)", r"\1 \2, \4, \3"),
    "a descriptor's address": (r"^(UIADD3\.64 \S+, \S+), 0x2,", r"\1, 0x4,"),
}


def faulty(case, fault):
    """Errors where the forward kernel has a fault."""

    def run(launch):
        if launch.name == "attention_forward":
            launch = edited(launch, *FAULTS[fault])
        launch.run()

    return max(errors(case, run))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_code_is_seen(pool, fault):
    assert not pool.submit(faulty, CASES[0], fault).result() <= 1


# Drawn calls.

QUICK = (3, 20, 22, 25)
"""Seeds of calls that take few seconds."""


@pytest.fixture(scope="module")
def drawn_calls(pool):
    return {seed: pool.submit(drawn.tried, seed) for seed in QUICK}


@pytest.mark.parametrize("seed", QUICK)
def test_drawn_calls_are_right_counted_and_safe(drawn_calls, seed):
    _, finding = drawn_calls[seed].result()
    assert finding.case == drawn.draw(seed)
    assert finding.holds, finding
    # Three of each pass over keys, two of that over rows, and what each kernel declares.
    assert len(finding.missed) >= 2 + 11 + 4


def judged_with(pattern, replacement, which):
    """What becomes of a call whose forward kernel has a fault."""

    class Faulty(shipped.Watched):
        def run(self, launch):
            wrong = launch.name == "attention_forward"
            super().run(edited(launch, pattern, replacement, which) if wrong else launch)

    return shipped.judged(Case("bfloat16", 64, 20, 70), Faulty())


def test_a_call_that_does_not_hold_is_told_by_what_it_lacks(pool):
    wrong = pool.submit(judged_with, *FAULTS["a product too few"], 0).result()
    assert not wrong.holds
    assert not wrong.share <= 1
    assert {name for name, number in wrong.missed.items() if number} == {"forward"}
    assert wrong.cells()["missed"] == str(wrong.missed["forward"])
    unsafe = pool.submit(judged_with, r"^BAR\.SYNC", "NOP", None).result()
    assert not unsafe.holds
    assert any(safety.RACE in text for text in unsafe.unsafe)
    assert unsafe.cells()["unsafe"] == str(len(unsafe.unsafe)) != "0"
    refused = pool.submit(judged_with, *REFUSED["outside of every tensor"], 0).result()
    assert not refused.holds
    assert any("outside of every tensor" in text for text in refused.unsafe)


def test_draws_are_of_every_kind():
    calls = [drawn.draw(seed) for seed in range(300)]
    assert len(set(calls)) == 300
    assert {case.dtype for case in calls} == {"bfloat16", "float16", "float32"}
    assert (min(x.head_dim for x in calls), max(x.head_dim for x in calls)) == (1, 256)
    assert set(drawn.IN_PLACE) <= {case.head_dim for case in calls}
    assert max(case.queries for case in calls) == drawn.LONGEST["bfloat16"]
    for kind in (
        lambda case: case.apart and case.prefix,
        lambda case: not case.prefix,
        lambda case: case.heads > case.key_heads > 1,
        lambda case: case.pairs,
        lambda case: case.batch > 1,
        lambda case: case.queries % 16 == 1,
    ):
        assert 0 < sum(map(bool, map(kind, calls))) < 300


def test_the_only_query_shows_what_a_chain_rounds():
    case = drawn.draw(6)
    assert (case.queries, case.heads, case.batch) == (1, 1, 1)
    tensors, angles, grad = case.operands()
    exact = [x.detach().double().requires_grad_() for x in tensors]
    truths = cases.results(cases.plain_attention, exact, angles.double(), grad)
    usuals = cases.results(cases.plain_attention, tensors, angles, grad)
    q, k, _ = (x.detach() for x in tensors)
    q, k = (reference_preparation(x, angles[:, -x.shape[1] :], 96)[0, :, 0] for x in (q, k))
    products = (q.double() * k.double()).T
    result, shares = truths[3].clone(), []
    for scores in (products.sum(0), chained(products).double()):
        weights = (scores / 96**0.5).softmax(0)
        result[0, :, 0] = weights[:, None] * grad[0, 0, 0].double()
        shares.append(cases.error_share(result, usuals[3], truths[3], 3))
    off = (chained(products) - products.sum(0)).abs().max()
    assert told(f"are off by up to {off:.1e}, alone {shares[1]:.2f} of the bound")
    assert shares[0] < 0.2


def missed_by(calls):
    return [{k: n for k, n in difference(case, seen(case)).items() if n} for case in calls]


def test_a_length_of_one_is_not_compiled_in(pool):
    calls = [
        Case("bfloat16", 16, 1, 19),
        Case("float32", 96, 1),
        Case("bfloat16", 16, 40, 1),
        Case("float16", 80, 1, 1),
        Case("float32", 16, 5, 1),
    ]
    assert pool.submit(missed_by, calls).result() == [{}] * len(calls)


def off(differences):
    return {said: missed for said, missed in differences if any(missed.values())}


def test_a_row_that_misses_or_is_of_other_kernels_is_off_in_the_matrix():
    rows = shipped.read()
    assert len(list(shipped.differences(rows))) == len(shipped.shipped_launches())
    assert off(shipped.differences(rows)) == {}
    rows[0] = rows[0] | {"missed": "2"}
    rows[1] = rows[1] | {"digest": "0" * 12}
    wrong = [{"missed": 2}, {"not executed with these kernels": 1}]
    assert list(off(shipped.differences(rows)).values()) == wrong
    assert len(off(shipped.differences(rows[2:]))) == 2
    rows = drawn.recorded()[:3]
    assert off(drawn.differences(rows)) == {}
    rows[0] = rows[0] | {"missed": "2"}
    rows[1] = rows[1] | {"digest": "0" * 12}
    assert list(off(drawn.differences(rows)).values()) == wrong


@pytest.mark.record("python -m validate.emulator.drawn")
def test_the_record_of_drawn_calls_is_of_the_code_at_hand(pool, drawn_calls):
    rows = drawn.recorded()
    seeds = [int(row["seed"]) for row in rows]
    assert seeds == list(range(len(rows)))
    assert len(rows) >= 24
    assert says(drawn.MARK, drawn.verdict(rows))
    for row in rows:
        assert row["unsafe"] == "0"
        assert row["missed"] == "0", row
    readme = (shipped.DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert f"{len(rows)} drawn calls" in readme
    over = {row["seed"]: row["share"] for row in rows if float(row["share"]) > 1}
    assert over == {"6": "1.016"}
    for row, identity in zip(rows, pool.map(drawn.identified, seeds), strict=True):
        assert row.items() >= identity.items()
    for seed, call in drawn_calls.items():
        again, _ = call.result()
        assert again == rows[seed] | {"seconds": again["seconds"]}


def test_an_earlier_row_of_a_drawn_call_stays_where_it_is_of_the_same_kernels(pool):
    identity = pool.submit(drawn.identified, 22).result()
    row = identity | {"share": "0.5", "missed": "0", "unsafe": "0", "seconds": "1"}
    assert pool.submit(drawn.tried, 22, row).result() == (row, None)
    again, finding = pool.submit(drawn.tried, 22, row | {"digest": "0" * 12}).result()
    assert finding is not None
    assert again["digest"] == row["digest"]


# What the text says, in a kernel of a few lines.


def kernel(text):
    numbered, at = [], 0
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith(".L"):
            numbered.append(line)
        else:
            numbered.append(f"/*{at:04x}*/ {line} ;")
            at += 16
    instructions, labels = assembly.parsed("\n".join(numbered))
    return assembly.Code("kernel", instructions, labels, ())


def run(text, warps=1, shared=256, memory=None, observers=(), constants=64, programs=1):
    code = kernel(text)
    machine = Machine(
        code, operations.decoded(code), np.zeros(constants, np.uint32),
        np.arange(programs)[:, None] * [1, 0, 0], warps, shared, memory or GlobalMemory(),
        observers=observers,
    )  # fmt: skip
    for observer in observers:
        observer.begin(machine)
    ended = []
    control = machine._control

    def watched(group, operation):
        if operation.wait == "exit":
            ended.append((group.warps.copy(), group.lanes.copy(), group.R.copy(), group.UR.copy()))
        return control(group, operation)

    machine._control = watched
    machine.run()
    return machine, ended


def values(text, register, **options):
    """A register of the first warp's lanes at the end of code that all of them end together."""
    _, [(_, _, registers, _)] = run(f"{text}\nEXIT", **options)
    return registers[register, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 7 · 5 + 2 and shifts, by hand.
        ("MOV R0, 0x7\nIMAD R1, R0, 0x5, RZ\nVIADD R1, R1, 0x2", 37),
        # 0xffffffff + 1 carries: 0 below, 1 + 1 above.
        ("MOV R0, 0xffffffff\nIADD3 R2, P0, R0, 0x1, RZ\nIADD3.X R1, RZ, 0x1, RZ, P0, !PT", 2),
        # 5 − 7 borrows: no carry.
        ("MOV R0, 0x5\nMOV R2, 0x7\nIADD3 R3, P0, R0, -R2, RZ\nSEL R1, RZ, 0x1, P0", 1),
        # 7 − 0: −0 is ~0 + 1, which carries.
        ("MOV R0, 0x7\nMOV R2, RZ\nIADD3 R3, P0, R0, -R2, RZ\nSEL R1, RZ, 0x1, P0", 0),
        # The high word of 2³¹ · 2³¹ = 2⁶², and of −2³¹ · −2³¹ · …: the same.
        ("MOV R0, 0x80000000\nIMAD.HI.U32 R1, R0, R0, RZ", 1 << 30),
        # −1 · 3 in 64 bits: the high word is all ones.
        ("MOV R0, 0xffffffff\nMOV R2, 0x3\nIMAD.WIDE R4, R0, R2, RZ\nMOV R1, R5", 0xFFFFFFFF),
        # (3 << 4) + 5.
        ("MOV R0, 0x3\nMOV R2, 0x5\nLEA R1, R0, R2, 0x4", 53),
        # −1 >> 25 logically is 127: what rounds a division by 128.
        ("MOV R0, 0xffffffff\nMOV R2, 0x1\nLEA.HI R1, R0, R2, RZ, 0x7", 128),
        ("MOV R0, 0xfffffff0\nSHF.R.S32.HI R1, RZ, 0x2, R0", 0xFFFFFFFC),
        ("MOV R0, 0x80000000\nMOV R2, 0x1\nSHF.L.U64.HI R1, R0, 0x1, R2", 3),
        ("MOV R0, 0x12345678\nMOV R2, 0x9abcdef0\nPRMT R1, R0, 0x5410, R2", 0xDEF05678),
        ("MOV R0, 0xc\nMOV R2, 0xa\nLOP3.LUT R1, R0, R2, RZ, 0x3c, !PT", 6),
        ("MOV R0, 0x1ff\nSGXT R1, R0, 0x9", 0xFFFFFFFF),
        # −3 is less than 2 with its sign, greater without.
        ("MOV R0, 0xfffffffd\nISETP.LT.AND P0, PT, R0, 0x2, PT\nSEL R1, RZ, 0x1, !P0", 1),
        ("MOV R0, 0xfffffffd\nISETP.LT.U32.AND P0, PT, R0, 0x2, PT\nSEL R1, RZ, 0x1, P0", 1),
        # Of 6 the two lowest bits are those of the predicates: 1 < 2, but not 3 < 2.
        (
            "UMOV UR0, 0x1\nUMOV UR1, 0x3\nUMOV UR2, 0x6\n"
            "UISETP.LT.AND UP0, UPT, UR0, 0x2, UPT\nUISETP.LT.AND UP1, UPT, UR1, 0x2, UPT\n"
            "UP2UR UR3, UPR, UR2, 0x3\nMOV R1, UR3",
            5,
        ),
        # 1.0 and 2.0 as bf16, in one register.
        ("MOV R0, 0x3f800000\nMOV R2, 0x40000000\nF2FP.BF16.F32.PACK_AB R1, R2, R0", 0x40003F80),
        # 1 + 2⁻⁹ lies between two of bf16, of which the even one is 1.
        ("MOV R0, 0x3f808000\nF2F.BF16.F32 R1, R0", 0x3F80),
        ("HFMA2.MMA R1, -RZ, RZ, 1.875, 0", 0x3F800000),
        # 2³ = 8.
        ("MOV R0, 0x40400000\nMUFU.EX2 R1, R0", 0x41000000),
        # (1 + 2⁻¹²)² − 1 − 2⁻¹¹ = 2⁻²⁴, which two roundings would lose.
        ("MOV R0, 0x3f800800\nMOV R2, 0xbf801000\nFFMA R1, R0, R0, R2", 0x33800000),
    ],
)  # fmt: skip
def test_what_an_instruction_does(text, expected):
    assert set(values(text, 1)) == {expected}


def test_every_table_of_bits():
    # Bits of a, b and c stand for all eight cases at once.
    for table in range(256):
        found = operations._looked_up(table, *map(np.uint32, (0xF0, 0xCC, 0xAA)), np.uint32(0xFF))
        assert found & 0xFF == table


def test_lanes_part_and_meet():
    text = """
        S2R R0, SR_TID.X
        MOV R1, 0x5
        ISETP.LT.AND P0, PT, R0, 0x7, PT
        BSSY B0, `(.L_x_1)
        @P0 BRA `(.L_x_0)
        VIADD R1, R1, 0x10
        BRA `(.L_x_2)
.L_x_0:
        VIADD R1, R1, 0x20
.L_x_2:
        BSYNC B0
.L_x_1:
        VIADD R1, R1, 0x1
    """
    assert values(text, 1).tolist() == [0x26] * 7 + [0x16] * 25


def test_lanes_that_leave_are_not_waited_for():
    # Lanes below 7 leave for the end; the others converge without them.
    text = """
        S2R R0, SR_TID.X
        MOV R1, RZ
        ISETP.LT.AND P0, PT, R0, 0x7, PT
        ISETP.LT.AND P1, PT, R0, 0x9, PT
        BSSY B0, `(.L_x_1)
        @P0 BREAK B0
        @P0 BRA `(.L_x_2)
        @P1 BRA `(.L_x_1)
        MOV R1, 0x1
.L_x_1:
        BSYNC B0
        VIADD R1, R1, 0x10
.L_x_2:
        EXIT
    """
    _, ended = run(text)
    found = {
        int(lane): registers[1, 0, lane]
        for _, lanes, registers, _ in ended
        for lane in np.flatnonzero(lanes[0])
    }
    assert found == {lane: 0 if lane < 7 else 16 if lane < 9 else 17 for lane in range(32)}


def test_warps_have_counters_of_their_own():
    # Warp w loops w + 1 times, and all meet at the barrier.
    text = """
        S2R R0, SR_TID.X
        SHF.R.U32.HI R0, RZ, 0x5, R0
        MOV R1, RZ
.L_x_0:
        VIADD R1, R1, 0x1
        ISETP.LE.AND P0, PT, R1, R0, PT
        @P0 BRA `(.L_x_0)
        BAR.SYNC.DEFER_BLOCKING 0x0
        EXIT
    """
    machine, ended = run(text, warps=3)
    rounds = {int(w): registers[1, i, 0] for ws, _, registers, _ in ended for i, w in enumerate(ws)}
    assert rounds == {0: 1, 1: 2, 2: 3}
    assert machine.executed.tolist() == [3, 3, 3, 6, 6, 6, 3, 3]


def test_a_barrier_that_a_warp_never_reaches():
    text = """
        S2R R0, SR_TID.X
        ISETP.LT.AND P0, PT, R0, 0x20, PT
        @P0 EXIT
        BAR.SYNC.DEFER_BLOCKING 0x0
        EXIT
    """
    with pytest.raises(MachineError, match=r"never comes.*BAR\.SYNC"):
        run(text, warps=2)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("IDP.4A.S8.S8 R0, R1, R2, R3", "opcode 'IDP'"),
        ("IMAD.LO R0, R1, R2, R3", "modifier 'LO'"),
        ("FADD.SAT R0, R1, R2", "modifier 'SAT'"),
        ("HSETP2.BF16_V2.FOO.AND P0, PT, R0, R1, PT", "form of a comparison"),
        ("HSETP2 P0, PT, R0, R1, PT", "form of a comparison"),
        ("MEMBAR", "fence"),
        ("MEMBAR.SC.GPU.FOO", "modifier 'FOO'"),
        ("HGMMA R24, gdesc[UR4], RZ, !UPT", "this form (IndexError"),
        ("LDC R0, c[0x3][0x10]", "constant bank 0x3"),
        ("LDC R0, c[0x0][0x30]", "constant 0x30"),
        ("ATOMG.E.ADD.S8 PT, RZ, desc[UR4][R2.64], R4", "modifier 'S8'"),
        ("HMMA.16832.S8.S8 R0, R4, R8, RZ", "accumulators"),
        ("CALL.ABS.NOINC `(.L_x_9)", "form of a call"),
        ("BAR.SYNC.DEFER_BLOCKING 0x1", "barrier"),
        ("S2R R0, SR_CLOCKLO", "special register"),
        ("MOV R0, B1", "operand 'B1'"),
        ("BRA `(.L_x_9)", "label"),
    ],
)
def test_what_is_not_known_is_named_with_its_line(line, what):
    text = f'//## File "/some/where.py", line 7\n/*0000*/ {line} ;'
    instructions, labels = assembly.parsed(text)
    code = assembly.Code("kernel", instructions, labels, ())
    with pytest.raises(assembly.UnknownCodeError, match=f"{re.escape(what)}.*some/where.py:7"):
        operations.decoded(code)


@pytest.mark.parametrize("section", [".rel.text.kernel", ".rela.text.kernel"])
def test_a_relocation_is_named_with_its_line(section):
    text = '/*0000*/ EXIT ;\n//## File "/some/where.py", line 7\n/*0010*/ MOV R0, 0x0 ;'
    instructions, _ = assembly.parsed(text)
    assembly.refuse_relocations(instructions, {section: b"", ".text.kernel": bytes(16)})
    named = rf"a relocation in {re.escape(section)} .*'MOV R0, 0x0' at 0x0010, some/where.py:7"
    with pytest.raises(assembly.UnknownCodeError, match=named):
        assembly.refuse_relocations(instructions, {section: (16).to_bytes(24, "little")})


def test_opcodes_are_those_of_the_triton_that_is_pinned():
    pinned = (shipped.DOCS.parent / "constraints.txt").read_text(encoding="utf-8").split()
    assert f"triton=={metadata.version('triton')}" in pinned


OPERANDS = (
    "", "B0", "`(.L_x_0)", "R4", "R4, R8", "R4, R8, R12", "R4, R8, R12, R16", "R4, R8, R12, PT",
    "P0, PT, R4, R8, PT", "R4, [R8]", "[R8], R4", "R4, desc[UR4][R2.64]", "desc[UR4][R2.64], R4",
    "PT, RZ, desc[UR4][R2.64], R4", "R4, P0, R8, R12, RZ", "PT, R4, R8, 0x1f, 0x1f",
    "UR4, UR8", "UR4, UR8, UR12",
)  # fmt: skip


@pytest.mark.parametrize("opcode", sorted({*decoding.DECODERS, *decoding.UNIFORM}))
def test_an_instruction_is_known_or_named_with_its_line(opcode):
    def decode(line):
        text = f'.L_x_0:\n//## File "/some/where.py", line 7\n/*0000*/ {line} ;'
        instructions, labels = assembly.parsed(text)
        operations.decoded(assembly.Code("kernel", instructions, labels, ()))

    for operands in OPERANDS:
        with contextlib.suppress(assembly.UnknownCodeError):
            decode(f"{opcode} {operands}".strip())
        with pytest.raises(assembly.UnknownCodeError, match=rf"{opcode}\.FOO.*some/where\.py:7"):
            decode(f"{opcode}.FOO {operands}".strip())


def test_what_is_not_there_at_run_time_is_named_with_its_line():
    with pytest.raises(assembly.UnknownCodeError, match=r"'B0'.*BSYNC B0.* at 0x0"):
        run("BSYNC B0\nEXIT")


def test_lines_that_are_none():
    with pytest.raises(assembly.UnknownCodeError, match="no known kind"):
        assembly.parsed("something else")
    with pytest.raises(assembly.UnknownCodeError, match="follow"):
        assembly.parsed("/*0010*/ EXIT ;")


# Counts.


def _both_counts(case):
    """Executed instructions and traffic, without results and with them."""
    for some, every in zip(counted(case), counted(case, results=True), strict=True):
        yield (some.executed == every.executed).all(), some.memory() == every.memory()


def both_counts(case):
    return list(_both_counts(case))


def test_counts_need_no_results(pool):
    found = pool.submit(both_counts, CASES[0]).result()
    # Heads padded and forward; rows, heads padded, keys and values of both ranges, queries.
    assert found == [(True, True)] * 7


def forward_counts(case):
    counts = next(c for c in counted(case) if c.code.name == "attention_forward")
    lines = counts.by(lambda at: at.source if at.opcode == "HGMMA" else None)
    loops = counts.by(lambda at: counts.loop_of(at) if at.opcode == "HGMMA" else None)
    return counts.tensor_flops(), counts.special(), counts.memory(), counts.pipes(), lines, loops


def test_what_the_forward_kernel_executes(pool):
    flops, special, memory, pipes, lines, loops = pool.submit(forward_counts, CASES[0]).result()
    # 131 queries are 3 tiles of 64, over 100 keys of the prefix, 2 tiles for each; on the diagonal
    # a tile for each, below it none, 1 and 2. So 12 tiles for each of 8 heads.
    tiles = 8 * 12
    assert flops == {
        # Of 80 channels the first 64 and the last 16: q kᵀ sums over all of them in columns of 64
        # keys, weights · v has them as columns.
        "m64n64k16 bf16": tiles * 2 * 64 * 64 * (80 + 64),
        "m64n16k16 bf16": tiles * 2 * 64 * 64 * 16,
    }
    # An exponential for each score, and for each of four lanes of a row that corrects its sum.
    # On the diagonal each of 128 threads has a row below 56 and two of the columns from 56 on:
    # masked in every thread, they share an exponential. There are 8 · 3 such tiles.
    assert special["EX2"] == tiles * 64 * (64 + 4) - 8 * 3 * 128
    # 131 rows of 8 heads, 73 channels of 2 bytes and a logarithm of 4.
    assert memory["global store bytes"] == memory["global store distinct bytes"] == 131 * 8 * 150
    assert sum(pipes.values()) > 0
    assert pipes["tensor"] == sum(lines.values()) == sum(loops.values())
    # 5 products of 16 channels and 4 of 16 keys for each of two widths, by 4 warps. A block has one
    # tile on the diagonal, of which the compiler makes no loop; then those below it, a whole one of
    # the prefix and its end.
    each = 8 * 4 * (5 + 2 * 4)
    assert loops == dict.fromkeys(("outside of loops", "loop 1", "loop 2", "loop 3"), 3 * each)


def test_the_counter_and_the_kernels_say_what_is_executed(pool):
    # Two passes; three quantities of four kernels, but for what the pass over rows requests; and
    # what each declares itself, those among them that pad heads and turn them.
    for case, missed in differences(CASES[:2]):
        assert len(missed) == 2 + 11 + 5, case
        assert set(missed.values()) == {0}, missed


def test_declared_work_is_of_the_sizes_at_hand(pool):
    # Other sizes than those that are executed: every quantity that depends on them differs.
    case = CASES[0]
    found = pool.submit(seen, case).result()
    for other in (
        dataclasses.replace(case, queries=case.queries + 1),
        dataclasses.replace(case, prefix=case.prefix - 1, head_dim=case.head_dim + 8),
    ):
        missed = difference(other, found)
        assert {name for name, number in missed.items() if number} >= {
            f"{what} of {name}"
            for what in ("distinct bytes", "requested bytes")
            for name in ("forward", "key_value", "query")
        }


def opposite_declarations(case):
    """How far declarations are off where two launches of a kernel declare a byte more, and less."""
    launches, wrong = counted(case), iter((1, -1))
    for x in launches:
        if x.code.name == "attention_key_value_gradient":
            x.declared = x.declared | {"bytes": x.declared["bytes"] + next(wrong)}
    return cases.seen_in(case, launches)["declared"]


def test_opposite_errors_of_declarations_do_not_cancel(pool):
    declared = pool.submit(opposite_declarations, CASES[0]).result()
    assert {name: off for name, off in declared.items() if off} == {
        "attention_key_value_gradient": 2
    }


def test_a_product_too_few_is_counted(pool):
    missed = pool.submit(_missed_product, CASES[0]).result()
    # One m64n64k16 in each of 16 warpgroups that have a tile there.
    assert missed > 0
    assert missed % (2 * 64 * 64 * 16) == 0


def _missed_product(case):
    found = []

    def run(launch):
        if launch.name == "attention_forward":
            changed = edited(launch, *FAULTS["a product too few"])
            found.extend(sum(count(x).tensor_flops().values()) for x in (launch, changed))

    launched(case, run)
    return found[0] - found[1]


def test_products_of_single_warps_are_counted():
    # 2 · 16 · 8 · k FLOPs by each of 2 warps; 3 products of k = 16 and one of 8.
    machine, _ = run("HMMA.16816.F32.BF16 R0, R4, R8, RZ\n" * 3
                     + "HMMA.1688.F32.TF32 R0, R4, R8, RZ\nEXIT", warps=2)  # fmt: skip
    found = counts.Counts(machine.code, machine.executed, Traffic(5), {})
    assert found.tensor_flops() == {
        "m16n8k16 bf16": 2 * 3 * 2 * 16 * 8 * 16,
        "m16n8k8 tf32": 2 * 2 * 16 * 8 * 8,
    }
    with pytest.raises(ValueError, match="none of METRICS counts products m16n8k16 bf16"):
        found.metrics()


@pytest.mark.parametrize("warps", [1, 2, 3])
def test_one_matrix_is_loaded_by_each_warp_for_itself(warps):
    # 8 rows of 16 bytes, all of them in the first 128 bytes: a wavefront of each warp.
    text = "MOV R1, 0x400\nMOV R2, 0x7\nSTS.128 [R1], RZ\nLDSM.16.M88 R4, [R1]\nEXIT"
    traffic = Traffic(5)
    run(text, warps=warps, observers=(traffic,))
    assert traffic.wavefronts[3] == traffic.ideal[3] == warps


def named(case):
    return [counts.metrics() for counts in counted(case)], [
        (counts.pipes(), counts.tensor_flops(), counts.memory()) for counts in counted(case)
    ]


def test_counts_are_named_as_the_hardware_names_them(pool):
    launches, beside = pool.submit(named, CASES[0]).result()
    for metrics, (pipes, flops, memory) in zip(launches, beside, strict=True):
        assert set(metrics) == set(METRICS)
        assert metrics["smsp__inst_executed.sum"] == sum(pipes.values())
        assert metrics["sm__inst_executed_pipe_xu.sum"] == pipes.get("xu", 0)
        assert metrics[METRICS_OF_FLOPS["bf16"]] == sum(flops.values())
        assert metrics[METRICS_OF_FLOPS["fp16"]] == 0
        # Lanes of a request that load the same bytes load them once.
        loaded, copied, stored = (
            metrics[f"sm__sass_data_bytes_mem_global_op_{name}.sum"]
            for name in ("ld", "ldgsts", "st")
        )
        assert (
            memory["global load distinct bytes"] <= loaded + copied <= memory["global load bytes"]
        )
        assert stored == memory["global store bytes"]
        for what in ("requests", "sectors"):
            found = metrics[f"l1tex__t_{what}_pipe_lsu_mem_global_op_ld.sum"]
            assert found == memory[f"global load {what}"]


H200 = Path(__file__).parent / "h200_instructions.csv"
"""Of launches that an NVIDIA H200 ran under Nsight Compute (CUDA 13.0, Triton 3.6.0, bf16): all of
91 queries of a head of 41 channels, and the pass over rows of 127 queries of 4 heads of 47. The
hardware's counters, then how often the emulator executes each opcode of the same code."""


def misclassified():
    """Launches and counters of the H200 that the pipes of the executed opcodes do not add up to."""
    with H200.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = []
    for launch in rows[0].keys() - {"name"}:
        found = collections.Counter()
        for row in rows:
            times = int(row[launch])
            if row["name"].endswith(".sum"):
                found[row["name"]] -= times
            else:
                ((at,), _) = assembly.parsed(f"/*0000*/ {row['name']} ;")
                found["smsp__inst_executed.sum"] += times
                if (metric := METRICS_OF_PIPES.get(pipe_of(at))) is not None:
                    found[metric] += times
        wrong += [(launch, metric) for metric, difference in found.items() if difference]
    return wrong


def test_pipes_add_up_to_the_counters_of_a_gpu():
    assert misclassified() == []


@pytest.mark.parametrize(
    "opcode", ["VIADD", "LDC", "R2UR", "UMOV", "ULDC", "S2UR", "MEMBAR", "S2R"]
)
def test_an_opcode_in_another_pipe_would_be_seen(monkeypatch, opcode):
    pipe = "lsu" if counts._PIPE_OF[opcode] == "alu" else "alu"
    monkeypatch.setitem(counts._PIPE_OF, opcode, pipe)
    assert misclassified()


@pytest.mark.parametrize(("path", "sectors"), [(".BYPASS", 128), ("", 118)])
def test_copies_of_one_row_by_many_lanes_are_counted_as_a_gpu_does(path, sectors):
    # Of 91 rows the last 64 keys' block copies 59, and the last of them for 5 more: 4 lanes of 16
    # bytes each, 96 bytes from row to row. Past the first cache an H200 counts 2 sectors for each
    # row (492 for all copies of the launch in which that is), otherwise for each that differs.
    ((at,), _) = assembly.parsed(f"/*0000*/ LDGSTS.E{path}.128 [R2], desc[UR4][R6.64] ;")
    rows = np.minimum(np.arange(64), 58)
    addresses = 4096 + 96 * rows[:, None] + 16 * np.arange(4)
    traffic = Traffic(1, distinct=False)
    group = SimpleNamespace(warps=range(8))
    traffic.global_access(group, at, addresses.reshape(8, 32).astype(np.uint64), None, 16, False)
    assert traffic.requests == 8
    assert traffic.lanes == 256
    assert traffic.places == 4 * 59
    assert traffic.sectors == sectors


BEYOND = {
    ("float32", "9", "768", "4", "", ""): "1.148",
    ("float32", "201", "0", "1", "", ""): "1.413",
    ("float32", "249", "768", "4", "", ""): "1.368",
}
"""Launches beyond the bound on one processor or another: docs/emulator.md says why."""


def specified(case):
    """Operands and the output's gradient in float64, and what plain PyTorch makes of them.

    That is output and gradients in float64, and in the operands' dtype.
    """
    tensors, _, grad = case.operands()
    exact = [x.detach().double().requires_grad_() for x in tensors]
    truths = cases.results(cases.plain_attention, exact, None, grad)
    usuals = cases.results(cases.plain_attention, tensors, None, grad)
    return [x.detach() for x in exact], grad.double(), truths, usuals


def chained(products):
    """Sums over the first dimension in one chain of fp32 multiply-adds."""
    total = torch.zeros(products.shape[1:])
    for product in products:
        total = (total + product).float()
    return total


def told(figures):
    return figures in " ".join(shipped.PAGE.read_text(encoding="utf-8").split())


def assert_told_by_processor(figures, share):
    """Plain PyTorch's error, of which a share is, has one value or another: the page has both."""
    page = " ".join(shipped.PAGE.read_text(encoding="utf-8").split())
    shares = (
        rf"{re.escape(figures)}, alone (\S+) of the bound.{{0,30}} there, (\S+) of the bound here"
    )
    assert f"{share:.2f}" in re.search(shares, page).groups()


def says(mark, verdict):
    page = shipped.PAGE.read_text(encoding="utf-8")
    return between_marks(page, mark, f"{verdict}\n") == page


def weights_of(scores, prefix):
    queries, keys = scores.shape[-2:]
    later = torch.arange(keys) > torch.arange(queries)[:, None] + prefix
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def test_the_order_of_a_sum_decides_whether_it_is_within_the_bound():
    (q, k, v), grad, truths, usuals = specified(Case("float32", 9, 144, 80, 16, 4, batch=2))
    k, v = (x.repeat_interleave(4, 2) for x in (k, v))
    weights = weights_of(torch.einsum("bnhc,bkhc->bhnk", q, k) / 3, 80)
    grad_weights = torch.einsum("bnhc,bkhc->bhnk", grad, v)
    grad_scores = weights * (grad_weights - (weights * grad_weights).sum(-1, keepdim=True)) / 3
    grad_scores = grad_scores.view(2, 4, 576, 224).permute(2, 0, 3, 1)
    queries = q.view(2, 144, 4, 4, 9).permute(3, 1, 0, 2, 4).flatten(0, 1)
    products = grad_scores[..., None] * queries[:, :, None]
    assert (products.sum(0) - truths[2]).abs().max() < 1e-13
    shares = []
    for order in range(100):
        in_order = torch.randperm(576, generator=torch.Generator().manual_seed(order))
        result = chained(products[in_order])
        shares.append(cases.error_share(result, usuals[2], truths[2], 3))
    beyond = sum(share > 1 for share in shares)
    assert told(
        f"{min(shares):.2f} to {max(shares):.2f} of the bound, in {beyond} of them beyond it"
    )


def test_the_only_key_of_the_first_query_shows_what_a_chain_rounds():
    (_, k, v), grad, truths, usuals = specified(Case("float32", 201, 144, 0, 2, 2, batch=2))
    assert not truths[1][:, 0].any()
    assert not usuals[1][:, 0].any()
    products = (grad[:, 0] * v[:, 0]).movedim(-1, 0)
    rounded = chained(products) - products.sum(0)
    result = truths[1].clone()
    result[:, 0] = rounded[..., None] * k[:, 0] / 201**0.5
    share = cases.error_share(result, usuals[1], truths[1], 3)
    assert_told_by_processor(f"up to {rounded.abs().max():.1e}", share)


def test_a_large_score_shows_what_a_chain_rounds():
    (q, k, v), _, truths, usuals = specified(Case("float32", 249, 144, 80, 16, 4, batch=2))
    k, v = (x.repeat_interleave(4, 2)[1, :, 2] for x in (k, v))
    products = (q[1, :, 2, None] * k).movedim(-1, 0)
    exact, scores = products.sum(0), chained(products).double()
    at = 122, int((weights_of(exact / 249**0.5, 80)[122]).argmax())
    result = truths[0].clone()
    assert (weights_of(exact / 249**0.5, 80) @ v - result[1, :, 2]).abs().max() < 1e-13
    result[1, :, 2] = weights_of(scores / 249**0.5, 80) @ v
    share = cases.error_share(result, usuals[0], truths[0], 2)
    off = (scores - exact)[at].abs()
    assert_told_by_processor(f"{exact[at]:.1f}, is off by {off:.1e}", share)


@pytest.mark.record("python -m validate.emulator.shipped")
def test_the_record_of_shipped_launches_is_of_the_code_at_hand():
    rows = shipped.read()
    assert rows
    over = {
        key: row["share"] for key, row in shipped.current(rows).items() if float(row["share"]) > 1
    }
    assert over.items() <= BEYOND.items()
    for row in rows:
        assert (row["missed"], row["unsafe"]) == ("0", "0"), row
    assert len(shipped.current(rows)) == len(rows)
    assert says("executed", shipped.verdict(rows))
    readme = (shipped.DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert f"all {len(rows)} shipped launches" in readme
    most = max(float(row["share"]) for row in rows)
    assert len(over) == 1
    assert f"but for one launch in fp32 at {most:.2f} of them" in readme


def test_the_page_names_what_does_not_hold():
    row = dict.fromkeys(shipped.COLUMNS, "") | {"share": "1", "missed": "0", "unsafe": "0"}
    fine = shipped.verdict([row])
    assert fine.startswith("1 of 272 ")
    assert "None had unsafe accesses" in fine
    assert "Errors of 1 are" in fine
    bad = {"dtype": "float32", "head dim": "9", "group": "4", "share": "1.148", "unsafe": "2"}
    loud = shipped.verdict([row, row | bad])
    assert "**float32, head dim 9, group 4: 1.148 of the bound, 2 unsafe.**" in loud
    assert "1 had unsafe accesses" in loud
    assert "Errors of 1 are" in loud


@pytest.mark.record("python -m validate.emulator.shipped")
def test_rows_of_other_code_do_not_count(tmp_path):
    (row, *_) = shipped.read()
    path = tmp_path / "rows.csv"
    shipped.write([row], path)
    assert list(shipped.current(shipped.read(path)).values()) == [row]
    shipped.write([row | {"digest": "0" * 12}], path)
    assert shipped.current(shipped.read(path)) == {}


def kernels_of_calls(launches, **changes):
    """The kernels of calls that make launches, by name, without those of lengths: none compiled."""
    found = []
    for launch in launches:
        with shipped.shipping(launch):
            kernels = cases.kernels_of(dataclasses.replace(shipped.case_of(launch), **changes))
        found.append({kernel for kernel in kernels if kernel.name != shipped.PREPARATION})
    return found


def test_fewer_heads_and_positions_are_of_the_same_compiled_kernels(pool):
    launches = shipped_launches()
    recorded = [
        {kernel for kernel in launched_kernels()[launch] if kernel.name != shipped.PREPARATION}
        for launch in launches
    ]
    assert pool.submit(kernels_of_calls, launches).result() == recorded
    # Of a single sequence or head, strides and numbers are 1, by which kernels are specialised.
    for changes in ({"batch": 1}, {"heads": 1, "key_heads": 1}, {"queries": 150}):
        (other,) = pool.submit(kernels_of_calls, launches[:1], **changes).result()
        assert not other & recorded[0], changes


def test_every_shipped_kernel_is_executed_by_a_row():
    executed = {k for x in shipped_launches() for k in shipped.executed_kernels(x)}
    assert executed == {kernel for _, kernel in shipped_kernels()}


def test_a_launch_of_other_kernels_is_refused(pool):
    launch = Launch("float16", 9, 0)
    other = Kernel("attention_forward", "", "", "0" * 12)
    with pytest.raises(ValueError, match=r"must launch the kernels of .*lacks .*0{12}"):
        pool.submit(shipped.tried, launch, [other]).result()


def shares_of_preparations(launch, wrong):
    """Of each preparation of a launch, the error's share; an element is off by as much after it."""
    shares = []

    def run(launched):
        launched.run()
        *_, target, _ = (x for x in launched.arguments if isinstance(x, torch.Tensor))
        target[..., -1, 0] += wrong

    def prepare(launched):
        if launched.name == shipped.PREPARATION:
            shares.append(shipped.prepared(launched, run))

    with launching.emulating(prepare):
        make_launches(launch)
    return shares


def test_preparations_are_held_against_plain_pytorch(pool):
    launch = Launch("float16", 9, 0, turned=True)  # pads v and the output's gradient, turns twice
    right, wrong = (pool.submit(shares_of_preparations, launch, by).result() for by in (0, 0.1))
    assert len(right) == len(wrong) == 6
    assert 0 < max(right) <= 1 < min(wrong)


def test_the_command_shows_counts(pool, capsys):
    # In this process Triton interprets, and the command has one of its own that compiles.
    assert main(["--case.dtype", "bfloat16", "--case.head-dim", "16", "--case.queries", "5"]) == 0
    shown = capsys.readouterr().out
    assert "attention_query_gradient" in shown
    assert "smsp__inst_executed.sum" in shown
    assert "loop 1" in shown


def kernels_checked(function, arguments):
    """What a command prints that finds each kernel, once, in a process that compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "checked", lambda launch: launch.run() is not None and [""])
        return function(*arguments)


@pytest.mark.parametrize("backward", [True, False])
def test_the_command_checks_no_more_than_it_is_asked(pool, monkeypatch, capsys, backward):
    class Pool:
        def submit(self, function, *arguments):
            return pool.submit(kernels_checked, function, arguments)

    monkeypatch.setattr(report, "triton_processes", lambda **_: contextlib.nullcontext(Pool()))
    report.show(Case("bfloat16", 16, 5), check=True, backward=backward)
    shown = capsys.readouterr().out.split()
    assert "attention_forward" in shown
    assert ("attention_query_gradient" in shown) is backward


def test_a_count_that_depends_on_data():
    text = """
        CS2R R2, SRZ
        LDG.E R0, desc[UR4][R2.64]
        ISETP.NE.AND P0, PT, R0, RZ, PT
        @P0 EXIT
        EXIT
    """
    code = kernel(text)
    with pytest.raises(ValueError, match=r"depends on data.*LDG"):
        sliced(code, operations.decoded(code))


def test_what_a_guard_leaves_out_is_not_needed():
    # R1 comes from memory where P0 is false alone, and where it is true it is an address.
    text = """
        S2R R0, SR_TID.X
        ISETP.NE.AND P0, PT, R0, RZ, PT
        CS2R R2, SRZ
        LDG.E R1, desc[UR4][R2.64]
        @P0 MOV R1, 0x400
        @P0 STS [R1], R0
        EXIT
    """
    code = kernel(text)
    assert len([o for o in sliced(code, operations.decoded(code)) if o]) == 7
    other = kernel(text.replace("@P0 STS", "@!P0 STS"))
    with pytest.raises(ValueError, match=r"depends on data.*LDG"):
        sliced(other, operations.decoded(other))
    moved = kernel(text.replace("@P0 STS", "ISETP.EQ.AND P0, PT, R0, RZ, PT\n@P0 STS"))
    with pytest.raises(ValueError, match=r"depends on data.*LDG"):
        sliced(moved, operations.decoded(moved))


def test_single_bits_of_data_are_not_needed():
    # Bit 0 of R1 is made a predicate's, and the others are what memory held.
    text = """
        S2R R0, SR_TID.X
        ISETP.NE.AND P0, PT, R0, RZ, PT
        CS2R R2, SRZ
        MOV R4, 0x400
        LDG.E R1, desc[UR4][R2.64]
        LOP3.LUT R1, R1, 0xfffffffe, RZ, 0xc0, !PT
        @P0 LOP3.LUT R1, R1, 0x1, RZ, 0xfc, !PT
        IMAD.MOV.U32 R5, RZ, RZ, R1
        LOP3.LUT P1, RZ, R5, 0x1, RZ, 0xc0, !PT
        @P1 STS [R4], R0
        EXIT
    """
    code = kernel(text)
    assert sliced(code, operations.decoded(code))
    for bits in ("R1, 0xfffffffe", "R5, 0x1"):  # bit 0 is left, or bit 1 asked for
        other = kernel(text.replace(bits, bits.replace("ffe", "fff").replace("0x1", "0x3")))
        with pytest.raises(ValueError, match=r"depends on data.*LDG"):
            sliced(other, operations.decoded(other))


def test_what_a_branch_leaves_behind_is_not_needed():
    text = """
        S2R R0, SR_TID.X
        ISETP.LT.AND P0, PT, R0, 0x20, PT
        CS2R R2, SRZ
        LDG.E R1, desc[UR4][R2.64]
        @P0 MOV R1, 0x400
        @P0 BRA `(.L_x_0)
        MOV R1, 0x404
.L_x_0:
        STS [R1], R0
        EXIT
    """
    code = kernel(text)
    assert len([o for o in sliced(code, operations.decoded(code)) if o]) == 9
    other = kernel(text.replace("@P0 MOV", "@!P0 MOV"))
    with pytest.raises(ValueError, match=r"depends on data.*LDG"):
        sliced(other, operations.decoded(other))


def test_only_what_counts_need_is_executed():
    text = """
        MOV R0, 0x3
        MOV R1, 0x5
        FADD R2, R1, R1
        MOV R4, 0x400
.L_x_0:
        STS [R4], R2
        VIADD R1, R1, 0x1
        VIADD R0, R0, 0xffffffff
        ISETP.NE.AND P0, PT, R0, RZ, PT
        @P0 BRA `(.L_x_0)
        EXIT
    """
    code = kernel(text)
    kept = sliced(code, operations.decoded(code))
    assert [o.at.opcode for o in kept if o] == [
        "MOV",
        "MOV",
        "STS",
        "VIADD",
        "ISETP",
        "BRA",
        "EXIT",
    ]


LARGE = (
    ("tensor-core FLOPs, m64n64k16", "flops", "m64n64k16 bf16"),
    ("tensor-core FLOPs, m64n16k16", "flops", "m64n16k16 bf16"),
    ("exponentials, lanes", "special", "EX2"),
    ("instructions of warps: alu", "pipes", "alu"),
    *((pipe, "pipes", pipe) for pipe in ("fma", "xu", "uniform", "lsu", "control", "tensor")),
    ("of none of these pipes", "pipes", "other"),
    ("global loads: requests", "memory", "global load requests"),
    ("bytes", "memory", "global load bytes"),
    ("sectors", "memory", "global load sectors"),
    ("distinct bytes", "memory", "global load distinct bytes"),
    ("global stores: requests", "memory", "global store requests"),
    ("bytes, all of them distinct", "memory", "global store bytes"),
    ("sectors", "memory", "global store sectors"),
)


def counts_of_a_large_launch():
    launches = counted(Case("bfloat16", 73, 512, 1792, 8, 8, batch=80), backward=False)
    return [
        {
            "flops": x.tensor_flops(),
            "special": x.special(),
            "pipes": x.pipes(),
            "memory": x.memory(),
        }
        for x in launches
    ]


def test_the_page_has_the_counts_of_a_large_launch(pool):
    launches = pool.submit(counts_of_a_large_launch).result()
    rows = [
        (name, *(f"{launch[of].get(what, 0):,}" for launch in launches)) for name, of, what in LARGE
    ]
    memory = [launch["memory"] for launch in launches]
    assert all(x["global store bytes"] == x["global store distinct bytes"] for x in memory)
    waves = (f"{x['shared wavefronts']:,}, {x['shared conflicts']:,}" for x in memory)
    rows.append(("shared-memory wavefronts, of which conflicts", *waves))
    page = shipped.PAGE.read_text(encoding="utf-8")
    table = page.partition("| quantity | padding | forward |\n|---|---|---|\n")[2].split("\n\n")[0]
    assert table.splitlines() == [f"| {' | '.join(row)} |" for row in rows]


# Safety.


def findings(case):
    found = {}

    def run(launch):
        found[len(found), launch.name] = check(launch)

    launched(case, run)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernels_are_safe(pool, case):
    found = pool.submit(findings, case).result()
    assert len(found) >= 4
    assert [finding for some in found.values() for finding in some] == []


# Each leaves out, or changes, what one of the checks is there for.
UNSAFE = {
    safety.UNWRITTEN: ("attention_forward", r"^LDGSTS", "NOP", 0),
    safety.IN_FLIGHT: ("attention_forward", r"^DEPBAR\.LE SB0, .*", "DEPBAR.LE SB0, 0x3f", None),
    safety.RACE: ("attention_forward", r"^BAR\.SYNC", "NOP", None),
    safety.UNFENCED: ("attention_forward", r"^FENCE", "NOP", None),
    safety.STILL_READ: (
        "attention_forward",
        r"^WARPGROUP\.DEPBAR.*",
        "WARPGROUP.DEPBAR.LE gsb0, 0x7",
        None,
    ),
    safety.ACCUMULATOR: ("attention_forward", r"^WARPGROUP\.DEPBAR", "NOP", None),
    # The third wait is that of weights · v, whose weights are in registers.
    safety.OPERAND: ("attention_forward", r"^WARPGROUP\.DEPBAR", "NOP", 2),
    safety.NOT_READY: ("attention_forward", r"^WARPGROUP\.ARRIVE", "NOP", None),
}


def unsafe_findings(case, name, *change):
    found = []

    def run(launch):
        if launch.name == name:
            found.extend(check(edited(launch, *change)))
        elif not found:
            launch.run()

    launched(case, run)
    return found


@pytest.mark.parametrize("what", UNSAFE)
def test_what_is_unsafe_is_found_with_its_line(pool, what):
    found = pool.submit(unsafe_findings, CASES[0], *UNSAFE[what]).result()
    assert any(re.match(rf"{re.escape(what)}: '.*' at 0x\w+, \w+/\w+\.py:\d+", x) for x in found)


REFUSED = {
    "outside of every tensor": (r"^(LDGSTS.*\.64)(\+0x[0-9a-f]+)?\]", r"\1+0x7000000]"),
    "misaligned global access": (r"^(LDGSTS.*\.64)(\+0x[0-9a-f]+)?\]", r"\1+0x2]"),
    "shared access outside": (r"^(LDGSTS\S* \[R\d+)(\+0x[0-9a-f]+)?\]", r"\1+0x40000]"),
    "misaligned shared access": (r"^(LDGSTS\S* \[R\d+)(\+0x[0-9a-f]+)?\]", r"\1+0x2]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_hardware_would_refuse_is_named_with_its_line(pool, what):
    found = pool.submit(unsafe_findings, CASES[0], "attention_forward", *REFUSED[what]).result()
    assert re.search(rf"{what}.*LDGSTS.* at 0x\w+, \w+/\w+\.py:\d+", found[-1])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        # Warp 1 writes what warp 0 reads, and no barrier stands between them.
        ("@P0 STS [R1], R0\n@!P0 LDS R2, [R1]", safety.RACE),
        ("STS [R1], R0", safety.RACE),
        ("LDS R2, [R1]", safety.UNWRITTEN),
        ("@P0 STS [R1], R0\nBAR.SYNC.DEFER_BLOCKING 0x0\nLDS R2, [R1]", None),
        (
            "@P0 STS [R1], R0\nBAR.SYNC.DEFER_BLOCKING 0x0\nLDS R2, [R1]\n@P0 STS [R1], R0",
            safety.RACE,
        ),
        # Both store the same, and nobody reads it before the barrier.
        ("MOV R3, 0x7\nSTS [R1], R3", None),
        ("MOV R3, 0x7\nSTS [R1], R3\n@!P0 LDS R2, [R1]", safety.RACE),
        ("MOV R3, 0x7\nSTS [R1], R3\nBAR.SYNC.DEFER_BLOCKING 0x0\nLDS R2, [R1]", None),
        ("MOV R3, 0x7\n@P0 STS [R1], R3\n@!P0 STS [R1], R3", None),
        ("MOV R3, 0x7\n@P0 MOV R3, 0x8\nSTS [R1], R3", safety.RACE),
        ("MOV R3, 0x7\n@P0 STS [R1], R3\n@!P0 STS [R1], R1", safety.RACE),
        # Atomics may meet, but not what reads or writes beside them.
        ("@P0 STS [R1], R0\nBAR.SYNC.DEFER_BLOCKING 0x0\nATOMS.ADD RZ, [R1], R0", None),
        ("ATOMS.ADD RZ, [R1], R0", safety.UNWRITTEN),
        (
            "@P0 STS [R1], R0\nBAR.SYNC.DEFER_BLOCKING 0x0\nATOMS.ADD RZ, [R1], R0\n"
            "@!P0 LDS R2, [R1]",
            safety.RACE,
        ),
        (
            "@P0 STS [R1], R0\nBAR.SYNC.DEFER_BLOCKING 0x0\n@P0 LDS R2, [R1]\n"
            "@!P0 ATOMS.ADD RZ, [R1], R0",
            safety.RACE,
        ),
        # Bytes side by side, which a word would not tell apart.
        ("@P0 VIADD R1, R1, 0x1\nMOV R3, 0x7\nSTS.U8 [R1], R3\nLDS.U8 R2, [R1]", None),
        # The second store may come before another warp's first.
        ("MOV R3, 0x7\nSTS [R1], R3\nMOV R3, 0x8\nSTS [R1], R3", safety.RACE),
    ],
)
def test_what_orders_two_warps(text, what):
    watch = Safety()
    start = "S2R R0, SR_TID.X\nISETP.GE.AND P0, PT, R0, 0x20, PT\nMOV R1, 0x400"
    run(f"{start}\n{text}\nEXIT", warps=2, observers=(watch,))
    assert {finding.split(":")[0] for finding in watch.findings} == ({what} if what else set())


STORE, LOAD = "STG.E desc[UR4][R2.64], R0", "LDG.E R6, desc[UR4][R2.64]"


@pytest.mark.parametrize("several", ["warps", "programs"])
@pytest.mark.parametrize(
    ("text", "races"),
    [
        (STORE, ("warps", "programs")),
        (LOAD, ()),
        (f"@P0 {STORE}\n@!P0 {LOAD}", ("warps", "programs")),
        (f"@!P0 {LOAD}\n@P0 {STORE}", ("warps", "programs")),
        # Warps that load copies, of which one is stored, are right; programs are not.
        (f"{LOAD}\n@P0 {STORE}", ("programs",)),
        (f"@P0 {STORE}\n{LOAD}", ("warps", "programs")),
        (f"@P0 {STORE}\n@P0 {LOAD}", ()),
        # Bytes side by side, and one that lies in what another stores.
        ("@P0 STG.E.U8 desc[UR4][R2.64+0x1], R0\n@!P0 LDG.E.U8 R6, desc[UR4][R2.64]", ()),
        (
            "@P0 STG.E.U8 desc[UR4][R2.64+0x1], R0\n@!P0 LDG.E R6, desc[UR4][R2.64]",
            ("warps", "programs"),
        ),
        (
            "@P0 STG.E desc[UR4][R2.64], R0\n@!P0 LDG.E.U8 R6, desc[UR4][R2.64+0x3]",
            ("warps", "programs"),
        ),
        ("RED.E.ADD.STRONG.GPU desc[UR4][R2.64], R0", ()),
        # Who comes first may be told by what an atomic returns, to programs.
        (
            f"ATOMG.E.ADD.STRONG.GPU PT, R8, desc[UR4][R2.64], R0\n@P0 {STORE}\n@!P0 {LOAD}",
            ("warps",),
        ),
    ],
)
def test_what_orders_two_accesses_to_global_memory(several, text, races):
    watch, memory, held = Safety(), GlobalMemory(), torch.zeros(64, dtype=torch.int32)
    address = memory.address(held)
    start = f"""
        S2R R0, SR_TID.X
        S2R R1, SR_CTAID.X
        LOP3.LUT R2, R0, 0x1f, RZ, 0xc0, !PT
        SHF.L.U32 R2, R2, 0x2, RZ
        VIADD R2, R2, {address & 0xFFFFFFFF:#x}
        MOV R3, {address >> 32:#x}
        LEA R4, R1, R0, 0x5
        ISETP.GE.AND P0, PT, R4, 0x20, PT
    """
    run(f"{start}\n{text}\nEXIT", memory=memory, observers=(watch,), **{several: 2})
    found = {finding.split(":")[0] for finding in watch.findings}
    assert found == ({safety.GLOBAL_RACE} if several in races else set())


def test_a_barrier_orders_accesses_to_global_memory():
    memory, held = GlobalMemory(), torch.zeros(64, dtype=torch.int32)
    address = memory.address(held)
    start = f"""
        S2R R0, SR_TID.X
        ISETP.GE.AND P0, PT, R0, 0x20, PT
        MOV R2, {address & 0xFFFFFFFF:#x}
        MOV R3, {address >> 32:#x}
        @P0 {STORE}
        BAR.SYNC.DEFER_BLOCKING 0x0
        @!P0 {LOAD}
    """
    for further, races in (("", []), (f"@P0 {STORE}", [safety.GLOBAL_RACE])):
        watch = Safety()
        run(f"{start}\n{further}\nEXIT", warps=2, memory=memory, observers=(watch,))
        assert [x.split(":")[0] for x in watch.findings] == races


def one_after_the_other(case, *change):
    """What is found where programs are executed one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "SIDE_BY_SIDE", 1)
        return unsafe_findings(case, *change)


@pytest.mark.parametrize("findings_of", [unsafe_findings, one_after_the_other])
def test_programs_that_store_to_the_same_place_are_found_with_the_line(pool, findings_of):
    # Every program does the work of the first.
    change = ("attention_forward", r"^S2R (R\d+), SR_CTAID\.X", r"MOV \1, RZ", None)
    found = pool.submit(findings_of, CASES[0], *change).result()
    assert any(
        re.match(rf"{safety.GLOBAL_RACE}: '.*STG.*' at 0x\w+, \w+/\w+\.py:", x) for x in found
    )


def test_an_empty_view_has_the_address_of_an_empty_tensor():
    whole = torch.zeros(64)
    memory = GlobalMemory()
    assert memory.address(whole[64:]) == memory.address(torch.zeros(0)) < memory.address(whole)
    assert memory.address(whole[4:]) == memory.address(whole) + 16
