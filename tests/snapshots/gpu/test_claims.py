"""Two commands that start at once choose different GPUs; a claim ends with its command, and keeps nobody out who names the GPU."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.gpu import claims_program
from tests.snapshots.small_snapshot import small_snapshot
from torpor.deployment import Deployment, Model
from torpor.platforms.local import cold_gpus, replica_gpus
from torpor.platforms.local.cold_gpus import ColdGpus
from torpor.platforms.local.replica_gpus import ReplicaGpus
from torpor.platforms.local.serve import budget
from torpor.platforms.local.serve.configuration import BudgetTable
from torpor.snapshots.gpu import placement
from torpor.snapshots.gpu.claims import choosing, claim, claimed
from torpor.snapshots.gpu.driver import Driver, GpuUse
from torpor.snapshots.gpu.placement import GpuPlace
from torpor.snapshots.store.manifest import read_manifest
from torpor.testing import StandIn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.store.manifest import Manifest

ROOT = Path(__file__).parents[3]
GIB = 1 << 30


class Commands:
    """Processes that have chosen a GPU each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen[str]] = []

    def start(self, count: int, gpus: int, *words: str) -> list[subprocess.Popen[str]]:
        """Start some at once on a machine with some GPUs."""
        argv = [sys.executable, "-m", claims_program.__name__, str(self.folder), str(gpus), *words]
        pipe = subprocess.PIPE
        started = [
            subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) for _ in range(count)
        ]
        self._running += started
        return started

    def end(self) -> None:
        """End them all."""
        for one in self._running:
            one.kill()
            one.communicate(timeout=20)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    """They share a cache root."""
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    small_snapshot(tmp_path / "one")
    there = Commands(tmp_path / "one")
    yield there
    there.end()


def number(command: subprocess.Popen[str]) -> int:
    """The GPU that a command got."""
    assert command.stdout is not None
    line = command.stdout.readline()
    assert line[:1].isdigit(), line
    return int(line.split()[0])


def machine(manifest: Manifest, gpus: int, free: int = 100 * GIB) -> Driver:
    """As `claims_program` sees it."""
    first = manifest.machine.gpus[0]
    cards = [first._replace(uuid=f"GPU-{at}{first.uuid[5:]}") for at in range(gpus)]
    return Driver(
        version=manifest.machine.driver, uses=tuple(GpuUse(gpu=one, used_bytes=0, free_bytes=free) for one in cards)
    )


def places(driver: Driver) -> list[GpuPlace]:
    """Its GPUs."""
    return [GpuPlace(at, gpu.uuid, gpu.name) for at, gpu in enumerate(driver.gpus)]


@pytest.mark.slow
@pytest.mark.fault("several commands look for a GPU at the same moment", area="several GPUs", outcome="held")
def test_commands_at_once_choose_different_gpus(commands: Commands) -> None:
    """Four commands, four GPUs, and the driver tells all of them that every GPU is free."""
    assert sorted(map(number, commands.start(4, 4))) == [0, 1, 2, 3]
    (fifth,) = commands.start(1, 4)
    assert number(fifth) in range(4)


@pytest.mark.fault("a command that has a GPU is killed", area="several GPUs", outcome="held")
def test_a_kill_frees_the_gpu(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look finds nothing, and clears the file; one that is named is taken although it is claimed."""
    manifest = read_manifest(commands.folder)
    driver = machine(manifest, 2)
    monkeypatch.setattr(placement, "look", lambda: driver)
    (other,) = commands.start(1, 2)
    taken = number(other)
    assert list(claimed()) == [driver.gpus[taken].uuid]
    here = ReplicaGpus(list)
    for chosen, got in (([], 1 - taken), ([places(driver)[taken]], taken)):
        found = here.place(manifest, ["a"], chosen)
        assert found is not None
        assert [one.number for one in found.maps[0].gpus] == [got]
        here.end()
    other.kill()
    other.communicate(timeout=20)
    assert claimed() == {}
    assert [file.name for file in (commands.folder.parent / "cache" / "gpu-claims").iterdir()] == ["lock"]


@pytest.mark.fault("GPU memory is about to be taken by another command", area="several GPUs", outcome="refused")
def test_memory_that_another_start_takes_is_waited_for(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the driver tells what it really took; a reason names its command."""
    manifest = read_manifest(commands.folder)
    assert manifest.gpu is not None
    (need,) = manifest.gpu.needed.values()
    driver = machine(manifest, 1, free=need * 3 // 2)
    monkeypatch.setattr(placement, "look", lambda: driver)
    monkeypatch.setattr(replica_gpus, "_OTHERS_S", 60.0)
    here = ReplicaGpus(list)
    (other,) = commands.start(1, 1)
    number(other)
    began = time.monotonic()
    assert ReplicaGpus(list, stopped=lambda: True).place(manifest, ["a"], [])
    assert time.monotonic() - began < 30
    monkeypatch.setattr(replica_gpus, "_OTHERS_S", 0.3)
    began = time.monotonic()
    found = here.place(manifest, ["a"], [])
    assert time.monotonic() - began >= 0.3
    assert found is not None
    assert f"about to be taken by pid {other.pid}" in " ".join(found.reasons)
    other.kill()
    other.communicate(timeout=20)
    (settled,) = commands.start(1, 1, "settle")
    number(settled)
    end = time.monotonic() + 20
    while any(one.reserved for one in claimed().values()):
        assert time.monotonic() < end
        time.sleep(0.01)
    found = here.place(manifest, ["b"], [])
    assert found is not None
    assert len(found.maps) == 1
    here.end()


def test_replicas_of_one_command_are_counted_once(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names; those that ended unseen are forgotten."""
    manifest = read_manifest(commands.folder)
    driver = machine(manifest, 3)
    monkeypatch.setattr(placement, "look", lambda: driver)
    serving: list[str] = []
    here = ReplicaGpus(lambda: serving)
    got = []
    for name in ("a", "b", "c"):
        found = here.place(manifest, [name], [])
        assert found is not None
        got.append(found.maps[0].gpus[0].number)
        serving.append(name)
        here.serves(name)
    assert sorted(got) == [0, 1, 2]
    serving.remove("b")
    again = here.place(manifest, ["d"], [])
    assert again is not None
    assert again.maps[0].gpus[0].number == got[1]
    here.end()
    assert len(list((commands.folder.parent / "cache" / "gpu-claims").iterdir())) == 1


def test_a_cold_start_leaves_the_gpus_of_another_command(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone it leaves the choice to CUDA; who names GPUs, or CUDA_VISIBLE_DEVICES, gets them."""
    driver = machine(read_manifest(commands.folder), 2)
    told: list[str] = []
    monkeypatch.setattr(cold_gpus, "look", lambda: driver)
    monkeypatch.setattr(cold_gpus, "tell", told.append)
    deployment = Deployment(name="d", model=Model(path="/m", served_name="m"), gpu="H200", plugins=(StandIn(),))

    def chosen(*named: GpuPlace) -> list[int]:
        cold = ColdGpus(deployment, named)
        cold.take()
        cold.release()
        return [one.number for one in cold.gpus]

    assert (chosen(), told) == ([], [])
    (other,) = commands.start(1, 1)
    assert number(other) == 0
    assert chosen() == [1]
    assert [line.partition(" GPU ")[0] for line in told] == ["another command has"]
    assert chosen(places(driver)[0]) == [0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert chosen() == []


def test_a_cold_start_takes_the_kind_of_gpu_that_it_wants(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first one is of another kind, and nobody has it."""
    driver = machine(read_manifest(commands.folder), 2)
    first = driver.uses[0]
    first = replace(first, gpu=first.gpu._replace(name="NVIDIA L4"))
    driver = replace(driver, uses=(first, driver.uses[1]))
    told: list[str] = []
    monkeypatch.setattr(cold_gpus, "look", lambda: driver)
    monkeypatch.setattr(cold_gpus, "tell", told.append)
    cold = ColdGpus(Deployment(name="d", model=Model(path="/m", served_name="m"), gpu="H200", plugins=(StandIn(),)))
    cold.take()
    cold.release()
    zero, one = places(driver)
    assert cold.gpus == (one,)
    assert told == [f"{zero} is no H200; taking {one}"]


def test_serve_counts_what_is_free_on_a_gpu_of_another_command(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other GPUs count whole, whoever holds a little memory there."""
    driver = machine(read_manifest(commands.folder), 2, free=7 * GIB)
    monkeypatch.setattr(budget, "look", lambda: driver)
    whole = driver.gpus[0].memory_mib << 20
    assert budget.budget_of(BudgetTable(), needs_gpus=True).gpus == (whole, whole)
    (other,) = commands.start(1, 1)
    assert number(other) == 0
    assert budget.budget_of(BudgetTable(), needs_gpus=True).gpus == (7 * GIB, whole)
    assert budget.budget_of(BudgetTable(gpu_memory=GIB), needs_gpus=True).gpus == (GIB, GIB)


def test_without_a_disk_for_claims_everything_else_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim is a help, not a condition."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "file" / "cache"))
    with choosing():
        held = claim({"GPU-00000000-0000": 5})
    assert claimed() == {}
    held.settle()
    held.release()
