"""vLLM's dialect, as far as Torpor and its tests need it.

Routes and their behaviour follow vLLM 0.32 (run on a CPU) and 0.33 (source read): `entrypoints/serve/dev/*/api_router.py`,
`v1/executor/abstract.py`, `v1/engine/core.py`. A sleep pauses the scheduler first, so chats wait while the engine sleeps. A
second sleep or wake only logs a warning, health generates no token, and a chat with another model's name gets 404. After
the engine core died, requests get 500 and the server shuts down (`entrypoints/launchers/launcher.py`; read, not run).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from torpor._override import override
from torpor.testing.standin.app import StandInApp
from torpor.testing.standin.logprobs import as_completion
from torpor.testing.standin.ranks import RankError, RankFault
from torpor.testing.standin.scheduler import AS_LOADED, Scheduler

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from torpor.tasks.routes import Task
    from torpor.testing.faults import Fault
    from torpor.testing.standin.app import Routes, StandInOptions
    from torpor.testing.standin.commands import Answer, Command
    from torpor.testing.standin.exchange import Exchange
    from torpor.testing.standin.link import SchedulerLink

__all__ = ["DEV_MODE_VARIABLE", "RENEW", "VLLMApp", "VLLMEngineCore"]

RENEW = "torpor_renew"
"""The method that Torpor adds to vLLM's workers (`--worker-extension-cls`): it sets a seed."""

_OF_RANKS = ("torpor_before_sleep", "torpor_take_back")
_OF_ALL = ("torpor_note_weights", "torpor_let_go", "torpor_after_wake")
_TAG_BYTES = 1 << 20

DEV_MODE_VARIABLE = "VLLM_SERVER_DEV_MODE"
"""vLLM's variable: 1 adds the management routes."""

_SLEEP_TAGS = ("weights", "kv_cache")
_LEVELS = ("0", "1", "2")
_MODES = ("abort", "wait", "keep")
_WATCHDOG_S = 5.0  # `watchdog_loop` of vLLM: a server without requests ends this long after its engine core
_OK, _BAD_REQUEST, _ERROR, _UNAVAILABLE = 200, 400, 500, 503
_ERROR_TYPES = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}


class VLLMEngineCore(Scheduler):
    """Sleeps and wakes like vLLM's engine core: a call in the wrong order only logs a warning.

    A forward pass on sleeping memory ends it. After a sleep of level 2 the weights hold garbage until they are loaded
    again. It keeps the snapshot's random state until a command seeds it again.
    """

    def __init__(self, fault: Fault | None, fault_once: str = "") -> None:
        super().__init__(fault, fault_once)
        self._sleeping: set[str] = set()
        self._dropped = False

    @override
    def change(self, command: Command) -> Answer:
        match command["op"]:
            case "sleep":
                self._sleep(command["level"])
            case "wake":
                self._wake(command["tags"])
            case "rpc":
                return self._call(command["method"], command["args"])
        return {"asleep": bool(self._sleeping)}

    @override
    def change_all(self, command: Command) -> Answer:
        """Every worker executes it; a worker's failure is an answer, and the engine core lives on."""
        try:
            answers = self.group.together(command, self.own)
        except RankError as error:
            return {
                "error": f"Worker failed with error '{error}', please check the stack trace above for the root cause"
            }
        return {**answers[0], "results": [result for answer in answers for result in answer.get("results", [])]}

    @override
    def check_memory(self) -> None:
        if self._sleeping or self.group.suspended:
            raise RuntimeError(
                f"CUDA error: an illegal memory access: {sorted(self._sleeping) or 'what the ranks share'} is asleep"
            )

    @override
    def fail(self) -> None:
        _warn("EngineCore encountered a fatal error.")

    @property
    @override
    def garbled(self) -> bool:
        return self._dropped or super().garbled

    def _sleep(self, level: int) -> None:
        if "weights" in self._sleeping:
            _warn("Executor is already sleeping.")
            return
        self.group.act(asleep=True)
        if not self.group.faulty(RankFault.FORGETS_SLEEP):
            self._sleeping.update(_SLEEP_TAGS)
        self.group.say("released")
        self._fell_asleep()
        self._dropped = self._dropped or level > 1

    def _wake(self, tags: list[str]) -> None:
        if not self._sleeping:
            _warn("Executor is not sleeping.")
        elif strange := [tag for tag in tags if tag not in self._sleeping]:
            _warn(f"Tag {strange[0]} is not in sleeping tags {sorted(self._sleeping)}")
        elif self.group.suspended:
            raise RankError(f"rank {self.group.rank}: woken before it took back what the ranks share")
        else:
            self.group.act(asleep=False)
            self.group.say("resumed")
            self._sleeping.difference_update(tags or _SLEEP_TAGS)
            if not self._sleeping:
                self._woke()

    def _call(self, method: str, args: list[str]) -> Answer:
        """Call a method of this worker."""
        if method in _OF_ALL or (not self.group.alone and method in _OF_RANKS):
            return {"results": [self._report(method, args)]}
        match method, args:
            case (name, [seed]) if name == RENEW and seed.isdecimal():
                self._seed(int(seed))
                return {"results": [seed]}
            case "reload_weights", [] if "weights" not in self._sleeping:
                self._dropped = False
                return {"results": [None]}
            case "reload_weights", []:
                return {"error": "the weights' memory is asleep"}
        return {"error": f"Method '{method}' is not implemented, or not with {len(args)} argument(s)."}

    def _report(self, method: str, args: list[str]) -> dict[str, object]:
        """Answer as Torpor's extension of a worker does."""
        report: dict[str, object] = {"rank": self.group.rank}
        match method:
            case "torpor_before_sleep" | "torpor_note_weights":
                report["weights"] = self.weights
            case "torpor_let_go":
                held = [tag for tag in _SLEEP_TAGS if tag not in self._sleeping]
                if not self.group.alone:
                    self.group.suspend(held)
                report["held_bytes"] = _TAG_BYTES * len(held)
            case "torpor_take_back":
                self.group.take_back()
            case _:
                self._seed(int(args[0]))
                report |= {"weights": self.weights, "weights_before": AS_LOADED}
        return report


class VLLMApp(StandInApp):
    """The ASGI application.

    Args:
        options: how it behaves.
        link: the socket to the engine core.
    """

    scheduler = VLLMEngineCore
    task_paths: ClassVar[Mapping[Task, str]] = MappingProxyType({"classify": "/classify"})
    bare_list: ClassVar[bool] = False

    def __init__(self, options: StandInOptions, link: socket.socket) -> None:
        super().__init__(options, link)
        self._mode = "wait"  # how the last sleep treats requests in flight
        self._watchdog: asyncio.Task[None] | None = None

    @classmethod
    @override
    def prepare_process(cls, children: tuple[int, ...]) -> None:
        """Do nothing: an engine core sends no signal; the closed socket shows its end."""

    @override
    def _dialect(self) -> Routes:
        routes: Routes = {
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
        }
        if self._options.task == "chat":
            routes["/v1/completions"] = ("POST", self._complete)
        if os.environ.get(DEV_MODE_VARIABLE) == "1":
            routes |= {
                "/sleep": ("POST", self._sleep),
                "/wake_up": ("POST", self._wake_up),
                "/is_sleeping": ("GET", self._is_sleeping),
                "/reset_prefix_cache": ("POST", self._reset_prefix_cache),
                "/collective_rpc": ("POST", self._collective_rpc),
                "/server_info": ("GET", self._server_info),
            }
        return routes

    @override
    async def _started(self, link: SchedulerLink) -> None:
        await super()._started(link)
        self._watchdog = asyncio.create_task(self._watch(link))

    async def _watch(self, link: SchedulerLink) -> None:
        await link.gone.wait()
        self._unpaused.set()  # chats that wait for a wake fail now
        await asyncio.sleep(_WATCHDOG_S)
        signal.raise_signal(signal.SIGTERM)

    @override
    async def _refuse(self, exchange: Exchange, status: int, message: str) -> None:
        kind = _ERROR_TYPES[status]
        await exchange.answer(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})

    @override
    async def _scheduler_is_gone(self, exchange: Exchange) -> None:
        _warn("EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.")
        signal.raise_signal(signal.SIGTERM)
        await self._refuse(exchange, _ERROR, "The server had an error while processing your request.")

    @override
    def _knows(self, model: object) -> bool:
        return model == self._options.served_name or model in self._options.adapters

    @override
    async def _next_token(self) -> bool:
        await super()._next_token()
        if self._unpaused.is_set() or self._mode == "wait":
            return True
        if self._mode == "abort":
            return False
        await self._until_unpaused()
        return True

    async def _complete(self, exchange: Exchange) -> None:
        match await exchange.json():
            case {"model": model, "prompt": str(prompt), "max_tokens": int(tokens), "echo": True} if self._knows(model):
                words, length = await self._words_of(prompt, tokens, model)
                self.draft.answer(tokens)
                await exchange.answer(_OK, as_completion(words, length, str(model)))
            case _:
                await self._refuse(exchange, _BAD_REQUEST, "a known model, a prompt, max_tokens and echo are required")

    async def _health(self, exchange: Exchange) -> None:
        dead = self._link is None or self._link.gone.is_set()
        await exchange.answer_text(_UNAVAILABLE if dead else _OK, "")

    async def _metrics(self, exchange: Exchange) -> None:
        await exchange.answer_text(_OK, f"vllm:num_requests_running {self._running}\n{self.draft.metrics()}")

    async def _server_info(self, exchange: Exchange) -> None:
        await exchange.answer(_OK, {"vllm_config": f"model='{self._options.served_name}'", "vllm_env": {}})

    async def _sleep(self, exchange: Exchange) -> None:
        level, mode = exchange.query.get("level", ["1"])[-1], exchange.query.get("mode", ["abort"])[-1]
        if level not in _LEVELS or mode not in _MODES:
            await self._refuse(exchange, _BAD_REQUEST, f"level is one of {_LEVELS}, mode one of {_MODES}")
            return
        if await self._sleep_fault(exchange, _ERROR, "Call to sleep method failed: CUDA error: out of memory"):
            return
        self._mode = mode
        self._unpaused.clear()
        if mode != "keep":
            await self._idle.wait()
        answer = await self._ask({"op": "sleep", "level": int(level)}) if level != "0" else {}
        if "error" in answer:
            await self._refuse(exchange, _ERROR, f"Call to sleep method failed: {answer['error']}")
            return
        self._fell_asleep()
        await exchange.answer(_OK, {"status": "sleeping", "level": int(level)})

    async def _wake_up(self, exchange: Exchange) -> None:
        if await self._wake_fault(exchange, _ERROR, "Call to wake_up method failed: CUDA error: out of memory"):
            return
        tags = exchange.query.get("tags")
        memory = [tag for tag in tags or [] if tag != "scheduling"]
        answer = await self._ask({"op": "wake", "tags": memory} if memory or not tags else {"op": "look"})
        if "error" in answer:
            await self._refuse(exchange, _ERROR, f"Call to wake_up method failed: {answer['error']}")
            return
        if not answer["asleep"]:
            self._unpaused.set()
        await exchange.answer(_OK, {"status": "sleeping" if answer["asleep"] else "awake", "tags": tags})

    async def _is_sleeping(self, exchange: Exchange) -> None:
        answer = await self._ask({"op": "look"})
        await exchange.answer(_OK, {"is_sleeping": answer["asleep"] or not self._unpaused.is_set()})

    async def _reset_prefix_cache(self, exchange: Exchange) -> None:
        await exchange.answer(_OK, {"success": self._running == 0})

    async def _collective_rpc(self, exchange: Exchange) -> None:
        body = await exchange.json()
        if not isinstance(body, dict) or body.get("method") is None:
            await self._refuse(exchange, _BAD_REQUEST, "Missing 'method' in request body")
            return
        args = [str(word) for word in body.get("args", [])]
        answer = await self._ask({"op": "rpc", "method": str(body["method"]), "args": args})
        if "error" in answer:
            await self._refuse(exchange, _ERROR, f"Call to collective_rpc method failed: {answer['error']}")
        else:
            await exchange.answer(_OK, {"results": answer["results"]})


def _warn(message: str) -> None:
    print(f"standin: {message}", file=sys.stderr, flush=True)
