"""The examples in the docstrings of ``benchmarks``, which is not collected with the tests."""

import doctest
import importlib
import pkgutil

import pytest

import benchmarks

MODULES = [
    module.name
    for module in pkgutil.iter_modules(benchmarks.__path__)
    if not module.name.startswith("test_")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"benchmarks.{name}")).failed == 0


def test_there_are_examples():
    module = importlib.import_module("benchmarks.tune")
    assert doctest.testmod(module).attempted >= 2
