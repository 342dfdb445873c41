"""Suspends, dumps, restores and resumes a small CUDA program in a sandbox; with the real driver where there is one.

Each test runs with the stand-in for the driver, too, so that what is run on a GPU machine has been run before. On one:
`pytest -m gpu tests/snapshots/gpu/test_real_gpu.py -rP`, as root; the seconds of every call are printed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.conftest import refuse, wait_for
from torpor import SnapshotError
from torpor.doctor.machine import diagnose
from torpor.snapshots.criu.run import dump, restore
from torpor.snapshots.gpu import checkpoint as cuda
from torpor.snapshots.gpu import driver as gpu
from torpor.snapshots.gpu.holders import DEVICES, holders
from torpor.snapshots.gpu.requirements import against_gpu
from torpor.snapshots.sandbox.start import create_sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.snapshots.nvidia import FakeDriver
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.sandbox.sandbox import Sandbox
    from torpor.snapshots.store.gpu_state import GpuPart

PROGRAM = Path(__file__).with_name("cuda_program.py")
TIMEOUT_S = 120.0

pytestmark = [
    pytest.mark.criu,
    pytest.mark.skipif(os.geteuid() != 0, reason="snapshots of a process with a GPU are made as root"),
]


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU for tests.

    Attributes:
        devices: how the paths of its device files begin.
        mebibytes: device memory that the program takes.
        scratch: mount point for the sandboxes.
        started: those to be ended.
    """

    devices: tuple[str, ...]
    mebibytes: int
    scratch: Path
    started: list[Sandbox]

    def sandbox(self) -> Sandbox:
        made = create_sandbox("card", mode="root", scratch=self.scratch)
        self.started.append(made)
        return made

    def program(self) -> Sandbox:
        """A sandbox in which the program runs, with both of its processes on the GPU."""
        made = self.sandbox()
        env = {name: value for name, value in os.environ.items() if name.startswith(("PATH", "LD_", "TORPOR_"))}
        places = ":".join(gpu.library_candidates("libcuda.so.1"))
        made.spawn([sys.executable, str(PROGRAM), places, str(self.mebibytes)], env=env, filtered=True)
        assert wait_for(lambda: "up" in made.log_tail() or made.poll() is not None, TIMEOUT_S)
        assert made.poll() is None, made.log_tail()
        return made

    def check(self, sandbox: Sandbox) -> None:
        """The program is unchanged and still uses the GPU."""
        with sandbox.connect(8000, timeout_s=TIMEOUT_S) as connection, connection.makefile() as answer:
            said = answer.readline()
        assert said, sandbox.log_tail()
        told = json.loads(said)
        assert (told["pid"], told["device"], told["pinned"]) == (1000, True, True)
        assert told["child"] > 1000

    def used_bytes(self) -> int:
        return sum(use.used_bytes for use in gpu.look().uses)


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.gpu)])
def card(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Card]:
    """The stand-in, and a real GPU where there is one."""
    devices: tuple[str, ...] = DEVICES
    mebibytes = 512
    if request.param == "stand-in":
        fake: FakeDriver = request.getfixturevalue("driver")
        devices, mebibytes = fake.devices, 32
    elif reasons := against_gpu():
        pytest.skip(f"there is no GPU that can be checkpointed ({', '.join(reason.code for reason in reasons)})")
    there = Card(devices=devices, mebibytes=mebibytes, scratch=tmp_path / "scratch", started=[])
    yield there
    for sandbox in there.started:
        sandbox.kill(60.0)


on_real_card = pytest.mark.parametrize("card", [pytest.param("real", marks=pytest.mark.gpu)], indirect=True)


def told(what: str, content: object) -> None:
    """Print times of calls; pytest shows them with -rP."""
    print(f"{what}: {json.dumps(content)}")


def keep(card: Card, criu: Criu, images: Path) -> GpuPart:
    """Dump the program; it is ended."""
    original = card.program()
    card.check(original)
    before = card.used_bytes()
    with cuda.suspended(original, devices=card.devices) as state:
        assert holders(original, card.devices) == ()
        assert before - card.used_bytes() >= card.mebibytes << 20
        taken = dump(criu, original, images, timeout_s=TIMEOUT_S)
    held = [process._asdict() for process in state.part.processes]
    told("suspended", {"seconds": state.seconds, "memory": dict(state.part.memory), "processes": held})
    told("dumped", taken._asdict())
    first, second = state.part.processes
    assert first.pid == 1000 < second.pid
    assert state.part.memory_bytes >= card.mebibytes << 20
    original.kill(60.0)
    return state.part


def test_every_replica_has_device_and_pinned_memory_again(card: Card, criu: Criu, tmp_path: Path) -> None:
    """Two replicas, one after the other; the driver is initialised while CRIU works."""
    part = keep(card, criu, tmp_path / "images")
    for number in range(2):
        replica = card.sandbox()
        (tmp_path / f"work{number}").mkdir()
        resumption = cuda.Resumption(replica, part, wait_s=TIMEOUT_S)
        took = restore(criu, replica, tmp_path / "images", work=tmp_path / f"work{number}", timeout_s=TIMEOUT_S)
        told("restored", took._asdict())
        told("resumed", asdict(resumption.finish()))
        assert [one.pid for one in holders(replica, card.devices)] == [one.pid for one in part.processes]
        card.check(replica)
        card.check(replica)
        replica.kill(60.0)


@on_real_card
def test_replicas_live_side_by_side_on_one_gpu(card: Card, criu: Criu, tmp_path: Path) -> None:
    """Each has its own memory there, under the same pids."""
    part = keep(card, criu, tmp_path / "images")
    replicas = [card.sandbox(), card.sandbox()]
    before = card.used_bytes()
    for number, replica in enumerate(replicas):
        (tmp_path / f"work{number}").mkdir()
        restore(criu, replica, tmp_path / "images", work=tmp_path / f"work{number}", timeout_s=TIMEOUT_S)
        told("resumed", asdict(cuda.resume(replica, part)))
    for replica in replicas:
        card.check(replica)
    assert card.used_bytes() - before >= 2 * (card.mebibytes << 20)


def test_an_original_goes_on_after_a_dump(card: Card, criu: Criu, tmp_path: Path) -> None:
    """CRIU stops it; then it continues, and resumes on its GPU."""
    original = card.program()
    with cuda.suspended(original, devices=card.devices) as state:
        dump(criu, original, tmp_path / "images", timeout_s=TIMEOUT_S, leave_running=True)
        told("resumed", asdict(state.resume()))
    card.check(original)


def test_an_original_resumes_on_its_gpu_after_a_failure(card: Card) -> None:
    """Here before CRIU starts."""
    original = card.program()
    with pytest.raises(RuntimeError, match="on purpose"), cuda.suspended(original, devices=card.devices):
        raise RuntimeError("on purpose")
    assert len(holders(original, card.devices)) == 2
    card.check(original)


@on_real_card
def test_without_the_checkpoint_criu_refuses(card: Card, criu: Criu, tmp_path: Path) -> None:
    """CRIU cannot dump the real device files, which is why the checkpoint exists. The program goes on."""
    original = card.program()
    with pytest.raises(SnapshotError, match="CRIU's dump"):
        dump(criu, original, tmp_path / "images", timeout_s=TIMEOUT_S)
    card.check(original)


@pytest.mark.gpu
def test_nvml_and_nvidia_smi_agree() -> None:
    """Driver, name, memory, compute capability."""
    if shutil.which("nvidia-smi") is None:
        pytest.skip("there is no nvidia-smi")
    try:
        smi = gpu._ask_smi()
    except (OSError, ValueError) as error:
        pytest.skip(f"nvidia-smi: {error}")
    nvml = gpu._ask_nvml()
    assert (nvml.version, nvml.gpus) == (smi.version, smi.gpus)
    assert subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout.count("GPU ") == len(
        nvml.gpus
    )


@pytest.mark.gpu
def test_the_doctor_finds_no_problem_on_this_machine() -> None:
    """On a machine where the tests above pass."""
    if not gpu.look().uses:
        pytest.skip("there is no GPU")
    findings = diagnose()
    told("doctor", [asdict(finding) for finding in findings])
    if bad := [
        finding for finding in findings if finding.what in ("CRIU", "snapshots", "GPU driver") and finding.level != "ok"
    ]:
        refuse("; ".join(f"{finding.seen}: {finding.cure}" for finding in bad))
