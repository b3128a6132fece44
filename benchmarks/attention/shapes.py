"""The attention shapes that are timed, and the least that any implementation has to do for them.

Letters: B batch, N queries, K prefix positions, H heads, C channels of a head. Queries are the last
N of K + N positions, right-aligned and causal.
"""

from __future__ import annotations

import dataclasses

import flopcount as fc

PASSES = ("forward", "backward")
ARTICLE_HEAD_DIMS = (73, 78, 91, 54, 64, 96, 128)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One attention call.

    >>> Shape(80, 512, 1792, 8, 73)
    Shape(batch=80, queries=512, prefix=1792, heads=8, head_dim=73)
    """

    batch: int
    queries: int
    prefix: int
    heads: int
    head_dim: int

    @property
    def keys(self) -> int:
        """Positions that keys and values have: K + N."""
        return self.prefix + self.queries

    @property
    def pairs(self) -> int:
        """Admitted query-key pairs of all heads and sequences: B · H · (N·K + N(N + 1)/2)."""
        n = self.queries
        return self.batch * self.heads * (n * self.prefix + n * (n + 1) // 2)

    def causal_flops(self, pass_name: str) -> int:
        """FLOPs of the scores and values products at level ``causal``, from ``flopcount``.

        >>> Shape(1, 2, 3, 1, 10).causal_flops("forward")  # 4 · 10 · (2 · 3 + 3)
        360
        """
        model = fc.PerceiverAR(
            vocab_size=1,
            num_latents=self.queries,
            num_prefix=self.prefix,
            num_channels=self.heads * self.head_dim,
            num_layers=1,
            num_heads=self.heads,
        )
        rows = model.flops(level="causal", batch_size=self.batch).rows
        return sum(
            row.flops for row in rows if row.term in ("scores", "values") and row.phase == pass_name
        )

    def least_bytes(self, pass_name: str, element_size: int) -> int:
        """Bytes that must move: every input read once, every output written once.

        Forward: q, k, v in; out and the log-sum-exp (fp32) out. Backward: q, k, v, out, its
        gradient and the log-sum-exp in; three gradients out.

        >>> Shape(1, 2, 3, 1, 10).least_bytes("forward", 2)  # 2 · (2 · 20 + 2 · 50) + 4 · 2
        288
        """
        queries = self.batch * self.queries * self.heads * self.head_dim
        keys = self.batch * self.keys * self.heads * self.head_dim
        elements = 2 * queries + 2 * keys if pass_name == "forward" else 4 * queries + 4 * keys
        return element_size * elements + 4 * self.batch * self.heads * self.queries

    def least_exponentials(self, pass_name: str) -> int:
        """One exponential per admitted pair: the backward pass computes the weights again."""
        return self.pairs


def _article() -> tuple[Shape, ...]:
    """The article's layers, most telling first: hybrid with m = 3584 and 1536, then causal."""
    return tuple(
        Shape(80, 512, prefix, 8, head_dim)
        for prefix in (1792, 0, 768)
        for head_dim in ARTICLE_HEAD_DIMS
    )


def _evaluation() -> tuple[Shape, ...]:
    """The hybrid layer without prefix dropout: k = m."""
    return tuple(
        Shape(80, 512, prefix, 8, head_dim)
        for prefix in (3584, 1536)
        for head_dim in ARTICLE_HEAD_DIMS
    )


def _long() -> tuple[Shape, ...]:
    """16,384 tokens of 2,048 channels, cut into sequences of 1k to 16k: as publications do."""
    return tuple(
        Shape(16_384 // length, length, 0, 2048 // head_dim, head_dim)
        for head_dim in (64, 128)
        for length in (1024, 2048, 4096, 8192, 16_384)
    )


SETS = {
    "article": _article(),
    "evaluation": _evaluation(),
    "long": _long(),
    "tiny": (Shape(2, 17, 9, 2, 9), Shape(1, 16, 0, 1, 16)),
}
"""Shapes by name; ``tiny`` is for machines without a GPU."""

FORWARD_ONLY = frozenset({"evaluation"})
"""Sets that occur without a backward pass."""
