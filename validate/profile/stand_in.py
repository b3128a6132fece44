"""What takes the place of a GPU: tensors stay on the CPU, and the device answers as an H100."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from validate.witnesses.compiled_code import SHARED_MEMORY, _HopperWithoutDevice

NAME = "NVIDIA H100 80GB HBM3"
DRIVER_PROPERTIES = {
    "max_shared_mem": SHARED_MEMORY,
    "max_num_regs": 65_536,
    "multiprocessor_count": 132,
    "warpSize": 32,
    "sm_clock_rate": 1_980_000,
    "mem_clock_rate": 2_619_000,
    "mem_bus_width": 5_120,
}
"""What Triton's driver says of an H100 SXM; clocks in kHz."""
TORCH_PROPERTIES = dict(
    name=NAME,
    major=9,
    minor=0,
    total_memory=80 * 2**30,
    multi_processor_count=132,
    max_threads_per_multi_processor=2_048,
    regs_per_multiprocessor=65_536,
    shared_memory_per_block=48 * 1_024,
    shared_memory_per_block_optin=SHARED_MEMORY,
    shared_memory_per_multiprocessor=228 * 1_024,
    L2_cache_size=50 * 2**20,
    warp_size=32,
)
"""What ``torch.cuda.get_device_properties`` says of it."""


class HopperStandIn(_HopperWithoutDevice):
    """A Triton driver that answers as that of an H100, for tensors of the CPU."""

    utils = types.SimpleNamespace(get_device_properties=lambda device: dict(DRIVER_PROPERTIES))

    def get_active_torch_device(self) -> torch.device:
        """Where tensors lie."""
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        """What answers for the device."""
        return torch.cuda


ANSWERS: list[tuple[Any, Any]] = [
    (torch.Tensor.device.__get__, torch.device("cuda", 0)),  # type: ignore[attr-defined]
    (torch.Tensor.is_cuda.__get__, True),  # type: ignore[attr-defined]
    (torch.Tensor.is_cpu.__get__, False),  # type: ignore[attr-defined]
    (torch.Tensor.get_device, 0),
]
"""What a tensor of the CPU says of where it lies."""


class OnCpu(TorchFunctionMode):
    """Calls that ask for a GPU get the CPU, and tensors say that they are on a GPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call with the CPU in place of every CUDA device."""
        for asked, answer in ANSWERS:
            if func == asked and args[0].device.type == "cpu":
                return answer
        if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        given = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        return func(*map(_on_cpu, args), **given)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    is_name = isinstance(value, str) and value.partition(":")[0] == "cuda"
    return "cpu" if is_name else value


def chosen(kernel: str, configs: list[Any], wanted: Mapping[str, str]) -> Any:
    """The first configuration of an autotuned kernel that has these values.

    Raises:
        ValueError: If no configuration has them.
    """
    for config in configs:
        values = config.all_kwargs()
        if all(str(values.get(name)) == value for name, value in wanted.items()):
            return config
    raise ValueError(
        f"configuration {kernel}:{','.join('='.join(pair) for pair in wanted.items())}: expected "
        f"values of one of {'; '.join(map(str, configs))}"
    )


@contextlib.contextmanager
def standing_in(
    configurations: Mapping[str, Mapping[str, str]], taken: dict[str, str]
) -> Iterator[None]:
    """Let there be an H100, as far as queries go, and let autotuned kernels not be timed.

    Args:
        configurations: Of an autotuned kernel, values of the configuration to take.
        taken: Is told which one each autotuned kernel took.
    """
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.driver import driver

    prune, run = Autotuner.prune_configs, Autotuner.run

    def named(self: Any) -> list[Any]:
        kernel = self.base_fn.__name__
        wanted = configurations.get(kernel)
        return [chosen(kernel, self.configs, wanted)] if wanted else []

    def one(self: Any, kwargs: dict[str, Any]) -> list[Any]:
        return named(self) or prune(self, kwargs)[:1]

    def run_one(self: Any, *args: Any, **kwargs: Any) -> Any:
        named(self)  # of a kernel with one configuration, too, which is not pruned
        self.cache.clear()
        returned = run(self, *args, **kwargs)
        taken[self.base_fn.__name__] = str(self.best_config)
        return returned

    def uncached(self: Any, key: Any, configs: Any, bench: Any) -> bool:
        bench()
        return False

    engine = torch.autograd._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        with OnCpu():  # which is not asked within a call that it is asked about, as backward is
            return engine(*args, **kwargs)

    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: types.SimpleNamespace(**TORCH_PROPERTIES),
        "current_stream": lambda device=None: types.SimpleNamespace(cuda_stream=0),
        "device": contextlib.nullcontext,
        "device_of": contextlib.nullcontext,
        "stream": contextlib.nullcontext,
        "is_bf16_supported": lambda including_emulation=True: True,
    }
    driver.set_active(HopperStandIn())
    with (
        mock.patch.multiple(torch.cuda, **answers),
        mock.patch.object(torch.autograd, "_engine_run_backward", backward),
        mock.patch.object(Autotuner, "run", run_one),
        mock.patch.object(Autotuner, "prune_configs", one),
        mock.patch.object(Autotuner, "_bench", return_value=[0.0]),
        mock.patch.object(Autotuner, "check_disk_cache", uncached),
        OnCpu(),
    ):
        yield
