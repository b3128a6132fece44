"""Anyone's Triton kernels, profiled without a GPU: ``python -m validate.profile``.

- ``report``: tables, and what changed since another profile;
- ``profiling``: a function is called, and its launches are executed, counted and checked;
- ``timing``: a model's time of a launch, not a measured one;
- ``multiprocessor``: one multiprocessor, event by event;
- ``scheduling``: instructions as ptxas scheduled them, and every latency that is guessed;
- ``traces``: which instructions each warp executed;
- ``stand_in``: what takes the place of a GPU: devices' answers, tensors, autotuning.
"""
