"""What holds for all tests: where there is no GPU, kernels run in Triton's interpreter."""

import importlib.util
import os

import hypothesis
import pytest


def is_installed(library: str) -> bool:
    """Whether a library can be imported, without importing it."""
    return importlib.util.find_spec(library) is not None


# Doctests are looked for in every module; `make test-counter` has no torch, and the callbacks need
# what `make test-adapters` installs.
NEEDED = {
    "flopcount/torch.py": "torch",
    "flopcount/callbacks/lightning.py": "lightning",
    "flopcount/callbacks/transformers.py": "accelerate",
}
collect_ignore = [path for path, library in NEEDED.items() if not is_installed(library)]

# How long an example takes says what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=4_000)
hypothesis.settings.load_profile("untimed")

# Printed examples are as wide as in a file, whatever terminal the tests run in.
os.environ["COLUMNS"] = "110"

if is_installed("torch"):
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Say of a record that is older than the code which command renews it."""
    report = yield
    if report.failed and (mark := item.get_closest_marker("record")):
        (command,) = mark.args
        report.sections.append(("the record is old", f"{command} renews it"))
    return report


def pytest_collection_modifyitems(items):
    """Skip the tests whose kernels need the interpreter where kernels are compiled."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    reason = "kernels are compiled for the GPU here: TRITON_INTERPRET=1 runs this on the CPU"
    for item in items:
        if item.get_closest_marker("interpreter"):
            item.add_marker(pytest.mark.skip(reason=reason))
