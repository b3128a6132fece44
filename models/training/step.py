"""One optimiser step: a batch in, a loss out. How it is executed is a configuration of its own.

Options of :class:`Execution` change speed and memory, and results by no more than rounding. On a
CPU the defaults are plain single-precision PyTorch.

Letters: B batch, M prefix tokens, K of them kept, N latents.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from models.limits import AtLeastOne, AtLeastZero, check_fields
from models.networks.decoder import Decoder
from models.networks.perceiver_ar import PerceiverAR
from models.training.distributed import ALONE, Parallel, Processes, layers, parallelize, whole

POSITIONS = 1024
"""Whose logits a chunked loss without a gradient holds at a time."""


@dataclass(frozen=True)
class Execution:
    """How a step is executed.

    Attributes:
        attention: ``fused`` for the kernels, ``reference`` for plain PyTorch, or ``auto`` for the
            kernels on a GPU and plain PyTorch elsewhere; ``environment.json`` records which ran.
        micro_batches: Parts that a batch is computed in, one after another, to save memory.
        checkpointing: ``reentrant`` or ``non-reentrant``: recompute each layer's activations in
            the backward pass, to save memory.
        loss: ``whole`` makes all logits at once; ``chunked`` never does, for large vocabularies.
            In bf16 its training loss is rounded to three digits, its validation loss is not.
        dtype: Of matrix products: ``bf16`` by autocast, ``fp32``, or ``auto`` for bf16 on a GPU
            and fp32 on a CPU. Parameters and optimiser stay fp32.
        tf32: Whether fp32 products may round their inputs to TF32 on a GPU.
        compile: Mode of ``torch.compile``; ``reduce-overhead`` and ``max-autotune`` use CUDA
            graphs.
        fused_optimizer: Adam's fused kernel.
        prefetch: Batches made ahead by a thread; by default 2 for a GPU and none for a CPU.
        parallel: How ``torchrun``'s processes share a model: ``ddp`` or ``fsdp2``.

    """

    attention: Literal["auto", "reference", "fused"] = "auto"
    micro_batches: AtLeastOne = 1
    checkpointing: Literal["reentrant", "non-reentrant"] | None = None
    loss: Literal["whole", "chunked"] = "whole"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    tf32: bool = False
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    fused_optimizer: bool = True
    prefetch: AtLeastZero | None = None
    parallel: Parallel = "ddp"

    def resolve_attention(self, device: torch.device) -> str:
        """Give the device's attention, a key of :data:`models.networks.blocks.ATTENTION`.

        Raises:
            ValueError: If the kernels are asked for and cannot run there in this dtype.

        >>> [Execution().resolve_attention(torch.device(name)) for name in ("cpu", "cuda")]
        ['reference', 'fused']
        """
        if self.attention == "auto":
            return "fused" if device.type == "cuda" else "reference"
        if self.attention == "fused":
            from kernels.attention.launches import unsupported

            dtype = self.resolve_dtype(device)
            if reason := unsupported(
                device, {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
            ):
                raise ValueError(
                    f"attention 'fused' cannot run in {dtype} on {device}: {reason}, "
                    "or attention 'reference'"
                )
        return self.attention

    def resolve_dtype(self, device: torch.device) -> Literal["fp32", "bf16"]:
        """Give the dtype of matrix products on a device.

        >>> Execution().resolve_dtype(torch.device("cpu"))
        'fp32'
        """
        if self.dtype == "auto":
            return "bf16" if device.type == "cuda" else "fp32"
        return self.dtype

    def peak_dtype(self, device: torch.device) -> str:
        """Name the peak rate that matrix products on a device are held against."""
        dtype = self.resolve_dtype(device)
        return "tf32" if dtype == "fp32" and self.tf32 and device.type == "cuda" else dtype

    def resolve_prefetch(self, device: torch.device) -> int:
        """Give the number of batches to make ahead for a device."""
        if self.prefetch is None:
            return 2 if device.type == "cuda" else 0
        return self.prefetch

    def require_divides(self, batch_size: int, processes: Processes) -> None:
        """Raise ValueError unless processes and micro-batches share a batch equally.

        Equal parts keep every shape static, and make means of means the mean.
        """
        check_fields(self)
        if batch_size % (processes.count * self.micro_batches):
            raise ValueError(
                f"batch_size must be a multiple of processes · micro_batches = "
                f"{processes.count} · {self.micro_batches}, got {batch_size}"
            )


class NextTokenLoss(nn.Module):
    """A network and the mean cross-entropy of its predictions, in nats per token.

    Args:
        model: The network.
        chunked: Never hold all logits: the output layer, its loss and their gradients are computed
            for some positions at a time, by PyTorch's ``linear_cross_entropy``. Gradients come with
            the forward pass, so nothing is computed twice and the FLOPs are the same.
        bf16: Whether products are in bfloat16, by autocast.

    Raises:
        ValueError: If ``chunked`` is asked of a PyTorch that cannot.

    """

    def __init__(self, model: PerceiverAR | Decoder, chunked: bool, bf16: bool) -> None:
        super().__init__()
        if chunked and not hasattr(functional, "linear_cross_entropy"):
            raise ValueError(f"loss 'chunked' needs torch 2.13 or later, got {torch.__version__}")
        self.model, self.chunked, self.bf16 = model, chunked, bf16

    def forward(self, inputs: Tensor, targets: Tensor, kept: Tensor | None = None) -> Tensor:
        """Inputs (B, M + N), targets (B, N), kept prefix positions (B, K) -> scalar."""
        output = self.model.output
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bf16):
            arguments = {} if kept is None else {"kept": kept}
            hidden = self.model.hidden(inputs, **arguments).flatten(0, 1)  # (B · N, D)
            if not self.chunked:
                return functional.cross_entropy(output(hidden).float(), targets.flatten())
            if not torch.is_grad_enabled():
                parts = zip(
                    hidden.split(POSITIONS), targets.flatten().split(POSITIONS), strict=True
                )
                sums = [
                    functional.cross_entropy(output(h).float(), t, reduction="sum")
                    for h, t in parts
                ]
                return torch.stack(sums).sum() / targets.numel()
            # Autocast does not know the fused function; it rounds the loss to its operands' dtype.
            dtype = torch.bfloat16 if self.bf16 else hidden.dtype
            return functional.linear_cross_entropy(
                hidden.to(dtype),
                output.weight.to(dtype),
                targets.flatten(),
                linear_bias=None if output.bias is None else output.bias.to(dtype),
                options=nn.LinearCrossEntropyOptions(),
            ).float()


class TrainStep:
    """A model, its optimiser, and the step that both take together.

    Args:
        model: The network, on its device. Its parameters are sharded in place with ``fsdp2``.
        execution: How.
        gradient_clip: Largest norm of the gradient.
        processes: That share each batch.

    Raises:
        ValueError: If the execution is not possible here.

    >>> model = PerceiverAR(vocab_size=9, num_latents=4, num_prefix=2, num_channels=8,
    ...                     num_layers=1, num_heads=2)
    >>> step = TrainStep(model, Execution(micro_batches=2), gradient_clip=0.5)
    >>> tokens = torch.zeros(2, 7, dtype=torch.long)
    >>> loss, norm = step(tokens[:, :6], tokens[:, 3:], learning_rate=1e-3)
    >>> loss.shape, norm.shape
    (torch.Size([]), torch.Size([]))
    """

    def __init__(
        self,
        model: PerceiverAR | Decoder,
        execution: Execution,
        gradient_clip: float,
        processes: Processes = ALONE,
    ) -> None:
        device = next(model.parameters()).device
        self.model, self.execution, self.processes = model, execution, processes
        self.gradient_clip = gradient_clip
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if execution.tf32 else "highest")
        bf16 = execution.resolve_dtype(device) == "bf16"
        self.loss = NextTokenLoss(model, execution.loss == "chunked", bf16)
        sharded = execution.parallel == "fsdp2" and processes.count > 1
        compiling = execution.compile != "off"
        if compiling and sharded:  # what FSDP2 does between layers stays outside the graphs
            for layer in layers(model):
                layer.compile(mode=execution.compile, dynamic=False)
        self._parallel = parallelize(self.loss, execution.parallel, processes)
        self._training_loss = self._parallel
        if compiling and not sharded:
            self._training_loss = torch.compile(
                self._parallel, mode=execution.compile, dynamic=False
            )
        self.optimizer = torch.optim.Adam(model.parameters(), fused=execution.fused_optimizer)

    def __call__(
        self, inputs: Tensor, targets: Tensor, learning_rate: float
    ) -> tuple[Tensor, Tensor]:
        """Take one step on this process's share of a batch.

        Args:
            inputs: Token ids, (B, M + N).
            targets: Token ids, (B, N).
            learning_rate: Of this step.

        Returns:
            The share's mean loss, and the norm of the whole batch's gradient before clipping.
        """
        self.optimizer.param_groups[0]["lr"] = learning_rate
        loss = self.backward(inputs, targets)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._uses_cuda_graphs())
        return loss, whole(norm)

    def backward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Leave the gradient of the mean loss in the parameters; return the share's mean loss."""
        parts = self.execution.micro_batches
        kept = self._draw_kept(inputs)
        batches = zip(
            inputs.chunk(parts),
            targets.chunk(parts),
            [None] * parts if kept is None else kept.chunk(parts),
            strict=True,
        )
        total = torch.zeros((), device=inputs.device)
        for index, batch in enumerate(batches):
            if self._uses_cuda_graphs():
                torch.compiler.cudagraph_mark_step_begin()
            with self._gradient_exchange(last=index == parts - 1):
                loss = self._training_loss(*batch)
                (loss / parts).backward()
            total = total + loss.detach()
        return total / parts

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in evaluation mode, nothing dropped, not compiled."""
        self.model.eval()
        loss = self.loss(inputs, targets)
        self.model.train()
        return loss

    def _draw_kept(self, inputs: Tensor) -> Tensor | None:
        """Draw for the whole batch, in every process alike, and take this one's share."""
        if getattr(self.model, "num_kept", None) is None:
            return None
        batch_size = len(inputs) * self.processes.count
        prefix = inputs[:1, : self.model.num_prefix].expand(batch_size, -1)
        return self.model.draw_kept(prefix)[self.processes.share(batch_size)]

    def _gradient_exchange(self, last: bool):
        # FSDP2 reduces every micro-batch: to keep whole gradients would cost the memory it saves.
        if isinstance(self._parallel, DistributedDataParallel) and not last:
            return self._parallel.no_sync()
        return nullcontext()

    def _uses_cuda_graphs(self) -> bool:
        """Whether gradients must keep their place: a replay reuses what a graph returned."""
        return self.execution.compile in ("reduce-overhead", "max-autotune")
