"""FLOPs of the attention operators from the shapes of their operands alone, level ``dense``.

``dense`` is what the plain-PyTorch specification executes: every product over the whole N × S
rectangle of scores, at the true head dim. What the kernels issue, whole tiles up to the diagonal
and padded channels, is another level.

Letters: B batch, N queries, S keys, prefix included, H query heads, C channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def forward_flops(out: Sequence[int], k: Sequence[int], prefix_k: Sequence[int] | None) -> int:
    """FLOPs of a forward pass: scores and values, 2·B·H·N·S·C each.

    Args:
        out: Shape of the output, (B, N, H, C).
        k: Shape of the keys, (B, S, G, …), or (B, S − K, G, …) with the prefix apart.
        prefix_k: Shape of the prefix's keys, (B, K, G, …), or None.

    >>> forward_flops((1, 3, 2, 73), (1, 3, 2, 80), (1, 4, 2, 80)) == 2 * 2 * 2 * 3 * 7 * 73
    True
    """
    batch, num_latents, num_heads, head_dim = out
    num_keys = k[1] + (0 if prefix_k is None else prefix_k[1])
    return 2 * 2 * batch * num_heads * num_latents * num_keys * head_dim


def backward_flops(
    grad_out: Sequence[int], k: Sequence[int], prefix_k: Sequence[int] | None
) -> int:
    """FLOPs of a backward pass: the gradients of both factors of both products.

    Recomputed scores are no part of ``dense``: the specification keeps its weights.
    """
    return 2 * forward_flops(grad_out, k, prefix_k)


def fvcore_handle(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of a forward pass, as fvcore counts them: half its FLOPs, level ``dense``.

    For fvcore, which counts nothing for an operator that it does not know::

        analysis = fvcore.nn.FlopCountAnalysis(network, inputs)
        analysis.set_op_handle("flopcount::attention", fvcore_handle)

    Args:
        inputs: The operator's, as torch.jit's values; their shapes are read, nothing else.
        outputs: Its results.
    """
    out, k, prefix_k = (
        value.type().sizes() if value.isCompleteTensor() else None
        for value in (outputs[0], inputs[1], inputs[3])
    )
    return forward_flops(out, k, prefix_k) // 2
