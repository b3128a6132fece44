"""The attention operators under PyTorch's tracers, counters, autocast and DDP."""

import datetime
import faulthandler

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.optests import OpCheckError
from torch.utils.flop_counter import FlopCounterMode

from kernels.attention import causal_attention, prefix_attention
from kernels.attention.flops import backward_flops, forward_flops
from kernels.attention.operators import attention, attention_backward
from kernels.attention.preparation import within
from kernels.attention.reference import reference_attention

pytestmark = pytest.mark.interpreter


def drawn(*shape, dtype=torch.float32, device="cpu"):
    return torch.randn(shape, dtype=dtype, device=device, requires_grad=True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("head_dim", [5, 16], ids=["padded", "in place"])
def test_forward_passes_opcheck(head_dim):
    q, k, v = (drawn(1, 3, heads, head_dim) for heads in (2, 1, 1))
    prefix_k, prefix_v = (drawn(1, 2, 1, head_dim) for _ in range(2))
    torch.library.opcheck(attention, (q, k, v, prefix_k, prefix_v, 0.3, head_dim))


def test_backward_passes_opcheck():
    q, k, v = (drawn(1, length, 2, 5).detach() for length in (3, 4, 4))
    out, lse, space = attention(q, k, v, None, None, 0.3, 5)
    kept = within(space, q, k, v, head_dim=5)
    grad = torch.randn(2, 3, 5, 1).permute(3, 1, 0, 2)
    assert [x.shape[-1] for x in kept] == [16, 16, 16]
    for channels in ([5, 5, 5], [5, 16, 5]):
        given = (grad, *kept, None, None, out, lse, 0.3, channels)
        torch.library.opcheck(attention_backward, given)
        assert [x.shape[-1] for x in attention_backward(*given)] == channels


def test_a_fake_of_a_wrong_shape_is_found():
    # What opcheck is there to find: an operator whose fake implementation promises another shape.
    @torch.library.custom_op("flopcount_test::doubled", mutates_args=())
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    doubled.register_fake(lambda x: x.new_empty(x.shape[0] + 1))
    with pytest.raises(OpCheckError):
        torch.library.opcheck(doubled, (torch.ones(2),))


@pytest.mark.parametrize(("backend", "dynamic"), [("eager", False), ("aot_eager", True)])
def test_compiles_without_a_graph_break(backend, dynamic):
    q, k, v = drawn(2, 5, 2, 8), drawn(2, 9, 2, 8), drawn(2, 9, 2, 8)

    def around(q, k, v):
        return 2 * prefix_attention(q.sin(), k, v)

    torch._dynamo.reset()
    compiled = torch.compile(around, fullgraph=True, backend=backend, dynamic=dynamic)
    plain, ours = around(q, k, v), compiled(q, k, v)
    assert torch.equal(plain, ours)
    for one, other in zip(
        torch.autograd.grad(plain.sum(), (q, k, v)),
        torch.autograd.grad(ours.sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_autocast_casts_operands():
    q, k, v = (drawn(1, 4, 2, 8) for _ in range(3))
    with torch.autocast("cpu", torch.float16):
        out = causal_attention(q, k.half(), v)
    assert out.dtype == torch.float16
    assert torch.equal(out, causal_attention(q.half(), k.half(), v.half()))
    out.sum().backward()
    assert q.grad.dtype == torch.float32
    with torch.autocast("cpu", torch.float16, enabled=False):
        assert causal_attention(q, k, v).dtype == torch.float32


# (batch, queries, prefix, heads, key-value heads, head dim), every size down to its smallest.
FLOP_SHAPES = [(1, 1, 0, 1, 1, 1), (2, 5, 3, 4, 2, 73), (3, 7, 0, 2, 1, 54), (1, 2, 9, 3, 3, 256)]


def counted(attend, *operands):
    with FlopCounterMode(display=False) as forward:
        out = attend(*operands)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("shape", FLOP_SHAPES, ids=str)
@pytest.mark.parametrize("apart", [False, True])
def test_declared_flops_are_those_of_the_specification(shape, apart):
    batch, queries, prefix, heads, key_heads, head_dim = shape

    def fresh(length, heads):
        return drawn(batch, length, heads, head_dim, device="meta")

    q, k, v = fresh(queries, heads), fresh(queries, key_heads), fresh(queries, key_heads)
    prefix_k, prefix_v = fresh(prefix, key_heads), fresh(prefix, key_heads)
    whole = [torch.cat(pair, dim=1) for pair in ((prefix_k, k), (prefix_v, v))]
    plain = counted(lambda *x: reference_attention(*x)[0], q, *whole)
    assert plain[0] > 0
    operands = (q, k, v, prefix_k, prefix_v) if apart else (q, *whole)
    assert counted(prefix_attention, *operands) == plain
    handle = (q.shape, k.shape, prefix_k.shape) if apart else (q.shape, whole[0].shape, None)
    assert (forward_flops(*handle), backward_flops(*handle)) == plain
    # Errors put in: the prefix's keys left out, or one query too many.
    if prefix:
        assert forward_flops(q.shape, k.shape, None) != plain[0]
    assert forward_flops((batch, queries + 1, *q.shape[2:]), *handle[1:]) != plain[0]


def half_a_batch(rank, folder):
    """One of two processes: a projection and the attention under DDP; saves its gradients."""
    faulthandler.dump_traceback_later(100, exit=True)  # where it waits, if it does
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    network, x = projection_and_batch()
    parallel = DistributedDataParallel(network)  # it reduces gradients as long as it lives
    attended(parallel, x[rank : rank + 1]).sum().backward()
    torch.save([parameter.grad for parameter in network.parameters()], f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def projection_and_batch():
    torch.manual_seed(0)
    return torch.nn.Linear(6, 3 * 6), torch.randn(2, 5, 6)


def attended(projection, x):
    return causal_attention(*projection(x).unflatten(-1, (3, 2, 3)).unbind(-3))


def test_gradients_under_ddp_are_those_of_one_process(tmp_path):
    """Of two tries, since gloo's processes have waited for each other on a busy machine."""
    try:
        torch.multiprocessing.spawn(half_a_batch, (str(tmp_path),), nprocs=2)
    except torch.multiprocessing.ProcessExitedException as error:
        print(f"once more, since {error}; where it waited stands above")
        (tmp_path / "store").unlink(missing_ok=True)
        torch.multiprocessing.spawn(half_a_batch, (str(tmp_path),), nprocs=2)
    network, x = projection_and_batch()
    (attended(network, x).sum() / 2).backward()
    alone = [parameter.grad for parameter in network.parameters()]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first, alone)
    assert all(map(torch.equal, first, second))
