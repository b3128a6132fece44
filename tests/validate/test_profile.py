"""Anyone's kernels, profiled without a GPU: counts by hand, findings, and each change seen."""

import collections
import contextlib
import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from flopcount.devices import find_device
from validate.emulator.cases import Case, launched
from validate.profile import __main__ as program
from validate.profile import profiling, report
from validate.profile.traces import Traces, TracingMachine
from validate.witnesses.processes import triton_processes

KERNELS = Path(__file__).with_name("profiled_kernels.py")
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def pool():
    with triton_processes(interpret=False) as processes:
        yield processes


@pytest.fixture(scope="module")
def profiled(pool):
    """Profiles of the functions of profiled_kernels.py, each taken once."""
    taken = {}

    def take(name, **configurations):
        key = name, *configurations
        if key not in taken:
            taken[key] = pool.submit(
                profiling.profile, f"{KERNELS}:{name}", find_device("h100"), configurations
            ).result()
        return taken[key]

    return take


@pytest.fixture
def called(pool, monkeypatch, capsys):
    """The command line in the one process: status, output and error output."""

    @contextlib.contextmanager
    def same(interpret):
        yield pool

    monkeypatch.setattr(program, "triton_processes", same)
    monkeypatch.setenv("COLUMNS", "80")

    def call(name, *arguments):
        function = name if ":" in name else f"{KERNELS}:{name}"
        status = program.main([function, *map(str, arguments)])
        return status, *capsys.readouterr()

    return call


def test_an_addition_by_hand(profiled):
    profile = profiled("add")
    (kernel,) = profile.kernels
    # 4 programs of 4 warps; 1,024 numbers of 4 bytes are 8 for each of 128 threads: 2 accesses of
    # 16 bytes to x, 2 to y, 2 to out. 4,096 numbers are 512 sectors of 32 bytes.
    assert (kernel.launches, kernel.programs) == (1, 4)
    counts = kernel.counts
    assert counts["global load requests"] == 4 * 4 * (2 + 2)
    assert counts["global load sectors"] == counts["global load distinct bytes"] / 32 == 512 + 512
    assert counts["global store requests"] == 4 * 4 * 2
    assert counts["global store sectors"] == 512
    of_lines = collections.Counter()
    for line in kernel.lines:
        of_lines.update(line.counts)
    assert of_lines["instructions"] == counts["instructions of warps"]
    assert of_lines["global requests"] == 4 * 4 * (2 + 2 + 2)
    assert of_lines["global bytes"] == 3 * 16_384
    assert of_lines["global sectors"] == 512 + 512 + 512
    # 4 programs have 4 multiprocessors, each of which issues 4 a clock; 3 tensors of 16 KiB at
    # 3.35 TB/s and 1.83 GHz.
    clocks = kernel.clocks
    assert clocks["issue"] == counts["instructions of warps"] / 4 / 4
    assert clocks["bytes"] == pytest.approx(3 * 16_384 / 3.35e12 * 1.83e9, rel=1e-3)
    assert kernel.binds == max(clocks, key=clocks.get)
    assert min(kernel.modelled.range()) >= max(clocks.values())
    # 0 + 1 + … + 4,095, and 4,096 ones.
    (result,) = profile.results
    assert (result.name, result.shape, result.dtype) == ("result['out']", (4096,), "float32")
    assert result.total == result.magnitude == 4095 * 4096 / 2 + 4096


def adds_up(case):
    """Whether what traces say was executed is what is counted, of each launch of a forward pass."""
    found = []

    def run(launch):
        counts = launch.run(observers=[traces := Traces()], kind=TracingMachine)
        total = np.zeros_like(counts)
        for runs in itertools.chain.from_iterable(traces.programs()):
            for first, last in runs:
                total[first : last + 1] += 1
        found.append((total == counts).all())

    launched(case, run, backward=False)
    return found


def test_traces_say_what_is_executed(pool):
    found = pool.submit(adds_up, Case("bfloat16", 73, 131, 100, 2, 1)).result()
    assert len(found) >= 1
    assert all(found)


def test_one_more_load_is_seen(profiled, called, tmp_path):
    before = tmp_path / "before.json"
    status, out, _ = called("add", "--json")
    before.write_text(out)
    assert status == 0
    assert report.read(before) == profiled("add")
    assert called("add", "--compare", before)[:2] == (
        0,
        "This change executes as many instructions.\n",
    )
    status, out, _ = called("add_again", "--compare", before)
    counts = [profiled(name).kernels[0].counts for name in ("add", "add_again")]
    few, more = (x["instructions of warps"] for x in counts)
    share = f"{100 * (more / few - 1):.3g}"
    assert status == 1
    assert f"executes {share} % more instructions: {few:,} before, {more:,} now" in out
    # A third of what is loaded is new.
    assert [x["global load sectors"] for x in counts] == [1024, 1536]
    assert "add_kernel    global load sectors      1,024   1,536    +50 %" in out
    assert "+50 %" in out
    assert "grew by more than 0 %" in out
    assert "Clocks, modelled, not measured" in out
    assert "slower" in out
    assert called("add_again", "--compare", before, "--threshold", 60)[0] == 0
    after = tmp_path / "after.json"
    after.write_text(json.dumps(report.plain(profiled("add_again"))))
    status, out, _ = called("add", "--compare", after)
    assert status == 0
    assert "% fewer instructions" in out


def test_a_kernel_that_is_new_or_gone_is_a_change(profiled):
    before, now = profiled("add"), profiled("scale")
    found = {(c.kernel, c.quantity): c for c in report.changes(before, now)}
    new = found["scale_kernel", "global load sectors"]
    assert (new.before, new.now, new.shown) == (0, 1024 * 4 // 32, "new")
    assert found["add_kernel", "global load sectors"].percent == -100
    other = dataclasses.replace(before, triton="3.0.0")
    assert "Triton 3.0.0 compiled what is compared with" in report.compared(other, before, 0)[0]


def test_an_autotuned_kernel_takes_its_first_configuration_or_the_one_named(profiled):
    first, named = profiled("scale"), profiled("scale", scale_kernel={"BLOCK": "512"})
    assert [p.kernels[0].programs for p in (first, named)] == [1024 // 256, 1024 // 512]
    assert "BLOCK: 512" in named.kernels[0].configuration
    assert first.results[0].total == named.results[0].total == 2 * 1024


def test_heuristics_are_asked(profiled):
    even, odd = (profiled(name).kernels[0].counts for name in ("scale", "scale_odd"))
    assert odd["global load distinct bytes"] == 1000 * 4
    assert odd["instructions of warps"] > even["instructions of warps"]


def test_the_device_answers_as_an_h100(profiled):
    assert profiled("asks").results[0].total == 2 * 1024


def test_what_a_loop_executes_by_hand(called):
    status, out, _ = called("exponentials")
    assert status == 0
    told = out.split("exponentials_kernel, by loop")[1].split("exponentials_kernel")[0]
    rows = dict(re.findall(r"^ (\D+?) {2,}(\S+ +\S+)$", told, re.MULTILINE))
    # Outside and inside: 4,096 exponentials; 16 passes of 4 warps load 2 numbers a lane, 8 bytes.
    assert rows["special functions"].split() == ["0", "4,096"]
    assert rows["global requests"].split() == ["4", "64"]
    assert rows["global bytes"].split() == ["1,024", "16,384"]
    assert rows["global sectors"].split() == ["32", "512"]


def test_a_product_of_warps_is_counted(profiled):
    (kernel,) = profiled("product").kernels
    # 2·32³ FLOPs, at the peak of fp16 on one multiprocessor of 4,096 FLOPs a clock.
    assert kernel.counts["tensor-core FLOPs"] == 2 * 32**3
    assert sum(line.counts["tensor-core FLOPs"] for line in kernel.lines) == 2 * 32**3
    assert kernel.clocks["tensor cores"] == pytest.approx(2 * 32**3 / 4096)


def test_a_backward_pass_is_on_the_device_too(profiled):
    profile = profiled("differentiates")
    assert [result.total for result in profile.results] == [16, 16]
    assert profile.kernels[0].launches == 2


def test_what_touches_memory_of_no_one_is_found(called):
    status, out, _ = called("add_outside")
    assert status == 1
    assert "global access outside of every tensor" in " ".join(out.split())
    assert "profiled_kernels.py:" in out


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("nowhere.py:f", (), "nowhere.py:f: expected path/to/module.py:name of a file"),
        ("adds", (), "no such function: expected one of add, add_again, add_outside"),
        ("raises", (), "KeyError: 'what is\\nmissing' (profiled_kernels.py:"),
        ("launches_nothing", (), "launched no Triton kernel"),
        ("scale", ("--configuration", "scale_kernel:BLOCK=64"), "expected values of one of BLOCK"),
        ("scale", ("--configuration", "add_kernel:BLOCK=64"), "launched: scale_kernel"),
        ("scale", ("--configuration", "BLOCK=64"), "expected KERNEL:NAME=VALUE"),
        ("scale", ("--device", "v100"), "expected h100"),
        ("scale", ("--compare", "nowhere.json"), "No such file"),
        ("scale", ("--compare", KERNELS), "expected what --json printed"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(called, name, arguments, said):
    status, out, error = called(name, *arguments)
    assert (status, out) == (2, "")
    assert error.count("\n") == 1
    assert said in error


def test_it_fits_a_terminal_of_80_columns(called):
    status, out, _ = called("add")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "Nothing is touched that must not be." in out


def test_the_example_of_the_page_is_current(called):
    page = (DOCS / "profiler.md").read_text()
    status, out, _ = called(f"{DOCS / 'profiler' / 'softmax.py'}:softmax", "--lines", 6)
    assert status == 0
    assert out in page, "put what is printed into docs/profiler.md"
    # 64 programs of 128 threads, 8 exponentials and a reciprocal each.
    assert f"{64 * 128 * (8 + 1):,}" in out
    assert f"{64 * 1000 * 2:,}" in out
