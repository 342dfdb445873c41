"""The guard's own routes, /_torpor/*, with which core changes the guard's state.

All of them need the lifecycle key except `identity`, by which core recognises its own engine before it sends the key.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import re
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias, cast

from torpor.engine_patches.process_identity import restored
from torpor.engine_patches.renewal import generators_of_their_own, renew_random_state
from torpor.guard.identity import NONCE_BYTES, proof
from torpor.guard.keys import LifecycleKey
from torpor.guard.messages import MAX_CONTROL_BYTES, Refusal, answer, conflict, hung_up, read_options, refuse
from torpor.guard.protocol import (
    CONTROL,
    KIND_HEADER,
    LETS_GO_S,
    REASON_HEADER,
    REPLICA_HEADER,
    WAKES_HEADER,
    WOKEN_BY_DEFAULT,
)
from torpor.guard.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.guard.connections import Connections
    from torpor.guard.messages import Headers, Receive, Scope, Send
    from torpor.guard.states import StateMachine

__all__ = ["Control", "OnWake"]

OnWake: TypeAlias = Callable[[], Awaitable[None] | None]
"""What an engine does at each wake: a function or a coroutine function."""

_METHODS = {"state": "GET", "serve": "POST", "drain": "POST", "asleep": "POST", "wake": "POST"}
_WRONG_METHOD = Refusal(405, "method_not_allowed", "state is a GET, the other calls are POSTs.")
_NOT_GET = Refusal(405, "method_not_allowed", "This call is a GET.")
_NO_NONCE = Refusal(400, "bad_nonce", f"The query has to be nonce= and {2 * NONCE_BYTES} hex digits in lower case.")
_NO_ENDS = Refusal(501, "unknown_connection", "The server does not say who is connected, so nothing can be proven.")
_NONCE = re.compile(rb"nonce=([0-9a-f]{%d})" % (2 * NONCE_BYTES))
_FORWARDING = (b"x-forwarded-for", b"forwarded")  # headers in which a client can claim another address
_MAX_DRAIN_S = 24 * 3600
_LOOK_S = 0.05

_OK, _BAD_REQUEST, _ERROR = 200, 400, 500
_TAG_DIGITS = 12
_REASON = re.compile(r"[A-Za-z0-9 -]{0,64}")
_WOKEN_BY = re.compile(r"[ -~]{0,200}")


class Control:
    """Answers the control routes.

    Args:
        machine: the state that the routes change.
        key: the lifecycle key, which `wake` replaces.
        replica_id: the id that `state` reports.
        on_wake: see `Guard`.

    Attributes:
        wakes: how often the engine has woken.
    """

    paths = tuple(CONTROL + name for name in _METHODS)

    def __init__(
        self, machine: StateMachine, key: LifecycleKey, replica_id: str, on_wake: OnWake | None = None
    ) -> None:
        self._machine = machine
        self._key = key
        self._replica_id = replica_id
        self._on_wake = on_wake
        self._warned = False
        self._is_copy = False
        self._reason = ""
        self._woken_by = ""
        self.wakes = 0

    @property
    def boot_headers(self) -> dict[str, str]:
        """Headers about this start that everybody may see; they hold no id that a control call takes, and no key.

        `cold` has never slept, `woken` slept and woke in the same process, `restored` woke from a snapshot under a replica id
        of its own. The replica's tag is a digest of the replica id; it tells replicas apart and nothing else.
        `torpor-boot-reason` says why a start is not a plain one, e.g. `wake failed`.
        """
        kind = "restored" if self._is_copy else "woken" if self.wakes else "cold"
        tag = hashlib.sha256(b"torpor-replica " + self._replica_id.encode()).hexdigest()[:_TAG_DIGITS]
        reason = {REASON_HEADER: self._reason} if self._reason else {}
        return {KIND_HEADER: kind, WAKES_HEADER: str(self.wakes), REPLICA_HEADER: tag, **reason}

    @property
    def until(self) -> str:
        """The state in words, for callers while it is not `serving`: how long it lasts, and what ends it."""
        if self._machine.state is not State.ASLEEP:
            return "try again in a moment"
        return f"it answers again once it is woken: {self._woken_by or WOKEN_BY_DEFAULT}"

    @property
    def woken_by(self) -> str:
        """What wakes the sleeping engine; empty if that is unknown."""
        return self._woken_by if self._machine.state is State.ASLEEP else ""

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, connections: Callable[[], Connections]
    ) -> None:
        """Answer one of `paths`; `connections` returns the server's open connections."""
        name = str(scope["path"]).removeprefix(CONTROL)
        machine = self._machine
        if scope["method"] != _METHODS[name]:
            await refuse(send, _WRONG_METHOD)
        elif name == "state":
            body = {
                "state": machine.state,
                "in_flight": machine.in_flight,
                "answered": machine.answered,
                "replica_id": self._replica_id,
            }
            await answer(send, _OK, body)
        elif (options := await read_options(receive)) is None:
            await _bad(send, f"the body has to be a JSON object of at most {MAX_CONTROL_BYTES} bytes")
        elif name == "drain":
            await self._drain(options, receive, send, connections)
        elif name == "wake":
            await self._wake(options, send)
        elif name == "serve":
            await self._serve(options, send)
        elif not _WOKEN_BY.fullmatch(woken_by := str(options.get("woken_by", ""))):
            await _bad(send, "woken_by has to be at most 200 printable characters")
        elif machine.asleep():
            self._woken_by = woken_by
            self._warn_of_generators()
            if options.get("alone") is True:
                connections().cut_all()
            await self._tell(send, None)
        else:
            await self._tell(send, f"{name} is out of order")

    async def _serve(self, options: dict[str, object], send: Send) -> None:
        reason = options.get("reason", "")
        if not isinstance(reason, str) or not _REASON.fullmatch(reason):
            await _bad(send, "reason has to be at most 64 letters, digits, dashes and blanks")
            return
        if self._on_wake is not None and self._machine.begin_renewal():
            try:
                if inspect.isawaitable(done := self._on_wake()):
                    await done
            except Exception as error:
                await self._tell_failed(send, "the engine's on_wake failed", error)
                return
            self._machine.end_step(succeeded=True)
        if not self._machine.serve():
            await self._tell(send, "serve is out of order")
            return
        self._reason = reason
        await self._tell(send, None)

    async def prove(self, scope: Scope, headers: Headers, send: Send) -> None:
        """Prove in any state that this is the guard of this start; see `torpor.guard.identity`."""
        nonce = _NONCE.fullmatch(cast("bytes", scope.get("query_string", b"")))
        client, server = (cast("Sequence[object] | None", scope.get(end)) for end in ("client", "server"))
        if scope["method"] != "GET":
            await refuse(send, _NOT_GET)
        elif nonce is None:
            await refuse(send, _NO_NONCE)
        elif not client or not server or any(name in headers for name in _FORWARDING):
            await refuse(send, _NO_ENDS)
        else:
            found = proof(self._key.proof_key, bytes.fromhex(nonce[1].decode()), client=client, server=server)
            await answer(send, _OK, {"proof": found})

    async def _drain(
        self, options: dict[str, object], receive: Receive, send: Send, connections: Callable[[], Connections]
    ) -> None:
        """Refuse new requests and wait until none is in flight; at the deadline return to the state before.

        With `cut`, the guard closes idle connections meanwhile and the others at the deadline. It then returns to the state
        before only if the engine does not drop a request whose client is gone.
        """
        limit_s = options.get("deadline_s", 0)
        if isinstance(limit_s, bool) or not isinstance(limit_s, int | float) or not 0 <= limit_s <= _MAX_DRAIN_S:
            await _bad(send, f"deadline_s has to be a number of seconds, 0 to {_MAX_DRAIN_S}")
            return
        idle = self._machine.begin_drain()
        if idle is None:
            await self._tell(send, "drain is out of order")
            return
        drained, was_cut = False, 0
        try:
            if options.get("cut") is True:
                drained, was_cut = await self._emptied(idle, receive, limit_s, connections())
            else:
                drained = await _done_before_hang_up(idle, receive, limit_s)
        finally:
            self._machine.end_drain(drained=drained)
        if was_cut and drained:
            await answer(send, _OK, {"state": self._machine.state, "cut": was_cut})
        elif drained:
            await self._tell(send, None)
        else:
            machine = self._machine
            await conflict(send, "requests are still in flight", machine.state, in_flight=machine.in_flight)

    async def _emptied(
        self, idle: asyncio.Future[None], receive: Receive, limit_s: float, connections: Connections
    ) -> tuple[bool, int]:
        """Wait for requests and connections to end, then cut them; return whether none is in flight, and how many were cut."""
        loop = asyncio.get_running_loop()
        deadline, was_cut = loop.time() + limit_s, 0
        gone = asyncio.ensure_future(hung_up(receive))
        try:
            connections.close_idle()
            while not gone.done() and not (idle.done() and not connections.earlier) and loop.time() < deadline:
                pending = {gone} if idle.done() else {gone, idle}
                await asyncio.wait(pending, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                connections.close_idle()
            if not gone.done():
                was_cut = self._machine.in_flight
                connections.cut_earlier()
                if not idle.done():
                    await asyncio.wait({gone, idle}, timeout=LETS_GO_S, return_when=asyncio.FIRST_COMPLETED)
            return idle.done() and not gone.done(), was_cut
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _wake(self, options: dict[str, object], send: Send) -> None:
        try:
            new_key = self._new_key(options)
            replica_id = self._new_replica_id(options)
        except ValueError as error:
            await _bad(send, str(error))
            return
        if not self._machine.wake():
            await self._tell(send, "wake is out of order")
            return
        if new_key is not None:
            self._key.replace(new_key)
        self.wakes += 1
        self._is_copy |= replica_id != self._replica_id
        self._replica_id = replica_id
        restored()  # notice the restore now: a process that starts from here on was not restored
        try:
            renew_random_state()
        except Exception as error:
            self._machine.fail()
            await self._tell_failed(send, "the random state cannot be made new", error)
            return
        await self._tell(send, None)

    def _new_key(self, options: dict[str, object]) -> LifecycleKey | None:
        """The new lifecycle key in a wake's document.

        Raises:
            ValueError: it is no key, or the old one, which every replica of the snapshot has.
        """
        if "key" not in options:
            return None
        key = LifecycleKey(options["key"])
        if key == self._key:
            raise ValueError("key has to be a new one: the old one is in every replica of the snapshot")
        return key

    def _new_replica_id(self, options: dict[str, object]) -> str:
        """The replica id from now on: several replicas may wake from one snapshot.

        Raises:
            ValueError: it is no text, or empty.
        """
        replica_id = options.get("replica_id", self._replica_id)
        if not isinstance(replica_id, str) or not replica_id:
            raise ValueError("replica_id has to be a string with something in it")
        return replica_id

    def _warn_of_generators(self) -> None:
        """Log once which random generators every replica will share, if the engine does not renew them."""
        if self._on_wake is not None or self._warned:
            return
        self._warned = True
        if found := generators_of_their_own():
            counted = ", ".join(f"{count} of {name}" for name, count in sorted(found.items()))
            print(
                f"torpor.guard: a wake does not renew these random generators of this process: {counted}. Each replica of one "
                "snapshot draws the same numbers from them; if answers or names depend on that, pass on_wake to Guard.",
                file=sys.stderr,
                flush=True,
            )

    async def _tell_failed(self, send: Send, what: str, error: Exception) -> None:
        told = f"{what}: {type(error).__name__}: {error}"
        await answer(send, _ERROR, {"error": told, "state": self._machine.state})

    async def _tell(self, send: Send, error: str | None) -> None:
        if error is None:
            await answer(send, _OK, {"state": self._machine.state})
        else:
            await conflict(send, error, self._machine.state)


async def _bad(send: Send, error: str) -> None:
    await answer(send, _BAD_REQUEST, {"error": error})


async def _done_before_hang_up(idle: asyncio.Future[None], receive: Receive, limit_s: float) -> bool:
    """Whether the future is done in time and while the caller still listens.

    If the caller hangs up, the drain counts as failed; otherwise nobody would reopen the guard.
    """
    if idle.done():
        return True
    gone = asyncio.ensure_future(hung_up(receive))
    try:
        await asyncio.wait({idle, gone}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        return idle.done() and not gone.done()
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
