"""The guard's own routes, /_torpor/*: core moves the state by them.

Whoever gets here has shown the lifecycle key, but for `identity`, by which core knows its own engine before it shows the key.
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
"""What an engine does at each wake, by a plain function or a coroutine's."""

_METHODS = {"state": "GET", "serve": "POST", "drain": "POST", "asleep": "POST", "wake": "POST"}
_WRONG_METHOD = Refusal(405, "method_not_allowed", "state is a GET, the other calls are POSTs.")
_NOT_GET = Refusal(405, "method_not_allowed", "This call is a GET.")
_NO_NONCE = Refusal(400, "bad_nonce", f"The query has to be nonce= and {2 * NONCE_BYTES} hex digits in lower case.")
_NO_ENDS = Refusal(501, "unknown_connection", "The server does not say who is connected, so nothing can be proven.")
_NONCE = re.compile(rb"nonce=([0-9a-f]{%d})" % (2 * NONCE_BYTES))
_FORWARDING = (b"x-forwarded-for", b"forwarded")  # by these a server takes a client's word for who the client is
_MAX_DRAIN_S = 24 * 3600
_LOOK_S = 0.05

_OK, _BAD_REQUEST, _ERROR = 200, 400, 500
_TAG_DIGITS = 12
_REASON = re.compile(r"[A-Za-z0-9 -]{0,64}")
_WOKEN_BY = re.compile(r"[ -~]{0,200}")


class Control:
    """Answers the control routes.

    Args:
        machine: what they move.
        key: what `wake` replaces.
        replica_id: what `state` tells.
        on_wake: see `Guard`.

    Attributes:
        wakes: how often the engine woke so far.
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
        """What everybody may know of this boot: no id that a control call would take, and no key.

        `cold` never slept, `woken` slept and woke in place, `restored` woke as a copy of a snapshot: core gives a copy a boot
        id of its own. The replica's tag is a digest of that id; it tells one replica from another and nothing else.
        `torpor-boot-reason` says why a start is not a plain one, e.g. `wake failed`.
        """
        kind = "restored" if self._is_copy else "woken" if self.wakes else "cold"
        tag = hashlib.sha256(b"torpor-replica " + self._replica_id.encode()).hexdigest()[:_TAG_DIGITS]
        reason = {REASON_HEADER: self._reason} if self._reason else {}
        return {KIND_HEADER: kind, WAKES_HEADER: str(self.wakes), REPLICA_HEADER: tag, **reason}

    @property
    def until(self) -> str:
        """What a caller is told of the state while it is not `serving`: until when, and what changes it."""
        if self._machine.state is not State.ASLEEP:
            return "try again in a moment"
        return f"it answers again once it is woken: {self._woken_by or WOKEN_BY_DEFAULT}"

    @property
    def woken_by(self) -> str:
        """What wakes the engine that sleeps; empty where nobody said so."""
        return self._woken_by if self._machine.state is State.ASLEEP else ""

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, connections: Callable[[], Connections]
    ) -> None:
        """Answer one of `paths`; `connections` gives those of the server at that moment."""
        name = str(scope["path"]).removeprefix(CONTROL)
        machine = self._machine
        if scope["method"] != _METHODS[name]:
            await refuse(send, _WRONG_METHOD)
        elif name == "state":
            body = {"state": machine.state, "in_flight": machine.in_flight, "replica_id": self._replica_id}
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
        """Prove to whoever asks, in whatever state, that this is the guard of this boot; see `torpor.guard.identity`."""
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
        """Refuse new requests and wait until none is in flight; at the deadline go back, with nothing lost.

        With `cut`, idle connections are closed meanwhile, at the deadline the others as well, and it goes back only where the
        engine does not let go of a request whose client it has lost.
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
        self, idle: asyncio.Future[None], receive: Receive, limit_s: float, peers: Connections
    ) -> tuple[bool, int]:
        """Wait for requests and connections to end, then cut them: whether none is in flight, and how many requests were cut."""
        loop = asyncio.get_running_loop()
        deadline, was_cut = loop.time() + limit_s, 0
        gone = asyncio.ensure_future(hung_up(receive))
        try:
            peers.close_idle()
            while not gone.done() and not (idle.done() and not peers.earlier) and loop.time() < deadline:
                pending = {gone} if idle.done() else {gone, idle}
                await asyncio.wait(pending, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                peers.close_idle()
            if not gone.done():
                was_cut = self._machine.in_flight
                peers.cut_earlier()
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
        restored()  # notice it now: a process that begins from here on is none of those that came back
        try:
            renew_random_state()
        except Exception as error:
            self._machine.fail()
            await self._tell_failed(send, "the random state cannot be made new", error)
            return
        await self._tell(send, None)

    def _new_key(self, options: dict[str, object]) -> LifecycleKey | None:
        """The key that a wake brings.

        Raises:
            ValueError: it is none, or the old one, which every copy of the snapshot holds.
        """
        if "key" not in options:
            return None
        key = LifecycleKey(options["key"])
        if key == self._key:
            raise ValueError("key has to be another one than before: that one is in every copy of the snapshot")
        return key

    def _new_replica_id(self, options: dict[str, object]) -> str:
        """What the engine is called from now on: several replicas may wake from one snapshot.

        Raises:
            ValueError: it is no name.
        """
        replica_id = options.get("replica_id", self._replica_id)
        if not isinstance(replica_id, str) or not replica_id:
            raise ValueError("replica_id has to be a string with something in it")
        return replica_id

    def _warn_of_generators(self) -> None:
        """Say once, in the engine's log, what each replica will have in common, where the engine does nothing about it."""
        if self._on_wake is not None or self._warned:
            return
        self._warned = True
        if found := generators_of_their_own():
            counted = ", ".join(f"{count} of {name}" for name, count in sorted(found.items()))
            print(
                f"torpor.guard: this process holds random generators that a wake does not make new: {counted}. Each replica of "
                "one snapshot draws the same numbers from them; where answers or names depend on that, hand Guard an on_wake.",
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

    A caller that has gone believes that its drain failed, so it has to have: the door would stay shut for ever.
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
