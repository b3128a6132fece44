"""The meter in Lightning's Trainer: its readings go to the Trainer's loggers, like any metric."""

from __future__ import annotations

import math
from typing import Any

from flopcount.meter import Meter

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError as error:
    from flopcount import extras

    raise ImportError(extras.advice(error)) from error


class MeterCallback(Callback):
    """Log a meter's readings as Lightning logs metrics, every ``log_every_n_steps`` steps.

    It is added like any other::

        Trainer(callbacks=[MeterCallback(meter)])

    A step is one of the optimiser. Validations are in no rate. The time left is to the Trainer's
    last step, where it knows one.

    Args:
        meter: Made for the batch of a whole step: all devices, all accumulated gradients.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._seen = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Learn how many steps there will be."""
        self._seen = trainer.global_step
        steps = trainer.estimated_stepping_batches
        if math.isfinite(steps):
            self.meter.total_steps = self.meter.steps + int(steps) - self._seen
        self.meter.skip()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, if the batch ended one, and log."""
        if trainer.global_step > self._seen:
            self._seen = trainer.global_step
            self.meter.step()
            pl_module.log_dict(self.meter.reading().to_dict(), on_step=True, on_epoch=False)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the validation out."""
        self.meter.skip()
