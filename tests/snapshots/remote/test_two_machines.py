"""A snapshot goes from one machine to another: here two sandboxes with another host name, user, home, and mount of the store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.snapshots.conftest import wait_for
from tests.snapshots.kept import chat, engines_on, write_app
from tests.snapshots.test_ordinary_user import closed_ancestor
from torpor.snapshots.before_capture.lasting_folders import LASTING_VARIABLE
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.criu.program import Criu

pytestmark = [
    pytest.mark.criu,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make two machines with users of their own"),
]

DEADLINE_S = 60.0
ENTER = """
set -eu
stash=$1; blocked=$2; needed=$3; host=$4; uid=$5; covers=$6; shift 6
n=0; for path in $needed; do n=$((n + 1)); mkdir -p "$stash/$n"; mount --bind "$path" "$stash/$n"; done
for folder in $blocked; do mount -t tmpfs -o mode=755 none "$folder"; done
n=0; for path in $needed; do n=$((n + 1)); mkdir -p "$path"; mount --move "$stash/$n" "$path"; done
for cover in $covers; do mount --bind "${cover#*=}" "${cover%%=*}"; done
echo "$host" > /proc/sys/kernel/hostname
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups "$@"
"""
"""In a mount and host name namespace of its own: shows files at other places, then becomes an ordinary user."""

FLAGS_LINE = "flags"


class Machine(NamedTuple):
    """One machine.

    Attributes:
        root: of both machines' files.
        name: its host name.
        uid: of its user.
        store: where it has the store mounted.
        env: the environment of its commands.
        hidden: folders that only the other machine has.
    """

    root: Path
    name: str
    uid: int
    store: Path
    env: dict[str, str]

    @property
    def home(self) -> Path:
        """Its user's home; the other user may not enter it."""
        return self.root / self.name

    def command(self, *words: str, covers: dict[Path, Path] | None = None) -> list[str]:
        """The command line that runs `torpor` on this machine.

        Args:
            *words: of torpor.
            covers: files and folders that lie over others: what lies there, by place.
        """
        needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), Path(__file__).parents[3]}
        needed.add(Path(self.env[PREFIX_VARIABLE]))
        blocked = {path: ancestor for path in needed if (ancestor := closed_ancestor(path))}
        lying = {self.store: self.root / "store", **(covers or {})}
        words_of_covers = " ".join(f"{place}={what}" for place, what in lying.items())
        enter = ["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", ENTER, "sh"]
        closed = " ".join(sorted({str(one) for one in blocked.values()}))
        stash = self.root / f"stash-{self.name}"
        stash.mkdir(exist_ok=True)
        options = [str(stash), closed, " ".join(map(str, blocked)), self.name, str(self.uid), words_of_covers]
        return [*enter, *options, sys.executable, "-m", "torpor.cli", *words]

    def run(self, *words: str, covers: dict[Path, Path] | None = None) -> subprocess.CompletedProcess[str]:
        """Run `torpor` on this machine until it ends."""
        return subprocess.run(
            self.command(*words, covers=covers),
            env=self.env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )


class World(NamedTuple):
    """Two machines, an app that both have, and the store."""

    a: Machine
    b: Machine
    app: Path
    port: int
    criu: Criu


@pytest.fixture(scope="module")
def world(criu: Criu) -> Iterator[World]:
    """Machine A has captured the app and pushed it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        for name in ("mnt-a", "mnt-b", "store", "app"):
            (root / name).mkdir()
        (root / "store").chmod(0o777)
        a, b = (_machine(root, name, uid, criu) for name, uid in (("a", 1500), ("b", 1600)))
        port = unused_port()
        app = write_app(root / "app", port=port)
        (root / "app" / "config.json").write_text('{"model": 1}')
        _ok(a.run("snapshot", "create", str(app), str(a.home / "kept")))
        _ok(a.run("snapshot", "push", str(a.home / "kept"), f"file://{a.store}/kept"))
        yield World(a, b, app, port, criu)


def _machine(root: Path, name: str, uid: int, criu: Criu, *, store: str = "") -> Machine:
    home = root / name
    home.mkdir(mode=0o700)
    os.chown(home, uid, uid)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        LASTING_VARIABLE: f"{home}{os.pathsep}{root}",
        PREFIX_VARIABLE: str(criu.program.parents[3]),
    }
    return Machine(root, name, uid, root / (store or f"mnt-{name}"), env)


def _ok(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return ran.stdout + ran.stderr


class Serving(NamedTuple):
    """What a machine restored: its line of JSON, and its answer."""

    told: dict[str, object]
    answer: str


def _served(machine: Machine, snapshot: str, port: int, *more: str, covers: dict[Path, Path] | None = None) -> Serving:
    """Restore on a machine, ask once, end it."""
    words = ["snapshot", "restore", snapshot, "--json", "--port", str(port), *more]
    process = subprocess.Popen(
        machine.command(*words, covers=covers),
        env=machine.env,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        return Serving(json.loads(line), chat(port))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _hidden_chunks(world: World) -> dict[Path, Path]:
    """The store as machine B sees it, without a single chunk."""
    empty = world.b.root / "empty"
    empty.mkdir(exist_ok=True)
    return {world.b.store / "chunks": empty}


@pytest.mark.fault("a snapshot comes back on another machine, for another user", area="another machine", outcome="held")
def test_another_machine_restores_what_the_first_one_captured(world: World) -> None:
    """With another host name, user, home, cache root and mount of the store."""
    url = f"file://{world.b.store}/kept"
    first = _served(world.a, str(world.a.home / "kept"), unused_port())
    second = _served(world.b, url, unused_port(), "--unsigned")
    assert second.answer == first.answer
    assert not any(world.b.root.glob("a/.cache/torpor/snapshots/*"))  # A's cache root is A's
    fetched = second.told["fetched"]
    assert isinstance(fetched, dict)
    assert fetched["already"] is False
    assert [one["stage"] for one in fetched["stages"]] == ["open", "compare", "pull"]
    assert wait_for(lambda: not engines_on(world.port))


@pytest.mark.fault("another machine differs in many ways at once", area="another machine", outcome="refused")
def test_every_difference_is_named_before_a_chunk_is_fetched(world: World) -> None:
    """Package, library, CPU, model and app: one refusal. The store shows no chunk, so fetching one would be another error."""
    changed = world.b.root / "changed"
    changed.mkdir()
    url = f"file://{world.b.store}/kept"
    site = Path(pytest.__file__).parents[1]
    record = next(site.glob("pytest-*.dist-info/RECORD"))
    (changed / "RECORD").write_text(record.read_text() + "more.py,,\n")
    extension = Path(str(__import__("_json").__file__))
    shutil.copy(extension, changed / "json.so")
    with (changed / "json.so").open("ab") as stream:
        stream.write(b"\0")
    cpu = Path("/proc/cpuinfo").read_text()
    (changed / "cpuinfo").write_text(cpu.replace(" sse2 ", " "))
    (changed / "config.json").write_text('{"model": 2}')
    (changed / "app.py").write_text(world.app.read_text().replace("warmup_requests=1", "warmup_requests=2"))
    covers = {
        record: changed / "RECORD",
        extension: changed / "json.so",
        Path("/proc/cpuinfo"): changed / "cpuinfo",
        world.app.parent / "config.json": changed / "config.json",
        world.app: changed / "app.py",
    }
    for file in changed.iterdir():
        file.chmod(0o644)
    shutil.rmtree(world.b.home / ".cache" / "torpor" / "snapshots", ignore_errors=True)
    ran = world.b.run("snapshot", "restore", url, "--unsigned", covers={**_hidden_chunks(world), **covers})
    assert ran.returncode != 0
    for reason in (
        "does not fit this machine",
        "lacks features that the other had: sse2",
        "standin.warmup_requests: 1 -> 2",
        "package pytest",
        f"{extension}, which the engine has open",
        "config.json, which the engine has open or read, has changed",
        "Nothing was fetched.",
    ):
        assert reason in ran.stderr
    assert not any((world.b.home / ".cache" / "torpor").glob("snapshots/*"))
    same = world.b.run("snapshot", "restore", url, "--unsigned", covers=_hidden_chunks(world))
    assert "does not fit" not in same.stderr
    assert "chunk" in same.stderr  # the control: with nothing changed it does look for one


@pytest.mark.fault(
    "a snapshot that root captured comes back below another cache root", area="another machine", outcome="held"
)
def test_root_finds_its_cache_root_elsewhere(world: World) -> None:
    """The first machine's home is empty here; the sandbox shows this machine's cache root at its place."""
    empty = world.b.root / "nobody"
    empty.mkdir()
    a, b = (_machine(world.b.root, f"root-{name}", 0, world.criu, store=f"mnt-{name}") for name in ("a", "b"))
    _ok(a.run("snapshot", "create", str(world.app), str(a.home / "kept"), "--mode", "root", "--no-prove"))
    _ok(a.run("snapshot", "push", str(a.home / "kept"), f"file://{a.store}/root"))
    restored = _served(b, f"file://{b.store}/root", unused_port(), "--unsigned", covers={a.home: empty})
    assert restored.answer
    assert not any(empty.iterdir())
    refused = world.b.run("snapshot", "restore", f"file://{b.store}/root", "--unsigned", covers={a.home: empty})
    assert "it was captured as root, and a restore needs root, too" in refused.stderr
