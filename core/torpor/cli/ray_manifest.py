"""`torpor ray manifest`: the configuration file of Serve, or with `--kubernetes` the manifest of a RayService."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from torpor.cli.ray_plan import checked_with_ray
from torpor.cli.terminal import claim_output, result, say
from torpor.errors import ConfigurationError
from torpor.platforms.ray.config import PORT, Source, as_yaml, config_of
from torpor.platforms.ray.kubernetes import KubernetesOptions, NodeSelector, Toleration
from torpor.platforms.ray.manifest import manifest_findings, service_of
from torpor.platforms.ray.served import served
from torpor.values.addresses import EVERYWHERE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.platforms.ray.served import Served
    from torpor.values.findings import Finding

__all__ = ["Pods", "StoreOnNodes", "run_ray_manifest"]


class StoreOnNodes(TypedDict, total=False):
    """Fields of `torpor.platforms.ray.config.Source`; one that is missing has its default."""

    snapshots: str
    trust: str
    unsigned: bool
    identity: str
    app_folder: str


class Pods(TypedDict, total=False):
    """Options for Kubernetes; one that is empty or missing was not given."""

    image: str
    name: str
    namespace: str
    cache: str
    node_selector: list[str]
    toleration: list[str]
    service_account: str
    secret: str
    ray_version: str


def run_ray_manifest(files: Sequence[str], *, store: StoreOnNodes, kubernetes: bool, pods: Pods) -> None:
    """Print the YAML; what somebody should know goes to standard error.

    Args:
        files: app files.
        store: where replicas find app files and snapshots.
        kubernetes: print a RayService.
        pods: how replicas run as pods.

    Raises:
        ConfigurationError: an app file or an option cannot be used, or Ray cannot serve a deployment.
    """
    claim_output()
    options = _options(pods) if kubernetes else None
    if options is None and (named := [f"--{name.replace('_', '-')}" for name, value in pods.items() if value]):
        raise ConfigurationError(f"{', '.join(named)}: for Kubernetes alone; add --kubernetes.")
    source = Source(**store)
    apps = served(files)
    config = config_of(apps, source, host=EVERYWHERE, port=PORT)
    made = config if options is None else service_of(apps, options, source)
    _tell_all(apps, options, source, checked_with_ray(config))
    result(as_yaml(made), end="")


def _options(pods: Pods) -> KubernetesOptions:
    if not pods.get("image"):
        raise ConfigurationError(
            "--kubernetes needs --image: the image with Torpor, Ray, the engine, CRIU and the app files, e.g. "
            "--image registry.example/torpor:1. docs/cluster.md says how to build one."
        )
    return KubernetesOptions(
        image=pods["image"],
        name=pods.get("name") or KubernetesOptions.name,
        namespace=pods.get("namespace", ""),
        cache=pods.get("cache") or KubernetesOptions.cache,
        node_selectors=tuple(map(NodeSelector.parse, pods.get("node_selector", []))),
        tolerations=tuple(map(Toleration.parse, pods.get("toleration", []))),
        service_account=pods.get("service_account", ""),
        secret=pods.get("secret", ""),
        ray_version=pods.get("ray_version") or KubernetesOptions.ray_version,
    )


def _tell_all(apps: Sequence[Served], options: KubernetesOptions | None, source: Source, version: str) -> None:
    for one in apps:
        _tell(one.findings, one.app.deployment.name)
    if options is not None:
        _tell(manifest_findings(apps, options, source))
    if not version:
        say("note: Ray Serve is not installed here, so its own schemas did not read the options")
    elif options is not None and version != options.ray_version:
        say(
            f"note: the image has Ray {options.ray_version}; the schemas of Ray {version}, installed here, read the options"
        )


def _tell(findings: Sequence[Finding], deployment: str = "") -> None:
    for finding in findings:
        of = f"{deployment}: " if deployment else ""
        say(f"{finding.level}: {of}{finding.what}: {finding.seen}{f' -> {finding.cure}' if finding.cure else ''}")
