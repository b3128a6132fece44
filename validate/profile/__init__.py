"""Anyone's Triton kernels, profiled without a GPU: ``python -m validate.profile``.

- ``report``: tables, and what changed since another profile;
- ``profiling``: a function is called, and its launches are executed, counted and checked;
- ``stand_in``: what takes the place of a GPU: devices' answers, tensors, autotuning.
"""
