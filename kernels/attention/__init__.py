"""Causal and prefix attention, forward and backward, for any head dim from 1 to 256.

Call :func:`causal_attention` and :func:`prefix_attention`; compare them with ``reference``. They
are loaded when first used: importing the package loads neither PyTorch nor Triton. From the outside
in:

- ``attention``: the two functions; they check their input and choose what to launch;
- ``reference``: the specification, in plain PyTorch;
- ``operators``: the launches as PyTorch operators, with fakes, gradients and FLOPs;
- ``flops``: the operators' FLOPs from shapes alone, level ``dense``;
- ``launches``: tensors in, tensors out, without autograd;
- ``preparation``: the pass before, which turns and pads, kernel and launch;
- ``forward``, ``backward``: the kernels, each with the tiles it visits and the products it issues;
- ``tiles``: pieces of kernels that both share;
- ``tilings``: how each kernel cuts its work, as plain data.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kernels.attention.attention import causal_attention, prefix_attention

__all__ = ["causal_attention", "prefix_attention"]


def __getattr__(name: str) -> object:
    """Load a public function when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kernels.attention import attention

    return getattr(attention, name)


def __dir__() -> list[str]:
    return sorted(globals().keys() | __all__)
