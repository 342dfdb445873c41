"""Whole snapshots on a machine with two GPUs: the stand-in engine and driver, real sandboxes, the real CRIU."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.conftest import refuse, wait_for
from tests.snapshots.gpu.test_gpu_snapshots import Machine
from tests.snapshots.kept import chat, engines_on
from tests.snapshots.nvidia import MEMORY_BYTES, UUIDS, FakeDriver, listed_gpus
from tests.snapshots.nvidia.process import pattern
from torpor import ConfigurationError, SnapshotError
from torpor.app_file import load_app
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.server import LocalServer
from torpor.platforms.local.snapshots import restore_snapshot
from torpor.snapshots.criu.program import PREFIX_VARIABLE, Criu
from torpor.snapshots.gpu.choice import gpus_for_replicas, named_gpus
from torpor.snapshots.gpu.driver import look
from torpor.snapshots.store.manifest import read_manifest
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torpor.platforms.local.replicas import Replicas
    from torpor.snapshots.gpu.placement import GpuPlace
    from torpor.snapshots.store.manifest import Manifest

pytestmark = [
    pytest.mark.criu,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="snapshots of a deployment with a GPU are made as root"),
]


@pytest.fixture
def machine(
    two_gpus: FakeDriver,
    criu: Criu,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Machine]:
    """A machine with two GPUs; its processes are ended afterwards."""
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path_factory.mktemp("c")))
    if "root" in criu.program.parts:  # a private prefix: <prefix>/root/usr/sbin/criu
        monkeypatch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))
    if reasons := CriuBackend(mode="root").available():
        refuse("; ".join(reasons))
    there = Machine(two_gpus, tmp_path)
    yield there
    assert engines_on(there.port) == []


@contextlib.contextmanager
def restored(machine: Machine, *, replicas: int = 1, gpus: Sequence[GpuPlace] = ()) -> Iterator[Replicas]:
    """Replicas of its snapshot."""
    started = restore_snapshot(machine.kept, replicas=replicas, port=unused_port(), gpus=gpus)
    try:
        yield started
    finally:
        started.stop()


def places(machine: Machine, names: str) -> tuple[GpuPlace, ...]:
    return gpus_for_replicas("--gpus", names, read_manifest(machine.kept))


def where(replicas: Replicas) -> list[list[int]]:
    """The GPUs of each replica, by the replicas themselves and their boots."""
    assert all([gpu.number for gpu in one.replica.gpus] == list(one.boot.gpus) for one in replicas.serving)
    return [[gpu.number for gpu in one.replica.gpus] for one in replicas.serving]


def on(machine: Machine, manifest: Manifest, gpu: int) -> list[bool]:
    """Whether each process has its memory on that GPU."""
    assert manifest.gpu is not None
    return [machine.driver.on_gpu(one.pid, gpu) == pattern(one.pid) for one in manifest.gpu.processes]


def found(machine: Machine, manifest: Manifest) -> list[int]:
    """The GPU of each process."""
    return [
        0 if first else 1
        for first, second in zip(on(machine, manifest, 0), on(machine, manifest, 1), strict=True)
        if first != second
    ]


def test_one_snapshot_feeds_every_gpu_and_a_replica_that_ends_comes_back_on_the_free_one(machine: Machine) -> None:
    """Two replicas, one on each GPU; the manifest has both GPUs, and the memory of the used one, asleep and awake."""
    manifest = machine.capture()
    assert [gpu.uuid for gpu in manifest.machine.gpus] == list(UUIDS[:2])
    assert manifest.gpu is not None
    assert manifest.gpu.memory == manifest.gpu.awake == {UUIDS[0]: 3 * MEMORY_BYTES}
    assert not any(on(machine, manifest, 1))
    with restored(machine, replicas=2) as replicas:
        assert where(replicas) == [[0], [1]]
        assert on(machine, manifest, 0) == on(machine, manifest, 1) == [True] * 3
        assert chat(replicas.port) == chat(replicas.port)
        first = replicas.serving[0]
        first.replica.sandbox.kill()
        assert wait_for(lambda: len(replicas.serving) == 2 and first not in replicas.serving)
        assert sorted(where(replicas)) == [[0], [1]]
        (machine.driver.used / "1-999999").write_text(str(143771 << 20))
        with pytest.raises(SnapshotError, match=r"it does not fit: one needs 3 MiB(.|\n)*GPU 1 .* has 0 MiB free"):
            restore_snapshot(machine.kept, port=unused_port(), gpus=places(machine, "1"))


def test_two_ranks_come_back_swapped_and_on_another_machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `--gpus 1,0`; and where the GPUs of the kind have other UUIDs."""
    machine.write_app("--ranks", "2", gpu="H200:2")
    manifest = machine.capture()
    assert manifest.gpu is not None
    assert set(manifest.gpu.memory) == set(UUIDS[:2])
    own = [0, 1, 1]  # the server, and the processes that it forked

    with restored(machine, gpus=places(machine, "1,0")) as replicas:
        assert where(replicas) == [[1, 0]]
        assert found(machine, manifest) == [1 - gpu for gpu in own]
        assert chat(replicas.port)
    with pytest.raises(ConfigurationError, match="1 named, and one replica uses 2"):
        places(machine, "0")
    machine.driver.clear()
    monkeypatch.setenv("TORPOR_FAKE_GPU", listed_gpus(*UUIDS[4:6]))
    with restored(machine) as replicas:
        assert found(machine, manifest) == own
        assert [gpu.uuid for gpu in replicas.serving[0].replica.gpus] == list(UUIDS[4:6])


def test_a_cold_start_uses_the_gpu_that_was_named_and_its_snapshot_any(machine: Machine) -> None:
    """The engine sees that GPU alone; still both are in the manifest, and a restore moves it."""
    app = load_app(str(machine.app))
    machine_gpus = gpus_of(machine)
    backend = CriuBackend(folder=machine.kept, app_file=app.file, public=False, gpu_devices=machine.driver.devices)
    server = LocalServer(app.deployment, backend=backend, gpus=machine_gpus[1:])
    try:
        server.cold_start()
        environ = f"/proc/{server.boot.running_engine.pid}/environ"
        with open(environ, "rb") as file:  # noqa: PTH123
            assert {b"CUDA_VISIBLE_DEVICES=1", b"CUDA_DEVICE_ORDER=PCI_BUS_ID"} <= set(file.read().split(b"\0"))
        server.sleep()
    finally:
        server.stop()
    manifest = read_manifest(machine.kept)
    assert manifest.gpu is not None
    assert set(manifest.gpu.memory) == {UUIDS[1]}
    assert len(manifest.machine.gpus) == 2
    with restored(machine, gpus=places(machine, "0")) as replicas:
        assert where(replicas) == [[0]]
        assert on(machine, manifest, 0) == [True] * 3
        assert not any(on(machine, manifest, 1))


def gpus_of(machine: Machine) -> tuple[GpuPlace, ...]:
    """Every GPU, without a snapshot."""
    assert machine.driver.device.exists()
    return named_gpus("--gpus", ["0", "1"], look())


def test_the_command_names_the_gpus_of_each_replica(machine: Machine) -> None:
    """`restore --gpus 1 --json`, and `status`."""
    machine.capture()
    torpor = [sys.executable, "-m", "torpor.cli"]
    words = ["--port", str(unused_port()), "--json", "--gpus", "1"]
    with subprocess.Popen(
        [*torpor, "snapshot", "restore", str(machine.kept), *words], stdout=subprocess.PIPE, text=True
    ) as restore:
        assert restore.stdout is not None
        told = json.loads(restore.stdout.readline())
        shown = subprocess.run([*torpor, "status"], capture_output=True, text=True, check=True, timeout=60).stdout
        restore.terminate()
    assert [replica["gpus"] for replica in told["replicas"]] == [
        [{"number": 1, "uuid": UUIDS[1], "name": "NVIDIA H200"}]
    ]
    assert "GPU 1" in shown
    wrong = subprocess.run(
        [*torpor, "snapshot", "restore", str(machine.kept), "--gpus", "7"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert wrong.returncode == 2
    assert "GPU 7 is not here; this machine has GPU 0 (NVIDIA H200" in wrong.stderr
