"""Benchmarks: how fast, against whom, and what the hardware counts. ``benchmarks/README.md``."""
