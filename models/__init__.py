"""Perceiver AR and the decoder-only transformer in PyTorch, their data, training and sweeps.

The networks (:mod:`models.perceiver_ar`, :mod:`models.decoder` and what they are built from) know
nothing of ``flopcount``: they are what its counts are checked against.
"""

from models.decoder import Decoder
from models.perceiver_ar import PerceiverAR

__all__ = ["Decoder", "PerceiverAR"]
