"""Every program: in a terminal of any width and encoding, and where packages are missing."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flopcount.cli
from flopcount import extras
from flopcount.commands import whole_number, wrong_command

ROOT = Path(__file__).parent.parent
ROOMS = ("flopcount", "models", "validate", "benchmarks")
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if re.search(r"^if __name__ == .__main__.:", path.read_text("utf-8"), re.MULTILINE)
)
HELPFUL = {
    "benchmarks", "benchmarks.tiling.issue", "flopcount.cli", "validate.compiled_record",
    "validate.emulator", "validate.emulator.drawn", "validate.emulator.shipped",
    "validate.gallery", "validate.profile", "validate.who_counts_what",
}  # fmt: skip
"""Programs that can print their help without any package."""
PERCEIVER = (
    "perceiver-ar --vocab-size 262 --num-latents 512 --num-prefix 3584 --num-channels 512 "
    "--num-layers 9 --prefix-dropout 0.5"
)
DECODER = (
    "decoder --vocab-size 50257 --seq-len 1024 --num-channels 768 --num-layers 12 --num-heads 12"
)
TILES = "--level executed --tiling.forward 128 64 --tiling.key-value 32 64 --tiling.query 128 64"
PLAN = "--vocab-size 32000 --num-latents 512 --batch-size 80 --num-prefix 1536"
PRICED = "--flops-per-second 4e14 --price-per-device-hour 2 --corpus-tokens 30e9 --by-convention"
COMMANDS = [
    f"count {PERCEIVER} --params --elementwise --checkpointing reentrant",
    f"count {DECODER} --batch-size 480 --seconds 9 --device h100",
    f"count {PERCEIVER} {TILES}",
    f"compare {PERCEIVER}",
    f"compare {DECODER}",
    f"compare {DECODER} --optimum 1e19",
    "explain",
    "explain --architecture decoder",
    "explain --level executed",
    "explain --convention article",
    "explain --convention megatron-lm --architecture decoder",
    f"params {DECODER}",
    f"generate {DECODER} --prompt-len 100 --new-tokens 20",
    f"roofline {DECODER} --device h100 --cached 100",
    f"parallel {DECODER} --tensor 2 --sequence --pipeline 2 --vocab-multiple 128",
    f"explore {DECODER} --out PAGE",
    "article",
    f"plan --budgets 1e18 1e21 {PLAN} {PRICED}",
    "fit RUNS --num-bootstrap 5 --predict 1e20",
    "fit RUNS --approach surface --predict 1e22",
    "fit RUNS --approach power-law --a 0.5",
    "fit CURVES --approach curves",
    "devices",
]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Runs on the surface L = 1.7 + 400/N^0.34 + 400/D^0.28, with four losses of each."""
    folder = tmp_path_factory.mktemp("tables")
    runs, curves = ["budget,N,D,C,loss"], ["run,N,C,loss"]
    for budget in (1e19, 1e20, 1e21):
        for size in (1e8, 2e8, 4e8, 8e8, 16e8, 32e8):
            tokens = budget / 6 / size
            loss = 1.7 + 400 / size**0.34 + 400 / tokens**0.28
            runs.append(f"{budget},{size},{tokens},{budget},{loss}")
    for size in (1e6, 2e6, 4e6, 8e6, 16e6):
        for tokens in (1e6 * 2**i for i in range(10)):
            loss = 1.7 + 400 / size**0.34 + 400 / tokens**0.28
            curves.append(f"{size:g},{size},{6 * size * tokens},{loss}")
    (folder / "RUNS").write_text("\n".join(runs))
    (folder / "CURVES").write_text("\n".join(curves))
    return folder


@pytest.fixture
def printed(tables, monkeypatch, capsys):
    """What a command of flopcount prints in a terminal of a width."""

    def call(command, width):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.chdir(tables)
        assert flopcount.cli.main(command.split()) == 0
        return capsys.readouterr().out

    return call


def words(text):
    """The words; a long formula is words, too, as it is broken after a ``*`` where it must."""
    return {word for word in re.split(r"[\s*]+", text) if set(word) != {"─"}}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_fits_its_terminal(printed, command):
    endless = words(printed(command, 100_000))
    for width in (80, 200):
        out = printed(command, width)
        assert max(map(len, out.splitlines())) <= width
        assert words(out) == endless  # none is broken, and no number


def test_no_command_is_forgotten():
    assert {command.split()[0] for command in COMMANDS} == set(flopcount.cli.COMMANDS)


def run(program, *arguments, **environment):
    """A program in a process of its own: status, output and error output."""
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    "command",
    [
        ["flopcount", "explain", "--level", "executed"],
        ["flopcount", "explain", "--level", "executed", "--json"],
        ["flopcount", "article"],
        ["flopcount", "--help"],
        ["flopcount", "cont"],
    ],
)
def test_output_survives_any_encoding(command, encoding):
    status, out, error = run(*command, PYTHONIOENCODING=encoding)
    assert status == (2 if "cont" in command else 0)
    text = (out + error).decode(encoding)
    assert "Traceback" not in text
    assert not re.search(r"\\u2[0-9a-f]{3}", text) or "--json" in command


@pytest.mark.parametrize("program", ["validate", "models", "models.study"])
def test_programs_of_the_rooms_survive_ascii(program):
    status, out, error = run(program, "--help", PYTHONIOENCODING="ascii")
    assert (status, error) == (0, b"")
    assert out.isascii()


def test_a_table_in_ascii_is_aligned(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as ascii_only:
        monkeypatch.setattr(sys, "stdout", ascii_only)
        printed = flopcount.tables.table(["range", "shape"], [["1 … 22", "3×4"], ["1 … 2", "30×4"]])
    # 8 + 5, three blanks between them and one on either side.
    assert printed.splitlines() == [
        " range      shape",
        "-" * 18,
        " 1 ... 22   3x4",
        " 1 ... 2    30x4",
    ]


HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture
def hidden(tmp_path):
    """The environment of an interpreter that lacks packages."""

    def hide(*names):
        (tmp_path / "sitecustomize.py").write_text(HIDE.format(names=names))
        return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    return hide


def is_one_line(error, package, extra):
    line = f"this needs {package}, which is missing: pip install {extra}\n"
    return error.decode() == line.replace("\n", os.linesep)


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != "flopcount"])
def test_a_program_without_its_packages_says_what_to_install(hidden, program):
    lab = [name for name, extra in extras._EXTRAS.items() if extra in ("lab", "torch")]
    status, out, error = run(program, "--help", **hidden(*lab, "sympy", "matplotlib"))
    if status == 0:  # It needs nothing before it works.
        assert program in HELPFUL
        return
    package = error.decode().split()[2].rstrip(",")
    assert (status, out) == (1, b"")
    assert is_one_line(error, package, "'.[lab]'")


@pytest.mark.parametrize("program", ["flopcount", "models", "validate"])
def test_a_program_without_the_command_line_says_so(hidden, program):
    status, _, error = run(program, "--help", **hidden("tyro", "torch"))
    package = "tyro" if program == "flopcount" else error.decode().split()[2].rstrip(",")
    assert status == 1
    assert is_one_line(error, package, "." if program == "flopcount" else "'.[lab]'")


def test_a_command_without_its_extra_says_so(hidden):
    status, _, error = run("flopcount", "explain", **hidden("sympy"))
    assert status == 2
    line = "flopcount: this needs sympy, which is missing: pip install '.[symbolic]'"
    assert error.decode().splitlines() == [line]


def test_fits_need_no_extra(hidden, tables):
    command = ["fit", str(tables / "RUNS"), "--approach", "surface", "--num-bootstrap", "4"]
    status, _, error = run("flopcount", *command, **hidden(*extras._EXTRAS))
    assert (status, error) == (0, b"")


def test_another_missing_module_keeps_its_traceback(hidden):
    _, _, error = run("flopcount", **hidden("difflib"))
    assert b"Traceback" in error


def test_every_extra_is_one_that_installs_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installs = {
        name: {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}
        for name, requirements in project["optional-dependencies"].items()
    }
    assert all(package in installs[extra] for package, extra in extras._EXTRAS.items())
    required = {re.split(r"[^\w-]", requirement)[0] for requirement in project["dependencies"]}
    assert set(extras._REQUIRED) == required


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("cont", "'cont' is no command: did you mean 'count'?"),
        ("cont decoder --vocab-size 8", "'cont' is no command: did you mean 'count'?"),
        ("count decodr --seq-len 8", "count: 'decodr' is no command: did you mean 'decoder'?"),
        ("count --json decodr", "count: 'decodr' is no command: did you mean 'decoder'?"),
        ("compare", "compare: expected one of hf, perceiver-ar, decoder"),
        ("zzz", "'zzz' is no command: expected one of count, params, generate"),
        ("", "expected one of count, params, generate, roofline, explore, parallel, compare, "),
    ],
)
def test_a_wrong_command_is_one_line(capsys, arguments, line):
    assert flopcount.cli.main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (said,) = captured.err.splitlines()
    assert said.startswith(f"flopcount: {line}")


def test_right_commands_and_help_pass():
    known = {"count": ("decoder",), "plan": ()}
    for words_given in ("count --json decoder", "plan x", "--version", "cont --help", "count -h"):
        assert wrong_command(words_given.split(), known) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("30e9", 30 * 10**9), ("1.5E3", 1500), ("-2", -2), ("1_000", 1000), ("9" * 40, 10**40 - 1)],
)
def test_a_whole_number_is_exact(text, number):
    assert whole_number(text) == number
    assert type(whole_number(text)) is int


@pytest.mark.parametrize("text", ["1.5", "15e-1", "x", "", "nan", "inf", "1e999999999", "1/2"])
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(ValueError, match="expected an integer, such as 30000000000 or 30e9"):
        whole_number(text)
