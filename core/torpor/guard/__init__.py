"""The guard: a pure-ASGI door inside the engine's own server process.

An engine's management routes are open to whoever has the URL, a health probe or a second resume ends a sleeping SGLang,
and nothing tells a load balancer that a replica is asleep (measured; see SECURITY.md). The guard stands before the
engine's application, outside all of its middlewares, and adds no hop and no copy of a token stream.

    starting --serve--> serving --drain--> draining --asleep--> asleep --wake--> waking --serve--> serving
        '--------------------drain-----------^ |
                             serving <--serve--' (nothing was put to sleep yet)

Who may pass, by path and state; a path is compared whole, as it was sent and as the application will see it:

    /health, /ready      everybody; answered here from the state: 200 only when serving, else 503 with Retry-After
    open paths           everybody while serving; else 503 with Retry-After
    public paths         the same, with a bearer key if the rules hold any
    keyed paths          the lifecycle key, while the engine is awake; without the key 404
    sleep, wake steps    the lifecycle key, in order, once each, only while draining and waking; else 409 with the state
    /_torpor/*           the lifecycle key: the transitions above, and GET /_torpor/state
    everything else      404; with a wrong key 403, whatever the path

Standard library only: it runs in the engine's environment, whose packages are the engine's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.guard.document import BOOT_FD_VARIABLE, BootDocument, boot_document_json, read_boot
from torpor.guard.rules import GuardRules

if TYPE_CHECKING:
    from torpor.guard.asgi import Guard
    from torpor.guard.states import State

__all__ = ["BOOT_FD_VARIABLE", "BootDocument", "Guard", "GuardRules", "State", "boot_document_json", "read_boot"]

_LATE = {"Guard": "torpor.guard.asgi", "State": "torpor.guard.states"}
"""Imported when they are first used (PEP 562): they want asyncio, for which core and plugins, who say the rules, have no use."""


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module 'torpor.guard' has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - only for those who use a name

    value: object = getattr(importlib.import_module(_LATE[name]), name)
    globals()[name] = value
    return value
