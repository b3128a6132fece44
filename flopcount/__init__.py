"""An exact, symbolic per-layer FLOP counter for transformers.

>>> import flopcount as fc
>>> model = fc.PerceiverAR(vocab_size=32_000, num_latents=512, num_prefix=1536,
...                        num_channels=512, num_layers=9, num_heads=8, prefix_dropout=0.5)
>>> model.flops().total
149398487040
"""

from flopcount.architectures import Decoder, PerceiverAR
from flopcount.devices import Device, Peak

__version__ = "0.1.0"

__all__ = ["Decoder", "Device", "Peak", "PerceiverAR"]
