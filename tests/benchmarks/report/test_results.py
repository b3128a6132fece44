"""What a GPU has measured, as committed: counts by today's formula, and the pages' figures."""

import json
import re
import statistics

import pytest

from benchmarks.attention.shapes import SETS, Shape
from benchmarks.attention.timing import SIZES
from benchmarks.counters.executed import executed_ops
from benchmarks.counters.steps import seed_model
from benchmarks.report import aims, tables
from benchmarks.tiling.tune import written
from kernels.attention import tilings
from models.results import read_table

RESULTS = tables.ROOT / "benchmarks" / "results" / "nvidia-h200"
README = tables.README.read_text(encoding="utf-8")
NOTES = (RESULTS / "NOTES.md").read_text(encoding="utf-8")
NOTES_IN_A_LINE = " ".join(NOTES.split())
LONG_PEERS = ("FlexAttention", "cuDNN")


def attention_rows(folder):
    """Rows of our kernels, with the shape that each is of; the first row is the library's GEMM."""
    rows = read_table(RESULTS / folder / "counters.csv")
    assert rows[0]["case"] == "GEMM"
    sizes = [map(int, re.findall(r"=(\d+)", row["case"])) for row in rows[1:]]
    return [(Shape(*of_row), row) for of_row, row in zip(sizes, rows[1:], strict=True)]


@pytest.mark.parametrize(
    ("folder", "tuned"), [("first", {}), ("tuned", RESULTS / "tuning" / "tuned.csv")]
)
def test_the_hardware_counted_what_the_formula_says(monkeypatch, folder, tuned):
    under = tilings.tuned_tilings(tuned) if tuned else {}
    monkeypatch.setattr(tilings, "_tuned", lambda: under)
    rows = attention_rows(folder)
    multiplied = 0
    for shape, row in rows:
        expected = executed_ops(shape, 2).get(row["kernel"], 0)
        assert int(row["counted"]) == expected, row["case"]
        multiplied += expected > 0
    assert len({shape for shape, _ in rows}) == 45
    assert multiplied == 3 * 45  # forward, key-value and query: the padding multiplies nothing
    total = sum(int(row["counted"]) for _, row in rows) + 2 * 4096**3
    assert f"{total:,}" in NOTES
    assert folder == "first" or f"{total:,}" in README


def test_other_tilings_would_not_explain_the_counts():
    wrong = [
        row
        for shape, row in attention_rows("first")
        if int(row["counted"]) != executed_ops(shape, 2).get(row["kernel"], 0)
    ]
    assert len(wrong) > 30


def test_each_product_of_two_steps():
    steps = {name: read_table(RESULTS / name / "step.csv") for name in ("tuned", "shipped")}
    padded, ours, exact, others = {}, 0, 0, 0
    for name, rows in steps.items():
        for row in rows:
            counted, confirmed = int(row["counted"]), row["verdict"] == "confirmed"
            assert (counted == int(row["executed"])) == confirmed
            if row["term"] == "scores + values":
                assert confirmed
                ours += 1
                continue
            others += 1
            exact += confirmed
            if not confirmed:
                padded.setdefault(name, []).append(counted / int(row["executed"]) - 1)
    assert f"{len(steps['tuned'])} and {len(steps['shipped'])} products, {ours} of our" in README
    assert f"0 in these {ours} and in the library's" in README
    assert f"divide the sizes, {exact} of {others}; it pads three of 262 logits by" in README
    assert len(padded["tuned"]) == 3
    assert f"all {len(padded['shipped'])} at 728 columns by" in README
    for shares in padded.values():
        assert any(
            f"{100 * min(shares):.{digits}f} to {100 * max(shares):.{digits}f} %" in README
            for digits in (0, 1)
        )
    for row in steps["tuned"]:
        if row["verdict"] != "confirmed":
            assert f"{int(row['counted']):,}" in NOTES
            assert f"{int(row['executed']):,}" in NOTES
    counted, executed = (
        sum(int(row[name]) for row in steps["shipped"]) for name in ("counted", "executed")
    )
    assert f"{100 * (counted / executed - 1):.1f} % of the whole step" in NOTES


def test_the_readme_has_the_measured_table():
    rows = [
        row
        for row in read_table(RESULTS / "shipped" / "attention.csv")
        if Shape(*(int(row[name]) for name in SIZES)) in tables.HEADLINE
    ]
    assert tables.with_headline(README, rows) == README


def test_what_is_said_of_whole_steps():
    by_model = {}
    for row in read_table(RESULTS / "shipped" / "throughput.csv"):
        by_model.setdefault(row["model"], {})[row["implementation"]] = row
    for rows in by_model.values():
        speed = {name: float(row["tokens_per_second"]) for name, row in rows.items()}
        ours = speed["fused, compiled"]
        peers = max(speed["sdpa-flash, compiled"], speed["flex, compiled"])
        mfu = f"{100 * float(rows['fused, compiled']['mfu']):.1f} %"
        assert f"{mfu}" in README
        assert f"{mfu}" in NOTES.replace("% MFU", "%")
        assert f"{ours / peers:.2f} times" in README
        assert f"{ours / peers:.2f} times" in NOTES_IN_A_LINE
        assert f"{ours / speed['eager']:.2f} times" in NOTES_IN_A_LINE


def test_where_the_time_of_a_step_goes():
    text = (RESULTS / "shipped" / "step-kernels.txt").read_text(encoding="utf-8")
    lines = [line.split(maxsplit=2) for line in text.split("512x9")[0].splitlines()[1:]]
    ms = {name: float(time) for time, _, name in lines}
    (row,) = [
        row
        for row in read_table(RESULTS / "shipped" / "throughput.csv")
        if (row["model"], row["implementation"]) == ("728x13-V32000-m1536", "fused, compiled")
    ]
    step = float(row["ms"])
    products = ms["aten::mm"] + ms["aten::addmm"]
    attention = sum(time for name, time in ms.items() if name.startswith("flopcount::"))
    model = seed_model("728x13-V32000-m1536")
    rows = model.flops(level="causal", batch_size=80).rows
    dense = sum(row.flops for row in rows if row.term not in ("scores", "values"))
    rate, matmul = dense / products * 1e3, float(row["matmul_flops_per_second"])
    rest = step - products - attention
    elements = sum(
        time
        for name, time in ms.items()
        if name.startswith(("triton_", "Memset", "aten::sum", "aten::_f"))
    )
    wanted = step * float(row["mfu"]) / 0.55
    told = NOTES_IN_A_LINE
    assert f"728×13's {step:.1f} ms go: {products:.1f} in the library's" in told
    assert (
        f"({rate / 1e12:.0f} TFLOP/s of their `causal` FLOPs, {100 * rate / matmul:.0f} %" in told
    )
    assert f"{attention:.1f} in our attention, of which {ms['prepare_rows']:.1f}" in told
    assert f"{elements:.1f} in the element-wise kernels" in told
    assert f"and {rest - elements:.1f} in smaller ones" in told
    assert f"is a step of {wanted:.1f} ms; less all of attention it would be" in told
    assert f"it would be {products + rest:.1f}." in told
    of = {
        word: sum(t for name, t in ms.items() if name.startswith("triton_") and word in name)
        for word in ("gelu", "layer_norm_backward", "log_softmax")
    }
    assert f"GELU in the product before it ({of['gelu']:.1f} ms)" in told
    assert f"layer norm's backward pass ({of['layer_norm_backward']:.1f})" in told
    assert f"without fp32 logits ({of['log_softmax']:.1f})" in told


def test_what_is_said_of_blocks():
    times = {}
    for row in read_table(RESULTS / "shipped" / "block.csv"):
        times.setdefault(int(row["channels"]) // 8, {})[row["implementation"]] = float(row["ms"])
    shares = {
        head_dim: of["fused, compiled"] / min(of["sdpa-flash, compiled"], of["flex, compiled"])
        for head_dim, of in times.items()
    }
    assert f"{shares[73]:.2f} of the time at 73, {shares[91]:.2f} at 91, {shares[64]:.2f} at" in (
        NOTES_IN_A_LINE
    )
    less = 1 - times[73]["cudnn, compiled"] / times[73]["sdpa-flash, compiled"]
    assert f"cuDNN takes {less:.0%} less than SDPA-flash".replace("%", " %") in NOTES_IN_A_LINE


def test_what_is_said_of_other_shapes_and_of_what_is_missed():
    cases = tables.by_case(read_table(RESULTS / "shipped" / "attention.csv"))

    def ends(shapes, name, peers):
        over = [tables.over(cases[shape, name], peers) for shape in shapes]
        return f"{min(over):.2f} to {max(over):.2f}"

    long = [shape for shape in SETS["long"] if shape.head_dim == 64]
    flex, cudnn = ([ends(long, name, [peer]) for name in tables.PASSES] for peer in LONG_PEERS)
    assert f"{flex[0]} of FlexAttention's time forward, {flex[1]} backward;" in NOTES_IN_A_LINE
    assert f"{cudnn[0]} and {cudnn[1]} of cuDNN's." in NOTES_IN_A_LINE
    evaluation = [shape for shape in SETS["evaluation"] if shape.prefix == 3584]
    told = ends(evaluation, "forward", aims.ANY_PEER)
    assert f"k = 3584, forward: {told} of the best that was measured" in NOTES_IN_A_LINE
    missed = {"prefix": [], "73, 78, 91": [], "54, 64": []}
    for shape in SETS["article"]:
        unaligned = shape.head_dim in aims.UNALIGNED
        peers = [aims.ANY_PEER] if unaligned else [["SDPA-flash"], ["FlexAttention"]]
        for name in tables.PASSES:
            over = max(tables.over(cases[shape, name], each) for each in peers)
            if over > (aims.OF_UNALIGNED if unaligned else 1):
                if shape.prefix:
                    missed["prefix"].append((shape.head_dim, shape.prefix, name, f"{over:.2f}"))
                else:
                    missed["73, 78, 91" if unaligned else "54, 64"].append(
                        (shape.head_dim, name, over)
                    )
    assert missed["prefix"] == [(128, 1792, "forward", "1.01")]
    assert sorted(each[:2] for each in missed["73, 78, 91"]) == [
        (73, "backward"), (73, "forward"), (78, "backward"), (78, "forward"), (91, "backward"),
    ]  # fmt: skip
    assert f"(up to {max(each[2] for each in missed['73, 78, 91']):.2f})" in NOTES_IN_A_LINE
    assert {each[0] for each in missed["54, 64"]} == {54, 64}
    assert f"(up to {max(each[2] for each in missed['54, 64']):.2f})" in NOTES_IN_A_LINE
    page = (RESULTS / "shipped" / "aims.md").read_text(encoding="utf-8")
    shares = [
        float(share) for share in re.findall(r"share of matmul rate .*? \| ([\d.]+) \|", page)
    ]
    assert f"forward, {100 * min(shares):.0f} to {100 * max(shares):.0f} %." in NOTES_IN_A_LINE


def test_what_is_said_of_tests_on_a_gpu():
    rows = read_table(RESULTS / "shipped" / "tests.csv")
    (failed,) = [row["test"] for row in rows if row["outcome"] != "passed"]
    assert "(2, 1, 300, 2, 1, 96)-torch.float32" in failed
    assert f"Of the {len(rows)} tests that need a GPU {len(rows) - 1} passed" in NOTES_IN_A_LINE


def test_what_is_said_of_the_host():
    rows = [
        json.loads(line)
        for line in (RESULTS / "shipped" / "host.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert {row["dim"] for row in rows} == {64}
    ours = rows[0]
    assert [row["name"] for row in rows] == ["fused", "sdpa-flash", "cudnn", "flex"]
    text = NOTES_IN_A_LINE
    host = [f"{1e3 * ours[f'host_{name}']:.0f}" for name in tables.PASSES]
    launches = [f"{1e3 * ours[f'launch_{name}'][0]:.0f}" for name in tables.PASSES]
    assert f"{host[0]} µs forward and {host[1]} backward at 64, {' and '.join(launches)}" in text
    of = {name: [f"{row[f'graph_{name}']:.3f}" for row in rows] for name in tables.PASSES}
    assert (
        "{} ms forward at 64, SDPA-flash {}, cuDNN {}, FlexAttention {};".format(*of["forward"])
        in text
    )
    assert "backward {}, and these {}, {} and {}.".format(*of["backward"]) in text


def test_the_notes_have_the_measured_ratios():
    found = dict(
        re.findall(
            r"^\| (\d+) \| ([\d.]+ / [\d.]+(?: \| [\d.]+ / [\d.]+){2}) \|", NOTES, re.MULTILINE
        )
    )
    of_folder = {
        name: tables.by_case(read_table(RESULTS / name / "attention.csv"))
        for name in ("first", "tuned", "shipped")
    }
    for shape in tables.HEADLINE:
        cells = [
            " / ".join(
                f"{tables.over(cases[shape, name], aims.ANY_PEER):.2f}" for name in tables.PASSES
            )
            for cases in of_folder.values()
        ]
        assert found[str(shape.head_dim)] == " | ".join(cells)
    assert len(found) == len(tables.HEADLINE)


def test_the_notes_say_what_the_shipped_tilings_cost():
    times = {}
    for row in read_table(RESULTS / "tuning" / "tilings.csv"):
        if row["status"] == "ok":
            case = row["pass"], int(row["head_dim"]), int(row["queries"]) + int(row["prefix"])
            times.setdefault(case, {})[row["tiling"]] = float(row["ms"])
    over_fastest, over_first = [], []
    for (name, head_dim, keys), of in times.items():
        shipped = of[written(tilings.shipped_tiling(name, head_dim, 2, keys))]
        over_fastest.append(shipped / min(of.values()))
        over_first.append(shipped / next(iter(of.values())))
    assert f"at most {max(over_fastest):.2f} of the fastest time" in NOTES
    assert f"and {statistics.median(over_fastest):.2f} in the median" in NOTES
    assert f"and {min(over_first):.2f} to {max(over_first):.2f} of the first tilings'" in NOTES
    assert f"{statistics.median(over_first):.2f} in the median." in NOTES


def test_the_readme_says_how_far_the_host_lags_behind():
    cases = tables.by_case(read_table(RESULTS / "shipped" / "attention.csv"))
    ratios = [
        tables.over(case, ["cuDNN"])
        for (shape, _), case in cases.items()
        if shape.prefix == 0 and shape.queries == 512
    ]
    assert f"up to {max(ratios):.1f} times slower than cuDNN" in README
