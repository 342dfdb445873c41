"""Core's side of the engine's proof: the lifecycle key is sent only on a connection on which the engine proved its identity.

See `torpor.guard.identity` for what is proven, and how.
"""

from __future__ import annotations

import hmac
import json
import secrets
import time
from http.client import RemoteDisconnected
from typing import TYPE_CHECKING

from torpor.errors import ForeignServerError
from torpor.guard.identity import NONCE_BYTES, proof, proof_key
from torpor.guard.protocol import IDENTITY

if TYPE_CHECKING:
    import socket

    from torpor.engine.handle import Engine

__all__ = ["check_engine", "check_listener"]

_LONGEST_ANSWER = 8192
_READ_BYTES = 4096
_SHOWN_BYTES = 200
_LENGTH_DIGITS = 4
_OK = b"HTTP/1.1 200 "


def check_engine(engine: Engine, connection: socket.socket, *, port: int, timeout_s: float) -> None:
    """Have the other end of a new connection prove that it is the engine's guard. The connection stays open for a request.

    Args:
        engine: its key is the secret that the proof needs.
        connection: new, connected to the engine's port.
        port: for the message.
        timeout_s: seconds for the whole answer, also if it comes byte by byte.

    Raises:
        ForeignServerError: somebody else answered; or nobody did, and the port certainly belongs to another process.
        OSError: no answer, and the owner of the port is unknown.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    try:
        answer = _ask(connection, nonce, timeout_s)
    except OSError as error:
        check_listener(engine, port, f"GET {IDENTITY} got no answer ({type(error).__name__})")
        raise
    wanted = proof(
        proof_key((engine.guard_key or "").encode()),
        nonce,
        client=connection.getsockname(),
        server=connection.getpeername(),
    )
    if not hmac.compare_digest(_proof_in(answer), wanted.encode()):
        raise _foreign(engine, port, f"GET {IDENTITY} gave {_shown(answer)!r}")
    if _headers(answer).get(b"connection", b"").lower() == b"close":
        raise ForeignServerError(
            f"The engine (pid {engine.pid}) proved who it is and closed the connection to port {port}, so the lifecycle key cannot "
            "be sent to it safely. Its server has to keep an HTTP/1.1 connection open for a second request."
        )


def check_listener(engine: Engine, port: int, seen: str) -> None:
    """Check that no other program listens on the engine's port, as far as /proc tells.

    Args:
        engine: should own the port.
        port: which one.
        seen: what the listener did, for the message.

    Raises:
        ForeignServerError: the listener belongs to another process; the message names it.
    """
    if owner := _other_owner(engine, port):
        raise _foreign(engine, port, seen, owner)


def _other_owner(engine: Engine, port: int) -> str | None:
    """The process that listens on the engine's port instead of the engine; None if /proc shows none."""
    if engine.private_network:
        return None
    from torpor.engine.listeners import foreign_listener  # noqa: PLC0415 - psutil: 7 ms of a restore

    return foreign_listener(engine, port)


def _ask(connection: socket.socket, nonce: bytes, timeout_s: float) -> bytes:
    """The answer, or its beginning. It is read by hand, so that nobody who answers decides about time or memory."""
    deadline = time.monotonic() + timeout_s
    connection.settimeout(timeout_s)
    connection.sendall(f"GET {IDENTITY}?nonce={nonce.hex()} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
    answer = b""
    while len(answer) <= _LONGEST_ANSWER and not _complete(answer):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(left_s)
        chunk = connection.recv(_READ_BYTES)
        if not chunk and not answer:
            raise RemoteDisconnected("the other side hung up without an answer")
        if not chunk:
            break
        answer += chunk
    return answer


def _complete(answer: bytes) -> bool:
    """Whether an answer is complete, or cannot be the guard's."""
    _, end, body = answer.partition(b"\r\n\r\n")
    if not _OK.startswith(answer[: len(_OK)]):
        return True
    return bool(end) and len(body) >= _length(answer)


def _headers(answer: bytes) -> dict[bytes, bytes]:
    """Headers by lower-case name. No regular expression: compiling one takes 1 ms of a restore."""
    lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return {name.lower(): value.strip(b" \t") for name, _, value in (line.partition(b":") for line in lines)}


def _length(answer: bytes) -> int:
    """Length of the body; 0 if the header is not one that a guard would send."""
    told = _headers(answer).get(b"content-length", b"")
    return int(told) if told.isdigit() and len(told) <= _LENGTH_DIGITS else 0


def _proof_in(answer: bytes) -> bytes:
    """The proof in an answer of the guard; empty for any other answer."""
    body = answer.partition(b"\r\n\r\n")[2]
    if not answer.startswith(_OK) or len(body) != _length(answer):
        return b""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return b""
    given = found.get("proof") if isinstance(found, dict) else None
    return given.encode(errors="replace") if isinstance(given, str) else b""


def _shown(answer: bytes) -> str:
    """What an error message shows of an answer: its first line and its body."""
    head, _, body = answer[: _LONGEST_ANSWER + 1].partition(b"\r\n\r\n")
    first = head.partition(b"\r\n")[0]
    return b" ".join(part for part in (first, body) if part)[:_SHOWN_BYTES].decode(errors="replace")


def _foreign(engine: Engine, port: int, seen: str, owner: str | None = None) -> ForeignServerError:
    if owner is None:
        owner = _other_owner(engine, port)
    code = engine.poll()
    ended = "" if code is None else f" The engine itself has ended with code {code}."
    if owner:
        cure = (
            f"Another program took the port: {owner}. End it and start again, or choose another Deployment.port (`ss -ltnp "
            f"'sport = :{port}'` lists who listens)."
        )
    else:
        cure = (
            f"Another program took the port (`ss -ltnp 'sport = :{port}'` names it), or the engine's server does not run "
            "torpor.guard.Guard with this start's boot document as its outermost layer."
        )
    return ForeignServerError(
        f"Port {port} answers, but not as the engine that was launched (pid {engine.pid}, replica id {engine.replica_id}): {seen}. "
        f"The lifecycle key was not sent.{ended} {cure}"
    )
