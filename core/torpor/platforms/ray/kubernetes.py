"""What a user says about Kubernetes for a manifest: image, names, node selectors, tolerations. Checked when it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from torpor.errors import ConfigurationError
from torpor.values.checks import LINE_BREAK
from torpor.values.field_types import check_types, shown

__all__ = ["KubernetesOptions", "NodeSelector", "Toleration"]

RAY_VERSION = "2.60.0"
_LONGEST_NAME = 47
"""Of a RayService: KubeRay names a cluster after it, and that name has at most 53 characters."""
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_OBJECT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", re.ASCII)
_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?", re.ASCII)
_IMAGE = re.compile(r"[a-z0-9][\w.:/-]*(@sha256:[0-9a-f]{64})?", re.ASCII)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


class NodeSelector(NamedTuple):
    """A label that the machines of a group of nodes have.

    Attributes:
        group: name of the group; empty for every group with GPUs.
        key: of the label.
        value: of the label.
    """

    group: str
    key: str
    value: str

    @classmethod
    def parse(cls, text: str) -> NodeSelector:
        """From `[GROUP:]KEY=VALUE`.

        Raises:
            ConfigurationError: it is none.
        """
        before, equals, value = text.partition("=")
        group, colon, key = before.rpartition(":")
        wrong = not equals or not _KEY.fullmatch(key) or not value or not _VALUE.fullmatch(value)
        if wrong or (colon and not _LABEL.fullmatch(group)):
            raise ConfigurationError(
                f"The node selector is {shown(text)}; write [GROUP:]KEY=VALUE, e.g. "
                "h100:cloud.google.com/gke-accelerator=nvidia-h100-80gb. `torpor ray plan` names the groups."
            )
        return cls(group, key, value)


class Toleration(NamedTuple):
    """A taint of machines that replicas accept.

    Attributes:
        key: of the taint.
        value: of the taint; empty for any.
        effect: of the taint; empty for any.
    """

    key: str
    value: str
    effect: str

    @classmethod
    def parse(cls, text: str) -> Toleration:
        """From `KEY[=VALUE][:EFFECT]`, as `kubectl taint` has it.

        Raises:
            ConfigurationError: it is none.
        """
        what, _, effect = text.partition(":")
        key, _, value = what.partition("=")
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value) or (":" in text and effect not in _EFFECTS):
            raise ConfigurationError(
                f"The toleration is {shown(text)}; write KEY[=VALUE][:EFFECT], with an effect of {', '.join(_EFFECTS)}."
            )
        return cls(key, value, effect)


@dataclass(frozen=True, kw_only=True)
class KubernetesOptions:
    """How replicas run as pods.

    Attributes:
        image: with Torpor, Ray, the engine, CRIU and the app files; every pod runs it.
        name: of the RayService.
        namespace: that it is made in; empty for the one of `kubectl`.
        cache: folder on the machines, and in their pods, that keeps snapshots and compiled kernels: TORPOR_CACHE.
        node_selectors: labels of the machines; see `NodeSelector`.
        tolerations: taints that all groups accept; those with GPUs accept `nvidia.com/gpu`, too.
        service_account: of the pods, e.g. for access to a bucket; empty for the namespace's default.
        secret: name of a Secret whose entries become variables of the pods, e.g. the keys of a bucket; empty for none.
        ray_version: of the Ray in the image.

    Raises:
        ConfigurationError: names the option, its value, and what is allowed.
    """

    image: str
    name: str = "torpor"
    namespace: str = ""
    cache: str = "/var/lib/torpor"
    node_selectors: tuple[NodeSelector, ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    service_account: str = ""
    secret: str = ""
    ray_version: str = RAY_VERSION

    def __post_init__(self) -> None:
        check_types(self)
        self._check_image()
        if not _NAME.fullmatch(self.name) or len(self.name) > _LONGEST_NAME:
            raise ConfigurationError(
                f"The name is {shown(self.name)}; allowed are 1 to {_LONGEST_NAME} lower-case letters, digits and inner dashes, "
                "beginning with a letter."
            )
        if self.namespace and not _LABEL.fullmatch(self.namespace):
            raise ConfigurationError(
                f"The namespace is {shown(self.namespace)}; allowed are 1 to 63 lower-case letters, digits and inner dashes."
            )
        for what, value in (("service account", self.service_account), ("secret", self.secret)):
            if value and not _OBJECT.fullmatch(value):
                raise ConfigurationError(
                    f"The {what} is {shown(value)}; give the name of one: lower-case letters, digits, inner '-' and '.'."
                )
        if not self.cache.startswith("/") or self.cache.strip("/") == "" or LINE_BREAK.search(self.cache):
            raise ConfigurationError(
                f"The cache is {shown(self.cache)}; give an absolute path of a folder on the machines, e.g. /var/lib/torpor."
            )
        if not _VERSION.fullmatch(self.ray_version):
            raise ConfigurationError(
                f"The Ray version is {shown(self.ray_version)}; give the image's, e.g. {RAY_VERSION}."
            )

    def _check_image(self) -> None:
        if not _IMAGE.fullmatch(self.image):
            raise ConfigurationError(
                f"The image is {shown(self.image)}; write it like registry.example/torpor:1 or with @sha256:..."
            )
        tag = self.image.rpartition("/")[2].partition("@")[0].partition(":")[2]
        if "@sha256:" not in self.image and tag in ("", "latest"):
            raise ConfigurationError(
                f"The image is {shown(self.image)}, whose content can change from node to node, and a snapshot fits only the "
                "engine that it was captured with; give a tag, e.g. registry.example/torpor:1, or a digest."
            )
