"""Limits on what a client may send before and around a request's body, for every engine whose server is uvicorn.

Uvicorn's parser httptools has no limits of its own: one head of 200 MB took 4.1 GB (measured, uvicorn 0.54), before the guard
sees the request and while the engine sleeps. h11 limits an unfinished head, but neither the number of headers nor the time.
With `limit_uvicorn` both parsers keep the limits of `torpor.launcher.request_limits`.

No request becomes a websocket: no engine has a public route for one.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from torpor.engine_patches.after_import import after_import
from torpor.engine_patches.patches import Patch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import ModuleType
    from typing import Protocol

    class Config(Protocol):
        """What is touched of uvicorn's configuration."""

        http_protocol_class: type[asyncio.Protocol]
        ws_protocol_class: type[asyncio.Protocol] | None


__all__ = ["http_limits", "limit_uvicorn"]

_H11 = "uvicorn.protocols.http.h11_impl"


def limit_uvicorn() -> None:
    """Have every server that uvicorn starts in this process use a parser with limits. Call it before the server starts."""
    after_import("uvicorn.config", _limit_config)


def http_limits(versions: tuple[str, ...]) -> Patch:
    """Return the patch, for an engine's versions with which it was tested."""
    return Patch(
        name="http-limits",
        reason=(
            "uvicorn's httptools reads heads of any size before the guard sees a request, asleep or not: one of 200 MB took 4.1 GB"
        ),
        versions=versions,
        applies=lambda: True,
        apply=limit_uvicorn,
    )


def _limit_config(module: ModuleType) -> None:
    original: Callable[[Config], None] = module.Config.load
    if getattr(original, "limits_heads", False):
        return

    def load(config: Config) -> None:
        original(config)
        config.http_protocol_class = _limited(config.http_protocol_class)
        config.ws_protocol_class = None

    load.limits_heads = True  # type: ignore[attr-defined]
    module.Config.load = load


def _limited(kind: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """The limited form of one of uvicorn's two parsers; for any other parser the faster of the two."""
    is_h11 = any(base.__module__ == _H11 for base in kind.__mro__)
    if is_h11 or importlib.util.find_spec("httptools") is None:
        from torpor.launcher.limited_h11 import LimitedH11Protocol  # noqa: PLC0415 - only where h11 is installed

        return LimitedH11Protocol
    from torpor.launcher.limited_httptools import LimitedHttpToolsProtocol  # noqa: PLC0415 - only where httptools is installed

    return LimitedHttpToolsProtocol
