"""Tables as strangers publish them: read right, warned of, or refused with the cells named."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopcount.cli import main
from flopcount.isoflop.columns import heading_name, is_rate, positive
from flopcount.isoflop.curves import fit_training_curves, read_curves
from flopcount.isoflop.optima import fit_optima
from flopcount.isoflop.profiles import fit_isoflop_profiles
from flopcount.isoflop.runs import read_runs
from flopcount.isoflop.surface import fit_surface


def write(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_text(text.replace("; ", "\n"))
    return path


READ = {
    # Two rows or one; N, D and C of the first run.
    "widths are no tokens": ("N,d,C,loss; 1e9,768,1.2e20,2.7", {}, (1e9, 2e10, 1.2e20)),
    "the cell's own unit": ("Params (M),Tokens (B),Loss; 400M,8B,2.9", {}, (4e8, 8e9, 1.92e19)),
    "another unit in the cell": (
        "Params (M),Tokens (B),Loss; 0.4B,8000M,2.9", {}, (4e8, 8e9, 1.92e19)
    ),
    "the heading's unit": ("Params (M),Tokens (B),Loss; 400,8,2.9", {}, (4e8, 8e9, 1.92e19)),
    "units of named columns": (
        "params_M,tokens_B,loss; 400,8,2.9",
        dict(params="params_M", tokens="tokens_B"),
        (4e8, 8e9, 1.92e19),
    ),
    "units of headings that are recognised": (
        "params_M,tokens in billions,loss; 400,8,2.9", {}, (4e8, 8e9, 1.92e19)
    ),
    # 0.1 PF-days = 0.1·1e15·86,400 s = 8.64e18; D = 8.64e18 / (6·1e8) = 1.44e10.
    "PF-days": (
        "N,Compute (PF-days),loss; 1e8,0.1,2.9",
        dict(flops="Compute (PF-days)"),
        (1e8, 1.44e10, 8.64e18),
    ),
    "petaflop/s-days": (
        "N,Compute (petaflop/s-days),loss; 1e8,0.1,2.9", {}, (1e8, 1.44e10, 8.64e18)
    ),
    "EFLOPs": ("N,Training Compute [EFLOPs],loss; 1e8,8.64,2.9", {}, (1e8, 1.44e10, 8.64e18)),
    "1e18 FLOPs": ("N,C (1e18 FLOPs),loss; 1e8,8.64,2.9", {}, (1e8, 1.44e10, 8.64e18)),
    "10¹⁸ FLOPs": ("N,C (10¹⁸ FLOPs),loss; 1e8,8.64,2.9", {}, (1e8, 1.44e10, 8.64e18)),
    "a total in gigaflops, as loggers write it": (
        "parameter_count,throughput/total_gflops,eval/loss; 1e8,8.64e9,2.9",
        {},
        (1e8, 1.44e10, 8.64e18),
    ),
    "the rule in place of a column": (
        "params,tokens,tflops,loss; 1e9,2e10,413.2,2.7", dict(flops="6ND"), (1e9, 2e10, 1.2e20)
    ),
    "thousands": ('N,D,loss; "1,000,000,000","20,000,000,000",2.7', {}, (1e9, 2e10, 1.2e20)),
}  # fmt: skip


@pytest.mark.parametrize(("text", "options", "expected"), READ.values(), ids=READ)
def test_read_right(tmp_path, text, options, expected):
    runs = read_runs(write(tmp_path, text), **options)
    found = runs.params[0], runs.tokens[0], runs.flops[0]
    assert found == pytest.approx(expected, rel=1e-12)
    assert runs.warnings == ()


def test_decimal_commas(tmp_path):
    rows = "params;tokens;loss\n1e9;2e10;3,288\n2e9;2e10;3,1\n"
    runs = read_runs(write(tmp_path, rows))
    assert runs.loss.tolist() == [3.288, 3.1]
    assert "commas are read as decimal points" in runs.described
    # "1,234" is no loss of 1,234 either: nothing in this table has a decimal point.
    assert read_runs(write(tmp_path, 'N,D,loss\n1e9,2e10,"1,234"\n')).loss[0] == 1.234
    # Counts follow the losses: 1,5 billion, and not 15.
    rows = "Params (B);Tokens (B);loss\n1,5;20;3,288\n"
    assert read_runs(write(tmp_path, rows)).params[0] == 1.5e9
    # Beside points as decimal points, a comma in a loss is nothing: the row is left out.
    mixed = read_runs(write(tmp_path, 'N,D,loss\n1e9,2e10,2.7\n2e9,2e10,"1,234"\n'))
    assert [(flag.row, flag.used) for flag in mixed.flagged] == [(2, False)]
    assert "loss = '1,234'" in mixed.flagged[0].reason
    assert "no decimal point" in mixed.flagged[0].reason


REFUSED = {
    # 413.2 TFLOP/s: 4.132e14 / (1e9·2e10) = 2.07e-5.
    "a rate": (
        "params,tokens,tflops,loss; 1e9,2e10,413.2,2.7",
        {},
        ("flops = 'tflops' holds '413.2'", "C / (N·D) is 2.07e-05", "rate", "flops='6ND'"),
    ),
    "a logger's rate": (
        "params,tokens,throughput/tflops,loss; 1e9,2e10,413.2,2.7",
        {},
        ("flops = 'throughput/tflops' holds '413.2'", "2.07e-05"),
    ),
    "a rate that nothing can be held against": (
        "params,tflops,loss; 1e9,413.2,2.7", {}, ("flops = 'tflops' holds '413.2'", "a rate")
    ),
    "a rate by name": ("params,TFLOP/s,loss; 1e9,413.2,2.7", {}, ("'TFLOP/s' is a rate",)),
    "a named rate": (
        "params,tokens,flops_per_second,loss; 1e9,2e10,4e14,2.7",
        dict(flops="flops_per_second"),
        ("flops = 'flops_per_second': expected a total, not a rate",),
    ),
    "tokens per second": (
        "params,flops,Tokens/s,loss; 1e9,1e20,4e5,2.7",
        dict(tokens="Tokens/s"),
        ("tokens = 'Tokens/s': expected a total, not a rate",),
    ),
    "a width alone": (
        "n_params,n_layers,d,loss; 1e9,24,768,2.7",
        {},
        ("expected loss and two of params, tokens, flops", "'d' not read: D is tokens, d a width"),
    ),
    "layers and a perplexity": (
        "N,D,L,ppl; 1e9,2e10,24,15",
        {},
        ("expected loss", "'ppl' is a perplexity: loss = ln ppl", "L in whole numbers layers"),
    ),
    "a context": (
        "N,D,C,loss; 1e9,2e10,2048,2.7",
        {},
        ("params = 'N' holds '1e9'", "flops = 'C' holds '2048'", "context"),
    ),
    "a context without tokens": (
        "N,C,loss; 1e9,2048,2.7", {}, ("flops = 'C' holds '2048'", "context length is no budget")
    ),
    # 1.92e19 / (400·8) = 6e15.
    "counts in units that nobody states": (
        "params,tokens,flops,loss; 400,8,1.92e19,2.9",
        {},
        ("params = 'params' holds '400'", "C / (N·D) is 6e+15", "'params (M)'"),
    ),
    "nothing but commas": (
        "params;tokens;loss; 1.5e9;2e10;3,288", {}, ("loss = '3,288'", "no decimal point")
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path, text, options, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        read_runs(write(tmp_path, text), **options)
    for word in words[1:]:
        assert word in str(caught.value)


WARNED = {
    "named columns without units": (
        "a,b,loss; 400,8,2.9",
        dict(params="a", tokens="b"),
        ("params = 'a' holds '400': a median of 400 is below 1000", "tokens = 'b' holds '8'"),
    ),
    "a named column that cannot be": (
        "N,D,C,loss; 1e9,2e10,2048,2.7", dict(flops="C"), ("flops = 'C' holds '2048'", "1.02e-16")
    ),
    # C = 0.19·N·D: 32 of 1,000 billion parameters are active.
    "experts": ("N,D,C,loss; 1e12,1e13,1.9e24,2", {}, ("C / (N·D) is 0.19",)),
    "a unit that nobody knows": (
        "N,Compute (GPU-hours),loss; 1e8,1e19,2.9",
        dict(flops="Compute (GPU-hours)"),
        ("the unit 'GPU-hours' is not known",),
    ),
    "a perplexity as a loss": ("N,D,ppl; 1e8,1e9,15", dict(loss="ppl"), ("loss = ln ppl",)),
    "a named column of tiny budgets": (
        "N,C,loss; 1e9,2048,2.7", dict(flops="C"), ("tokens from C = 6ND would be 3.41e-07",)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "options", "words"), WARNED.values(), ids=WARNED)
def test_warned_of(tmp_path, text, options, words):
    runs = read_runs(write(tmp_path, text), **options)
    for word in words:
        assert any(word in warning for warning in runs.warnings)
        assert word in runs.described
    assert runs.to_dict()["warnings"] == list(runs.warnings)


def test_a_column_that_is_named_is_no_second_quantity():
    table = {"N": [1e9], "D": [1.2e20], "loss": [2.7]}
    runs = read_runs(table, flops="D")
    assert (dict(runs.columns)["flops"], "tokens" in runs.columns) == ("D", False)
    assert runs.tokens[0] == 2e10


def test_flops_are_compared_with_the_rule():
    # C = 10·6·N·D, and so throughout.
    table = {"N": [1e8, 1e9], "D": [1e10, 1e10], "C": [6e19, 6e20], "loss": [3.0, 2.5]}
    assert "C / 6ND is 10 at the median, 10 to 10" in read_runs(table).described
    del table["C"]
    assert "6ND is" not in read_runs(table).described


def test_curves_are_held_against_the_same_checks():
    rows = [("a", 1e8, d, 4e14, 3e9 / d) for d in (1e9, 2e9)]
    names = ("run", "N", "D", "tflops", "loss")
    table = dict(zip(names, zip(*rows, strict=True), strict=True))
    with pytest.raises(ValueError, match="flops = 'tflops' holds 4"):
        read_curves(table)


@pytest.mark.parametrize(
    ("heading", "role", "expected"),
    [
        ("d", "tokens", ("d", 1)),
        ("D", "tokens", ("D", 1)),
        ("loss (nats)", "loss", ("lossnats", 1)),
        ("Params (non-embedding)", "params", ("paramsnonembedding", 1)),
        ("model_flops", "flops", ("modelflops", 1)),
        ("PFLOPs", "flops", ("flops", 1e15)),
        ("compute in ZFLOPs", "flops", ("computeflops", 1e21)),
        ("Compute (PFLOPS-days)", "budget", ("compute", 8.64e19)),
        ("Compute (pfs-days)", "flops", ("compute", 8.64e19)),
        ("Data (GB)", "tokens", ("datagb", 1)),
        ("tokens (10^9)", "tokens", ("tokens", 1e9)),
        ("tokens [x1e9]", "tokens", ("tokens", 1e9)),
    ],
)
def test_headings(heading, role, expected):
    assert heading_name(heading, role) == expected


def test_rates_are_told_by_their_heading():
    rates = ("TFLOP/s", "tokens per second", "tokens_per_sec", "perf/TFLOPs/GPU", "flops_per_token",
             "FLOPs/s/device", "tokensPerSecond", "C (FLOP/s)")  # fmt: skip
    assert [heading for heading in rates if not is_rate(heading)] == []
    totals = ("throughput/total_tokens", "Compute (petaflop/s-days)", "hyperparams", "train/flops")
    assert [heading for heading in totals if is_rate(heading)] == []


def test_cells():
    assert positive("400M", counts=True, unit=1e6) == 4e8
    assert positive("400", counts=True, unit=1e6) == 4e8
    assert positive("1,234") is None
    assert positive("1,234", counts=True) == 1234
    assert positive("1,234", counts=True, decimal_comma=True) == 1.234
    assert positive("1,234,567", counts=True, decimal_comma=True) is None


def test_a_total_failure_names_the_reasons():
    with pytest.raises(ValueError, match="no usable row among 2") as caught:
        read_runs({"N": ["x", 1e6], "D": [1e8, -1], "loss": [3.0, 2.0]})
    assert "row 1: N = 'x': expected a positive number" in str(caught.value)
    assert "row 2: D = -1: expected a positive number" in str(caught.value)
    with pytest.raises(
        ValueError, match=r"no usable curve of two points among 1 rows.*; row 1: ru"
    ):
        read_curves({"run": ["a"], "N": [1e6], "D": [1e8], "loss": [3.0]})


def test_rows_too_short_are_the_reason(tmp_path):
    with pytest.raises(ValueError, match=r"among 1 rows.*row 1: 4 cells under 3 headings"):
        read_runs(write(tmp_path, "N,D,loss; 1e9,2e10,2,7"))


def test_a_duplicate_is_one_in_any_order():
    # Losses A, B, B of one size: the last is a duplicate, as it is in B, A, B.
    for losses in ([3.0, 2.0, 2.0], [2.0, 3.0, 2.0], [2.0, 2.0, 3.0]):
        runs = read_runs({"N": [1e6] * 3, "D": [1e8] * 3, "loss": losses})
        assert runs.loss.tolist() == [2.0, 3.0]


def surface_rows():
    rows = []
    for index, n in enumerate(np.geomspace(1e7, 1e9, 5)):
        for power, d in enumerate(np.geomspace(1e9, 1e11, 5)):
            loss = 1.8 + 400 / n**0.34 + 400 / d**0.3 + 1e-3 * ((7 * index + 3 * power) % 5)
            rows.append((f"run-{index}", n, d, loss))
    # Of one size with another loss, twice the same, and three that share the highest loss.
    rows += [("run-0", 1e7, 1e9, 4.4), ("run-0", 1e7, 1e9, 4.4)]
    rows += [("run-5", n, 1e9, 9.0) for n in (2e7, 3e7, 4e7)]
    return rows


def profile_rows():
    rows = []
    for index, c in enumerate((1e18, 1e19, 1e20)):
        for ratio in (0.3, 0.6, 1.0, 1.7, 3.1):
            n = 0.1 * c**0.5 * ratio
            loss = 50 * c**-0.07 + 0.1 * np.log(ratio) ** 2 + 1e-3 * (index + 2 * ratio) ** 0.5
            rows.append(("x", n, c / 6 / n, loss))
    return rows


def table_of(rows):
    return dict(zip(("run", "N", "D", "loss"), zip(*rows, strict=True), strict=True))


def curve_rows():
    return [
        (f"run-{index}", n, d, 1.8 + 400 / n**0.34 + 400 / d**0.3)
        for index, n in enumerate((1e6, 3e6, 1e7, 1e7, 3e7, 1e8, 3e8))
        for d in np.geomspace(1e7, 1e11, 15)
    ]


FITS = {
    "surface, huber-log": (
        surface_rows,
        lambda table: fit_surface(read_runs(table, drop_highest=2), num_bootstrap=3),
    ),
    "surface, variable-projection": (
        surface_rows,
        lambda table: fit_surface(
            read_runs(table, drop_highest=2), objective="variable-projection", num_bootstrap=3
        ),
    ),
    "profiles": (
        profile_rows, lambda table: fit_isoflop_profiles(read_runs(table), num_bootstrap=20)
    ),
    "power laws": (
        profile_rows, lambda table: fit_optima(read_runs(table, optima=True), num_bootstrap=20)
    ),
    "curves": (
        curve_rows,
        lambda table: fit_training_curves(read_curves(table), num_budgets=100, num_bootstrap=20),
    ),
}  # fmt: skip
ROW_NUMBERS = {"flagged", "rows", "runs", "doubt"}


def numbers_of(fit):
    """What a fit found, to the last bit; not which row of the table each run stood in."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items() if name not in ROW_NUMBERS}
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    return plain(fit.to_dict()) | {"at": fit.predict(1e21).to_dict()}


@pytest.mark.parametrize(("rows", "fit"), FITS.values(), ids=FITS)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32))
def test_the_order_of_rows_never_matters(rows, fit, seed):
    ordered = rows()
    shuffled = random.Random(seed).sample(ordered, len(ordered))
    assert numbers_of(fit(table_of(shuffled))) == numbers_of(fit(table_of(ordered)))


def experiments_table():
    rows = [(name, n, 1e9, loss) for name, loss in (("a b", 3.0), ("c", 2.0)) for n in
            (1e7, 2e7, 4e7)]  # fmt: skip
    return dict(zip(("experiment", "N", "D", "loss"), zip(*rows, strict=True), strict=True))


def test_several_experiments_in_one_table_are_warned_of():
    table = experiments_table()
    [warning] = read_runs(table).warnings
    assert "column 'experiment' has 2 values" in warning
    assert "'a b' (3 rows), 'c' (3)" in warning
    assert "--where 'experiment=a b'" in warning
    assert read_runs(table, where={"experiment": "c"}).warnings == ()
    # Numbers by a heading that says so, words by any heading.
    for heading, values in (("dataset", [1, 1, 1, 2, 2, 2]), ("flavour", list("xxxyyy"))):
        other = {heading: values} | {name: table[name] for name in ("N", "D", "loss")}
        assert heading in read_runs(other).warnings[0]


@pytest.mark.parametrize(
    ("heading", "values"),
    [
        ("name", ["1", "2", "3", "4", "5", "6"]),  # a name of its own for every run
        ("model", ["small", "medium", "large", "small", "medium", "large"]),  # of every size
        ("num_layers", [2, 2, 2, 4, 4, 4]),  # a number that sizes have
        ("set", ["a", "a", "a", "a", "a", "b"]),  # one run apart is no experiment
        ("date", ["x"] * 6),
        ("color", ["#a", "#a", "#a", "#b", "#c", "#d"]),  # mostly one row each
    ],
)
def test_a_column_that_tells_no_experiments_apart(heading, values):
    table = experiments_table()
    del table["experiment"]
    table["D"] = (1e9, 1e9, 1e9, 2e9, 2e9, 2e9)
    assert read_runs(table | {heading: values}).warnings == ()


def test_experiments_of_curves_are_warned_of():
    rows = [
        (f"{name}{n:g}", name, n, d, 1.8 + 400 / n**0.34 + 400 / d**0.3)
        for name in ("a", "b")
        for n in (1e6, 1e7, 1e8)
        for d in (1e8, 1e9)
    ]
    names = ("run", "set", "N", "D", "loss")
    curves = read_curves(dict(zip(names, zip(*rows, strict=True), strict=True)))
    assert "--where set=a" in curves.described


ON_THE_COMMAND_LINE = {
    "columns that are ambiguous": (
        "params,N,D,loss; 1e9,1e9,2e10,3", "", "give one as --params params;"
    ),
    "headings with blanks": ("Model Size,N,D,loss; 1e9,1e9,2e10,3", "", "--params 'Model Size'"),
    "a column that does not exist": (
        "N,D,loss; 1e9,2e10,3", "--tokens T", "--tokens 'T': expected a column's name"
    ),
    "missing columns": ("a,b,loss; 1e9,2e10,3", "", "name them, as in --params a;"),
    "contradictions": ("N,D,C,loss; 1e9,2e10,2048,3", "", "--flops 'C' holds '2048'"),
    "ways out": ("N,D,C,loss; 1e9,2e10,2048,3", "", "give --flops 6ND for C = 6·N·D, or --flops C"),
    "values": ("N,D,loss; 1e9,2e10,3", "--drop-highest -1", "--drop-highest -1: expected"),
    "seeds": ("N,D,loss; 1e9,2e10,3", "--num-bootstrap 2 --seed -1", "--seed -1: expected"),
    "where": ("N,D,loss; 1e9,2e10,3", "--where set=x", "--where 'set': expected a column's name"),
    "where, no value": ("N,D,loss; 1e9,2e10,3", "--where set", "--where set: expected HEADING"),
    "names": (
        "run,N,D,loss,lr; a,1e9,1e9,3,1; a,1e9,1e9,2,2",
        "--approach curves",
        "--run 'run' names no run",
    ),
    "predictions": ("N,D,loss; 1e9,2e10,3", "--predict 1e20", "--predict 1e+20: no prediction"),
    "budgets": ("N,D,loss; 1e9,2e10,3", "--budgets -1", "--budgets -1.0: expected"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "options", "words"), ON_THE_COMMAND_LINE.values(), ids=ON_THE_COMMAND_LINE
)
def test_errors_of_the_command_line_name_flags(tmp_path, capsys, text, options, words):
    assert main(["fit", str(write(tmp_path, text)), *options.split()]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert not re.search(r"\b(params|tokens|flops|loss|run|where|seed|drop_highest) ?= ?'", error)


def test_several_columns_name_a_run_on_the_command_line(tmp_path, capsys):
    rows = [
        f"m{n:g},{lr},{n},{d},{1.8 + 400 / n**0.34 + 400 / d**0.3 + lr}"
        for lr in (0.1, 0.2)
        for n in np.geomspace(1e6, 1e8, 6)
        for d in np.geomspace(1e7, 1e11, 12)
    ]
    path = write(tmp_path, "; ".join(["model,lr,N,D,loss", *rows]))
    assert main(["fit", str(path), "--approach", "curves", "--run", "model", "lr"]) == 0
    assert "run = 'model + lr'" in capsys.readouterr().out


def test_warnings_are_printed_by_every_approach(tmp_path, capsys):
    rows = [
        f"{name},{n},{d},{floor + 400 / n**0.34 + 400 / d**0.3}"
        for name, floor in (("a b", 1.8), ("c", 1.7))
        for n in (1e6, 3e6, 1e7, 3e7)
        for d in (1e8, 1e9, 1e10)
    ]
    path = write(tmp_path, "; ".join(["experiment,N,D,loss", *rows]))
    for approach in ("profiles", "surface", "power-law"):
        assert main(["fit", str(path), "--approach", approach]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "warning: column 'experiment' has 2 values" in printed
        assert "--where 'experiment=a b'" in printed
