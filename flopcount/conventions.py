"""Published ways to count, each reproducing its own publication's numbers.

Letters as in :mod:`flopcount.layers`; S = n for the conventions of decoder-only models, m is the
number of prefix positions before dropout and p the prefix dropout. Training is 3 · forward in every
one of them. A convention that was never defined for a part does not cover it: never 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from flopcount.sizes import Size, exact_ratio, is_array, is_symbolic

Terms = tuple[tuple[str, str, Size], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What conventions are computed from.

    Attributes:
        num_latents: n.
        num_channels: d.
        num_heads: h.
        head_dim: c.
        num_layers: L.
        vocab_size: V.
        num_params: N, the parameters of the self part.
        num_position_params: Those of its position embedding.
        widening_factor: w; None where the layers are not attention and an MLP of two products.
        num_prefix: m.
        kept_prefix: (1 - p)·m, not rounded; k where ``num_kept`` is given.
        one_stack: Whether every layer works on the n positions; conventions say nothing of others.

    """

    num_latents: Size
    num_channels: Size
    num_heads: Size
    head_dim: Size
    num_layers: Size
    vocab_size: Size
    num_params: Size
    num_position_params: Size
    widening_factor: Any = None
    num_prefix: Size = 0
    kept_prefix: Any = 0
    one_stack: bool = True


@dataclasses.dataclass(frozen=True)
class Convention:
    """A published way to count.

    Attributes:
        name: As users give it.
        source: The publication.
        self_part: Forward FLOPs per sequence: (layer, term, FLOPs) of the self part.
        cross_part: The same for the cross part; None where the convention says nothing of a prefix.
        any_layer: Whether it speaks of parameters alone, whatever a layer consists of.

    """

    name: str
    source: str
    self_part: Callable[[Inputs], Terms]
    cross_part: Callable[[Inputs], Terms] | None = None
    any_layer: bool = False


def article_self(inputs: Inputs) -> Terms:
    """Per token 4d + L((8 + 4w)d² + 2dn) + 2dV.

    The embedding as 4d, one of the two attention products over the full square, the output layer.
    """
    s = inputs
    n, d = s.num_latents, s.num_channels
    return (
        ("embedding", "embedding", n * 4 * d),
        ("layers", "projections and MLP", n * s.num_layers * (8 + 4 * s.widening_factor) * d * d),
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

    sizes = (whole, s.num_prefix, s.num_latents, s.num_channels, s.num_heads, inputs.kept_prefix)
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
        ("layers", "projections and MLP", n * s.num_layers * (8 + 4 * s.widening_factor) * d * d),
        ("layers", "both attention products", n * s.num_layers * 4 * d * n),
        ("layers", "softmax", n * s.num_layers * 3 * s.num_heads * n),
    )


def article_update_cross(inputs: Inputs) -> Terms:
    """Per token (1 - p)(4d²·m/n + 4dm + 3hm), truncated to an integer as the code does it."""
    s, kept = inputs, inputs.kept_prefix
    n, d = s.num_latents, s.num_channels
    terms = (
        ("hybrid", "keys and values", kept * 4 * d * d),
        ("hybrid", "both attention products", kept * 4 * d * n),
        ("hybrid", "softmax", kept * 3 * s.num_heads * n),
    )
    return _per_token(inputs, terms, article_update_code)


def kaplan_self(inputs: Inputs) -> Terms:
    """Per token 2·N_nonemb + 2Lnd with N_nonemb = (4 + 2w)Ld²."""
    s = inputs
    n, d = s.num_latents, s.num_channels
    parameters = (4 + 2 * s.widening_factor) * s.num_layers * d * d
    return (
        ("layers", "2 N without embeddings", n * 2 * parameters),
        ("layers", "one attention product", n * 2 * s.num_layers * n * d),
    )


def chinchilla_self(inputs: Inputs) -> Terms:
    """Per sequence L(8Sd² + 4Sd·d_ff + 4S²d + 3hS²), d_ff = wd."""
    s = inputs
    n, d = s.num_latents, s.num_channels
    hidden_channels = s.widening_factor * d
    return (
        ("layers", "attention projections", s.num_layers * 8 * n * d * d),
        ("layers", "MLP", s.num_layers * 4 * n * d * hidden_channels),
        ("layers", "both attention products", s.num_layers * 4 * n * n * d),
        ("layers", "softmax", s.num_layers * 3 * s.num_heads * n * n),
    )


def palm_self(inputs: Inputs) -> Terms:
    """Per token 2N + 4LhcS (training 6N + 12LhcS), N without the position embedding."""
    s = inputs
    n = s.num_latents
    parameters = inputs.num_params - inputs.num_position_params
    attention = 4 * s.num_layers * s.num_heads * s.head_dim * n
    return (
        ("model", "2 N without positions", n * 2 * parameters),
        ("layers", "both attention products", n * attention),
    )


def megatron_self(inputs: Inputs) -> Terms:
    """Per sequence 24SLd²(1 + S/(6d)) + 2SdV at w = 4; in general L((8 + 4w)Sd² + 4S²d) + 2SdV."""
    s = inputs
    n, d = s.num_latents, s.num_channels
    return (
        ("layers", "projections and MLP", s.num_layers * (8 + 4 * s.widening_factor) * n * d * d),
        ("layers", "both attention products", s.num_layers * 4 * n * n * d),
        ("output", "logits", 2 * n * d * s.vocab_size),
    )


def six_n_self(inputs: Inputs) -> Terms:
    """Per token 2N (training 6N), N all parameters of the self part."""
    return (("model", "2 N", inputs.num_latents * 2 * inputs.num_params),)


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
            any_layer=True,
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
            any_layer=True,
        ),
    )
}
