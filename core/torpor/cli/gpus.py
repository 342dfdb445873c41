"""`--gpus` of a command that starts an engine: checked before anything is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.snapshots.gpu.choice import named_gpus, split_names
from torpor.snapshots.gpu.driver import look
from torpor.values.gpu_names import gpu_model, is_this_gpu

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.snapshots.gpu.placement import GpuPlace

__all__ = ["OPTION", "engine_gpus"]

OPTION = "--gpus"


def engine_gpus(text: str, deployment: Deployment) -> tuple[GpuPlace, ...]:
    """The GPUs for one engine, in the order in which it counts them.

    Args:
        text: the option's value; empty for none.
        deployment: what is started.

    Raises:
        ConfigurationError: there is no such GPU here, or they are not what the deployment needs.
    """
    if not text:
        return ()
    names = split_names(OPTION, text)
    if deployment.gpu is None:
        raise ConfigurationError(
            f"{OPTION} is {text}, and deployment {deployment.name!r} uses no GPU; leave {OPTION} out."
        )
    if len(names) != deployment.gpu_count:
        raise ConfigurationError(
            f"{OPTION} is {text}: {len(names)} named; deployment {deployment.name!r} uses {deployment.gpu_count} "
            f"(gpu={deployment.gpu!r}). Name as many."
        )
    places, wanted = named_gpus(OPTION, names, look()), gpu_model(deployment.gpu)
    if wrong := [str(one) for one in places if not is_this_gpu(wanted, one.name)]:
        raise ConfigurationError(
            f"{OPTION}: {' and '.join(wrong)} is no {wanted}, which deployment {deployment.name!r} needs; name another GPU."
        )
    return places
