"""A typed view of a deployment: image layers, mounted files, volumes, GPU, snapshots, concurrency, ports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modal_proto import api_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from tests.modal_plane.store import Store

__all__ = ["DeployedApp", "DeployedFunction", "Layer", "WebServer"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of an image.

    Attributes:
        image_id: a hash of the layer and all below it. With an equal id nothing is built again.
        commands: its Dockerfile lines, `FROM` included.
        gpu: the GPU's name, empty for none.
        gpu_count: how many GPUs.
        volumes: mount path to volume name.
        secrets: names of the secrets.
        env: variables of this layer only.
        copied: the files of a `COPY` layer: content by path relative to the target.
    """

    image_id: str
    commands: tuple[str, ...]
    gpu: str
    gpu_count: int
    volumes: dict[str, str]
    secrets: tuple[str, ...]
    env: dict[str, str]
    copied: dict[str, bytes]

    @property
    def runs(self) -> tuple[str, ...]:
        """The shell lines of the layer's `RUN` commands."""
        return tuple(command.removeprefix("RUN ") for command in self.commands if command.startswith("RUN "))


@dataclass(frozen=True, kw_only=True)
class WebServer:
    """A `@modal.web_server` method: its name, port, the seconds that the port may take to open, and its URL.

    Attributes:
        label: the requested label of the host; empty for Modal's own.
        domains: custom domains.
        proxy_auth: whether the platform demands a proxy token.
    """

    method: str
    port: int
    startup_timeout_s: float
    url: str
    label: str
    domains: tuple[str, ...]
    proxy_auth: bool


@dataclass(frozen=True)
class DeployedFunction:
    """One function, or the service function of a class, as the control plane received it."""

    store: Store
    function_id: str

    @property
    def definition(self) -> api_pb2.Function:
        """The whole message."""
        return self.store.functions[self.function_id].definition

    @property
    def gpu(self) -> tuple[str, int]:
        """GPU name and count; ("", 0) for none."""
        config = self.definition.resources.gpu_config
        return config.gpu_type, config.count

    @property
    def volumes(self) -> dict[str, str]:
        """Mount path to volume name."""
        return _volumes(self.store, list(self.definition.volume_mounts))

    @property
    def read_only(self) -> tuple[str, ...]:
        """Mount paths that the container cannot write to."""
        return tuple(mount.mount_path for mount in self.definition.volume_mounts if mount.read_only)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of the secrets."""
        return _secrets(self.store, list(self.definition.secret_ids))[0]

    @property
    def memory_snapshot(self) -> bool:
        """Whether the platform may snapshot it."""
        return self.definition.checkpointing_enabled

    @property
    def gpu_snapshot(self) -> bool:
        """Whether GPU memory goes into the snapshot."""
        return str(self.definition.experimental_options.get("enable_gpu_snapshot")) == "True"

    @property
    def concurrency(self) -> tuple[int, int]:
        """Target and maximum of requests in flight."""
        return self.definition.target_concurrent_inputs, self.definition.max_concurrent_inputs

    @property
    def regions(self) -> tuple[str, ...]:
        """Where it may run; empty for anywhere."""
        return tuple(self.definition.scheduler_placement.regions)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of a class's remote methods, web servers included."""
        return tuple(sorted(self.definition.method_definitions))

    @property
    def web_servers(self) -> tuple[WebServer, ...]:
        """Its `@modal.web_server` methods."""
        handles = self.store.functions[self.function_id].handle.method_handle_metadata
        return tuple(
            WebServer(
                method=name,
                port=method.webhook_config.web_server_port,
                startup_timeout_s=method.webhook_config.web_server_startup_timeout,
                url=handles[name].web_url,
                label=method.webhook_config.requested_suffix,
                domains=tuple(domain.name for domain in method.webhook_config.custom_domains),
                proxy_auth=method.webhook_config.requires_proxy_auth,
            )
            for name, method in self.definition.method_definitions.items()
            if method.webhook_config.type == api_pb2.WEBHOOK_TYPE_WEB_SERVER
        )

    @property
    def files(self) -> dict[str, bytes]:
        """Path in the container to content, of every mounted file. Files copied into the image are not included."""
        files: dict[str, bytes] = {}
        for mount_id in self.definition.mount_ids:
            if not self.store.mount_names[mount_id]:
                files |= _files(self.store, mount_id)
        return files

    def write_files(self, root: Path) -> None:
        """Write the mounted files below `root`, as the container sees them below `/`."""
        for name, content in self.files.items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of its image, the base first."""
        layers: list[Layer] = []
        image_id = self.definition.image_id
        while image_id:
            image = self.store.images[image_id]
            secrets, env = _secrets(self.store, list(image.secret_ids))
            layers.append(
                Layer(
                    image_id=image_id,
                    commands=tuple(image.dockerfile_commands),
                    gpu=image.gpu_config.gpu_type,
                    gpu_count=image.gpu_config.count,
                    volumes=_volumes(self.store, list(image.volume_mounts)),
                    secrets=secrets,
                    env=env,
                    copied=_files(self.store, image.context_mount_id) if image.context_mount_id else {},
                )
            )
            image_id = image.base_images[0].image_id if image.base_images else ""
        return tuple(reversed(layers))


@dataclass(frozen=True)
class DeployedApp:
    """One app: its name, functions and classes."""

    store: Store
    app_id: str

    @property
    def name(self) -> str:
        """The name it was deployed under, or the description of an ephemeral one."""
        return self.store.apps[self.app_id].description

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the published functions and classes, in alphabetical order."""
        app = self.store.apps[self.app_id]
        return tuple(sorted({*app.functions, *app.classes}))

    def function(self, name: str) -> DeployedFunction:
        """A published function by name; that of a class is called `Name.*`.

        Raises:
            KeyError: there is none.
        """
        return DeployedFunction(self.store, self.store.apps[self.app_id].functions[name])

    def service(self, class_name: str) -> DeployedFunction:
        """The function behind a published class."""
        return self.function(f"{class_name}.*")


def _volumes(store: Store, mounts: list[api_pb2.VolumeMount]) -> dict[str, str]:
    names = {volume_id: name for name, volume_id in store.volumes.items()}
    return {mount.mount_path: names[mount.volume_id] for mount in mounts}


def _secrets(store: Store, secret_ids: list[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    names = {secret_id: name for name, secret_id in store.secrets.items()}
    env: dict[str, str] = {}
    for secret_id in secret_ids:
        env |= store.anonymous_secrets.get(secret_id, {})
    return tuple(names[secret_id] for secret_id in secret_ids if secret_id in names), env


def _files(store: Store, mount_id: str) -> dict[str, bytes]:
    return {file.filename: store.files[file.sha256_hex] for file in store.mounts[mount_id]}
