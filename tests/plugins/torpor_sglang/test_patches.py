"""The launcher's patches: which are on, how to switch them off, and what each one does."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar
from urllib.error import HTTPError

import psutil
import pytest

from tests.conftest import is_running
from torpor import ConfigurationError
from torpor.engine_patches.patches import Patch, apply_patches
from torpor.guard import BootDocument, GuardRules
from torpor.launcher.guarded_app import install_guard
from torpor_sglang.patches import all_patches, apply_all
from torpor_sglang.patches.cpu import choose_cpu
from torpor_sglang.patches.public_requests import FETCHERS, check_own_downloads
from torpor_sglang.versions import SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.plugins.local_engines import Questions


def patch(name: str, done: list[str], *, needed: bool = True) -> Patch:
    return Patch(name=name, reason="a test", versions=(), applies=lambda: needed, apply=lambda: done.append(name))


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **paths, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_needed_patches_are_applied_in_order() -> None:
    """Patches that the process needs are applied once, in the order of the list; others are not."""
    done: list[str] = []
    report = apply_patches({}, [patch("one", done), patch("two", done, needed=False), patch("three", done)])
    assert done == ["one", "three"]
    assert [found.name for found in report.on] == ["one", "three"]
    assert [found.name for found in report.not_needed] == ["two"]


def test_a_patch_can_be_switched_off_by_name() -> None:
    """`TORPOR_PATCHES=-name` leaves one out, and the report says so."""
    done: list[str] = []
    report = apply_patches({"TORPOR_PATCHES": "-two, -one"}, [patch(name, done) for name in ("one", "two", "three")])
    assert done == ["three"]
    assert [found.name for found in report.off] == ["one", "two"]


@pytest.mark.parametrize("value", ["-cpu-kernel", "cpu-kernels", "+cpu-kernels", "-"])
def test_an_invalid_patch_switch_is_an_error(value: str) -> None:
    """A misspelt name is not ignored; the message lists the names."""
    names = ", ".join(found.name for found in all_patches())
    with pytest.raises(ConfigurationError, match=f"patches are {re.escape(names)}\\."):
        apply_all({"TORPOR_PATCHES": value})


def test_the_guard_cannot_be_switched_off_as_a_patch() -> None:
    """An unguarded server needs another variable, so a list of patches cannot cause it."""
    with pytest.raises(ConfigurationError, match=r"the guard is not switched off here.*TORPOR_UNGUARDED=1"):
        apply_all({"TORPOR_PATCHES": "-guard"})


def test_every_patch_has_a_name_a_reason_and_tested_versions() -> None:
    """The list can be read without its code."""
    patches = all_patches()
    assert len({found.name for found in patches}) == len(patches)
    assert all(len(found.reason) > 40 and set(found.versions) <= set(SUPPORTED_VERSIONS) for found in patches)
    assert all(found.versions for found in patches)


@pytest.mark.parametrize(
    ("argv", "cpu"),
    [
        (("--device", "cpu"), True),
        (("--device=cpu",), True),
        (("--device", "cuda"), False),
        (("--model-path", "cpu"), False),
        ((), False),
    ],
)
def test_the_cpu_switch_follows_the_device_flag(argv: tuple[str, ...], cpu: bool) -> None:
    """A variable switches SGLang's CPU path on; it is set for `--device cpu` only."""
    environ: dict[str, str] = {}
    choose_cpu(argv, environ)
    assert environ == ({"SGLANG_USE_CPU_ENGINE": "1"} if cpu else {})


def test_a_missing_kernel_raises_only_when_it_is_called() -> None:
    """On a CPU any name can be imported from sgl_kernel. Calling it raises an error that names it. Submodules stay missing."""
    code = """
from torpor_sglang.patches import apply_all
apply_all({})
from sgl_kernel import rmsnorm
from sgl_kernel.kvcacheio import transfer_kv
for call in (rmsnorm, transfer_kv):
    try:
        call(1, out=2)
    except NotImplementedError as error:
        print(error)
try:
    import sgl_kernel.flash_attn
except ImportError as error:
    print(type(error).__name__)
"""
    ran = run_python(code, SGLANG_USE_CPU_ENGINE="1")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "sgl_kernel.rmsnorm is a GPU kernel; this engine runs on a CPU and has no build of it",
        "sgl_kernel.kvcacheio.transfer_kv is a GPU kernel; this engine runs on a CPU and has no build of it",
        "ModuleNotFoundError",
    ]


def test_kernels_are_not_replaced_on_a_gpu_engine() -> None:
    """Without the CPU switch a missing kernel library stays missing."""
    ran = run_python("from torpor_sglang.patches import apply_all; apply_all({}); import sgl_kernel")
    assert "No module named 'sgl_kernel'" in ran.stderr


def test_a_real_kernel_library_is_never_replaced(tmp_path: Path) -> None:
    """If sgl_kernel is installed, it is imported."""
    (tmp_path / "sgl_kernel.py").write_text("where = 'real'\n")
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from torpor_sglang.patches import apply_all
apply_all({{}})
import sgl_kernel
print(sgl_kernel.where)
"""
    assert run_python(code, SGLANG_USE_CPU_ENGINE="1").stdout == "real\n"


def test_a_spawned_process_ends_with_its_parent(tmp_path: Path) -> None:
    """Its new child ends with a killed launcher, even before SGLang itself sets that up."""
    program = tmp_path / "parent.py"
    program.write_text(
        """
import multiprocessing, os, sys, time
if __name__ in ("__main__", "__mp_main__"):
    from torpor_sglang.patches import apply_all
    apply_all({})
def child():
    print(os.getpid(), flush=True)
    time.sleep(60)
if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=child).start()
    time.sleep(60)
"""
    )
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, program], env={**os.environ, **paths}, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 5
        while is_running(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_running(child)


def test_a_process_spawned_by_a_forked_one_lives(tmp_path: Path) -> None:
    """A fork does not run the main module again, so its spawned process must not count as an orphan."""
    program = tmp_path / "forks.py"
    program.write_text(
        """
import multiprocessing, os
if __name__ in ("__main__", "__mp_main__"):
    from torpor_sglang.patches import apply_all
    apply_all({})
def child():
    print("alive", flush=True)
if __name__ == "__main__":
    forked = os.fork()
    if forked == 0:
        spawned = multiprocessing.get_context("spawn").Process(target=child)
        spawned.start()
        spawned.join()
        os._exit(0)
    os.waitpid(forked, 0)
"""
    )
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ran = subprocess.run(
        [sys.executable, program], env={**os.environ, **paths}, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "alive\n"


class Application:
    """The part of Starlette's application that the guard's patch uses."""

    def __init__(self) -> None:
        self.middleware_stack: Callable[..., Awaitable[None]] | None = None
        self.build_middleware_stack: Callable[[], Callable[..., Awaitable[None]]] = lambda: self.answer

    async def answer(self, *_: object) -> None:
        """Answer nothing."""


def test_the_guard_refuses_an_application_that_already_serves() -> None:
    """It is too late for a guard, so this is an error instead of an open server."""
    app = Application()
    app.middleware_stack = app.answer
    boot = BootDocument(key="k" * 32, replica_id="0123456789abcdef", rules=GuardRules(public=("/v1/models",)))
    with pytest.raises(ConfigurationError, match="already in use"):
        install_guard(app, boot)


class _Redirecting(BaseHTTPRequestHandler):
    """Redirects from an allowed host to another address, and counts the requests there."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Answer with a redirect, or at its target."""
        self.asked.append(self.path)
        self.send_response(302 if self.path == "/allowed" else 200)
        self.send_header("Location", "/inside")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.mark.fault("an allowed host redirects media to an internal address", area="request", outcome="refused")
@pytest.mark.parametrize("domains", ["a.example", "*"])
def test_a_processor_that_fetches_by_itself_follows_no_redirect(domains: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mimo_v2` and `moss_vl` of 0.5.16 call `requests`, `inkling` `urllib.request`; with `*` SGLang is unchanged."""
    monkeypatch.setenv("TORPOR_MEDIA_DOMAINS", domains)
    monkeypatch.setenv("NO_PROXY", "*")
    module = ModuleType("processor")
    exec("import requests\nimport urllib.request", vars(module))
    check_own_downloads(module)
    _Redirecting.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Redirecting)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/allowed"
    try:
        module.requests.get(url, stream=True, timeout=5).close()
        with contextlib.suppress(HTTPError), module.urllib.request.urlopen(url, timeout=5):
            pass
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert _Redirecting.asked == (["/allowed"] * 2 if domains != "*" else ["/allowed", "/inside"] * 2)


@pytest.mark.sglang
def test_every_processor_that_fetches_by_itself_is_known(questions: Questions) -> None:
    """If this fails for a new version, add its processor to the patch `public-requests`."""
    folder = Path(questions.ask("version")["file"]).parent / "srt" / "multimodal"
    names = {
        ".".join(("sglang", "srt", "multimodal", *path.relative_to(folder).with_suffix("").parts))
        for path in folder.rglob("*.py")
        if re.search(r"\brequests\.(get|Session|request)\(|\burlopen\(|\b(httpx|aiohttp)\.\w", path.read_text())
    }
    assert sorted(names - set(FETCHERS)) == []
    assert names == (set(FETCHERS) if questions.version == "0.5.16" else set())
