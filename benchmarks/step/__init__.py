"""Blocks and whole training steps."""
