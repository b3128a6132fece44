"""Perceiver AR and the decoder-only transformer in PyTorch, their data, training and sweeps.

The networks (:mod:`models.networks`) know nothing of ``flopcount``: they are what its counts are
checked against. A folder imports those before it alone: networks, data, training, sweeps, study.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.networks.decoder import Decoder
    from models.networks.perceiver_ar import PerceiverAR

__all__ = ["Decoder", "PerceiverAR"]


def __getattr__(name: str) -> Any:
    """Load a network when it is first used: without torch, the command line says how to install it.

    Raises:
        AttributeError: If there is no such network.
    """
    if name == "Decoder":
        from models.networks.decoder import Decoder

        return Decoder
    if name == "PerceiverAR":
        from models.networks.perceiver_ar import PerceiverAR

        return PerceiverAR
    raise AttributeError(f"module 'models' has no attribute {name!r}")
