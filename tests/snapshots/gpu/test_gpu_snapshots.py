"""Whole snapshots of an engine on a GPU: the stand-in engine and driver, real sandboxes, the real CRIU.

The engine's three processes hold a device file each, open and mapped, with memory of their own in it (`tests.snapshots.nvidia`).
What the real driver does with real memory is in `test_real_gpu.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.conftest import refuse, wait_for
from tests.snapshots.kept import chat, engines_on
from tests.snapshots.nvidia import MEMORY_BYTES, PROGRAM, UUID, FakeDriver
from tests.snapshots.nvidia.process import pattern
from torpor import SnapshotError, SnapshotMisfitError
from torpor.app_file import load_app
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.server import LocalServer
from torpor.platforms.local.snapshots import restore_snapshot
from torpor.snapshots.criu.program import PREFIX_VARIABLE, Criu
from torpor.snapshots.gpu import calls as cuda_run
from torpor.snapshots.gpu import checkpoint as cuda
from torpor.snapshots.gpu.holders import holders
from torpor.snapshots.restore import begin_sandbox, restore_replica
from torpor.snapshots.sandbox.engine import SandboxEngine
from torpor.snapshots.store.gpu_state import Gpu
from torpor.snapshots.store.manifest import MANIFEST, read_manifest
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.store.manifest import Manifest

pytestmark = [
    pytest.mark.criu,
    pytest.mark.skipif(os.geteuid() != 0, reason="snapshots of a deployment with a GPU are made as root"),
]

_APP = f"""
from dataclasses import dataclass
from torpor import Deployment, Model
from torpor.testing import StandIn


@dataclass(frozen=True, kw_only=True)
class OnGpu(StandIn):
    options: tuple[str, ...] = ()

    def engine_argv(self, deployment, recipe):
        python, _, _, *rest = super().engine_argv(deployment, recipe)
        return (python, {str(PROGRAM)!r}, {{libcuda!r}}, "standin", *rest, *self.options)


deployment = Deployment(
    name="on-gpu",
    model=Model(path={{folder!r}}, served_name="standin"),
    gpu={{gpu}},
    plugins=(OnGpu(warmup_requests=1, options={{options}}),),
    port={{port}},
    startup_timeout_s=60,
)
"""


class Machine:
    """A machine with one GPU, and an app for it."""

    def __init__(self, driver: FakeDriver, folder: Path) -> None:
        self.driver, self.folder = driver, folder
        self.port = unused_port()
        self.kept = folder / "kept"
        self.app = folder / "app" / "on_gpu.py"
        self.app.parent.mkdir()
        self.write_app()

    def write_app(self, *options: str, gpu: str | None = "H200") -> None:
        libcuda, folder = str(self.driver.libcuda), str(self.app.parent)
        self.app.write_text(_APP.format(libcuda=libcuda, folder=folder, gpu=repr(gpu), options=options, port=self.port))

    def server(self, *, leave_running: bool = False) -> LocalServer:
        backend = CriuBackend(
            folder=self.kept,
            app_file=self.app,
            leave_running=leave_running,
            public=False,
            gpu_devices=self.driver.devices,
        )
        return LocalServer(load_app(str(self.app)).deployment, backend=backend)

    def capture(self) -> Manifest:
        """Start, sleep, keep, end."""
        server = self.server()
        try:
            server.cold_start()
            server.sleep()
        finally:
            server.stop()
        assert engines_on(self.port) == []
        return read_manifest(self.kept)

    def pids(self, server: LocalServer) -> list[int]:
        """The processes on the GPU, by their pids inside: server, scheduler, detokenizer."""
        engine = server.boot.running_engine
        assert isinstance(engine, SandboxEngine)
        return [one.pid for one in holders(engine.sandbox, self.driver.devices)]

    def on_gpu(self, *pids: int) -> list[bool]:
        """Whether each process has its memory on the GPU."""
        return [self.driver.on_gpu(pid) == pattern(pid) for pid in pids]


@pytest.fixture
def machine(
    driver: FakeDriver,
    criu: Criu,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Machine]:
    """See `Machine`; its processes are ended afterwards."""
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path_factory.mktemp("c")))
    if "root" in criu.program.parts:  # a private prefix: <prefix>/root/usr/sbin/criu
        monkeypatch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))
    if reasons := CriuBackend(mode="root").available():
        refuse("; ".join(reasons))
    there = Machine(driver, tmp_path)
    yield there
    assert engines_on(there.port) == []


def test_a_replica_of_an_engine_on_a_gpu_has_its_memory_there_again(machine: Machine) -> None:
    """Capture, restore, ask: no process is on the GPU in the snapshot, all are in the replica. The mode is root by default."""
    manifest = machine.capture()
    assert manifest.mode == "root"
    assert manifest.gpu is not None
    pids = [one.pid for one in manifest.gpu.processes]
    assert len(pids) == 3
    assert pids[0] == 1000
    assert all("process.py" in one.command for one in manifest.gpu.processes)
    assert all(one.lock_s > 0 and one.checkpoint_s > 0 for one in manifest.gpu.processes)
    assert manifest.gpu.memory == {UUID: 3 * MEMORY_BYTES}
    assert manifest.machine.driver == "580.159.04"
    assert manifest.machine.gpus == (Gpu(uuid=UUID, name="NVIDIA H200", memory_mib=143771, compute_capability="9.0"),)
    assert [stage.seconds > 0 for stage in manifest.stages if stage.stage == "capture_cuda"] == [True]
    assert machine.on_gpu(*pids) == [False] * 3
    port = unused_port()
    replicas = restore_snapshot(machine.kept, port=port)
    try:
        assert machine.on_gpu(*pids) == [True] * 3
        assert chat(port) == chat(port)
        (replica,) = replicas.serving
        assert replica.replica.cuda is not None
        assert [one.pid for one in replica.replica.cuda.processes] == pids
        assert all(one.restore_s > 0 and one.unlock_s > 0 for one in replica.replica.cuda.processes)
        assert replica.replica.cuda_s == replica.replica.cuda.seconds > 0
    finally:
        replicas.stop()


def test_an_original_that_is_left_running_resumes_on_its_gpu_and_serves(machine: Machine) -> None:
    """As after `torpor up --snapshot`; the snapshot is complete."""
    server = machine.server(leave_running=True)
    try:
        server.start()
        pids = machine.pids(server)
        assert len(pids) == 3
        assert machine.on_gpu(*pids) == [True] * 3
        assert read_manifest(machine.kept).gpu is not None
    finally:
        server.stop()
    replicas = restore_snapshot(machine.kept, port=unused_port())
    replicas.stop()


def test_io_uring_is_denied_only_to_the_engine(machine: Machine) -> None:
    """By a filter on its tree (seccomp, mode 2); the machine's setting and this process do not change."""
    setting = Path("/proc/sys/kernel/io_uring_disabled")
    before = setting.read_text() if setting.exists() else ""
    server = machine.server()
    try:
        server.cold_start()
        assert "\nSeccomp:\t2" in Path(f"/proc/{server.boot.running_engine.pid}/status").read_text()
    finally:
        server.stop()
    assert (setting.read_text() if setting.exists() else "") == before
    assert "\nSeccomp:\t0" in Path("/proc/self/status").read_text()


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        ("lock", 600, "cuCheckpointProcessLock: CUDA_ERROR_NOT_READY: words for error 600"),
        ("checkpoint", 801, "cuCheckpointProcessCheckpoint: CUDA_ERROR_NOT_SUPPORTED: words for error 801"),
    ],
)
def test_a_checkpoint_that_fails_leaves_the_original_asleep_and_usable(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, call: str, code: int, said: str
) -> None:
    """The message has process, call and the driver's error; no file stays; the original wakes and serves."""
    server = machine.server()
    try:
        server.cold_start()
        _, _, failing = machine.pids(server)
        monkeypatch.setenv("TORPOR_FAKE_CUDA", f"{call}:{failing}={code}")
        with pytest.raises(SnapshotError) as error:
            server.sleep()
        assert said in str(error.value)
        assert f"pid {failing} (" in str(error.value)
        assert "sleeps on as before" in str(error.value)
        assert not machine.kept.exists()
        monkeypatch.delenv("TORPOR_FAKE_CUDA")
        assert machine.on_gpu(*machine.pids(server)) == [True] * 3
        server.wake()
    finally:
        server.stop()


def test_a_sandbox_is_ended_if_a_suspension_cannot_be_undone(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says so; no half-suspended process stays."""
    server = machine.server()
    try:
        server.cold_start()
        monkeypatch.setenv("TORPOR_FAKE_CUDA", f"checkpoint:{machine.pids(server)[1]}=801,restore:1000=304")
        with pytest.raises(SnapshotError) as error:
            server.sleep()
        assert "could not be undone, so the sandbox was ended" in str(error.value)
        assert "pid 1000 (" in str(error.value).partition("could not be undone")[2]
        assert engines_on(machine.port) == []
        assert not machine.kept.exists()
    finally:
        server.stop()


def test_a_hanging_checkpoint_is_given_up_and_the_sandbox_ended(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the driver is unknown by then."""
    monkeypatch.setattr(cuda_run, "_MOVE_S", 0.5)
    monkeypatch.setattr(cuda_run, "_GRACE_S", 2.0)
    server = machine.server()
    try:
        server.cold_start()
        pid = machine.pids(server)[1]
        monkeypatch.setenv("TORPOR_FAKE_CUDA", f"checkpoint:{pid}=hang")
        with pytest.raises(SnapshotError) as error:
            server.sleep()
        assert f"pid {pid} (" in str(error.value)
        assert "cuCheckpointProcessCheckpoint: TIMEOUT: it did not return within" in str(error.value)
        assert "so the sandbox was ended" in str(error.value)
        assert engines_on(machine.port) == []
    finally:
        server.stop()


def test_a_driver_that_crashes_the_program_ends_the_sandbox(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no answer; the message has its exit code."""
    server = machine.server()
    try:
        server.cold_start()
        monkeypatch.setenv("TORPOR_FAKE_CUDA", "checkpoint:1000=crash")
        with pytest.raises(SnapshotError, match=r"ended with code -11 and no answer, so the sandbox was ended"):
            server.sleep()
        assert engines_on(machine.port) == []
    finally:
        server.stop()


def test_after_a_failed_dump_the_original_resumes_on_its_gpu(machine: Machine) -> None:
    """CRIU meets something that it cannot dump; the original wakes and serves."""
    machine.write_app("--undumpable")
    server = machine.server()
    try:
        server.cold_start()
        with pytest.raises(SnapshotError, match="CRIU's dump of sandbox"):
            server.sleep()
        assert not machine.kept.exists()
        assert machine.on_gpu(*machine.pids(server)) == [True] * 3
        server.wake()
    finally:
        server.stop()


def test_a_failed_dump_and_a_failed_resumption_are_both_reported(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First CRIU's reason, then why the original was lost."""
    machine.write_app("--undumpable")
    server = machine.server()
    try:
        server.cold_start()
        monkeypatch.setenv("TORPOR_FAKE_CUDA", "restore:1000=304")
        with pytest.raises(SnapshotError) as error:
            server.sleep()
        first, _, second = str(error.value).partition("And then the original was lost: ")
        assert "CRIU's dump of sandbox" in first
        assert "pid 1000 (" in second
        assert "cuCheckpointProcessRestore: CUDA_ERROR_OPERATING_SYSTEM" in second
        assert engines_on(machine.port) == []
    finally:
        server.stop()


def test_a_device_file_that_is_held_after_the_checkpoint_is_named(machine: Machine) -> None:
    """CRIU would only say 'Can't handle non-regular mapping'. The original resumes on its GPU and wakes."""
    machine.write_app("--keep")
    server = machine.server()
    try:
        server.cold_start()
        with pytest.raises(SnapshotError) as error:
            server.sleep()
        assert "these processes still hold device files of the driver" in str(error.value)
        assert str(machine.driver.device) in str(error.value)
        assert machine.on_gpu(*machine.pids(server)) == [True] * 3
        server.wake()
    finally:
        server.stop()


def test_too_little_host_memory_is_found_before_the_driver_is_called(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the needed and the available memory."""
    server = machine.server()
    try:
        server.cold_start()
        monkeypatch.setattr(cuda, "available_bytes", lambda: 1_000_000)
        monkeypatch.setenv("TORPOR_FAKE_CUDA", "init=999")
        with pytest.raises(SnapshotError, match=r"moves 0\.00 GB .* 0\.00 GB are available .* Nothing was changed"):
            server.sleep()
        assert machine.on_gpu(*machine.pids(server)) == [True] * 3
        server.wake()
    finally:
        server.stop()


def test_a_restore_that_the_driver_refuses_leaves_nothing_running(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has process, call and advice; the snapshot stays usable."""
    machine.capture()
    monkeypatch.setenv("TORPOR_FAKE_CUDA", "restore:1000=2")
    with pytest.raises(SnapshotError) as error:
        restore_snapshot(machine.kept, port=unused_port())
    assert "pid 1000 (" in str(error.value)
    assert "cuCheckpointProcessRestore: CUDA_ERROR_OUT_OF_MEMORY" in str(error.value)
    assert "The sandbox was ended" in str(error.value)
    assert engines_on(machine.port) == []
    monkeypatch.delenv("TORPOR_FAKE_CUDA")
    restore_snapshot(machine.kept, port=unused_port()).stop()


def test_a_driver_that_does_not_get_ready_ends_the_replica(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is initialised while CRIU works; the failure is reported after CRIU's work."""
    machine.capture()
    monkeypatch.setenv("TORPOR_FAKE_CUDA", "init=100")
    with pytest.raises(SnapshotError, match=r"cuInit: CUDA_ERROR_NO_DEVICE(.|\n)*check that there are /dev/nvidia"):
        restore_snapshot(machine.kept, port=unused_port())
    assert engines_on(machine.port) == []


def test_on_old_kernels_the_driver_is_initialised_after_criu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 5.5, where no other process may start while CRIU works; the replica serves."""
    machine.capture()
    monkeypatch.setattr(cuda, "_SET_TID", (999, 0))
    port = unused_port()
    replicas = restore_snapshot(machine.kept, port=port)
    try:
        assert chat(port)
    finally:
        replicas.stop()


def test_a_restore_that_fails_in_criu_ends_the_program_that_waits_for_it(machine: Machine, criu: Criu) -> None:
    """CRIU's reason is reported, and the sandbox is ended."""
    manifest = machine.capture()
    broken = criu._replace(argv=("/bin/sh", "-c", "sleep 1; exit 7"))  # the program is there by then
    seen: list[Path] = []
    began = threading.Thread(target=lambda: seen.extend(wait_for(lambda: _calls_running(machine))))
    began.start()
    with pytest.raises(SnapshotError, match="CRIU's restore of sandbox"):
        restore_replica(machine.kept, manifest, criu=broken, begun=begin_sandbox(manifest, "lost"))
    began.join()
    assert seen
    assert wait_for(lambda: not _calls_running(machine))


def _calls_running(machine: Machine) -> list[Path]:
    """This test's processes that make the driver's calls, or wait to."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_text()
            if "calls_program.py" in command and str(machine.driver.libcuda) in command:
                found.append(process)
    return found


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (
            "TORPOR_FAKE_DRIVER",
            "575.57.08",
            "made on NVIDIA driver 580.159.04; here it is 575.57.08, another major version",
        ),
        ("TORPOR_FAKE_GPU", "", "used or not, and a restore needs a GPU of that kind for each; this machine has 0"),
        ("TORPOR_FAKE_GPU", f"{UUID}|NVIDIA H200|143000|9.0", "memory 143000 MiB instead of 143771 MiB"),
        ("TORPOR_FAKE_GPU", f"{UUID}|NVIDIA H100|143771|9.0", "name NVIDIA H100 instead of NVIDIA H200"),
        ("TORPOR_FAKE_GPU", f"{UUID}|NVIDIA H200|143771|9.1", "compute capability 9.1 instead of 9.0"),
    ],
)
def test_another_driver_or_gpu_is_refused_before_gpu_state_moves(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    """Each difference is a reason. The driver is asked while CRIU works; the refused replica takes no GPU memory."""
    machine.capture()
    used = set(machine.driver.used.iterdir())
    monkeypatch.setenv(variable, value)
    with pytest.raises(SnapshotMisfitError) as error:
        restore_snapshot(machine.kept, port=unused_port())
    assert set(machine.driver.used.iterdir()) == used
    assert said in str(error.value)
    assert "Nothing was restored" in str(error.value)


def test_too_little_gpu_memory_is_found_before_a_restore(machine: Machine) -> None:
    """A restore that runs out of GPU memory cannot be repeated in the same process, so none starts; all replicas count."""
    manifest = machine.capture()
    assert manifest.gpu is not None
    (machine.driver.used / "somebody").write_text(str((143771 << 20) - 4 * MEMORY_BYTES))
    with pytest.raises(SnapshotError, match=r"only 1 of 2 replicas fit: one needs 3 MiB(.|\n)*has 4 MiB free"):
        restore_snapshot(machine.kept, port=unused_port(), replicas=2)
    restore_snapshot(machine.kept, port=unused_port(), replicas=1).stop()


def test_the_commands_report_the_drivers_times(machine: Machine) -> None:
    """`torpor snapshot restore --json` and `inspect`."""
    machine.capture()
    torpor = [sys.executable, "-m", "torpor.cli", "snapshot"]
    inspected = subprocess.run(
        [*torpor, "inspect", str(machine.kept)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "1000 lock 0." in inspected.stdout
    assert "driver 580.159.04" in inspected.stdout
    port = str(unused_port())
    with subprocess.Popen(
        [*torpor, "restore", str(machine.kept), "--port", port, "--json"], stdout=subprocess.PIPE, text=True
    ) as restored:
        assert restored.stdout is not None
        told = json.loads(restored.stdout.readline())
        restored.terminate()
    (replica,) = told["replicas"]
    assert replica["cuda_s"] > 0
    assert len(replica["cuda"]) == 3
    assert replica["cuda"][0]["pid"] == 1000
    assert all(one["restore_s"] > 0 for one in replica["cuda"])


def test_an_engine_on_a_gpu_that_its_deployment_does_not_name_is_refused(machine: Machine) -> None:
    """A restore would ignore the GPU; the engine can be woken."""
    machine.write_app(gpu=None)
    server = machine.server()
    try:
        server.cold_start()
        with pytest.raises(SnapshotError, match=r"names no GPU, but processes of its engine hold one"):
            server.sleep()
        server.wake()
    finally:
        server.stop()


def test_rootless_and_a_gpu_are_refused_with_the_reason(machine: Machine) -> None:
    """Untried, so it offers standby; before anything starts."""
    deployment = load_app(str(machine.app)).deployment
    backend = CriuBackend(mode="rootless")
    (reason,) = backend.available(deployment)
    assert "untried" in reason
    assert "--backend standby" in reason
    with pytest.raises(SnapshotError, match="untried"):
        backend.prepare(deployment)
    assert backend.available(replace(deployment, gpu=None, gpu_snapshot=None)) == ()


def test_an_old_driver_is_refused_before_anything_is_started(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers have the checkpoint functions from 570 on."""
    monkeypatch.setenv("TORPOR_FAKE_DRIVER", "550.54.15")
    with pytest.raises(SnapshotError, match=r"the NVIDIA driver is 550\.54\.15: update it to 570 or newer"):
        machine.server()


def test_a_snapshot_of_the_former_format_is_refused_with_the_reason(machine: Machine) -> None:
    """Its manifest has no part about GPUs."""
    machine.capture()
    content = json.loads((machine.kept / MANIFEST).read_text())
    (machine.kept / MANIFEST).write_text(json.dumps({**content, "schema": 1}))
    with pytest.raises(SnapshotError, match="in format 1; this is Torpor"):
        restore_snapshot(machine.kept, port=unused_port())
    shutil.rmtree(machine.kept)
