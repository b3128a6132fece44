"""Witness: networks that others wrote, those of transformers, family by family."""
