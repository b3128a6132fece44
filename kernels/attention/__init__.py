"""Causal and prefix attention, forward and backward, for any head dim from 1 to 256.

Call the two functions of ``attention``; compare them with ``reference``. From the outside in:

- ``attention``: the public functions; they check their input and choose what to launch;
- ``reference``: the specification, in plain PyTorch;
- ``operators``: the launches as PyTorch operators, with fakes, gradients and FLOPs;
- ``flops``: the operators' FLOPs from shapes alone, level ``dense``;
- ``launches``: tensors in, tensors out, without autograd;
- ``preparation``: the pass before, which turns and pads, kernel and launch;
- ``forward``, ``backward``: the kernels, each with the tiles it visits and the products it issues;
- ``tiles``: pieces of kernels that both share;
- ``tilings``: how each kernel cuts its work, as plain data.
"""
