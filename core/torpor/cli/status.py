"""`torpor status`: the servers that run here. It asks each within a deadline and shows those that hang."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import psutil

from torpor.cli.layout import Layout
from torpor.cli.terminal import result
from torpor.errors import ServerUnavailableError
from torpor.platforms.local.running import RunningServer, Unreadable, servers
from torpor.values.addresses import nearest
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.platforms.local.running import Process, RunningReplica

__all__ = ["Look", "look_at", "run_status"]

_ASKED_FOR_S = 2.0
_LOOK_S = 4.0
_ANSWER_BYTES = 64 * 1024
_FIELD = "  snapshot  "
"""The label of a field, for its length: all labels have the same."""
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


class Look(NamedTuple):
    """What was seen of a server.

    Attributes:
        health: the answer of its public port to `GET /health`, in words; empty if it came too late.
        http_status: of that answer; None for no answer.
        memory: bytes of each replica by its name, with its share of shared memory; without replicas that cannot be read.
    """

    health: str
    http_status: int | None
    memory: dict[str, int]


def run_status(deployment: str, *, as_json: bool) -> None:
    """Show what runs.

    Args:
        deployment: only servers of this one; empty for all.
        as_json: print JSON instead of text.

    Raises:
        ServerUnavailableError: a deployment was named, and no server of it serves with all its replicas.
    """
    found = servers()
    running = [one for one in found if isinstance(one, RunningServer) and deployment in ("", one.deployment)]
    unreadable = [one for one in found if isinstance(one, Unreadable)]
    looks = look_at(running)
    if as_json:
        told = {
            "servers": [_as_json(server, look) for server, look in zip(running, looks, strict=True)],
            "unreadable": [{"file": str(one.file), "problem": one.problem} for one in unreadable],
        }
        result(json.dumps(told, indent=2))
    else:
        _show(running, looks, unreadable, deployment)
    if deployment and not any(_serves(server, look) for server, look in zip(running, looks, strict=True)):
        seen = ", ".join(f"one is {server.state} (pid {server.process.pid})" for server in running) or "none runs here"
        raise ServerUnavailableError(f"No server of {deployment!r} serves with all its replicas: {seen}.")


def look_at(running: Sequence[RunningServer], *, limit_s: float = _LOOK_S) -> list[Look]:
    """Ask every server, all at the same time.

    Args:
        running: which.
        limit_s: seconds for all of them; what is missing then is unknown.
    """
    looks = [Look("", None, {})] * len(running)

    def ask(at: int) -> None:
        looks[at] = _asked(running[at])

    threads = [threading.Thread(target=ask, args=(at,), daemon=True) for at in range(len(running))]
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(looks)


def _asked(server: RunningServer) -> Look:
    memory = {
        one.name: size for one in server.replicas if server.here and (size := _tree_bytes(one.leader)) is not None
    }
    status, health = _health(server.url) if server.state in ("serving", "asleep", "ending") else (None, "not asked yet")
    return Look(health, status, memory)


def _health(url: str) -> tuple[int | None, str]:
    """Status and text of `GET /health`. A server that drips its answer takes longer; then nobody waits for this thread."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(nearest(where.hostname or ""), where.port, timeout=_ASKED_FOR_S)
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        answer = connection.getresponse()
        return answer.status, _state_in(answer.read(_ANSWER_BYTES)) or f"answers {answer.status}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return None, f"no answer ({getattr(error, 'strerror', None) or error or type(error).__name__})"
    finally:
        connection.close()


def _state_in(body: bytes) -> str:
    """The state in a guard's answer; empty for any other answer."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    state = answer.get("state") if isinstance(answer, dict) else None
    return plain(state[:40]) if isinstance(state, str) else ""


def _tree_bytes(leader: Process) -> int | None:
    """Memory of a process and its descendants; None if it is gone or cannot be read."""
    if not leader.alive:
        return None
    try:
        first = psutil.Process(leader.pid)
        tree = [first, *first.children(recursive=True)]
    except psutil.Error:
        return None
    sizes = [size for process in tree if (size := _bytes(process)) is not None]
    return sum(sizes) if sizes else None


def _bytes(process: psutil.Process) -> int | None:
    """Its proportional memory (PSS); its resident memory if that cannot be read."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{process.pid}/smaps_rollup", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return None


def _serves(server: RunningServer, look: Look) -> bool:
    return server.state == "serving" and len(server.replicas) >= server.wanted and look.http_status == http.client.OK


def _as_json(server: RunningServer, look: Look) -> dict[str, object]:
    facts = server._asdict() | {"file": str(server.file), "pid": server.process.pid}
    del facts["process"], facts["here"]
    replicas = []
    for one in server.replicas:
        told = one._asdict() | {"state": _state(server), "memory_bytes": look.memory.get(one.name)}
        del told["leader"]
        replicas.append(told)
    return facts | {"health": look.health, "http_status": look.http_status, "replicas": replicas}


def _state(server: RunningServer) -> str:
    """The state of a replica: it sleeps with its server."""
    return "asleep" if server.state == "asleep" else "serving"


def _show(running: Sequence[RunningServer], looks: Sequence[Look], broken: Sequence[Unreadable], wanted: str) -> None:
    layout = Layout()
    for server, look in zip(running, looks, strict=True):
        for line in _lines(server, look):
            before = len(_FIELD) if line.startswith("  ") else 0
            layout.field(line[:before], line[before:])
    for one in broken:
        layout.field("", f"{one.file}: {one.problem}")
    if not running and not broken:
        layout.field("", f"no server{f' of {wanted}' if wanted else ''} runs here")


def _lines(server: RunningServer, look: Look) -> Iterator[str]:
    yield (
        f"{server.deployment}: {server.state} {server.model} on {server.url}, torpor {server.command} "
        f"(pid {server.process.pid}) for {_duration(server.since)}"
    )
    yield f"  health    {look.health or f'not known within {_LOOK_S:g} s'}"
    for replica in server.replicas:
        yield f"  replica   {_replica_line(replica, server, look)}"
        if replica.log:
            yield f"  log       {replica.log}"
    missing = server.wanted - len(server.replicas) - server.restarting
    if server.restarting:
        yield f"  restarts  {server.restarting} under way"
    if missing > 0 and server.state == "serving":
        yield f"  missing   {missing} of {server.wanted} replicas, given up"
    if server.snapshot:
        yield f"  snapshot  {server.snapshot}"
    if server.last_event:
        yield f"  event     {server.last_event} ({_duration(server.last_event_at)} ago)"


def _replica_line(replica: RunningReplica, server: RunningServer, look: Look) -> str:
    size = look.memory.get(replica.name)
    parts = [
        f"{replica.name} (pid {replica.pid}) {_state(server)} for {_duration(replica.since)}",
        replica.boot + (f": {replica.reason}" if replica.reason else ""),
        f"{replica.restarts} restarts" if replica.restarts != 1 else "1 restart",
        *([f"GPU {' and '.join(map(str, replica.gpus))}"] if replica.gpus else []),
        "memory unknown" if size is None else f"{size / 1e6:.0f} MB",
    ]
    return ", ".join(parts)


def _duration(since: float) -> str:
    """The time since then, in its two largest units."""
    left = max(0, int(time.time() - since))
    parts: list[str] = []
    for unit, seconds in _UNITS:
        if left >= seconds or parts:
            parts.append(f"{left // seconds} {unit}")
            left %= seconds
    return " ".join(parts[:2]) or "0 s"
