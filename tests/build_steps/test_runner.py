"""`torpor.build_steps.runner`, run as in an image: as a process of its own."""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typing_extensions import TypedDict, Unpack

from torpor import BuildStep, Cache
from torpor.build_steps import runner
from torpor.build_steps.command import step_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.slow  # each test runs processes of its own

SCRIPT = Path(runner.__file__)


class Values(TypedDict, total=False):
    """Fields of `BuildStep` that the runner takes as options."""

    retries: int
    outputs: tuple[str, ...]
    volumes: dict[str, str]
    cache: Cache


class StepValues(Values, total=False):
    """These, and the fields that `command_line` has defaults for."""

    name: str
    timeout_s: float


COMPILER = """
import os, pathlib, sys
image, count, text = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
count.write_text(str(int(count.read_text() or 0) + 1 if count.exists() else 1))
(image / "deep_gemm" / "cache").mkdir(parents=True, exist_ok=True)
for number in range(20):
    kernel = image / "deep_gemm" / "cache" / f"kernel-{number}.cubin"
    kernel.write_bytes(f"{text}-{number}".encode() * 1000)
    os.utime(kernel, ns=(1_600_000_000_123_456_789 + number, 1_600_000_000_123_456_789 + number))
(image / "triton").mkdir(exist_ok=True)
(image / "triton" / "helper.so").write_bytes(b"ELF")
(image / "triton" / "helper.so").chmod(0o755)
print("compiled", text)
"""
"""Stands in for an engine's compile command: writes kernels with known times, counts its runs."""


def command_line(
    argv: Sequence[str], *, name: str = "kernels", timeout_s: float = 60, **values: Unpack[Values]
) -> list[str]:
    """The command line that core makes of a build step."""
    step = BuildStep(name=name, argv=tuple(argv), order=20, timeout_s=timeout_s, **values)
    return list(step_command(step, python=sys.executable, runner=str(SCRIPT), script=None))


def run(argv: Sequence[str], *, grace_s: float = 2, **values: Unpack[StepValues]) -> subprocess.CompletedProcess[str]:
    """Run a build step until it ends, with a short time between SIGTERM and SIGKILL."""
    interpreter, script, *rest = command_line(argv, **values)
    line = [interpreter, script, f"--grace={grace_s}", *rest]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


class Kernels:
    """A volume, an image folder, and the compile step between them."""

    def __init__(self, root: Path) -> None:
        self.volume = root / "volume"
        self.image = root / "image" / "kernels"
        self.count = root / "count"
        self.volume.mkdir()

    def cache(self, *key: str, image: Path | None = None, probes: tuple[tuple[str, ...], ...] = ()) -> Cache:
        return Cache(volume_dir=str(self.volume), image_dir=str(image or self.image), key=key, probes=probes)

    def build(
        self,
        *,
        text: str = "sm_90a",
        key: tuple[str, ...] = ("engine=0.5.6.post2", "--tp-size", "1"),
        probes: tuple[tuple[str, ...], ...] = (("echo", "nvcc 12.9"),),
        compiler: str = COMPILER,
        retries: int = 0,
    ) -> subprocess.CompletedProcess[str]:
        return run(
            python(compiler, str(self.image), str(self.count), text),
            retries=retries,
            outputs=(str(self.image / "deep_gemm"),),
            cache=self.cache(*key, probes=probes),
            volumes={str(self.volume): "deepgemm-cache"},
        )

    @property
    def runs(self) -> int:
        return int(self.count.read_text()) if self.count.exists() else 0

    def entries(self) -> list[Path]:
        return sorted(self.volume.iterdir())

    def new_image(self) -> None:
        """Act as a new container: empty the image folder, keep the volume."""
        shutil.rmtree(self.image)


@pytest.fixture
def kernels(tmp_path: Path) -> Kernels:
    return Kernels(tmp_path)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)


# --- the command ------------------------------------------------------------------------------------------------------


def test_output_streams_through_and_success_is_exit_code_zero() -> None:
    """Both streams of the command go to the build's log."""
    ran = run(python("import sys; print('one'); print('two', file=sys.stderr)"))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["one", "two"]


def test_the_commands_own_exit_code_is_passed_on_with_its_last_lines() -> None:
    """The error names command, code and duration, and repeats the end of the output."""
    ran = run(python("import sys; [print('line', n) for n in range(100)]; sys.exit(7)"), name="compile kernels")
    assert ran.returncode == 7
    lines = ran.stderr.splitlines()
    assert lines[-2] == "    | line 99"
    assert lines[0] == "    | line 60"
    assert lines[-1].startswith("torpor build step 'compile kernels': `")
    assert "ended with exit code 7 after" in lines[-1]


def test_a_command_killed_by_a_signal_gives_128_and_its_number() -> None:
    """The code is a shell's. The error names the signal; an out-of-memory kill is SIGKILL."""
    ran = run(python("import os; os.kill(os.getpid(), 9)"))
    assert ran.returncode == 128 + 9
    assert "was killed by SIGKILL" in ran.stderr


def test_a_program_that_is_not_there_and_one_that_cannot_run_have_their_own_codes(tmp_path: Path) -> None:
    """They are 127 and 126, as in a shell."""
    plain = tmp_path / "plain"
    plain.write_text("no program")
    missing, not_runnable = run(["no-such-program-here"]), run([str(plain)])
    assert (missing.returncode, not_runnable.returncode) == (127, 126)
    assert "there is no program 'no-such-program-here' in the image" in missing.stderr
    assert "cannot be run: Permission denied" in not_runnable.stderr


@pytest.mark.slow
def test_past_its_deadline_the_whole_tree_is_ended(tmp_path: Path) -> None:
    """So are a helper that ignores SIGTERM, and an orphan in a session of its own."""
    pids = tmp_path / "pids"
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    daemon = "import time; time.sleep(600)"
    parent = (
        "import subprocess, sys; quiet = subprocess.DEVNULL; "
        f"print(subprocess.Popen([sys.executable, '-c', {daemon!r}], start_new_session=True, stdout=quiet).pid)"
    )
    code = f"""
import os, subprocess, sys, time
stubborn = subprocess.Popen([sys.executable, "-c", {stubborn!r}])
orphan = subprocess.run([sys.executable, "-c", {parent!r}], stdout=subprocess.PIPE, text=True).stdout
open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{stubborn.pid}} {{orphan}}")
print("all there", flush=True)
time.sleep(600)
"""
    began = time.monotonic()
    ran = run(python(code), timeout_s=2, grace_s=0.5)
    assert ran.returncode == 124
    assert "its limit is 2 s" in ran.stderr
    assert "    | all there" in ran.stderr
    assert time.monotonic() - began < 20
    numbers = [int(number) for number in pids.read_text().split()]
    assert len(numbers) == 3
    assert [number for number in numbers if alive(number)] == []


def test_helpers_that_outlive_a_successful_command_are_ended_too(tmp_path: Path) -> None:
    """They would hold the GPU and the pipe that the step reads."""
    pid = tmp_path / "pid"
    code = f"""
import subprocess, sys
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(pid)!r}, "w").write(str(helper.pid))
"""
    ran = run(python(code))
    assert ran.returncode == 0, ran.stderr
    assert not alive(int(pid.read_text()))


def test_a_crash_is_tried_again_as_often_as_asked(tmp_path: Path) -> None:
    """With one retry the step succeeds if its second attempt does."""
    count = tmp_path / "count"
    code = f"""
import pathlib, sys
count = pathlib.Path({str(count)!r}); seen = int(count.read_text()) if count.exists() else 0
count.write_text(str(seen + 1)); sys.exit(3 if seen < 1 else 0)
"""
    ran = run(python(code), retries=1)
    assert ran.returncode == 0, ran.stderr
    assert count.read_text() == "2"
    assert "ended with exit code 3" in ran.stdout
    assert "trying again, attempt 2 of 2" in ran.stdout


def test_the_last_attempts_failure_is_the_steps_failure() -> None:
    """The error says how many attempts were made."""
    ran = run(python("import sys; sys.exit(3)"), retries=1)
    assert ran.returncode == 3
    assert "(attempt 2 of 2)" in ran.stderr


def test_an_exit_code_of_a_permanent_failure_ends_the_retries() -> None:
    """sysexits.h: 77 is "permission denied" (a gated repository); 75 is "temporary failure"."""
    permanent, temporary = (run(python(f"import sys; sys.exit({code})"), retries=1) for code in (77, 75))
    assert (permanent.returncode, temporary.returncode) == (77, 75)
    assert "(attempt 1 of 2)" in permanent.stderr
    assert "(attempt 2 of 2)" in temporary.stderr


def test_a_passed_deadline_is_not_tried_again() -> None:
    """A second hang would take as long again, and hold a GPU."""
    ran = run(python("import time; time.sleep(600)"), timeout_s=0.5, grace_s=0.5, retries=1)
    assert ran.returncode == 124
    assert "(attempt 1 of 2)" in ran.stderr


@pytest.mark.parametrize("left", ["nothing", "an empty file", "empty files in a folder", "only Torpor's own files"])
def test_success_without_output_is_a_failure(tmp_path: Path, left: str) -> None:
    """SGLang's compile command exits with 0 and leaves no kernel if DeepGEMM is switched off."""
    output = tmp_path / "deep_gemm"
    if left == "an empty file":
        output.touch()
    elif left != "nothing":
        (output / "cache").mkdir(parents=True)
        (output / "cache" / "lock").touch()
        if left == "only Torpor's own files":
            (output / ".torpor-building.json").write_text("{}")
    ran = run(["true"], outputs=(str(output),))
    assert ran.returncode == 120
    assert f"left nothing in {output}: it did not do its work" in ran.stderr


def test_a_folder_with_one_file_in_its_depth_is_output_enough(tmp_path: Path) -> None:
    """A symbolic link to a file counts: the hub's snapshot folders hold links to blobs."""
    (tmp_path / "blob").write_text("weights")
    (tmp_path / "snapshots" / "deep").mkdir(parents=True)
    (tmp_path / "snapshots" / "deep" / "model.safetensors").symlink_to(tmp_path / "blob")
    assert run(["true"], outputs=(str(tmp_path / "snapshots"),)).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_nothing_stays_behind(kernels: Kernels, number: signal.Signals) -> None:
    """The command gets the same signal and time to clean up. The volume keeps no half-written folder."""
    note, pid = kernels.volume.parent / "note", kernels.volume.parent / "pid"
    code = f"""
import os, pathlib, signal, sys, time
def tidy(number, frame):
    pathlib.Path({str(note)!r}).write_text(f"tidied up after {{number}}"); sys.exit(1)
signal.signal({int(number)}, tidy)
pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))
time.sleep(600)
"""
    line = command_line(python(code), name="k", cache=kernels.cache("a"))
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: pid.exists() and pid.read_text() != "", "the command")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number, stderr
    assert stderr == f"torpor build step 'k': ended by {number.name}; nothing was published.\n"
    assert note.read_text() == f"tidied up after {int(number)}"
    assert not alive(int(pid.read_text()))
    assert kernels.entries() == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_signal_at_the_very_start_of_the_command_ends_it_too(tmp_path: Path, moment: str) -> None:
    """The signal comes right before or right after the start of the thread that reads its output."""
    pid = tmp_path / "pid"
    code = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"
    early = f"""
import os, pathlib, signal, sys, threading, time
sys.path.insert(0, {str(SCRIPT.parent)!r})
import runner
start = threading.Thread.start
def interrupted(thread):
    if {moment!r} == "after":
        start(thread)
    deadline = time.monotonic() + 60
    while not (pathlib.Path({str(pid)!r}).exists() and pathlib.Path({str(pid)!r}).read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread.start = interrupted
sys.exit(runner.main(["--name=k", "--timeout=60", "--", *sys.argv[1:]]))
"""
    ran = subprocess.run(python(early, *python(code)), capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 128 + signal.SIGTERM, ran.stderr
    assert ran.stderr == "torpor build step 'k': ended by SIGTERM; nothing was published.\n"
    assert not alive(int(pid.read_text()))


def test_a_volume_that_cannot_be_committed_is_an_error(tmp_path: Path) -> None:
    """Without the commit the next container would not see this one's files."""
    ran = run(["true"], volumes={str(tmp_path / "not-mounted"): "v"})
    assert ran.returncode == 122
    assert f"the volume at {tmp_path}/not-mounted could not be committed: No such file or directory." in ran.stderr


# --- the command line -------------------------------------------------------------------------------------------------


def test_arguments_pass_unchanged_through_the_shell_line_of_a_build_step(tmp_path: Path) -> None:
    """Key parts like flags, quotes, spaces, dollar signs, a second `--`: none is lost or expanded."""
    odd = ["--tp-size", "1", "a b", "it's", '"quoted"', "$HOME", "`date`", "--", "--name=other", "tab\there", "", "*"]
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    probe = (sys.executable, "-c", "print('a probe; with \"quotes\"')")
    cache = Cache(volume_dir=f"{tmp_path}/volume", image_dir=f"{tmp_path}/image", key=tuple(odd), probes=(probe,))
    line = shlex.join(command_line(python(code, *odd), name="odd name's", cache=cache))
    ran = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 120, "nothing was written to the image folder, so there is nothing to keep"
    assert [json.loads(text) for text in ran.stdout.splitlines() if text.startswith("[")] == [odd]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name=x", "--timeout=5"], "the command to run is missing"),
        (["--name=x", "--timeout=0", "--", "true"], "--timeout is 0 (above 0 is allowed)"),
        (["--name=x", "--timeout=5", "--cache-image=/i", "--", "true"], "--cache-volume and --cache-image go together"),
        (["--name=x", "--timeout=5", "--key=a", "--", "true"], "--key and --probe need --cache-volume"),
        (["--name=x", "--timeout=5", "--time=3", "--", "true"], "unrecognized arguments: --time=3"),
    ],
)
def test_wrong_use_is_exit_code_two_with_one_sentence(arguments: list[str], message: str) -> None:
    """The usage line is printed too."""
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 2
    assert message in ran.stderr


def test_the_file_stands_alone_on_python_310() -> None:
    """Engine images have their own Python (3.10 and 3.12 so far) and do not contain torpor yet."""
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 10))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
    ran = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), "--name=x", "--timeout=5", "--", "true"], timeout=60, check=False
    )
    assert ran.returncode == 0


# --- the cache --------------------------------------------------------------------------------------------------------


def test_the_first_build_compiles_and_publishes_one_whole_folder(kernels: Kernels) -> None:
    """Its marker lists key, parts, probe outputs and every file. The image folder has the same marker."""
    ran = kernels.build()
    assert ran.returncode == 0, ran.stderr
    [entry] = kernels.entries()
    marker = json.loads((entry / runner.MARKER).read_text())
    assert marker["key"] == entry.name
    assert len(entry.name) == 64
    assert marker["parts"] == ["engine=0.5.6.post2", "--tp-size", "1"]
    assert marker["probes"] == {"echo 'nvcc 12.9'": "nvcc 12.9"}
    files = {path.relative_to(entry).as_posix() for path in entry.rglob("*") if path.is_file()}
    assert set(marker["files"]) == files - {runner.MARKER}
    assert len(files) == 22
    assert json.loads((kernels.image / runner.MARKER).read_text()) == marker


def test_the_second_build_with_the_same_key_skips_the_command(kernels: Kernels) -> None:
    """In a new image the files come from the volume, with modes and modification times (ninja compares them)."""
    assert kernels.build().returncode == 0
    first = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kernels.image.rglob("*.cubin")}
    kernels.new_image()
    ran = kernels.build()
    assert ran.returncode == 0, ran.stderr
    assert kernels.runs == 1
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kernels.image.rglob("*.cubin")} == first
    assert os.access(kernels.image / "triton" / "helper.so", os.X_OK)
    assert "took 21 files" in ran.stdout


def test_a_complete_image_folder_is_left_unchanged(kernels: Kernels) -> None:
    """On one machine the folder stays between runs. A serving engine may have added files and extended its logs."""
    assert kernels.build().returncode == 0
    (kernels.image / "triton" / "later.so").write_bytes(b"made while serving")
    with (kernels.image / "triton" / "helper.so").open("ab") as log:
        log.write(b"grown")
    for entry in kernels.entries():
        shutil.rmtree(entry)
    ran = kernels.build()
    assert (ran.returncode, kernels.runs) == (0, 1), ran.stderr
    assert "nothing to do" in ran.stdout
    assert (kernels.image / "triton" / "later.so").exists()


@pytest.mark.parametrize("change", ["another part", "another order of parts", "another probe output"])
def test_another_key_compiles_again_beside_the_old_result(kernels: Kernels, change: str) -> None:
    """The image folder is emptied first: old kernels would make an empty compile look successful."""
    assert kernels.build(text="old").returncode == 0
    if change == "another part":
        ran = kernels.build(text="new", key=("engine=0.5.23", "--tp-size", "1"))
    elif change == "another order of parts":
        ran = kernels.build(text="new", key=("--tp-size", "1", "engine=0.5.6.post2"))
    else:
        ran = kernels.build(text="new", probes=(("echo", "nvcc 13.0"),))
    assert ran.returncode == 0, ran.stderr
    assert kernels.runs == 2
    assert len(kernels.entries()) == 2
    assert {path.read_bytes()[:3] for path in kernels.image.rglob("*.cubin")} == {b"new"}


def test_a_compile_that_leaves_no_kernel_publishes_nothing(kernels: Kernels) -> None:
    """Exit code 0 alone does not mean success."""
    ran = kernels.build(compiler="print('DeepGEMM is disabled')")
    assert ran.returncode == 120
    assert "    | DeepGEMM is disabled" in ran.stderr
    assert kernels.entries() == []
    assert not (kernels.image / runner.MARKER).exists()


def test_old_kernels_do_not_hide_a_compile_that_left_none(kernels: Kernels) -> None:
    """The image folder is emptied before another key is built."""
    assert kernels.build().returncode == 0
    assert kernels.build(key=("another",), compiler="pass").returncode == 120


def test_an_output_outside_the_image_folder_is_an_error(kernels: Kernels) -> None:
    """The cache would skip the command, and later builds would lack that output."""
    outside = kernels.volume.parent / "outside"
    code = "import pathlib, sys; [pathlib.Path(name).write_text('made') for name in sys.argv[1:]]"
    argv = python(code, str(outside), f"{kernels.image}/kernel")
    first = run(argv, outputs=(str(outside),), cache=kernels.cache("a"))
    assert first.returncode == 0, first.stderr
    outside.unlink()
    for _ in range(2):
        again = run(argv, outputs=(str(outside),), cache=kernels.cache("a"))
        assert again.returncode == 120
        assert f"is complete but lacks {outside}: outputs of a cached step must be in {kernels.image}." in again.stderr


def test_a_crashed_compile_continues_from_its_files(kernels: Kernels) -> None:
    """JIT caches write kernel by kernel. The next attempt with the same key finds the finished ones."""
    half = COMPILER.replace("print(", "if count.read_text() == '1': sys.exit(9)\nprint(")
    seen = half.replace(
        '(image / "deep_gemm"', "print('found', len(list(image.rglob('*.cubin'))))\n(image / \"deep_gemm\"", 1
    )
    assert kernels.build(compiler=seen).returncode == 9
    again = kernels.build(compiler=seen)
    assert again.returncode == 0, again.stderr
    assert "found 20" in again.stdout
    kernels.new_image()
    assert kernels.build().returncode == 0
    assert kernels.runs == 2


def test_the_incomplete_result_of_a_killed_build_is_not_used(kernels: Kernels) -> None:
    """The runner and all its processes are killed in the middle. Neither image nor volume counts as complete."""
    there = kernels.volume.parent / "there"
    stop = f"pathlib.Path({str(there)!r}).write_text(f'{{os.getppid()}} {{os.getpid()}}'); import time; time.sleep(600)"
    argv = python(COMPILER.replace('(image / "triton").mkdir', f'{stop}\n(image / "triton").mkdir'))
    argv += [str(kernels.image), str(kernels.count), "half"]
    outputs = (str(kernels.image / "deep_gemm"),)
    process = subprocess.Popen(command_line(argv, outputs=outputs, cache=kernels.cache("a")))
    wait_for(lambda: there.exists() and len(there.read_text().split()) == 2, "half of the kernels")
    for pid in map(int, there.read_text().split()):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    assert len(list(kernels.image.rglob("*.cubin"))) == 20
    assert [entry for entry in kernels.entries() if not entry.name.startswith(".tmp-")] == []
    ran = kernels.build(key=("a",), probes=())
    assert ran.returncode == 0, ran.stderr
    assert kernels.runs == 2
    assert {path.read_bytes()[:6] for path in kernels.image.rglob("*.cubin")} == {b"sm_90a"}
    assert (kernels.image / "triton" / "helper.so").exists()


def test_crash_and_retry_within_one_step_publish_a_whole_result(kernels: Kernels) -> None:
    """The retry is part of the command, so the cache sees one success."""
    crash_once = COMPILER.replace(
        '(image / "deep_gemm"', "if count.read_text() == '1': sys.exit(9)\n(image / \"deep_gemm\"", 1
    )
    ran = kernels.build(compiler=crash_once, retries=1)
    assert (ran.returncode, kernels.runs) == (0, 2), ran.stderr
    assert len(kernels.entries()) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "a file is gone",
        "a file is cut short",
        "a bit flipped",
        "the marker is gone",
        "the marker is cut short",
    ],
)
def test_a_damaged_result_is_built_again_and_replaced(kernels: Kernels, damage: str) -> None:
    """A marker without its files or a truncated copy is built again. The next build skips the command."""
    assert kernels.build().returncode == 0
    [entry] = kernels.entries()
    victim, marker = entry / "deep_gemm" / "cache" / "kernel-7.cubin", entry / runner.MARKER
    if damage == "a file is gone":
        victim.unlink()
    elif damage == "a file is cut short":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "a bit flipped":
        victim.write_bytes(b"X" + victim.read_bytes()[1:])
    elif damage == "the marker is gone":
        marker.unlink()
    else:
        marker.write_text(marker.read_text()[:-20])
    for runs in (2, 2):
        kernels.new_image()
        ran = kernels.build()
        assert ran.returncode == 0, ran.stderr
        assert kernels.runs == runs
        assert (kernels.image / "deep_gemm/cache/kernel-7.cubin").read_bytes() == b"sm_90a-7" * 1000
        assert kernels.entries() == [entry]


def test_a_marker_cannot_name_files_outside_its_folder(kernels: Kernels) -> None:
    """A volume is shared: others who write to it must not decide where a build writes."""
    assert kernels.build().returncode == 0
    [entry] = kernels.entries()
    marker = entry / runner.MARKER
    shutil.copy2(entry / "deep_gemm/cache/kernel-7.cubin", kernels.volume / "out.cubin")
    marker.write_text(marker.read_text().replace("deep_gemm/cache/kernel-7.cubin", "../out.cubin"))
    kernels.new_image()
    assert kernels.build().returncode == 0
    assert kernels.runs == 2
    assert not (kernels.image.parent / "out.cubin").exists()


def test_a_copy_that_was_never_finished_is_not_a_result(kernels: Kernels) -> None:
    """A builder killed while copying leaves a `.tmp-` folder. It is never read, and is removed a day later."""
    young, old = kernels.volume / ".tmp-young", kernels.volume / ".tmp-old"
    for folder in (young, old):
        folder.mkdir()
        (folder / "kernel.cubin").write_bytes(b"half")
    os.utime(old, (time.time() - 90_000, time.time() - 90_000))
    assert kernels.build().returncode == 0
    assert kernels.runs == 1
    assert young.exists()
    assert not old.exists()


def test_two_builders_at_once_leave_one_whole_result(kernels: Kernels) -> None:
    """Both build in their own images. One publishes, the other drops its result. Both images are complete."""
    barrier = kernels.volume.parent / "barrier"
    barrier.mkdir()
    meeting = f"""
import os, time
open(os.path.join({str(barrier)!r}, str(os.getpid())), "w").close()
deadline = time.monotonic() + 20
while len(os.listdir({str(barrier)!r})) < 2 and time.monotonic() < deadline: time.sleep(0.01)
"""
    processes = []
    for number in (1, 2):
        image = kernels.volume.parent / f"image-{number}"
        line = command_line(
            python(meeting + COMPILER, str(image), str(kernels.volume.parent / f"count-{number}"), f"builder-{number}"),
            outputs=(str(image / "deep_gemm"),),
            cache=kernels.cache("same", image=image),
        )
        processes.append(subprocess.Popen(line, stdout=subprocess.PIPE, text=True))
    output = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("published" in text and "another builder" not in text for text in output) == [False, True]
    [entry] = kernels.entries()
    assert len({path.read_bytes()[:9] for path in entry.rglob("*.cubin")}) == 1
    assert kernels.build(key=("same",), probes=()).returncode == 0
    assert kernels.runs == 0


def test_two_builders_of_one_image_folder_take_turns(kernels: Kernels) -> None:
    """On one machine the second waits for the first, and then finds its result."""
    slow = "import time; time.sleep(0.5)\n" + COMPILER
    line = command_line(python(slow, str(kernels.image), str(kernels.count), "x"), cache=kernels.cache("same"))
    processes = [subprocess.Popen(line) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert kernels.runs == 1


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (("no-such-nvcc", "--version"), "the probe `no-such-nvcc --version` cannot be run in the image: No such file"),
        (
            ("sh", "-c", "echo no devices were found >&2; exit 9"),
            "ended with exit code 9; the cache key needs its output",
        ),
        (("true",), "the probe `true` printed nothing; the cache key needs its output"),
    ],
)
def test_a_probe_that_fails_stops_the_step_before_the_command(
    kernels: Kernels, probe: tuple[str, ...], message: str
) -> None:
    """Without the probe's output, kernels of another compiler could be used."""
    ran = kernels.build(probes=(probe,))
    assert (ran.returncode, kernels.runs) == (121, 0)
    assert message in ran.stderr
    assert "no devices" in ran.stderr or probe[0] != "sh"


def test_an_unusable_volume_shows_before_the_work_begins(kernels: Kernels) -> None:
    """An hour of compilation is not lost because the volume cannot be written."""
    kernels.volume.rmdir()
    kernels.volume.write_text("a file, not a folder")
    ran = kernels.build()
    assert (ran.returncode, kernels.runs) == (122, 0)
    assert "the cache cannot be used" in ran.stderr


def test_a_folder_with_anything_else_in_it_is_never_emptied(kernels: Kernels) -> None:
    """The image folder is emptied before a build, so it must not hold the volume or a home folder."""
    precious = kernels.volume.parent / "precious"
    precious.write_text("mine")
    for folder in (kernels.volume.parent, kernels.volume / "inner", Path.home(), Path("/")):
        ran = run(["true"], cache=kernels.cache("a", image=folder))
        assert ran.returncode == 122
        assert f"{folder} cannot be a cache's image folder" in ran.stderr
    assert precious.read_text() == "mine"


def test_a_full_volume_is_named_and_keeps_no_half_copy(kernels: Kernels) -> None:
    """The volume is a full tmpfs of 64 KiB in a mount namespace of its own. Modal Volumes v1 report ENOSPC too."""
    inner = shlex.join(
        command_line(python(COMPILER, str(kernels.image), str(kernels.count), "x"), cache=kernels.cache("a"))
    )
    mounted = f"mount -t tmpfs -o size=64k none {kernels.volume} && {{ {inner}; code=$?; ls -A {kernels.volume}; exit $code; }}"
    allowed = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip("this kernel gives no user namespaces to this user, so no small file system can be mounted")
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 122, ran.stderr
    assert "No space left on device" in ran.stderr
    assert "free space on the volume" in ran.stderr
    assert not [line for line in ran.stdout.splitlines() if line.startswith(".tmp-") or len(line) == 64]
