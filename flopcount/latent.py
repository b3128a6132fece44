"""Multi-head latent attention: keys and values are projected up from one small latent.

Letters as in :mod:`flopcount.operations`; d is ``channels``, h the heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from flopcount.blocks import CAUSAL, Rotary
from flopcount.masks import Mask
from flopcount.operations import Pass, attend, linear, norm, shared_input, work
from flopcount.rows import AnyRow
from flopcount.sizes import Size

DEEPSEEK_V2 = "DeepSeek-AI 2024 (arXiv 2405.04434), section 2.1"


@dataclasses.dataclass(frozen=True)
class LatentAttention:
    """Attention whose keys and values are expanded from a latent, as in training and prefill.

    With r and ρ the sizes of the latents of keys and values and of queries, and heads of a channels
    that do not turn, b that do and v of values, per sequence 2n FLOPs times

    - dρ + ρh(a + b) for queries, or dh(a + b) without a latent of theirs;
    - d(r + b) down and rh(a + v) up for keys and values, all heads sharing the b channels;
    - hvd for the output projection;

    and 2h·pairs·(a + b) for scores, 2h·pairs·v for values.

    Attributes:
        channels: d.
        num_heads: h.
        query_rank: ρ; None where queries are projected directly.
        key_value_rank: r.
        plain_dim: a, channels of a head's queries and keys that do not turn.
        rotary_dim: b, channels that turn.
        value_dim: v, channels of a head's values.
        bias: Whether the projections from d and to d have biases, but for direct queries.
        mask: Which pairs count.

    Source: DeepSeek-AI 2024 (arXiv 2405.04434), section 2.1.
    """

    channels: Size
    num_heads: Size
    query_rank: Size | None
    key_value_rank: Size
    plain_dim: Size
    rotary_dim: Size
    value_dim: Size
    bias: bool = False
    mask: Mask = CAUSAL

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """Down, norm and up for queries, then for keys and values; attention; out."""
        d, h, a, b, v = (
            self.channels, self.num_heads, self.plain_dim, self.rotary_dim, self.value_dim,
        )  # fmt: skip
        source = DEEPSEEK_V2
        queries = h * (a + b)
        if self.query_rank is None:
            yield from linear(at, "query", d, queries, source=source)
        else:
            yield from linear(at, "query down", d, self.query_rank, bias=self.bias, source=source)
            yield from norm(at, "query norm", self.query_rank, bias=False, rms=True)
            yield from linear(at, "query up", self.query_rank, queries, source=source)
        rank = self.key_value_rank
        yield from linear(at, "key-value down", d, rank + b, bias=self.bias, source=source)
        yield from norm(at, "key-value norm", rank, bias=False, rms=True)
        yield from linear(at, "key-value up", rank, h * (a + v), source=source)
        yield from shared_input(at, "projection input gradients", d, 1)
        rotary = Rotary(b)
        yield from rotary.rows(at, "rotary query", h)
        yield from rotary.rows(at, "rotary key", 1)
        reason = "backward: the gradients that h heads take of one key are added"
        yield from work(at, "rotary key gradients", (h - 1) * b, 0, 1, reason)
        reason = "forward: times (a + b)^-½; backward: the same"
        yield from work(at, "query scale", queries, 1, 1, reason)
        yield from attend(at, h, at.cached + at.length, a + b, v, self.mask)
        yield from linear(at, "out", h * v, d, bias=self.bias, source=source)
