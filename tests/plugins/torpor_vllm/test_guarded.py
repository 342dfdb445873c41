"""The guard as a layer of somebody else's application, and the renewal of a worker."""

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
    """One of Starlette's records of a middleware."""

    cls: type


class Application:
    """What the layer looks at."""

    def __init__(self, *layers: type) -> None:
        self.user_middleware = [Layer(layer) for layer in layers]


class OtherLayer:
    """Stands outside."""


@pytest.fixture
def boot() -> Iterator[BootDocument]:
    """The launcher's document, for the time of a test."""
    BootGuard.document = BOOT
    yield BOOT
    BootGuard.document = None


async def started(guard: BootGuard, app: Application) -> None:
    """The server's first event."""

    async def receive() -> MutableMapping[str, object]:
        return {"type": "lifespan.startup"}

    async def send(message: MutableMapping[str, object]) -> None:
        raise AssertionError(message)

    await guard({"type": "lifespan", "app": app}, receive, send)


async def engine(scope: object, receive: object, send: object) -> None:
    """An application that has nothing to say."""


def test_the_name_that_is_given_to_the_engine_is_the_layer() -> None:
    """VLLM takes the last part of the name for the object and the rest for its module."""
    module, _, name = MIDDLEWARE.rpartition(".")
    assert (module, name) == (BootGuard.__module__, BootGuard.__name__)


def test_without_the_launcher_there_is_no_guard_and_so_no_server() -> None:
    """The layer's name alone, given to `vllm serve`, does not open a door that only looks guarded."""
    with pytest.raises(RuntimeError, match=r"start vLLM by `python -m torpor_vllm\.serve`"):
        BootGuard(engine)


@in_loop
async def test_the_outermost_layer_starts(boot: BootDocument) -> None:
    """With the document's rules, in the state that every guard begins in."""
    guard = BootGuard(engine)
    await started(guard, Application(BootGuard, OtherLayer))
    assert guard.state is State.STARTING


@in_loop
async def test_a_layer_outside_of_the_guard_stops_the_server(boot: BootDocument) -> None:
    """A hosting standard's variables can put one there; it would see what the guard has to refuse."""
    with pytest.raises(RuntimeError, match="OtherLayer is outside of the guard: nothing is served"):
        await started(BootGuard(engine), Application(OtherLayer, BootGuard))


@pytest.mark.parametrize("module", ["serve", "guarded", "worker", "compiling", "reserved"])
def test_what_runs_in_the_engines_process_needs_nothing_that_the_engine_lacks(module: str) -> None:
    """In the engine's environment there is no pluggy, structlog or modal; none of them, nor httpx, is imported."""
    code = (
        "import sys\n"
        "for name in ('pluggy', 'httpx', 'structlog', 'modal', 'typer', 'rich', 'psutil'): sys.modules[name] = None\n"
        f"import torpor_vllm.{module}\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
