"""The memory that all replicas together may take, and whether everything fits in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.platforms.local.serve.kept_sizes import sizes_folder
from torpor.serving.sizes import Budget, Room, Size, Taken
from torpor.snapshots.gpu.claims import claimed
from torpor.snapshots.gpu.driver import look

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.platforms.local.serve.configuration import BudgetTable
    from torpor.serving.terms import Terms

__all__ = ["budget_of", "check_pinned"]

_MIB = 1 << 20
_MEMORY_SHARE = 0.9


def budget_of(table: BudgetTable, *, needs_gpus: bool) -> Budget:
    """What the user allows; by default 90 % of the host's memory, and every GPU's.

    Of a GPU that another command has, only what is free.

    Args:
        table: of the configuration.
        needs_gpus: whether a deployment has one.

    Raises:
        ConfigurationError: this machine has less.
    """
    host = table.memory if table.memory is not None else int(_host_memory() * _MEMORY_SHARE)
    uses = look().uses if needs_gpus or table.gpu_memory is not None else ()
    gpus, wanted = tuple(use.gpu.memory_mib * _MIB for use in uses), table.gpu_memory
    if wanted is None:
        others = claimed() if uses else {}
        free = (
            min(use.free_bytes, size) if use.gpu.uuid in others else size for use, size in zip(uses, gpus, strict=True)
        )
        return Budget(host, tuple(free))
    sizes = wanted if isinstance(wanted, tuple) else (wanted,) * len(gpus)
    if len(sizes) != len(gpus):
        raise ConfigurationError(
            f"[budget] gpu_memory lists {len(sizes)} sizes, and this machine has {len(gpus)} GPUs."
        )
    for number, (size, most) in enumerate(zip(sizes, gpus, strict=True)):
        if size > most:
            raise ConfigurationError(f"[budget] gpu_memory is {_gb(size)} for GPU {number}, which has {_gb(most)}.")
    return Budget(host, sizes)


def _host_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def check_pinned(budget: Budget, deployments: Sequence[tuple[Terms, Size | None]]) -> None:
    """Refuse what cannot fit, as far as sizes are known: what is pinned together, and everything else beside it.

    Args:
        budget: all there is.
        deployments: terms, and the size as far as it is known.

    Raises:
        ConfigurationError: names the deployment and its size.
    """
    room = Room(budget)
    for terms, estimate in deployments:
        for _ in range(max(1, terms.least) if terms.pinned else 0):
            size = terms.size or estimate
            if size is None:
                continue
            cards = room.place(size)
            if cards is None:
                raise ConfigurationError(_too_large(terms, size, budget, "beside the other pinned ones"))
            room.take(Taken.of(size, cards))
    for terms, estimate in deployments:
        size = terms.size or estimate
        if not terms.pinned and size is not None and room.place(size) is None:
            raise ConfigurationError(_too_large(terms, size, budget, "beside what is pinned"))
        if terms.gpu_count > len(budget.gpus):
            raise ConfigurationError(
                f"{terms.name!r} needs {terms.gpu_count} GPUs, and the budget has {len(budget.gpus)}."
            )


def _too_large(terms: Terms, size: Size, budget: Budget, beside: str) -> str:
    gpus = f", {', '.join(map(_gb, size.gpus))} of GPU memory" if size.gpus else ""
    has = f"{_gb(budget.host) if budget.host is not None else 'any'} of host memory"
    has += f", {', '.join(map(_gb, budget.gpus))} on its GPUs" if budget.gpus else ""
    return (
        f"{terms.name!r} takes {_gb(size.host)} of host memory{gpus}; that does not fit {beside}. The budget has {has}. Raise the "
        f"budget, pin less, or serve it elsewhere. (Measured sizes are in {sizes_folder()}; one that is removed is measured again.)"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
