"""`make gpu-bench` says what it will take, refuses what cannot work, and runs the engine's image."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from benchmarks.gpu import rented

from tests import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAYERS = {
    "Descriptor": {"platform": {"architecture": "amd64"}},
    "SchemaV2Manifest": {"layers": [{"size": 4e9}, {"size": 8e9}]},
}
DOCKER = """#!/bin/sh
echo "$@" >> {log}
case "$1 $2" in
"info --format") echo 28.0 ;;
"image inspect") exit 1 ;;
"manifest inspect") cat {manifest} ;;
"run --rm") exit 7 ;;
esac
"""


DAEMON = """#!/bin/sh
test $1 = run && echo $$ > {pid}
echo "$@" >> {log}
test $1 = run && exec sleep 60
test $1 != rm || kill -9 $(cat {pid}) 2>/dev/null
exit 0
"""
"""The end of the container ends `docker run`."""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with an H100, a docker that notes what it is asked, and much disk; the folder of its programs."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps(LAYERS))
    program(tools, "nvidia-smi", "#!/bin/sh\necho 'NVIDIA H100 80GB HBM3'\n")
    program(tools, "docker", DOCKER.format(log=tmp_path / "docker.log", manifest=tmp_path / "manifest.json"))
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1e12))
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    yield tools
    for number, handler in before.items():
        signal.signal(number, handler)


def program(tools: Path, name: str, text: str) -> None:
    """Put a script there."""
    (tools / name).write_text(text)
    (tools / name).chmod(0o755)


def test_it_says_its_cost_and_runs_the_engines_image(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Download, disk and minutes before it starts; then the container, whose exit code is its own."""
    words = ["--yes", "--folder", str(tmp_path / "kept"), "--rows", "profile", "--image", "some/engine:v1"]
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "gpu.json").write_text("{}")
    assert rented.main(words) == 7
    said = capsys.readouterr().out
    assert "to download 12.0 GB of image and 9.4 GB of weights at 100 MB/s" in said
    assert "compare them: python3 -m benchmarks.compare" in said
    asked = (machine.parent / "docker.log").read_text()
    assert " --init --privileged --gpus all" in asked
    assert "some/engine:v1 -c set -e" in asked
    assert "benchmarks.gpu.bench --real --model /bench/hub/models--Qwen--Qwen3-8B-FP8/snapshots/" in asked
    assert "--rows profile" in asked


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (("nvidia-smi", "#!/bin/sh\nexit 9\n"), "nvidia-smi does not answer"),
        (("nvidia-smi", "#!/bin/sh\necho NVIDIA GeForce RTX 3090\n"), "It needs a Hopper card"),
        (("docker", "#!/bin/sh\nexit 1\n"), "docker does not answer"),
        (("docker", '#!/bin/sh\ntest "$1" = info\n'), "The registry has no image lmsysorg/sglang:v"),
    ],
)
def test_a_machine_that_cannot_run_it_is_refused(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: tuple[str, str], said: str
) -> None:
    """With one sentence and the exit code 2, before anything is fetched."""
    program(machine, *broken)
    with pytest.raises(SystemExit) as ended:
        rented.main(["--yes", "--folder", str(tmp_path / "kept")])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rows", "profile,profil"], "There is no row 'profil'; there are: flagship, "),
        (["--restores", "0"], "1 or more"),
    ],
)
def test_wrong_options_are_refused(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    """Before docker is asked anything: the bench itself would find them after the download."""
    with pytest.raises(SystemExit) as ended:
        rented.main(["--yes", "--folder", str(tmp_path / "kept"), *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (machine.parent / "docker.log").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_the_container(machine: Path, tmp_path: Path, number: signal.Signals) -> None:
    """It is the daemon's child: the end of `docker run` does not end it."""
    log = machine.parent / "docker.log"
    program(machine, "docker", DAEMON.format(log=log, pid=tmp_path / "pid"))
    words = ["--yes", "--folder", str(tmp_path / "kept")]
    # The disk of this machine may be small: nothing is needed with the image and the weights there.
    script = f"""
import signal, sys
from benchmarks.gpu import rented
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs these tests may ignore both
signal.signal(signal.SIGHUP, signal.SIG_DFL)
rented.SNAPSHOTS_BYTES = 0
sys.exit(rented.main({words!r}))
"""
    (tmp_path / "kept" / "hub").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 30
        while "\nrun " not in (log.read_text() if log.exists() else "") and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(running.pid, number)
        said = running.communicate(timeout=30)[1]
    asked = log.read_text()
    assert running.returncode == 130, said
    assert "its container is removed" in said
    assert f"rm --force torpor-gpu-bench-{running.pid}" in asked
    assert f"--name torpor-gpu-bench-{running.pid}" in asked


def test_a_hang_up_that_nohup_ignores_ends_nothing(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A benchmark of an hour outlasts its terminal that way."""
    assert machine.exists()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(rented, "SNAPSHOTS_BYTES", 0)
    assert rented.main(["--yes", "--folder", str(tmp_path / "kept")]) == 7
    assert "no row was done" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_disk_that_is_too_small_is_refused(
    machine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With what is free and what is needed."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20e9))
    with pytest.raises(SystemExit):
        rented.main(["--yes", "--folder", str(tmp_path)])
    assert "has 20 GB free, and 69 GB are needed" in capsys.readouterr().err


def test_it_imports_nothing_that_a_clean_machine_lacks() -> None:
    """A Python without packages shows its help."""
    argv = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import benchmarks.gpu.rented",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_cost_is_that_of_the_rows() -> None:
    """From the newest committed result of each; a row that none has counts five minutes."""
    known = rented.row_seconds()
    assert {"flagship", "profile", "standby"} <= known.keys()
    some = rented.cost(["profile"], image_bytes=0.0, weights_bytes=0.0)
    assert some.download == 0
    assert some.seconds == pytest.approx(known["profile"] + rented.FIRST_START_S)
    more = rented.cost(["profile", "not-measured"], image_bytes=10e9, weights_bytes=9e9)
    assert more.seconds == pytest.approx(some.seconds + rented.ROW_S + 19e9 / rented.LINK_BYTES_S)
    assert "an image of unknown size" in rented.cost(["profile"], image_bytes=None, weights_bytes=0.0).said
