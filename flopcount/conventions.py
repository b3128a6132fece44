"""Published ways to count, each reproducing its own publication's or code's numbers.

Letters as :class:`Inputs` has them; S = n for the conventions of decoder-only models, m is the
number of prefix positions before dropout and p the prefix dropout. Training is 3 · forward, but for
terms that a convention takes to be of frozen parameters: 2 · forward. A convention that was never
defined for a part does not cover it: never 0.

The conventions of training codes are named after the code. Each says which function of which
repository it is, at which commit it was read, and which features of a model the code knows: a
model with another is not covered. Where a code asks its own network for its parameters, so is the
model at hand asked. What a code does not look at, it does not count, and so it is here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from flopcount.masks import Causal
from flopcount.sizes import Size, equal, exact_ratio, is_array, is_symbolic, minimum

Terms = tuple[tuple[str, str, Size], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerInputs:
    """Equal layers: attention and an MLP, or experts, as conventions see them.

    Attributes:
        number: How many.
        num_heads: h.
        num_key_heads: g.
        head_dim: c, of queries and keys.
        value_dim: c of values.
        window: W; None where a query attends to all earlier positions.
        query_rank: Size of the latent of queries; None without one.
        key_value_rank: Size of the latent of keys and values; None without one.
        rotary_dim: With latents, channels of a key that all heads share.
        gate: Whether a fourth projection gates what the heads give.
        hidden_channels: f, of the MLP, or of one expert.
        gated: Whether the MLP, or an expert, has a third product.
        num_experts: E; None without experts.
        top_k: How many experts a token is routed to.
        shared_channels: Hidden channels of the experts that every token passes through.
        others: What else the layers are, by name: no convention's formula has it.

    """

    number: Size
    num_heads: Size = 1
    num_key_heads: Size = 1
    head_dim: Size = 1
    value_dim: Size = 1
    window: Size | None = None
    query_rank: Size | None = None
    key_value_rank: Size | None = None
    rotary_dim: Size = 0
    gate: bool = False
    hidden_channels: Size = 0
    gated: bool = False
    num_experts: Size | None = None
    top_k: Size = 1
    shared_channels: Size = 0
    others: frozenset[str] = frozenset()

    @property
    def mlp_products(self) -> int:
        """Products of an MLP of d and f channels."""
        return 3 if self.gated else 2


PLAIN, GATED = "an MLP of two products", "a gated MLP"
GROUPED, HEAD_DIM = "grouped heads", "a head dim other than d / h"
WINDOWS, EXPERTS, GATE = "windows", "experts", "an attention gate"
SOME_EXPERTS = "experts in some layers alone"
LATENTS, PREDICTIONS = "latent attention", "multi-token prediction"
WIDTH = "an MLP of another width than 4d"
EMBEDDING = "an embedding of another width than d"
ALL_POSITIONS = "attention to all positions"
STACKS = "a second stack of layers"
"""Layers that work on other positions than the first: even N times tokens has no meaning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What conventions are computed from.

    Attributes:
        num_latents: n.
        num_channels: d.
        vocab_size: V.
        layers: What the layers are; equal ones together.
        num_params: N, the parameters of the self part.
        num_active_params: Of them, those that a token uses: not the experts it is not routed to.
        num_position_params: Those of a learned position embedding.
        num_table_params: Those of all embedding tables, of positions and token types, too.
        num_tied_params: Those of the token embedding that the output layer multiplies by; 0 untied.
        num_block_norm_params: Those of the norms around the blocks of layers and of the embedding.
        num_predictions: Modules that predict one token more each; their layers are in ``layers``.
        num_prefix: m.
        kept_prefix: (1 - p)·m, not rounded; k where ``num_kept`` is given.

    """

    num_latents: Size
    num_channels: Size
    vocab_size: Size
    layers: tuple[LayerInputs, ...]
    num_params: Size
    num_active_params: Size
    num_position_params: Size = 0
    num_table_params: Size = 0
    num_tied_params: Size = 0
    num_block_norm_params: Size = 0
    num_predictions: Size = 0
    num_prefix: Size = 0
    kept_prefix: Any = 0

    @property
    def num_layers(self) -> Size:
        """L."""
        return _sum(self, lambda layer: 1)

    @property
    def features(self) -> frozenset[str]:
        """What the model has that not every convention knows of.

        Of symbols, what may be as in the plainest model is taken to be so: h·c may be d.
        """
        features = {name for name, left, right in self.held_apart if differ(left, right)}
        for layer in self.layers:
            features |= layer.others
            latent = layer.key_value_rank is not None
            experts = layer.num_experts is not None
            has = {
                GATED if layer.gated else PLAIN: not {"no MLP"} & layer.others,
                WIDTH: experts,
                WINDOWS: layer.window is not None,
                GATE: layer.gate,
                EXPERTS: experts,
                LATENTS: latent,
            }
            features |= {name for name, is_so in has.items() if is_so}
        if len({layer.num_experts is None for layer in self.layers}) == 2:
            features.add(SOME_EXPERTS)
        if is_array(self.num_predictions) or self.num_predictions != 0:
            features.add(PREDICTIONS)
        return frozenset(features)

    @property
    def held_apart(self) -> tuple[tuple[str, Size, Size], ...]:
        """Features that a model has where two sizes of a layer differ: (feature, size, size)."""
        d = self.num_channels
        pairs: list[tuple[str, Size, Size]] = []
        for layer in self.layers:
            if layer.key_value_rank is None:
                pairs.append((GROUPED, layer.num_key_heads, layer.num_heads))
                pairs.append((HEAD_DIM, layer.num_heads * layer.head_dim, d))
            if layer.num_experts is None:
                pairs.append((WIDTH, layer.hidden_channels, 4 * d))
        return tuple(pairs)


def differ(left: Any, right: Any) -> bool:
    """Whether two sizes differ, anywhere; False of symbols that may be equal."""
    if is_symbolic(difference := left - right):
        return bool(difference.expand().is_nonzero)
    return bool((difference != 0).any()) if is_array(difference) else bool(difference != 0)


@dataclasses.dataclass(frozen=True)
class Convention:
    """A published way to count.

    Attributes:
        name: As users give it.
        source: The publication, or repository, file, commit and function.
        self_part: Forward FLOPs per sequence: (layer, term, FLOPs) of the self part.
        cross_part: The same for the cross part; None where the convention says nothing of a prefix.
        knows: The features (:attr:`Inputs.features`) that it has a formula for; None: it speaks of
            parameters alone, whatever the layers of one stack consist of.
        frozen: Terms whose backward pass is as long as the forward pass, not twice: that of what
            multiplies frozen parameters.

    """

    name: str
    source: str
    self_part: Callable[[Inputs], Terms]
    cross_part: Callable[[Inputs], Terms] | None = None
    knows: frozenset[str] | None = frozenset({PLAIN, WIDTH})
    frozen: frozenset[str] = frozenset()

    def lacks(self, inputs: Inputs) -> tuple[str, ...]:
        """Features of a model that the convention has no formula for, in a fixed order."""
        features = inputs.features
        return tuple(sorted(features & {STACKS} if self.knows is None else features - self.knows))


def _linear(inputs: Inputs) -> Any:
    """FLOPs per token of projections and MLPs of two products: Σ over layers 8d² + 4df, f = wd."""
    d = inputs.num_channels
    return _sum(inputs, lambda layer: 8 * d * d + 4 * d * layer.hidden_channels)


def _softmax(inputs: Inputs) -> Any:
    """FLOPs per sequence of the softmax over the square: Σ over layers 3hn²."""
    n = inputs.num_latents
    return n * n * 3 * _sum(inputs, lambda layer: layer.num_heads)


def article_self(inputs: Inputs) -> Terms:
    """Per token 4d + L((8 + 4w)d² + 2dn) + 2dV.

    The embedding as 4d, one of the two attention products over the full square, the output layer.
    """
    s = inputs
    n, d = s.num_latents, s.num_channels
    return (
        ("embedding", "embedding", n * 4 * d),
        ("layers", "projections and MLP", n * _linear(s)),
        ("layers", "one attention product", n * s.num_layers * 2 * d * n),
        ("output", "logits", n * 2 * d * s.vocab_size),
    )


def _double(operand: int) -> float:
    """The operand as a double that it is equal to.

    Raises:
        OverflowError: Above 2^53, where not every integer is a double.

    """
    if operand > 2**53:
        raise OverflowError(f"operand = {operand}: expected at most 2**53")
    return float(operand)


def article_code(m: int, n: int, d: int, h: int, keep: float) -> float:
    """Forward FLOPs of the cross part per token as the article's code computes them; keep = 1 - p.

    Source: krasserm/perceiver-io, examples/scaling/clm/scaling/flops.py at 1f6844e,
    ``ComputeEstimator.cross_attn``, operation by operation.
    """
    ratio = _double(m) / _double(n)
    return _double(4 * d) * ratio + _double(4 * d**2 + 2 * d * n) * ratio * keep


def article_update_code(m: int, n: int, d: int, h: int, keep: float) -> float:
    """As :func:`article_code`, of the author's correction.

    Source: the same file at 59d5500, branch wip-scaling.
    """
    key_value, product = _double(4 * d**2 * m) / _double(n), _double(2 * d * m)
    return (key_value + product + _double(3 * h * m) + product) * keep


def _hybrid(inputs: Inputs) -> LayerInputs:
    """The layer that attends to a prefix: the first."""
    first, *_ = inputs.layers
    return first


def _per_token(
    inputs: Inputs, terms: Terms, code: Callable[[int, int, int, int, float], float]
) -> Terms:
    """Exact terms of a sequence, and what the integer per token of the published code differs by.

    The code truncates a double. It is followed to the unit, its rounding included; where there is
    nothing to follow, the exact sum is truncated: for symbols, for operands above 2^53, and for a k
    that no p keeps. The last term is n · (integer per token) - Σ, so that all of them add up to n
    times that integer.
    """
    s = inputs
    whole = sum(flops for _, _, flops in terms)

    def truncated(flops: Any, m: int, n: int, d: int, h: int, kept: Any) -> int:
        if not m:
            return 0
        exact = int(Fraction(flops) / n)
        keep = Fraction(kept) / m
        if Fraction(float(1 - keep)) != 1 - keep:
            return exact
        try:
            return int(code(m, n, d, h, float(keep)))
        except OverflowError:
            return exact

    heads = _hybrid(s).num_heads
    sizes = (whole, s.num_prefix, s.num_latents, s.num_channels, heads, inputs.kept_prefix)
    integer: Size
    if any(is_symbolic(size) for size in sizes):
        from sympy import floor

        integer = floor(exact_ratio(whole, s.num_latents))
    elif any(is_array(size) for size in sizes):
        import numpy as np

        integer = np.frompyfunc(truncated, len(sizes), 1)(*sizes)
    else:
        integer = truncated(*sizes)
    exact = tuple((layer, term, exact_ratio(flops, 1)) for layer, term, flops in terms)
    difference = exact_ratio(s.num_latents * integer - whole, 1)
    return (*exact, ("hybrid", "truncation per token", difference))


def article_cross(inputs: Inputs) -> Terms:
    """Per token 4d·m/n + (1 - p)(4d² + 2dn)·m/n, truncated to an integer as the code does it.

    The prefix embedding before dropout, keys and values, one attention product.
    """
    s, kept = inputs, inputs.kept_prefix
    n, d = s.num_latents, s.num_channels
    terms = (
        ("embedding", "prefix embedding", 4 * d * s.num_prefix),
        ("hybrid", "keys and values", kept * 4 * d * d),
        ("hybrid", "one attention product", kept * 2 * d * n),
    )
    return _per_token(inputs, terms, article_code)


def article_update_self(inputs: Inputs) -> Terms:
    """Per token L((8 + 4w)d² + 4dn + 3hn): both products and softmax, no output layer."""
    s = inputs
    n, d = s.num_latents, s.num_channels
    return (
        ("layers", "projections and MLP", n * _linear(s)),
        ("layers", "both attention products", n * s.num_layers * 4 * d * n),
        ("layers", "softmax", _softmax(s)),
    )


def article_update_cross(inputs: Inputs) -> Terms:
    """Per token (1 - p)(4d²·m/n + 4dm + 3hm), truncated to an integer as the code does it."""
    s, kept = inputs, inputs.kept_prefix
    n, d = s.num_latents, s.num_channels
    terms = (
        ("hybrid", "keys and values", kept * 4 * d * d),
        ("hybrid", "both attention products", kept * 4 * d * n),
        ("hybrid", "softmax", kept * 3 * _hybrid(s).num_heads * n),
    )
    return _per_token(inputs, terms, article_update_code)


def kaplan_self(inputs: Inputs) -> Terms:
    """Per token 2·N_nonemb + 2Lnd with N_nonemb = (4 + 2w)Ld²."""
    s = inputs
    n, d = s.num_latents, s.num_channels
    return (
        ("layers", "2 N without embeddings", n * _linear(s)),
        ("layers", "one attention product", n * 2 * s.num_layers * n * d),
    )


def chinchilla_self(inputs: Inputs) -> Terms:
    """Per sequence L(8Sd² + 4Sd·d_ff + 4S²d + 3hS²), d_ff = wd."""
    s = inputs
    n, d = s.num_latents, s.num_channels
    return (
        ("layers", "attention projections", s.num_layers * 8 * n * d * d),
        ("layers", "MLP", n * _sum(s, lambda layer: 4 * d * layer.hidden_channels)),
        ("layers", "both attention products", s.num_layers * 4 * n * n * d),
        ("layers", "softmax", _softmax(s)),
    )


def palm_self(inputs: Inputs) -> Terms:
    """Per token 2N + 4LhcS (training 6N + 12LhcS), N without the position embedding.

    With experts N are the parameters that a token uses, and the term says so.
    """
    s = inputs
    parameters = s.num_active_params - s.num_position_params
    return (
        ("model", f"2 N without positions{_active(s)}", s.num_latents * 2 * parameters),
        ("layers", SQUARE, _products(s, lambda layer: s.num_latents)),
    )


def _active(inputs: Inputs) -> str:
    return ", active parameters" if EXPERTS in inputs.features else ""


SQUARE = "both attention products"
IN_WINDOWS = "both attention products within windows"
HALF = "both attention products, half the square"
ADMITTED = "both attention products, admitted pairs"
OWN_HEADS = "heads of d / h channels"
FROZEN = "both attention products of frozen parameters"


def _sum(inputs: Inputs, of_layer: Callable[[LayerInputs], Any]) -> Any:
    """Σ over all layers."""
    first, *others = (layer.number * of_layer(layer) for layer in inputs.layers)
    return sum(others, start=first)


def _products(inputs: Inputs, keys: Callable[[LayerInputs], Any]) -> Any:
    """FLOPs per sequence of scores and values, where each of n queries meets ``keys`` keys."""

    def of_layer(layer: LayerInputs) -> Any:
        return 2 * layer.num_heads * (layer.head_dim + layer.value_dim) * keys(layer)

    return inputs.num_latents * _sum(inputs, of_layer)


def _in_window(inputs: Inputs, layer: LayerInputs) -> Size:
    """min(n, W)."""
    n = inputs.num_latents
    return n if layer.window is None else minimum(n, layer.window)


def _projections(layer: LayerInputs, d: Size) -> Size:
    """Scalars of a layer's query, key, value and output projections, and of its gate."""
    channels = layer.num_heads * layer.head_dim
    gates = 3 if layer.gate else 2
    return d * (gates * channels + 2 * layer.num_key_heads * layer.head_dim)


def _mlps(inputs: Inputs) -> Terms:
    """FLOPs per sequence of dense MLPs, of the experts a token passes through, of shared ones."""
    n, d = inputs.num_latents, inputs.num_channels
    dense = [layer for layer in inputs.layers if layer.num_experts is None]
    sparse = [layer for layer in inputs.layers if layer.num_experts is not None]
    parts = {
        "MLP": [(of, of.hidden_channels) for of in dense],
        "routed experts": [(of, of.top_k * of.hidden_channels) for of in sparse],
        "shared experts": [(of, of.shared_channels) for of in sparse if of.shared_channels],
    }
    return tuple(
        ("layers", name, sum(2 * n * d * of.mlp_products * of.number * width for of, width in each))
        for name, each in parts.items()
        if each
    )


def megatron_self(inputs: Inputs) -> Terms:
    """Per sequence 24SLd²(1 + S/(6d)) + 2SdV at w = 4; in general L((8 + 4w)Sd² + 4S²d) + 2SdV."""
    s = inputs
    n, d = s.num_latents, s.num_channels
    return (
        ("layers", "projections and MLP", n * _linear(s)),
        ("layers", "both attention products", s.num_layers * 4 * n * n * d),
        ("output", "logits", 2 * n * d * s.vocab_size),
    )


def six_n_self(inputs: Inputs) -> Terms:
    """Per token 2N (training 6N), N all parameters of the self part that a token uses."""
    s = inputs
    return (("model", f"2 N{_active(s)}", s.num_latents * 2 * s.num_active_params),)


def megatron_lm_self(inputs: Inputs) -> Terms:
    """Per token Σ over layers 2(d(2hc + 2gc) + hcS + pdf) + 2dV, p = 2 products, gated 3.

    Attention over half the square, S²/2 pairs, whatever the window: 6Ld less than the causal count
    in training where hc = d, for its diagonal. A gate is a further hc; of experts the k that a
    token is routed to, and the shared ones, without the router. Latent attention counts the norms
    of its latents as a multiply-add per channel; a module of multi-token prediction 2d² + 3d, and
    the output layer once more. V is the vocabulary given: the code pads it first.
    """
    s = inputs
    n, d = s.num_latents, s.num_channels

    def projections(layer: LayerInputs) -> Size:
        h, c, v, r, q = (
            layer.num_heads, layer.head_dim, layer.value_dim, layer.key_value_rank,
            layer.query_rank,
        )  # fmt: skip
        if r is None:
            return _projections(layer, d)
        queries = d * h * c if q is None else q * (d + h * c)
        plain = c - layer.rotary_dim
        return queries + r * (d + h * (plain + v)) + d * layer.rotary_dim + h * v * d

    terms = [
        ("layers", "attention projections", 2 * n * _sum(s, projections)),
        ("layers", HALF, exact_ratio(_products(s, lambda _: n), 2)),
        *_mlps(s),
    ]
    if LATENTS in s.features:
        norms = _sum(s, lambda layer: (layer.query_rank or 0) + (layer.key_value_rank or 0))
        terms.append(("layers", "norms of latents", 2 * n * norms))
    if PREDICTIONS in s.features:
        terms.append(("mtp", "projection", 2 * n * s.num_predictions * 2 * d * d))
        terms.append(("mtp", "norms of predictions", 2 * n * s.num_predictions * 3 * d))
    return (*terms, ("output", "logits", 2 * n * d * s.vocab_size * (1 + s.num_predictions)))


def torchtitan_self(inputs: Inputs) -> Terms:
    """Per token 2N + Σ over layers 2h(c_qk + c_v)·min(S, W), a third of what it trains.

    N leaves out embedding tables, but for one that the output layer multiplies by, and the experts
    that a token is not routed to.
    """
    s = inputs
    parameters = s.num_active_params - s.num_table_params + s.num_tied_params
    name = IN_WINDOWS if WINDOWS in s.features else SQUARE
    return (
        ("model", "2 N without look-ups, active parameters", s.num_latents * 2 * parameters),
        ("layers", name, _products(s, lambda layer: _in_window(s, layer))),
    )


def litgpt_self(inputs: Inputs) -> Terms:
    """Per token 2N + 4LdS, and 4LdS again; N all parameters, of all experts and embeddings, too.

    The code adds up f(N) = 2N + 4LdS of the parameters that train and f(0) of those that are
    frozen, none: f(N) + f(0) forward and 3f(N) + 2f(0) = 6N + 20LdS in training.
    """
    s = inputs
    return (
        ("model", "2 N", s.num_latents * 2 * s.num_params),
        ("layers", SQUARE, _products(s, lambda _: s.num_latents)),
        *_own_heads(s, lambda layer: 4 * s.num_latents * (s.num_channels - _width(layer))),
        ("layers", FROZEN, s.num_latents**2 * 4 * s.num_channels * s.num_layers),
    )


def _width(layer: LayerInputs) -> Size:
    return layer.num_heads * layer.head_dim


def _own_heads(inputs: Inputs, per_token: Callable[[LayerInputs], Any]) -> Terms:
    """What a code counts of heads of d / h channels beyond the model's own; nothing if it has d."""
    if all(equal(left, right) for name, left, right in inputs.held_apart if name == HEAD_DIM):
        return ()
    flops = exact_ratio(inputs.num_latents * _sum(inputs, per_token), 1)
    return (("layers", OWN_HEADS, flops),)


def levanter_self(inputs: Inputs) -> Terms:
    """Per token Σ over layers 2d(2hc + 2gc) + 4hcS' + 3hS' + 2pdf + 2dE + 2dV, c = d / h.

    S' = min(S, W), the whole square within a window; 3hS' for the softmax, 9LhS in training. With
    experts f is that of all that a token passes through, and the router counts where E > 1.
    """
    s = inputs
    n, d = s.num_latents, s.num_channels

    def other_heads(layer: LayerInputs) -> Any:
        g, c = layer.num_key_heads, layer.head_dim
        less = exact_ratio(g * d, layer.num_heads) - g * c
        own = d - _width(layer)
        return 2 * d * (2 * own + 2 * less) + 4 * _in_window(s, layer) * own

    def routed(layer: LayerInputs) -> Any:
        number: Any = layer.num_experts
        return number if is_symbolic(number) else number * (number > 1)

    heads = _sum(s, lambda layer: layer.num_heads * _in_window(s, layer))
    terms = [
        ("layers", "attention projections", 2 * n * _sum(s, lambda of: _projections(of, d))),
        (
            "layers",
            IN_WINDOWS if WINDOWS in s.features else SQUARE,
            _products(s, lambda layer: _in_window(s, layer)),
        ),
        ("layers", "softmax", 3 * n * heads),
        *_own_heads(s, other_heads),
        *_mlps(s),
    ]
    if EXPERTS in s.features:
        terms.append(("layers", "router", 2 * n * d * _sum(s, routed)))
    return (*terms, ("output", "logits", 2 * n * d * s.vocab_size))


def olmo_core_self(inputs: Inputs) -> Terms:
    """Per token a third of 6N + Σ over layers ⌊12hc·pairs/S⌋, pairs that the mask admits.

    N are the parameters of attention, its norms of queries and keys included, of the MLP, of the
    experts that a token is routed to, and of the output layer with its norm.
    """
    s = inputs
    n = s.num_latents
    parameters = s.num_active_params - s.num_table_params - s.num_block_norm_params

    def twelfth(layer: LayerInputs) -> Any:
        return layer.num_heads * layer.head_dim * Causal(layer.window).pairs(n, n)

    terms: list[tuple[str, str, Any]] = [
        (
            "model",
            "2 N of attention, MLP and output layer, active parameters",
            n * 2 * (parameters + s.num_tied_params),
        ),
        ("layers", ADMITTED, 4 * _sum(s, twelfth)),
    ]
    if WINDOWS in s.features:
        rounded = _sum(s, lambda layer: n * (12 * twelfth(layer) // n) - 12 * twelfth(layer))
        terms.append(("layers", "truncation per token and layer", exact_ratio(rounded, 3)))
    return tuple(terms)


def hf_trainer_self(inputs: Inputs) -> Terms:
    """Per token 2N, N all parameters but embedding tables, and so without a tied output layer."""
    s = inputs
    parameters = s.num_params - s.num_table_params
    return (("model", "2 N without embedding tables", s.num_latents * 2 * parameters),)


def gpt_neox_self(inputs: Inputs) -> Terms:
    """Per sequence 24SLd²(1 + S/(6d) + V/(16Ld)): the output layer as 1.5dV, 4.5dV in training."""
    s = inputs
    n, d = s.num_latents, s.num_channels
    return (
        ("layers", "projections and MLP", s.num_layers * 24 * n * d * d),
        ("layers", SQUARE, s.num_layers * 4 * n * n * d),
        ("output", "three quarters of the logits", exact_ratio(3 * n * d * s.vocab_size, 2)),
    )


def nanotron_self(inputs: Inputs) -> Terms:
    """Per sequence L(2Sd(2hc + 2gc) + 4hcS² + 6Sdf) + 2SdV with c = ⌊d / h⌋."""
    s = inputs
    n, d = s.num_latents, s.num_channels

    def other_heads(layer: LayerInputs) -> Any:
        h, g = layer.num_heads, layer.num_key_heads
        less = d // h - layer.head_dim
        return 2 * d * (2 * h + 2 * g) * less + 4 * n * h * less

    return (
        ("layers", "attention projections", 2 * n * _sum(s, lambda of: _projections(of, d))),
        ("layers", SQUARE, _products(s, lambda _: n)),
        *_own_heads(s, other_heads),
        *_mlps(s),
        ("output", "logits", 2 * n * d * s.vocab_size),
    )


def deepseek_self(inputs: Inputs) -> Terms:
    """Per token a third of M = 72Ld² + 12LdS, whatever the MLP and the number of key heads."""
    s = inputs
    n, d = s.num_latents, s.num_channels
    return (
        ("layers", "projections and MLP as 12d² a layer", s.num_layers * 24 * n * d * d),
        ("layers", SQUARE, s.num_layers * 4 * n * n * d),
    )


_SOFTMAX_ATTENTION = frozenset(
    {PLAIN, GATED, WIDTH, GROUPED, HEAD_DIM, WINDOWS, EXPERTS, SOME_EXPERTS}
)
CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            "article",
            "Training compute-optimal Perceiver AR language models, January 2023",
            article_self,
            article_cross,
        ),
        Convention(
            "article-update",
            "the author's later correction of the same article's computation",
            article_update_self,
            article_update_cross,
        ),
        Convention("kaplan", "Kaplan et al. 2020 (arXiv 2001.08361), Table 1", kaplan_self),
        Convention(
            "chinchilla",
            "Hoffmann et al. 2022 (arXiv 2203.15556), Table A4 as in effect computed",
            chinchilla_self,
        ),
        Convention(
            "palm",
            "Chowdhery et al. 2022 (arXiv 2204.02311), Appendix B",
            palm_self,
            knows=_SOFTMAX_ATTENTION | {GATE, LATENTS, EMBEDDING, ALL_POSITIONS},
        ),
        Convention(
            "megatron",
            "Narayanan et al. 2021 (arXiv 2104.04473), equation 3 without recomputation",
            megatron_self,
        ),
        Convention(
            "6n",
            "common rule C = 6ND, after Kaplan et al. 2020 (arXiv 2001.08361)",
            six_n_self,
            knows=None,
        ),
        Convention(
            "megatron-lm",
            "NVIDIA/Megatron-LM, megatron/training/training.py at 001b00c, "
            "num_floating_point_operations",
            megatron_lm_self,
            knows=_SOFTMAX_ATTENTION | {GATE, LATENTS, PREDICTIONS},
        ),
        Convention(
            "torchtitan",
            "pytorch/torchtitan, torchtitan/models/utils.py at 01c01c8, "
            "get_nparams_and_active_nparams and quadratic_attention_flops_per_token",
            torchtitan_self,
            knows=_SOFTMAX_ATTENTION | {GATE, LATENTS, EMBEDDING},
        ),
        Convention(
            "nanogpt",
            "karpathy/nanoGPT, model.py at 0011cd4, GPT.estimate_mfu, after PaLM's Appendix B",
            palm_self,
        ),
        Convention(
            "litgpt",
            "Lightning-AI/litgpt, litgpt/utils.py at 01db2ec, estimate_flops",
            litgpt_self,
            knows=_SOFTMAX_ATTENTION,
            frozen=frozenset({FROZEN}),
        ),
        Convention(
            "levanter",
            "marin-community/marin, lib/levanter/src/levanter/utils/flop_utils.py at 0a2b32c, "
            "lm_flops_per_token, times 3 in training",
            levanter_self,
            knows=_SOFTMAX_ATTENTION - {SOME_EXPERTS},
        ),
        Convention(
            "olmo-core",
            "allenai/OLMo-core, src/olmo_core/nn: Transformer.num_flops_per_token at 0021abd and "
            "attention's at 9f67190",
            olmo_core_self,
            knows=_SOFTMAX_ATTENTION | {GATE},
        ),
        Convention(
            "hf-trainer",
            "huggingface/transformers 5.24.0, trainer.py, Trainer.floating_point_ops",
            hf_trainer_self,
            knows=None,
        ),
        Convention(
            "gpt-neox",
            "EleutherAI/gpt-neox, megatron/logging.py at 018b8a9, get_flops without recomputation",
            gpt_neox_self,
            knows=frozenset({PLAIN}),
        ),
        Convention(
            "nanotron",
            "huggingface/nanotron, src/nanotron/models/llama.py at 03b83fc, get_flops",
            nanotron_self,
            knows=frozenset({GATED, WIDTH, GROUPED, HEAD_DIM}),
        ),
        Convention(
            "deepseek",
            "DeepSeek-AI 2024 (arXiv 2401.02954): M, non-embedding FLOPs per token",
            deepseek_self,
            knows=frozenset({PLAIN, GATED, WIDTH, GROUPED}),
        ),
    )
}
