"""Multi-head latent attention: keys and values are projected up from one small latent.

Letters as in :mod:`flopcount.operations`; d is ``channels``, h the heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from flopcount.blocks import CAUSAL, Rotary
from flopcount.masks import SelfMask
from flopcount.operations import Pass, attend, cache, linear, norm, shared_input, work
from flopcount.rows import AnyRow, Product, Tensor, Value, on
from flopcount.sizes import Size

DEEPSEEK_V2 = "DeepSeek-AI 2024 (arXiv 2405.04434), section 2.1"
UP = "key-value up"


@dataclasses.dataclass(frozen=True)
class LatentAttention:
    """Attention whose keys and values are expanded from a latent.

    With r and ρ the sizes of the latents of keys and values and of queries, and heads of a channels
    that do not turn, b that do and v of values, per sequence 2n FLOPs times

    - dρ + ρh(a + b) for queries, or dh(a + b) without a latent of theirs;
    - d(r + b) down and rh(a + v) up for keys and values, all heads sharing the b channels;
    - hvd for the output projection;

    and 2h·pairs·(a + b) for scores, 2h·pairs·v for values.

    Behind a cache there are three forms (:data:`flopcount.operations.MLA`). ``"expanded"`` is the
    above, with h(a + b + v) elements of a position cached. ``"latent"`` caches r + b and expands
    2·rh(a + v) FLOPs for each of the cached positions too, in every pass. ``"absorbed"`` caches as
    much and expands nothing: since (q·U)·c = q·(U·c), a head's a channels of a query are projected
    to the latent's r, scores have r + b channels and values r, and what the heads give is projected
    from r to v, with the same tensor: 2n·rh(a + v) and 2h·pairs·(2r + b).

    Attributes:
        channels: d.
        num_heads: h.
        query_rank: ρ; None where queries are projected directly.
        key_value_rank: r.
        plain_dim: A, channels of a head's queries and keys that do not turn.
        rotary_dim: b, channels that turn.
        value_dim: v, channels of a head's values.
        bias: Whether the projections from d and to d have biases, but for direct queries.
        mask: Which pairs count.

    Source: DeepSeek-AI 2024 (arXiv 2405.04434), section 2.1 and, for absorption, its end.
    """

    channels: Size
    num_heads: Size
    query_rank: Size | None
    key_value_rank: Size
    plain_dim: Size
    rotary_dim: Size
    value_dim: Size
    bias: bool = False
    mask: SelfMask = CAUSAL

    def rows(self, at: Pass) -> Iterator[AnyRow]:
        """Down, norm and up for queries, then for keys and values; attention; out."""
        d, h, a, b, v = (
            self.channels, self.num_heads, self.plain_dim, self.rotary_dim, self.value_dim,
        )  # fmt: skip
        source = DEEPSEEK_V2
        queries = h * (a + b)
        if self.query_rank is None:
            yield from linear(at, "query", d, queries, source=source, writes="query")
        else:
            yield from linear(
                at, "query down", d, self.query_rank, bias=self.bias, source=source, writes="query"
            )
            ranked = norm(at, "query norm", self.query_rank, bias=False, rms=True)
            yield from on("query", ranked)
            up = linear(at, "query up", self.query_rank, queries, source=source)
            yield from on("query", up)
        rank = self.key_value_rank
        yield from linear(
            at, "key-value down", d, rank + b, bias=self.bias, source=source, writes="latent"
        )
        yield Value(("latent",), "rotary key")
        yield from on("latent", norm(at, "key-value norm", rank, bias=False, rms=True))
        yield from self._expand(at)
        yield from shared_input(at, "projection input gradients", d, 1)
        rotary = Rotary(b)
        yield from on("query", rotary.rows(at, "rotary query", h))
        yield from on("rotary key", rotary.rows(at, "rotary key", 1))
        reason = "backward: the gradients that h heads take of one key are added"
        added = work(at, "rotary key gradients", (h - 1) * b, 0, 1, reason)
        yield from on("rotary key", added)
        reason = "forward: times (a + b)^-½; backward: the same"
        yield from on("query", work(at, "query scale", queries, 1, 1, reason))
        key_dim, value_dim = (rank + b, rank) if at.mla == "absorbed" else (a + b, v)
        yield from attend(
            at, h, at.cached + at.length, key_dim, value_dim, self.mask,
            key=("key", "rotary key"), value=("key",),
        )  # fmt: skip
        if at.mla == "absorbed":
            yield from self._of_each_head(at, "value up", v, rank)
        yield from linear(at, "out", h * v, d, bias=self.bias, source=source)

    def _expand(self, at: Pass) -> Iterator[AnyRow]:
        """What is cached, and the products with the tensor that expands latents."""
        h, a, b, v = self.num_heads, self.plain_dim, self.rotary_dim, self.value_dim
        rank = self.key_value_rank
        kept = self.mask.kept(at.cached + at.length)
        if at.mla == "expanded":
            yield from cache(at, "keys", kept, h * (a + b))
            yield from cache(at, "values", kept, h * v)
        else:
            yield from cache(at, "latents", kept, rank)
            yield from cache(at, "rotary keys", kept, b)
        if at.mla == "absorbed":
            yield Tensor("self", at.layer, UP, (at.layers, rank, h * (a + v)))
            yield from on("query", self._of_each_head(at, "query absorbed", rank, a))
            return
        expanded = at.length
        if at.mla == "latent":
            chunk = at.length if at.chunk is None else at.chunk
            expanded = expanded + self.mask.kept_before(at.passes, at.cached, chunk)
        yield from linear(
            at.at(length=expanded), UP, rank, h * (a + v), source=DEEPSEEK_V2,
            reads="latent", writes="key",
        )  # fmt: skip

    def _of_each_head(self, at: Pass, term: str, outputs: Size, inputs: Size) -> Iterator[AnyRow]:
        yield Product(
            part=at.part,
            layer=at.layer,
            term=term,
            times=at.times * self.num_heads,
            M=at.length,
            N=outputs,
            K=inputs,
            source=DEEPSEEK_V2,
            weight=(at.layer, UP),
        )
