"""``python -m validate.profile``: anyone's Triton kernels, profiled without a GPU."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from flopcount.cli import to_json
from flopcount.devices import find_device
from flopcount.extras import advice
from validate.profile import profiling, report
from validate.witnesses.processes import triton_processes


@dataclasses.dataclass(frozen=True)
class Options:
    """Call a function, and execute its Triton launches as compiled for sm_90: no GPU needed."""

    function: tyro.conf.Positional[str]
    """path/to/module.py:name of a function that takes no arguments."""
    device: str = "h100"
    """Whose rates say what binds."""
    configuration: tuple[str, ...] = ()
    """Of an autotuned kernel, KERNEL:NAME=VALUE,...: the configuration to take; its first unless
    given."""
    lines: int = 12
    """Lines of source to show of each kernel."""
    json: bool = False
    """Print JSON, for --compare."""
    compare: Annotated[Path | None, tyro.conf.arg(metavar="JSON")] = None
    """Say what changed since a profile that --json printed; exit with 1 where something grew."""
    threshold: float = 0.0
    """By how many percent it may grow."""


def run(options: Options) -> int:
    """Profile, and print; the status is 1 where something is found, or grew."""
    device = find_device(options.device)
    if device.multiprocessors is None or device.bandwidth is None:
        raise ValueError(f"device = {options.device!r}: expected h100, whose rates are known")
    before = report.read(options.compare) if options.compare else None
    configurations = dict(map(_configuration, options.configuration))
    with triton_processes(interpret=False) as pool:
        profile = pool.submit(
            profiling.profile, options.function, device, configurations
        ).result()  # fmt: skip
    grown = False
    if options.json:
        print(to_json(report.plain(profile)))
    elif before is None:
        print(report.as_text(profile, options.lines))
    if before is not None:
        text, grown = report.compared(before, profile, options.threshold)
        print(text, file=sys.stderr if options.json else sys.stdout)
        if profile.findings and not options.json:
            print("", *profile.findings, sep="\n")
    return 1 if profile.findings or grown else 0


def _configuration(text: str) -> tuple[str, dict[str, str]]:
    kernel, separator, values = text.partition(":")
    pairs = [value.partition("=") for value in values.split(",")]
    if not separator or not all(name and value for name, _, value in pairs):
        raise ValueError(f"configuration = {text!r}: expected KERNEL:NAME=VALUE,...")
    return kernel, {name: value for name, _, value in pairs}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on standard error where the input is wrong."""
    try:
        return run(tyro.cli(Options, prog="python -m validate.profile", args=arguments))
    except (ValueError, TypeError, ImportError) as error:
        message = advice(error) if isinstance(error, ImportError) else error
        print(f"validate.profile: {message}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
