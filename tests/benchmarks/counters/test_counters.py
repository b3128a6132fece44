"""What is read from the profiler, and what is made of it. No profiler is needed."""

import collections
import dataclasses
import shutil
import sys

import pytest
import torch
import triton

import flopcount as fc
from benchmarks.attention.peers import shapes_of_model
from benchmarks.attention.shapes import Shape
from benchmarks.counters import clocks, executed, profiler, steps
from benchmarks.counters import run as counters
from benchmarks.counters.profiler import EXPONENTIALS, PATHS, Kernel, ProfilerError, parse, verdict
from benchmarks.measurement import FINDING, ROOT
from kernels.attention.tilings import KERNELS
from models.results import between_marks, read_table
from models.training.throughput import measure, tiling_of
from validate.witnesses.kernel_tally import tallying
from validate.witnesses.processes import triton_processes

pytestmark = pytest.mark.interpreter
BF16 = PATHS["bfloat16"]
# Synthetic: written by hand after the documented format, not recorded from a run.
SAMPLE = f"""==PROF== Connected to process 4711 (/usr/bin/python3.12)
==PROF== Profiling "case_marker" - 0: 0%....50%....100% - 2 passes
==WARNING== Some metrics are not available
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",\
"Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"
"0","4711","python3.12","127.0.0.1","case_marker","1","7","(32, 1, 1)","(1, 1, 1)","0","9.0",\
"Command line profiler metrics","{BF16["total"]}","ops","0"
"1","4711","python3.12","127.0.0.1","attention_forward","1","7","(256, 1, 1)","(20, 1, 1)","0",\
"9.0","Command line profiler metrics","{BF16["total"]}","ops","137,438,953,472"
"1","4711","python3.12","127.0.0.1","attention_forward","1","7","(256, 1, 1)","(20, 1, 1)","0",\
"9.0","Command line profiler metrics","{BF16["wgmma"]}","ops","137438953472.000000"
"1","4711","python3.12","127.0.0.1","attention_forward","1","7","(256, 1, 1)","(20, 1, 1)","0",\
"9.0","Command line profiler metrics","{BF16["mma"]}","","n/a"
"1","4711","python3.12","127.0.0.1","attention_forward","1","7","(256, 1, 1)","(20, 1, 1)","0",\
"9.0","Command line profiler metrics","gpu__time_duration.sum","ns","1,234.5"
"2","4711","python3.12","127.0.0.1","void gemm<128, float>(Params, int)","1","7","(128, 1, 1)",\
"(9, 1, 1)","0","9.0","Command line profiler metrics","{BF16["total"]}","ops","12"
==PROF== Disconnected from process 4711
"""


def test_the_profilers_table_is_read():
    marker, forward, gemm = parse(SAMPLE)
    assert (marker.name, forward.name) == ("case_marker", "attention_forward")
    assert gemm.name == "void gemm<128, float>"
    assert forward.counts[BF16["total"]] == 2 * 4096**3  # thousands separators
    assert forward.counts[BF16["wgmma"]] == 2 * 4096**3  # decimals of a whole number
    assert forward.counts[BF16["mma"]] is None  # n/a is no 0
    assert BF16["mma"] not in gemm.counts
    assert forward.tensor_ops("bfloat16") == 2 * 4096**3
    assert gemm.tensor_ops("float16") is None


def test_the_total_is_never_added_to_its_parts():
    counts = {BF16["total"]: 10, BF16["wgmma"]: 6, BF16["mma"]: 4}
    assert Kernel("k", counts).tensor_ops("bfloat16") == 10
    del counts[BF16["total"]]
    assert Kernel("k", counts).tensor_ops("bfloat16") == 10
    counts[BF16["mma"]] = None
    assert Kernel("k", counts).tensor_ops("bfloat16") is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"ops","0"', '"Mops","0"', "is rounded: got 0 Mops"),
        ('"ops","12"', '"ops","12.5"', "must be a whole number, got 12.5"),
        ('"ops","12"', '"ops","twelve"', "must be a whole number, got twelve"),
        ("Metric Value", "Metric Price", "printed no table"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused(old, new, message):
    assert old in SAMPLE
    with pytest.raises(ProfilerError, match=message):
        parse(SAMPLE.replace(old, new))


def test_an_empty_profile_is_refused():
    with pytest.raises(ProfilerError, match="printed no table: ==PROF== No kernels"):
        parse("==PROF== No kernels were profiled.")


def test_kernels_come_in_the_order_of_launch():
    lines = SAMPLE.splitlines()
    table = next(index for index, line in enumerate(lines) if line.startswith('"ID"'))
    turned = "\n".join([*lines[: table + 1], *reversed(lines[table + 1 :])])
    assert [kernel.name for kernel in parse(turned)] == [kernel.name for kernel in parse(SAMPLE)]


FAKE_NCU = """#!{python}
import sys
log = sys.argv[sys.argv.index("--log-file") + 1]
metrics = sys.argv[sys.argv.index("--metrics") + 1]
text = open({sample!r}).read()
if {unknown!r} and {unknown!r} in metrics:
    print("==ERROR== Failed to find metric {unknown}")
    sys.exit(9)
print({said!r})
open(log, "w").write(text)
sys.exit({code})
"""


@pytest.fixture
def fake_ncu(tmp_path, monkeypatch):
    """A program called ncu that answers as told."""

    def make(unknown="", said="", code=0, sample=SAMPLE):
        (tmp_path / "sample").write_text(sample)
        program = tmp_path / "bin" / "ncu"
        program.parent.mkdir()
        program.write_text(
            FAKE_NCU.format(
                python=sys.executable,
                sample=str(tmp_path / "sample"),
                unknown=unknown,
                said=said,
                code=code,
            )
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))
        return tmp_path / "log.csv"

    return make


def test_a_metric_unknown_to_the_profiler_is_left_out(fake_ncu):
    log = fake_ncu(unknown=EXPONENTIALS)
    assert [kernel.name for kernel in profiler.profile("m", [], log)][1] == "attention_forward"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (dict(said="==ERROR== ERR_NVGPUCTRPERM", code=1), "may not read the counters"),
        (dict(said="LibraryNotLoaded", code=1), "ended with 1: LibraryNotLoaded"),
        (dict(sample="==PROF== nothing"), "printed no table"),
    ],
)
def test_a_profiler_that_fails_says_why(fake_ncu, answer, message):
    log = fake_ncu(**answer)
    with pytest.raises(ProfilerError, match=message):
        profiler.profile("m", [], log)


def test_without_a_profiler_the_remaining_command_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        counters.main(["probe", "--out", str(tmp_path)])
    assert ended.value.code == FINDING
    said = capsys.readouterr().out
    assert said.startswith("error: ncu is not on the PATH")
    assert "--clock-control none" in said
    with pytest.raises(SystemExit) as ended:
        counters.main(["kernels", "--out", str(tmp_path), "--drawn", "20"])
    assert ended.value.code == FINDING
    rows = read_table(tmp_path / "counters.csv")
    assert rows[0]["executed"] == str(2 * 4096**3)
    assert {row["counted"] for row in rows} == {"missing"}
    assert all(row["verdict"].startswith("not confirmed") for row in rows)


def test_at_least_twenty_drawn_cases_with_odd_sizes():
    cases = counters.kernel_cases()
    drawn = cases[-24:]
    assert all(c.queries % 2 and c.head_dim % 2 and (c.prefix == 0 or c.prefix % 2) for c in drawn)
    assert {c.head_dim for c in cases} >= {54, 64, 73, 78, 91, 96, 128}
    assert all(c.head_dim <= 256 for c in cases)


def test_verdicts():
    assert verdict(7, 7) == "confirmed"
    assert verdict(7, 8) == "differs"
    assert verdict(0, None).startswith("not confirmed")


def kernel(name, ops):
    return Kernel(name, dict.fromkeys(BF16.values(), None) | {BF16["total"]: ops})


def test_cases_are_told_apart_by_markers():
    names = ["case_marker", "a", "b", "case_marker", "case_marker", "a"]
    found = counters.between_markers([kernel(name, 0) for name in names], 3)
    assert [[k.name for k in case] for case in found] == [["a", "b"], [], ["a"]]
    with pytest.raises(ProfilerError, match="must hold 4 cases, got 3"):
        counters.between_markers([kernel(name, 0) for name in names], 4)


def test_launches_of_a_kernel_are_added_up_and_compared():
    kernels = [kernel("key_value", 30), kernel("key_value", 12), kernel("fill", 0)]
    expected = {"key_value": 42, "query": 5}
    rows = {row["kernel"]: row for row in counters.compared("c", kernels, expected, "bfloat16")}
    assert rows["key_value"]["verdict"] == "confirmed"
    assert rows["fill"]["verdict"] == "confirmed"
    assert rows["query"]["verdict"] == "not confirmed: the counter is missing"


@pytest.mark.parametrize(
    "planted",
    [
        [kernel("key_value", 43)],
        [kernel("key_value", 42), kernel("fill", 1)],
        [kernel("key_value", None)],
        [kernel("key_value", 42), kernel("key_value", None)],
    ],
)
def test_a_wrong_or_missing_count_confirms_nothing(planted):
    rows = counters.compared("c", planted, {"key_value": 42}, "bfloat16")
    assert any(row["verdict"] != "confirmed" for row in rows)


def test_a_failed_calibration_takes_every_verdict_back(monkeypatch, tmp_path):
    cases = len(counters.kernel_cases(20))

    def profiled(arguments, log, metrics=()):
        marked = [kernel("case_marker", 0), kernel("attention_forward", 8)]
        return [kernel("case_marker", 0), kernel("gemm", 2 * 4096**3 + gemm_off), *marked * cases]

    monkeypatch.setattr(counters, "_profiled", profiled)
    monkeypatch.setattr(counters, "executed_ops", lambda shape, size: {"attention_forward": 8})
    gemm_off = 0
    assert counters.run_kernels(tmp_path, drawn=20)
    assert len(read_table(tmp_path / "counters.csv")) == 1 + cases
    gemm_off = 2
    assert not counters.run_kernels(tmp_path, drawn=20)
    rows = read_table(tmp_path / "counters.csv")
    assert rows[0]["verdict"] == "differs"
    assert {row["verdict"] for row in rows[1:]} == {"not confirmed: the GEMM is differs"}


def test_what_is_emulated_stands_beside_its_counter():
    metric = "smsp__inst_executed.sum"
    other = "sm__inst_executed_pipe_xu.sum"
    kernels = [profiler.Kernel("query", {metric: 5, other: None}), profiler.Kernel("fill", {})]
    launches = [
        {"name": "query", "metrics": {metric: 2, other: 1}},
        {"name": "query", "metrics": {metric: 3, other: 1}},
        {"name": "key_value", "metrics": {metric: 4}},
    ]
    rows = {(r["kernel"], r["metric"]): r for r in counters.emulated("c", kernels, launches)}
    assert rows["query", metric]["verdict"] == "confirmed"
    assert rows["query", metric]["executed"] == 5
    assert rows["query", other]["verdict"] == "not confirmed: the counter is missing"
    assert rows["key_value", metric]["verdict"] == "not confirmed: the counter is missing"
    launches.pop(1)
    rows = list(counters.emulated("c", kernels, launches))
    assert rows[0]["verdict"] == "differs"
    assert rows[0]["difference"] == 3


def test_emulated_cases_are_written_beside_the_others(monkeypatch, tmp_path):
    profiled = [kernel(name, 8) for name in ("case_marker", "gemm", "case_marker")]
    (tmp_path / "kernels.ncu.csv").write_text("")
    monkeypatch.setattr(profiler, "parse", lambda text: profiled)
    monkeypatch.setattr(counters, "kernel_cases", lambda drawn: [Shape(1, 5, 0, 1, 16)])
    path = counters.emulate(tmp_path, drawn=0, jobs=1)
    rows = read_table(path)
    assert counters.emulate(tmp_path, drawn=0, jobs=1) == path
    assert read_table(path) == rows  # nothing is emulated twice
    names = {row["kernel"] for row in rows if row["metric"] == "smsp__inst_executed.sum"}
    assert names == {
        "attention_forward",
        "row_products",
        "attention_key_value_gradient",
        "attention_query_gradient",
    }
    assert all(int(row["executed"]) >= 0 for row in rows)


@pytest.mark.parametrize("head_dim", [9, 73, 200])
def test_kernels_together_execute_what_the_counter_says(head_dim):
    shape = Shape(2, 300, 130, 3, head_dim)
    model = fc.PerceiverAR(
        vocab_size=1,
        num_latents=300,
        num_prefix=130,
        num_channels=3 * head_dim,
        num_layers=1,
        num_heads=3,
    )
    count = model.executed(tiling_of(head_dim, 2, 430), batch_size=2)
    attention = [term for term in count.terms if term.term in ("scores", "values")]
    found = executed.executed_ops(shape, 2)
    assert found["attention_forward"] == sum(line.forward for line in attention)
    assert sum(found.values()) == sum(line.forward + line.backward for line in attention)


def test_kernels_execute_what_the_interpreter_issues():
    shape = Shape(1, 37, 19, 2, 20)
    launches = []
    with tallying(launches):
        counters._attention_call(shape)()
    issued = collections.Counter()
    for launch in launches:
        issued[launch.name] += launch.total
    # Kernels that the formula does not name run too, and issue nothing.
    assert set(issued) > set(KERNELS.values())
    assert {name: ops for name, ops in issued.items() if ops} == executed.executed_ops(shape, 4)


SMALL = fc.PerceiverAR(
    vocab_size=11,
    num_latents=6,
    num_prefix=8,
    num_channels=12,
    num_layers=3,
    num_heads=2,
    prefix_dropout=0.5,
)


@pytest.fixture(scope="module")
def products():
    return steps.dispatched(*steps.one_step(SMALL, 2, "reference"))


def test_products_of_a_step_are_those_of_the_counter(products):
    found = {}
    for product in products:
        key = (*steps.term_of_product(product, SMALL), product.phase)
        found[key] = found.get(key, 0) + product.dense
    dense = steps.level_by_term(SMALL, "dense", 2)
    assert found == {key: flops for key, flops in dense.items() if key[1] != "scores + values"}


def test_a_step_is_attributed_by_order(products):
    kernels = [kernel("copy", 0)]
    for product in products:
        kernels += [kernel("gemm", product.dense + 1), kernel("copy", 0)]
    rows = list(steps.step_rows("small", SMALL, products, kernels, 2))
    assert len(rows) == len(products)
    # A library that pads: the counter is above the formula, and said to be.
    assert all(row["counted"] == row["executed"] + 1 for row in rows)
    assert {row["verdict"] for row in rows} == {"differs"}
    causal = SMALL.flops(level="causal", batch_size=2)
    assert sum(row["causal"] for row in rows) == causal.total


def test_fused_kernels_in_a_row_are_one_product(products):
    fused = [
        dataclasses.replace(product, fused=True, module="hybrid.attention.attend")
        if index == 3
        else product
        for index, product in enumerate(products[:6])
    ]
    names = ["gemm"] * 3 + ["attention_key_value_gradient", "attention_query_gradient"]
    kernels = [kernel(name, 5) for name in [*names, "gemm", "gemm"]]
    joined = steps.attributed(fused, kernels)
    assert [len(group) for _, group in joined] == [1, 1, 1, 2, 1, 1]
    assert steps.term_of_product(fused[3], SMALL) == ("hybrid", "scores + values")


def test_a_fused_step_is_attributed_and_confirmed():
    products = steps.dispatched(*steps.one_step(SMALL, 2, "fused"))
    hybrid, _, plain = shapes_of_model(SMALL, 2)
    kernels = []
    for product in products:
        if not product.fused:
            kernels.append(kernel("gemm", product.dense))
            continue
        shape = hybrid if product.module.startswith("hybrid") else plain
        ops = executed.executed_ops(shape, 4)
        forward = KERNELS["forward"]
        backward = [name for name in ops if name != forward]
        names = [forward] if product.phase == "forward" else backward
        kernels += [kernel("prepare_rows", 0), *(kernel(name, ops[name]) for name in names)]
    rows = list(steps.step_rows("small", SMALL, products, kernels, 2))
    assert {row["verdict"] for row in rows} == {"confirmed"}
    assert sum(row["causal"] for row in rows) == SMALL.flops(batch_size=2).total
    executed_by_all = measure(SMALL, 2, "fused", None, None, "fp32", 1).executed
    assert sum(row["executed"] for row in rows) == executed_by_all.total


def test_a_kernel_too_many_leaves_all_unattributed(products):
    kernels = [kernel("gemm", product.dense) for product in products] + [kernel("gemm", 1)]
    rows = list(steps.step_rows("small", SMALL, products, kernels, 2))
    assert {row["verdict"] for row in rows} == {"not attributed"}
    assert sum(row["counted"] for row in rows) == sum(p.dense for p in products) + 1


def test_a_missing_counter_in_a_step_is_missing(products):
    kernels = [kernel("gemm", None) for _ in products]
    rows = list(steps.step_rows("small", SMALL, products, kernels, 2))
    assert {row["counted"] for row in rows} == {"missing"}
    assert {row["verdict"] for row in rows} == {"not confirmed: the counter is missing"}


def test_the_article_models_of_the_step():
    for name in steps.SEED_MODELS:
        channels, layers = name.split("-")[0].split("x")
        model = steps.seed_model(name)
        assert (model.num_channels, model.num_layers) == (int(channels), int(layers))


def test_the_workload_profiles_only_what_is_asked(monkeypatch):
    events = []
    monkeypatch.setattr(counters, "mark", lambda: events.append("mark"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: events.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: events.append("stop"))
    monkeypatch.setattr(counters, "GEMM", (4, 4, 4))
    counters.workload(("gemm",))
    assert events == ["mark", "start", "mark", "stop"]


RESULTS = ROOT / "benchmarks" / "results" / "nvidia-h200" / "first"
KERNEL_NAMES = {*KERNELS.values(), "row_products", "prepare_rows"}


def test_the_pages_table_is_of_the_committed_rows():
    text = (ROOT / "docs" / "emulator.md").read_text(encoding="utf-8")
    first, *others = read_table(RESULTS / "emulated.csv")
    table = counters.agreement_table([first, *others])
    assert between_marks(text, "agreement", table) == text
    first |= {"difference": "1"}
    assert counters.agreement_table([first, *others]) != table


@pytest.mark.parametrize(
    ("folder", "mark", "shapes"), [("first", "clocks", 45), ("tuned", "tuned clocks", 21)]
)
def test_the_pages_clocks_are_of_the_committed_rows(folder, mark, shapes):
    text = (ROOT / "docs" / "profiler.md").read_text(encoding="utf-8")
    rows = read_table(RESULTS.with_name(folder) / "modelled.csv")
    table = clocks.clocks_table(rows)
    assert between_marks(text, mark, table) == text
    profile = parse((RESULTS.with_name(folder) / "kernels.ncu.csv").read_text(encoding="utf-8"))
    _, *cases = counters.between_markers(profile, 46)
    kernels = [k for case in cases[:shapes] for k in case if k.name in KERNEL_NAMES]
    cycles = [k.counts["sm__cycles_elapsed.max"] for k in kernels]
    assert [int(row["measured"]) for row in rows] == cycles
    rows[0] |= {"after": "1"}
    assert clocks.clocks_table(rows) != table


def test_rows_of_modelled_clocks_are_made_again():
    """Those of code that is here what was profiled: padding, of the first launch of each case.

    Other kernels have other tilings by now, and another Triton compiles them to other code.
    """
    committed = [row for row in read_table(RESULTS / "modelled.csv") if row["launch"] == "0"]
    padding = {row["case"]: row for row in committed if row["kernel"] == "prepare_rows"}
    shapes = counters.kernel_cases(24)
    profile = profiler.parse((RESULTS / "kernels.ncu.csv").read_text(encoding="utf-8"))
    _, *profiled = counters.between_markers(profile, 1 + len(shapes))
    with triton_processes(interpret=False) as pool:
        for number in (42, 40):
            shape, kernels = shapes[number], profiled[number]
            launches = pool.submit(clocks.launches_of, shape, False).result()
            calibrated = number in clocks.CALIBRATED_ON
            (row,) = clocks.rows_of(str(shape), kernels[:1], launches[:1], calibrated)
            assert {key: str(cell) for key, cell in row.items()} == padding[str(shape)]
            with pytest.raises(
                ProfilerError, match="other code was profiled of launch 1, attention"
            ):
                list(clocks.rows_of(str(shape), kernels[:2], launches[:2], calibrated))
            with pytest.raises(ProfilerError, match="other kernels were profiled"):
                list(clocks.rows_of(str(shape), kernels, launches[:1], calibrated))


def test_clocks_are_written_beside_the_measured_ones(monkeypatch, tmp_path):
    names = ("attention_forward", "row_products", *(KERNELS[x] for x in ("key_value", "query")))
    profiled = [kernel(name, 8) for name in ("case_marker", "gemm", "case_marker", "void fill")]
    profiled += [
        Kernel(name, {"sm__cycles_elapsed.max": 7_000 + i}) for i, name in enumerate(names)
    ]
    (tmp_path / "kernels.ncu.csv").write_text("")
    (tmp_path / "counters.jsonl").write_text(f'{{"triton": "{triton.__version__}"}}\n')
    monkeypatch.setattr(profiler, "parse", lambda text: profiled)
    monkeypatch.setattr(counters, "kernel_cases", lambda drawn: [Shape(1, 5, 0, 1, 16)])
    path = counters.model_clocks(tmp_path, drawn=0, jobs=1)
    rows = read_table(path)
    assert counters.model_clocks(tmp_path, drawn=0, jobs=1) == path
    assert read_table(path) == rows  # nothing is modelled twice
    assert [row["kernel"] for row in rows] == list(names)
    assert [row["measured"] for row in rows] == ["7000", "7001", "7002", "7003"]
    assert {row["calibrated on"] for row in rows} == {"yes"}  # the first case is among those
    # A launch takes 2,700 clocks, and there is no code without a line of 20.
    assert all(int(row["after"]) >= int(row["before"]) + 2_720 for row in rows)


def test_clocks_are_modelled_with_the_triton_that_was_profiled(monkeypatch, tmp_path):
    shutil.copy(RESULTS / "counters.jsonl", tmp_path)
    monkeypatch.setattr(counters.triton, "__version__", "3.5.0")
    with pytest.raises(
        ProfilerError, match=r"Triton 3\.6\.0 were profiled, this is 3\.5\.0.*1f2f72d"
    ):
        counters.model_clocks(tmp_path, drawn=24)
    assert not (tmp_path / "modelled.csv").exists()


def test_what_a_gpu_counts_is_what_the_emulator_executes():
    rows = [row for row in read_table(RESULTS / "emulated.csv") if row["counted"] != "missing"]
    off = {row["metric"] for row in rows if row["difference"] != "0"}
    assert off == {  # docs/emulator.md says why
        "smsp__inst_executed.sum",
        "sm__sass_data_bytes_mem_global_op_ldgsts.sum",
        "sm__sass_l1tex_t_sectors_pipe_lsu_mem_global_op_ldgsts_cache_bypass.sum",
        *(f"l1tex__data_pipe_lsu_wavefronts_mem_shared_op_{kind}.sum" for kind in ("ld", "st")),
    }
