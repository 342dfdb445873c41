"""Lets SIGTERM end vLLM during its start."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from torpor.launcher import Patch, after_import
from torpor_vllm.versions import SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["PATCH"]

_SERVER = "vllm.entrypoints.launchers.api_server.entry"


class _Signals:
    """The module `signal` for vLLM's server: it keeps the launcher's SIGTERM handler until uvicorn installs its own."""

    def signal(self, number: int, handler: object) -> object:
        """Install a handler, except for SIGTERM."""
        return signal.getsignal(number) if number == signal.SIGTERM else signal.signal(number, handler)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(signal, name)


def _keep_handler(server: ModuleType) -> None:
    vars(server)["signal"] = _Signals()


PATCH = Patch(
    name="sigterm",
    reason=(
        "during its start vLLM turns SIGTERM into a KeyboardInterrupt and then waits for its engine core, which got no signal "
        "(0.32.0: more than a minute); the launcher's own handler ends the whole tree"
    ),
    versions=SUPPORTED_VERSIONS,
    applies=lambda: True,
    apply=lambda: after_import(_SERVER, _keep_handler),
)
