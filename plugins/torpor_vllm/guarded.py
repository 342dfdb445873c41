"""The guard as a layer that vLLM adds to its own application: `--middleware torpor_vllm.guarded.BootGuard`.

vLLM builds its application late, inside its server, and takes layers by name (entrypoints/serve/middleware/register.py of
0.32.0 and 0.33.0). The launcher stores the boot document here and names the layer last, which makes it the outermost. A hosting
standard could still add a layer outside of it (model_hosting_container_standards, by its own variables); the server then refuses
to start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from torpor import override
from torpor.guard import BootDocument, Guard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from typing import Protocol

    Scope = MutableMapping[str, object]
    Receive = Callable[[], Awaitable[MutableMapping[str, object]]]
    Send = Callable[[MutableMapping[str, object]], Awaitable[None]]

    class Layer(Protocol):
        """Starlette's record of a middleware."""

        cls: type

    class Application(Protocol):
        """The part of vLLM's FastAPI application that the guard reads."""

        user_middleware: list[Layer]


__all__ = ["MIDDLEWARE", "BootGuard"]

MIDDLEWARE = "torpor_vllm.guarded.BootGuard"


class BootGuard(Guard):
    """The guard with this process's boot document."""

    document: ClassVar[BootDocument | None] = None
    """The launcher sets it before it imports vLLM."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        boot = self.document
        if boot is None:
            raise RuntimeError("the guard has no boot document: start vLLM by `python -m torpor_vllm.serve`")
        super().__init__(app, boot.rules, key=boot.key, replica_id=boot.replica_id)

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. The first one, the server's `lifespan`, checks that the guard is the outermost layer."""
        if scope["type"] == "lifespan":
            outermost = cast("Application", scope["app"]).user_middleware[0].cls
            if outermost is not type(self):
                raise RuntimeError(f"{outermost.__name__} is outside of the guard: nothing is served")
        await super().__call__(scope, receive, send)
