"""The counter against transformers' own networks, family by family.

For a config, what :func:`flopcount.from_hf` counts is held against what
:mod:`validate.witnesses.hugging_face.networks` sees of the network that transformers builds from
it: parameters and buffers, dense totals of both passes, every product of the forward pass by
module, recomputation in both flavours, and the causal count against the pairs that the network's
masks admit.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

import flopcount as fc
from flopcount.causal_lm import Group
from flopcount.encoder_lm import EncoderDecoderLM
from flopcount.hf import FAMILIES
from flopcount.testing import dense_configs, draw, lengths, scan_configs
from flopcount.testing.strategies import CONFIGS as STRATEGIES
from validate.witnesses.hugging_face.published import PUBLISHED
from validate.witnesses.hugging_face.scan_differences import CONVOLUTION
from validate.witnesses.hugging_face.scan_differences import differences as scan_differences

if TYPE_CHECKING:
    from validate.witnesses.hugging_face.networks import Seen

BATCH_SIZE = 2
DRAWN = 40
DRAWN_FOR_ONE = 4
"""How many configs are drawn for one that is tried."""

PUBLISHED_SEQ_LEN = 500
Differences = dict[str, int]
Beyond = dict[tuple[str, str], tuple[int, int]]
"""FLOPs of a layer's term, forward and backward."""

Products = dict[tuple[str, str], list[int]]
"""FLOPs of a layer's products of a name; several terms in one product are joined by +."""

SCORES = ("scores", "values")
CROSS_SCORES = ("cross scores", "cross values")
QKV = ("query+key+value",)
GATE_UP = ("mlp gate+mlp up",)
EXPERTS = ("expert gate+expert up", "expert down")
PRODUCTS: dict[str, tuple[str, ...]] = {
    "self_attn.q_proj": ("query",),
    "self_attn.k_proj": ("key",),
    "self_attn.v_proj": ("value",),
    "self_attn.o_proj": ("out",),
    "self_attn.out_proj": ("out",),
    "self_attn.qkv_proj": QKV,
    "self_attn.dense": ("out",),
    "self_attn": SCORES,
    "mlp.gate_proj": ("mlp gate",),
    "mlp.up_proj": ("mlp up",),
    "mlp.gate_up_proj": GATE_UP,
    "mlp.down_proj": ("mlp down",),
    "mlp.fc1": ("mlp up",),
    "mlp.fc2": ("mlp down",),
    "fc1": ("mlp up",),
    "fc2": ("mlp down",),
    # GPT-2 and MPT
    "attn.c_attn": QKV,
    "attn.c_proj": ("out",),
    "attn.Wqkv": QKV,
    "attn.out_proj": ("out",),
    "attn": SCORES,
    "mlp.c_fc": ("mlp up",),
    "mlp.c_proj": ("mlp down",),
    "ffn.up_proj": ("mlp up",),
    "ffn.down_proj": ("mlp down",),
    # Falcon, BLOOM and GPT-NeoX
    "self_attention.query_key_value": QKV,
    "self_attention.dense": ("out",),
    "self_attention": SCORES,
    "attention.query_key_value": QKV,
    "attention.dense": ("out",),
    "attention": SCORES,
    "mlp.dense_h_to_4h": ("mlp up",),
    "mlp.dense_4h_to_h": ("mlp down",),
    # Latent attention
    "self_attn.q_a_proj": ("query down",),
    "self_attn.q_b_proj": ("query up",),
    "self_attn.kv_a_proj_with_mqa": ("key-value down",),
    "self_attn.kv_b_proj": ("key-value up",),
    # Experts
    "mlp.gate": ("router",),
    "mlp.router": ("router",),
    "mlp.experts": EXPERTS,
    "mlp.shared_expert_gate": ("shared gate",),
    # Llama-4
    "feed_forward.gate_proj": ("mlp gate",),
    "feed_forward.up_proj": ("mlp up",),
    "feed_forward.down_proj": ("mlp down",),
    "feed_forward.router": ("router",),
    "feed_forward.experts": EXPERTS,
    # BERT
    "attention.self.query": ("query",),
    "attention.self.key": ("key",),
    "attention.self.value": ("value",),
    "attention.self": SCORES,
    "attention.output.dense": ("out",),
    "intermediate.dense": ("mlp up",),
    "output.dense": ("mlp down",),
    # T5
    "SelfAttention.q": ("query",),
    "SelfAttention.k": ("key",),
    "SelfAttention.v": ("value",),
    "SelfAttention.o": ("out",),
    "SelfAttention": SCORES,
    "EncDecAttention.q": ("cross query",),
    "EncDecAttention.k": ("cross key",),
    "EncDecAttention.v": ("cross value",),
    "EncDecAttention.o": ("cross out",),
    "EncDecAttention": CROSS_SCORES,
    "DenseReluDense.wi": ("mlp up",),
    "DenseReluDense.wi_0": ("mlp gate",),
    "DenseReluDense.wi_1": ("mlp up",),
    "DenseReluDense.wo": ("mlp down",),
} | {
    f"{block}.{shared}.{name}_proj": (f"shared expert {name}",)
    for block, shared in (
        ("mlp", "shared_expert"),
        ("mlp", "shared_experts"),
        ("feed_forward", "shared_expert"),
    )
    for name in ("gate", "up", "down")
}
"""The counter's terms for the products of each module that multiplies, within a layer."""

SCANS: dict[str, tuple[str, ...]] = {
    # Lightning attention
    "self_attn.qkv_proj": ("query key value",),
    "self_attn.output_gate": ("output gate",),
    "self_attn.out_proj": ("out",),
    "self_attn": ("chunk scores+chunk values+scan read+scan update",),
    # The gated delta net
    "linear_attn.in_proj_qkvz": ("query key value gate",),
    "linear_attn.in_proj_ba": ("beta decay",),
    "linear_attn.out_proj": ("out",),
    "linear_attn": (
        "chunk keys+chunk scores+chunk value system+chunk key system+chunk values+scan recall+"
        "scan read+scan update",
    ),
    # Mamba-1
    "mamba.in_proj": ("in",),
    "mamba.x_proj": ("step state",),
    "mamba": ("step+scan update+scan read",),
    "mamba.out_proj": ("out",),
    # Mamba-2
    "mixer.in_proj": ("in",),
    "mixer": ("chunk scores+chunk values+scan update+chunk states+scan read",),
    "mixer.out_proj": ("out",),
}
"""The same of modules of layers with a scan, which execute as many products as there are chunks."""

OUTSIDE = {
    "lm_head": ("output", ("logits",)),
    "embed_out": ("output", ("logits",)),
    "project_in": ("embedding", ("project in",)),
    "project_out": ("output", ("project out",)),
    "transform.dense": ("output", ("transform",)),
    "predictions.decoder": ("output", ("logits",)),
    "pooler.dense": ("output", ("pooler",)),
}
"""Layer and terms of the products of each module outside the layers, by the end of its name."""

IN_LAYER = re.compile(
    r"(?:^|\.)(?:(encoder|decoder)\.)?(?:layers|layer|h|blocks|block)\.(\d+)\.(?:layer\.\d+\.)?(.+)$"
)
"""A layer's stack, where there are two, its number, and what is in it."""


def group_of(model: Any, index: int) -> Group:
    """The group of equal layers that a layer belongs to."""
    for group in model.groups():
        if any(index >= first and (index - first) % group.period == 0 for first in group.indices):
            return group
    raise IndexError(f"layer {index} of {model.num_layers}")


def in_layer(model: Any, stack: str, index: int) -> tuple[str, dict[str, tuple[str, ...]]]:
    """What tables call a layer, and the terms of its modules."""
    if isinstance(model, EncoderDecoderLM):
        return stack, PRODUCTS
    group = group_of(model, index)
    if group.kind.get("mixer") == "scan":
        return group.name, PRODUCTS | SCANS
    if getattr(model, "attention_gate", False):
        return group.name, PRODUCTS | {"self_attn.q_proj": ("query+gate",)}
    return group.name, PRODUCTS


def placed(model: Any, module: str) -> tuple[str, tuple[str, ...]]:
    """The layer and the terms of a module's products.

    Raises:
        KeyError: If it is not one of those listed.
    """
    inside = IN_LAYER.search(module)
    if inside:
        layer, known = in_layer(model, inside[1], int(inside[2]))
        return layer, known[inside[3]]
    names = module.split(".")
    last = ".".join(names[-2:])
    return OUTSIDE[last if last in OUTSIDE else names[-1]]


def products_seen(seen: Seen, model: Any) -> Products:
    """The products of the network's forward pass, as the counter calls them.

    Raises:
        KeyError: If a module multiplies that is not one of those listed.
    """
    products: Products = collections.defaultdict(list)
    for module, flops in seen.modules.items():
        layer, terms = placed(model, module)
        if len(terms) == 1:
            flops = (sum(flops),)
        if len(terms) != len(flops):
            raise KeyError(f"{module} executes {len(flops)} products: {terms} are known")
        for term, product in zip(terms, flops, strict=True):
            products[layer, term].append(product)
    return products


def executed_beyond(model: Any) -> Beyond:
    """FLOPs that the network executes beyond its mathematics, or that the counter does not see.

    Llama-4's code multiplies every token by all E experts and weights those that it was not routed
    to by 0: E - k experts more, of 2dx FLOPs in each of three products with x hidden channels. For
    scans see :mod:`validate.witnesses.hugging_face.scan_differences`.
    """
    beyond: Beyond = {}
    for group in model.groups():
        if group.kind.get("mixer") == "scan":
            for term, phases in scan_differences(model.scan(), BATCH_SIZE, model.length).items():
                forward, backward = (group.number * flops for flops in phases)
                beyond[group.name, term] = forward, backward
        elif model.reading.model_type == "llama4_text" and group.kind["mlp"] == "sparse":
            others = model.num_experts - model.experts_per_token
            product = 2 * BATCH_SIZE * model.length * others * model.num_channels
            product *= model.expert_size * group.number
            for term in ("expert gate", "expert up", "expert down"):
                beyond[group.name, term] = product, 2 * product
    return beyond


def by_module(
    count: Any,
    seen: Products,
    beyond: Mapping[tuple[str, str], tuple[int, int]] = MappingProxyType({}),
) -> Differences:
    """The counter's forward terms minus the modules' products; equal layers have equal shares."""
    terms: collections.Counter[tuple[str, str]] = collections.Counter(
        {term: forward for term, (forward, _) in beyond.items()}
    )
    for term in count.terms:
        terms[term.layer, term.term] += term.forward
    differences = {}
    for (layer, names), products in seen.items():
        formula = sum(terms.pop((layer, name), 0) for name in names.split("+"))
        unequal = max(products) - min(products)
        differences[f"{layer} {names}"] = formula - sum(products) or unequal
    for (layer, term), flops in terms.items():
        differences[f"{layer} {term}, which no module executes"] = flops
    return differences


def compare(
    config: dict[str, Any], seq_len: int, *, target_len: int | None = None, device: str = "cpu"
) -> Differences:
    """Counter minus network, by what was compared.

    Args:
        config: The fields of a config.json.
        seq_len: Positions of a sequence.
        target_len: Of the decoder, where there are two stacks.
        device: Where the network runs; on ``"cpu"`` with checkpointing too, and its masks are
            enumerated.
    """
    # It loads transformers, which takes seconds.
    from validate.witnesses.hugging_face import networks

    model = fc.from_hf(config, seq_len, target_len=target_len)
    seen = networks.observe(
        config,
        seq_len=seq_len,
        batch_size=BATCH_SIZE,
        target_len=target_len,
        device=device,
        checkpointing=device == "cpu",
    )
    params = model.params()
    count = model.flops("dense", batch_size=BATCH_SIZE)
    beyond = executed_beyond(model)
    convolved = [beyond.pop(term) for term in list(beyond) if term[1] == CONVOLUTION]
    more, more_backward = (sum(phases) for phases in zip((0, 0), *beyond.values(), strict=True))
    differences = {
        "parameters": params.total - seen.parameters,
        "buffers": sum(buffer.count for buffer in params.buffers) - seen.buffers,
        "forward": count.forward + more - seen.forward,
        "backward": count.backward + more_backward - seen.backward,
        **by_module(count, products_seen(seen, model), beyond),
    }
    for index, phase in enumerate(("forward", "backward") if convolved else ()):
        expected = sum(phases[index] for phases in convolved)
        differences[f"convolutions, {phase}"] = expected - seen.convolutions[index]
    for flavour, recomputed in seen.recompute.items():
        again = model.flops("dense", batch_size=BATCH_SIZE, checkpointing=flavour)
        differences[f"recompute, {flavour}"] = again.recompute + more - recomputed
    if seen.admitted is not None:
        differences |= causal_pairs(model, count, seen.admitted)
    return differences


def causal_pairs(model: Any, dense: Any, admitted: dict[str, tuple[int, int]]) -> Differences:
    """Causal scores and values minus the share of the dense ones that the masks admit."""
    pairs: dict[tuple[str, str], list[tuple[int, int]]] = collections.defaultdict(list)
    for module, number in admitted.items():
        layer, terms = placed(model, module)
        for term in terms:
            pairs[layer, term].append(number)
    causal = model.flops("causal", batch_size=BATCH_SIZE)
    differences = {}
    rectangles = {(term.layer, term.term): term.forward for term in dense.terms}
    for term in causal.terms:
        if term.term in SCORES + CROSS_SCORES:
            place = term.layer, term.term
            seen, whole = (sum(column) for column in zip(*pairs[place], strict=True))
            share, rest = divmod(rectangles[place] * seen, whole)
            differences[f"causal {' '.join(place)}"] = term.forward - share or rest
    return differences


@dataclasses.dataclass(frozen=True)
class Case:
    """A config to be tried.

    Attributes:
        name: The published model's name; empty of drawn ones.
        config: The fields of a config.json.
        seq_len: Positions of a sequence.
        target_len: Of the decoder, where there are two stacks.
    """

    name: str
    config: dict[str, Any]
    seq_len: int
    target_len: int | None = None

    def __str__(self) -> str:
        lengths = [length for length in (self.seq_len, self.target_len) if length is not None]
        return self.name or f"{self.config}, {' and '.join(map(str, lengths))} positions"

    def compare(self) -> Differences:
        """Counter minus network; published sizes run without data."""
        return compare(
            self.config,
            self.seq_len,
            target_len=self.target_len,
            device="meta" if self.name else "cpu",
        )


def has_two_stacks(family: str) -> bool:
    """Whether a family has a decoder beside an encoder."""
    return "target_len" in FAMILIES[family].options


def choices(config: dict[str, Any]) -> set[tuple[str, str]]:
    """What a config says that is no size: flags, names and nulls."""
    return {
        (name, repr(value))
        for name, value in config.items()
        if value is None or isinstance(value, bool | str)
    }


def drawn(family: str, number: int = DRAWN) -> list[Case]:
    """The same drawn configs of a family each time, all of them different.

    More are drawn than asked for, and those that say what none has said before come first.
    """
    targets = lengths(family) if has_two_stacks(family) else st.none()
    strategy = st.tuples(STRATEGIES[family], lengths(family), targets)
    pool = {
        repr((sorted(config.items()), *given)): Case("", config | {"model_type": family}, *given)
        for config, *given in draw(strategy, DRAWN_FOR_ONE * number)
    }
    seen: set[tuple[str, str]] = set()
    first, others = [], []
    for case in pool.values():
        (others if choices(case.config) <= seen else first).append(case)
        seen |= choices(case.config)
    return [*first, *others][:number]


def published(family: str) -> list[Case]:
    """Well-known models of a family, by the model type of the text."""
    seq_len = scan_configs.PUBLISHED_SEQ_LENS.get(family, PUBLISHED_SEQ_LEN)
    target_len = seq_len // 3 if has_two_stacks(family) else None
    return [
        Case(name, config, seq_len, target_len)
        for name, config in PUBLISHED.items()
        if config.get("text_config", config)["model_type"] == family
    ]


def cases(family: str, quick: bool) -> Iterable[tuple[str, Differences]]:
    """Differences on a family's configs: published sizes without data, drawn ones with masks too.

    Args:
        family: A ``model_type``.
        quick: A few drawn configs alone.
    """
    for case in drawn(family, 3 if quick else DRAWN):
        yield str(case), case.compare()
    for case in () if quick else published(family):
        yield str(case), case.compare()


def confirmed(family: str) -> str:
    """What is held against the witness."""
    return f"{family} read from its config: parameters, dense products, recomputation, causal pairs"


def witness(family: str) -> str:
    """Who confirms a family."""
    stand_in = dense_configs.STAND_INS.get(family, family)
    at = "" if stand_in == family else ", at its sizes"
    return f"transformers' {FAMILIES[stand_in].heads[0]}{at}, under torch FlopCounterMode"


WITNESSED = tuple(family for family in FAMILIES if family in STRATEGIES)
"""Families that are tried."""

UNWITNESSED = tuple(family for family in FAMILIES if family not in STRATEGIES)
"""Families that nothing confirms."""
