"""Attention: who is timed, on which shapes, how fast, and whether it is right there."""
