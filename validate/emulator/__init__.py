"""The kernels as ptxas assembles them for sm_90, executed on the CPU: no GPU needed.

From the outside in:

- ``report``: what a call executes, as tables: ``python -m validate.emulator``;
- ``shipped``: launches that are shipped, right, counted and safe: ``docs/emulator.csv``;
- ``drawn``: calls of any lengths, head dims and dtypes, judged alike: ``docs/emulator-drawn.csv``;
- ``cases``: attention as its users call it, forward and backward;
- ``launching``: Triton launches that compile and then run here, on the tensors they were given;
- ``counts``: what a run executed, named as the hardware's counters name it;
- ``safety``: what memory it touched that it must not touch, or not yet;
- ``machine``: warps, each with a program counter of its own, and what they wait for;
- ``operations``: what each instruction does; one that is not known is an error that names it;
  ``products`` of tensor cores, ``halves``, ``doubles`` and ``atomics`` apart, and ``comparisons``;
- ``decoding``: an instruction's operands and results;
- ``memory``: global memory as the tensors' own storages, shared and local memory as bytes;
- ``assembly``: the code as Triton's nvdisasm prints it, and the tables of the cubin.

Registers are NumPy arrays over the warps that stand at the same instruction, of all programs that
run side by side, and over their 32 lanes. Results are those of the machine up to three roundings
that NVIDIA does not document and that are taken to be exact: the order of sums in a tensor core,
special functions (rounded from fp64; hardware: an error of 1 to 2 in the last place), and a fused
multiply-add, rounded from fp64.
"""
