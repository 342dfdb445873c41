"""The configuration file of Ray Serve (`serve deploy FILE`): an application for each app file, and one that forwards by `model`.

    print(as_yaml(serve_config("apps/small.py", "apps/large.py", snapshots="s3://bucket/snapshots")))

Fields and meanings are those of ray.serve.schema.ServeDeploySchema, 2.60. Ray is not imported to make it;
`torpor.platforms.ray.schema` has Ray's own schemas read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypedDict

import yaml

from torpor._override import override
from torpor.errors import ConfigurationError
from torpor.platforms.ray.names import INGRESS
from torpor.platforms.ray.served import Served, by_model, served
from torpor.platforms.ray.snapshot_store import check_store_url
from torpor.values.addresses import EVERYWHERE, MAX_PORT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.platforms.ray.options import DeploymentOptions

__all__ = [
    "MODELS_BUILDER",
    "MODEL_BUILDER",
    "PORT",
    "Application",
    "ServeConfig",
    "Source",
    "as_yaml",
    "config_of",
    "serve_config",
]

MODEL_BUILDER = "torpor.platforms.ray.application:application_from"
MODELS_BUILDER = "torpor.platforms.ray.application:ingress_from"
PORT = 8000
_WIDTH = 1000  # of a line: none is broken


class Application(TypedDict, total=False):
    """Fields of ray.serve.schema.ServeApplicationSchema."""

    name: str
    route_prefix: str
    import_path: str
    args: dict[str, object]
    deployments: list[DeploymentOptions]


class ServeConfig(TypedDict):
    """Fields of ray.serve.schema.ServeDeploySchema."""

    proxy_location: str
    http_options: dict[str, object]
    applications: list[Application]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where replicas find their app files and snapshots. Paths are those of the nodes, the same on each.

    Attributes:
        snapshots: URL of a store; empty for none: every replica starts cold.
        trust: file of public keys, one of which has to have signed a snapshot; empty for none.
        unsigned: accept a snapshot that no trusted key signed.
        identity: file with the age identity for encrypted snapshots; empty for none.
        app_folder: folder of the app files on the nodes, an absolute path; empty for the paths that they have here.

    Raises:
        ConfigurationError: a path is relative, an option for a store is given without one or against another one, or its URL has a
            password or names none.
    """

    snapshots: str = ""
    trust: str = ""
    unsigned: bool = False
    identity: str = ""
    app_folder: str = ""

    def __post_init__(self) -> None:
        if not self.snapshots and (self.trust or self.unsigned or self.identity):
            raise ConfigurationError(
                "Trusted keys, an identity and the acceptance of unsigned snapshots are for a store; name it with snapshots=URL."
            )
        if self.snapshots and "://" not in self.snapshots and not self.snapshots.startswith("/"):
            raise ConfigurationError(
                f"snapshots is {self.snapshots!r}; give the URL of a store that every node reaches, e.g. s3://bucket/snapshots, "
                "or an absolute path."
            )
        check_store_url(self.snapshots)
        if self.trust and self.unsigned:
            raise ConfigurationError("trust and unsigned exclude each other: give the one or the other.")
        for name in ("trust", "identity", "app_folder"):
            if (path := getattr(self, name)) and not path.startswith("/"):
                raise ConfigurationError(
                    f"{name} is {path!r}; give an absolute path: it is read on every node, where there is no current folder."
                )

    def file(self, here: Path) -> str:
        """The path of an app file on the nodes."""
        return str(PurePosixPath(self.app_folder) / here.name if self.app_folder else here.absolute())

    def arguments(self) -> dict[str, object]:
        """Arguments of the application's builder, those that differ from its defaults."""
        given = {name: getattr(self, name) for name in ("snapshots", "trust", "unsigned", "identity")}
        return {name: value for name, value in given.items() if value}


def serve_config(
    *files: str | Path,
    snapshots: str = "",
    trust: str = "",
    unsigned: bool = False,
    identity: str = "",
    app_folder: str = "",
    host: str = EVERYWHERE,
    port: int = PORT,
) -> ServeConfig:
    """The configuration of app files.

    Args:
        files: app files, each with one deployment.
        snapshots: see `Source`, like those that follow.
        trust: see there.
        unsigned: see there.
        identity: see there.
        app_folder: see there.
        host: address on each node at which requests come in.
        port: of that address.

    Raises:
        ConfigurationError: an app file or an option cannot be used, or Ray cannot serve a deployment.
    """
    source = Source(snapshots=snapshots, trust=trust, unsigned=unsigned, identity=identity, app_folder=app_folder)
    return config_of(served(files), source, host=host, port=port)


def config_of(apps: Sequence[Served], source: Source, *, host: str, port: int) -> ServeConfig:
    """The configuration of app files that were imported already; see `serve_config`.

    Raises:
        ConfigurationError: Ray cannot serve a deployment, two app files get one path, or the port is none.
    """
    if not 0 < port <= MAX_PORT:
        raise ConfigurationError(f"The port is {port}; allowed are 1 to {MAX_PORT}.")
    _check_served(apps)
    _check_paths(apps, source)
    found = [_application(one, source) for one in apps]
    if by_model(apps):
        found.append(_by_model(apps, source, port))
    return ServeConfig(proxy_location="EveryNode", http_options={"host": host, "port": port}, applications=found)


def as_yaml(value: object) -> str:
    """A configuration or manifest as YAML, fields in their order; a text of several lines stays readable."""
    return str(yaml.dump(value, Dumper=_Readable, sort_keys=False, width=_WIDTH, allow_unicode=True))


class _Readable(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and nothing as a reference to something above."""

    @override
    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def _application(one: Served, source: Source) -> Application:
    assert one.options is not None
    return Application(
        name=one.application,
        route_prefix=one.route_prefix,
        import_path=MODEL_BUILDER,
        args={"app_file": source.file(one.app.file), **source.arguments()},
        deployments=[one.options],
    )


def _by_model(apps: Sequence[Served], source: Source, port: int) -> Application:
    return Application(
        name=INGRESS,
        route_prefix="/",
        import_path=MODELS_BUILDER,
        args={"app_files": [source.file(one.app.file) for one in apps], "port": port},
    )


def _check_served(apps: Sequence[Served]) -> None:
    refused = [
        f"{one.app.deployment.name!r}: {finding.what}: {finding.seen}{f'; {finding.cure}' if finding.cure else ''}."
        for one in apps
        for finding in one.findings
        if finding.level == "error"
    ]
    if refused:
        raise ConfigurationError(f"Ray cannot serve {' '.join(refused)}")


def _check_paths(apps: Sequence[Served], source: Source) -> None:
    seen: dict[str, Path] = {}
    for one in apps:
        path = source.file(one.app.file)
        if (first := seen.setdefault(path, one.app.file)) is not one.app.file:
            raise ConfigurationError(
                f"{first} and {one.app.file} would both be {path} on the nodes; rename one of them."
            )
