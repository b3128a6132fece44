"""IsoFLOP sweeps: plan, place and train the runs, and write the report."""
