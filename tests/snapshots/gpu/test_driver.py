"""`torpor.snapshots.gpu.driver` and its users: which source answers, what is compared, what prevents GPU snapshots."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.nvidia import UUID, FakeDriver, build
from torpor import ConfigurationError, Deployment, Model
from torpor.platforms.local.requirements import check_gpu
from torpor.snapshots.gpu import checkpoint as cuda
from torpor.snapshots.gpu.driver import Driver, GpuUse, look
from torpor.snapshots.gpu.requirements import against_gpu
from torpor.snapshots.store.gpu_state import Gpu, different_gpus
from torpor.snapshots.store.host_memory import MEMORY_VARIABLE, available_bytes, lies_in_memory
from torpor.snapshots.store.paths import LIBRARIES_VARIABLE
from torpor.testing import StandIn

if TYPE_CHECKING:
    from torpor.snapshots.criu.probe import Reason

CARD = Gpu(uuid=UUID, name="NVIDIA H200", memory_mib=143771, compute_capability="9.0")
MIB = 1 << 20
SMI = """#!/bin/sh
case "$1" in
--query-gpu=uuid,name,memory.total,compute_cap,memory.used,memory.free,driver_version)
    echo "GPU-a, NVIDIA H100 80GB HBM3, 81559, 9.0, 4022, 77537, 580.159.04"
    echo "GPU-b, NVIDIA H100 80GB HBM3, 81559, 9.0, 1, 81558, 580.159.04" ;;
--query-compute-apps=gpu_uuid,pid,used_memory)
    echo "GPU-a, 4711, 4000"
    echo "GPU-a, 4712, [N/A]" ;;
*) echo "unknown option $1"; exit 6 ;;
esac
"""


@pytest.fixture
def no_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without NVML, and a folder on PATH for an nvidia-smi."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv(LIBRARIES_VARIABLE, str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "bin"


def write_smi(folder: Path, text: str) -> None:
    (folder / "nvidia-smi").write_text(text)
    (folder / "nvidia-smi").chmod(0o755)


def codes(reasons: tuple[Reason, ...]) -> list[str]:
    return [reason.code for reason in reasons]


def deployment(gpu: str | None) -> Deployment:
    return Deployment(name="d", model=Model(path="/", served_name="m"), gpu=gpu, plugins=(StandIn(),))


def test_nvml_reports_driver_gpus_memory_and_holders(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real loader and the real structures, with more holders than the first call has room for."""
    (driver.used / "one").write_text(str(5 * MIB))
    monkeypatch.setenv("TORPOR_FAKE_HOLDERS", ",".join(f"{4000 + at}={at * MIB}" for at in range(12)))
    seen = look()
    assert (seen.version, seen.major, seen.gpus, seen.against) == ("580.159.04", 580, (CARD,), "")
    (use,) = seen.uses
    assert (use.used_bytes, use.free_bytes) == (5 * MIB, (143771 - 5) * MIB)
    assert use.held_bytes == {4000 + at: at * MIB for at in range(12)}
    assert seen.held_by({4003, 4004, 1}) == {UUID: 7 * MIB}
    assert seen.held_by({1}) == {}


def test_nvml_is_asked_whether_a_gpu_is_divided(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its current mode counts."""
    assert [use.mig for use in look().uses] == [False]
    monkeypatch.setenv("TORPOR_FAKE_MIG", "1")
    assert [use.mig for use in look().uses] == [True]


def test_nvidia_smi_is_asked_where_there_is_no_nvml(no_nvml: Path) -> None:
    """The same facts; values that it does not tell are 0."""
    write_smi(no_nvml, SMI)
    seen = look()
    assert (seen.version, [use.gpu.uuid for use in seen.uses]) == ("580.159.04", ["GPU-a", "GPU-b"])
    first, second = seen.uses
    assert first.gpu == Gpu(uuid="GPU-a", name="NVIDIA H100 80GB HBM3", memory_mib=81559, compute_capability="9.0")
    assert (first.used_bytes, first.free_bytes) == (4022 * MIB, 77537 * MIB)
    assert (first.held_bytes, second.held_bytes) == ({4711: 4000 * MIB, 4712: 0}, {})


@pytest.mark.parametrize("text", ["", "#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n", "#!/bin/sh\necho a, b\n"])
def test_without_nvml_and_nvidia_smi_there_are_no_gpus_and_two_reasons(no_nvml: Path, text: str) -> None:
    """The loader's and nvidia-smi's, without a traceback."""
    if text:
        write_smi(no_nvml, text)
    seen = look()
    assert (seen.version, seen.major, seen.uses) == ("", 0, ())
    assert "libnvidia-ml.so.1" in seen.against
    assert {"": "none on PATH", "9": "gave code 9", "b": "said 'a, b'"}[text.strip()[-1:]] in seen.against


def test_a_library_that_lacks_a_function_is_no_driver(
    no_nvml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason names the function."""
    monkeypatch.setattr("pynvml._nvmlGetFunctionPointer_cache", {})  # it holds functions of the library before
    source = tmp_path / "other.c"
    source.write_text("int nvmlInitWithFlags(unsigned flags) { return 0; }\n")
    build(tmp_path)  # skips without a compiler
    library = tmp_path / "empty" / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    assert "lacks a function" in (against := look().against)
    assert "undefined symbol: nvmlDeviceGetCount_v2" in against


def test_an_error_of_nvml_is_a_reason(no_nvml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For instance the library without the kernel's module."""
    monkeypatch.setattr("pynvml._nvmlGetFunctionPointer_cache", {})
    source = tmp_path / "unloaded.c"
    source.write_text("int nvmlInitWithFlags(unsigned flags) { return 9; }\n")
    build(tmp_path)  # skips without a compiler
    library = tmp_path / "empty" / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    assert "NVML failed: Driver Not Loaded" in look().against


def test_the_deployments_gpu_is_checked_without_nvidia_smi(driver: FakeDriver) -> None:
    """NVML answers."""
    check_gpu(deployment("H200!"))
    check_gpu(deployment(None))
    with pytest.raises(ConfigurationError, match=r"needs 1 x H100; this machine has NVIDIA H200\."):
        check_gpu(deployment("H100!"))
    with pytest.raises(ConfigurationError, match="needs 2 x H200"):
        check_gpu(deployment("H200:2"))


def test_gpus_are_compared_by_kind() -> None:
    """Never by UUID: another one of the kind takes its place. A refusal names every difference of every other GPU."""
    other = CARD._replace(uuid="GPU-2")
    assert list(different_gpus([CARD], [other])) == []
    assert list(different_gpus([CARD, other], [CARD, other, other])) == []
    (fewer,) = different_gpus([CARD, other], [other])
    assert fewer == (
        "its engine could see 2 x NVIDIA H200 (143771 MiB, compute capability 9.0), used or not, and a restore needs a GPU of that "
        "kind for each; this machine has 1"
    )
    (changed,) = different_gpus([CARD], [CARD._replace(name="NVIDIA H20", memory_mib=1, compute_capability="9.1")])
    assert changed.endswith(
        "this machine has 0; GPU 0 differs: name NVIDIA H20 instead of NVIDIA H200, memory 1 MiB instead of 143771 MiB, compute "
        "capability 9.1 instead of 9.0"
    )
    t4 = CARD._replace(name="NVIDIA T4")
    assert len(list(different_gpus([CARD, t4], []))) == 2


def test_a_restore_needs_what_a_checkpoint_freed() -> None:
    """Or what the processes held, if that is more; memory that others free on other GPUs does not count."""

    def driver(first: int, second: int) -> Driver:
        cards = (CARD, CARD._replace(uuid="GPU-2"))
        uses = (
            GpuUse(gpu=gpu, used_bytes=used, free_bytes=0) for gpu, used in zip(cards, (first, second), strict=True)
        )
        return Driver(version="580.1", uses=tuple(uses))

    before, after = driver(900, 50), driver(400, 40)
    assert cuda._memory(before, after, {}) == {UUID: 500, "GPU-2": 10}
    assert cuda._memory(before, after, {UUID: 100}) == {UUID: 500}
    assert cuda._memory(before, after, {UUID: 700}) == {UUID: 700}
    assert cuda._memory(before, before, {}) == {}


def test_a_driver_that_can_checkpoint_is_enough(driver: FakeDriver) -> None:
    """In every mode but rootless."""
    assert against_gpu() == against_gpu("root") == ()
    assert codes(against_gpu("rootless")) == ["gpu_rootless"]


def test_every_reason_against_gpu_snapshots_is_reported(
    driver: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old driver with an old library, no GPU, no library, no driver. Each says what to do."""
    (tmp_path / "old").mkdir()
    monkeypatch.setenv("TORPOR_FAKE_DRIVER", "565.57.01")
    monkeypatch.setenv(LIBRARIES_VARIABLE, str(build(tmp_path / "old", old=True)))
    old = against_gpu()
    assert codes(old) == ["gpu_driver_old", "libcuda_old"]
    assert "cuCheckpointProcessLock" in old[1].seen
    assert all("570" in reason.cure for reason in old)
    monkeypatch.delenv("TORPOR_FAKE_DRIVER")
    monkeypatch.setenv("TORPOR_FAKE_GPU", "")
    (tmp_path / "nvml").mkdir()
    shutil.copy(tmp_path / "old" / "libnvidia-ml.so.1", tmp_path / "nvml")
    monkeypatch.setenv(LIBRARIES_VARIABLE, str(tmp_path / "nvml"))
    assert codes(against_gpu()) == ["gpu_missing", "libcuda_missing"]
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv(LIBRARIES_VARIABLE, str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", "/nonexistent")
    (none,) = against_gpu()
    assert none.code == "gpu_driver"
    assert LIBRARIES_VARIABLE in none.cure
    assert "--backend standby" in none.cure


def test_available_memory_is_the_least_of_machine_and_control_groups(tmp_path: Path) -> None:
    """Cached files of a group count as available; "max" is no limit."""
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2000 kB\n")
    (tmp_path / "self" / "cgroup").write_text("0::/a/b\n")
    groups = tmp_path / "groups"
    (groups / "a" / "b").mkdir(parents=True)
    assert available_bytes(tmp_path, groups) == 2000 * 1024
    (groups / "a" / "b" / "memory.max").write_text("max\n")
    (groups / "a" / "b" / "memory.current").write_text("7\n")
    (groups / "a" / "memory.max").write_text("1000000\n")
    (groups / "a" / "memory.current").write_text("400000\n")
    assert available_bytes(tmp_path, groups) == 600000
    (groups / "a" / "memory.stat").write_text("anon 1\ninactive_file 100000\nactive_file 50000\nshmem 5\n")
    assert available_bytes(tmp_path, groups) == 750000
    (tmp_path / "self" / "cgroup").write_text("3:cpu,cpuacct:/x\n4:memory:/y\n")
    (groups / "memory" / "y").mkdir(parents=True)
    (groups / "memory" / "y" / "memory.limit_in_bytes").write_text("500000\n")
    (groups / "memory" / "y" / "memory.usage_in_bytes").write_text("600000\n")
    assert available_bytes(tmp_path, groups) == 0


def test_a_variable_sets_the_memory_of_a_machine_whose_memory_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory in use is subtracted; a value below the present memory is ignored, and so is a word."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("")
    (tmp_path / "meminfo").write_text("MemTotal: 3000000 kB\nMemAvailable:   1000000 kB\n")
    for said, available in (
        ("10", 10**10 - 2_000_000 * 1024),
        *((other, 1_000_000 * 1024) for other in ("1", "much", "", "-5", "nan", "inf", "1e400")),
    ):
        monkeypatch.setenv(MEMORY_VARIABLE, said)
        assert available_bytes(tmp_path, tmp_path) == available


def test_this_machine_has_some_memory_available() -> None:
    """From the real files."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < available_bytes() <= total


def test_a_folder_on_a_tmpfs_lies_in_memory(tmp_path: Path) -> None:
    """By the table of mounts; of several mounts on a path the last one counts."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a {tmp_path} tmpfs rw 0 0\nb /proc proc rw 0 0\n")
    assert lies_in_memory(tmp_path, mounts)
    mounts.write_text(f"a {tmp_path} tmpfs rw 0 0\nb {tmp_path} ext4 rw 0 0\n")
    assert not lies_in_memory(tmp_path, mounts)
    named = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff \xc3\xa9"))
    named.mkdir()
    mounts.write_bytes(b"a " + os.fsencode(named).replace(b" ", rb"\040") + b" tmpfs rw 0 0\n")
    assert lies_in_memory(named, mounts)
    assert lies_in_memory(Path("/dev/shm"))
    assert not lies_in_memory(Path("/proc"))
