"""Observes one life of an engine: cold start, serving, two sleeps, two wakes, stop; and two replicas of a snapshot.

The contract's live rules are separate tests that all read one observation. So an engine that needs minutes to start starts once,
and the rules can run in any order.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
import psutil

from torpor.engine.process import session_members
from torpor.guard.protocol import CONTROL, HEALTH, KEY_HEADER, REPLICA_HEADER
from torpor.platforms.local.backends import Standby
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.server import LocalServer
from torpor.runtime.boot import Boot
from torpor.runtime.guard_client import open_client
from torpor.snapshots.before_capture.lasting_folders import LASTING_VARIABLE
from torpor.telemetry.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torpor.deployment import Deployment

__all__ = ["CHAT_ROUTE", "CLOSED_ROUTES", "OWN_ROUTES", "Life", "Sampled", "live_through", "restore_two"]

CHAT_ROUTE = "/v1/chat/completions"

OWN_ROUTES = HEALTH
"""Routes that the guard answers itself, from its state."""

CLOSED_ROUTES = (
    "/torpor-contract-no-such-route",
    f"{CONTROL}state",
    f"{CONTROL}drain",
    "/server_info",
    "/flush_cache",
    "/update_weights_from_disk",
    "/pause_generation",
    "/is_sleeping",
    "/reset_prefix_cache",
    "/release_kv_cache_memory",
    "/collective_rpc",
    "/pause",
    "/resume",
    "/sleep",
    "/wake_up",
    "/release_memory_occupation",
    "/resume_memory_occupation",
)
"""Routes that need the key on any engine: unknown ones, the guard's own, SGLang's and vLLM's management.

Those that end an open engine come last."""

_PROBE_TIMEOUT_S = 10.0
_SAMPLES = 3
_SAMPLED_TOKENS = 32
_OK = 200


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The same question, asked several times of one replica right after its wake, sampled at temperature 1.

    Attributes:
        texts: the answers, in order.
        ids: the answers' ids, in order; None for an answer without one.
        replica: the replica's tag in `/health`; empty for an engine without a guard.
        refused: why the engine did not answer; empty if it did.
    """

    texts: tuple[str, ...] = ()
    ids: tuple[str | None, ...] = ()
    replica: str = ""
    refused: str = ""


@dataclass(kw_only=True)
class Life:
    """What was observed.

    Attributes:
        stages: stages that ended well, in order: started, serving, asleep, woke, asleep again, woke again, stopped.
        failure: the error that ended it early.
        launch_s: seconds that the launch hook took.
        own_session: whether the engine leads a session of its own.
        guarded: whether it was started with rules for the guard.
        serving: status by request, without the key, while it served.
        asleep: the same while it slept.
        repeated: status of a lifecycle call made twice or out of order, with the key, by what it was.
        woken: what it sampled after each wake, each under its own replica id.
        left_over: processes of the engine's session that still ran after the stop.
    """

    stages: list[str] = field(default_factory=list)
    failure: Exception | None = None
    launch_s: float = 0.0
    own_session: bool = False
    guarded: bool = False
    serving: dict[str, int] = field(default_factory=dict)
    asleep: dict[str, int] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    woken: list[Sampled] = field(default_factory=list)
    left_over: tuple[str, ...] = ()


def live_through(deployment: Deployment, root: Path) -> Life:
    """Run the deployment through its life on this machine; a failure is part of the observation.

    Args:
        deployment: a deployment that can start here; its build steps run first.
        root: folder for its volumes and caches.
    """
    life = Life()
    boot: Boot | None = None
    try:
        server = LocalServer(deployment, backend=Standby(), root=root)
        boot = server.boot
        server.build()
        _start(boot, life)
        if deployment.engine.supports_sleep:
            _sleep_and_wake(boot, life)
            _again(boot, life)
    except Exception as error:
        life.failure = error
    finally:
        if boot is not None:
            boot.stop()
            life.left_over = _living(boot)
    if life.failure is None:
        life.stages.append("stopped")
    return life


def _start(boot: Boot, life: Life) -> None:
    boot.cold_start()
    life.launch_s = boot.report.seconds(Stage.LAUNCH)
    pid = boot.running_engine.pid
    life.own_session = os.getsid(pid) == pid != os.getsid(0)
    life.guarded = boot.running_engine.guard_key is not None
    life.stages.append("started")
    boot.serve()
    life.serving = _statuses(boot, _public_and_closed(boot.deployment))
    if life.guarded:
        life.repeated["wake while serving"] = _keyed(boot, f"{CONTROL}wake")
        life.repeated["asleep while serving"] = _keyed(boot, f"{CONTROL}asleep")
    life.stages.append("serving")


def _sleep_and_wake(boot: Boot, life: Life) -> None:
    boot.sleep()
    if life.guarded:
        life.asleep = _statuses(boot, _public_and_closed(boot.deployment))
        life.repeated["drain while asleep"] = _keyed(boot, f"{CONTROL}drain")
        life.repeated["asleep while asleep"] = _keyed(boot, f"{CONTROL}asleep")
        life.repeated["serve while asleep"] = _keyed(boot, f"{CONTROL}serve")
    life.stages.append("asleep")
    boot.wake(new_replica_id=secrets.token_hex(8))
    life.woken.append(_sampled(boot))
    life.stages.append("woke")


def _again(boot: Boot, life: Life) -> None:
    boot.sleep()
    life.stages.append("asleep again")
    boot.wake(new_replica_id=secrets.token_hex(8))
    life.woken.append(_sampled(boot))
    life.stages.append("woke again")


def restore_two(deployment: Deployment, root: Path) -> tuple[Sampled, Sampled]:
    """Capture the sleeping engine once, restore it twice in turn, and return what each replica samples first.

    Args:
        deployment: a deployment that can start here; its build steps run first.
        root: folder for its volumes, caches and the snapshot.

    Raises:
        TorporError: it cannot be captured or restored here. Nothing keeps running.
    """
    with _temporary_files_last(root):
        backend = CriuBackend(folder=root / "snapshot", app_file=root / "app.py", public=False)
        server = LocalServer(deployment, backend=backend, root=root)
        try:
            server.cold_start()
            backend.capture(server.boot)
        finally:
            server.stop()
        first, second = (_restored(deployment, root, server.boot) for _ in range(2))
    return first, second


@contextlib.contextmanager
def _temporary_files_last(root: Path) -> Iterator[None]:
    """Exempt temporary folders from what a capture refuses: this snapshot lives for seconds."""
    before = os.environ.get(LASTING_VARIABLE)
    os.environ[LASTING_VARIABLE] = os.pathsep.join([*filter(None, [before]), str(root), tempfile.gettempdir()])
    try:
        yield
    finally:
        if before is None:
            del os.environ[LASTING_VARIABLE]
        else:
            os.environ[LASTING_VARIABLE] = before


def _restored(deployment: Deployment, root: Path, original: Boot) -> Sampled:
    backend = CriuBackend(folder=root / "snapshot", app_file=root / "app.py", public=False)
    boot = Boot(deployment, recipe=original.recipe)
    try:
        backend.restore(boot)
        return _sampled(boot)
    finally:
        boot.stop()
        backend.close()


def _sampled(boot: Boot) -> Sampled:
    """Send requests without a key."""
    question = {
        "model": boot.deployment.model.served_name,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": _SAMPLED_TOKENS,
        "temperature": 1.0,
    }
    texts, ids = [], []
    with open_client(boot.running_engine, port=boot.deployment.port, timeout_s=_PROBE_TIMEOUT_S) as client:
        client.headers.pop(KEY_HEADER, None)
        for _ in range(_SAMPLES):
            try:
                response = client.post(CHAT_ROUTE, json=question)
                answer = response.json()
                message = answer["choices"][0]["message"]
            except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
                return Sampled(refused=f"{type(error).__name__}: {error}")
            if response.status_code != _OK:
                return Sampled(refused=f"{response.status_code} {response.text[:200]!r}")
            texts.append(f"{message.get('reasoning_content') or ''}{message.get('content') or ''}")
            ids.append(answer.get("id"))
        replica = client.get(OWN_ROUTES[0]).headers.get(REPLICA_HEADER, "")
    return Sampled(texts=tuple(texts), ids=tuple(ids), replica=replica)


def _public_and_closed(deployment: Deployment) -> Iterable[tuple[str, str]]:
    public = deployment.public_paths
    yield from (("GET", path) for path in OWN_ROUTES if deployment.engine.guarded)
    yield from ((method, path) for path in public for method in ("GET", "POST"))
    yield from ((method, path) for path in CLOSED_ROUTES if path not in public for method in ("GET", "POST"))


def _statuses(boot: Boot, requests: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The status of an answer to a request without a key; 0 for no answer."""
    statuses: dict[str, int] = {}
    with open_client(boot.running_engine, port=boot.deployment.port, timeout_s=_PROBE_TIMEOUT_S) as client:
        client.headers.pop(KEY_HEADER, None)
        for method, path in requests:
            statuses[f"{method} {path}"] = 0
            try:
                statuses[f"{method} {path}"] = client.request(method, path, json={}).status_code
            except httpx.HTTPError:
                break  # further requests would show nothing new
    return statuses


def _keyed(boot: Boot, path: str) -> int:
    with open_client(boot.running_engine, port=boot.deployment.port, timeout_s=_PROBE_TIMEOUT_S) as client:
        try:
            return client.post(path, json={"deadline_s": 1}).status_code
        except httpx.HTTPError:
            return 0


def _living(boot: Boot) -> tuple[str, ...]:
    """Processes of the engine's session that still run, without zombies."""
    if boot.engine is None:
        return ()
    found = []
    for process in session_members(boot.engine.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} ({process.name()})")
    return tuple(found)
