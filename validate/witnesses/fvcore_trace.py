"""Witness: fvcore's trace of the real network's forward pass, module by module.

fvcore counts 1 per multiply-add. The reference path multiplies by ``matmul`` and ``linear`` alone,
which fvcore counts exactly from the operands' shapes, so no handle is given to it. LayerNorm has a
handle of fvcore's own, read apart here because it is no matrix product.
"""

from __future__ import annotations

import collections
import logging
from typing import TYPE_CHECKING

from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from validate.witnesses.networks import Term, build, term_of, tokens

if TYPE_CHECKING:
    from flopcount.architectures import Architecture

PRODUCTS = ("linear", "matmul", "addmm", "bmm")
NOT_PRODUCTS = ("layer_norm",)


def forward_modules(
    model: Architecture, *, training: bool = True, batch_size: int = 1
) -> tuple[dict[Term, dict[str, int]], int]:
    """FLOPs of one forward pass, by module under the counter's terms, and in total.

    Args:
        model: What to build and trace.
        training: With prefix dropout, or without.
        batch_size: Sequences.

    Returns:
        For each (layer, term) the FLOPs of every module that carries it, by the module's path; and
        fvcore's total over the whole network, read independently of the modules.

    Raises:
        ValueError: If fvcore counts an operator that is neither a product nor a norm, or a product
            in a module that stands for no term.
    """
    network = build(model, training=training)
    inputs = tokens(model, batch_size=batch_size)
    analysis = analyse(network, inputs)
    whole = total(analysis, PRODUCTS)
    terms: dict[Term, dict[str, int]] = collections.defaultdict(dict)
    children = {name for name, module in network.named_modules() if not list(module.children())}
    for name, counts in analysis.by_module_and_operator().items():
        multiply_adds = sum(counts[operator] for operator in PRODUCTS)
        if name in children and multiply_adds:
            terms[term_of(name, model)][name] = 2 * int(multiply_adds)
    return dict(terms), whole


def analyse(network: nn.Module, inputs: Tensor) -> FlopCountAnalysis:
    """Fvcore's analysis of a call, without its warnings of operators that are no products."""
    analysis = FlopCountAnalysis(network, inputs)
    analysis.unsupported_ops_warnings(enabled=False).uncalled_modules_warnings(enabled=False)
    analysis.tracer_warnings("none")
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    return analysis


def total(analysis: FlopCountAnalysis, products: tuple[str, ...]) -> int:
    """FLOPs of the ``products`` over the whole network.

    Raises:
        ValueError: If fvcore counts an operator that is neither one of them nor a norm.
    """
    by_operator = analysis.by_operator()
    unknown = set(by_operator) - set(products) - set(NOT_PRODUCTS)
    if unknown:
        raise ValueError(f"fvcore counts {sorted(unknown)}: expected {products + NOT_PRODUCTS}")
    return 2 * int(sum(by_operator[operator] for operator in products))
