"""What happens inside a `benchmarks.ray_box.RayBox`: a program that makes the cluster, then runs one scene for each line of JSON.

    python -m benchmarks.ray_scenes NODES [dashboard]

Each scene is a function with keyword arguments of JSON's types; it returns a dictionary.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import psutil
import ray
from benchmarks.ray_box import HTTP_PORT, STAYS
from ray import serve
from ray.cluster_utils import Cluster as LocalRaylets

from torpor.platforms.ray.cluster import Cluster
from torpor.platforms.ray.options import REGION_LABEL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEAD = "127.0.0.2"
URL = f"http://{HEAD}:{HTTP_PORT}"
_MEMORY = 80_000_000
_ESTABLISHED = "01"
_RAYLETS: list[LocalRaylets] = []
_NUMBERS = itertools.count(3)


def main() -> None:
    """Make the cluster, say so, and serve scenes until standard input ends."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints must not get between the answers
    _make(int(sys.argv[1]), dashboard="dashboard" in sys.argv[2:])
    answers.write(json.dumps({"up": True}) + "\n")
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            told = SCENES[asked["scene"]](**asked["arguments"])
        except Exception:
            told = {"error": traceback.format_exc()}
        answers.write(json.dumps(told) + "\n")


def _make(nodes: int, *, dashboard: bool) -> None:
    """The head on 127.0.0.2, the others on the next addresses and in the region `workers`; `serve deploy` needs the dashboard."""
    raylets = LocalRaylets(
        initialize_head=True,
        head_node_args={
            "node_ip_address": HEAD,
            "num_cpus": 4,
            "object_store_memory": _MEMORY,
            "include_dashboard": dashboard,
        },
    )
    for _ in range(1, nodes):
        _add_node(raylets)
    raylets.wait_for_nodes()
    _RAYLETS.append(raylets)
    os.environ["RAY_ADDRESS"] = raylets.address
    ray.init(address=raylets.address, namespace="serve", log_to_driver=False, logging_level="error")
    # HAProxy looks for the proxy at 127.0.0.1, whatever address Serve is told.
    serve.start(http_options={"host": "0.0.0.0", "port": HTTP_PORT, "location": "HeadOnly"})


def _add_node(raylets: LocalRaylets) -> str:
    """Start another raylet; returns its address."""
    address = f"127.0.0.{next(_NUMBERS)}"
    raylets.add_node(
        node_ip_address=address,
        num_cpus=4,
        object_store_memory=_MEMORY,
        labels={REGION_LABEL: "workers"},
        wait=False,
    )
    return address


def add_node() -> dict[str, object]:
    """Another node in the region `workers`, in place of one that was killed."""
    (raylets,) = _RAYLETS
    address = _add_node(raylets)
    _until(lambda: any(node["Alive"] and node["NodeManagerAddress"] == address for node in ray.nodes()))
    return {"address": address}


def pid() -> dict[str, object]:
    """This process's."""
    return {"pid": os.getpid(), "address": os.environ["RAY_ADDRESS"]}


def torpor(words: Sequence[str], limit_s: float = 120.0) -> dict[str, object]:
    """Run the command `torpor` as a user does."""
    return command(["torpor", *words], limit_s)


def command(words: Sequence[str], limit_s: float = 120.0) -> dict[str, object]:
    """Run a command of this Python environment."""
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run([str(program), *words[1:]], capture_output=True, text=True, timeout=limit_s, check=False)
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def status() -> dict[str, object]:
    """What runs now."""
    seen = Cluster().status()
    return seen._asdict() | {"served": [one._asdict() for one in seen.served]}


def wait_replicas(name: str, count: int, limit_s: float = 60.0) -> dict[str, object]:
    """Wait until a deployment has this many replicas, all of them running, and no other."""
    began = time.monotonic()
    while True:
        (now,) = [one.replicas for one in Cluster().status().served if one.name == name] or [{}]
        if sum(now.values()) == count == now.get("RUNNING", 0):
            return {"seconds": time.monotonic() - began}
        if time.monotonic() - began > limit_s:
            raise TimeoutError(f"{name} has replicas {now} after {limit_s} s, not {count}")
        time.sleep(0.05)


class Answered(NamedTuple):
    """The answer to one request.

    Attributes:
        status: HTTP status; 0 for none.
        text: its text, or what went wrong.
        first_s: seconds to the first token; 0 for none.
        seconds: to the end.
        start: header `x-torpor-start`.
        retry_after: header `retry-after`.
    """

    status: int
    text: str
    first_s: float
    seconds: float
    start: str
    retry_after: str

    @property
    def ok(self) -> bool:
        """Whether it is whole."""
        return self.status == httpx.codes.OK and bool(self.text)


async def asked(client: httpx.AsyncClient, url: str, model: str, *, tokens: int = 8, word: str = "hello") -> Answered:
    """Stream one answer."""
    body = {"model": model, "max_tokens": tokens, "stream": True, "messages": [{"role": "user", "content": word}]}
    began, first, text, status, headers = time.perf_counter(), 0.0, "", 0, httpx.Headers()
    whole = False
    try:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            status, headers = answer.status_code, answer.headers
            if status != httpx.codes.OK:
                text = (await answer.aread()).decode()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        if said := choice.get("delta", {}).get("content"):
                            first = first or time.perf_counter() - began
                            text += said
                whole = whole or line == "data: [DONE]"
        if status == httpx.codes.OK and not whole:
            status, text = 0, f"cut: {text[-80:]}"
    except httpx.HTTPError as error:
        status, text = 0, f"{type(error).__name__}: {error}"
    took = time.perf_counter() - began
    return Answered(status, text, first, took, headers.get("x-torpor-start", ""), headers.get("retry-after", ""))


def new_client() -> httpx.AsyncClient:
    """Without limits, and with a connection for each request."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(limits=limits, timeout=120.0, trust_env=False)


def ask(model: str, prefix: str = "", count: int = 1, tokens: int = 8, word: str = "hello") -> dict[str, object]:
    """Ask, all at once; returns each answer's fields."""

    async def all_of_them() -> list[Answered]:
        async with new_client() as client:
            return await asyncio.gather(
                *(asked(client, URL + prefix, model, tokens=tokens, word=word) for _ in range(count))
            )

    return {"answers": [one._asdict() for one in asyncio.run(all_of_them())]}


def get(path: str, headers: dict[str, str] | None = None) -> dict[str, object]:
    """GET a path."""
    answer = httpx.get(URL + path, timeout=60.0, trust_env=False, headers=headers)
    return {"status": answer.status_code, "text": answer.text}


def logged(word: str) -> dict[str, object]:
    """The lines with this word that replicas have logged."""
    found = []
    for file in sorted(Path(os.environ["RAY_TMPDIR"]).glob("ray/session_latest/logs/**/*")):
        if file.is_file():
            found += [line for line in file.read_text(errors="replace").splitlines() if word in line]
    return {"lines": found}


def around_zero(model: str, prefix: str = "", requests: int = 200, rounds: int = 8) -> dict[str, object]:
    """Send requests before, while and after the last replica stops, some of them exactly then."""

    async def run() -> list[Answered]:
        found: list[Answered] = []
        async with new_client() as client:
            each = max(1, requests // rounds)
            for number in range(rounds):
                found += await asyncio.gather(*(asked(client, URL + prefix, model, tokens=4) for _ in range(each // 2)))
                # Every second round exactly at zero, the others while the last replica stops.
                await asyncio.to_thread(_until, _none_left if number % 2 else _stopping)
                found += await asyncio.gather(
                    *(asked(client, URL + prefix, model, tokens=4) for _ in range(each - each // 2))
                )
        return found

    answers = asyncio.run(run())
    bad = [one._asdict() for one in answers if not one.ok]
    return {"requests": len(answers), "bad": bad, "slowest_s": max(one.seconds for one in answers)}


def from_zero(name: str, model: str = "", prefix: str = "", rounds: int = 7) -> dict[str, object]:
    """Requests at zero: seconds to the first token, and the start that each met."""
    found = []
    for _ in range(rounds):
        wait_replicas(name, 0)
        _until(lambda: not processes(f"ray::ServeReplica:torpor-{name}"))
        time.sleep(0.5)  # HAProxy hears of it
        (answered,) = ask(model or name, prefix)["answers"]  # type: ignore[misc]
        if answered["status"] != httpx.codes.OK:
            raise RuntimeError(f"{name} answered {answered}")
        found.append({"first_s": answered["first_s"], "start": answered["start"]})
    return {"rounds": found}


def next_replica(model: str) -> dict[str, object]:
    """At zero: the idle workers of all nodes with their memory, and the process of the replica that the next request starts."""
    until_answered(model)
    _until(lambda: bool(processes("ray::IDLE")))
    wait_replicas(model, 0)
    name = f"ray::ServeReplica:torpor-{model}"
    _until(lambda: not processes(name))
    idle = processes("ray::IDLE")
    memory = [one.memory_full_info().uss for one in idle]
    until_answered(model)
    (replica,) = processes(name)
    return {"idle": [one.pid for one in idle], "uss": memory, "replica": replica.pid}


def bare_url() -> dict[str, object]:
    """The address of an engine that was started cold: it listens on this network's loopback."""
    words = engines()[0].cmdline()
    return {"url": f"http://127.0.0.1:{words[words.index('--port') + 1]}"}


def latency(model: str, url: str, requests: int = 300) -> dict[str, object]:
    """Median and 90th percentile of a short answer on one connection, milliseconds."""
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    took = []
    with httpx.Client(timeout=60.0, trust_env=False) as client:
        for number in range(requests + 20):
            began = time.perf_counter()
            client.post(f"{url}/v1/chat/completions", json=body).raise_for_status()
            if number >= 20:
                took.append((time.perf_counter() - began) * 1000)
    took.sort()
    return {"p50_ms": took[len(took) // 2], "p90_ms": took[len(took) * 9 // 10]}


def streams(model: str, url: str, count: int = 32, tokens: int = 200) -> dict[str, object]:
    """CPU seconds of every process but this one during as many streams at once, and of the idle cluster in the same time."""

    async def all_of_them() -> list[Answered]:
        async with new_client() as client:
            return await asyncio.gather(*(asked(client, url, model, tokens=tokens) for _ in range(count)))

    before, began = _cpu(), time.monotonic()
    answers = asyncio.run(all_of_them())
    took, busy = time.monotonic() - began, _cpu() - before
    before = _cpu()
    time.sleep(took)
    return {"cpu_s": busy, "idle_cpu_s": _cpu() - before, "seconds": took, "ok": sum(one.ok for one in answers)}


def _cpu() -> float:
    total = 0.0
    for one in psutil.process_iter(["cpu_times"]):
        if one.pid != os.getpid() and (times := one.info["cpu_times"]):
            total += times.user + times.system
    return total


def _states() -> dict[str, int]:
    found: dict[str, int] = {}
    for one in Cluster().status().served:
        for state, count in one.replicas.items():
            if one.name != "models":
                found[state] = found.get(state, 0) + count
    return found


def _stopping() -> bool:
    states = _states()
    return not states or states.get("STOPPING", 0) > 0


def _none_left() -> bool:
    return not _states()


def _until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition.__name__} is false after {limit_s} s")
        time.sleep(0.02)


def leave(model: str, prefix: str = "", limit_s: float = 5.0) -> dict[str, object]:
    """A client that leaves in the middle of a long answer; returns the seconds until the engine's connection ends."""
    idle = _engine_streams()

    async def run() -> float:
        async with new_client() as client:
            question = [{"role": "user", "content": "long"}]
            body = {"model": model, "max_tokens": 2000, "stream": True, "messages": question}
            async with client.stream("POST", f"{URL}{prefix}/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        break
                busy.append(_engine_streams())
        return time.monotonic()

    busy: list[int] = []
    left = asyncio.run(run())
    while _engine_streams() >= busy[0]:
        if time.monotonic() - left > limit_s:
            return {"seconds": -1.0, "idle": idle, "busy": busy[0]}
        time.sleep(0.01)
    return {"seconds": time.monotonic() - left, "idle": idle, "busy": busy[0]}


def _engine_streams() -> int:
    """Established connections in the networks of restored engines; both ends of each count."""
    own, networks, count = Path("/proc/self/ns/net").stat().st_ino, set[int](), 0
    for one in engines():
        with contextlib.suppress(OSError):
            network = Path(f"/proc/{one.pid}/ns/net").stat().st_ino
            if network != own and network not in networks:
                networks.add(network)
                lines = Path(f"/proc/{one.pid}/net/tcp").read_text().splitlines()[1:]
                count += sum(line.split()[3] == _ESTABLISHED for line in lines)
    return count


def processes(word: str) -> list[psutil.Process]:
    """Processes with this word in their command line or title, zombies not counted."""
    found = []
    for one in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(one.info["cmdline"] or [])
        if word in line and one.info["status"] != psutil.STATUS_ZOMBIE and one.pid != os.getpid():
            found.append(one)
    return found


def engines() -> list[psutil.Process]:
    """Every process of an engine."""
    return processes("torpor.testing.standin")


def kill(what: str) -> dict[str, object]:
    """End something; returns how many processes were hit."""
    found = victims(what)
    for one in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGTERM if what == "replica_term" else signal.SIGKILL)
            if what == "raylet":
                one.wait(5)  # it is a child of this process
    return {"hit": len(found)}


def victims(what: str) -> list[psutil.Process]:
    """The processes that a name of the kill matrix means."""
    words = {
        "replica": "ray::ServeReplica:torpor-",
        "replica_term": "ray::ServeReplica:torpor-",
        "controller": "ray::ServeController",
        "proxy": "ray::ProxyActor",
        "haproxy": "haproxy -",
        "haproxy_manager": "ray::HAProxyManager",
        "gcs": "gcs_server",
        "ingress": "ray::ServeReplica:torpor.models",
    }
    if what == "engine":
        return sorted(engines(), key=lambda one: one.create_time())[:1]
    if what == "raylet":
        (replica, *_) = processes(words["replica"])
        return [one for one in replica.parents() if "raylet/raylet" in " ".join(one.cmdline())]
    return processes(words[what])


def foreign() -> dict[str, object]:
    """Deploy an application that is not Torpor's."""

    class Somebody:
        def __call__(self) -> str:
            return "somebody"

    made = serve.deployment(Somebody, ray_actor_options={"num_cpus": 0}).bind()
    serve.run(made, name="somebody", route_prefix="/somebody")
    return {}


def until_answered(model: str, prefix: str = "", limit_s: float = 60.0) -> dict[str, object]:
    """Ask again and again until there is an answer."""
    began, seen = time.monotonic(), []
    while time.monotonic() - began < limit_s:
        found: list[dict[str, object]] = ask(model, prefix)["answers"]  # type: ignore[assignment]
        if found[0]["status"] == httpx.codes.OK:
            return {"seconds": time.monotonic() - began, "refused": seen}
        seen.append(found[0]["status"])
        time.sleep(0.2)
    raise TimeoutError(f"no answer of {model} within {limit_s} s: {seen}")


def broken_round(model: str, app: str, cure: str, broken_s: float = 6.0, limit_s: float = 60.0) -> dict[str, object]:
    """Ask for a model whose engine cannot start; then write the cure into its app file, and ask until it serves.

    Returns:
        `first_s`, seconds until the first refusal, which waits for the actor; `refused_s`, those of the others; `cured_s`, seconds
        from the cure to the first answer; `codes`, the statuses and codes that came.
    """
    began, refused, codes = time.monotonic(), list[float](), set[str]()
    cured = 0.0
    while time.monotonic() - began < limit_s:
        found: list[dict[str, object]] = ask(model)["answers"]  # type: ignore[assignment]
        if found[0]["status"] == httpx.codes.OK:
            break
        refused.append(float(str(found[0]["seconds"])))
        codes.add(f"{found[0]['status']} {json.loads(str(found[0]['text']) or '{}').get('error', {}).get('code')}")
        if not cured and time.monotonic() - began > broken_s + refused[0]:
            Path(app).write_text(cure)
            cured = time.monotonic()
        time.sleep(0.1)
    else:
        raise TimeoutError(f"no answer of {model} within {limit_s} s")
    return {
        "first_s": refused[0],
        "refused_s": refused[1:],
        "cured_s": time.monotonic() - cured,
        "codes": sorted(codes),
    }


class Load(threading.Thread):
    """Ten requests a second, one after the other.

    Attributes:
        answers: the time at which each request was sent, and its answer.
    """

    def __init__(self, url: str, model: str) -> None:
        super().__init__(daemon=True)
        self.answers: list[tuple[float, Answered]] = []
        self._url, self._model = url, model
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with new_client() as client:
            while not self._over.is_set():
                began = time.monotonic()
                self.answers.append((began, await asked(client, self._url, self._model, tokens=2)))
                await asyncio.sleep(0.1)

    def stop(self) -> None:
        """End after the present request."""
        self._over.set()
        self.join(130)


def kill_round(what: str, model: str, prefix: str = "", limit_s: float = 90.0) -> dict[str, object]:
    """Kill something under load.

    Returns:
        `gone_s`, seconds until every process of the engine was gone (0 if it stays); `left`, how many were not; `stayed`; `back_s`,
        seconds until an answer came that was asked for after the last failure; `failed` and `requests` from the kill on.
    """
    until_answered(model, prefix, limit_s)
    old = {(one.pid, one.create_time()) for one in engines()}
    load = Load(URL + prefix, model)
    load.start()
    time.sleep(0.5)  # some requests before it
    began = time.monotonic()
    hit = serve_deleted(model) if what == "delete" else int(str(kill(what)["hit"]))
    left, gone_s = _left(old, began, 0.0 if what in STAYS else limit_s)
    if what == "delete":
        load.stop()
        return {"hit": hit, "left": left, "gone_s": gone_s}
    back_s = _back(load, began, limit_s) if what != "gcs" else -1.0
    load.stop()
    stayed = old <= {(one.pid, one.create_time()) for one in engines()}
    after = [answered for at, answered in load.answers if at >= began - 1]
    failed = [one.text[:120] for one in after if not one.ok]
    return {
        "hit": hit,
        "left": left,
        "stayed": stayed,
        "gone_s": gone_s,
        "back_s": back_s,
        "failed": len(failed),
        "requests": len(after),
        "said": sorted(set(failed))[:5],
        "slowest_s": max((one.seconds for one in after if one.ok), default=0.0),
    }


def kill_starting(files: Sequence[str], limit_s: float = 30.0) -> dict[str, object]:
    """Kill the worker of a replica whose engine is in the middle of a cold start; as `kill_round`, without load."""
    torpor(["ray", "up", *files, "--port", str(HTTP_PORT), "--timeout", "0.1"])
    _until(lambda: bool(engines()) and bool(victims("replica")))
    old, began = {(one.pid, one.create_time()) for one in engines()}, time.monotonic()
    hit = int(str(kill("replica")["hit"]))
    left, gone_s = _left(old, began, limit_s)
    torpor(["ray", "down"])
    return {"hit": hit, "left": left, "gone_s": gone_s}


def serve_deleted(model: str) -> int:
    """Delete the application of a deployment, without waiting."""
    serve.delete(f"torpor-{model}", _blocking=False)
    return 1


def _left(old: set[tuple[int, float]], began: float, limit_s: float) -> tuple[int, float]:
    """How many of these processes are left at the limit, and how long the others took to go."""
    while True:
        now = {(one.pid, one.create_time()) for one in engines()} & old
        took = time.monotonic() - began
        if not now or not limit_s:
            return (0 if not limit_s else len(now)), took if limit_s else 0.0
        if took > limit_s:
            return len(now), took
        time.sleep(0.02)


def _back(load: Load, began: float, limit_s: float) -> float:
    """Seconds until it answers again without a failure for two seconds."""
    while time.monotonic() - began < limit_s:
        after = [(at, answered) for at, answered in tuple(load.answers) if at >= began - 1]
        failures = [at + answered.seconds for at, answered in after if not answered.ok]
        good = [at + answered.seconds for at, answered in after if answered.ok and at > max([began, *failures])]
        if good and good[-1] - good[0] > 2.0:
            return min(good) - began
        time.sleep(0.1)
    return -1.0


SCENES: dict[str, Callable[..., dict[str, object]]] = {
    one.__name__: one
    for one in (
        from_zero,
        next_replica,
        bare_url,
        latency,
        streams,
        pid,
        add_node,
        kill_starting,
        torpor,
        command,
        status,
        wait_replicas,
        ask,
        get,
        logged,
        around_zero,
        leave,
        kill,
        foreign,
        until_answered,
        broken_round,
        kill_round,
    )
}

if __name__ == "__main__":
    main()
