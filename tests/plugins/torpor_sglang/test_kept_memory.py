"""Memory that is kept outside a snapshot, with a fake driver whose device memory is host memory."""

from __future__ import annotations

import ctypes
import errno
import json
import random
import shutil
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from torpor_sglang import gpu_copy, kept_memory
from torpor_sglang.gpu_copy import CudaError, Driver, PinnedMemory, Segment, load_from_file, save_to_file
from torpor_sglang.kept_memory import KeptMemory
from torpor_sglang.patches.handlers import RESUME, wrap_handler
from torpor_sglang.patches.kept_memory import keep_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torpor_sglang.places import Place

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the driver's double")
NO_SPACE = 28


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("cuda") / "libfake_cuda.so"
    source = Path(__file__).with_name("fake_cuda.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", built, source], check=True, timeout=60)
    return built


@pytest.fixture
def driver(request: pytest.FixtureRequest, library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """The driver, with buffers of 64 bytes, so that a few hundred bytes need many copies."""
    monkeypatch.setattr(gpu_copy, "BUFFER_BYTES", 64)
    monkeypatch.setattr(gpu_copy, "PINNED_BLOCK_BYTES", 100)
    monkeypatch.setattr(gpu_copy, "THREADS", 8)
    fake = ctypes.CDLL(str(library))
    fake.fake_forget()
    pinned = fake.fake_pinned()
    yield Driver(str(library))
    assert fake.fake_streams() == 0
    if "memory" not in request.node.name:  # stays allocated from one sleep to the next
        assert fake.fake_pinned() == pinned


class Device:
    """Ranges of device memory, filled with random bytes."""

    def __init__(self, *sizes: int) -> None:
        self.blocks = [ctypes.create_string_buffer(random.randbytes(size), size) for size in sizes]

    @property
    def segments(self) -> list[Segment]:
        return [Segment(ctypes.addressof(block), len(block)) for block in self.blocks]

    @property
    def content(self) -> list[bytes]:
        return [block.raw for block in self.blocks]

    def lose(self) -> None:
        """Overwrite the memory, like a release."""
        for block in self.blocks:
            ctypes.memset(block, 0xAA, len(block))


def sums(segments: Sequence[Segment]) -> list[int]:
    return [zlib.crc32(ctypes.string_at(segment.address, segment.size)) for segment in segments]


def keeping(
    device: Device, driver: Driver, folder: Path, place: Place = "file", told: list[str] | None = None
) -> KeptMemory:
    return KeptMemory(
        places={"weights": place},
        folder=folder,
        segments=lambda _: device.segments,
        sums=sums,
        driver=lambda: driver,
        tell=(told if told is not None else []).append,
    )


@pytest.mark.parametrize("sizes", [(64,), (1,), (640,), (63, 65, 1000, 8)], ids=str)
def test_a_file_restores_the_memory(driver: Driver, tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """All ranges are in one file, one after the other, with any sizes."""
    device = Device(*sizes)
    before = device.content
    with (tmp_path / "kept").open("w+b") as file:
        save_to_file(driver, device.segments, file.fileno())
        assert (tmp_path / "kept").read_bytes() == b"".join(before)
        device.lose()
        load_from_file(driver, device.segments, file.fileno())
    assert device.content == before


def test_pinned_memory_restores_the_memory_and_is_pinned_once(driver: Driver, library: Path) -> None:
    """This holds for several sleeps; blocks are not shared."""
    device = Device(250, 64, 7)
    pinned = PinnedMemory(driver, device.segments)
    held = ctypes.CDLL(str(library)).fake_pinned()
    for _ in range(2):
        device.blocks[0][0] = random.randbytes(1)
        before = device.content
        pinned.save()
        device.lose()
        pinned.load()
        assert device.content == before
        assert ctypes.CDLL(str(library)).fake_pinned() == held
    pinned.free()
    assert ctypes.CDLL(str(library)).fake_pinned() == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "cuMemcpyHtoDAsync_v2:3:700",
            "cuMemcpyHtoDAsync_v2 failed with 700: an illegal memory access was encountered",
        ),
        ("cuStreamSynchronize:3:999", "cuStreamSynchronize failed with 999: unknown error"),
        ("cuMemHostAlloc:3:2", "cuMemHostAlloc failed with 2: out of memory"),
        ("cuCtxSetCurrent:3:201", "cuCtxSetCurrent failed with 201: unknown error"),
    ],
    ids=["copy", "wait", "pin", "context"],
)
def test_a_failing_call_is_named_and_no_memory_stays_pinned(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    """If the call fails in one thread, all threads end."""
    monkeypatch.setenv("FAKE_CUDA_FAIL", fault)
    device = Device(6400)
    (tmp_path / "kept").write_bytes(bytes(6400))
    with (
        (tmp_path / "kept").open("rb") as file,
        pytest.raises(CudaError, match=said),
    ):
        load_from_file(driver, device.segments, file.fileno())


def test_a_missing_driver_is_reported() -> None:
    """The message has the library's name."""
    with pytest.raises(CudaError, match=r"libno_such_cuda\.so"):
        Driver("libno_such_cuda.so")


def test_a_thread_without_a_context_is_reported(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a thread has no device memory."""
    monkeypatch.setenv("FAKE_CUDA_NO_CONTEXT", "1")
    with pytest.raises(CudaError, match="No CUDA context is current"):
        Driver(str(library))


@pytest.mark.parametrize("place", ["file", "memory"])
def test_memory_is_the_same_after_a_sleep(driver: Driver, tmp_path: Path, place: Place) -> None:
    """This holds for a second sleep with other content, too."""
    device, told = Device(640, 64), list[str]()
    kept = keeping(device, driver, tmp_path, place, told)
    for _ in range(2):
        device.blocks[1][3] = random.randbytes(1)
        before = device.content
        kept.save("weights")
        device.lose()
        kept.begin_load("weights")
        kept.finish()
        assert device.content == before
    assert any("weights: checksums agree" in line for line in told)
    assert any("GB/s" in line for line in told)


def test_equal_content_is_written_once_and_shared(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two engines of one machine share one file, which only its owner can read; other content gets another file."""
    first, second, other = Device(640), Device(640), Device(640)
    ctypes.memmove(second.blocks[0], first.blocks[0], 640)
    keeping(first, driver, tmp_path / "kept").save("weights")
    (file,) = (tmp_path / "kept").iterdir()
    written = file.stat()
    assert (written.st_mode & 0o777, written.st_size) == (0o600, 640)
    assert file.parent.stat().st_mode & 0o777 == 0o700
    kept = keeping(second, driver, tmp_path / "kept")
    kept.save("weights")
    assert [(one, one.stat().st_mtime_ns) for one in (tmp_path / "kept").iterdir()] == [(file, written.st_mtime_ns)]
    before = second.content
    second.lose()
    kept.begin_load("weights")
    kept.finish()
    assert second.content == before
    keeping(other, driver, tmp_path / "kept").save("weights")
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.fault("several processes keep equal weights at once", area="several GPUs", outcome="held")
def test_processes_that_keep_equal_memory_at_once_share_one_file(library: Path, tmp_path: Path) -> None:
    """Ranks with equal weights, or replicas: all have written before one publishes. Nobody's open file is replaced."""
    argv = [sys.executable, "-m", "tests.plugins.torpor_sglang.keeping_rank", str(library), str(tmp_path), "4"]
    started = [
        subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = []
    try:
        for process in started:
            out, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            said.append(json.loads(out))
    finally:
        for process in started:
            process.kill()
            process.wait(30)
    (file,) = (tmp_path / "kept").iterdir()
    assert said == [{"held": str(file), "same": True}] * 4
    assert file.stat().st_nlink == 1


def test_a_file_system_without_hard_links_keeps_the_first_file(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's rename that replaces nothing does the same there."""

    def no_links(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.link", no_links)
    first, second = tmp_path / "first", tmp_path / "second"
    for file in (first, second):
        file.write_text(file.name)
    kept_memory._name(first, tmp_path / "name")
    with pytest.raises(FileExistsError):
        kept_memory._name(second, tmp_path / "name")
    assert (tmp_path / "name").read_text() == "first"
    device = Device(640)
    keeping(device, driver, tmp_path / "kept").save("weights")
    (file,) = (tmp_path / "kept").iterdir()
    assert file.read_bytes() == device.content[0]


def test_a_right_file_that_comes_in_place_of_a_wrong_one_is_put_back(tmp_path: Path) -> None:
    """Another process replaced the wrong file between the look and the move."""
    file = tmp_path / "name"
    file.write_bytes(b"right")
    inode = file.stat().st_ino
    kept_memory._set_aside(file, 5)
    assert (file.read_bytes(), file.stat().st_ino) == (b"right", inode)
    kept_memory._set_aside(file, 6)
    assert list(tmp_path.iterdir()) == []


def test_a_difference_on_one_rank_names_it_in_error_and_log(driver: Driver, tmp_path: Path) -> None:
    """What a rank does goes through `together`, which tells the others; its lines carry its name."""
    device, told, shared = Device(640), list[str](), list[str]()

    def together(act: Callable[[], None], what: str) -> None:
        try:
            act()
        except Exception as error:
            shared.append(f"{what}: rank 1: {error}")
            raise

    kept = KeptMemory(
        places={"weights": "file"},
        folder=tmp_path,
        segments=lambda _: device.segments,
        sums=sums,
        driver=lambda: driver,
        tell=told.append,
        together=together,
        rank=lambda: "rank 1 (GPU 1)",
    )
    kept.save("weights")
    (file,) = tmp_path.iterdir()
    file.write_bytes(bytes(640))
    kept.begin_load("weights")
    with pytest.raises(RuntimeError, match="came back"):
        kept.finish()
    assert all(line.startswith("rank 1 (GPU 1): weights: ") for line in told)
    (said,) = shared
    assert said.startswith("what was kept did not come back: rank 1: weights: 1 of 1 ranges came back")


def test_the_file_is_open_while_the_engine_sleeps(driver: Driver, tmp_path: Path) -> None:
    """So a snapshot lists it, and a replica reads the same file as at the capture."""
    device = Device(640)
    kept = keeping(device, driver, tmp_path)
    kept.save("weights")
    (file,) = tmp_path.iterdir()
    opened = [str(one.resolve()) for one in Path("/proc/self/fd").iterdir()]
    assert opened.count(str(file)) == 1
    kept.begin_load("weights")
    kept.finish()
    assert str(file) not in [str(one.resolve()) for one in Path("/proc/self/fd").iterdir()]


@pytest.mark.parametrize("at", [0, 639])
def test_memory_that_comes_back_different_is_refused(driver: Driver, tmp_path: Path, at: int) -> None:
    """One byte of the file differs; the message names the file and what to do."""
    device = Device(64, 640)
    kept = keeping(device, driver, tmp_path)
    kept.save("weights")
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[64 + at] ^= 1
    file.write_bytes(content)
    device.lose()
    kept.begin_load("weights")
    with pytest.raises(RuntimeError, match=rf"weights: 1 of 2 ranges came back from {file} .*delete that file"):
        kept.finish()


def test_a_truncated_file_is_refused(driver: Driver, tmp_path: Path) -> None:
    """The read does not loop forever, and the message says where the file ends."""
    device = Device(640)
    kept = keeping(device, driver, tmp_path)
    kept.save("weights")
    (file,) = tmp_path.iterdir()
    with file.open("r+b") as stream:
        stream.truncate(100)
    kept.begin_load("weights")
    with pytest.raises(OSError, match=rf"{file} cannot be read: it ends at byte"):
        kept.finish()


def test_a_full_disk_leaves_no_partial_file(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space is reserved before the copy begins."""

    def no_room(*_: int) -> None:
        raise OSError(NO_SPACE, "No space left on device")

    device = Device(640)
    monkeypatch.setattr("os.posix_fallocate", no_room)
    with pytest.raises(OSError, match=r"cannot be kept in .*weights-[0-9a-f]{32}\.bin: No space left on device"):
        keeping(device, driver, tmp_path / "kept").save("weights")
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_partial_file_of_a_killed_engine_is_not_used(driver: Driver, tmp_path: Path) -> None:
    """A file with the right name and the wrong size is written again."""
    device = Device(640)
    kept = keeping(device, driver, tmp_path)
    kept.save("weights")
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"half")
    keeping(device, driver, tmp_path).save("weights")
    assert file.read_bytes() == b"".join(device.content)


def test_a_load_runs_during_the_rest_of_the_wake(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile the memory saver maps the KV cache."""
    go_on = threading.Event()
    whole = gpu_copy.load_from_file

    def slow(driver: Driver, segments: list[Segment], descriptor: int) -> None:
        assert go_on.wait(30)
        whole(driver, segments, descriptor)

    monkeypatch.setattr("torpor_sglang.kept_memory.load_from_file", slow)
    device = Device(640)
    kept = keeping(device, driver, tmp_path)
    kept.save("weights")
    before = device.content
    device.lose()
    kept.begin_load("weights")
    assert device.content != before
    go_on.set()
    kept.finish()
    assert device.content == before


def test_sglangs_adapter_keeps_the_memory_that_it_releases(driver: Driver, tmp_path: Path) -> None:
    """It keeps the memory before the pause, loads it after the resume, and waits for it before the answer."""
    device, did = Device(640), list[str]()
    before = device.content

    class Adapter:
        def pause(self, tag: str) -> None:
            did.append(f"pause {tag}")
            device.lose()

        def resume(self, tag: str) -> None:
            did.append(f"resume {tag}")

        def cuda_graph(self, **arguments: object) -> str:
            return f"captures into {arguments['pool']}"

    class Updater:
        def resume_memory_occupation(self, request: str) -> str:
            adapter.resume("weights")
            adapter.resume("kv_cache")
            return f"answered {request}"

    adapters, updaters, pools = ModuleType("adapters"), ModuleType("updaters"), set[tuple[int, int]]()
    adapters._TorchMemorySaverAdapterReal = Adapter  # type: ignore[attr-defined]
    Updater.__module__ = "updaters"
    updaters.Updater = Updater  # type: ignore[attr-defined]
    kept = keeping(device, driver, tmp_path)
    keep_released(adapters, kept, pools)
    wrap_handler(updaters, RESUME, after=lambda _: kept.finish())
    adapter = Adapter()
    assert adapter.cuda_graph(pool=(0, 3), stream=None) == "captures into (0, 3)"
    assert pools == {(0, 3)}
    adapter.pause("kv_cache")
    assert list(tmp_path.iterdir()) == []
    ctypes.memmove(device.blocks[0], before[0], 640)
    adapter.pause("weights")
    assert device.content != before
    assert Updater().resume_memory_occupation("now") == "answered now"
    assert device.content == before
    assert did == ["pause kv_cache", "pause weights", "resume weights", "resume kv_cache"]


def test_a_resume_with_different_weights_ends_the_scheduler(driver: Driver, tmp_path: Path) -> None:
    """The handler raises, so SGLang ends its whole tree and never serves with them."""
    device = Device(640)
    kept = keeping(device, driver, tmp_path)

    class Updater:
        def resume_memory_occupation(self, request: str) -> str:
            kept.begin_load("weights")
            return request

    Updater.__module__ = "updaters"
    updaters = ModuleType("updaters")
    updaters.Updater = Updater  # type: ignore[attr-defined]
    wrap_handler(updaters, RESUME, after=lambda _: kept.finish())
    kept.save("weights")
    (file,) = tmp_path.iterdir()
    file.write_bytes(bytes(640))
    with pytest.raises(RuntimeError, match="came back"):
        Updater().resume_memory_occupation("now")
