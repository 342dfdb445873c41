"""A Ray cluster of several raylets in network and process namespaces of its own: nothing outside reaches it, nothing is left of it.

    with RayBox(folder, nodes=2) as box:
        box.do("up", files=["small.py"], store="...")
        box.do("ask", model="small")

GCS, raylets, HAProxy and metrics listen on all addresses, and `ray stop` ends every cluster of a user by name. In namespaces
neither matters. Each raylet has an address of its own on loopback and counts as a node. `benchmarks.ray_scenes` has what `do` can
do; it runs inside, in one process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

from torpor.platforms.ray.options import PRELOAD_VARIABLE, cluster_environment
from torpor.snapshots.before_capture.lasting_folders import LASTING_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["APP", "HTTP_PORT", "STAYS", "RayBox", "write_app"]

ROOT = Path(__file__).parents[1]
HTTP_PORT = 8001
STAYS = ("controller", "proxy", "haproxy", "haproxy_manager", "ingress")
"""What no engine depends on: it stays when one of these ends."""

_IN_ANY_MODE = (PRELOAD_VARIABLE, "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S")
_START_S = 120.0
_CALL_S = 180.0

APP = """
from torpor import Deployment, Model, Scaling
from torpor.testing import Fault, StandIn

deployment = Deployment(
    name={name!r},
    model=Model(path={folder!r}, served_name={name!r}),
    plugins=(StandIn(warmup_requests=1, {standin}),),
    scaling=Scaling({scaling}),
    drain_timeout_s=5.0,
    stop_timeout_s=2.0,
    {more}
)
"""


def write_app(
    folder: Path, name: str, *, standin: str = "", scaling: str = "scaledown_window_s=2", more: str = ""
) -> Path:
    """Write an app file on the stand-in engine.

    Args:
        folder: where to.
        name: of the deployment, its model and the file.
        standin: further arguments of the stand-in.
        scaling: arguments of `Scaling`.
        more: further arguments of the deployment, each with a comma.
    """
    (folder / "models" / name).mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.py"
    model = str(folder / "models" / name)
    file.write_text(APP.format(name=name, folder=model, standin=standin, scaling=scaling, more=more))
    return file


class RayBox:
    """The cluster.

    Args:
        folder: a short path for everything that it writes: sockets have names of at most 107 bytes.
        nodes: raylets.
        haproxy: whether Serve runs in HAProxy mode.
        dashboard: whether Ray's dashboard runs, to which `serve deploy` speaks.
        env: further environment variables of every process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 1,
        haproxy: bool = True,
        dashboard: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._more = ["dashboard"] if dashboard else []
        self._nodes = nodes
        self._env = {**os.environ, **_environment(folder, haproxy=haproxy), **(env or {})}
        self._process: subprocess.Popen[str] | None = None
        self.up_s = 0.0

    @staticmethod
    def missing() -> str:
        """Why there can be no such cluster here; empty if there can be one."""
        if importlib.util.find_spec("ray") is None:
            return "Ray is not installed (`make ray`)"
        if os.geteuid() != 0:
            return "namespaces for a whole cluster need root"
        for program in ("unshare", "ip"):
            if shutil.which(program) is None:
                return f"{program} is not installed"
        probe = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True, check=False)
        return "" if probe.returncode == 0 else "this machine forbids namespaces"

    def __enter__(self) -> Self:
        began = time.monotonic()
        program = [sys.executable, "-m", "benchmarks.ray_scenes", str(self._nodes), *self._more]
        # A shell as first process reaps orphans. --kill-child: everything inside ends with this process.
        argv = [
            "unshare",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            '"$@"; exit $?',
            "sh",
        ]
        with (self.folder / "box.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*argv, *program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=self._env,
                start_new_session=True,
            )
        try:
            self._answer(_START_S)
        except BaseException:
            self.close()
            raise
        self.up_s = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def do(self, scene: str, *, limit_s: float = _CALL_S, **arguments: object) -> dict[str, object]:
        """Run a scene inside.

        Args:
            scene: name of a function of `benchmarks.ray_scenes`.
            limit_s: deadline.
            arguments: its keyword arguments, of JSON's types.

        Raises:
            RuntimeError: it failed; the message has its traceback.
        """
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("The box is closed.")
        self._process.stdin.write(json.dumps({"scene": scene, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer(limit_s)

    def run(self, argv: Sequence[str], *, limit_s: float = _CALL_S) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as a user of one of its nodes would."""
        inside = self.do("pid")["pid"]
        return subprocess.run(
            ["nsenter", "-t", str(_outer_pid(self._process, int(str(inside)))), "-n", "-p", "-m", "--", *argv],
            capture_output=True,
            text=True,
            timeout=limit_s,
            env=self._env,
            cwd=ROOT,
            check=False,
        )

    def close(self) -> None:
        """End every process inside."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # unshare; the kernel then ends its child, and with it the whole namespace
        process.wait(30)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _answer(self, limit_s: float) -> dict[str, object]:
        process = self._process
        if process is None or process.stdout is None:
            raise RuntimeError("The box is closed.")
        ready, _, _ = select.select([process.stdout], [], [], limit_s)
        line = process.stdout.readline() if ready else ""
        if not line:
            tail = (self.folder / "box.log").read_text(errors="replace")[-3000:]
            raise RuntimeError(
                f"No answer from the box within {limit_s:g} s, or it ended (code {process.poll()}):\n{tail}"
            )
        told: dict[str, object] = json.loads(line)
        if "error" in told:
            raise RuntimeError(str(told["error"]))
        return told


def _outer_pid(process: subprocess.Popen[str] | None, inside: int) -> int:
    """The pid out here of a process whose pid in there is known."""
    if process is None:
        raise RuntimeError("The box is closed.")
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == str(inside):
                    return child.pid
    raise RuntimeError(f"No process has the pid {inside} inside.")


def _environment(folder: Path, *, haproxy: bool) -> dict[str, str]:
    cache = Path(os.environ.get("TORPOR_CACHE") or Path.home() / ".cache" / "torpor")
    env = {
        "TORPOR_CACHE": str(folder / "cache"),
        LASTING_VARIABLE: str(folder),  # a capture refuses files in a temporary folder
        "TORPOR_CRIU_PREFIX": os.environ.get("TORPOR_CRIU_PREFIX", str(cache / "criu")),
        "TORPOR_LOG_FORMAT": "json",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        **{name: value for name, value in cluster_environment().items() if name in _IN_ANY_MODE},
    }
    if not haproxy:
        return env
    place = folder / "ha"
    place.mkdir(exist_ok=True)
    return env | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(place / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(place / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(place),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(place / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(place / "metrics.sock"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
    }
