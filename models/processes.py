"""Child processes that end when their parent ends, however it ends.

Each holds one end of a pipe whose other end only the parent has: the system closes it when the
parent has ended, killed or not.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Any


def end_with_parent() -> None:
    """End this process of :mod:`multiprocessing` as soon as its parent has ended."""
    threading.Thread(target=_wait_for_the_parent, daemon=True).start()


def _wait_for_the_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def fresh_processes(
    number: int, imported: Sequence[str] = ()
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A pool of new processes; where the block fails, what has not begun is not begun.

    Args:
        number: How many at once.
        imported: Modules; if there are any, every task has a process of its own, a copy of one that
            has done nothing but import them.
    """
    context: Any = multiprocessing.get_context("forkserver" if imported else "spawn")
    if imported:
        context.set_forkserver_preload(list(imported))
    with concurrent.futures.ProcessPoolExecutor(
        number, context, end_with_parent, max_tasks_per_child=1 if imported else None
    ) as pool:
        try:
            yield pool
        except BaseException:  # interrupted, too
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def program(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A program in a process group of its own; the group ends with the block, or with this process.

    Args:
        command: The program and its arguments.
        options: Of :class:`subprocess.Popen`.
    """
    # The group's first process waits for the pipe to close, and ends the group with itself.
    guard = subprocess.Popen(
        ["/bin/sh", "-c", "read _; kill -KILL 0"], stdin=subprocess.PIPE, process_group=0
    )
    try:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, process_group=guard.pid, **options
        ) as process:
            try:
                yield process
            finally:
                os.killpg(guard.pid, signal.SIGKILL)
    finally:
        guard.stdin.close()
        guard.wait()


def output(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a :func:`program` to its end, and catch what it prints.

    Args:
        command: The program and its arguments.
        options: Of :class:`subprocess.Popen`.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with program(command, **pipes, **options) as process:
        stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
