"""A sum over all weights of a worker, to compare before a sleep and after a wake."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import torch

__all__ = ["weight_sum"]

_WORD = 8


class _Torch(Protocol):
    uint8: torch.dtype
    int64: torch.dtype

    def empty(self, size: int, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor: ...


def weight_sum(model: torch.nn.Module) -> str:
    """Sum the bytes of every parameter and buffer where they are, and hash the sums: 16 hex digits.

    Each block of memory is read once, as whole numbers of 8 bytes whose sum wraps around. Nothing is allocated. A block that came
    back empty, or in another's place, gives another sum.
    """
    library = cast("_Torch", sys.modules["torch"])
    digest, seen = hashlib.sha256(), set()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        storage = tensor.untyped_storage()
        if not storage.nbytes() or storage.data_ptr() in seen:
            continue
        seen.add(storage.data_ptr())
        block = library.empty(0, dtype=library.uint8, device=tensor.device).set_(storage)
        whole = block.numel() // _WORD * _WORD
        sums = block[:whole].view(library.int64).sum().item(), block[whole:].sum(dtype=library.int64).item()
        digest.update(f"{name} {block.numel()} {sums}\n".encode())
    return digest.hexdigest()[:16]
