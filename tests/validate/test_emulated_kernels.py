"""Kernels that are none of ours, executed without a GPU: each group of instructions by its results.

What is expected comes from plain PyTorch, in float64 or as integers.
"""

import pytest

from tests.validate import emulated_kernels, others_kernels
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


@pytest.mark.parametrize("name", others_kernels.NAMES)
def test_others_kernels(pool, name):
    missing = others_kernels.missing()
    if missing:
        pytest.skip(f"needs {missing}: see others_kernels.py")
    shares, findings = pool.submit(others_kernels.errors, name).result()
    assert max(shares) <= 1
    assert findings == []
