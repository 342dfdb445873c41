"""Soak test of `torpor serve`: `python -m tests.soak_serve --seconds 600`.

Five models with room for two, and random load: clients ask, stream, and leave; the configuration is read again; models are put to
sleep and woken by hand. Each engine is a stand-in, the command runs in a process of its own. Nothing may be lost or kept:

* every request whose client stayed is answered, and each stream is whole;
* never are more than two models awake, and never is more memory given than the budget has;
* the gateway does not grow once each model was served, and no engine is left at the end.

On a slow machine the soak goes on until enough has happened; only its deadlines count, which are minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.platforms.local.serve.served import Command, control, engines_of, serving_command, wait_until, write_app
from torpor.snapshots.before_capture.lasting_folders import LASTING_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GROWTH_BYTES", "ServeResult", "soak_serve"]

MODELS = 5
CLIENTS = 8
EACH_BYTES = 400_000_000
BUDGET_BYTES = 1_000_000_000
MOST_AWAKE = 2
GROWTH_BYTES = 8_000_000
"""How much the gateway may grow once it is warm, bytes of proportional memory. It is warm after a quarter of the time, when
each model was served and some were restored: before that it still imports and starts threads."""

_AWAKE = ("starting", "waking", "serving", "capturing", "sleeping")
_LOOK_S = 0.05
_PAUSE_S = 0.15
_LEAVES = 0.1
_STREAMS = 0.5
_STEERED_S = 2.0
_ANSWER_S = 240.0
_STATUS_S = 60.0
_MORE_S = 120.0
_RESTORED_BEFORE = 3
_GONE_S = 120.0
_MOST_DESCRIBED = 20


@dataclass(kw_only=True)
class ServeResult:
    """What a soak has seen.

    Attributes:
        seconds: that it took.
        answers: requests whose client stayed, by what they met: `serving`, `woken`, `restored`, `cold`, or `lost`.
        left: requests whose client left.
        lost: descriptions of the first lost ones.
        most_awake: models that were awake at once.
        most_given_bytes: memory given to replicas at once.
        starts: of all models, by kind, as the status tells.
        slowest_s: the longest that an answer took.
        memory_bytes: of the gateway, once it was warm (see `GROWTH_BYTES`) and at the end; None if it was never warm.
        engines_left: engines that were there after the end.
        exit_code: of the command; None if it did not end.
    """

    seconds: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    left: int = 0
    lost: list[str] = field(default_factory=list)
    most_awake: int = 0
    most_given_bytes: int = 0
    starts: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    memory_bytes: tuple[int, int] | None = None
    engines_left: int = 0
    exit_code: int | None = None

    def complaints(self) -> list[str]:
        """What is wrong; empty if the soak went well."""
        found = list(self.lost)
        if self.most_awake > MOST_AWAKE:
            found.append(f"{self.most_awake} models were awake at once")
        if self.most_given_bytes > BUDGET_BYTES:
            found.append(f"{self.most_given_bytes} bytes were given, and the budget has {BUDGET_BYTES}")
        if self.memory_bytes and self.memory_bytes[1] - self.memory_bytes[0] > GROWTH_BYTES:
            grown = self.memory_bytes[1] - self.memory_bytes[0]
            found.append(f"the gateway grew by {grown} bytes after it was warm, from {self.memory_bytes[0]}")
        if self.engines_left or self.exit_code:
            code = f"none within {_GONE_S:g} s" if self.exit_code is None else self.exit_code
            found.append(f"{self.engines_left} engines were left; the command's exit code was {code}")
        if sum(self.answers.values()) < MODELS:
            found.append(f"only {sum(self.answers.values())} requests were answered; starts: {dict(self.starts)}")
        return found


def soak_serve(folder: Path, *, seconds: float, restores: int = 0, seed: int = 0) -> ServeResult:
    """Run the soak. Everything that it starts ends with it.

    Args:
        folder: for apps, configuration, cache and log; the environment's `TORPOR_CACHE` lies below it.
        seconds: how long requests come, at least.
        restores: requests come until so many starts were restores, for two minutes more at most.
        seed: of what clients do.
    """
    names = [f"m{number}" for number in range(MODELS)]
    files = [write_app(folder, name, more="token_s=0.002") for name in names]
    table = (
        f'idle_s = 0.6\ncapture_after_s = 0.3\ndeadline_s = {_ANSWER_S:.0f}\nmemory = "{EACH_BYTES // 1_000_000} MB"\n'
    )
    config = folder / "serve.toml"
    text = f'[budget]\nmemory = "{BUDGET_BYTES // 1_000_000} MB"\n' + "".join(
        f"[deployment.{one}]\n{table}" for one in names
    )
    config.write_text(text)
    result = ServeResult()
    with serving_command(folder, files, "--config", str(config)) as command:
        run = _Run(command, names, result, seconds=seconds, restores=restores, seed=seed)
        began = time.monotonic()
        run.run()
        result.seconds = round(time.monotonic() - began, 1)
        command.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            result.exit_code = command.process.wait(_GONE_S)
    wait_until(lambda: not engines_of(folder), _GONE_S)
    result.engines_left = len(engines_of(folder))
    return result


class _Run:
    """The load on one server."""

    def __init__(
        self, command: Command, names: list[str], result: ServeResult, *, seconds: float, restores: int, seed: int
    ) -> None:
        self._command, self._names, self._result = command, names, result
        self._restores, self._seed = restores, seed
        self._began = time.monotonic()
        self._warm_at, self._ends_at = self._began + seconds / 4, self._began + seconds
        self._lock = threading.Lock()
        self._key = command.control_key
        self._told: dict[tuple[str, float], str] = {}

    def run(self) -> None:
        """Clients, and beside them somebody who steers and somebody who watches."""
        work: list[Callable[[], None]] = [
            self._watch,
            self._steer,
            *(self._client(number) for number in range(CLIENTS)),
        ]
        with ThreadPoolExecutor(len(work)) as threads:
            for one in [threads.submit(one) for one in work]:
                one.result()

    @property
    def _goes_on(self) -> bool:
        """Whether requests still come: the time is not over, or too little has happened."""
        now = time.monotonic()
        return now < self._ends_at or (
            now < self._ends_at + _MORE_S and (self._starts["restored"] < self._restores or not self._result.left)
        )

    @property
    def _starts(self) -> Counter[str]:
        return Counter(list(self._told.values()))

    def _client(self, number: int) -> Callable[[], None]:
        def run() -> None:
            dice = random.Random(self._seed * 1000 + number)
            while self._goes_on:
                self._once(dice)
                time.sleep(dice.expovariate(1 / _PAUSE_S))

        return run

    def _once(self, dice: random.Random) -> None:
        model, began = f"model-{dice.choice(self._names)}", time.monotonic()
        if dice.random() < _LEAVES:
            self._leaves(model, dice)
            return
        tokens, streams = dice.randint(1, 40), dice.random() < _STREAMS
        try:
            start = self._answered(model, tokens, streams=streams)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._count("lost", f"{model}: {type(error).__name__}: {error}")
        else:
            self._count(start)
        with self._lock:
            self._result.slowest_s = max(self._result.slowest_s, round(time.monotonic() - began, 3))

    def _answered(self, model: str, tokens: int, *, streams: bool) -> str:
        """What the request met.

        Raises:
            ValueError: the answer is not what was asked for.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self._command.port, timeout=_ANSWER_S + _STATUS_S)
        with contextlib.closing(connection):
            _send(connection, model, tokens, streams=streams)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise ValueError(f"{answer.status} {body[:200]!r}")
            if streams:
                whole = body.endswith(b"data: [DONE]\n\n") and body.count(b'"content"') >= tokens
            else:
                whole = json.loads(body)["usage"]["completion_tokens"] == tokens
            if not whole:
                raise ValueError(f"cut off: {body[-200:]!r}")
            return answer.getheader("X-Torpor-Start") or "serving"

    def _leaves(self, model: str, dice: random.Random) -> None:
        """A client that goes away while it waits or reads."""
        connection = http.client.HTTPConnection("127.0.0.1", self._command.port, timeout=_ANSWER_S + _STATUS_S)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            _send(connection, model, 2000, streams=True)
            time.sleep(dice.uniform(0.0, 0.3))
        with self._lock:
            self._result.left += 1

    def _count(self, what: str, why: str = "") -> None:
        with self._lock:
            self._result.answers[what] += 1
            if why and len(self._result.lost) < _MOST_DESCRIBED:
                self._result.lost.append(why)

    def _steer(self) -> None:
        """Put models to sleep and wake them; have the configuration read again."""
        dice = random.Random(self._seed)
        while self._goes_on:
            what = dice.choice(("wake", "sleep", "sleep", "again"))
            if what == "again":
                self._command.process.send_signal(signal.SIGHUP)
            else:
                self._control("POST", f"deployments/{dice.choice(self._names)}/{what}")
            time.sleep(dice.expovariate(1 / _STEERED_S))

    def _watch(self) -> None:
        process, first = psutil.Process(self._command.process.pid), 0
        while self._goes_on and self._command.process.poll() is None:
            self._look()
            if not first and self._is_warm():
                first = process.memory_full_info().pss
            time.sleep(_LOOK_S)
        with contextlib.suppress(psutil.NoSuchProcess):  # its exit code says so
            self._result.memory_bytes = (first, process.memory_full_info().pss) if first else None
        self._result.starts = self._starts

    def _is_warm(self) -> bool:
        served = {name for name, _ in list(self._told)}
        return (
            time.monotonic() >= self._warm_at and len(served) == MODELS and self._starts["restored"] >= _RESTORED_BEFORE
        )

    def _control(self, method: str, path: str) -> dict[str, object] | None:
        """What a control path answers. No answer is a loss, and so is another one than 200 to a GET."""
        try:
            status, told = control(self._command.port, self._key, method, path, timeout_s=_STATUS_S)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._count("lost", f"{method} {path}: {type(error).__name__}: {error}")
            return None
        if method == "GET" and status != 200:
            self._count("lost", f"{method} {path}: {status} {told}")
            return None
        return told

    def _look(self) -> None:
        if (told := self._control("GET", "status")) is None:
            return
        deployments: list[dict[str, object]] = told["deployments"]  # type: ignore[assignment]
        replicas = [replica for one in deployments for replica in one["replicas"]]  # type: ignore[attr-defined]
        awake = sum(replica["state"] in _AWAKE for replica in replicas)
        given = sum(int(replica["memory_bytes"]) for replica in replicas)
        self._result.most_awake = max(self._result.most_awake, awake)
        self._result.most_given_bytes = max(self._result.most_given_bytes, given)
        for one in deployments:
            for start in one["starts"]:  # type: ignore[attr-defined]
                self._told[str(one["name"]), float(start["at"])] = str(start["boot"]) + (
                    " (failed)" if start["error"] else ""
                )


def _send(connection: http.client.HTTPConnection, model: str, tokens: int, *, streams: bool) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens, "stream": streams}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})


def main() -> int:
    """Run the soak; return 1 if something was lost or kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak_serve", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    known = Path(os.environ.get("TORPOR_CACHE") or Path.home() / ".cache" / "torpor")
    with tempfile.TemporaryDirectory(prefix="torpor-soak-") as place:
        os.environ[LASTING_VARIABLE] = place
        os.environ["TORPOR_CACHE"] = str(Path(place) / "cache")
        (Path(place) / "cache").mkdir()
        if (known / "criu").exists():
            (Path(place) / "cache" / "criu").symlink_to(known / "criu")
        result = soak_serve(Path(place), seconds=args.seconds, seed=args.seed)
    print(json.dumps(vars(result), indent=2))
    for complaint in (complaints := result.complaints()):
        print(f"BAD: {complaint}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
