"""``python -m validate``: hold every formula against its witnesses."""

from __future__ import annotations

import dataclasses
import sys

import tyro

from flopcount.cli import Model, to_json
from validate.matrix import as_table, verdicts


def run(own: Model | None = None, quick: bool = False, json: bool = False) -> int:
    """Print the matrix formula × witness; exit with 1 on any difference.

    Args:
        own: A configuration of your own, instead of the article's and drawn ones.
        quick: Fewer configurations, in under a minute.
        json: Print JSON.

    Returns:
        The exit status.
    """
    found = verdicts(quick, own.build() if own is not None else None)
    print(to_json([dataclasses.asdict(v) for v in found]) if json else as_table(found))
    return 0 if all(v.holds or v.unverified for v in found) else 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 2 and one line on standard error where the input is wrong."""
    try:
        return tyro.cli(
            run,
            prog="python -m validate",
            args=arguments,
            config=(
                tyro.conf.CascadeSubcommandArgs,
                tyro.conf.OmitSubcommandPrefixes,
                tyro.conf.OmitArgPrefixes,
            ),
        )
    except (ValueError, TypeError, ImportError) as error:
        print(f"validate: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
