"""Mutation: whether a wrong formula would be noticed. ``python -m validate.mutation``."""
