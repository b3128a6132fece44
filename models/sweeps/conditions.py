"""What a sweep was made with, in words: the settings that had an effect, and what it ran on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.data.corpus import CorpusConfig
from models.sweeps.plan import SweepConfig
from models.sweeps.plots import short
from models.training.step import Execution


def settings(config: SweepConfig, python: str) -> dict[str, str]:
    """Say what a sweep was asked for; what had no effect on it is left out.

    Args:
        config: The sweep.
        python: The version that ran it.

    """
    model, recipe = config.model, config.recipe
    heads = f"{model.num_heads}" if config.head_dim is None else f"of {config.head_dim} channels"
    context, final = config.validation_context, config.final_validation_windows
    said = {
        "budgets": f"{', '.join(map(short, config.budgets))} training FLOPs",
        "budgets counted as": config.convention,
        "models, channels × layers": ", ".join(f"{d} × {layers}" for d, layers in config.shapes),
        "architecture": None if model.architecture == "perceiver-ar" else model.architecture,
        "heads": heads,
        "latents": f"{model.num_latents:,}",
        "prefix": f"{model.num_prefix:,}",
        "prefix dropout": f"{model.prefix_dropout:g}" if model.prefix_dropout else None,
        "width of the MLP": f"{model.widening_factor} × channels",
        "seeds": ", ".join(map(str, config.seeds)),
        "corpus": corpus_name(config.corpus, python),
        "held out": ", ".join(config.corpus.validation_files)
        or f"{config.corpus.held_out:.3g} of the documents",
        "tokens": f"{config.corpus.tokenizer}, {model.vocab_size:,} in the vocabulary",
        "sequences a step": f"{recipe.batch_size}",
        "peak learning rate": f"{recipe.learning_rate:g}, Adam",
        "schedule": f"warm-up over {recipe.warmup_steps} steps, but a tenth of the run at most; "
        f"then a cosine to {recipe.final_fraction:g} of the peak",
        "gradient clipped to": f"norm {recipe.gradient_clip:g}",
        "validation": f"{config.validations} times a run, on {config.validation_windows} windows"
        + (f", the last time on {final}" if final else ""),
        "context in validation": None if context is None else f"{context} positions",
    }
    return {name: text for name, text in said.items() if text}


def corpus_name(config: CorpusConfig, python: str) -> str:
    """Name a corpus as a reader would look for it.

    >>> corpus_name(CorpusConfig(), "3.11.7")
    'the standard library of Python 3.11.7, its tests left out'
    >>> corpus_name(CorpusConfig(files=("books/*.txt.xz",), blank_lines=3), "3.11.7")
    'books/*.txt.xz, documents parted by 3 blank lines or more'
    >>> corpus_name(CorpusConfig(dataset="bookcorpus", dataset_rows=100), "3.11.7")
    'bookcorpus of Hugging Face, split train, 100 rows to a document'
    """
    if config.dataset is not None:
        parts = [f"{config.dataset} of Hugging Face", config.dataset_config]
        parts.append(f"split {config.dataset_split}")
        if config.dataset_revision is not None:
            parts.append(f"revision {config.dataset_revision}")
        if config.dataset_rows > 1:
            parts.append(f"{config.dataset_rows} rows to a document")
    elif config.files:
        parts = list(config.files)
        if config.blank_lines is not None:
            parts.append(f"documents parted by {config.blank_lines} blank lines or more")
    else:
        parts = [f"the standard library of Python {python}", "its tests left out"]
    return ", ".join(filter(None, parts))


def environment(runs: Sequence[Path]) -> dict[str, str]:
    """Say what runs ran on: every value of each name, once, in the order of the runs.

    Args:
        runs: Their folders.

    """
    said: dict[str, list[str]] = {}
    for run in runs:
        for name, value in json.loads(
            (run / "environment.json").read_text(encoding="utf-8")
        ).items():
            values = value if isinstance(value, list) else [value]
            said.setdefault(name, []).extend(map(_condition, values))
    return {name: "; ".join(dict.fromkeys(values)) for name, values in said.items() if any(values)}


def _condition(value: Any) -> str:
    """A value as a person reads it; of an execution, what is not as by default.

    >>> _condition({"micro_batches": 2, "dtype": "fp32", "compile": "off"}), _condition(12345)
    ('micro batches: 2, dtype: fp32', '12,345')
    """
    if isinstance(value, dict):
        usual = dataclasses.asdict(Execution())
        changed = {name: part for name, part in value.items() if part != usual.get(name)}
        return ", ".join(f"{name.replace('_', ' ')}: {part}" for name, part in changed.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
