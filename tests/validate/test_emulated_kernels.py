"""Kernels that are none of ours, executed without a GPU: each group of instructions by its results.

What is expected comes from plain PyTorch, in float64 or as integers.
"""

import collections
import contextlib
import dataclasses

import pytest

from tests.validate import emulated_kernels, others_kernels
from validate.emulator import assembly, cases, launching, operations
from validate.witnesses.processes import triton_processes


@pytest.fixture(scope="module")
def pool():
    with triton_processes(interpret=False) as processes:
        yield processes


@pytest.fixture(scope="module")
def found(pool):
    names = [case.__name__ for case in emulated_kernels.CASES]
    return {name: pool.submit(emulated_kernels.errors, name) for name in names}


@pytest.mark.parametrize("case", emulated_kernels.CASES, ids=lambda case: case.__name__)
def test_results_are_those_of_plain_pytorch(found, case):
    shares, findings = found[case.__name__].result()
    assert shares
    assert max(shares) <= 1
    assert findings == []


# Each changes one instruction's text in every launch of a case.
FAULTS = {
    "order": (r"^(SHFL\.BFLY PT, R\d+, R\d+), (0x\w+)", r"\1, 0x0"),
    "atomics": (r"^ATOMG\.E\.MAX", "ATOMG.E.MIN"),
    "histogram": (r"^ATOMS\.ADD RZ, (\[\S+\]), R\d+", r"ATOMS.ADD RZ, \1, RZ"),
    "products": (r"^(HMMA\S* R\d+), (R\d+), (R\d+), R\d+", r"\1, \2, \3, RZ"),
    "whole_numbers": (r"^(IMAD\.HI\.U32 R\d+), R(\d+), ", r"\1, RZ, "),
    "halves": (r"^HMUL2", "HADD2"),
    "single_bytes": (r"^(LDG|STG)\.E\.[US]8", r"\1.E.U16"),
    "reals": (r"^FRND(\S*)\.FLOOR", r"FRND\1.CEIL"),
    "scan": (r"^SHFL\.UP", "SHFL.DOWN"),
    "conversions": (r"^F2I\.S64\.TRUNC", "F2I.S64.CEIL"),
    "wide_atomics": (r"^ATOMG\.E\.ADD\.64", "ATOMG.E.MAX.64"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_code_is_seen(pool, name):
    shares, findings = pool.submit(emulated_kernels.errors, name, FAULTS[name]).result()
    assert not max(shares) <= 1 or findings


def accepted_forms():
    """How many were tried of instructions with a made-up modifier somewhere, and which decode."""
    forms, accepted, tried = {}, [], 0

    def run(launch):
        for at in launch.code.instructions:
            forms[at.opcode, at.modifiers, len(at.operands)] = at, launch.code

    with launching.emulating(run):
        for case in emulated_kernels.CASES:
            collections.deque(case(), maxlen=0)
    cases.called(cases.Case("bfloat16", 73, 40, 30, 2, 1, pairs=9), run, values=False)
    for at, code in forms.values():
        for i in range(len(at.modifiers) + 1):
            for rest in (at.modifiers[i:], at.modifiers[i + 1 :]):
                changed = dataclasses.replace(at, modifiers=(*at.modifiers[:i], "FOO", *rest))
                tried += 1
                with contextlib.suppress(assembly.UnknownCodeError):
                    operations.decoded(dataclasses.replace(code, instructions=(changed,)))
                    accepted.append(str(changed))
    return tried, accepted


def test_no_made_up_modifier_is_accepted(pool):
    tried, accepted = pool.submit(accepted_forms).result()
    assert tried > 800
    assert accepted == []


@pytest.mark.parametrize("name", others_kernels.NAMES)
def test_others_kernels(pool, name):
    missing = others_kernels.missing()
    if missing:
        pytest.skip(f"needs {missing}: see others_kernels.py")
    shares, findings = pool.submit(others_kernels.errors, name).result()
    assert max(shares) <= 1
    assert findings == []
