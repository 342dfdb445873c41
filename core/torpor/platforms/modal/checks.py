"""Checks a deployment for Modal when its app file is imported, before anything is built."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.plugin_checks import command_asks, tell_warnings
from torpor.telemetry.events import log
from torpor.values.gpu_names import MODAL, gpu_model

if TYPE_CHECKING:
    from torpor.deployment import Deployment

__all__ = ["check_for_modal", "gpu_refusal", "several_gpus_refusal"]

_MOST_GPUS = {"A10": 4, "A10G": 4}
_MOST = 8


def check_for_modal(deployment: Deployment) -> None:
    """Refuse what Modal would refuse after a build, and what a plugin's check finds to be an error; log its warnings.

    Does nothing while one of Torpor's commands imports the app: the command checks by itself, and may be `torpor up` on a
    machine with other GPUs.

    Raises:
        ConfigurationError: says what to change.
    """
    if command_asks():
        return
    if refusal := gpu_refusal(deployment):
        raise ConfigurationError(refusal)
    tell_warnings(deployment)
    if limit := several_gpus_refusal(deployment):  # Modal's word, which may change: it decides itself
        _warn_once(deployment.name, limit)


@functools.cache
def _warn_once(name: str, limit: str) -> None:
    """An app file asks several times: for its class, its concurrency and its volumes."""
    log("warning", "several_gpus_on_modal", deployment=name, reason=limit)


def gpu_refusal(deployment: Deployment) -> str:
    """Why Modal cannot give the deployment its GPUs; empty if it can."""
    name = gpu_model(deployment.gpu).upper()
    if name and name not in MODAL:
        return (
            f"Deployment.gpu is {deployment.gpu!r}, which Modal does not have; it has {', '.join(MODAL)}. Name one of them, or run "
            "the app on a machine of your own (`torpor up`)."
        )
    if deployment.gpu_count > _MOST_GPUS.get(name, _MOST):
        return f"Deployment.gpu is {deployment.gpu!r}; Modal gives a container at most {_MOST_GPUS.get(name, _MOST)} of {name}."
    return ""


def several_gpus_refusal(deployment: Deployment) -> str:
    """Why Modal cannot put the deployment's GPUs into one snapshot; empty if it can."""
    if not deployment.gpu_snapshot or deployment.gpu_count == 1:
        return ""
    return (
        f"{deployment.gpu_count} GPUs would go into one snapshot ({deployment.gpu}). Modal's GPU snapshots are an alpha feature, "
        "and not for several GPUs (modal.com/docs/guide/memory-snapshots, as of November 2026)"
    )
