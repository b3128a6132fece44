"""Optional dependencies, by the extra that installs them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

_CHECKOUT = Path(__file__).parent.parent
_REQUIRED = ("docstring_parser", "numpy", "rich", "tyro")
_EXTRAS = {
    "sympy": "symbolic",
    "pandas": "fit",
    "matplotlib": "plot",
    "jinja2": "explore",
    "ray": "ray",
    "datasets": "hf",
    "pytest": "dev",
    "hypothesis": "testing",
    "torch": "torch",
    "transformers": "dev",
    "lightning": "adapters",
    "accelerate": "adapters",
    "tensorboard": "adapters",
    "wandb": "adapters",
    **dict.fromkeys(
        (
            "triton",
            "filelock",
            "fvcore",
            "safetensors",
            "scipy",
            "sentencepiece",
        ),
        "lab",
    ),
}

_IN_LAB = ("", "symbolic", "fit", "plot", "torch", "explore")


def load(module: str, extra: str) -> Any:
    """Import ``module``, or say which extra brings it.

    Raises:
        ImportError: If it is not installed; the message holds the command that installs it.

    >>> load("math", "symbolic").tau
    6.283185307179586
    >>> load("no_such_module", "symbolic")
    Traceback (most recent call last):
    ImportError: this needs no_such_module, which is missing: pip install '...[symbolic]'

    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(_missing(module, extra)) from error


def advice(error: ImportError) -> str:
    """What an import error says; for a package that the project names, what installs it.

    A program of the checkout needs most of what the extra ``lab`` installs: it is named at
    once, in place of one package after the other.
    """
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in (*_REQUIRED, *_EXTRAS):
        return str(error)
    extra = _EXTRAS.get(package, "")
    program = Path(sys.argv[0]).resolve()
    folders = (_CHECKOUT / name for name in ("models", "validate", "benchmarks"))
    in_checkout = any(program.is_relative_to(folder) for folder in folders)
    return _missing(package, "lab" if in_checkout and extra in _IN_LAB else extra)


def explain_missing() -> None:
    """Let the process end in one line where a package is missing that the project names."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, ImportError) and (line := advice(error)) != str(error):
            print(line, file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


def _missing(module: str, extra: str) -> str:
    """What to say and to do: the project is installed from its checkout, where there is one."""
    source = "flopcount"
    if (_CHECKOUT / "pyproject.toml").exists():
        source = "." if Path.cwd() == _CHECKOUT else str(_CHECKOUT)
    wanted = f"'{source}[{extra}]'" if extra else source
    return f"this needs {module}, which is missing: pip install {wanted}"
