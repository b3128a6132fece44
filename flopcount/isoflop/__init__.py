"""IsoFLOP: laws, the plan of a family of models, fits to its runs, and where its optima lie."""
