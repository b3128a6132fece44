"""Optional dependencies, by the extra that installs them."""

from __future__ import annotations

import importlib
from typing import Any


def load(module: str, extra: str) -> Any:
    """Import ``module``, or say which extra brings it.

    Raises:
        ImportError: If it is not installed; the message holds the command that installs it.

    >>> load("math", "symbolic").tau
    6.283185307179586
    >>> load("no_such_module", "symbolic")
    Traceback (most recent call last):
    ImportError: this needs no_such_module, which is missing: pip install 'flopcount[symbolic]'

    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"this needs {module}, which is missing: pip install 'flopcount[{extra}]'"
        ) from error
