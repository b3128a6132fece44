"""Perceiver AR and the decoder-only transformer in PyTorch, their data, training and sweeps.

The networks (:mod:`models.perceiver_ar`, :mod:`models.decoder` and what they are built from) know
nothing of ``flopcount``: they are what its counts are checked against.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.decoder import Decoder
    from models.perceiver_ar import PerceiverAR

__all__ = ["Decoder", "PerceiverAR"]


def __getattr__(name: str) -> Any:
    """Load a network when it is first used: without torch, the command line says how to install it.

    Raises:
        AttributeError: If there is no such network.
    """
    if name == "Decoder":
        from models.decoder import Decoder

        return Decoder
    if name == "PerceiverAR":
        from models.perceiver_ar import PerceiverAR

        return PerceiverAR
    raise AttributeError(f"module 'models' has no attribute {name!r}")
