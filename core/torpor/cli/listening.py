"""Where a command's server listens: `--host` and `--port`, checked before anything is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.values.addresses import MAX_PORT, check_free, checked_host, checked_port, is_open, url

if TYPE_CHECKING:
    from torpor.app_file import App
    from torpor.deployment import Deployment

__all__ = ["check_chats", "engine_at", "given_address", "public_warning", "words"]

_LOWEST_ENGINE_PORT = 1024


def given_address(host: str | None, port: int | None) -> tuple[str | None, int | None]:
    """The values of `--host` and `--port`; None where they were not given.

    Raises:
        ConfigurationError: not an address, or not a port.
    """
    return (
        None if host is None else checked_host("--host", host),
        None if port is None else checked_port("--port", port),
    )


def check_chats(deployment: Deployment, what: str) -> None:
    """Refuse a command that asks a chat of a deployment with another task.

    Args:
        deployment: from the app file.
        what: the command or option, as its user writes it.

    Raises:
        ConfigurationError: it serves another task.
    """
    if deployment.task != "chat":
        raise ConfigurationError(
            f"{what} asks a chat, and {deployment.name} serves the task {deployment.task!r}. `torpor up APP --ask TEXT` asks "
            f"it once, and shows the times of its stages."
        )


def engine_at(app: App, host: str | None, port: int | None) -> App:
    """The app with its engine's own server at the address that was given.

    Args:
        app: from its file.
        host: from `given_address`.
        port: from `given_address`.

    Raises:
        PortInUseError: somebody else listens there.
        ConfigurationError: nobody can listen there.
    """
    host, port = host or app.deployment.host, port or app.deployment.port
    if port < _LOWEST_ENGINE_PORT:
        raise ConfigurationError(
            f"--port is {port}; an engine that listens itself gets a port from {_LOWEST_ENGINE_PORT} to {MAX_PORT}. With "
            "--backend criu and in `torpor snapshot restore` Torpor listens, and root may take a lower one."
        )
    check_free(host, port)
    return app.at(host, port)


def words(deployment: Deployment) -> tuple[str, ...]:
    """The options that make another command serve at the deployment's address."""
    return "--host", deployment.host, "--port", str(deployment.port)


def public_warning(deployment: Deployment, host: str, port: int) -> str:
    """A warning for a server that other machines reach and that asks for no key; empty for any other.

    Args:
        deployment: what is served; its engine plugin knows whether there are keys.
        host: where it listens.
        port: where it listens.
    """
    if not is_open(host, deployment.engine):
        return ""
    return (
        f"warning: {url(host, port)} is open to other machines, and asks for no key: set api_key_sha256 of the "
        "engine's plugin (`torpor key new` prints a key and its SHA-256), or listen on 127.0.0.1"
    )
