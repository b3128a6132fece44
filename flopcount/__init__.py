"""An exact, symbolic per-layer FLOP counter for transformers."""

__version__ = "0.1.0"
