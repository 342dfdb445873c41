"""Puts the guard in front of an engine's HTTP application, inside its process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Protocol

    from torpor.guard import BootDocument
    from torpor.guard.control import OnWake

    ASGIApp = Callable[..., Awaitable[None]]

    class StarletteApp(Protocol):
        """What the guard needs to know of a Starlette (or FastAPI) application."""

        middleware_stack: ASGIApp | None
        build_middleware_stack: Callable[[], ASGIApp]


__all__ = ["install_guard"]


def install_guard(app: StarletteApp, boot: BootDocument, *, on_wake: OnWake | None = None) -> None:
    """Make the guard the outermost layer of an application.

    `add_middleware` would not do: engines add layers of their own after that (metrics, keys, a hosting standard's), each
    outside the ones before, and Starlette puts its error layer outside them all. The whole stack is built at the first event,
    so the guard is put around whatever it is then.

    Args:
        app: the object that the engine hands to its server.
        boot: what the guard keeps of the lifecycle key, replica id and rules.
        on_wake: makes new at each wake what of the engine's own is the same in each replica of a snapshot; see `Guard`.

    Raises:
        ConfigurationError: the application has begun to serve.
    """
    if app.middleware_stack is not None:
        raise ConfigurationError(
            "The engine's HTTP application is already in use; the guard can no longer be put before it."
        )
    build = app.build_middleware_stack

    def build_guarded() -> ASGIApp:
        return Guard(build(), boot.rules, key=boot.key, replica_id=boot.replica_id, on_wake=on_wake)

    app.build_middleware_stack = build_guarded
