"""Puts the guard before an engine's HTTP application, inside the engine's process."""

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

    `add_middleware` does not suffice: engines add layers of their own later (metrics, keys, a hosting standard's), each outside
    the ones before, and Starlette puts its error layer outside them all. Starlette builds the whole stack at the first event, so
    the guard wraps the result.

    Args:
        app: the object that the engine hands to its server.
        boot: the boot document.
        on_wake: renews at each wake the engine's own state that is the same in each replica of a snapshot; see `Guard`.

    Raises:
        ConfigurationError: the application already serves.
    """
    if app.middleware_stack is not None:
        raise ConfigurationError(
            "The engine's HTTP application is already in use; the guard can no longer be put before it."
        )
    build = app.build_middleware_stack

    def build_guarded() -> ASGIApp:
        return Guard(build(), boot.rules, key=boot.key, replica_id=boot.replica_id, on_wake=on_wake)

    app.build_middleware_stack = build_guarded
