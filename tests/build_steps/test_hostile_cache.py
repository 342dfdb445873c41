"""`torpor.build_steps.runner` with a damaged or hostile volume: who writes to it must not control what a build does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.build_steps.test_runner import Kernels, alive
from torpor import BuildStep, BuildStepError
from torpor.build_steps import outputs as step_outputs
from torpor.build_steps import runner
from torpor.build_steps.outputs import making

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def kernels(tmp_path: Path) -> Kernels:
    """A volume, an image folder, and a step that fills them."""
    return Kernels(tmp_path)


def changed_marker(kernels: Kernels, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the marker of the volume's only entry, and return the entry."""
    [entry] = kernels.entries()
    file = entry / runner.MARKER
    marker = json.loads(file.read_text())
    change(marker)
    file.write_text(json.dumps(marker))
    return entry


KERNEL = "deep_gemm/cache/kernel-7.cubin"


@pytest.mark.slow
@pytest.mark.fault("a cache's marker asks for special bits and modes open to all", area="build cache", outcome="held")
def test_no_special_bit_comes_out_of_a_volume(kernels: Kernels) -> None:
    """Setuid, setgid, sticky bits and write permission for others are removed. The file stays executable."""
    assert kernels.build().returncode == 0

    def open_wide(marker: dict[str, Any]) -> None:
        for entry in marker["files"].values():
            entry["mode"] = 0o7777

    changed_marker(kernels, open_wide)
    kernels.new_image()
    assert kernels.build().returncode == 0
    assert kernels.runs == 1
    modes = {stat.S_IMODE(file.stat().st_mode) for file in kernels.image.rglob("*") if file.is_file()}
    assert modes <= {0o755, 0o644, 0o600}
    assert stat.S_IMODE((kernels.image / "triton" / "helper.so").stat().st_mode) == 0o755


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_socket(path: Path) -> None:
    path.unlink()
    folder = os.open(path.parent, os.O_PATH)  # its path is too long for a socket address
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def as_link(path: Path) -> None:
    copy = path.parents[3] / "outside"
    shutil.copy2(path, copy)
    path.unlink()
    path.symlink_to(copy)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def below_a_link(path: Path) -> None:
    moved = path.parents[3] / "outside"
    path.parent.rename(moved)
    path.parent.symlink_to(moved)


def as_holes(path: Path) -> None:
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.slow
@pytest.mark.fault(
    "a cache holds a pipe, a socket, a link or a folder in place of a file", area="build cache", outcome="held"
)
@pytest.mark.parametrize(
    ("change", "name"),
    [
        *[(change, KERNEL) for change in (as_fifo, as_socket, as_link, as_folder, below_a_link)],
        *[(change, runner.MARKER) for change in (as_fifo, as_folder)],
    ],
)
def test_what_is_no_file_is_damage_and_built_again(kernels: Kernels, change: Callable[[Path], None], name: str) -> None:
    """Nothing blocks and no link is followed. The next build finds a complete result."""
    assert kernels.build().returncode == 0
    [entry] = kernels.entries()
    change(entry / name)
    kernels.new_image()
    began = time.monotonic()
    ran = kernels.build()
    assert ran.returncode == 0, ran.stderr
    assert time.monotonic() - began < 20
    assert kernels.runs == 2
    assert (kernels.image / KERNEL).read_bytes() == b"sm_90a-7" * 1000


@pytest.mark.fault("a cache's marker is no marker, or names what no result holds", area="build cache", outcome="held")
@pytest.mark.parametrize(
    "change",
    [
        lambda marker: marker["files"].update({"/etc/x": marker["files"][KERNEL]}),
        lambda marker: marker["files"].update({"a/../../x": marker["files"][KERNEL]}),
        lambda marker: marker["files"].update({"a\0b": marker["files"][KERNEL]}),
        lambda marker: marker["files"].update({"a" * 5000: marker["files"][KERNEL]}),
        lambda marker: marker["files"].update({f"{KERNEL}/x": marker["files"][KERNEL]}),
        lambda marker: marker["files"].update({f"./{KERNEL}": marker["files"][KERNEL]}),
        lambda marker: marker["files"].update({runner.MARKER: marker["files"][KERNEL]}),
        lambda marker: marker["files"][KERNEL].update(size=-1),
        lambda marker: marker["files"][KERNEL].update(mtime_ns=1 << 80),
        lambda marker: marker["files"][KERNEL].update(mtime_ns=-5),
        lambda marker: marker["files"][KERNEL].update(mode=-1),
        lambda marker: marker["files"][KERNEL].update(mode="0755"),
        lambda marker: marker["files"][KERNEL].update(sha256=None),
        lambda marker: marker["files"].update({KERNEL: []}),
        lambda marker: marker.update(files=[]),
        lambda marker: marker.update(files={}),
        lambda marker: marker.update(parts=7),
        lambda marker: marker.update(probes="x"),
        lambda marker: marker.update(format="1"),
    ],
)
def test_a_hostile_marker_is_no_marker(kernels: Kernels, change: Callable[[dict[str, Any]], object]) -> None:
    """Every field is checked. Nothing is written outside the image folder, and the build does not crash."""
    image, source, key = kernels.image, kernels.volume / "k", "k"
    write_result(source, key)
    marker = json.loads((source / runner.MARKER).read_text())
    change(marker)
    (source / runner.MARKER).write_text(json.dumps(marker))
    image.mkdir(parents=True)
    assert not runner._restore(options_of(kernels), source, image, key)
    assert not (image / runner.MARKER).exists()


def write_result(source: Path, key: str) -> None:
    """Write a complete result, as a builder does."""
    file = source / KERNEL
    file.parent.mkdir(parents=True)
    file.write_bytes(b"kernel")
    runner._write_json(source / runner.MARKER, runner._describe(source, key, ["part"], {}))


def options_of(kernels: Kernels, timeout: str = "60") -> Any:
    """The runner's options for a step with a cache."""
    argv = [
        "--name",
        "k",
        "--timeout",
        timeout,
        "--cache-volume",
        str(kernels.volume),
        "--cache-image",
        str(kernels.image),
    ]
    return runner._parse([*argv, "--", "true"])


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "null", "[]", '{"format": 1', "\xff", '{"format": 1' + "1" * 5000 + "}", ""]
)
def test_a_marker_that_is_no_json_object_is_no_marker(kernels: Kernels, text: str) -> None:
    """This includes deep nesting and very long numbers."""
    source = kernels.volume / "k"
    write_result(source, "k")
    (source / runner.MARKER).write_text(text, encoding="latin-1")
    assert runner._read_marker(source, "k") is None


def test_a_whole_result_is_taken(kernels: Kernels) -> None:
    """The unchanged result is accepted, so the tests above refuse it because of their change alone."""
    write_result(kernels.volume / "k", "k")
    kernels.image.mkdir(parents=True)
    assert runner._restore(options_of(kernels), kernels.volume / "k", kernels.image, "k")
    assert (kernels.image / KERNEL).read_bytes() == b"kernel"


@pytest.mark.fault("a file of a cache claims more bytes than the disk has", area="build cache", outcome="held")
def test_a_result_that_does_not_fit_is_not_copied(kernels: Kernels) -> None:
    """A sparse file costs its writer nothing."""
    source = kernels.volume / "k"
    write_result(source, "k")
    as_holes(source / KERNEL)
    marker = json.loads((source / runner.MARKER).read_text())
    marker["files"][KERNEL]["size"] = 1 << 40
    (source / runner.MARKER).write_text(json.dumps(marker))
    kernels.image.mkdir(parents=True)
    assert not runner._restore(options_of(kernels), source, kernels.image, "k")


@pytest.mark.fault("a file of a cache grows while it is copied", area="build cache", outcome="held")
def test_no_more_is_copied_than_was_recorded(kernels: Kernels) -> None:
    """The size is checked first, and bytes beyond it are not written."""
    source = kernels.volume / "k"
    write_result(source, "k")
    marker = runner._read_marker(source, "k")
    assert marker is not None
    (source / KERNEL).write_bytes(b"x" * 10_000_000)
    kernels.image.mkdir(parents=True)
    damage = runner._copy_all(source, kernels.image, marker, deadline=time.monotonic() + 60)
    assert damage is not None
    assert "more than the 6 bytes" in damage
    assert (kernels.image / KERNEL).stat().st_size <= 10


@pytest.mark.fault("a volume is too slow to copy a result in the step's time", area="build cache", outcome="refused")
def test_a_copy_has_the_steps_deadline(kernels: Kernels) -> None:
    """Copies from a volume have the step's deadline too."""
    source = kernels.volume / "k"
    write_result(source, "k")
    kernels.image.mkdir(parents=True)
    marker = runner._read_marker(source, "k")
    assert marker is not None
    with pytest.raises(runner.StepError, match="in time") as caught:
        runner._copy_all(source, kernels.image, marker, deadline=time.monotonic() - 1)
    assert caught.value.code == 124


@pytest.mark.slow
@pytest.mark.fault("a build step's lock file is a pipe or a link", area="build cache", outcome="refused")
@pytest.mark.parametrize("kind", ["a pipe", "a link"])
def test_a_lock_that_is_no_file_does_not_block(kernels: Kernels, kind: str) -> None:
    """It is beside the image folder. Following a link would create a file elsewhere."""
    kernels.image.parent.mkdir(parents=True)
    lock = kernels.image.with_name(".kernels.torpor-lock")
    if kind == "a pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(kernels.volume / "made-elsewhere")
    began = time.monotonic()
    ran = kernels.build()
    assert time.monotonic() - began < 20
    assert not (kernels.volume / "made-elsewhere").exists()
    assert (kind == "a pipe") == (ran.returncode == 0)


@pytest.mark.fault("another builder never lets go of the image folder", area="build cache", outcome="refused")
def test_another_builder_is_waited_for_until_a_deadline(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is the time that all its attempts may take."""
    monkeypatch.setattr(runner, "_OTHER_BUILDER_S", 0.1)
    monkeypatch.setattr(runner, "_LOCK_POLL_S", 0.02)
    options = options_of(kernels, timeout="0.1")
    options.grace = 0.0
    with (
        runner._locked(kernels.image, options),
        pytest.raises(runner.StepError, match="another builder"),
        runner._locked(kernels.image, options),
    ):
        pass


@pytest.mark.slow
@pytest.mark.fault(
    "a probe leaves a process behind that holds its output, or prints without end", area="build cache", outcome="held"
)
def test_a_probe_is_bounded(kernels: Kernels) -> None:
    """A helper that it left behind is ended. Endless output is an error and takes no memory."""
    pid = kernels.volume.parent / "pid"
    left = ("sh", "-c", f"sleep 300 & echo $! > {pid}; echo nvcc 12.9; echo warning >&2")
    ran = kernels.build(probes=(left,))
    assert ran.returncode == 0, ran.stderr
    assert not alive(int(pid.read_text()))
    [entry] = kernels.entries()
    assert list(json.loads((entry / runner.MARKER).read_text())["probes"].values()) == ["nvcc 12.9"]
    kernels.new_image()
    ran = kernels.build(probes=(("head", "-c", "50000000", "/dev/zero"),))
    assert (ran.returncode, kernels.runs) == (121, 1)
    assert "printed more than 1048576 bytes" in ran.stderr


# --- notes of steps whose outputs have no cache -----------------------------------------------------------------------


def outputs_step(tmp_path: Path) -> BuildStep:
    """A step that makes one file. The file exists."""
    (tmp_path / "output").write_text("made")
    return BuildStep(name="make", argv=("true",), order=1, timeout_s=0.1, outputs=(str(tmp_path / "output"),))


@pytest.mark.fault("the note of a build step is a pipe, a link or a folder", area="build steps", outcome="refused")
@pytest.mark.parametrize("kind", ["a pipe", "a link", "a folder"])
def test_a_note_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    """Nothing blocks and nothing is created elsewhere. The message says where the note is."""
    notes = tmp_path / "notes"
    step = outputs_step(tmp_path)
    with making(step, notes):
        pass
    (note,) = notes.iterdir()
    note.unlink()
    if kind == "a pipe":
        os.mkfifo(note)
    elif kind == "a link":
        note.symlink_to(tmp_path / "elsewhere")
    else:
        note.mkdir()
    with pytest.raises(BuildStepError, match=r"no note of it can be made in .*notes"), making(step, notes):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.fault("a note of a build step is endless or no text", area="build steps", outcome="held")
@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * 5_000_000])
def test_whatever_a_note_holds_the_step_runs_again(tmp_path: Path, content: bytes) -> None:
    """A note means that a step did not finish, whatever the note contains."""
    step, notes = outputs_step(tmp_path), tmp_path / "notes"
    with making(step, notes) as needed:
        assert not needed
    (note,) = notes.iterdir()
    note.write_bytes(content)
    with making(step, notes) as needed:
        assert needed
    with making(step, notes) as needed:
        assert not needed


@pytest.mark.fault("another process never lets go of a build step's note", area="build steps", outcome="refused")
def test_another_process_is_waited_for_until_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is the time that all its attempts may take."""
    monkeypatch.setattr(step_outputs, "_OTHERS_END_S", 0.1)
    step, notes = outputs_step(tmp_path), tmp_path / "notes"
    with (
        making(step, notes),
        pytest.raises(BuildStepError, match=r"'make' .*another process is still at it"),
        making(step, notes),
    ):
        pass
