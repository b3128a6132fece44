"""Published ways to count, each reproducing its own publication's numbers.

Letters as in :mod:`flopcount.layers`; S = n for the conventions of decoder-only models, m is the
number of prefix positions before dropout and p the prefix dropout. Training is 3 · forward in every
one of them. A convention that was never defined for a part does not cover it: never 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from before.sizes import Size, Sizes, exact_ratio, is_array, is_symbolic

Terms = tuple[tuple[str, str, Size], ...]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What conventions are computed from.

    Attributes:
        sizes: The derived sizes.
        kept_prefix: (1 - p)·m, not rounded; k where ``num_kept`` is given.
        num_params: N, the parameters of the self part.
        num_position_params: Those of its position embedding.

    """

    sizes: Sizes
    kept_prefix: Any
    num_params: Size
    num_position_params: Size


@dataclasses.dataclass(frozen=True)
class Convention:
    """A published way to count.

    Attributes:
        name: As users give it.
        source: The publication.
        leaves_out: What it does not count of the proven count, in one line.
        adds: What it counts beyond the proven count, in one line.
        self_part: Forward FLOPs per sequence: (layer, term, FLOPs) of the self part.
        cross_part: The same for the cross part; None where the convention says nothing of a prefix.

    """

    name: str
    source: str
    leaves_out: str
    adds: str
    self_part: Callable[[Inputs], Terms]
    cross_part: Callable[[Inputs], Terms] | None = None


def truncate(value: Any) -> Size:
    """The integer part of a number that is not negative, element by element."""
    if is_symbolic(value):
        from sympy import floor

        return floor(value)
    if is_array(value):
        import numpy as np

        return np.frompyfunc(int, 1, 1)(value)
    return int(value)


def article_self(inputs: Inputs) -> Terms:
    """Per token 4d + L((8 + 4w)d² + 2dn) + 2dV.

    The embedding as 4d, one of the two attention products over the full square, the output layer.
    """
    s = inputs.sizes
    n, d = s.num_latents, s.num_channels
    return (
        ("embedding", "embedding", n * 4 * d),
        ("layers", "projections and MLP", n * s.num_layers * (8 + 4 * s.widening_factor) * d * d),
        ("layers", "one attention product", n * s.num_layers * 2 * d * n),
        ("output", "logits", n * 2 * d * s.vocab_size),
    )


def _truncated_per_token(terms: Terms, num_latents: Size) -> Terms:
    """Exact terms of a sequence, and what truncating their sum per token to an integer takes off.

    The last term is n·⌊Σ/n⌋ - Σ, so that all of them add up to n times the truncated integer.
    """
    whole = sum(flops for _, _, flops in terms)
    truncated = num_latents * truncate(exact_ratio(whole, num_latents))
    exact = tuple((layer, term, exact_ratio(flops, 1)) for layer, term, flops in terms)
    return (*exact, ("hybrid", "truncation per token", exact_ratio(truncated - whole, 1)))


def article_cross(inputs: Inputs) -> Terms:
    """Per token 4d·m/n + (1 - p)(4d² + 2dn)·m/n, truncated to an integer.

    The prefix embedding before dropout, keys and values, one attention product.
    """
    s, kept = inputs.sizes, inputs.kept_prefix
    n, d = s.num_latents, s.num_channels
    terms = (
        ("embedding", "prefix embedding", 4 * d * s.num_prefix),
        ("hybrid", "keys and values", kept * 4 * d * d),
        ("hybrid", "one attention product", kept * 2 * d * n),
    )
    return _truncated_per_token(terms, n)


def article_update_self(inputs: Inputs) -> Terms:
    """Per token L((8 + 4w)d² + 4dn + 3hn): both products and softmax, no output layer."""
    s = inputs.sizes
    n, d = s.num_latents, s.num_channels
    return (
        ("layers", "projections and MLP", n * s.num_layers * (8 + 4 * s.widening_factor) * d * d),
        ("layers", "both attention products", n * s.num_layers * 4 * d * n),
        ("layers", "softmax", n * s.num_layers * 3 * s.num_heads * n),
    )


def article_update_cross(inputs: Inputs) -> Terms:
    """Per token (1 - p)(4d²·m/n + 4dm + 3hm), truncated to an integer."""
    s, kept = inputs.sizes, inputs.kept_prefix
    n, d = s.num_latents, s.num_channels
    terms = (
        ("hybrid", "keys and values", kept * 4 * d * d),
        ("hybrid", "both attention products", kept * 4 * d * n),
        ("hybrid", "softmax", kept * 3 * s.num_heads * n),
    )
    return _truncated_per_token(terms, n)


def kaplan_self(inputs: Inputs) -> Terms:
    """Per token 2·N_nonemb + 2Lnd with N_nonemb = (4 + 2w)Ld²."""
    s = inputs.sizes
    n, d = s.num_latents, s.num_channels
    parameters = (4 + 2 * s.widening_factor) * s.num_layers * d * d
    return (
        ("layers", "2 N without embeddings", n * 2 * parameters),
        ("layers", "one attention product", n * 2 * s.num_layers * n * d),
    )


def chinchilla_self(inputs: Inputs) -> Terms:
    """Per sequence L(8Sd² + 4Sd·d_ff + 4S²d + 3hS²), d_ff = wd."""
    s = inputs.sizes
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
    s = inputs.sizes
    n = s.num_latents
    parameters = inputs.num_params - inputs.num_position_params
    attention = 4 * s.num_layers * s.num_heads * s.head_dim * n
    return (
        ("model", "2 N without positions", n * 2 * parameters),
        ("layers", "both attention products", n * attention),
    )


def megatron_self(inputs: Inputs) -> Terms:
    """Per sequence 24SLd²(1 + S/(6d)) + 2SdV at w = 4; in general L((8 + 4w)Sd² + 4S²d) + 2SdV."""
    s = inputs.sizes
    n, d = s.num_latents, s.num_channels
    return (
        ("layers", "projections and MLP", s.num_layers * (8 + 4 * s.widening_factor) * n * d * d),
        ("layers", "both attention products", s.num_layers * 4 * n * n * d),
        ("output", "logits", 2 * n * d * s.vocab_size),
    )


def six_n_self(inputs: Inputs) -> Terms:
    """Per token 2N (training 6N), N all parameters of the self part."""
    return (("model", "2 N", inputs.sizes.num_latents * 2 * inputs.num_params),)


CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            "article",
            "Training compute-optimal Perceiver AR language models, January 2023",
            "one of the two attention products, in the self and in the cross part",
            "the embedding as 4d per token; the masked half of the other attention product",
            article_self,
            article_cross,
        ),
        Convention(
            "article-update",
            "the author's later correction of the same article's computation",
            "the output layer, which is really computed",
            "the masked half of both attention products; softmax",
            article_update_self,
            article_update_cross,
        ),
        Convention(
            "kaplan",
            "Kaplan et al. 2020 (arXiv 2001.08361), Table 1",
            "one of the two attention products; the output layer",
            "the masked half of the other attention product",
            kaplan_self,
        ),
        Convention(
            "chinchilla",
            "Hoffmann et al. 2022 (arXiv 2203.15556), Table A4 as in effect computed",
            "the output layer",
            "the masked half of both attention products; softmax",
            chinchilla_self,
        ),
        Convention(
            "palm",
            "Chowdhery et al. 2022 (arXiv 2204.02311), Appendix B",
            "nothing of the matrix products where the embedding is tied",
            "norms and biases as if they were matrices; the masked half of both attention products",
            palm_self,
        ),
        Convention(
            "megatron",
            "Narayanan et al. 2021 (arXiv 2104.04473), equation 3 without recomputation",
            "nothing of the matrix products",
            "the masked half of both attention products",
            megatron_self,
        ),
        Convention(
            "6n",
            "common rule C = 6ND, after Kaplan et al. 2020 (arXiv 2001.08361)",
            "both attention products",
            "positions, norms and biases as if they were matrices",
            six_n_self,
        ),
    )
}
