"""IsoFLOP studies: what a prefix buys at equal compute. ``python -m models.study --help``."""
