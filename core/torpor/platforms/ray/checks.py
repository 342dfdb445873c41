"""What Ray Serve cannot do for a deployment: refused, or told where it does no harm. Values alone are read; Ray is not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.platforms.ray.gpu_kinds import MANUAL_KINDS, accelerator_type
from torpor.values.addresses import LOOPBACK
from torpor.values.field_types import shown
from torpor.values.findings import Finding
from torpor.values.gpu_names import gpu_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.deployment import Deployment

__all__ = ["check_for_ray", "ray_findings"]

_LABEL_VALUE = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?", re.ASCII)
_USUAL_RESTARTS = 5


def check_for_ray(deployment: Deployment) -> tuple[Finding, ...]:
    """The warnings about a deployment on Ray.

    Raises:
        ConfigurationError: Ray Serve has no counterpart to something that the deployment asks for; every case is listed.
    """
    findings = ray_findings(deployment)
    if errors := [finding for finding in findings if finding.level == "error"]:
        listed = " ".join(f"{finding.what}: {finding.seen}; {finding.cure}." for finding in errors)
        raise ConfigurationError(f"Deployment {deployment.name!r} cannot run on Ray as it is. {listed}")
    return findings


def ray_findings(deployment: Deployment) -> tuple[Finding, ...]:
    """Everything that is refused (`error`) or different (`warning`) on Ray, with what to change."""
    return (*_of_scaling(deployment), *_of_place(deployment), *_of_start(deployment), *_of_modal(deployment))


def _of_scaling(deployment: Deployment) -> Iterator[Finding]:
    scaling = deployment.scaling
    if scaling.max_containers is None:
        yield _warning(
            "Scaling.max_containers",
            "is not given, and Ray Serve wants a number: 100, or min_containers if that is more",
            "set it to what the cluster has room for",
        )


def _of_place(deployment: Deployment) -> Iterator[Finding]:
    if deployment.region is not None and not _LABEL_VALUE.fullmatch(deployment.region):
        yield _error(
            "Deployment.region",
            f"{shown(deployment.region)} cannot be the value of a node's label ray.io/availability-region",
            "use 1 to 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
        )
    named = deployment.ray.accelerator_type if deployment.ray else None
    kind = named or accelerator_type(deployment.gpu)
    if not named and gpu_model(deployment.gpu).endswith("+"):
        yield _error(
            "Deployment.gpu",
            f"{deployment.gpu!r} is this kind of GPU or a better one, and a Ray node has one kind",
            f"name one, e.g. {gpu_model(deployment.gpu).rstrip('+')!r}, or set RayOptions.accelerator_type",
        )
    elif kind in MANUAL_KINDS:
        yield _warning(
            "Deployment.gpu",
            f"Ray does not find out which A100 a node has, so {kind} is offered by no node by itself",
            f"start these nodes with --resources='{{\"accelerator_type:{kind}\": 1}}'; a manifest for Kubernetes has it",
        )
    elif deployment.unlisted_gpu and not named and kind is not None:
        yield _warning(
            "Deployment.gpu",
            f"{deployment.gpu!r} is not listed, so {kind} is a guess at what Ray calls it",
            "compare with accelerator_type:... in the output of `ray status -v`, and set RayOptions.accelerator_type",
        )
    if deployment.host != LOOPBACK:
        yield _warning(
            "Deployment.host",
            f"{deployment.host} is not used: only its replica reaches an engine",
            "set Serve's http_options.host, where requests come in",
        )


def _of_start(deployment: Deployment) -> Iterator[Finding]:
    if not deployment.snapshot:
        yield _warning(
            "Deployment.snapshot",
            "is False, so every replica starts cold, also from zero",
            "set snapshot=True, or Scaling.min_containers=1",
        )
    if deployment.max_restarts != _USUAL_RESTARTS:
        yield _warning(
            "Deployment.max_restarts",
            f"{deployment.max_restarts} is not used: Ray Serve replaces a replica whose engine ended, without a limit",
            "leave it out",
        )


def _of_modal(deployment: Deployment) -> Iterator[Finding]:
    if deployment.modal is not None and deployment.modal.requires_proxy_auth:
        yield _warning(
            "ModalOptions.requires_proxy_auth",
            "protects the server on Modal alone, and Ray Serve lets every request in",
            "give the engine plugin api_key_sha256",
        )


def _error(what: str, seen: str, cure: str) -> Finding:
    return Finding(level="error", what=what, seen=seen, cure=cure)


def _warning(what: str, seen: str, cure: str) -> Finding:
    return Finding(level="warning", what=what, seen=seen, cure=cure)
