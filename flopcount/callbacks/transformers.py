"""The meter in Hugging Face's Trainer.

Its readings go wherever the Trainer logs: to TensorBoard, to W&B, to ``trainer.state.log_history``.
"""

from __future__ import annotations

from typing import Any

from flopcount.meter import Meter

try:
    from transformers import Trainer, TrainerCallback
except ModuleNotFoundError as error:
    from flopcount import extras

    raise ImportError(extras.advice(error)) from error


class MeterCallback(TrainerCallback):
    """Log a meter's readings whenever the Trainer logs.

    It is added like any other::

        trainer.add_callback(MeterCallback(meter, trainer))

    Evaluations and checkpoints are in no rate. The time left is to the Trainer's last step.

    Args:
        meter: Made for the batch of a whole step: all devices, all accumulated gradients.
        trainer: The one that it is added to.
    """

    def __init__(self, meter: Meter, trainer: Trainer) -> None:
        self.meter, self.trainer = meter, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the batch, and learn how many steps there will be.

        Raises:
            ValueError: If the meter was made for another batch size than the Trainer takes.

        """
        self.meter.require_batch_size(self.trainer.get_total_train_batch_size(args))
        self.meter.total_steps = self.meter.steps + state.max_steps - state.global_step
        self.meter.skip()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step, and log if the Trainer is about to."""
        self.meter.step()
        if control.should_log:
            self.trainer.log(self.meter.reading().to_dict())
            control.should_log = True  # to log is to fulfil the request; the loss is still to come

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the evaluation out."""
        self.meter.skip()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the checkpoint out."""
        self.meter.skip()
