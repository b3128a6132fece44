"""What launches declare to Triton's profiler: FLOPs of the admitted pairs, bytes moved once."""

import inspect
import types

import pytest
import torch
from triton.runtime import interpreter

from kernels.attention import backward, forward, preparation
from kernels.attention.launches import launch_backward, launch_forward
from kernels.attention.reference import admitted_pairs
from kernels.attention.tilings import shipped_tiling

pytestmark = pytest.mark.interpreter

DECLARED = {
    "attention_forward": forward.declare_forward,
    "row_products": backward.declare_row_products,
    "attention_key_value_gradient": backward.declare_key_value_gradient,
    "attention_query_gradient": backward.declare_query_gradient,
    "prepare_rows": preparation.declare_preparation,
}


@pytest.fixture
def launches(monkeypatch):
    """Name and arguments of each launch."""
    found = []
    launch = interpreter.GridExecutor.__call__

    def recorded(self, *arguments, **options):
        given = {name: x for name, x in options.items() if name in self.arg_names}
        bound = inspect.signature(self.fn).bind(*arguments, **given)
        found.append((self.fn.__name__, bound.arguments))
        return launch(self, *arguments, **options)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", recorded)
    return found


def declared(launches):
    return [
        DECLARED[name](None, types.SimpleNamespace(name=name), arguments)
        for name, arguments in launches
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_every_launch(launches, dtype):
    # 2 sequences, 5 queries over 3 prefix positions, 4 heads in groups of 2; 9 channels stored in
    # 16, which are what is read and written but of the output and, in row_products, its gradient.
    batch, n, k, heads, key_heads, channels = 2, 5, 3, 4, 2, 9
    q = torch.zeros(batch, n, heads, 16, dtype=dtype)
    keys = torch.zeros(batch, n + k, key_heads, 16, dtype=dtype)
    out, lse = launch_forward(q, keys, keys, None, None, 1.0, channels)
    launch_backward(out, q, keys, keys, None, None, out, lse, 1.0, 3 * q.shape[-1:])
    size = dtype.itemsize
    width = f"flops{8 * size}"
    product = 2 * batch * heads * channels  # FLOPs of a product per admitted pair
    pairs = int(admitted_pairs(n, n + k).sum())
    square = int(admitted_pairs(n, n).sum())
    out_bytes = batch * n * heads * channels * size
    rows = batch * n * heads * 16 * size  # of q and its gradient, and of the output's as it is read
    latents, prefix = (batch * x * key_heads * 16 * size for x in (n, k))
    # A statistic of every row: of as many as are stored, and of the block that is read.
    statistic = batch * heads * 4
    keys_block, block = (
        shipped_tiling(name, channels, size, n + k).block_queries for name in ("key_value", "query")
    )
    assert declared(launches) == [
        # Reads q, k, v; writes out, log-sum-exp.
        {
            "name": "attention_forward",
            width: 2 * pairs * product,
            "bytes": rows + out_bytes + 2 * (latents + prefix) + lse.nbytes,
        },
        # Reads out, its gradient and log-sum-exp; writes that in base 2, and delta.
        {
            "name": "row_products",
            "flops32": batch * n * heads * 2 * channels,
            "bytes": 2 * out_bytes + lse.nbytes + 2 * 256 * statistic,
        },
        # Reads the output's gradient; writes it padded.
        {"name": "prepare_rows", "flops32": 0, "bytes": out_bytes + rows},
        # Reads q, the output's gradient, k, v, log-sum-exp, delta; writes two gradients.
        {
            "name": "attention_key_value_gradient",
            width: 4 * square * product,
            "bytes": 2 * rows + 4 * latents + 2 * keys_block * statistic,
        },
        {
            "name": "attention_key_value_gradient",
            width: 4 * n * k * product,
            "bytes": 2 * rows + 4 * prefix + 2 * keys_block * statistic,
        },
        # Reads the same; writes the gradient of q.
        {
            "name": "attention_query_gradient",
            width: 3 * pairs * product,
            "bytes": 3 * rows + 2 * (latents + prefix) + 2 * block * statistic,
        },
    ]


def test_every_kernel_declares_by_its_own_function(launches):
    # A decorated kernel keeps what it was decorated with.
    for kernel in (
        forward.attention_forward,
        backward.row_products,
        backward.attention_key_value_gradient,
        backward.attention_query_gradient,
        preparation.prepare_rows,
    ):
        assert kernel.kwargs["launch_metadata"] is DECLARED[kernel.fn.__name__]


def test_wide_heads_declare_each_launch(launches):
    # Values and keys have a launch each, and the scores that both multiply count once.
    n, k, channels = 3, 3, 200
    q, keys = torch.zeros(1, n, 1, 208), torch.zeros(1, n + k, 1, 208)
    out, lse = launch_forward(q, keys, keys, None, None, 1.0, channels)
    launch_backward(out, q, keys, keys, None, None, out, lse, 1.0, 3 * q.shape[-1:])
    found = [
        (arguments["GRADIENT"], arguments["CAUSAL"], work["flops32"], work["bytes"])
        for (name, arguments), work in zip(launches, declared(launches), strict=True)
        if name == "attention_key_value_gradient"
    ]
    two = 2 * 2 * channels  # FLOPs of two products per admitted pair
    square, prefix = 6 * two, 9 * two
    # Of n rows each, both read q, the output's gradient and log-sum-exp, and both read k and write
    # a gradient of its size; the keys' launch alone reads v and delta. Rows have 208 channels, and
    # statistics are read of a block of queries.
    row, statistic = 4 * 208, 4 * shipped_tiling("key_value", channels, 4, n + k).block_queries
    values, keys = 4 * n * row + statistic, 5 * n * row + 2 * statistic
    assert found == [
        ("v", True, square, values), ("k", True, square, keys),
        ("v", False, prefix, values), ("k", False, prefix, keys),
    ]  # fmt: skip
