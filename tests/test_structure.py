"""The project as a whole: who may import whom, what an import may load, what pytest collects."""

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch", "numpy", "sympy", "scipy", "pandas", "matplotlib", "triton", "tyro", "rich",
    "hypothesis", "transformers", "lightning",
)  # fmt: skip
OPENS = r"(^|\.)(open|fdopen|read_text|write_text|NamedTemporaryFile)$"
PACKAGES = ("flopcount", "kernels", "models", "validate", "benchmarks", "tests")
# Who may import whom; of models, what is COUNTING asks flopcount for budgets.
ALLOWED = {
    "flopcount": set(),
    "kernels": set(),
    "models": {"kernels"},
    "validate": {"flopcount", "kernels", "models"},
    "benchmarks": {"flopcount", "kernels", "models", "validate"},
}
COUNTING = ("training/", "sweeps/", "study/", "__main__.py")
# Folders of models, in order; what else lies there comes before all of them.
FOLDERS = ("networks", "data", "training", "sweeps", "study", "__main__")


def imported(source: str) -> set[str]:
    """Names of modules, and of what may be modules, that a source imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_packages(source: str) -> set[str]:
    """Packages of the project that a module's source imports, anywhere in it."""
    return {name.split(".")[0] for name in imported(source)} & set(PACKAGES)


def folder_of(name: str) -> int:
    """The place of a module of models, by its path there, among the folders."""
    first = name.split("/")[0].removesuffix(".py")
    return FOLDERS.index(first) if first in FOLDERS else -1


def violations(package: str, name: str, source: str) -> set[str]:
    """Packages that a module of ``package`` imports although it may not.

    ``name`` is the module's path in the package.
    """
    allowed = ALLOWED[package] | {package}
    if package == "models" and name.startswith(COUNTING):
        allowed = allowed | {"flopcount"}
    return imported_packages(source) - allowed


def upward(package: str, name: str, source: str) -> set[str]:
    """What a module imports of its own package that comes after it.

    In models by folders; in validate, a witness sees nothing of what asks the witnesses.
    """
    own = {wanted for wanted in imported(source) if wanted.startswith(f"{package}.")}
    paths = {wanted: "/".join(wanted.split(".")[1:]) for wanted in own}
    if package == "models" and name != "__init__.py":
        return {wanted for wanted, path in paths.items() if folder_of(path) > folder_of(name)}
    if package == "validate" and name.startswith("witnesses/"):
        return {wanted for wanted, path in paths.items() if not path.startswith("witnesses")}
    return set()


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package):
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    for module in modules:
        name = module.relative_to(ROOT / package).as_posix()
        wrong = violations(package, name, module.read_text())
        wrong |= upward(package, name, module.read_text())
        assert not wrong, f"{module.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize(
    ("package", "name", "source"),
    [
        ("flopcount", "count.py", "import models"),
        ("flopcount", "count.py", "def f():\n    from kernels.attention import reference"),
        ("kernels", "attention.py", "from flopcount import PerceiverAR"),
        ("models", "networks/perceiver_ar.py", "import flopcount as fc"),
        ("models", "data/corpus.py", "import flopcount as fc"),
        ("models", "limits.py", "import flopcount as fc"),
        ("models", "training/run.py", "import validate.matrix"),
        ("models", "study/design.py", "from benchmarks.measurement import device"),
        ("models", "networks/training.py", "import flopcount"),
    ],
)
def test_a_wrong_import_is_found(package, name, source):
    assert violations(package, name, source)


@pytest.mark.parametrize(
    ("package", "name", "source"),
    [
        ("models", "networks/blocks.py", "from models.data import corpus"),
        ("models", "training/step.py", "from models.sweeps.plan import SweepConfig"),
        ("models", "limits.py", "import models.networks.blocks"),
        ("models", "study/design.py", "import models.__main__"),
        ("validate", "witnesses/fused.py", "from validate import matrix"),
        ("validate", "witnesses/hugging_face/families.py", "import validate.mutation.judging"),
    ],
)
def test_an_import_upward_is_found(package, name, source):
    assert upward(package, name, source)


METERS = {"flopcount.torch", "flopcount.testing.assert_counts"}


def meters_used(source: str) -> set[str]:
    """What a module uses of that which counts as the formulas do, and so confirms none of them."""
    tree = ast.parse(source)
    names = {"flopcount": "flopcount"}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported = {alias.asname or alias.name: alias.name for alias in node.names}
            names |= {own: f"{node.module}.{name}" for own, name in imported.items()}
            found |= {node.module, *(f"{node.module}.{name}" for name in imported.values())}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            found.add(f"{names.get(first, first)}.{rest}")
    return {meter for meter in METERS if any(f"{name}.".startswith(f"{meter}.") for name in found)}


def test_no_witness_is_a_meter():
    for module in sorted((ROOT / "validate").rglob("*.py")):
        assert not meters_used(module.read_text(encoding="utf-8")), module


@pytest.mark.parametrize(
    "source",
    [
        "import flopcount.torch",
        "import flopcount.torch as meter",
        "from flopcount.torch import count",
        "from flopcount import torch",
        "import flopcount as fc\n\ndef f(x):\n    return fc.torch.count(x).total",
        "def f():\n    from flopcount.testing import assert_counts",
        "from flopcount import testing as t\nt.assert_counts(1, 2)",
    ],
)
def test_a_meter_among_the_witnesses_is_seen(source):
    assert meters_used(source)


def test_what_is_no_meter_may_be_used():
    source = "import torch, flopcount as fc\nfrom flopcount.testing import models\nfc.torchlike"
    assert not meters_used(source + "\ntorch.nn.Linear")


def without_encoding(source: str) -> list[str]:
    """Calls of a module that open a text file in the encoding of the machine's locale."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in {"os.open", "tarfile.open"} or not re.search(OPENS, name):
            continue
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        values = [*node.args, *keywords.values()]
        given = [value.value for value in values if isinstance(value, ast.Constant)]
        is_binary = any(isinstance(mode, str) and "b" in mode for mode in given)
        by_position = name.endswith("read_text") and node.args
        if "encoding" not in keywords and not by_position and not is_binary:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_text_files_are_utf8_whatever_the_locale(package):
    for module in sorted((ROOT / package).rglob("*.py")):
        assert not without_encoding(module.read_text(encoding="utf-8")), module


def test_a_file_in_the_locales_encoding_is_found():
    calls = ["path.read_text()", "path.open('w', newline='')", "open(path)", "path.write_text(s)"]
    assert without_encoding("\n".join(calls)) == calls
    right = "open(path, 'rb'); path.open(mode='wb'); path.open(encoding='utf-8'); os.open(path, 0)"
    assert without_encoding(right) == []


def loaded_by(statement: str) -> set[str]:
    """Heavy packages that a fresh interpreter holds after ``statement``."""
    code = f"import sys; {statement}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import flopcount",
        "import flopcount as fc; fc.Decoder(vocab_size=8, seq_len=8, num_channels=8, "
        "num_layers=1, num_heads=1).flops().total",
        "import flopcount as fc; fc.compare; fc.explain; fc.Device; dir(fc)",
        "import flopcount as fc; m = fc.Meter(fc.Decoder(vocab_size=8, seq_len=8, num_channels=8, "
        "num_layers=1, num_heads=1), 2, 'h100'); m.step(); str(m.reading())",
    ],
)
def test_counting_loads_nothing_heavy(statement):
    assert loaded_by(statement) == set()


def test_a_heavy_import_is_seen():
    assert loaded_by("import numpy") == {"numpy"}
    assert "torch" in loaded_by("import flopcount as fc; fc.torch")


def collected(*arguments) -> list[str]:
    """Ids of the tests that a fresh process collects, with a hash seed of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "--quiet", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "random"},
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return [line for line in run.stdout.splitlines() if "::" in line]


def test_every_process_collects_the_same_tests():
    """Workers that collect different tests stop the suite; an id with a time in it does that."""
    first = collected()
    assert len(first) > 1000
    assert collected() == first  # seconds later, so that times differ, too


def test_tests_that_differ_between_processes_are_seen(tmp_path):
    source = """
        import os, pytest

        @pytest.mark.parametrize("drawn", [os.urandom(8)])
        def test_drawn(drawn): ...
    """
    (tmp_path / "test_drawn.py").write_text(textwrap.dedent(source))
    arguments = ("--rootdir", tmp_path, tmp_path)
    assert collected(*arguments) != collected(*arguments)
