"""``python -m validate``: hold every formula against its witnesses."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flopcount.architectures import ARCHITECTURES
from flopcount.cli import model_options, to_json
from flopcount.commands import default_of, whole_numbers
from flopcount.extras import advice
from flopcount.sizes import require_choice
from validate import verification
from validate.matrix import Verdict, as_table, verdicts

Check = Callable[[], Verdict]


@dataclasses.dataclass(frozen=True)
class Options:
    """Print the matrix formula × witness; exit with 1 on any difference."""

    model: Annotated[str | None, tyro.conf.arg(metavar="{" + ",".join(ARCHITECTURES) + "}")] = None
    """Check a configuration of your own; its sizes follow, as ``flopcount count`` takes them:
    ``--model perceiver-ar --num-channels 512 ...``."""
    quick: bool = default_of(verdicts, "quick")
    """Fewer configurations, in under a minute."""
    json: bool = False
    """Print JSON."""
    write_docs: bool = False
    """Check everything that has changed since it was recorded, the mutants too, and write
    docs/verification.md."""
    anew: bool = default_of(verification.write, "anew")
    """With ``--write-docs``, all of it, changed or not."""
    processes: int = default_of(verification.write, "processes")
    """How many processes share the work of ``--write-docs``."""


def run(options: Options, sizes: list[str]) -> int:
    """Run what is asked for.

    Args:
        options: What to run.
        sizes: The words that give the sizes of a configuration of one's own.

    Returns:
        The exit status: 1 on any difference, or where a mutant survives.
    """
    own = None
    if options.model is not None:
        described = ARCHITECTURES[require_choice("model", options.model, ARCHITECTURES)]
        own = tyro.cli(
            model_options(options.model, described),
            prog="python -m validate --model",
            args=sizes,
            registry=whole_numbers(),
        ).build()
    elif sizes:
        raise ValueError(f"{' '.join(sizes)}: expected options, or --model with its sizes")
    if options.write_docs:
        if own or options.json:
            raise ValueError("write_docs with model or json: expected it without")
        recorded = verification.write(options.processes, options.quick, options.anew)
        wrong = verification.wrong(recorded)
        print(verification.DOCS / "verification.md", *wrong, sep="\n")
        return 1 if wrong else 0
    if options.anew:
        raise ValueError("anew without write_docs: nothing is taken over from a record then")
    results = verdicts(options.quick, own, _tracked)
    print(to_json([dataclasses.asdict(v) for v in results]) if options.json else as_table(results))
    return 0 if all(v.holds or v.unverified for v in results) else 1


def _tracked(checks: list[Check]) -> Iterator[Check]:
    """The checks one by one, and in a terminal a bar of how many are done."""
    console = Console(stderr=True)
    columns = (TextColumn("checks"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        yield from progress.track(checks)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on standard error where the input is wrong."""
    try:
        options, sizes = tyro.cli(
            Options,
            prog="python -m validate",
            args=arguments,
            return_unknown_args=True,
            registry=whole_numbers(),
        )
        return run(options, sizes)
    except (ValueError, TypeError, ImportError) as error:
        said = advice(error) if isinstance(error, ImportError) else error
        print(f"validate: {said}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
