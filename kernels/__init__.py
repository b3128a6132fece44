"""Fused Triton kernels, each in a folder of its own: specification, Triton files, PyTorch op.

Importing the package loads nothing. With the environment variable ``TRITON_INTERPRET=1``, set
before the first import, every kernel runs on CPU tensors in Triton's interpreter.
"""
