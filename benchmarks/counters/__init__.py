"""Hardware counters: what Nsight Compute counts, against what is computed."""
