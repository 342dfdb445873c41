"""Damaged and hostile files of a snapshot: a clear error that names file and field, never a traceback or a hang."""

from __future__ import annotations

import copy
import functools
import json
import os
import random
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.small_snapshot import content_of, rewrite, small_snapshot
from torpor import DamagedSnapshotError, SnapshotError, __version__
from torpor.snapshots.fit import changed_files
from torpor.snapshots.store.failures import bad_reason
from torpor.snapshots.store.files import damaged_files
from torpor.snapshots.store.folder import checked
from torpor.snapshots.store.index import remove
from torpor.snapshots.store.manifest import FAILURES, MANIFEST, OUTSIDE, PRIVATE
from torpor.snapshots.store.stored import inspect, read_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SEED = 20261130
OTHERS: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**63,
    10**400,
    1.5,
    -0.5,
    1e308,
    "",
    "x",
    "../../etc/passwd",
    "/dev/zero",
    "/a/../b",
    "[/red] [link=file:///etc]\x1b[31m\x00\u202e",
    "half \ud800 a character",
    "a" * 5000,
    [],
    [None],
    {},
    {"": None},
    {"x": {"y": [1]}},
)
RAW = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"NaN",
    b'"text"',
    b'{"schema": 3}',
    b'{"schema": true}',
    b'{"schema": 3, "schema": 3}',
    b'{"schema": 1e400}',
    b'{"schema": ' + b"9" * 10_000 + b"}",
    b'{"schema": -Infinity}',
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b'{"schema": 3, "\xff": 1}',
    b"\0" * 4096,
    b"\x1f\x8b\x08\x00",
)

Where = tuple[str | int, ...]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A whole snapshot."""
    return small_snapshot(tmp_path / "kept")


def looked_at(folder: Path) -> str:
    """Every error from reading all of a snapshot; empty if there is none."""
    try:
        manifest = inspect(folder)
        read_identity(folder)
        said = "\n".join([*damaged_files(folder, manifest, full=False), *changed_files(folder)])
    except SnapshotError as error:
        said = str(error)
        assert "\n\n" not in said
    said.encode("ascii", "backslashreplace")
    return said


def places(value: object, at: Where = ()) -> Iterator[Where]:
    """The path of every value in a JSON document, without the document itself."""
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    for name, one in inner:
        yield (*at, name)
        yield from places(one, (*at, name))


def changed(content: object, where: Where, change: Callable[[object, str | int], None]) -> object:
    """A copy of a document with one value changed."""
    whole = holder = copy.deepcopy(content)
    for name in where[:-1]:
        holder = holder[name]  # type: ignore[index]
    change(holder, where[-1])
    return whole


def deleted(holder: object, name: str | int) -> None:
    """Remove a field."""
    del holder[name]  # type: ignore[attr-defined]


def mutations(content: object, chosen: random.Random, count: int) -> Iterator[bytes]:
    """Documents with one fault each: a field deleted, renamed, added or of another type or value; bytes cut or flipped."""
    whole = json.dumps(content, indent=1).encode()
    where = list(places(content))
    for one in where:
        yield json.dumps(changed(content, one, deleted)).encode()
    for _ in range(count - len(where)):
        kind = chosen.randrange(6)
        if kind == 0:
            yield whole[: chosen.randrange(len(whole))]
        elif kind == 1:
            at = chosen.randrange(len(whole))
            yield whole[:at] + bytes([whole[at] ^ 1 << chosen.randrange(8)]) + whole[at + 1 :]
        elif kind == 2:
            one = chosen.choice(where)
            yield json.dumps(changed(content, (*one[:-1], chosen.choice(["more", "../up", "\0", ""])), _added)).encode()
        else:
            put = functools.partial(_put, value=chosen.choice(OTHERS))
            yield json.dumps(changed(content, chosen.choice(where), put)).encode()


def _put(holder: object, name: str | int, value: object) -> None:
    holder[name] = value  # type: ignore[index]


def _added(holder: object, name: str | int) -> None:
    if isinstance(holder, list):
        holder.append(name)
    else:
        _put(holder, name, 1)


@pytest.mark.slow
@pytest.mark.fault("a manifest is cut, flipped or changed", area="snapshot files", outcome="refused")
@pytest.mark.parametrize("share", range(4))
def test_every_mutation_of_a_manifest_is_read_or_refused_in_one_paragraph(kept: Path, share: int) -> None:
    """1,500 faults in four shares: each document is read as it is, or refused with the file's name."""
    every = list(mutations(content_of(kept), random.Random(SEED), 1500))
    refused = sum(MANIFEST in looked_at_with(kept, MANIFEST, mutation) for mutation in every[share::4])
    assert refused > 240


@pytest.mark.fault("a small file of a snapshot is cut, flipped or changed", area="snapshot files", outcome="refused")
@pytest.mark.parametrize("name", [PRIVATE, OUTSIDE])
def test_every_mutation_of_the_other_json_files_is_read_or_refused(kept: Path, name: str) -> None:
    """The same faults as in the manifest."""
    every = mutations(content_of(kept, name), random.Random(SEED), 150)
    assert sum(name in looked_at_with(kept, name, mutation) for mutation in every) > 60


def looked_at_with(folder: Path, name: str, data: bytes) -> str:
    """Every error from reading a snapshot with other bytes in one file."""
    (folder / name).write_bytes(data)
    return looked_at(folder)


@pytest.mark.fault("a file of a snapshot is not a JSON object", area="snapshot files", outcome="refused")
@pytest.mark.parametrize("name", [MANIFEST, PRIVATE, OUTSIDE])
@pytest.mark.parametrize("data", RAW, ids=range(len(RAW)))
def test_a_file_that_is_not_our_json_is_refused_by_name(kept: Path, name: str, data: bytes) -> None:
    """Nested too deep, another encoding, numbers outside of JSON, a duplicate field."""
    (kept / name).write_bytes(data)
    assert str(kept / name) in looked_at(kept)


@pytest.mark.fault("a manifest's field has another type or range", area="snapshot files", outcome="refused")
@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("captured_at",), -1, "captured_at is -1, not a number from 0"),
        (("captured_at",), "yesterday", "captured_at is yesterday, not a number"),
        (("mode",), "sudo", "mode is sudo, not root or rootless"),
        (("mode",), ["root"], "mode is an array, not root or rootless"),
        (("app_file",), "app.py", "app_file is app.py, not an absolute path without `..`"),
        (("scratch",), "/tmp/../etc", "scratch is /tmp/../etc, not an absolute path"),
        (("canary", "answer", "tokens"), "many", "canary.answer.tokens is 'many', not a whole number"),
        (("canary", "answer"), [], "canary.answer is an array, not an object"),
        (("canary", "kind"), "song", "canary.kind is song, not logprobs or text"),
        (("image_bytes",), True, "image_bytes is true, not a whole number"),
        (("image_bytes",), 2**80, "image_bytes is a number of many digits, not a whole number"),
        (("stages", 0, "seconds"), None, "stages[0].seconds is null, not a number"),
        (("machine", "cpu", 1), 7, "machine.cpu[1] is 7, not a string"),
        (
            ("machine", "criu_file"),
            ["/usr/sbin/criu", "1", 2],
            "machine.criu_file is an array, not a path and two numbers",
        ),
        (("machine", "gpus", 0, "memory_mib"), "many", "machine.gpus[0].memory_mib is many, not a whole number"),
        (("gpu", "processes", 0, "pid"), 0, "gpu.processes[0].pid is 0, not a whole number from 1"),
        (("machine", "gpus", 0, "uuid"), "MIG-1", "machine.gpus[0].uuid is MIG-1, not the UUID of a GPU"),
        (("gpu", "memory"), [], "gpu.memory is an array, not an object"),
        (("gpu", "memory"), {"GPU-2": 1}, "gpu.memory is GPU-2, not a GPU of machine.gpus"),
        (("gpu", "awake"), {"GPU-2": 1}, "gpu.memory is GPU-2, not a GPU of machine.gpus"),
        (("deployment", "port"), 65536, "deployment.port is 65536, not a whole number from 1 to 65535"),
        (("deployment", "env"), "HOME=/", "deployment.env is HOME=/, not an object"),
        (("deployment", "colour"), 1, "it has an unknown field deployment.colour"),
        (
            ("files", "/dev/zero"),
            {"size": 0, "head": "", "sha256": ""},
            "files./dev/zero is /dev/zero, not the path of a file",
        ),
        (("files", "../x"), {"size": 0, "head": "", "sha256": ""}, "files.../x is ../x, not the path of a file"),
        (
            ("files", "images/side.tar", "sha256"),
            "xyz0",
            "files.images/side.tar.sha256 is xyz0, not up to 64 hexadecimal",
        ),
        (("served_name",), "\ud800", "served_name is \\ud800, not text"),
    ],
)
def test_a_wrong_field_is_named(kept: Path, where: Where, value: object, said: str) -> None:
    """With its value and what is allowed."""
    changed_content = changed(content_of(kept), where, lambda holder, name: _put(holder, name, value))
    assert isinstance(changed_content, dict)
    rewrite(kept, changed_content)
    assert said in looked_at(kept)


def as_pipe(path: Path) -> None:
    """A named pipe without a writer."""
    os.mkfifo(path, 0o600)


def as_link(path: Path) -> None:
    """A link to a file with the right content."""
    aside = path.with_name(f"aside-{path.name}")
    aside.write_bytes(b"{}")
    path.symlink_to(aside)


def as_endless_link(path: Path) -> None:
    """A link to a device that never ends."""
    path.symlink_to("/dev/zero")


def as_folder(path: Path) -> None:
    """A folder."""
    path.mkdir(mode=0o700)


def as_socket(path: Path) -> None:
    """A socket."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)
        os.close(here)


def as_hole(path: Path) -> None:
    """A sparse file of one terabyte."""
    path.touch(mode=0o600)
    os.truncate(path, 1 << 40)


@pytest.mark.fault(
    "a file of a snapshot is a pipe, a link, a folder, a socket or endless", area="snapshot files", outcome="refused"
)
@pytest.mark.timeout(20)
@pytest.mark.parametrize("put", [as_pipe, as_link, as_endless_link, as_folder, as_socket, as_hole])
@pytest.mark.parametrize("name", [MANIFEST, PRIVATE, OUTSIDE, "images/pages-1.img", "images/side.tar"])
def test_only_regular_files_are_read(kept: Path, name: str, put: Callable[[Path], None]) -> None:
    """Anything else is refused at once, by name."""
    (kept / name).unlink()
    put(kept / name)
    assert name in looked_at(kept)


@pytest.mark.fault(
    "a folder of something else, open to others, is given as a snapshot", area="snapshot files", outcome="refused"
)
def test_a_folder_of_something_else_is_not_told_to_be_closed(tmp_path: Path) -> None:
    """`torpor snapshot restore /tmp`: the advice `chmod 700 /tmp` would harm every user of the machine."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    with pytest.raises(DamagedSnapshotError, match=r"holds no snapshot: there is no manifest\.json in it") as refused:
        checked(folder)
    assert "chmod" not in str(refused.value)


@pytest.mark.fault(
    "a folder or file of a snapshot belongs to somebody else or is open to others",
    area="snapshot files",
    outcome="refused",
)
@pytest.mark.parametrize("name", ["images", "logs", "images/pages-1.img", MANIFEST, PRIVATE, OUTSIDE])
@pytest.mark.parametrize("how", ["open", "foreign"])
def test_a_file_that_others_may_write_is_refused(kept: Path, name: str, how: str) -> None:
    """Even in a private folder: the folder may have been open before, and a file may have other names elsewhere."""
    if how == "foreign":
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(kept / name, 65534, 65534)
    else:
        (kept / name).chmod(0o777 if (kept / name).is_dir() else 0o666)
    said = looked_at(kept)
    assert f"{name} " in said
    assert ("may be written to by other users" if how == "open" else "belongs to user 65534") in said


@pytest.mark.fault("a snapshot is of the format before this one", area="snapshot files", outcome="refused")
def test_format_6_is_refused_in_one_line_that_says_what_to_do(kept: Path) -> None:
    """Its canary is three fields of text. That is not reported as damage, and the snapshot can be removed."""
    content = content_of(kept)
    assert content["schema"] == 7
    del content["canary"]
    rewrite(kept, content | {"schema": 6, "canary_prompt": "Name", "canary_tokens": 1, "canary_text": "the"})
    with pytest.raises(DamagedSnapshotError) as caught:
        inspect(kept)
    assert str(caught.value) == (
        f"{kept / MANIFEST} was written by Torpor 0.1.0 in format 6; this is Torpor {__version__}, which reads format 7. "
        "Take a new snapshot, or use the version that wrote it."
    )
    remove(kept)
    assert not kept.exists()


@pytest.mark.fault("the images of a snapshot are a link to another folder", area="snapshot files", outcome="refused")
def test_images_that_are_a_link_are_refused(kept: Path) -> None:
    """With one reason for the folder, not one for each file."""
    (kept / "images").rename(kept.parent / "elsewhere")
    (kept / "images").symlink_to(kept.parent / "elsewhere")
    assert "its folder images is a symbolic link, not a folder" in looked_at(kept)
    assert looked_at(kept).count("its folder images") == 1


@pytest.mark.fault("everybody may rename in the parent of a snapshot", area="snapshot files", outcome="refused")
def test_a_parent_that_is_writable_to_all_is_refused(kept: Path) -> None:
    """Anybody could replace the folder between check and use. The sticky bit (as on /tmp) prevents that."""
    kept.parent.chmod(0o777)
    assert f"{kept.parent} is writable to everybody (mode 777)" in looked_at(kept)
    kept.parent.chmod(0o1777)
    assert "writable to everybody" not in looked_at(kept)


COMMAND_LINE = """
import sys, traceback
from torpor.cli import main

folder, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    sys.argv = ["torpor", "snapshot", "inspect", f"{folder}/{number}"]
    try:
        main()
    except SystemExit as ended:
        print("CODE", ended.code or 0, file=sys.stderr)
    except BaseException:
        print("TRACE", number, traceback.format_exc(), file=sys.stderr)
    else:
        print("CODE", 0, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.fault("a damaged snapshot is inspected by the command line", area="snapshot files", outcome="refused")
def test_the_command_line_ends_with_a_code_and_one_paragraph_for_every_mutation(tmp_path: Path) -> None:
    """A sample of the same faults: exit code 1 (it does not fit) or 2 (it cannot be read), never a traceback.

    No control sequence reaches the terminal.
    """
    chosen = random.Random(SEED)
    whole = small_snapshot(tmp_path / "whole")
    sample = chosen.sample(list(mutations(content_of(whole), chosen, 1500)), 60)
    for number, mutation in enumerate(sample):
        (small_snapshot(tmp_path / "all" / str(number)) / MANIFEST).write_bytes(mutation)
    ran = subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, str(tmp_path / "all"), str(len(sample))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "TRACE" not in ran.stderr, ran.stderr[-4000:]
    assert "Traceback" not in ran.stderr
    codes = [line.split()[1] for line in ran.stderr.splitlines() if line.startswith("CODE ")]
    assert len(codes) == len(sample)
    assert set(codes) == {"1", "2"}
    assert "\x1b" not in ran.stdout + ran.stderr


@pytest.mark.fault("the list of failed wakes is damaged", area="snapshot files", outcome="held")
@pytest.mark.parametrize(
    "data", [*RAW, b'{"in_a_row": 9, "last_at": 1e300, "last": "x"}', b'{"in_a_row": -1, "last_at": 0, "last": 7}']
)
def test_a_damaged_list_of_failures_is_ignored(kept: Path, data: bytes) -> None:
    """The snapshot is restored."""
    (kept / FAILURES).write_bytes(data)
    assert bad_reason(kept) is None
