"""For tests of other projects: architectures and configs to draw, and one assertion.

Needs the extra ``testing``, for hypothesis, and :func:`assert_counts` the extra ``torch``::

    from hypothesis import given
    from flopcount.testing import assert_counts, decoders

    @given(decoders())
    def test_the_network_is_what_we_say_that_it_costs(architecture):
        assert_counts(MyDecoder(**architecture.arguments()), architecture)
"""

from __future__ import annotations

try:
    from flopcount.testing.strategies import (
        configs,
        decoders,
        draw,
        lengths,
        llamas,
        models,
        perceivers,
    )
except ModuleNotFoundError as error:
    from flopcount import extras

    raise ImportError(extras.advice(error)) from error

from flopcount.testing.assertions import assert_counts

__all__ = [
    "assert_counts",
    "configs",
    "decoders",
    "draw",
    "lengths",
    "llamas",
    "models",
    "perceivers",
]
