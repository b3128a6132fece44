"""The meter in Lightning's own Trainer."""

import csv

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flopcount.callbacks.lightning import MeterCallback


class Network(lightning.LightningModule):
    """One layer that predicts the next token."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(17, 17)

    def training_step(self, batch, index):
        logits = self.table(batch[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def validation_step(self, batch, index):
        return self.training_step(batch, index)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Ticking(lightning.Callback):
    """2 s for each batch of a training, 1,000 s for each validation."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_end(self, *arguments):
        self.clock.now += 2

    def on_validation_end(self, *arguments):
        self.clock.now += 1000


def trained(folder, tokens, clock, meter, loggers):
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, accumulate_grad_batches=3, log_every_n_steps=1,
        logger=loggers, callbacks=[Ticking(clock), MeterCallback(meter)], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    batches = torch.utils.data.DataLoader(tokens, batch_size=4)  # 12 of them, 4 steps an epoch
    trainer.fit(Network(), batches, batches)


@pytest.mark.filterwarnings("ignore")
def test_readings_are_logged(tmp_path, tokens, clock, metered, model):
    meter = metered(batch_size=12)
    logger = CSVLogger(tmp_path, name="rows", version="")
    board = TensorBoardLogger(tmp_path, name="board", version="")
    trained(tmp_path, tokens, clock, meter, [logger, board])
    assert (meter.steps, meter.total_steps) == (8, 8)
    rows = [
        row
        for row in csv.DictReader((tmp_path / "rows" / "metrics.csv").open(encoding="utf-8"))
        if row["mfu"]
    ]
    # A step is three batches of 2 s. The first is warm-up; a validation is in no rate.
    assert [float(row["steps"]) for row in rows] == [2, 3, 4, 5, 6, 7, 8]
    assert {float(row["tokens_per_second"]) for row in rows} == {12 * 8 / 6}
    assert float(rows[-1]["seconds_left"]) == 0
    assert float(rows[0]["seconds_left"]) == 6 * 6
    mfu = model.flops(batch_size=12).total / (6 * 2e6)
    assert float(rows[-1]["mfu"]) == pytest.approx(mfu)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert events.Scalars("mfu")[-1].value == pytest.approx(mfu)
