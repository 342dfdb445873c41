"""`torpor status`: the servers that run here. It asks each within a deadline and shows those that hang."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from torpor.cli.control import ask_control
from torpor.cli.layout import Layout
from torpor.cli.terminal import output, result
from torpor.errors import ServerUnavailableError
from torpor.platforms.local.memory import tree_bytes
from torpor.platforms.local.running import RunningServer, Unreadable, servers
from torpor.values.addresses import nearest
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torpor.platforms.local.running import RunningReplica

__all__ = ["Look", "look_at", "run_status"]

_ASKED_FOR_S = 2.0
_LOOK_S = 4.0
_ANSWER_BYTES = 64 * 1024
_FIELD = "  snapshot  "
"""The label of a field, for its length: all labels have the same."""
_WATCH_S = 2.0
_CLEAR = "\x1b[H\x1b[2J"
_STARTS = 3
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


class Look(NamedTuple):
    """What was seen of a server.

    Attributes:
        health: the answer of its public port to `GET /health`, in words; empty if it came too late.
        http_status: of that answer; None for no answer.
        memory: bytes of each replica by its name, with its share of shared memory; without replicas that cannot be read.
        served: what `torpor serve` says of the deployment: requests, queue, starts; empty for another command.
    """

    health: str
    http_status: int | None
    memory: dict[str, int]
    served: Mapping[str, object] = {}


def run_status(deployment: str, *, as_json: bool, watch: bool = False, key: bool = False) -> None:
    """Show what runs.

    Args:
        deployment: only servers of this one; empty for all.
        as_json: print JSON instead of text.
        watch: show it again and again, until Ctrl-C.
        key: print the key of the control paths instead.

    Raises:
        ServerUnavailableError: a deployment was named, and no server of it serves with all its replicas; or a key is wanted, and
            no `torpor serve` runs.
    """
    if key:
        _show_key(deployment)
        return
    while watch:
        with contextlib.suppress(ServerUnavailableError):  # it may serve later
            _look_once(deployment, as_json=as_json, clear=not as_json)
        time.sleep(_WATCH_S)
    _look_once(deployment, as_json=as_json)


def _show_key(deployment: str) -> None:
    found = {one.control_key: one.url for one in servers() if isinstance(one, RunningServer) and one.control_key
             and deployment in ("", one.deployment)}  # fmt: skip
    if not found:
        raise ServerUnavailableError("No `torpor serve` of this user runs here, so there is no key.")
    for one, where in found.items():
        result(f"{where}/torpor/ {one}" if len(found) > 1 else one)


def _look_once(deployment: str, *, as_json: bool, clear: bool = False) -> None:
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
        if clear and (screen := output()).isatty():
            screen.write(_CLEAR)
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
    memory = {one.name: size for one in server.replicas if server.here and (size := tree_bytes(one.leader)) is not None}
    if server.control_key:
        return _asked_control(server, memory)
    status, health = _health(server.url) if server.state in ("serving", "asleep", "ending") else (None, "not asked yet")
    return Look(health, status, memory)


def _asked_control(server: RunningServer, memory: dict[str, int]) -> Look:
    """What `torpor serve` says of one of its deployments."""
    try:
        status, answer = ask_control(server, "GET", "/torpor/status")
    except ServerUnavailableError as error:
        return Look(f"no answer ({error})", None, memory)
    told = answer.get("deployments")
    for one in told if isinstance(told, list) else ():
        if isinstance(one, dict) and one.get("name") == server.deployment:
            return Look(plain(str(one.get("state"))), status, memory, one)
    return Look("no longer served", None, memory)


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


def _serves(server: RunningServer, look: Look) -> bool:
    """Whether it answers requests now; a deployment of `torpor serve` does in every state, unless its start failed."""
    if server.control_key:
        return look.http_status == http.client.OK and not look.served.get("error")
    return server.state == "serving" and len(server.replicas) >= server.wanted and look.http_status == http.client.OK


def _as_json(server: RunningServer, look: Look) -> dict[str, object]:
    facts = server._asdict() | {"file": str(server.file), "pid": server.process.pid}
    del facts["process"], facts["here"], facts["control_key"]
    replicas = []
    for one in server.replicas:
        told = one._asdict() | {"state": _state(server), "memory_bytes": look.memory.get(one.name)}
        del told["leader"]
        replicas.append(told)
    told = {"served": dict(look.served)} if server.control_key else {}
    return facts | {"health": look.health, "http_status": look.http_status, "replicas": replicas} | told


def _state(server: RunningServer) -> str:
    """The state of a replica: that of its server, as far as replicas have it."""
    return "serving" if server.state in ("starting", "ending", "on disk") else server.state


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
    if look.served:
        yield from _served_lines(look.served)
    if server.last_event:
        yield f"  event     {server.last_event} ({_duration(server.last_event_at)} ago)"


def _served_lines(told: Mapping[str, object]) -> Iterator[str]:
    """What only `torpor serve` knows."""
    pinned = ", pinned" if told.get("pinned") else ""
    yield f"  requests  {told.get('in_flight')} in flight, {told.get('waiting')} waiting{pinned}"
    starts = told.get("starts")
    for one in starts[:_STARTS] if isinstance(starts, list) else ():
        if isinstance(one, dict):
            ago = _duration(float(one.get("at", 0.0)))
            why = " ".join(str(one.get("error", "")).split())
            how = f"failed: {why}" if why else f"in {float(one.get('seconds', 0.0)):.2f} s"
            yield plain(f"  start     {one.get('boot')} {how}, {ago} ago")


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
