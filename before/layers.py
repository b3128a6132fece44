"""Matrix products per layer, forward pass.

Letters in formulas: B sequences, n latents, k kept prefix positions, d channels, h heads,
c = d / h channels per head, w widening factor, L layers, V vocabulary. A multiply-add is 2 FLOPs.
Every function returns one :class:`~flopcount.rows.Matmul` per product; its sizes are the formula.
"""

from __future__ import annotations

from before.rows import Matmul, Part
from before.sizes import Size, halve

KAPLAN_TABLE_1 = "Kaplan et al. 2020 (arXiv 2001.08361), Table 1"
CHINCHILLA_APPENDIX_F = "Hoffmann et al. 2022 (arXiv 2203.15556), Appendix F"
CAUSAL_PAIRS = "derived here: query i admits keys 1..i, so n(n + 1)/2 of the n² pairs count"
PREFIX_ROWS = "derived here: keys and values are projected from the k kept prefix positions only"
PREFIX_PAIRS = "derived here: every one of n latent queries admits every one of k prefix positions"


def causal_pairs(num_latents: Size) -> Size:
    """Query-key pairs that a causal mask admits: 1 + 2 + … + n = n(n + 1)/2.

    Source: derived here; latent i attends to latents 1..i.

    >>> causal_pairs(3)
    6
    """
    return halve(num_latents * (num_latents + 1))


def projection(
    part: Part,
    layer: str,
    term: str,
    *,
    num_products: Size,
    num_positions: Size,
    in_channels: Size,
    out_channels: Size,
    source: str = KAPLAN_TABLE_1,
    checkpointed: bool = True,
    last_of_layer: bool = False,
) -> Matmul:
    """A linear layer over positions: 2 · positions · in · out FLOPs, ``num_products`` times."""
    return Matmul(
        part,
        layer,
        term,
        num_products,
        num_positions,
        out_channels,
        in_channels,
        source,
        checkpointed=checkpointed,
        last_of_layer=last_of_layer,
    )


def decoder_layer(
    layer: str,
    *,
    level: str,
    num_layers: Size,
    batch_size: Size,
    num_latents: Size,
    num_channels: Size,
    num_heads: Size,
    head_dim: Size,
    widening_factor: Size,
) -> tuple[Matmul, ...]:
    """Causal self-attention over n positions followed by the MLP, in ``num_layers`` equal layers.

    Per layer and sequence: 2·4nd² for the four projections, 2·h·pairs·c each for scores and values,
    2·2wnd² for the MLP; pairs = n(n + 1)/2 at level ``causal`` and n² at level ``dense``.

    Args:
        layer: The name that the terms carry.
        level: ``"causal"`` or ``"dense"``.
        num_layers: How many equal layers.
        batch_size: B, sequences.
        num_latents: n, positions.
        num_channels: d.
        num_heads: h.
        head_dim: c.
        widening_factor: w.

    Returns:
        One product per term; FLOPs for all sequences and all ``num_layers`` layers.

    Source: Kaplan et al. 2020, Table 1, with both attention products as in Hoffmann et al. 2022,
    Appendix F; the admitted pairs are derived here.

    """
    n, d = num_latents, num_channels
    products = num_layers * batch_size
    attention = products * num_heads
    hidden_channels = widening_factor * d
    if level == "causal":
        pairs, pairs_source = causal_pairs(n), CAUSAL_PAIRS
    else:
        pairs, pairs_source = n * n, CHINCHILLA_APPENDIX_F

    def linear(
        term: str, in_channels: Size, out_channels: Size, last_of_layer: bool = False
    ) -> Matmul:
        return projection(
            "self",
            layer,
            term,
            num_products=products,
            num_positions=n,
            in_channels=in_channels,
            out_channels=out_channels,
            last_of_layer=last_of_layer,
        )

    return (
        linear("query", d, d),
        linear("key", d, d),
        linear("value", d, d),
        Matmul("self", layer, "scores", attention, n, n, head_dim, pairs_source, pairs=pairs),
        Matmul("self", layer, "values", attention, n, n, head_dim, pairs_source, pairs=pairs),
        linear("out", d, d),
        linear("mlp up", d, hidden_channels),
        linear("mlp down", hidden_channels, d, last_of_layer=True),
    )


def prefix_attention(
    layer: str,
    *,
    batch_size: Size,
    num_latents: Size,
    num_kept: Size,
    num_channels: Size,
    num_heads: Size,
    head_dim: Size,
) -> tuple[Matmul, ...]:
    """What a prefix adds to the hybrid layer: its keys and values, and n·k query-key pairs.

    Per sequence: 2·2kd² for keys and values, 2·h·nk·c each for scores and values. Prefix dropout
    acts before the projections, so dropped positions cost nothing here.

    Args:
        layer: The name that the terms carry.
        batch_size: B, sequences.
        num_latents: n, queries.
        num_kept: k, prefix positions after dropout.
        num_channels: d.
        num_heads: h.
        head_dim: c.

    Returns:
        One product per term; FLOPs for all sequences.

    Source: derived here from the model's definition; no published convention counts both products.

    """
    n, k, d = num_latents, num_kept, num_channels
    attention = batch_size * num_heads

    def linear(term: str) -> Matmul:
        return projection(
            "cross",
            layer,
            term,
            num_products=batch_size,
            num_positions=k,
            in_channels=d,
            out_channels=d,
            source=PREFIX_ROWS,
        )

    return (
        linear("key"),
        linear("value"),
        Matmul("cross", layer, "scores", attention, n, k, head_dim, PREFIX_PAIRS),
        Matmul("cross", layer, "values", attention, n, k, head_dim, PREFIX_PAIRS),
    )


def output_layer(
    *, batch_size: Size, num_latents: Size, num_channels: Size, vocab_size: Size
) -> tuple[Matmul, ...]:
    """Logits for n positions: 2ndV FLOPs per sequence.

    Args:
        batch_size: B, sequences.
        num_latents: n, positions.
        num_channels: d.
        vocab_size: V.

    Returns:
        One product; FLOPs for all sequences.

    Source: Kaplan et al. 2020, Table 1 ("de-embed").

    """
    return (
        projection(
            "self",
            "output",
            "logits",
            num_products=batch_size,
            num_positions=num_latents,
            in_channels=num_channels,
            out_channels=vocab_size,
            checkpointed=False,
        ),
    )
