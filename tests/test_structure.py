"""The rooms of the project: who may import whom, and what an import may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "numpy", "sympy", "scipy", "pandas", "matplotlib", "triton", "tyro", "rich")
ROOMS = ("flopcount", "kernels", "models", "validate", "benchmarks", "tests")
# Who may import whom. The training driver and the studies are the parts of models that ask
# flopcount for budgets.
ALLOWED = {
    "flopcount": set(),
    "kernels": set(),
    "models": {"kernels"},
    "validate": {"flopcount", "kernels", "models"},
    "benchmarks": {"flopcount", "kernels", "models", "validate"},
}
DRIVER = {
    "training.py",
    "sweep.py",
    "report.py",
    "plots.py",
    "throughput.py",
    "ray_sweep.py",
    "__main__.py",
}


def imported_rooms(source: str) -> set[str]:
    """Top-level rooms that a module's source imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names & set(ROOMS)


def violations(room: str, name: str, source: str) -> set[str]:
    """Rooms that a module of ``room`` imports although it may not.

    ``name`` is the module's path in the room.
    """
    allowed = ALLOWED[room] | {room}
    if room == "models" and (name in DRIVER or name.startswith("study/")):
        allowed = allowed | {"flopcount"}
    return imported_rooms(source) - allowed


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_run_one_way(room):
    modules = sorted((ROOT / room).rglob("*.py"))
    assert modules
    for module in modules:
        name = module.relative_to(ROOT / room).as_posix()
        wrong = violations(room, name, module.read_text())
        assert not wrong, f"{module.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize(
    ("room", "name", "source"),
    [
        ("flopcount", "count.py", "import models"),
        ("flopcount", "count.py", "def f():\n    from kernels.attention import reference"),
        ("kernels", "attention.py", "from flopcount import PerceiverAR"),
        ("models", "perceiver_ar.py", "import flopcount as fc"),
        ("models", "training.py", "import validate.matrix"),
        ("models", "study/design.py", "from benchmarks.measurement import device"),
        ("models", "networks/training.py", "import flopcount"),
    ],
)
def test_a_wrong_import_is_found(room, name, source):
    assert violations(room, name, source)


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
        "import flopcount as fc; fc.compare; fc.explain; fc.Device",
    ],
)
def test_counting_loads_nothing_heavy(statement):
    assert loaded_by(statement) == set()


def test_a_heavy_import_is_seen():
    assert loaded_by("import numpy") == {"numpy"}
