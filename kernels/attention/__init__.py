"""Causal and prefix attention, forward and backward, for any head dim from 1 to 256."""
