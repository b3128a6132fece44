"""Tilings: the search for the fastest, and what a tile costs of a multiprocessor."""
