"""`torpor.snapshots.remote.comparing`: another machine is compared before a chunk is fetched, and every reason is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.kept import write_app
from tests.snapshots.small_snapshot import content_of, rewrite, small_snapshot
from torpor import DamagedSnapshotError, SnapshotMisfitError
from torpor.app_file import load_app
from torpor.build_steps.relocation import relocate
from torpor.snapshots.before_capture.outside_files import noted
from torpor.snapshots.criu.program import Criu
from torpor.snapshots.facts import deployment_facts, machine_facts
from torpor.snapshots.remote import comparing
from torpor.snapshots.remote.comparing import Compared, compare, misfit_here
from torpor.snapshots.remote.portable import NEEDS, portable
from torpor.snapshots.remote.values import Label, RemoteFile, RemoteSnapshot
from torpor.snapshots.store.fields import Fields
from torpor.snapshots.store.manifest import MANIFEST, OUTSIDE, read_manifest
from torpor.snapshots.store.outside import noted_files
from torpor.snapshots.store.paths import CACHE_VARIABLE, KEPT
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE = (16 << 20) + 4096
CRIU = Criu(argv=("criu",), program=Path("/usr/bin/env"), version="4.2.1", cache=Path())


class World:
    """One machine's files below a folder, a snapshot of it, and what a store would say about that.

    Args:
        root: of both machines: `a` is the first one's cache root, `b` the second one's.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self._monkeypatch = root, monkeypatch
        self.port = unused_port()
        self.app = write_app(root / "app", port=self.port)
        self.use("a")
        self.kept = root / "a" / "images" / "kept" / KEPT / "weights-1.bin"
        site = root / "venv" / "lib" / "python3.12" / "site-packages"
        self.record = site / "torch-2.9.0.dist-info" / "RECORD"
        self.library = root / "lib" / "libtorch.so"
        self.engine = root / "engine" / "serve" / "__init__.py"
        hub = root / "a" / "volumes" / "hub" / "models--org--small"
        self.model = hub / "snapshots" / "abc" / "config.json"
        for file, content in (
            (self.kept, b"weights"),
            (self.record, b"torch/__init__.py,sha256=a,1"),
            (self.library, b"\x7fELF" + bytes(LARGE)),
            (self.engine, b"x = 1"),
            (self.model, b"{}"),
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        self.folder = self._captured()

    def use(self, name: str) -> None:
        """Continue on machine `a` or `b`."""
        self._monkeypatch.setenv(CACHE_VARIABLE, str(self.root / name))

    def install(self, criu: Criu) -> None:
        """Have this machine find another CRIU."""
        self._monkeypatch.setattr(comparing, "known_criu", lambda _: criu)

    def _captured(self) -> Path:
        opened = {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in (self.library, self.kept)}
        listed = noted(opened, [self.record, self.model], [self.engine.parent])
        folder = small_snapshot(self.root / "kept", outside=listed)
        app = load_app(str(self.app))
        deployment = app.deployment
        facts = deployment_facts(deployment, relocate(app.lifecycle.recipe(), self.root / "a", deployment.name))
        content = content_of(folder)
        made = read_manifest(folder)._replace(
            app_file=str(self.app),
            scratch=str(self.root / "a" / "box"),
            machine=machine_facts(CRIU),
            deployment=facts,
            gpu=None,
        )
        rewrite(folder, {**made.as_dict(), "files": content["files"]})
        return folder

    def pushed(self) -> RemoteSnapshot:
        """What a store says after a push."""
        self.use("a")
        sent = portable(self.folder)
        documents = {name: (self.folder / name).read_bytes() for name in (MANIFEST, OUTSIDE)}
        outside = tuple(
            RemoteFile(str(file), file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest(), ())
            for file in sent.outside
        )
        manifest = read_manifest(self.folder)
        label = Label("kept", 0, 0, "0", "kept", "", "", "", "x86_64", (), 1, 1, False, 1, "0" * 64)
        self.use("b")
        return RemoteSnapshot(
            url="s3://store/kept",
            label=label,
            digest="0" * 64,
            signed_by="",
            manifest=manifest,
            documents={**documents, **sent.documents},
            files=(),
            outside=outside,
            chunks=(),
            codec=None,  # type: ignore[arg-type]  # no chunk is read
        )

    def moved(self) -> RemoteSnapshot:
        """Push, then go on as machine `b`, which has the model but neither kept weights nor machine `a`'s cache root."""
        remote = self.pushed()
        shutil.copytree(self.root / "a", self.root / "b", ignore=shutil.ignore_patterns(KEPT))
        shutil.rmtree(self.root / "a")
        for file in (self.record, self.library, self.engine, self.here(self.model)):
            os.utime(file, (1, 1))  # another installation
        return remote

    def here(self, file: Path) -> Path:
        """A file of machine `a`'s cache root, on machine `b`."""
        return self.root / "b" / file.relative_to(self.root / "a")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two machines; this process is on the first one."""
    monkeypatch.setattr(comparing, "known_criu", lambda _: CRIU)
    return World(tmp_path, monkeypatch)


def compared(remote: RemoteSnapshot) -> Compared:
    """Compare, with the CRIU of the capture."""
    return compare(remote)


def test_the_same_files_with_other_times_below_another_cache_root_fit(world: World) -> None:
    """The kept weights have to be fetched; everything else is noted with its time here."""
    remote = world.moved()
    found = compared(remote)
    assert found.reasons == ()
    assert found.here.moved == ((str(world.root / "a"), str(world.root / "b")),)
    assert [(one.captured, one.target) for one in found.missing] == [(str(world.kept), world.here(world.kept))]
    assert found.here.changed[str(world.library)] == world.library.stat().st_mtime_ns
    assert found.here.path(str(world.model)) == str(world.here(world.model))


def test_what_was_noted_makes_later_comparisons_cheap(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `here.json` no file is read again: sizes and times are enough."""
    remote = world.moved()
    found = compared(remote)
    found.here.write(world.folder)
    monkeypatch.setattr("torpor.snapshots.store.outside.file_hash", lambda name: pytest.fail(f"{name} is read"))
    entries = {entry.name: entry for entry in noted_files(world.folder)}
    for file in (world.record, world.library, world.here(world.model)):
        assert entries[str(file)].changed == file.stat().st_mtime_ns


def test_kept_weights_are_found_in_place(world: World) -> None:
    """With the right content nothing is fetched; other content under that name is fetched again."""
    remote = world.moved()
    place = world.here(world.kept)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    assert compared(remote).missing == ()
    place.write_bytes(b"WEIGHTS")
    assert [one.target for one in compared(remote).missing] == [place]


def flip(file: Path, at: int) -> None:
    """Change one byte."""
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 255]))


def _other_app(world: World) -> None:
    write_app(world.root / "app", port=world.port, warmups=3)


CHANGES: dict[str, tuple[Callable[[World], object], str]] = {
    "a byte of an open library that no piece covers": (
        lambda world: flip(world.library, LARGE // 2 + 100_000),
        "libtorch.so, which the engine has open, differs from the file of the capture",
    ),
    "another version of a package": (
        lambda world: world.record.parent.rename(world.record.parent.with_name("torch-2.10.0.dist-info")),
        "package torch was 2.9.0 in {root}/venv/lib/python3.12/site-packages; here it is 2.10.0",
    ),
    "no such package": (
        lambda world: shutil.rmtree(world.record.parent),
        "package torch was 2.9.0 in {root}/venv/lib/python3.12/site-packages; here it is not installed",
    ),
    "other files of a package": (
        lambda world: world.record.write_text("torch/__init__.py,sha256=b,1"),
        "package torch 2.9.0 in {root}/venv/lib/python3.12/site-packages has other files",
    ),
    "another interpreter or library": (
        lambda world: world.library.unlink(),
        "libtorch.so, which the engine has open or read, cannot be reached",
    ),
    "another engine": (
        lambda world: world.engine.write_text("x = 2"),
        "the code in {root}/engine/serve/, which the engine runs",
    ),
    "no model": (
        lambda world: world.here(world.model).unlink(),
        "hf download org/small --revision abc --cache-dir {root}/b/volumes/hub",
    ),
    "no app file": (
        lambda world: world.app.unlink(),
        "its app file at {root}/app/kept.py, where it was at the capture",
    ),
    "another app": (_other_app, "standin.warmup_requests: 1 -> 3"),
    "another CRIU": (
        lambda world: world.install(CRIU._replace(version="4.1")),
        "it was made on CRIU 4.2.1; here it is 4.1",
    ),
}


@pytest.mark.fault("one thing differs on the machine that pulls a snapshot", area="another machine", outcome="refused")
@pytest.mark.parametrize("change", CHANGES)
def test_each_difference_is_a_reason(world: World, change: str) -> None:
    """One reason for one difference, with its path or version."""
    remote = world.moved()
    act, said = CHANGES[change]
    act(world)
    (reason,) = compared(remote).reasons
    assert said.format(root=world.root) in reason


def test_every_difference_is_in_one_error(world: World) -> None:
    """Nobody has to try ten times."""
    remote = world.moved()
    for name in ("another version of a package", "another engine", "no model", "another CRIU", "another app"):
        CHANGES[name][0](world)
    reasons = compared(remote).reasons
    assert len(reasons) == 5
    error = misfit_here(remote.url, reasons)
    assert isinstance(error, SnapshotMisfitError)
    assert str(error).startswith("The snapshot s3://store/kept does not fit this machine:\n  - ")
    assert "Nothing was fetched." in str(error)


@pytest.mark.fault("an outside file changed between capture and push", area="another machine", outcome="refused")
def test_a_snapshot_whose_files_have_changed_is_not_pushed(world: World) -> None:
    """Their hashes would be those of other files."""
    world.engine.write_text("x = 2")
    with pytest.raises(SnapshotMisfitError, match=r"the code in .*/engine/serve/, which the engine runs, has changed"):
        portable(world.folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"schema": 2, "whole": {}, "kept": {}}', b'{"schema": 1, "whole": {"/a": "x"}, "kept": {}}'],
)
@pytest.mark.fault("the list of hashes in a store is damaged", area="another machine", outcome="refused")
def test_damaged_needs_are_refused(world: World, content: bytes) -> None:
    """By the rules for every file of a snapshot."""
    remote = world.moved()
    with pytest.raises(DamagedSnapshotError, match=r"needs\.json"):
        compare(remote._replace(documents={**remote.documents, NEEDS: content}))


def test_needs_name_large_open_files_and_kept_weights(world: World) -> None:
    """Small files are noted whole at the capture."""
    needs = Fields(json.loads(portable(world.folder).documents[NEEDS]), Path("x"))
    assert needs.content["whole"] == {str(world.library): hashlib.sha256(world.library.read_bytes()).hexdigest()}
    assert needs.content["kept"] == {str(world.kept): str(world.kept)}
