"""The GPUs that a user names (`--gpus 0,1`): numbers in the driver's order, or UUIDs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.snapshots.gpu.driver import look
from torpor.snapshots.gpu.placement import GpuPlace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.snapshots.gpu.driver import Driver
    from torpor.snapshots.store.manifest import Manifest

__all__ = ["gpus_for_replicas", "named_gpus", "split_names"]

_LEAST_OF_UUID = 5
"""Characters of the shortest beginning of a UUID that is taken for one: `GPU-` and a digit, as CUDA_VISIBLE_DEVICES has it."""


def split_names(option: str, text: str) -> tuple[str, ...]:
    """The names in an option, without a look at this machine.

    Args:
        option: with its dashes, for messages.
        text: as given, e.g. `0,1`.

    Raises:
        ConfigurationError: one is neither a number nor the beginning of a UUID, or occurs twice.
    """
    names = tuple(word.strip() for word in text.split(","))
    for name in names:
        if not name.isdecimal() and not (name.startswith("GPU-") and len(name) >= _LEAST_OF_UUID):
            raise ConfigurationError(
                f"{option} is {text!r}, and {name!r} names no GPU; give numbers in the order of nvidia-smi or UUIDs, separated by "
                "commas: 0,1 or GPU-5f0e..."
            )
    plain = [str(int(name)) if name.isdecimal() else name for name in names]
    if twice := next((name for at, name in enumerate(plain) if name in plain[:at]), ""):
        raise ConfigurationError(f"{option} is {text!r}, which names GPU {twice} twice; name each GPU once.")
    return tuple(plain)


def named_gpus(option: str, names: Sequence[str], driver: Driver) -> tuple[GpuPlace, ...]:
    """The GPUs of this machine with these names, in their order.

    Args:
        option: with its dashes, for messages.
        names: from `split_names`.
        driver: from `torpor.snapshots.gpu.driver.look`.

    Raises:
        ConfigurationError: there is no such GPU, or one is named twice; the message lists those that there are.
    """
    places = [GpuPlace(at, gpu.uuid, gpu.name) for at, gpu in enumerate(driver.gpus)]
    found: list[GpuPlace] = []
    for name in names:
        fitting = [one for one in places if name == str(one.number) or one.uuid.startswith(name)]
        if len(fitting) != 1 or fitting[0] in found:
            problem = {0: "is not here", 1: "is named twice"}.get(len(fitting), "could be several")
            there = ", ".join(map(str, places)) or f"no GPU ({driver.against or 'the driver lists none'})"
            raise ConfigurationError(f"{option}: GPU {name} {problem}; this machine has {there}.")
        found += fitting
    return tuple(found)


def gpus_for_replicas(option: str, text: str, manifest: Manifest) -> tuple[GpuPlace, ...]:
    """The GPUs that replicas of a snapshot may take; it asks the driver.

    Args:
        option: with its dashes, for messages.
        text: the option's value.
        manifest: the snapshot's.

    Raises:
        ConfigurationError: there is no such GPU here, there are too few for one replica, or the snapshot uses none.
    """
    names = split_names(option, text)
    used = len(manifest.gpu.needed) if manifest.gpu else 0
    if manifest.gpu is None or not manifest.machine.gpus:
        raise ConfigurationError(f"{option} is {text}, and the snapshot uses no GPU; leave {option} out.")
    if len(names) < used:
        raise ConfigurationError(
            f"{option} is {text}: {len(names)} named, and one replica uses {used}. Name at least as many."
        )
    return named_gpus(option, names, look())
