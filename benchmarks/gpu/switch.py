"""Two models of 8B on one card that do not fit together, at one address: seconds from a request to its first token.

`torpor serve` is started twice. At first host memory is no limit: the model that makes room falls asleep, and a request wakes it.
Then host memory has room for one engine: the model that makes room falls to its snapshot, and a request restores it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from benchmarks.gpu.common import COLD_LIMIT_S, used_mib

from torpor.engine.child_process import ends_with_this_process
from torpor.platforms.local.running import RunningServer, servers
from torpor.snapshots.store.paths import cache_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["switched"]

NAMES = ("switch-a", "switch-b")
_APP = "from benchmarks.gpu.app import deployment_of\n\ndeployment = deployment_of({varied!r})\n"
_CAPTURE_LIMIT_S, _STATUS_S, _END_S = 120.0, 5.0, 60.0
_MORE_THAN_ONE = 1.5
_PATH = "/v1/chat/completions"


def switched(varied: dict[str, object], rounds: int, port: int, snapshots: Path) -> dict[str, object]:
    """Both kinds of switch, each model so many times in turn.

    Args:
        varied: what varies of the benchmark's deployment.
        rounds: requests to each model, for each kind.
        port: of the address.
        snapshots: a folder for the snapshots.
    """
    with tempfile.TemporaryDirectory(prefix="torpor-switch-") as place:
        apps = [_app(Path(place), name, varied) for name in NAMES]
        for name in NAMES:
            shutil.rmtree(snapshots / name, ignore_errors=True)
        empty, since = used_mib(), time.time()
        with _serving(Path(place), apps, port, snapshots, "") as ask:
            cold = [_first_captured(ask, name) for name in NAMES]
            woken = _in_turn(ask, rounds)
            largest = max(_host_bytes(ask.told(name)) for name in NAMES)
        host_mb = int(_MORE_THAN_ONE * largest / 1e6)
        with _serving(Path(place), apps, port, snapshots, f'memory = "{host_mb} MB"\n') as ask:
            restored = _in_turn(ask, rounds)
        said = ask.log.read_text().splitlines()
        return {
            "cold_ready_s": cold[0]["first_token_s"],
            "cold": cold,
            "woken": woken,
            "restored": restored,
            "restored_s": [one["first_token_s"] for one in restored if one["start"] == "restored"],
            "parts_s": {
                f"switch, {kind}": statistics.median(cast("float", one["first_token_s"]) for one in seen)
                for kind in ("woken", "restored")
                if (seen := [one for one in (*woken, *restored) if one["start"] == kind])
            },
            "host_budget_mb": host_mb,
            "stages": _stages(since),
            "said": said,
            "left_mib": [after - before for after, before in zip(used_mib(), empty, strict=True)],
        }


class _Address:
    """The address of both models.

    Args:
        port: of it.
        log: where the command writes.
    """

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.log = log

    def first_token(self, model: str, limit_s: float) -> dict[str, object]:
        """Ask one model: the seconds to its first piece, how it started, the whole text."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": 16,
            "temperature": 0,
            "stream": True,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit_s)
        began = time.perf_counter()
        with contextlib.closing(connection):
            connection.request("POST", _PATH, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise RuntimeError(f"{model}: {answer.status} {answer.read()!r}\n{self.log.read_text()[-3000:]}")
            text, first_s = "", 0.0
            while line := answer.readline():
                if not line.startswith(b"data: {"):
                    continue
                first_s = first_s or time.perf_counter() - began
                choices = json.loads(line.removeprefix(b"data: "))["choices"]
                text += "".join(one["delta"].get("content") or "" for one in choices)
            return {
                "model": model,
                "first_token_s": first_s,
                "start": answer.headers["X-Torpor-Start"],
                "waited_s": float(answer.headers["X-Torpor-Waited"] or 0),
                "text": text,
            }

    def told(self, model: str) -> dict[str, Any]:
        """What the address says of one deployment."""
        (key,) = {
            one.control_key for one in servers() if isinstance(one, RunningServer) and one.url.endswith(f":{self.port}")
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_STATUS_S)
        with contextlib.closing(connection):
            connection.request("GET", "/torpor/status", headers={"authorization": f"Bearer {key}"})
            every = json.loads(connection.getresponse().read())["deployments"]
        return cast("dict[str, Any]", next(one for one in every if one["name"] == model))

    def health(self) -> bool:
        """Whether the address answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_STATUS_S)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        return False


def _app(place: Path, name: str, varied: dict[str, object]) -> Path:
    """The app file of one model; the kernels that the benchmark's deployment has compiled are its own, too."""
    model = place / f"model-{name}"
    shutil.copytree(str(varied["model"]), model)
    images = cache_root() / "images"
    if (images / "gpu-bench" / "kernels").exists() and not (images / name).exists():
        shutil.copytree(images / "gpu-bench" / "kernels", images / name / "kernels")
    file = place / f"{name}.py"
    file.write_text(_APP.format(varied={**varied, "name": name, "served": name, "model": str(model)}))
    return file


@contextlib.contextmanager
def _serving(place: Path, apps: list[Path], port: int, snapshots: Path, budget: str) -> Iterator[_Address]:
    """`torpor serve` with both models."""
    config, log = place / "serve.toml", place / "serve.log"
    tables = [f'[deployment.{name}]\nsnapshot = "{snapshots / name}"\ncapture_after_s = 1\n' for name in NAMES]
    config.write_text(f"[server]\nport = {port}\n[budget]\n{budget}" + "".join(tables))
    argv = [sys.executable, "-m", "torpor.cli", "serve", *map(str, apps), "--config", str(config)]
    with log.open("a") as said, ends_with_this_process() as lifeline:
        process = subprocess.Popen(
            argv, env={**os.environ, **lifeline.mark}, stderr=said, stdout=said, start_new_session=True
        )
        lifeline.tell(process.pid)
        address = _Address(port, log)
        try:
            _until(address.health, _END_S, "the address to answer", log)
            yield address
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)


def _first_captured(address: _Address, name: str) -> dict[str, object]:
    """The first request of a model, and its capture once it is idle."""
    seen = address.first_token(name, COLD_LIMIT_S)
    began = time.monotonic()

    def captured() -> bool:
        told = address.told(name)
        return bool(told["has_snapshot"]) and told["state"] in ("serving", "asleep", "on disk")

    _until(captured, _CAPTURE_LIMIT_S, f"the capture of {name}", address.log)
    return {**seen, "captured_s": time.monotonic() - began}


def _in_turn(address: _Address, rounds: int) -> list[dict[str, object]]:
    """Ask the models in turn; each request makes the other model give up its room."""
    return [address.first_token(name, _CAPTURE_LIMIT_S) for _ in range(rounds) for name in NAMES]


def _stages(since: float) -> list[dict[str, object]]:
    """The stages of both models' replicas, in order: which, of which kind of start, its seconds, when it ended."""
    kept = ("stage", "boot", "seconds", "ended_at")
    found = [
        {"model": name, **{key: record[key] for key in kept}}
        for name in NAMES
        for file in (cache_root() / "records").glob(f"{name}-*.jsonl")
        for record in map(json.loads, file.read_text().splitlines())
        if record["ended_at"] >= since
    ]
    return sorted(found, key=lambda one: float(one["ended_at"]))


def _host_bytes(told: dict[str, Any]) -> int:
    """The most host memory that one replica of a deployment takes."""
    sizes = (told["size"], told["size_asleep"])
    return max(int(size["host"]) for size in sizes if size)


def _until(look: Callable[[], bool], limit_s: float, what: str, log: Path) -> None:
    deadline = time.monotonic() + limit_s
    while not look():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no sign of {what} within {limit_s:.0f} s\n{log.read_text()[-3000:]}")
        time.sleep(0.1)
