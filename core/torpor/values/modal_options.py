"""`ModalOptions`: settings of a deployment that only Modal has.

    Deployment(..., modal=ModalOptions(requires_proxy_auth=True, label="qwen3", cloud="aws"))

The module does not import modal. Limits are those of client 1.6.4 and of Modal's guide to resources.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.values.field_types import shown

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ModalOptions"]

_CLOUDS = ("aws", "gcp", "oci", "auto")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,58}[a-z0-9])?")
_DOMAIN = re.compile(r"(?=.{4,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])")
_REGION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_CORES = 1024  # more than any machine has; Modal's own limits are lower
_MAX_MEMORY_MIB = 16 << 20
_MAX_DISK_MIB = 3_145_728
_MAX_RETRIES = 10
_OURS = ("modal.run", "modal.host")

_ELSEWHERE = {
    "image": "the engine plugin's `image` option names the base, and plugins' prepare_image add to it",
    "gpu": "write Deployment.gpu",
    "region": "write Deployment.region",
    "volumes": "a plugin's prepare_image names them (ImagePatch.volumes)",
    "env": "a plugin's prepare_image names them (ImagePatch.env)",
    "timeout": "write Deployment.startup_timeout_s",
    "startup_timeout": "Torpor sends the sum of the stages' time limits; write Deployment.startup_timeout_s and the others",
    "enable_memory_snapshot": "write Deployment.snapshot",
    "enable_gpu_snapshot": "write Deployment.gpu_snapshot",
    "experimental_options": "Torpor sets the one that GPU snapshots need; write Deployment.gpu_snapshot",
    "min_containers": "write Scaling.min_containers",
    "max_containers": "write Scaling.max_containers",
    "buffer_containers": "write Scaling.buffer_containers",
    "scaledown_window": "write Scaling.scaledown_window_s",
    "target_inputs": "write Scaling.target_concurrency",
    "max_inputs": "write Scaling.max_concurrency",
    "port": "write Deployment.port",
    "single_use_containers": "a container would end after one request, and each request would pay for a restore",
    "serialized": "the container imports the app file, and finds no serialized class there",
    "include_source": "the container imports the app file",
    "block_network": "requests could not reach the engine",
    "memory": "write memory_mib",
    "ephemeral_disk": "write ephemeral_disk_mib",
}
"""Modal's own arguments that belong elsewhere or are not allowed, with the reason."""


@dataclass(frozen=True, kw_only=True)
class ModalOptions:
    """Options of the class and of its web server on Modal. Nothing here changes what runs elsewhere.

    Attributes:
        requires_proxy_auth: whether Modal lets in only requests with a proxy token of the workspace (headers `Modal-Key` and
            `Modal-Secret`); others wake no container.
        label: the host's label in the URL, `https://<workspace>--<label>.modal.run`; None leaves it to Modal.
        custom_domains: your own host names at which the server also answers; the workspace has to know them.
        cloud: `aws`, `gcp`, `oci` or `auto`; None leaves it to Modal.
        routing_region: the region through which requests come in; None leaves it to Modal. `Deployment.region` says where
            containers run.
        nonpreemptible: whether containers run only on machines that the cloud does not reclaim.
        cpu: cores that are reserved for a container; None for Modal's default.
        memory_mib: memory that is reserved for a container, MiB; a snapshot holds what is used of it.
        ephemeral_disk_mib: disk of a container, MiB, at most 3,145,728; None for Modal's default.
        secrets: names of Modal's secrets that the serving container gets. They would be in its snapshot, so a deployment with
            snapshots allows it only with `secrets_in_snapshot="warn"`.
        writable_volumes: names of volumes that the serving container may write to; every other one is mounted read-only.
        retries: how often Modal calls a failed `download` again, at most 10. Modal retries no request to a web server.
    """

    requires_proxy_auth: bool = False
    label: str | None = None
    custom_domains: tuple[str, ...] = ()
    cloud: str | None = None
    routing_region: str | None = None
    nonpreemptible: bool = False
    cpu: float | None = None
    memory_mib: int | None = None
    ephemeral_disk_mib: int | None = None
    secrets: tuple[str, ...] = ()
    writable_volumes: tuple[str, ...] = ()
    retries: int = 0

    def __new__(cls, *unnamed: object, **given: object) -> Self:
        """Refuse unknown names and values without a name; Python's own error would not say what to write.

        Raises:
            ConfigurationError: a value has no name, an option belongs elsewhere, or there is no such option.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        if unnamed:
            raise ConfigurationError(
                f"ModalOptions takes its options by name, and {shown(unnamed[0])} has none; write e.g. "
                f"ModalOptions(requires_proxy_auth=True). There are {', '.join(known)}."
            )
        for name in given:
            if name in _ELSEWHERE:
                raise ConfigurationError(f"ModalOptions has no {name!r}: {_ELSEWHERE[name]}.")
            if name not in known:
                raise ConfigurationError(
                    f"ModalOptions has no {name!r}; there are {', '.join(known)}. Give other arguments directly to `app.cls`: "
                    "@app.cls(**{**cls_options(deployment), ...})."
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("requires_proxy_auth", "nonpreemptible"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "True or False")
        for name in ("custom_domains", "secrets", "writable_volumes"):
            self._check_names(name, getattr(self, name))
        self._check_web_server()
        if self.cloud is not None and self.cloud not in _CLOUDS:
            raise _wrong("cloud", self.cloud, f"one of {', '.join(map(repr, _CLOUDS))}, or None")
        if self.routing_region is not None and not _matches(_REGION, self.routing_region):
            raise _wrong("routing_region", self.routing_region, "a region's name like 'us-east'")
        self._check_numbers()

    def _check_names(self, name: str, value: object) -> None:
        """Make a list of names a tuple. Refuse a bare string, because each of its letters would be a name."""
        if isinstance(value, str) or not isinstance(value, tuple | list):
            raise _wrong(
                name, value, f"a tuple, e.g. {name}=({value!r},)" if isinstance(value, str) else "a tuple of names"
            )
        object.__setattr__(self, name, tuple(value))
        for item in value:
            if name != "custom_domains" and not _matches(_NAME, item):
                raise _wrong(name, item, "names of 1 to 64 letters, digits, '-', '_' and '.'")
        if twice := [item for at, item in enumerate(value) if item in value[:at]]:
            raise ConfigurationError(f"ModalOptions.{name} holds {twice[0]!r} twice; remove one of the two.")

    def _check_web_server(self) -> None:
        if self.label is not None and not _matches(_LABEL, self.label):
            raise _wrong("label", self.label, "1 to 60 lower-case letters, digits and inner dashes")
        for domain in self.custom_domains:
            if not _matches(_DOMAIN, domain):
                raise _wrong(
                    "custom_domains",
                    domain,
                    "host names in lower case like 'llm.example.com', without https://, port and path",
                )
            if domain.endswith(tuple(f".{ours}" for ours in _OURS)):
                raise _wrong("custom_domains", domain, "host names of your own; for a name below modal.run write label")

    def _check_numbers(self) -> None:
        if self.cpu is not None and not (_is_number(self.cpu) and 0 < self.cpu <= _MAX_CORES):
            raise _wrong("cpu", self.cpu, f"cores, above 0 and at most {_MAX_CORES}")
        for name, most, unit in (
            ("memory_mib", _MAX_MEMORY_MIB, "MiB"),
            ("ephemeral_disk_mib", _MAX_DISK_MIB, "MiB"),
        ):
            value = getattr(self, name)
            if value is not None and not (_is_whole(value) and 0 < value <= most):
                raise _wrong(name, value, f"{unit}, a whole number of 1 to {most}")
        if not (_is_whole(self.retries) and 0 <= self.retries <= _MAX_RETRIES):
            raise _wrong("retries", self.retries, f"a whole number of 0 to {_MAX_RETRIES}")

    def check_secrets(self, *, snapshot: bool, secrets_in_snapshot: str) -> None:
        """Refuse secrets that the deployment does not let into its snapshots, before anything is built.

        Raises:
            ConfigurationError: it does not allow them.
        """
        if self.secrets and snapshot and secrets_in_snapshot == "refuse":
            raise ConfigurationError(
                f"ModalOptions.secrets gives {', '.join(map(repr, self.secrets))} to the serving container, and its variables "
                "would be in every snapshot of it. Give a secret to the step that needs it (HFCache.token_secret), or allow it: "
                "Deployment(secrets_in_snapshot='warn') or Deployment(snapshot=False)."
            )

    def changed(self) -> dict[str, object]:
        """What differs from the defaults, for a plan."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value != defaults[name]}


def _wrong(name: str, value: object, allowed: str) -> ConfigurationError:
    return ConfigurationError(f"ModalOptions.{name} is {shown(value)}; allowed: {allowed}.")


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or isinstance(value, float)
