"""Nothing that a command starts outlives it, however it is ended: engines, commands of its own, sandboxes, checks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.engine.test_lifeline import WAYS, by_signal
from tests.snapshots.conftest import wait_for
from tests.snapshots.kept import engines_on, write_app
from torpor.runtime.captured_secrets import secret_names
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.snapshots.store.paths import criu_prefix
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

STARTS_S = 60.0
LEFT_S = 8.0
"""Five seconds are promised; the rest is for a busy machine."""

MORE_WAYS: dict[str, Callable[[psutil.Process], None]] = {
    **WAYS,
    **{number.name: by_signal(number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2)},
}
CASES = [
    *(("bench", way) for way in ("SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGTERM")),
    ("bench", "its direct children before it"),
    ("bench", "its process group"),
    ("compare", "SIGKILL"),
    ("compare", "SIGTERM"),
    ("compare", "its direct children before it"),
    ("up", "its direct children, one by one, before it"),
    ("up", "it is stopped, then its children and it are killed"),
    ("create", "its direct children before it"),
]
WORDS = {
    "bench": ("bench", "{app}", "--backend", "standby", "--starts", "3"),
    "compare": ("snapshot", "compare", "{app}"),
    "up": ("up", "{app}", "--backend", "standby"),
    "create": ("snapshot", "create", "{app}", "{folder}/kept"),
}


class Marked:
    """Commands whose processes can all be found by a path in their environment.

    A watcher and a sandbox's first process get next to nothing of the environment; this they get.
    """

    def __init__(self, folder: Path, **more: str) -> None:
        self.mark = f"/nowhere/{uuid.uuid4().hex}"
        env = {name: value for name, value in os.environ.items() if name not in secret_names(os.environ)}
        python = os.pathsep.join(filter(None, sys.path))
        self.env = {
            **env,
            "TORPOR_CACHE": str(folder / "c"),
            "LD_LIBRARY_PATH": self.mark,
            "PYTHONPATH": python,
            PREFIX_VARIABLE: env.get(PREFIX_VARIABLE) or str(criu_prefix()),
            **more,
        }

    def left(self) -> list[psutil.Process]:
        """What runs of them."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.status() != psutil.STATUS_ZOMBIE and self.mark in process.environ().values():
                    found.append(process)
        return found

    @contextmanager
    def running(self, *words: str | Path) -> Iterator[psutil.Popen]:
        """Start a command; whatever is left of it is killed after the block."""
        argv = [sys.executable, "-m", "torpor.cli", *map(str, words)]
        quiet = subprocess.DEVNULL
        process = psutil.Popen(argv, env=self.env, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        try:
            yield process
        finally:
            for one in [process, *self.left()]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()

    def gone(self) -> list[psutil.Process]:
        """Wait for the end of all of them; what is left."""
        wait_for(lambda: not self.left(), LEFT_S)
        return self.left()


@pytest.mark.fault("a command that started an engine is ended", area="commands", outcome="held")
@pytest.mark.parametrize(("what", "way"), CASES)
def test_an_engine_does_not_outlive_the_command_that_started_it(what: str, way: str, tmp_path: Path) -> None:
    """No process that the command started outlives it."""
    port = unused_port()
    app = write_app(tmp_path / "app", port=port)
    marked = Marked(tmp_path)
    with marked.running(*(word.format(app=app, folder=tmp_path) for word in WORDS[what])) as process:
        assert wait_for(lambda: engines_on(port) or process.poll() is not None, STARTS_S)
        assert process.poll() is None
        time.sleep(0.3)
        MORE_WAYS[way](process)
        process.wait(20.0)
        assert marked.gone() == []
        assert engines_on(port) == []


HANGS = """#!/bin/sh
echo $$ > {said}
sleep 600
"""


@pytest.mark.criu
@pytest.mark.fault("a command is killed while a program that it asks hangs", area="commands", outcome="held")
@pytest.mark.parametrize("way", ["SIGKILL", "its direct children before it"])
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("sbin/criu", ("doctor",)),
        ("sbin/criu", ("snapshot", "create", "{app}", "{folder}/kept")),
        ("nvidia-smi", ("doctor",)),
    ],
    ids=["doctor asks CRIU", "create asks CRIU", "doctor asks nvidia-smi"],
)
def test_a_program_that_hangs_does_not_outlive_the_command(
    program: str, words: tuple[str, ...], way: str, tmp_path: Path
) -> None:
    """Versions, checks and downloads that hang: the program and its children end with the command."""
    said = tmp_path / "said"
    file = tmp_path / "bin" / program
    file.parent.mkdir(parents=True)
    file.write_text(HANGS.format(said=said))
    file.chmod(0o755)
    path = os.pathsep.join((str(tmp_path / "bin"), os.environ["PATH"]))
    app = write_app(tmp_path / "app", port=unused_port())
    marked = Marked(tmp_path, PATH=path)
    if program == "sbin/criu":
        marked.env[PREFIX_VARIABLE] = str(tmp_path / "bin")
    with marked.running(*(word.format(app=app, folder=tmp_path) for word in words)) as process:
        assert wait_for(said.exists, STARTS_S)
        MORE_WAYS[way](process)
        process.wait(20.0)
        assert marked.gone() == []


@pytest.mark.fault("`torpor snapshot setup` is killed while a mirror does not answer", area="commands", outcome="held")
@pytest.mark.parametrize("way", ["SIGKILL", "its direct children before it"])
def test_a_download_does_not_outlive_the_command(way: str, tmp_path: Path) -> None:
    """Apt's downloader and its helpers end with the command."""
    marked = Marked(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as mirror:
        mirror.settimeout(STARTS_S)
        address = f"http://127.0.0.1:{mirror.getsockname()[1]}/debian"
        with marked.running("snapshot", "setup", "--again", "--mirror", address) as process:
            asked, _ = mirror.accept()
            with asked:
                MORE_WAYS[way](process)
                process.wait(20.0)
                assert marked.gone() == []
