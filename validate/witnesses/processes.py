"""Processes in which Triton interprets kernels or compiles them: its import decides that."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from collections.abc import Iterator
from unittest import mock

from models.processes import fresh_processes


@contextlib.contextmanager
def triton_processes(
    interpret: bool, jobs: int = 1
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A pool of fresh processes.

    Args:
        interpret: Whether Triton interprets in them, or compiles.
        jobs: How many.
    """
    with (
        mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1" if interpret else "0"}),
        fresh_processes(jobs) as pool,
    ):
        yield pool
