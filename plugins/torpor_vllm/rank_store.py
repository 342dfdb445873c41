"""Gives each replica's workers a rendezvous file of their own."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from torpor.launcher import Patch, after_import
from torpor_vllm.versions import SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["PATCH"]

_MODULES = ("vllm.v1.executor.multiproc_executor", "vllm.v1.executor.uniproc_executor")
_FUNCTION = "get_file_store_init_method"
_PRIVATE = "/dev/shm"  # noqa: S108 - every sandbox has its own


def _private_file() -> str:
    return f"file://{_PRIVATE}/vllm_dist_{uuid.uuid4().hex}"


def _keep_private(executor: ModuleType) -> None:
    getattr(executor, _FUNCTION)  # a version without it has to be looked at again
    setattr(executor, _FUNCTION, _private_file)


def _apply() -> None:
    for module in _MODULES:
        after_import(module, _keep_private)


PATCH = Patch(
    name="rank-store",
    reason=(
        "vLLM's workers find each other through a file in /tmp, which is also their store of keys; all replicas of a snapshot "
        "would write to the same one, and read what others wrote. /dev/shm is each replica's own and part of the snapshot"
    ),
    versions=SUPPORTED_VERSIONS,
    applies=lambda: True,
    apply=_apply,
)
