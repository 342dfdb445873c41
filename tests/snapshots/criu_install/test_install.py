"""`torpor.snapshots.criu_install.install`: installs a private CRIU from a mirror that the tests serve."""

from __future__ import annotations

import hashlib
import http.server
import io
import lzma
import os
import platform
import re
import shutil
import stat
import subprocess
import tarfile
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from torpor import ConfigurationError, NoRoomError, SnapshotError
from torpor.snapshots.criu.program import LEAST, PREFIX_VARIABLE, find, new_enough
from torpor.snapshots.criu_install import mirror
from torpor.snapshots.criu_install.install import install
from torpor.snapshots.criu_install.lock import LOCK, Deb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the setup is for x86-64")

LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = '#!/bin/sh\n[ "$1" = --library-path ] && [ -f "$2/libdemo.so.1" ] && exec sh "$3" "$4"\n'
"""Stands in for ld.so: demands the library path and runs the program."""


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix is the test's own."""
    monkeypatch.delenv(PREFIX_VARIABLE, raising=False)


class Mirror:
    """A Debian mirror on loopback.

    Attributes:
        root: its address.
        lock: the files that it offers.
        asked: requested paths.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.delay_s = 0.0
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            @override
            def log_message(self, format: str, *args: object) -> None:
                pass

            @override
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                time.sleep(outer.delay_s)
                super().do_GET()

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.root = f"http://127.0.0.1:{self._server.server_address[1]}/debian"
        self.lock = (
            self.offer(
                "libdemo1", {f"{LIBRARIES}/libdemo.so.1.2": "library"}, {f"{LIBRARIES}/libdemo.so.1": "libdemo.so.1.2"}
            ),
            self.offer(
                "libc6", {f"{LIBRARIES}/ld-linux-x86-64.so.2": LOADER, f"{LIBRARIES}/gconv/UTF-7.so": "not needed"}, {}
            ),
            self.criu("4.2.1"),
        )

    def criu(self, version: str) -> Deb:
        """A package of CRIU that only prints its version."""
        files = {"usr/sbin/criu": f"echo 'Version: {version}'\n", "usr/share/doc/criu/copyright": "not needed"}
        return self.offer("criu", files, {})

    def offer(self, name: str, files: dict[str, str], links: dict[str, str], *, suffix: str = ".xz") -> Deb:
        """Put a package into the pool."""
        package = deb(files, links, suffix=suffix)
        path = f"pool/main/{name[0]}/{name}/{name}_1%2b2_amd64.deb"
        file = self.folder / "debian" / path.replace("%2b", "+")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(package)
        return Deb(path, hashlib.sha256(package).hexdigest(), len(package))

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def deb(files: dict[str, str], links: dict[str, str], *, suffix: str = ".xz") -> bytes:
    """A package file (deb(5))."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mode = len(text), 0o4755
            tar.addfile(member, io.BytesIO(text.encode()))
        for name, target in links.items():
            member = tarfile.TarInfo(f"./{name}")
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    data = content.getvalue()
    if suffix == ".xz":
        data = lzma.compress(data)
    elif suffix == ".zst":
        data = subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout
    archive = b"!<arch>\n"
    for name, blob in (("debian-binary", b"2.0\n"), ("control.tar.xz", _EMPTY), (f"data.tar{suffix}", data)):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(blob):<10}`\n".encode()
        archive += header + blob + b"\n" * (len(blob) % 2)
    return archive


def _empty_tar() -> bytes:
    content = io.BytesIO()
    tarfile.open(fileobj=content, mode="w").close()
    return lzma.compress(content.getvalue())


_EMPTY = _empty_tar()


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Mirror]:
    """The mirror."""
    served = Mirror(tmp_path / "served")
    yield served
    served.close()


@pytest.fixture(params=["apt", "python"])
def downloader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Apt's own downloader, and Python's for a machine without apt."""
    chosen: str = request.param
    if chosen == "python":
        monkeypatch.setattr(mirror, "_APT_HELPERS", ())
    elif not any(helper.exists() for helper in mirror._APT_HELPERS):
        pytest.skip("there is no apt-helper on this machine")
    return chosen


def test_a_private_criu_is_made_from_the_locked_packages(debian: Mirror, downloader: str, tmp_path: Path) -> None:
    """It runs with its own loader, even after a move; only programs and libraries are unpacked."""
    prefix, steps = tmp_path / "cache" / "criu", list[str]()
    made = install(prefix, mirror=debian.root, lock=debian.lock, on_step=steps.append)
    assert made.version == "4.2.1"
    assert made.argv[:2] == (str(prefix / "root" / LIBRARIES / "ld-linux-x86-64.so.2"), "--library-path")
    assert find(prefix).argv == made.argv
    kept = sorted(str(file.relative_to(prefix / "root")) for file in prefix.glob("root/**/*") if not file.is_dir())
    names = ("ld-linux-x86-64.so.2", "libdemo.so.1", "libdemo.so.1.2")
    assert kept == [*(f"{LIBRARIES}/{name}" for name in names), "usr/sbin/criu"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in prefix.glob("root/**/*") if not file.is_dir()} == {0o755}
    moved = prefix.rename(tmp_path / "moved")
    said = subprocess.run([moved / "bin" / "criu", "--version"], capture_output=True, text=True, check=True).stdout
    assert said == "Version: 4.2.1\n"
    assert len(steps) == 3
    assert sorted(tmp_path.joinpath("cache").iterdir()) == [tmp_path / "cache" / ".criu.lock"]


def test_a_working_one_is_kept_and_a_broken_one_replaced(debian: Mirror, tmp_path: Path) -> None:
    """A working one is not fetched again, except with `again`."""
    prefix = tmp_path / "criu"
    install(prefix, mirror=debian.root, lock=debian.lock)
    fetched = len(debian.asked)
    install(prefix, mirror=debian.root, lock=debian.lock)
    assert len(debian.asked) == fetched
    install(prefix, mirror=debian.root, lock=debian.lock, again=True)
    assert len(debian.asked) == 2 * fetched
    (prefix / "root" / "usr" / "sbin" / "criu").unlink()
    assert install(prefix, mirror=debian.root, lock=debian.lock).version == "4.2.1"


@pytest.mark.slow
def test_two_setups_at_once_do_the_work_once(debian: Mirror, tmp_path: Path) -> None:
    """The second waits for the first and uses its result."""
    debian.delay_s = 0.1
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(install(tmp_path / "criu", mirror=debian.root, lock=debian.lock)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.argv for one in made}) == 1
    assert len(made) == 3
    assert len(debian.asked) == len(debian.lock)


def test_a_changed_package_is_refused_and_nothing_is_installed(debian: Mirror, downloader: str, tmp_path: Path) -> None:
    """A wrong hash is an error and not a reason to look elsewhere."""
    changed = Deb(debian.lock[0].path, "0" * 64, debian.lock[0].size)
    with pytest.raises(SnapshotError, match=r"is not what the lock says|Hash Sum mismatch"):
        install(tmp_path / "criu", mirror=debian.root, lock=(changed, *debian.lock[1:]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".criu.lock", "served"]


def test_an_old_prefix_survives_a_failed_setup(debian: Mirror, tmp_path: Path) -> None:
    """The setup replaces a prefix completely or not at all."""
    prefix = tmp_path / "criu"
    install(prefix, mirror=debian.root, lock=debian.lock)
    with pytest.raises(SnapshotError):
        install(prefix, mirror=debian.root, lock=(debian.lock[0]._replace(sha256="0" * 64),), again=True)
    assert find(prefix).version == "4.2.1"


@pytest.mark.slow
def test_apt_looks_for_a_signed_package_when_a_locked_one_has_left_the_mirror(
    debian: Mirror, downloader: str, tmp_path: Path
) -> None:
    """This mirror has no signed suites, so the error names each suite with apt's own message."""
    gone = Deb("pool/main/c/criu/criu_0_amd64.deb", "0" * 64, 1000)
    steps = list[str]()
    with pytest.raises(SnapshotError, match="left the mirror") as caught:
        install(tmp_path / "criu", mirror=debian.root, lock=(gone,), on_step=steps.append)
    assert "is gone; asking apt" in steps[1]
    for suite in ("forky", "sid"):
        assert f"suite {suite}:" in str(caught.value)
    if shutil.which("apt-get") and any(keyring.exists() for keyring in mirror._KEYRINGS):
        assert any("/dists/forky/" in path for path in debian.asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".criu.lock", "served"]


@pytest.mark.slow
def test_a_mirror_that_does_not_answer_is_an_error(downloader: str, tmp_path: Path) -> None:
    """The message says what to check."""
    lock = (Deb("pool/main/c/criu/criu_0_amd64.deb", "0" * 64, 1000),)
    with pytest.raises(SnapshotError, match=r"Check the network"):
        install(tmp_path / "criu", mirror="http://127.0.0.1:1/debian", lock=lock)


@pytest.mark.slow
def test_a_mirror_that_is_too_slow_is_an_error(debian: Mirror, downloader: str, tmp_path: Path) -> None:
    """Every wait has a deadline."""
    debian.delay_s = 1.0
    started = time.monotonic()
    with pytest.raises(SnapshotError, match="in time"):
        install(tmp_path / "criu", mirror=debian.root, lock=debian.lock, timeout_s=0.5)
    assert time.monotonic() - started < 10.0


def test_an_old_criu_is_refused(debian: Mirror, tmp_path: Path) -> None:
    """It runs once before it is installed."""
    old = debian.criu("4.1.1")
    with pytest.raises(SnapshotError, match=f"older than {re.escape(LEAST)}"):
        install(tmp_path / "criu", mirror=debian.root, lock=(*debian.lock[:2], old))
    assert not (tmp_path / "criu").exists()


def test_a_foreign_folder_is_not_replaced(debian: Mirror, tmp_path: Path) -> None:
    """Its files stay."""
    prefix = tmp_path / "home"
    prefix.mkdir()
    (prefix / "precious").touch()
    with pytest.raises(SnapshotError, match="did not make"):
        install(prefix, mirror=debian.root, lock=debian.lock)
    assert (prefix / "precious").exists()


@pytest.mark.fault("somebody keeps files of their own in CRIU's prefix", area="CRIU prefix", outcome="refused")
def test_a_prefix_with_foreign_files_is_not_replaced(debian: Mirror, tmp_path: Path) -> None:
    """The foreign files stay. Files that Torpor caches there about CRIU do not count as foreign."""
    prefix = tmp_path / "criu"
    install(prefix, mirror=debian.root, lock=debian.lock)
    for name in (
        "kernel-0123456789abcdef",
        "works-root-0123456789abcdef.json",
        ".works-root-0123456789abcdef.json.4711",
    ):
        (prefix / name).touch()
    install(prefix, mirror=debian.root, lock=debian.lock, again=True)
    (prefix / "precious").touch()
    with pytest.raises(SnapshotError, match="did not make"):
        install(prefix, mirror=debian.root, lock=debian.lock, again=True)
    assert (prefix / "precious").exists()
    assert find(prefix)


def test_the_variable_names_the_prefix(debian: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TORPOR_CRIU_PREFIX overrides the argument, as in `find`."""
    monkeypatch.setenv(PREFIX_VARIABLE, str(tmp_path / "chosen"))
    install(tmp_path / "other", mirror=debian.root, lock=debian.lock)
    assert (tmp_path / "chosen" / "bin" / "criu").exists()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("suffix", ["", ".xz", ".zst"])
def test_every_compression_of_packages_is_read(debian: Mirror, tmp_path: Path, suffix: str) -> None:
    """Debian uses xz, Ubuntu zstd. Python reads zstd from 3.14 on; before that dpkg-deb does."""
    if suffix == ".zst" and not (shutil.which("zstd") and shutil.which("dpkg-deb")):
        pytest.skip("zstd and dpkg-deb are needed")
    packed = debian.offer("criu", {"usr/sbin/criu": "echo 'Version: 4.2.1'\n"}, {}, suffix=suffix)
    assert install(tmp_path / "criu", mirror=debian.root, lock=(*debian.lock[:2], packed)).version == "4.2.1"


def test_a_compression_that_nothing_here_reads_is_an_error(
    debian: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says what to install."""
    if not shutil.which("zstd"):
        pytest.skip("zstd is needed")
    packed = debian.offer("criu", {"usr/sbin/criu": ""}, {}, suffix=".zst")
    monkeypatch.setattr(mirror, "_APT_HELPERS", ())
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(tarfile.TarFile, "OPEN_METH", {"tar": "taropen", "gz": "gzopen", "xz": "xzopen"})
    with pytest.raises(SnapshotError, match=r"data\.tar\.zst.*Install dpkg"):
        install(tmp_path / "criu", mirror=debian.root, lock=(packed,))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "sources.list",
            "# deb http://no.test/debian x main\ndeb http://a.test/debian/ trixie main\n",
            "http://a.test/debian",
        ),
        (
            "sources.list",
            "deb [arch=amd64 signed-by=/k] https://b.test/sub/debian sid main",
            "https://b.test/sub/debian",
        ),
        (
            "sources.list.d/debian.sources",
            "Types: deb\n# URIs: http://no.test/debian\nURIs: http://s.test/debian-security\n  http://c.test/debian\nSuites: x\n",
            "http://c.test/debian",
        ),
        (
            "sources.list.d/other.list",
            "deb http://ppa.test/apt x main\ndeb http://d.test/debian x main\n",
            "http://d.test/debian",
        ),
    ],
)
def test_the_mirror_is_the_one_that_the_machine_uses(tmp_path: Path, name: str, content: str, expected: str) -> None:
    """From apt's settings, in both formats; other archives are skipped."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    assert mirror.debian_root(sources=tmp_path) == expected


def test_without_a_mirror_one_has_to_be_named(tmp_path: Path) -> None:
    """As on a machine with another distribution."""
    (tmp_path / "sources.list").write_text("deb http://archive.test/ubuntu noble main\n")
    with pytest.raises(SnapshotError, match="--mirror"):
        mirror.debian_root(sources=tmp_path)
    assert mirror.debian_root("https://m.test/debian/", sources=tmp_path) == "https://m.test/debian"
    with pytest.raises(ConfigurationError, match="has to be the http"):
        mirror.debian_root("file:///debian")


def test_other_machines_get_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages are only for x86-64."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(SnapshotError, match=f"aarch64.*{PREFIX_VARIABLE}"):
        install(tmp_path / "criu")


def test_a_full_disk_is_seen_before_anything_is_fetched(debian: Mirror, small_disk: Path) -> None:
    """The message says how much is needed."""
    with pytest.raises(NoRoomError, match="MB free"):
        install(small_disk / "criu", mirror=debian.root, lock=LOCK)
    assert debian.asked == []


def test_the_lock_names_no_host_and_holds_each_package_once() -> None:
    """Paths below a mirror's root, with full sums."""
    assert len({package.path.split("_")[0] for package in LOCK}) == len(LOCK)
    for package in LOCK:
        assert package.path.startswith("pool/main/")
        assert package.path.endswith("_amd64.deb")
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.size > 0
    assert any(package.name.startswith("criu_4.2") for package in LOCK)


@pytest.mark.slow
def test_the_real_setup_works_from_this_machines_own_mirror(tmp_path: Path) -> None:
    """The locked packages, or the suite's signed ones when those have left the mirror."""
    if not os.environ.get("TORPOR_REQUIRE_CRIU"):
        pytest.skip("fetches 8 MB from the machine's package mirror: set TORPOR_REQUIRE_CRIU=1")
    made = install(tmp_path / "criu")
    assert new_enough(made.version)
