"""What a computation really holds: tensor bytes alive, and tensors kept for the backward pass.

The CPU's stand-in for the CUDA allocator's counters: every tensor that an operation returns is
counted while its storage lives. What a kernel takes and gives back inside itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["TrackedMemory", "saved_bytes"]


class TrackedMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that are alive while the mode is on: `now`, and at most, `peak`.

    Tensors made before are counted from `watch` on. Storages are counted once, however many views
    they have, and until nothing refers to them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._alive: set[int] = set()

    def watch(self, *tensors: Tensor) -> None:
        """Count these tensors' storages as alive."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._alive:
                continue
            self._alive.add(key)
            weakref.finalize(storage, self._gone, key, storage.nbytes())
            self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def reset_peak(self) -> None:
        """Start the peak anew from what is alive."""
        self.peak = self.now

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count what it returns."""
        out = func(*args, **(kwargs or {}))
        self.watch(*(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)))
        return out


@contextmanager
def saved_bytes(*known: Tensor) -> Iterator[dict[tuple[int, ...], int]]:
    """Collect the storages that autograd keeps inside the block: shape of the tensor to bytes.

    Each storage counts once, under the shape in which it is first kept (with a running number in
    front); `known` ones (weights, inputs) do not count.
    """
    kept: dict[tuple[int, ...], int] = {}
    seen = {tensor.untyped_storage()._cdata for tensor in known}
    alive = []  # a storage that died could give its address to another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            alive.append(storage)
            kept[(len(kept), *tensor.shape)] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
