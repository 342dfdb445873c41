"""Puts the guard in front of SGLang's HTTP server, inside its process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.guard import Guard
from torpor_sglang.patches import Patch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Protocol

    from torpor.guard import BootDocument

    ASGIApp = Callable[..., Awaitable[None]]

    class StarletteApp(Protocol):
        """What the guard needs to know of SGLang's FastAPI application."""

        middleware_stack: ASGIApp | None
        build_middleware_stack: Callable[[], ASGIApp]


__all__ = ["guard_patch", "install_guard"]


def install_guard(app: StarletteApp, boot: BootDocument) -> None:
    """Make the guard the outermost layer of an application.

    `add_middleware` would not do: SGLang adds layers of its own after that (metrics, keys), each outside the ones
    before, and Starlette puts its error layer outside them all. The whole stack is built at the first event, so the guard is
    put around whatever it is then.

    Args:
        app: `sglang.srt.entrypoints.http_server.app`, the object that SGLang hands to uvicorn.
        boot: the lifecycle key, boot id and rules.

    Raises:
        ConfigurationError: the application has begun to serve.
    """
    if app.middleware_stack is not None:
        raise ConfigurationError(
            "SGLang's HTTP application is already in use; the guard can no longer be put before it."
        )
    build = app.build_middleware_stack

    def build_guarded() -> ASGIApp:
        return Guard(build(), boot.rules, key=boot.key, boot_id=boot.boot_id)

    app.build_middleware_stack = build_guarded


def guard_patch(boot: BootDocument) -> Patch:
    """Return the patch that installs the guard for this boot."""

    def apply() -> None:
        from sglang.srt.entrypoints import http_server  # noqa: PLC0415 - the engine's

        install_guard(http_server.app, boot)

    return Patch(
        name="guard",
        reason=(
            "SGLang's management routes are open to whoever has the address, and a second resume or a health check "
            "during sleep ends the engine"
        ),
        versions=("0.5.6.post2", "0.5.16", "0.5.23"),
        applies=lambda: True,
        apply=apply,
    )
