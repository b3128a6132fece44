"""The page's example in torchtitan's own Trainer, on a CPU that stands in for a GPU."""

import dataclasses
import functools
import gc
import importlib
import re
import types
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flopcount as fc

PAGE = Path(__file__).parents[2] / "docs/in-your-loop.md"
MODEL = fc.Llama(
    vocab_size=2048, seq_len=8, num_channels=256, num_layers=1, num_heads=16, intermediate_size=768
)
"""torchtitan's ``llama3_debugmodel``, with one layer."""


class Device(types.ModuleType):
    """torch.cpu, with what torchtitan asks of torch.cuda."""

    def __getattr__(self, name):
        return getattr(torch.cpu, name)

    def current_device(self):
        return 0

    def get_device_name(self, device):
        return "H100"

    def get_device_properties(self, device):
        return types.SimpleNamespace(total_memory=2**30)

    def memory_stats(self, device):
        return {}

    def reset_peak_memory_stats(self):
        pass

    empty_cache = reset_peak_memory_stats


@pytest.fixture
def titan(tmp_path, monkeypatch):
    """A function that imports a module of torchtitan, as if there were a GPU."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    tools = importlib.import_module("torchtitan.tools.utils")
    monkeypatch.setattr(tools, "device_type", "cpu")
    monkeypatch.setattr(tools, "device_module", Device("cpu"))
    # PyTorch has had it for less long than the oldest that this project runs with.
    monkeypatch.setattr(torch.distributed, "set_timeout", lambda *given: None, raising=False)
    yield lambda name: importlib.import_module(f"torchtitan.{name}")
    torch.distributed.destroy_process_group()
    gc.enable()


@pytest.fixture
def config(titan, tmp_path, tokens, clock):
    """Of a training of 3 steps, each of 2 · 2 sequences of 8 tokens."""

    class Tokenizer(titan("components.tokenizer").BaseTokenizer):
        @dataclasses.dataclass(kw_only=True, slots=True)
        class Config(titan("components.tokenizer").BaseTokenizer.Config):
            pass

        def __init__(self, config, *, tokenizer_path):
            super().__init__()

        encode = decode = get_vocab_size = None

    class Data(titan("components.dataloader").BaseDataLoader):
        @dataclasses.dataclass(kw_only=True, slots=True)
        class Config(titan("components.dataloader").BaseDataLoader.Config):
            pass

        def __init__(self, config, **options):
            self.batch_size = options["local_batch_size"]

        def __iter__(self):
            for batch in tokens.split(self.batch_size):
                clock.now += 2
                yield {"input": batch}, batch

        state_dict = load_state_dict = None

    config = titan("models.llama3.config_registry").llama3_debugmodel()
    attention = titan("models.common.attention")
    model = config.model_spec.model
    model.layers = model.layers[: MODEL.num_layers]
    for _, _, owner, name in model.traverse(attention.FlexAttention.Config):
        setattr(owner, name, attention.ScaledDotProductAttention.Config())
    config.tokenizer, config.dataloader = Tokenizer.Config(), Data.Config()
    config.training.seq_len, config.training.steps = MODEL.seq_len, 3
    config.training.local_batch_size, config.training.global_batch_size = 2, 4
    config.training.disable_cuda_graphs = True
    config.validator.enable = False
    config.metrics.enable_tensorboard = True
    config.dump_folder = str(tmp_path)
    return config


def example() -> str:
    """What the page shows."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if "torchtitan" in block)
    return block


@pytest.mark.filterwarnings("ignore")
def test_readings_are_logged_beside_torchtitans(tmp_path, clock, config, titan, monkeypatch):
    manager = titan("components.checkpoint").CheckpointManager
    monkeypatch.setattr(manager, "save", lambda *given, **options: clock.wait(1000))
    meter = functools.partial(fc.Meter, warmup_steps=1, clock=clock)
    shown = {"fc": types.SimpleNamespace(Meter=meter), "config": config, "model": MODEL}
    exec(example(), shown)
    trainer = shown["trainer"]
    # Both are the same model, to the parameter and to the FLOP that torchtitan divides by.
    assert sum(p.numel() for p in trainer.model_parts[0].parameters()) == MODEL.params().total
    per_token = MODEL.flops(convention="torchtitan").per_token
    assert trainer.metrics_processor.num_flops_per_token == per_token
    (file,) = (tmp_path / "tb").rglob("events.out.*")
    board = EventAccumulator(str(file.parent))
    board.Reload()
    names = ("grad_norm", "steps", "tokens_per_second", "seconds_left", "mfu")
    read = {name: [event.value for event in board.Scalars(name)] for name in names}
    assert len(read["grad_norm"]) == 3  # torchtitan's own
    assert read["steps"] == [1, 2, 3]
    # Two batches of 2 s are a step of 32 tokens; the first is warm-up, a checkpoint is in no rate.
    assert read["tokens_per_second"] == 2 * [8]
    assert read["seconds_left"] == [4, 0]
    assert read["mfu"] == pytest.approx(2 * [MODEL.flops(batch_size=4).total / (4 * 8 * 989.4e12)])
