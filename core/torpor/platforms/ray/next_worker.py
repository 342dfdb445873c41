"""Has a node start a worker process ahead, for the next replica on it: imports are half of the time from zero to the first token.

Ray gives an actor an idle worker of the same job, if there is one, and starts a process if not. It has no public way to start one
ahead: this asks the node's raylet by the call that Ray's own C++ side uses (NodeManagerService.PrestartWorkers in
ray/protobuf/node_manager.proto, 2.60). If that fails, the next replica starts as it would without.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from torpor.snapshots.store.paths import cache_root
from torpor.telemetry.events import log

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["start_next_worker"]

_GENERATED = ("common_pb2", "node_manager_pb2", "node_manager_pb2_grpc")
_IDLE = b"ray::IDLE"
_KEEP_S = 7 * 24 * 3600
"""Ray ends a worker that nobody used for so long."""
_CALL_S = 10.0
_THERE_S = 60.0
_LOOK_S = 0.2


def start_next_worker() -> None:
    """Have this node start one, unless it has an idle worker or is starting one. Call it in a replica's process; it blocks.

    It does nothing where the replicas have a runtime environment of their own: their workers differ.
    """
    try:
        if ray.get_runtime_context().get_runtime_env_string() in ("", "{}"):
            with _alone() as alone:
                if alone and not _idle_workers():
                    _ask_raylet()
                    _wait_for_worker()
    except Exception as error:  # another version of Ray, a cluster with TLS or tokens, a cache that cannot be written
        log("info", "no_worker_started_ahead", error=f"{type(error).__name__}: {error}")


def _ask_raylet() -> None:
    grpc = importlib.import_module("grpc")  # like the next, Serve's own and nobody's promise: a replica starts without
    common, messages, calls = (importlib.import_module(f"ray.core.generated.{name}") for name in _GENERATED)
    context = ray.get_runtime_context()
    (node,) = [one for one in ray.nodes() if one["NodeID"] == context.get_node_id()]
    request = messages.PrestartWorkersRequest(
        language=common.PYTHON,
        job_id=bytes.fromhex(context.get_job_id()),
        keep_alive_duration_secs=_KEEP_S,
        num_workers=1,
    )
    with grpc.insecure_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        calls.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_CALL_S)


def _wait_for_worker() -> None:
    """Until it is there, so that nobody asks for another one meanwhile."""
    deadline = time.monotonic() + _THERE_S
    while not _idle_workers() and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


def _idle_workers() -> list[int]:
    """The idle workers of this process's raylet, which is its parent."""
    raylet, found = os.getppid(), list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            if (folder / "cmdline").read_bytes().startswith(_IDLE):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == raylet:
                    found.append(int(folder.name))
    return found


@contextlib.contextmanager
def _alone() -> Iterator[bool]:
    """Whether no other replica of this machine starts a worker now."""
    folder = cache_root() / "run"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file_fd = os.open(folder / "ray-next-worker", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(file_fd)
