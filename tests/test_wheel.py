"""The wheel holds the counter alone, and works where nothing else is installed."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("flopcount", "kernels", "models", "validate", "benchmarks", "tests")
EXTRAS = ("torch", "sympy", "scipy", "pandas", "matplotlib", "triton", "fvcore", "hypothesis")


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    """A command's output; its error output is the failure's message."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def alone(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel))
    return python


def test_an_editable_install_finds_the_counter_alone(tmp_path):
    venv.create(tmp_path / "environment", with_pip=True)
    python = str(tmp_path / "environment" / "bin" / "python")
    # editables is what hatchling's editable installs depend on.
    run(python, "-m", "pip", "install", "-q", "editables")
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--editable", str(ROOT))
    code = f"import importlib.util as u; print([m for m in {PACKAGES!r} if u.find_spec(m)])"
    elsewhere = {"cwd": tmp_path, "PYTHONPATH": ""}
    assert run(python, "-c", code, **elsewhere).strip() == "['flopcount']"
    # `python -m models` is run from the checkout.
    assert run(python, "-c", code, cwd=ROOT, PYTHONPATH="").strip() == str(list(PACKAGES))
    origin = "import flopcount; print(flopcount.__file__)"
    assert run(python, "-c", origin, **elsewhere).strip() == str(ROOT / "flopcount/__init__.py")


def test_the_wheel_holds_only_flopcount(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"flopcount"}
    assert "flopcount/py.typed" in names
    assert "flopcount/architectures.py" in names
    assert {"flopcount/torch.py", "flopcount/testing/__init__.py"} <= set(names)
    assert "flopcount/callbacks/transformers.py" in names
    assert "flopcount/explorer.html.jinja" in names


def test_no_extra_is_installed(alone, tmp_path):
    code = f"import importlib.util as u; print([m for m in {EXTRAS!r} if u.find_spec(m)])"
    assert run(str(alone), "-I", "-c", code, cwd=tmp_path).strip() == "[]"


def test_it_counts_arrays_and_prints(alone, tmp_path):
    code = (
        "import numpy, flopcount as fc; "
        "m = fc.Decoder(vocab_size=9, seq_len=numpy.array([3, 5]), num_channels=4, num_layers=1, "
        "num_heads=2); print(m.flops().total.tolist()); print(fc.compare(m))"
    )
    # 3·(24·n·16 + 2·4·n(n + 1)... at n = 3: 24·3·16 + 2·4·3·4 + 2·3·4·9 = 1152 + 96 + 216 = 1464.
    assert str(3 * 1464) in run(str(alone), "-I", "-c", code, cwd=tmp_path)


def test_the_meter_needs_no_extra(alone, tmp_path):
    code = (
        "import flopcount as fc; m = fc.Meter(fc.Decoder(vocab_size=9, seq_len=3, num_channels=4, "
        "num_layers=1, num_heads=2), 5); m.step(); print(m.reading().tokens)"
    )
    assert run(str(alone), "-I", "-c", code, cwd=tmp_path).strip() == "15"


def test_the_command_line_works(alone, tmp_path):
    flopcount = alone.parent / "flopcount"
    assert "31421" in run(str(flopcount), "article", cwd=tmp_path)


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("import flopcount as fc; fc.explain()", "symbolic"),
        (
            "import flopcount as fc; fc.Decoder(vocab_size=9, seq_len=3, num_channels=4, "
            "num_layers=1, num_heads=2).flops().to_frame()",
            "fit",
        ),
        ("import flopcount as fc; fc.torch.count", "torch"),
        ("from flopcount.testing import models", "testing"),
        ("import flopcount.callbacks.lightning", "adapters"),
        (
            "import flopcount as fc; fc.explore(fc.Decoder(vocab_size=9, seq_len=3, "
            "num_channels=4, num_layers=1, num_heads=2))",
            "explore",
        ),
        (
            "import flopcount as fc; fc.Decoder(vocab_size=9, seq_len=3, num_channels=4, "
            "num_layers=1, num_heads=2).flops().plot()",
            "plot",
        ),
    ],
)
def test_a_missing_extra_is_named(alone, tmp_path, code, extra):
    done = subprocess.run(
        [alone, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1
    assert f"pip install 'flopcount[{extra}]'" in done.stderr.splitlines()[-1]


def test_the_named_command_installs_the_extra_and_looks_for_no_other_flopcount(alone, tmp_path):
    command = [
        alone,
        "-I",
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--no-index",
        "flopcount[symbolic]",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "Requirement already satisfied: flopcount[symbolic]" in done.stdout
    assert "No matching distribution found for sympy" in done.stderr
