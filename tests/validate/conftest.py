"""Errors introduced into what every network consists of."""

import dataclasses

import pytest

from flopcount import architectures, finetuning
from flopcount.blocks import rows_of


@pytest.fixture
def introduce(monkeypatch):
    """Change the rows of every network.

    ``introduce(kind, change, **where)``: of the rows of a kind whose attributes are those of
    ``where``, ``change(row)`` says which attributes become what; None leaves the row out.
    """

    def introduced(kind, change, **where):
        original = architectures.rows_of

        def changed(network):
            for row in original(network):
                meant = isinstance(row, kind) and all(
                    getattr(row, name) == value for name, value in where.items()
                )
                changes = change(row) if meant else {}
                if changes is not None:
                    yield dataclasses.replace(row, **changes) if changes else row

        monkeypatch.setattr(architectures, "rows_of", changed)
        monkeypatch.setattr(finetuning, "rows_of", changed)

    assert architectures.rows_of is rows_of
    return introduced
