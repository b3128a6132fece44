"""The meter in Hugging Face's own Trainer, and what reaches TensorBoard and W&B."""

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from flopcount.callbacks.transformers import MeterCallback

RATES = {"tokens_per_second", "flops_per_second", "mfu", "hfu", "cost", "seconds_left"}


class Ticking(MeterCallback):
    """The callback, with a clock that says 2 s for each step and 1,000 s for an evaluation."""

    def __init__(self, meter, trainer, clock):
        super().__init__(meter, trainer)
        self.clock = clock

    def on_step_end(self, *arguments, **options):
        self.clock.now += 2
        super().on_step_end(*arguments, **options)

    def on_evaluate(self, *arguments, **options):
        self.clock.now += 1000
        super().on_evaluate(*arguments, **options)


def trained(folder, tokens, clock, meter, report_to=(), **options):
    network = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    data = [dict(input_ids=row, labels=row) for row in tokens]
    settings = dict(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=4,
        gradient_accumulation_steps=2, logging_steps=2, eval_strategy="steps", eval_steps=3,
        save_strategy="no", use_cpu=True, disable_tqdm=True, report_to=list(report_to),
    )  # fmt: skip
    trainer = Trainer(network, TrainingArguments(**settings | options), None, data, data[:4])
    trainer.add_callback(Ticking(meter, trainer, clock))
    trainer.train()
    return trainer


def test_readings_are_logged_beside_the_loss(tmp_path, tokens, clock, metered, model):
    meter = metered(batch_size=8)
    history = trained(tmp_path, tokens, clock, meter).state.log_history
    shown = [entry for entry in history if "mfu" in entry]
    assert [entry["step"] for entry in shown] == [2, 4, 6]
    assert sum("loss" in entry for entry in history) == 3  # the Trainer's own logs are all there
    assert sum("eval_loss" in entry for entry in history) == 2
    for entry in shown:
        # 8 sequences in 2 s, on two devices of 1e6 FLOP/s; an evaluation is in no rate.
        assert entry["tokens_per_second"] == 8 * 8 / 2
        assert entry["mfu"] == model.flops(batch_size=8).total / (2 * 2e6)
        assert entry["seconds_left"] == 2 * (6 - entry["step"])
    # Two devices at 1 a second, for 6 steps, and the evaluation after the third.
    assert shown[-1]["cost"] == pytest.approx(2 * (6 * 2 + 1000))


def test_an_evaluation_that_is_not_left_out_would_show(
    tmp_path, tokens, clock, metered, monkeypatch
):
    monkeypatch.setattr("flopcount.meter.Meter.skip", lambda meter: None)
    history = trained(tmp_path, tokens, clock, metered(batch_size=8)).state.log_history
    (last,) = (entry for entry in history if entry["step"] == 6 and "mfu" in entry)
    # Five steps after the warm-up, in 5·2 s and the 1,000 s of the evaluation.
    assert last["tokens_per_second"] == pytest.approx(5 * 8 * 8 / 1010)


def test_a_batch_size_of_one_device_is_refused(tmp_path, tokens, clock, metered):
    with pytest.raises(ValueError, match="batch_size = 4: expected 8, the sequences"):
        trained(tmp_path, tokens, clock, metered(batch_size=4))


def test_a_resumed_training_has_only_the_rest_before_it(tmp_path, tokens, clock, metered):
    trained(tmp_path, tokens, clock, metered(batch_size=8), save_strategy="steps", save_steps=4)
    again = metered(batch_size=8)
    folder = tmp_path / "again"
    trainer = trained(folder, tokens, clock, again, max_steps=1)
    trainer.args.max_steps = 9
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.steps == 1 + 5
    assert again.reading().seconds_left == 0


def test_tensorboard_and_wandb_have_it(tmp_path, tokens, clock, metered, model, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trained(tmp_path, tokens, clock, metered(batch_size=8), ("tensorboard", "wandb"))
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert {f"train/{name}" for name in RATES} <= summary.keys()
    board = EventAccumulator(str(next((tmp_path).rglob("events.out.*")).parent))
    board.Reload()
    mfu = [event.value for event in board.Scalars("train/mfu")]
    assert mfu == pytest.approx(3 * [model.flops(batch_size=8).total / 4e6])
    assert summary["train/mfu"] == pytest.approx(mfu[-1])
