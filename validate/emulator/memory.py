"""Global memory as the tensors' own storages; shared and local memory as bytes."""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np

from validate.emulator.assembly import Instruction

Array = Any
"""A NumPy array."""
FIRST_ADDRESS, APART = 0x7F00_0000_0000, 1 << 20
"""Where the first storage lies, and bytes between storages at least, that are no one's."""
ALIGNMENT = 512
"""Of each storage, as the CUDA allocator's."""
RESERVED = 0x400
"""Bytes at the start of shared memory that are the system's, not the program's."""


class MachineError(RuntimeError):
    """An access that the hardware would refuse, or that would find other data than it should."""


class GlobalMemory:
    """Storages of tensors, each at an address of its own.

    Attributes:
        bases: Where each storage starts.
        bytes: What each holds.
    """

    def __init__(self) -> None:
        self.bases: list[int] = []
        self.bytes: list[Array] = []
        self._known: dict[int, int] = {}
        self._next = FIRST_ADDRESS

    def address(self, tensor: Any) -> int:
        """Where a tensor's first element lies; its storage is placed where it was not yet.

        Raises:
            ValueError: If the storage is not aligned as Triton was told that it is.
        """
        import torch

        storage = tensor.untyped_storage()
        start, size = storage.data_ptr(), storage.nbytes()
        if size == 0 or not tensor.numel():  # of which PyTorch may say that it lies at 0
            return FIRST_ADDRESS - ALIGNMENT
        if start % 16:
            raise ValueError(f"storages must start at multiples of 16 bytes, got {start:#x}")
        if start not in self._known:
            view = torch.empty(0, dtype=torch.uint8, device="cpu")
            self.bytes.append(view.set_(storage).numpy())
            self.bases.append(self._next)
            self._known[start] = self._next
            self._next += -(-size // ALIGNMENT) * ALIGNMENT + APART
        return self._known[start] + tensor.data_ptr() - start

    def places(
        self, at: Instruction, addresses: Array, mask: Array | None, size: int
    ) -> list[tuple[int, Array | None]]:
        """The storages that an access meets, each with the lanes that meet it."""
        active = addresses.ravel() if mask is None else addresses[mask]
        low, high = int(active.min()), int(active.max())
        if np.bitwise_or.reduce(active) & (size - 1):
            raise MachineError(f"misaligned global access of {size} bytes: {at}")
        i = bisect.bisect_right(self.bases, low) - 1
        if i >= 0 and high + size <= self.bases[i] + self.bytes[i].size:
            return [(i, mask)]
        parts, seen = [], 0
        for i, (base, held) in enumerate(zip(self.bases, self.bytes, strict=True)):
            # In signed numbers nothing wraps: addresses stay below 2⁶³.
            inside = (addresses >= base) & (addresses + np.uint64(size) <= base + held.size)
            if mask is not None:
                inside &= mask
            if hits := int(inside.sum()):
                seen += hits
                parts.append((i, inside))
        if seen != active.size:
            raise MachineError(
                f"global access outside of every tensor, {low:#x} to {high:#x}: {at}"
            )
        return parts

    def indices(self, i: int, addresses: Array, mask: Array | None, size: int) -> Array:
        """Each lane's place in a storage, in units of the access."""
        picked = addresses if mask is None else addresses[mask]
        return (picked - np.uint64(self.bases[i])).astype(np.int64) // size

    def units(self, i: int, size: int) -> Array:
        """A storage in units of an access: 8- or 16-bit numbers, or rows of 32-bit ones."""
        held = self.bytes[i]
        held = held[: held.size // size * size]
        return held.view(f"u{size}") if size < 4 else held.view(np.uint32).reshape(-1, size // 4)

    def load(self, at: Instruction, addresses: Array, mask: Array | None, size: int) -> Array:
        """Data of each lane, (warps, 32, words) or (warps, 32) of 8 or 16 bits; 0 where masked."""
        places = self.places(at, addresses, mask, size)
        if len(places) == 1 and places[0][1] is None:
            i = places[0][0]
            return self.units(i, size)[self.indices(i, addresses, None, size)]
        shape = addresses.shape if size < 4 else (*addresses.shape, size // 4)
        data = np.zeros(shape, f"u{min(size, 4)}")
        for i, lanes in places:
            data[lanes] = self.units(i, size)[self.indices(i, addresses, lanes, size)]
        return data

    def store(
        self, at: Instruction, addresses: Array, mask: Array | None, size: int, data: Array
    ) -> None:
        """Store each lane's data, shaped as :meth:`load` returns it."""
        for i, lanes in self.places(at, addresses, mask, size):
            picked = data if lanes is None else data[lanes]
            self.units(i, size)[self.indices(i, addresses, lanes, size)] = picked


class SharedMemory:
    """Shared memory of programs that run side by side, (programs, bytes).

    Each program's starts with what is the system's, where no access is right.
    """

    def __init__(self, programs: int, size: int) -> None:
        self.size = RESERVED + size
        self.row = -(-self.size // 128) * 128  # a multiple of what any access is aligned to
        self.bytes = np.full((programs, self.row), 0xDB, np.uint8)

    def offsets(
        self, at: Instruction, programs: Array, addresses: Array, mask: Array | None, size: int
    ) -> Array:
        """Index of each lane's data in units of ``size`` bytes; that of a valid one where masked.

        Raises:
            MachineError: If a lane's data lie outside of the program's bytes, or are not aligned.
        """
        active = addresses if mask is None else addresses[mask]
        low, high = int(active.min()), int(active.max())
        if np.bitwise_or.reduce(active, axis=None) & (size - 1):
            raise MachineError(f"misaligned shared access of {size} bytes: {at}")
        if low < RESERVED or high + size > self.size:
            raise MachineError(
                f"shared access outside of {RESERVED:#x} to {self.size:#x}, "
                f"{low:#x} to {high + size:#x}: {at}"
            )
        if mask is not None:
            addresses = np.where(mask, addresses, np.uint32(low))
        rows = programs.astype(np.int64) * (self.row // size)
        return rows.reshape(-1, *(1,) * (addresses.ndim - 1)) + addresses // np.uint32(size)

    def units(self, size: int) -> Array:
        """All programs' bytes in units of an access, as :meth:`offsets` counts them."""
        if size < 4:
            return self.bytes.view(f"u{size}").reshape(-1)
        return self.bytes.view(np.uint32).reshape(-1, size // 4)

    def rows16(self) -> Array:
        """(programs, units of 16 bytes): what matrix descriptors are read by."""
        return self.bytes.view(np.complex128)
