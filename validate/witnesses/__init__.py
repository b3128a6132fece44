"""The witnesses: they see the real networks and kernels, and no formula that they confirm."""
