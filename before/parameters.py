"""Parameters per layer.

Letters as in :mod:`flopcount.layers`; m is the number of prefix positions before dropout.
"""

from __future__ import annotations

from before.rows import Parameters, Part
from before.sizes import Size


def embedding(part: Part, name: str, *, num_rows: Size, num_channels: Size) -> Parameters:
    """A table of ``num_rows`` · d: tokens (rows = V) or positions (rows = n or m)."""
    return Parameters(part, "embedding", name, num_rows * num_channels)


def norm(layer: str, name: str, *, num_layers: Size, num_channels: Size, bias: bool) -> Parameters:
    """LayerNorm: a scale and, with ``bias``, a shift per channel: 2d or d."""
    tensors = 2 if bias else 1
    return Parameters("self", layer, name, num_layers * tensors * num_channels)


def linear(
    layer: str, name: str, *, num_layers: Size, in_channels: Size, out_channels: Size, bias: bool
) -> Parameters:
    """A linear layer: in · out weights and, with ``bias``, out biases."""
    rows = in_channels + 1 if bias else in_channels
    return Parameters("self", layer, name, num_layers * rows * out_channels)


def decoder_layer(
    layer: str,
    *,
    num_layers: Size,
    num_channels: Size,
    widening_factor: Size,
    norm_bias: bool,
    input_bias: bool,
    output_bias: bool,
    mlp_bias: bool,
) -> tuple[Parameters, ...]:
    """Pre-LayerNorm attention and MLP: 4d² + 2wd² weights, two norms, and the biases asked for.

    Args:
        layer: The name that the entries carry.
        num_layers: How many equal layers.
        num_channels: d.
        widening_factor: w.
        norm_bias: Whether the norms have a shift.
        input_bias: Whether query, key and value projections have a bias.
        output_bias: Whether the attention's output projection has one.
        mlp_bias: Whether the MLP's linear layers have one.

    Returns:
        One entry per tensor, with its bias; scalars of all ``num_layers`` layers.

    """
    d, hidden_channels = num_channels, widening_factor * num_channels

    def projection(name: str, in_channels: Size, out_channels: Size, bias: bool) -> Parameters:
        return linear(
            layer,
            name,
            num_layers=num_layers,
            in_channels=in_channels,
            out_channels=out_channels,
            bias=bias,
        )

    return (
        norm(layer, "norm", num_layers=num_layers, num_channels=d, bias=norm_bias),
        projection("query", d, d, input_bias),
        projection("key", d, d, input_bias),
        projection("value", d, d, input_bias),
        projection("out", d, d, output_bias),
        norm(layer, "mlp norm", num_layers=num_layers, num_channels=d, bias=norm_bias),
        projection("mlp up", d, hidden_channels, mlp_bias),
        projection("mlp down", hidden_channels, d, mlp_bias),
    )
