"""Ray Serve applications from app files.

    serve.run(application("apps/small.py", snapshots="s3://bucket/snapshots"), name="torpor-small", route_prefix="/")

    for one in applications("apps/small.py", "apps/large.py", store=SnapshotStore("s3://bucket/snapshots")):
        serve.run(one.application, name=one.name, route_prefix=one.route_prefix)

App files are imported here and on the node of every replica, at the same path. Each replica is an actor that owns one engine
(`torpor.platforms.ray.replica`). Several models get an application each, and one at `/` that reads `model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ray import serve

from torpor.app_file import load_app
from torpor.errors import ConfigurationError
from torpor.platforms.ray.ingress import ModelIngress, RoutedModel
from torpor.platforms.ray.names import INGRESS, prefix_of
from torpor.platforms.ray.options import deployment_options, ingress_options
from torpor.platforms.ray.replica import EngineReplica
from torpor.platforms.ray.served import by_model, served
from torpor.platforms.ray.snapshot_store import NO_STORE, SnapshotStore, check_store_url

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torpor.app_file import App

__all__ = ["RayApplication", "application", "application_from", "applications", "ingress_from"]

_SERVE_PORT = 8000
_TEXTS = ("app_file", "snapshots", "trust", "identity")


class RayApplication(NamedTuple):
    """An application with the name and prefix under which it is deployed.

    Attributes:
        name: of the application; Torpor's begin with `torpor-`.
        route_prefix: of its routes.
        application: for `serve.run`.
    """

    name: str
    route_prefix: str
    application: serve.Application


def application(
    app_file: str | Path,
    *,
    snapshots: str = "",
    trust: str | Path = "",
    unsigned: bool = False,
    identity: str | Path = "",
) -> serve.Application:
    """The application of one app file.

    Args:
        app_file: with a deployment. Nodes have it at the same absolute path.
        snapshots: URL of a store; without one every replica starts cold.
        trust: file of public keys, one of which has to have signed a snapshot.
        unsigned: accept a snapshot that no trusted key signed.
        identity: file with the age identity for encrypted snapshots.

    Raises:
        ConfigurationError: the app file or the store's URL cannot be used, or Ray Serve has no counterpart to something in the app.
    """
    store = SnapshotStore(snapshots, str(trust), unsigned, str(identity))
    return _application(load_app(str(app_file)), store)


def application_from(arguments: dict[str, object]) -> serve.Application:
    """The application of one app file, for `import_path` and `args` of a configuration file of Serve.

    Args:
        arguments: those of `application`, by name.
    """
    unsigned = arguments.get("unsigned", False)
    texts = {name: value for name, value in arguments.items() if name in _TEXTS and isinstance(value, str)}
    if len(texts) < len(arguments.keys() - {"unsigned"}) or not texts.get("app_file") or not isinstance(unsigned, bool):
        raise ConfigurationError(
            f"The arguments of the application are {_names(arguments)}; `app_file` has to be a path. snapshots, trust and identity "
            "can be texts, and unsigned true or false."
        )
    app_file = texts.pop("app_file")
    return application(app_file, unsigned=unsigned, **texts)


def applications(
    *app_files: str | Path,
    store: SnapshotStore = NO_STORE,
    port: int = _SERVE_PORT,
) -> list[RayApplication]:
    """The applications of several app files, for one address. One file alone that never goes to zero is served at `/`.

    Args:
        app_files: each with a deployment.
        store: where their replicas get snapshots; by default they start cold.
        port: of Serve's HTTP address, at which requests are forwarded by `model`.

    Raises:
        ConfigurationError: as for `application`; or two files have the same deployment or model name.
    """
    apps = served(app_files)
    found = [RayApplication(one.application, one.route_prefix, _application(one.app, store)) for one in apps]
    if by_model(apps):
        found.append(RayApplication(INGRESS, "/", _ingress([one.app for one in apps], port)))
    return found


def ingress_from(arguments: dict[str, object]) -> serve.Application:
    """The application that reads `model`, for `import_path` and `args` of a configuration file of Serve.

    Args:
        arguments: `app_files`, a list of paths, and `port`, that of Serve's HTTP address.
    """
    files, port = arguments.get("app_files"), arguments.get("port", _SERVE_PORT)
    if not isinstance(files, list) or not files or not isinstance(port, int) or set(arguments) - {"app_files", "port"}:
        raise ConfigurationError(
            f"The arguments of the application are {_names(arguments)}; `app_files` has to be a list of paths, and `port` a "
            "number."
        )
    return _ingress([load_app(str(file)) for file in files], port)


def _names(arguments: dict[str, object]) -> str:
    """Without the values: a URL may have a password in it."""
    return ", ".join(sorted(map(str, arguments))) or "none"


def _ingress(apps: Sequence[App], port: int) -> serve.Application:
    routed = tuple(one for app in apps for one in _routed(app))
    return serve.deployment(serve.ingress()(ModelIngress), **ingress_options()).bind(routed, port)


def _application(app: App, store: SnapshotStore) -> serve.Application:
    check_store_url(store.url)
    options = deployment_options(app.deployment)
    return serve.deployment(serve.ingress()(EngineReplica), **options).bind(str(app.file.absolute()), store)


def _routed(app: App) -> tuple[RoutedModel, ...]:
    """The model and its adapters."""
    deployment = app.deployment
    keys: object = getattr(deployment.engine, "api_key_sha256", ())
    return tuple(
        RoutedModel(
            name=name,
            deployment=deployment.name,
            prefix=prefix_of(deployment.name),
            key_sha256=tuple(keys) if isinstance(keys, tuple) else (),
            public_paths=deployment.public_paths,
        )
        for name in deployment.model.served_names
    )
