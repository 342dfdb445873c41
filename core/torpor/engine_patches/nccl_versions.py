"""Versions of NCCL: which one can suspend its communicators, and what to do about an older one.

Without a suspend the ranks of an engine go on sharing GPU memory. The driver then checkpoints them, and fails to restore them
(CUDA_ERROR_NOT_SUPPORTED, seen on two H200 with driver 580.159.04). So an older NCCL is refused before the capture.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LEAST_NCCL", "can_suspend", "nccl_of_code", "nccl_of_text", "nccl_text", "nccl_too_old", "too_old_text"]

LEAST_NCCL = (2, 29, 7)
"""The first version with `ncclCommSuspend` and `ncclCommResume` (nccl.h)."""

_TEXT = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def nccl_of_code(code: int) -> tuple[int, int, int]:
    """The version that a number of `ncclGetVersion` stands for: 23007 is 2.30.7 (nccl.h, `NCCL_VERSION`, since 2.9)."""
    return code // 10000, code % 10000 // 100, code % 100


def nccl_of_text(text: str) -> tuple[int, int, int] | None:
    """The version in a text such as `2.30.7`; None if there is none."""
    found = _TEXT.match(text.strip())
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def nccl_text(version: Iterable[int]) -> str:
    """A version as text, such as `2.30.7`."""
    return ".".join(map(str, version))


def can_suspend(version: tuple[int, int, int]) -> bool:
    """Whether this version can suspend a communicator."""
    return version >= LEAST_NCCL


def too_old_text(version: tuple[int, int, int]) -> str:
    """What is wrong with a version that cannot suspend, as one sentence."""
    return (
        f"NCCL {nccl_text(version)} is too old for a snapshot of several GPUs: only {nccl_text(LEAST_NCCL)} or newer can suspend "
        "its communicators, and a capture without that cannot be restored"
    )


def nccl_too_old(version: tuple[int, int, int]) -> str:
    """Why a version cannot suspend its communicators, with the cure; empty for a version that can."""
    if can_suspend(version):
        return ""
    return (
        f"{too_old_text(version)}. Take an engine whose torch brings a newer one (torch 2.13 and later for CUDA 13), or install "
        f"nvidia-nccl-cu13>={nccl_text(LEAST_NCCL)} (nvidia-nccl-cu12 for CUDA 12) over the image's own"
    )
