"""The examples in the docstrings of ``benchmarks``, which is not collected with the tests."""

import doctest
import importlib
import pkgutil

import pytest

import benchmarks

MODULES = [
    module.name
    for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
    if not module.name.split(".")[-1].startswith("test_")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    module = importlib.import_module("benchmarks.tiling.tune")
    assert doctest.testmod(module).attempted >= 2
