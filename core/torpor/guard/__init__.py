"""The guard: an ASGI layer inside the engine's own server process that decides which requests reach the engine.

Without it an engine's management routes are open to everybody who has the URL, a health probe or a second resume ends a
sleeping SGLang, and nothing tells a load balancer that a replica is asleep (measured; see SECURITY.md). The guard wraps the
engine's application, outside all of its middlewares. It adds no network hop, and it does not copy token streams.

    starting --serve--> serving --drain--> draining --asleep--> asleep --wake--> waking --serve--> serving
        '--------------------drain-----------^ |
                             serving <--serve--' (nothing was put to sleep yet)

Who may pass, by path and state. A path has to match exactly, both as it was sent and as the application will see it:

    /health, /ready      everybody; answered here from the state: 200 only when serving, else 503 with Retry-After
    open paths           everybody while serving; else 503 with Retry-After
    public paths         the same, with a bearer key if the rules hold any
    keyed paths          the lifecycle key, while the engine is awake; without the key 404
    sleep, wake steps    the lifecycle key, in order, once each, only while draining and waking; else 409 with the state
    /_torpor/*           the lifecycle key: the transitions above, and GET /_torpor/state
    everything else      404; with a wrong key 403, whatever the path

A server finds its boot document by `BOOT_FD_VARIABLE`; `read_boot` reads it.

Standard library only: the guard runs in the engine's environment, whose packages are the engine's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.guard.asgi import Guard
    from torpor.guard.document import BOOT_FD_VARIABLE, BootDocument, boot_document_json, read_boot
    from torpor.guard.rules import GuardRules
    from torpor.guard.states import State

__all__ = ["BOOT_FD_VARIABLE", "BootDocument", "Guard", "GuardRules", "State", "boot_document_json", "read_boot"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.guard.asgi": ("Guard",),
        "torpor.guard.document": ("BOOT_FD_VARIABLE", "BootDocument", "boot_document_json", "read_boot"),
        "torpor.guard.rules": ("GuardRules",),
        "torpor.guard.states": ("State",),
    },
)
