"""The guard as a middleware of vLLM's application, and the renewal of a worker."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.guard.exchange import in_loop
from torpor.guard import BootDocument, GuardRules, State
from torpor_vllm.guarded import MIDDLEWARE, BootGuard

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

BOOT = BootDocument(key="k" * 43, replica_id="0123456789abcdef", rules=GuardRules(public=("/v1/models",)))


@dataclass
class Layer:
    """Starlette's record of a middleware."""

    cls: type


class Application:
    """The part of the application that the guard reads."""

    def __init__(self, *layers: type) -> None:
        self.user_middleware = [Layer(layer) for layer in layers]


class OtherLayer:
    """A middleware outside the guard."""


@pytest.fixture
def boot() -> Iterator[BootDocument]:
    """The launcher's boot document, during a test."""
    BootGuard.document = BOOT
    yield BOOT
    BootGuard.document = None


async def started(guard: BootGuard, app: Application) -> None:
    """Send the server's first event."""

    async def receive() -> MutableMapping[str, object]:
        return {"type": "lifespan.startup"}

    async def send(message: MutableMapping[str, object]) -> None:
        raise AssertionError(message)

    await guard({"type": "lifespan", "app": app}, receive, send)


async def engine(scope: object, receive: object, send: object) -> None:
    """An application that does nothing."""


def test_the_name_that_the_engine_gets_leads_to_the_guard() -> None:
    """For vLLM the last part of the name is the object, and the rest its module."""
    module, _, name = MIDDLEWARE.rpartition(".")
    assert (module, name) == (BootGuard.__module__, BootGuard.__name__)


def test_without_the_launcher_the_guard_does_not_start() -> None:
    """`vllm serve` with this middleware but without the launcher must not look guarded."""
    with pytest.raises(RuntimeError, match=r"start vLLM by `python -m torpor_vllm\.serve`"):
        BootGuard(engine)


@in_loop
async def test_the_guard_starts_as_the_outermost_layer(boot: BootDocument) -> None:
    """It has the document's rules and the first state of every guard."""
    guard = BootGuard(engine)
    await started(guard, Application(BootGuard, OtherLayer))
    assert guard.state is State.STARTING


@in_loop
async def test_a_layer_outside_the_guard_stops_the_server(boot: BootDocument) -> None:
    """Variables of a hosting standard can add one; it would see requests that the guard refuses."""
    with pytest.raises(RuntimeError, match="OtherLayer is outside of the guard: nothing is served"):
        await started(BootGuard(engine), Application(OtherLayer, BootGuard))


@pytest.mark.parametrize("module", ["serve", "guarded", "worker", "compiling", "reserved"])
def test_modules_in_the_engines_process_import_only_what_the_engine_has(module: str) -> None:
    """The engine's environment has no pluggy, structlog or modal; the modules import none of them, and no httpx."""
    code = (
        "import sys\n"
        "for name in ('pluggy', 'httpx', 'structlog', 'modal', 'typer', 'rich', 'psutil'): sys.modules[name] = None\n"
        f"import torpor_vllm.{module}\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
