"""`RayOptions`: settings of a deployment that only Ray has.

    Deployment(..., ray=RayOptions(cpus=8, memory_mib=65_536))

The module does not import ray.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from torpor.errors import ConfigurationError
from torpor.values.field_types import check_types, shown

__all__ = ["RayOptions"]

_MOST_CPUS = 4096
_MOST_MEMORY_MIB = 64 << 20
_KIND = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """What a replica needs of its Ray node. Nothing here changes what runs elsewhere.

    Ray uses these numbers to choose a node, and limits no process by them. Give them, and Ray puts no more replicas on a node
    than it has room for.

    Attributes:
        cpus: cores that a replica takes of its node's.
        memory_mib: memory that a replica takes of its node's, MiB; None if memory does not matter for the choice.
        accelerator_type: Ray's name of the kind of GPU, where it differs from what Torpor finds for `Deployment.gpu`;
            `ray status -v` shows it as `accelerator_type:NAME`.
    """

    cpus: float = 1.0
    memory_mib: int | None = None
    accelerator_type: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.cpus <= _MOST_CPUS:
            raise ConfigurationError(
                f"RayOptions.cpus is {self.cpus:g} cores; allowed are more than 0, and at most {_MOST_CPUS}."
            )
        if self.memory_mib is not None and not 0 < self.memory_mib <= _MOST_MEMORY_MIB:
            raise ConfigurationError(
                f"RayOptions.memory_mib is {self.memory_mib} MiB; allowed are 1 to {_MOST_MEMORY_MIB}, or None."
            )
        if self.accelerator_type is not None and not _KIND.fullmatch(self.accelerator_type):
            raise ConfigurationError(
                f"RayOptions.accelerator_type is {shown(self.accelerator_type)}; write it as `ray status -v` shows it behind "
                "`accelerator_type:`, e.g. 'H100'."
            )

    def check_gpu(self, gpu: str | None) -> None:
        """Refuse a kind of GPU for a deployment without one.

        Raises:
            ConfigurationError: says what to change.
        """
        if self.accelerator_type is not None and gpu is None:
            raise ConfigurationError(
                f"RayOptions.accelerator_type is {self.accelerator_type!r}, and Deployment.gpu is None; give the GPU, or leave "
                "accelerator_type out."
            )

    def changed(self) -> dict[str, object]:
        """What differs from the defaults, for a plan."""
        return {
            item.name: value for item in dataclasses.fields(self) if (value := getattr(self, item.name)) != item.default
        }
