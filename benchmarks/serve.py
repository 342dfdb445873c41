"""What `torpor serve` costs, with stand-ins: the first token at zero, asleep, and an idle gateway.

    .venv/bin/python benchmarks/serve.py [--rounds 7] [--json FILE] [--app apps/tiny_cpu.py] [--idle]

For each round: the bare restore of a snapshot (`torpor.platforms.local.replicas.Replicas`, in a process that has imported
everything) until its first token, and a request to `torpor serve` at zero until its first token; then a request to the sleeping
deployment. Medians and ratios within one run count: machines are shared. With `--app` a real engine takes the place of the
stand-ins. With `--idle` only the gateway that has nothing to do is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from torpor.app_file import load_app
from torpor.platforms.local.replicas import Replicas
from torpor.platforms.local.running import RunningServer, servers
from torpor.platforms.local.snapshots import create_snapshot
from torpor.snapshots.before_capture.lasting_folders import LASTING_VARIABLE
from torpor.snapshots.store.paths import snapshot_folder
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = """
from torpor import Deployment, Model, Scaling
from torpor.testing import StandIn

deployment = Deployment(
    name={name!r},
    model=Model(path={folder!r}, served_name={name!r}),
    plugins=(StandIn(warmup_requests=1),),
    scaling=Scaling(scaledown_window_s=3600),
)
"""
DEPLOYMENTS = 5
IDLE_S = 10.0


def main() -> int:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--app", metavar="FILE", help="an app to measure in place of the stand-ins")
    parser.add_argument("--idle", action="store_true", help="measure the idle gateway alone")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torpor-serve-") as place:
        os.environ[LASTING_VARIABLE] = place
        os.environ["TORPOR_CACHE"] = str(_cache(Path(place)))
        files = [given.app] if given.app else [_app(Path(place), f"bench{number}") for number in range(DEPLOYMENTS)]
        told = _idle_alone(files) if given.idle else _measured(files, given.rounds)
    for name, value in told.items():
        print(f"{name:32} {value}")
    if given.json:
        given.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0


def _cache(place: Path) -> Path:
    """A cache root of its own, with this machine's CRIU."""
    known = Path(os.environ.get("TORPOR_CACHE") or Path.home() / ".cache" / "torpor")
    root = place / "cache"
    root.mkdir()
    if (known / "criu").exists():
        (root / "criu").symlink_to(known / "criu")
    return root


def _measured(files: list[str], rounds: int) -> dict[str, object]:
    """All figures, of the first app; the gateway serves all of them."""
    deployment = load_app(files[0]).deployment
    name, model = deployment.name, deployment.model.served_name
    create_snapshot(files[0], snapshot_folder(name))
    bare = [_bare_restore(files[0]) for _ in range(rounds)]
    with serving(files) as (process, port):
        idle = _idle(process)
        zero, asleep = [], []
        for _ in range(rounds):
            zero.append(first_answer(port, model))
            fall(port, name, "asleep")
            asleep.append(first_answer(port, model))
            fall(port, name, "asleep")
            fall(port, name, "on disk")
        after = _idle(process)
    bare_s, zero_s = statistics.median(bare), statistics.median(zero)
    return {
        **_where(files),
        "rounds": rounds,
        "bare_restore_s": round(bare_s, 4),
        "at_zero_s": round(zero_s, 4),
        "at_zero_over_bare_s": round(zero_s - bare_s, 4),
        "asleep_s": round(statistics.median(asleep), 4),
        "idle_mb": idle[0],
        "idle_cpu_percent": idle[1],
        "idle_after_starts_mb": after[0],
        "all_bare_s": [round(one, 4) for one in bare],
        "all_at_zero_s": [round(one, 4) for one in zero],
        "all_asleep_s": [round(one, 4) for one in asleep],
    }


def _idle_alone(files: list[str]) -> dict[str, object]:
    """What the gateway takes while all of its deployments are on disk."""
    with serving(files) as (process, _):
        idle_mb, cpu_percent = _idle(process)
    return {**_where(files), "idle_mb": idle_mb, "idle_cpu_percent": cpu_percent}


def _where(files: list[str]) -> dict[str, object]:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, kernel {platform.release()}",
        "load": os.getloadavg()[0],
        "app": files[0] if len(files) == 1 else f"{len(files)} stand-ins",
    }


def _app(place: Path, name: str) -> str:
    model = place / f"model-{name}"
    model.mkdir()
    file = place / f"{name}.py"
    file.write_text(APP.format(name=name, folder=str(model)))
    return str(file)


def _bare_restore(file: str) -> float:
    """Seconds from the begin of a restore to the first token, in this process."""
    app = load_app(file)
    began = time.perf_counter()
    replicas = Replicas(snapshot_folder(app.deployment.name), port=unused_port(), lifecycle=app.lifecycle)
    replicas.start()
    try:
        first_answer(replicas.port, app.deployment.model.served_name)
        return time.perf_counter() - began
    finally:
        replicas.stop()


@contextlib.contextmanager
def serving(files: list[str]) -> Iterator[tuple[psutil.Process, int]]:
    """`torpor serve` with these apps: its process and port."""
    port = unused_port()
    command = [sys.executable, "-m", "torpor.cli", "serve", *files, "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _until(lambda: _status(port) == 200)
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait(60.0)


def _idle(process: psutil.Process) -> tuple[float, float]:
    """Memory (PSS, MB) and CPU (% of one) of a process that has nothing to do, over ten seconds."""
    time.sleep(1.0)
    before = sum(process.cpu_times()[:2])
    time.sleep(IDLE_S)
    used = sum(process.cpu_times()[:2]) - before
    return round(process.memory_full_info().pss / 1e6, 1), round(100 * used / IDLE_S, 2)


def first_answer(port: int, model: str) -> float:
    """Seconds from a request to the first piece of its streamed answer."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60.0)
    began = time.perf_counter()
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"The answer is {answer.status}: {answer.read()!r}")
        while not answer.readline().startswith(b"data:"):
            pass
        return time.perf_counter() - began


def fall(port: int, name: str, state: str) -> None:
    """Have a deployment fall to a state, and wait for it."""
    (key,) = {one.control_key for one in servers() if isinstance(one, RunningServer) and one.url.endswith(f":{port}")}
    headers = {"authorization": f"Bearer {key}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
    with contextlib.closing(connection):
        connection.request("POST", f"/torpor/deployments/{name}/sleep", headers=headers)
        connection.getresponse().read()

        def fallen() -> bool:
            connection.request("GET", "/torpor/status", headers=headers)
            told = json.loads(connection.getresponse().read())["deployments"]
            return any(one["name"] == name and one["state"] == state for one in told)

        _until(fallen)


def _status(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except OSError:
            return 0


def _until(look: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit("It took longer than a minute.")
        time.sleep(0.02)


if __name__ == "__main__":
    raise SystemExit(main())
