"""SGLang's dialect, as far as Torpor and its tests need it.

Routes and their behaviour follow SGLang 0.5.6.post2, 0.5.16 and 0.5.23 (`srt/entrypoints/http_server.py`): release
and resume need a JSON body and accept GET and POST; chats block while generation is paused; a health probe generates
a token, which ends a sleeping engine (measured on 0.5.16 and later).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from torpor._override import override
from torpor.testing.standin.app import StandInApp, hang
from torpor.testing.standin.logprobs import as_generated
from torpor.testing.standin.ranks import RankError, RankFault
from torpor.testing.standin.scheduler import AS_LOADED, Scheduler, wait_for_ever

if TYPE_CHECKING:
    from types import FrameType

    from torpor.testing.faults import Fault
    from torpor.testing.standin.app import Routes
    from torpor.testing.standin.commands import Answer, Command
    from torpor.testing.standin.exchange import Exchange

__all__ = ["SGLangApp", "SGLangScheduler"]

_MEMORY_TAGS = ("kv_cache", "weights", "cuda_graph")
_OK, _BAD_REQUEST = 200, 400


class SGLangScheduler(Scheduler):
    """Ends on the same errors as SGLang's scheduler (0.5.6.post2 to 0.5.23).

    These are: a release with running requests (AssertionError), a release of released memory, a resume of memory that is
    not released (KeyError), a forward pass on released memory. Like SGLang's, it prints a traceback to standard error and
    sends SIGQUIT to its parent. It seeds again at a resume, as SGLang does with Torpor's patch.
    """

    def __init__(self, fault: Fault | None, fault_once: str = "") -> None:
        super().__init__(fault, fault_once)
        self._released: set[str] = set()

    @override
    def change(self, command: Command) -> Answer:
        match command["op"]:
            case "release":
                self._release(command["tags"], command["running"])
            case "suspend":
                self.group.suspend(self._held())
            case "take_back":
                self.group.take_back()
            case "look":
                pass
            case _:
                self._resume(command["tags"])
        return {"held": self._held()}

    @override
    def change_all(self, command: Command) -> Answer:
        if command["op"] == "release":
            self.group.together(command, self.own)
            answers = self.group.together({"op": "suspend"}, self.own)
            for rank, answer in enumerate(answers):
                if held := answer["held"]:
                    raise RankError(f"rank {rank} says that it sleeps, and still holds {', '.join(held)}")
        else:
            self.group.together({"op": "take_back"}, self.own)
            self.group.together(command, self.own)
        return {}

    def _held(self) -> list[str]:
        return sorted({"kv_cache", "weights"} - self._released)

    @override
    def check_memory(self) -> None:
        if self._released or self.group.suspended:
            raise RuntimeError(
                f"Pointer argument cannot be accessed: {sorted(self._released) or 'what the ranks share'} is unmapped"
            )

    @override
    def fail(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(os.getppid(), signal.SIGQUIT)
        wait_for_ever()  # like SGLang's, which ends by its parent's SIGKILL

    def _release(self, tags: list[str], running: int) -> None:
        assert running == 0, "release_memory_occupation should be called only when server is idle."
        self.group.act(asleep=True)
        for tag in tags:
            if tag in self._released:
                raise RuntimeError(f"Cannot pause allocation that is not active: {tag}")
        if not self.group.faulty(RankFault.FORGETS_SLEEP):
            self._released.update(tags)
        self.group.say("released")
        self._fell_asleep()

    def _resume(self, tags: list[str]) -> None:
        self.group.act(asleep=False)
        if self.group.suspended:
            raise RankError(f"rank {self.group.rank}: resumed before it took back what the ranks share")
        for tag in tags:
            self._released.remove(tag)
        self._woke()
        self.group.say("resumed")
        if self.weights != AS_LOADED:  # as with Torpor's patch, each rank compares its weights' sum
            raise RankError(f"rank {self.group.rank}: the weights have another sum than before the sleep")
        self._seed()


class SGLangApp(StandInApp):
    """The ASGI application."""

    scheduler = SGLangScheduler

    @classmethod
    @override
    def prepare_process(cls, children: tuple[int, ...]) -> None:
        """Kill the whole tree if a child reports its failure with SIGQUIT."""

        def kill_tree(_number: int, _frame: FrameType | None) -> None:
            message = "Received sigquit from a child process. It usually means the child failed."
            print(f"standin: {message}", file=sys.stderr, flush=True)
            for pid in (*children, os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        signal.signal(signal.SIGQUIT, kill_tree)

    @override
    def _dialect(self) -> Routes:
        return {
            "/generate": ("POST", self._generate),
            "/model_info": ("GET", self._model_info),
            "/server_info": ("GET", self._server_info),
            "/metrics": ("GET", self._metrics),
            "/health": ("GET", self._health),
            "/health_generate": ("GET", self._health),
            "/flush_cache": ("GET POST", self._flush_cache),
            "/pause_generation": ("POST", self._pause),
            "/continue_generation": ("POST", self._continue),
            "/release_memory_occupation": ("GET POST", self._release),
            "/resume_memory_occupation": ("GET POST", self._resume),
        }

    @override
    async def _refuse(self, exchange: Exchange, status: int, message: str) -> None:
        await exchange.answer(status, {"object": "error", "message": message})

    @override
    async def _scheduler_is_gone(self, exchange: Exchange) -> None:
        await hang()  # the tree's end includes this process

    async def _generate(self, exchange: Exchange) -> None:
        match await exchange.json():
            case {"text": str(prompt), "sampling_params": {"max_new_tokens": int(tokens)}, **more}:
                words, length = await self._words_of(prompt, tokens, more.get("lora_path"))
                await exchange.answer(_OK, as_generated(words, length, acceptance=self.draft.answer(tokens)))
            case _:
                await self._refuse(exchange, _BAD_REQUEST, "text and sampling_params.max_new_tokens are required")

    async def _model_info(self, exchange: Exchange) -> None:
        await exchange.answer(_OK, {"model_path": self._options.served_name, "is_generation": True})

    async def _server_info(self, exchange: Exchange) -> None:
        await self._ask({"op": "look"})  # as SGLang asks its scheduler for its state
        await exchange.answer(_OK, {"served_model_name": self._options.served_name, "running": self._running})

    async def _metrics(self, exchange: Exchange) -> None:
        await exchange.answer_text(_OK, f"sglang:num_running_reqs {self._running}\n")

    async def _health(self, exchange: Exchange) -> None:
        await self._until_unpaused()
        await self._ask({"op": "generate", "prompt": "health", "tokens": 1, "greedy": True})
        await exchange.answer_text(_OK, "")

    async def _flush_cache(self, exchange: Exchange) -> None:
        idle = self._running == 0
        await exchange.answer_text(
            _OK if idle else _BAD_REQUEST, "Cache flushed.\n" if idle else "Requests are running.\n"
        )

    async def _pause(self, exchange: Exchange) -> None:
        self._unpaused.clear()
        await exchange.answer(_OK, {"status": "ok", "message": "Generation paused successfully."})

    async def _continue(self, exchange: Exchange) -> None:
        self._unpaused.set()
        await exchange.answer(_OK, {"status": "ok", "message": "Generation continued successfully."})

    async def _release(self, exchange: Exchange) -> None:
        tags = await self._tags(exchange)
        if tags is None or await self._sleep_fault(exchange, _BAD_REQUEST, "memory saver is not enabled"):
            return
        await self._ask({"op": "release", "tags": tags, "running": self._running})
        self._fell_asleep()
        await exchange.answer(_OK, None)

    async def _resume(self, exchange: Exchange) -> None:
        tags = await self._tags(exchange)
        if tags is None or await self._wake_fault(exchange, _BAD_REQUEST, "cannot resume the memory"):
            return
        await self._ask({"op": "resume", "tags": tags})
        await exchange.answer(_OK, None)

    async def _tags(self, exchange: Exchange) -> list[str] | None:
        """Return the tags of a release or resume; None if the request was answered with an error."""
        body = await exchange.json()
        if not isinstance(body, dict):
            await self._refuse(exchange, _BAD_REQUEST, "a JSON body is required")
            return None
        given = body.get("tags")
        return [str(tag) for tag in given] if isinstance(given, list) and given else list(_MEMORY_TAGS)
