"""One training run: from a configuration to a loss, resumable at any step.

A run owns a folder: ``config.json`` (what was asked), ``environment.json`` (what it ran on),
``metrics.csv`` (one row per validation) and the checkpoint. The same configuration in the same
folder continues where the checkpoint stands; on a CPU the result is bit-identical to a run that
was never interrupted.

FLOPs are ``flopcount``'s at level ``causal``: what the mask admits, forward and backward.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import filelock
import torch
from torch import Tensor

import flopcount
from models.configuration import claim_folder, read_config
from models.data.corpus import (
    Corpus,
    CorpusConfig,
    load_corpus,
    training_batch,
    validation_windows,
)
from models.data.tokenizers import (
    BYTE_VOCAB_SIZE,
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)
from models.files import write_atomically
from models.limits import (
    AboveZero,
    AtLeastOne,
    AtLeastZero,
    Seed,
    Share,
    ShareBelowOne,
    check_fields,
)
from models.networks.decoder import Decoder
from models.networks.perceiver_ar import PerceiverAR
from models.provenance import code_commit
from models.training.batches import Batch, prefetched
from models.training.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from models.training.distributed import ALONE, Processes, joined_processes, sharded_like, whole
from models.training.step import Execution, TrainStep
from models.training.throughput import Speed, measure, peak_device, why_no_utilisation

Row = dict[str, float]
_VOCABULARY = "sentencepiece.model"
_log = logging.getLogger(__name__)


NETWORKS = {
    "perceiver-ar": (PerceiverAR, flopcount.PerceiverAR),
    "decoder": (Decoder, flopcount.Decoder),
}
"""By architecture, what is trained and what counts it."""


@dataclass(frozen=True)
class ModelConfig:
    """The network's sizes, as both the network and the counter take them.

    Attributes:
        vocab_size: Entries of the vocabulary.
        num_latents: Positions that predict; all of a decoder's.
        num_prefix: Positions before them that the first layer attends to; 0 for a decoder.
        num_channels: Channels of the residual stream.
        num_layers: Layers.
        num_heads: Heads of each.
        widening_factor: Width of the MLP's hidden layer over the channels.
        prefix_dropout: The share of the prefix that a training step drops; 0 for a decoder.
        architecture: ``perceiver-ar``, or ``decoder`` for GPT-2's, which has a final norm, biases
            and no prefix.

    """

    vocab_size: AtLeastOne = BYTE_VOCAB_SIZE
    num_latents: AtLeastOne = 512
    num_prefix: AtLeastZero = 1536
    num_channels: AtLeastOne = 512
    num_layers: AtLeastOne = 9
    num_heads: AtLeastOne = 8
    widening_factor: AtLeastOne = 4
    prefix_dropout: ShareBelowOne = 0.0
    architecture: Literal["perceiver-ar", "decoder"] = "perceiver-ar"

    def sizes(self) -> dict[str, Any]:
        """Give the sizes by the names that the architecture has for them.

        Raises:
            ValueError: If a decoder is given a prefix.

        >>> sizes = ModelConfig(num_prefix=0, architecture="decoder").sizes()
        >>> sizes["seq_len"], "num_prefix" in sizes
        (512, False)
        """
        sizes = dataclasses.asdict(self)
        if sizes.pop("architecture") == "perceiver-ar":
            return sizes
        for name in ("num_prefix", "prefix_dropout"):
            if value := sizes.pop(name):
                raise ValueError(f"model.{name} must be 0 for a decoder, got {value}")
        return sizes | {"seq_len": sizes.pop("num_latents")}

    def network(self, **options: Any) -> PerceiverAR | Decoder:
        """Make the network.

        Args:
            options: That change how it is computed: ``attention``, ``checkpointing``.

        """
        return NETWORKS[self.architecture][0](**self.sizes(), **options)

    def counted(self) -> flopcount.PerceiverAR | flopcount.Decoder:
        """Give the counter's model of the same sizes."""
        return NETWORKS[self.architecture][1](**self.sizes())


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the defaults are the article's.

    Attributes:
        batch_size: Sequences a step.
        learning_rate: Adam's, at its peak.
        final_fraction: Of the peak, reached by a cosine at the last step.
        warmup_steps: Linear from 0, but at most a tenth of the run.
        gradient_clip: Largest norm of the gradient.

    """

    batch_size: AtLeastOne = 80
    learning_rate: AboveZero = 2e-4
    final_fraction: Share = 0.1
    warmup_steps: AtLeastZero = 200
    gradient_clip: AboveZero = 0.5


@dataclass(frozen=True)
class RunConfig:
    """What a run has in common with the other runs of its sweep.

    Attributes:
        model: The network.
        corpus: The text.
        recipe: The optimisation.
        validations: How often the validation loss is taken, at equal distances in FLOPs, the last
            time after the last step.
        validation_windows: Windows of each.
        final_validation_windows: Of the last; as many by default.
        validation_context: Positions before the latents of each, of which the last are the prefix;
            equal ones make equal targets for models of different prefixes. The prefix by default.
        checkpoint_steps: A checkpoint after so many steps, besides one at each validation.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.
        peak: The device's name in ``flopcount devices``, for MFU and HFU; without it none is
            recorded.
        peak_flops: In place of ``peak``, FLOP/s of one device.
        execution: How the steps are executed; may change while a run is interrupted.

    """

    model: ModelConfig = field(default_factory=ModelConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    recipe: Recipe = field(default_factory=Recipe)
    validations: AtLeastOne = 20
    validation_windows: AtLeastOne = 256
    final_validation_windows: AtLeastOne | None = None
    validation_context: AtLeastZero | None = None
    checkpoint_steps: AtLeastOne = 1000
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peak: str | None = None
    peak_flops: AboveZero | None = None
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """One run, complete.

    Attributes:
        steps: How many.
        seed: Of weights, windows and prefix dropout.

    """

    steps: AtLeastOne = 50_000
    seed: Seed = 0


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of a step, counted from 0.

    With w = min(warmup_steps, steps // 10): peak · (step + 1) / w during the first w steps, then
    peak · (f + (1 − f) · (1 + cos(π·t)) / 2), f the final fraction and t going from 0 to 1 at the
    last step.

    >>> recipe = Recipe(learning_rate=1.0, warmup_steps=5)
    >>> [round(learning_rate(recipe, step, 101), 2) for step in (0, 4, 5, 100)]
    [0.2, 1.0, 1.0, 0.1]
    """
    warmup = min(recipe.warmup_steps, steps // 10)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return recipe.learning_rate * (recipe.final_fraction + (1 - recipe.final_fraction) * cosine)


def train(
    config: TrainConfig,
    folder: Path,
    on_step: Callable[[int], None] | None = None,
    patience: float = 0,
) -> list[Row]:
    """Train a run to its end, from its checkpoint where it has one.

    Args:
        config: The run.
        folder: Its own; made if need be.
        on_step: Called with the number of steps done, after each and at the start, in every
            process that ``torchrun`` has started.
        patience: Seconds to wait for another process that is training in the folder.

    Returns:
        The rows of ``metrics.csv``: step, tokens, flops, learning_rate, train_loss (mean since
        the row before), validation_loss, seconds (of training alone, from the start),
        tokens_per_second, flops_per_second, and mfu and hfu where a peak is given, all of the
        steps since the row before. Losses are nats per token.

    Raises:
        ValueError: If the folder holds a run of another configuration, the configuration is out
            of range, or the corpus too short.
        CheckpointError: If the checkpoint is damaged or the corpus has changed since.
        DivergedError: If the loss is not finite.
        RuntimeError: If another process is training in the folder.

    """
    check_config(config)
    corpus = open_corpus(config)
    with joined_processes(choose_device(config.device)) as processes:
        _check_shares(config, processes)
        with _claimed(folder, config, processes, patience):
            return _Run(config, corpus, folder, processes).complete(on_step or (lambda _: None))


@contextmanager
def _claimed(
    folder: Path, config: TrainConfig, processes: Processes, patience: float
) -> Iterator[None]:
    """Hold a folder's lock; the first process does so for all."""
    if not processes.is_first:
        processes.wait_for_all()
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=patience):
            claim_folder(config, folder, may_differ=("execution",))
            processes.wait_for_all()
            yield
    except filelock.Timeout:
        raise RuntimeError(f"another process is training in {folder}") from None


def load_model(folder: Path) -> PerceiverAR | Decoder:
    """Load the network of a run's last checkpoint, in evaluation mode on the CPU.

    Raises:
        CheckpointError: If there is none, or it is damaged.

    """
    model = read_config(TrainConfig, folder).model.network()
    checkpoint = load_checkpoint(folder)
    if checkpoint is None:
        raise CheckpointError(f"{folder} has no checkpoint yet")
    _restore(model, checkpoint[1])
    return model.eval()


def check_config(config: TrainConfig) -> None:
    """Refuse what no run could be trained with.

    Raises:
        TypeError: If a value is of another type than its field.
        ValueError: If a value is out of range, or the device is not there.

    """
    check_fields(config)
    context, prefix = config.validation_context, config.model.num_prefix
    if context is not None and context < prefix:
        raise ValueError(
            f"validation_context must be model.num_prefix = {prefix} at least, got {context}"
        )
    _check_shares(config, ALONE)
    _measure(config, choose_device(config.device), ALONE)


def _check_shares(config: TrainConfig, processes: Processes) -> None:
    config.execution.require_divides(config.recipe.batch_size, processes)
    counts = {
        "validation_windows": config.validation_windows,
        "final_validation_windows": final_windows(config),
    }
    for name, count in counts.items():
        if count % processes.count:
            raise ValueError(
                f"{name} must be a multiple of the {processes.count} processes, got {count}"
            )


def final_windows(config: TrainConfig) -> int:
    """Give the number of windows of the last validation."""
    given = config.final_validation_windows
    return config.validation_windows if given is None else given


def _measure(config: TrainConfig, device: torch.device, processes: Processes) -> Speed:
    return measure(
        config.model.counted(),
        batch_size=config.recipe.batch_size,
        attention=config.execution.resolve_attention(device),
        checkpointing=config.execution.checkpointing,
        device=peak_device(config.peak, config.peak_flops, config.execution.peak_dtype(device)),
        dtype=config.execution.peak_dtype(device),
        num_devices=processes.count,
    )


def open_corpus(config: TrainConfig) -> Corpus:
    """Load a run's corpus: see :func:`models.data.corpus.load_corpus`.

    Raises:
        ValueError: Beside the reasons there, if either part is shorter than a window.

    """
    corpus = load_corpus(config.corpus, config.model.vocab_size)
    corpus.require_windows(
        config.model.num_prefix, config.model.num_latents, config.validation_context
    )
    return corpus


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a run."""
    if read_config(TrainConfig, folder).corpus.tokenizer == "bytes":
        return ByteTokenizer()
    return SentencePieceTokenizer((folder / _VOCABULARY).read_bytes())


def choose_device(name: str) -> torch.device:
    """Find the device that a configuration names.

    Raises:
        ValueError: If the name is unknown, or there is no GPU where one is asked for.

    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be auto or cpu where torch finds no GPU, got 'cuda'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _restore(model: PerceiverAR | Decoder, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(sharded_like(tensors[f"model.{name}"], parameter))


class _Run:
    """The state of a run between two steps."""

    def __init__(
        self, config: TrainConfig, corpus: Corpus, folder: Path, processes: Processes
    ) -> None:
        self.config, self.corpus, self.folder = config, corpus, folder
        self.processes = processes
        self.device = choose_device(config.device)
        self.validation = self._windows(config.validation_windows)
        self.speed = _measure(config, self.device, processes)

        torch.manual_seed(config.seed)
        self.model = config.model.network(
            attention=config.execution.resolve_attention(self.device),
            checkpointing=config.execution.checkpointing,
        ).to(self.device)
        self.step = TrainStep(self.model, config.execution, config.recipe.gradient_clip, processes)
        self.done = 0
        self.rows: list[Row] = []
        self.seconds = 0.0
        self.commits = [code_commit()]  # all that have trained the run, in their order
        self.loss_sum = torch.zeros((), dtype=torch.float64)  # since the last row
        self.norm_sum = torch.zeros(())  # since the start; only whether it is finite matters
        if checkpoint := load_checkpoint(folder):
            self._load(*checkpoint)
        self._write_environment()
        if isinstance(corpus.tokenizer, SentencePieceTokenizer):
            write_atomically(folder / _VOCABULARY, corpus.tokenizer.model)

    def complete(self, on_step: Callable[[int], None]) -> list[Row]:
        config = self.config
        points = {
            round(config.steps * point / config.validations)
            for point in range(1, config.validations + 1)
        }
        on_step(self.done)
        steps = range(self.done, config.steps)
        ahead = config.execution.resolve_prefetch(self.device)
        with prefetched(self._batch, steps, self.device, ahead) as batches:
            started = time.perf_counter()
            for batch in batches:
                self._step(*batch)
                is_point = self.done in points
                if is_point or self.done % config.checkpoint_steps == 0:
                    self.loss_sum = self.processes.mean(self.loss_sum)
                    self._check_finite()
                    self.seconds += time.perf_counter() - started
                    if is_point:
                        self._add_row()
                    self._save()
                    started = time.perf_counter()
                on_step(self.done)
        return self.rows

    def _batch(self, step: int) -> Batch:
        config = self.config
        return training_batch(
            self.corpus.train,
            config.model.num_prefix,
            config.model.num_latents,
            config.recipe.batch_size,
            config.seed,
            step,
            self.processes.share(config.recipe.batch_size),
        )

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        rate = learning_rate(self.config.recipe, self.done, self.config.steps)
        loss, norm = self.step(inputs, targets, rate)
        self.loss_sum = self.loss_sum + loss
        self.norm_sum = self.norm_sum + norm
        self.done += 1

    def _check_finite(self) -> None:
        """Stop before a checkpoint would replace the last good one."""
        for what, value in (("loss", self.loss_sum), ("gradient's norm", self.norm_sum)):
            if not math.isfinite(value.item()):
                raise DivergedError(
                    f"the {what} is {value.item()} within the steps before {self.done}; a smaller "
                    f"learning rate than {self.config.recipe.learning_rate} may help"
                )

    def _windows(self, count: int) -> tuple[Tensor, Tensor]:
        model = self.config.model
        return validation_windows(
            self.corpus.validation,
            model.num_prefix,
            model.num_latents,
            count,
            self.config.validation_context,
        )

    def _validation_loss(self) -> float:
        windows = self.validation
        if self.done == self.config.steps:
            windows = self._windows(final_windows(self.config))
        share = self.processes.share(len(windows[0]))
        inputs, targets = (part[share].to(self.device) for part in windows)
        chunks = zip(inputs.split(64), targets.split(64), strict=True)
        total = sum(self.step.evaluate(*chunk).item() * len(chunk[0]) for chunk in chunks)
        mean = torch.tensor(total / len(inputs), dtype=torch.float64, device=self.device)
        return self.processes.mean(mean).item()

    def _add_row(self) -> None:
        before = self.rows[-1] if self.rows else {"step": 0, "seconds": 0.0}
        steps, seconds = self.done - before["step"], self.seconds - before["seconds"]
        row: Row = {
            "step": self.done,
            "tokens": self.done * self.speed.causal.tokens,
            "flops": self.done * self.speed.causal.total,
            "learning_rate": self.step.optimizer.param_groups[0]["lr"],
            "train_loss": self.loss_sum.item() / steps,
            "validation_loss": self._validation_loss(),
            "seconds": self.seconds,
        }
        row |= self.speed.row(seconds / steps)
        self.rows.append(row)
        _log.info(
            "step %s of %s: validation loss %.4f",
            f"{self.done:,}",
            f"{self.config.steps:,}",
            row["validation_loss"],
        )
        self.loss_sum = torch.zeros_like(self.loss_sum)
        if not self.processes.is_first:
            return
        table = io.StringIO()
        writer = csv.DictWriter(table, fieldnames=row, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.folder / "metrics.csv", table.getvalue().encode())

    def _save(self) -> None:
        tensors = dict(self._tensors())
        if not self.processes.is_first:
            return
        state = {
            "rows": self.rows,
            "seconds": self.seconds,
            "corpus": self.corpus.digest,
            "commits": self.commits,
        }
        save_checkpoint(self.folder, self.done, tensors, state)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Give what a checkpoint holds, whole, to the first process; all must ask for it."""
        sharded = {f"model.{name}": value for name, value in self.model.named_parameters()}
        for index, values in self.step.optimizer.state_dict()["state"].items():
            sharded |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        # Sorted: a loaded checkpoint has its tensors in another order in each process, and those
        # that gather together must gather the same one.
        for name, value in sorted(sharded.items()):
            gathered = whole(value.detach())
            if self.processes.is_first:
                yield name, gathered.cpu().contiguous()
        yield "loss_sum", self.loss_sum
        # The same in every process, as all draw for the whole batch.
        yield "random.cpu", torch.get_rng_state()
        if self.device.type == "cuda":
            yield "random.cuda", torch.cuda.get_rng_state(self.device)

    def _load(self, done: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        if state["corpus"] != self.corpus.digest:
            raise CheckpointError(
                f"{self.folder} was trained on another corpus: digest {state['corpus'][:16]}, "
                f"now {self.corpus.digest[:16]}"
            )
        self.done, self.rows, self.seconds = done, state["rows"], state["seconds"]
        now = self.commits if done < self.config.steps else []
        self.commits = list(dict.fromkeys([*state.get("commits", []), *now]))
        self.loss_sum = tensors["loss_sum"].to(self.device)
        _restore(self.model, tensors)
        parameters = list(self.model.parameters())
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                parameter = parameters[int(index)]
                if value.shape == parameter.shape:
                    value = sharded_like(value, parameter)
                moments.setdefault(int(index), {})[key] = value
        groups = self.step.optimizer.state_dict()["param_groups"]
        self.step.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        torch.set_rng_state(tensors["random.cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)

    def _write_environment(self) -> None:
        if not self.processes.is_first:
            return
        known = self.speed.device is not None
        environment = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "flopcount": flopcount.__version__,
            "commits": self.commits,
            "machine": platform.machine(),
            "device": torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else "cpu",
            "processes": self.processes.count,
            "execution": dataclasses.asdict(self.config.execution),
            "attention": self.config.execution.resolve_attention(self.device),
            "utilisation": "in metrics.csv" if known else why_no_utilisation(self.device),
            "corpus_digest": self.corpus.digest,
            "train_tokens": len(self.corpus.train),
            "validation_tokens": len(self.corpus.validation),
        }
        write_atomically(
            self.folder / "environment.json", json.dumps(environment, indent=2).encode()
        )
