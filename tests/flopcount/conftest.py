"""The counter's own tests need NumPy, SymPy and hypothesis (`make test-counter`).

Those that call its meter of PyTorch modules are collected where there is a PyTorch, and tests that
ask transformers what its classes take are skipped where it is missing.
"""

import importlib.util

WITH_TORCH = ["drawn_calls.py", "test_boundaries.py", "test_testing.py", "test_torch.py"]
collect_ignore = [] if importlib.util.find_spec("torch") else WITH_TORCH
