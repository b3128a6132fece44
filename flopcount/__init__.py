"""An exact, symbolic per-layer FLOP counter for transformers.

>>> import flopcount as fc
>>> model = fc.PerceiverAR(vocab_size=32_000, num_latents=512, num_prefix=1536,
...                        num_channels=512, num_layers=9, num_heads=8, prefix_dropout=0.5)
>>> model.flops().total
149398487040
"""

# As type checkers know it: importing typing takes longer than all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flopcount.architectures import Decoder, Llama, PerceiverAR
    from flopcount.causal_lm import CausalLM
    from flopcount.comparison import compare
    from flopcount.devices import Bandwidth, Device, Memory, Multiprocessors, Peak
    from flopcount.distributed import per_device, pipeline_bubble
    from flopcount.encoder_lm import EncoderDecoderLM, EncoderLM
    from flopcount.executed import Tiling
    from flopcount.explanation import explain
    from flopcount.explorer import explore
    from flopcount.finetuning import FineTuning
    from flopcount.hf import from_hf
    from flopcount.inference import expected_tokens_per_round
    from flopcount.isoflop.curves import fit_training_curves, read_curves
    from flopcount.isoflop.optima import fit_optima
    from flopcount.isoflop.plan import isoflop_runs, plan
    from flopcount.isoflop.profiles import fit_isoflop_profiles
    from flopcount.isoflop.runs import read_runs
    from flopcount.isoflop.surface import fit_surface
    from flopcount.isoflop.ways_to_count import compare_optima
    from flopcount.meter import Meter
    from flopcount.mixture_lm import MixtureLM
    from flopcount.parallel import Parallel
    from flopcount.rooflines import expected_experts, roofline, touched_experts

__version__ = "0.1.0"

__all__ = [
    "Bandwidth",
    "CausalLM",
    "Decoder",
    "Device",
    "EncoderDecoderLM",
    "EncoderLM",
    "FineTuning",
    "Llama",
    "Memory",
    "Meter",
    "MixtureLM",
    "Multiprocessors",
    "Parallel",
    "Peak",
    "PerceiverAR",
    "Tiling",
    "compare",
    "compare_optima",
    "expected_experts",
    "expected_tokens_per_round",
    "explain",
    "explore",
    "fit_isoflop_profiles",
    "fit_optima",
    "fit_surface",
    "fit_training_curves",
    "from_hf",
    "isoflop_runs",
    "per_device",
    "pipeline_bubble",
    "plan",
    "read_curves",
    "read_runs",
    "roofline",
    "touched_experts",
]

_HOMES = {
    "Bandwidth": "devices",
    "CausalLM": "causal_lm",
    "Decoder": "architectures",
    "Device": "devices",
    "Llama": "architectures",
    "Memory": "devices",
    "Meter": "meter",
    "EncoderDecoderLM": "encoder_lm",
    "EncoderLM": "encoder_lm",
    "FineTuning": "finetuning",
    "MixtureLM": "mixture_lm",
    "Multiprocessors": "devices",
    "Parallel": "parallel",
    "Peak": "devices",
    "PerceiverAR": "architectures",
    "Tiling": "executed",
    "compare": "comparison",
    "compare_optima": "isoflop.ways_to_count",
    "expected_experts": "rooflines",
    "expected_tokens_per_round": "inference",
    "explain": "explanation",
    "explore": "explorer",
    "fit_isoflop_profiles": "isoflop.profiles",
    "fit_optima": "isoflop.optima",
    "fit_surface": "isoflop.surface",
    "fit_training_curves": "isoflop.curves",
    "from_hf": "hf",
    "isoflop_runs": "isoflop.plan",
    "per_device": "distributed",
    "pipeline_bubble": "distributed",
    "plan": "isoflop.plan",
    "read_curves": "isoflop.curves",
    "read_runs": "isoflop.runs",
    "roofline": "rooflines",
    "touched_experts": "rooflines",
}

_MODULES = ("testing", "torch")
"""What needs an extra, and so stands in a module of its own."""


def __getattr__(name: str) -> "Any":
    """Load a public name when it is first used, so that importing the package costs nothing."""
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module 'flopcount' has no attribute {name!r}")
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"flopcount.{name}")
    value = getattr(importlib.import_module(f"flopcount.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted((*__all__, *_MODULES))
