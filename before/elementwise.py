"""Element-wise work per layer, forward and backward.

No publication settles what an element-wise operation costs, so the convention is stated here: one
FLOP for every addition, subtraction, multiplication, division, comparison (in a maximum),
exponential or error function that acts once per element. Work that is done once per row (the square
root of a LayerNorm, the logarithm of a softmax) or that moves data without arithmetic (gather,
concatenation, masking, dropout's random numbers) is not counted; neither is the optimiser's step.

Letters as in :mod:`flopcount.layers`; m is the number of prefix positions before dropout.
"""

from __future__ import annotations

from before.layers import causal_pairs
from before.rows import Elementwise, Part
from before.sizes import Size, minimum


def rotated_channels(head_dim: Size) -> Size:
    """Channels of a head that rotary embedding turns: 2⌈r/2⌉ with r = ⌊c/2⌋.

    Frequencies base^(-j/r) exist for j = 0, 2, 4, … < r, each on one pair of channels.

    >>> [rotated_channels(c) for c in (54, 64, 73, 78, 91)]
    [28, 32, 36, 40, 46]
    """
    return 2 * ((head_dim // 2 + 1) // 2)


def embedding(
    part: Part, *, batch_size: Size, num_positions: Size, num_channels: Size
) -> Elementwise:
    """Token plus position embedding, before prefix dropout."""
    return Elementwise(
        part,
        "embedding",
        "embedding",
        batch_size * num_positions * num_channels,
        forward_cost=1,
        backward_cost=2,
        reason="forward: token + position; backward: one addition into each of the two tables",
        checkpointed=False,
    )


def prefix_selection(*, batch_size: Size, num_selected: Size, num_channels: Size) -> Elementwise:
    """Prefix dropout keeps k positions; its gradient is added back at their places."""
    return Elementwise(
        "cross",
        "embedding",
        "prefix selection",
        batch_size * num_selected * num_channels,
        forward_cost=0,
        backward_cost=1,
        reason="forward: a gather, no arithmetic; backward: one addition per kept element",
        checkpointed=False,
    )


def norm(
    part: Part,
    layer: str,
    term: str,
    *,
    num_norms: Size,
    num_positions: Size,
    num_channels: Size,
    bias: bool,
    checkpointed: bool = True,
) -> Elementwise:
    """LayerNorm y = (x - μ)·r·γ + β over d channels, where r = 1/√(σ² + ε)."""
    shift = 1 if bias else 0
    return Elementwise(
        part,
        layer,
        term,
        num_norms * num_positions * num_channels,
        forward_cost=6 + shift,
        backward_cost=12 + shift,
        reason=(
            "forward: sum for μ, subtract, square, sum for σ², times r, times γ, plus β if any; "
            "backward: x̂ again (2), dγ (2), dβ if any (1), g = dy·γ (1), sums of g and g·x̂ (3), "
            "r·(g - mean - x̂·mean) (4)"
        ),
        checkpointed=checkpointed,
    )


def softmax(part: Part, layer: str, *, num_products: Size, pairs: Size) -> Elementwise:
    """Softmax over the keys of each query."""
    return Elementwise(
        part,
        layer,
        "softmax",
        num_products * pairs,
        forward_cost=5,
        backward_cost=4,
        reason=(
            "forward: maximum, subtract, exponential, sum, divide; "
            "backward: P·dP, its sum, subtract, times P"
        ),
    )


def query_scale(layer: str, *, num_products: Size, num_channels: Size) -> Elementwise:
    """Queries times c^-½."""
    return Elementwise(
        "self",
        layer,
        "query scale",
        num_products * num_channels,
        forward_cost=1,
        backward_cost=1,
        reason="forward: times c^-½; backward: the same",
    )


def rotary(part: Part, layer: str, term: str, *, num_products: Size, channels: Size) -> Elementwise:
    """Rotary embedding of ``channels`` channels of each of ``num_products`` positions."""
    return Elementwise(
        part,
        layer,
        term,
        num_products * channels,
        forward_cost=3,
        backward_cost=3,
        reason="forward: x·cos + rotated x·sin; backward: the transposed rotation, the same cost",
    )


def gelu(layer: str, *, num_products: Size, hidden_channels: Size) -> Elementwise:
    """Exact GELU x·Φ(x) = x·½(1 + erf(x/√2))."""
    return Elementwise(
        "self",
        layer,
        "gelu",
        num_products * hidden_channels,
        forward_cost=5,
        backward_cost=11,
        reason=(
            "forward: x/√2, erf, 1 +, times ½, times x; backward: Φ(x) again (4), density (4), "
            "x·density, plus Φ, times dy"
        ),
    )


def residual(
    layer: str, term: str, *, num_products: Size, num_channels: Size, last: bool = False
) -> Elementwise:
    """A residual connection."""
    return Elementwise(
        "self",
        layer,
        term,
        num_products * num_channels,
        forward_cost=1,
        backward_cost=1,
        reason="forward: branch + input; backward: the gradients of the two paths are added",
        after_last_product=last,
    )


def bias(
    layer: str,
    term: str,
    *,
    num_products: Size,
    channels: Size,
    checkpointed: bool = True,
    last: bool = False,
) -> Elementwise:
    """A linear layer's bias."""
    return Elementwise(
        "self",
        layer,
        term,
        num_products * channels,
        forward_cost=1,
        backward_cost=1,
        reason="forward: one addition per output; backward: the sum over positions",
        checkpointed=checkpointed,
        after_last_product=last,
    )


def shared_input(
    part: Part, layer: str, *, num_products: Size, num_channels: Size, additions: int
) -> Elementwise:
    """Gradients of an input that several projections read are added."""
    return Elementwise(
        part,
        layer,
        "projection input gradients",
        num_products * num_channels,
        forward_cost=0,
        backward_cost=additions,
        reason="backward: one addition for each projection beyond the first that reads the input",
    )


def loss(*, batch_size: Size, num_latents: Size, vocab_size: Size) -> Elementwise:
    """Cross-entropy of n predictions over V classes."""
    return Elementwise(
        "self",
        "loss",
        "cross-entropy",
        batch_size * num_latents * vocab_size,
        forward_cost=5,
        backward_cost=4,
        reason=(
            "forward: maximum, subtract, exponential, sum, subtract the logarithm; "
            "backward: sum of the gradient, exponential, multiply, subtract"
        ),
        checkpointed=False,
    )


def tied_gradient(*, num_channels: Size, vocab_size: Size) -> Elementwise:
    """The tied embedding's two gradients, from input and output, are added once a step."""
    return Elementwise(
        "self",
        "output",
        "tied embedding gradient",
        vocab_size * num_channels,
        forward_cost=0,
        backward_cost=1,
        reason="backward: embedding gradient + output gradient, once a step whatever the batch",
        checkpointed=False,
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
    widening_factor: Size,
    norm_bias: bool,
    input_bias: bool,
    output_bias: bool,
    mlp_bias: bool,
) -> tuple[Elementwise, ...]:
    """Element-wise work of causal self-attention and MLP over n positions, ``num_layers`` times.

    Args:
        layer: The name that the rows carry.
        level: ``"causal"`` or ``"dense"``; decides the softmax's elements.
        num_layers: How many equal layers.
        batch_size: B, sequences.
        num_latents: n, positions.
        num_channels: d.
        num_heads: h.
        widening_factor: w.
        norm_bias: Whether the norms have a shift.
        input_bias: Whether query, key and value projections have a bias.
        output_bias: Whether the attention's output projection has one.
        mlp_bias: Whether the MLP's linear layers have one.

    Returns:
        One row per operation, without rotary embedding; elements of all sequences and layers.

    """
    n, d = num_latents, num_channels
    layers = num_layers * batch_size
    positions = layers * n
    hidden_channels = widening_factor * d
    pairs = causal_pairs(n) if level == "causal" else n * n
    rows = [
        norm(
            "self", layer, "norm", num_norms=layers, num_positions=n, num_channels=d, bias=norm_bias
        ),
        shared_input("self", layer, num_products=positions, num_channels=d, additions=2),
        query_scale(layer, num_products=positions, num_channels=d),
        softmax("self", layer, num_products=layers * num_heads, pairs=pairs),
        residual(layer, "attention residual", num_products=positions, num_channels=d),
        norm(
            "self",
            layer,
            "mlp norm",
            num_norms=layers,
            num_positions=n,
            num_channels=d,
            bias=norm_bias,
        ),
        gelu(layer, num_products=positions, hidden_channels=hidden_channels),
        residual(layer, "mlp residual", num_products=positions, num_channels=d, last=True),
    ]
    if input_bias:
        rows += [
            bias(layer, f"{name} bias", num_products=positions, channels=d)
            for name in ("query", "key", "value")
        ]
    if output_bias:
        rows.append(bias(layer, "out bias", num_products=positions, channels=d))
    if mlp_bias:
        rows += [
            bias(layer, "mlp up bias", num_products=positions, channels=hidden_channels),
            bias(layer, "mlp down bias", num_products=positions, channels=d, last=True),
        ]
    return tuple(rows)


def self_rotary(
    layer: str,
    *,
    num_layers: Size,
    batch_size: Size,
    num_latents: Size,
    num_heads: Size,
    head_dim: Size,
) -> tuple[Elementwise, ...]:
    """Rotary embedding of n queries and n keys in at most one of ``num_layers`` layers."""
    positions = minimum(num_layers, 1) * batch_size * num_latents
    channels = num_heads * rotated_channels(head_dim)
    return (
        rotary("self", layer, "rotary query", num_products=positions, channels=channels),
        rotary("self", layer, "rotary key", num_products=positions, channels=channels),
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
) -> tuple[Elementwise, ...]:
    """What a prefix of k kept positions adds to the hybrid layer's element-wise work.

    Args:
        layer: The name that the rows carry.
        batch_size: B, sequences.
        num_latents: n, queries.
        num_kept: k, prefix positions after dropout.
        num_channels: d.
        num_heads: h.
        head_dim: c.

    Returns:
        One row per operation; elements of all sequences.

    """
    n, k, d = num_latents, num_kept, num_channels
    positions = batch_size * k
    return (
        norm(
            "cross",
            layer,
            "prefix norm",
            num_norms=batch_size,
            num_positions=k,
            num_channels=d,
            bias=True,
        ),
        shared_input("cross", layer, num_products=positions, num_channels=d, additions=1),
        rotary(
            "cross",
            layer,
            "rotary key",
            num_products=positions,
            channels=num_heads * rotated_channels(head_dim),
        ),
        softmax("cross", layer, num_products=batch_size * num_heads, pairs=n * k),
    )
