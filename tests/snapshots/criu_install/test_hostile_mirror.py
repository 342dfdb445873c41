"""`torpor.snapshots.criu_install`: mirrors and packages that are damaged or hostile."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import tarfile
import threading
import time
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from torpor import ConfigurationError, NoRoomError, SnapshotError
from torpor.snapshots.criu_install import mirror
from torpor.snapshots.criu_install.debs import unpack_programs
from torpor.snapshots.criu_install.lock import Deb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIBRARIES = "usr/lib/x86_64-linux-gnu"
CONTENT = b"x" * 1000
LOCKED = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Misbehaves as the path says."""

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        """Each name misbehaves in its own way."""
        with contextlib.suppress(OSError):
            getattr(self, self.path.rpartition("/")[2].replace("-", "_").removesuffix(".deb"))()

    def good(self) -> None:
        """The file of the lock."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def short(self) -> None:
        """Half of the file, with a matching length."""
        self.send_response(200)
        self.send_header("Content-Length", "500")
        self.end_headers()
        self.wfile.write(CONTENT[:500])

    def drip_body(self) -> None:
        """The body, byte by byte, slowly."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self._drip(b"x")

    def drip_head(self) -> None:
        """Headers, one by one, slowly."""
        self._drip(b"X-A: b\r\n", first=b"HTTP/1.1 200 OK\r\n")

    def drip_line(self) -> None:
        """One header, letter by letter, slowly."""
        self._drip(b"x", first=b"HTTP/1.1 200 OK\r\nX-A: ")

    def _drip(self, piece: bytes, first: bytes = b"") -> None:
        self.wfile.write(first)
        for _ in range(100):
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(0.1)

    def endless(self) -> None:
        """A body without end and without a length."""
        self.send_response(200)
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(b"x" * (1 << 20))

    def endless_head(self) -> None:
        """Headers without an end."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(100_000):
            self.wfile.write(b"X-A: " + b"b" * 1000 + b"\r\n")

    def to_file(self) -> None:
        """Redirects to a file of the machine."""
        self._to("file:///etc/passwd")

    def to_ftp(self) -> None:
        """Redirects to another scheme."""
        self._to("ftp://127.0.0.1/x")

    def to_other_host(self) -> None:
        """Redirects to another host."""
        self._to("http://localhost:1/good")

    def to_itself(self) -> None:
        """Redirects to itself."""
        self._to(self.path)

    def to_good(self) -> None:
        """Redirects to another path."""
        self._to("/pool/good.deb")

    def _to(self, address: str) -> None:
        self.send_response(302)
        self.send_header("Location", address)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The root of a server that misbehaves."""
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.daemon_threads = True
    thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{serving.server_address[1]}"
    serving.shutdown()
    serving.server_close()
    thread.join()


@pytest.fixture(params=["apt", "python"])
def downloader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Apt's own downloader, and Python's for a machine without apt."""
    chosen: str = request.param
    if chosen == "python":
        monkeypatch.setattr(mirror, "_APT_HELPERS", ())
    elif not any(helper.exists() for helper in mirror._APT_HELPERS):
        pytest.skip("there is no apt-helper on this machine")
    return chosen


def fetched(server: str, name: str, folder: Path, seconds: float) -> list[Path]:
    """Fetch the only file of a lock."""
    return mirror.fetch_locked(
        server, [Deb(f"pool/{name}.deb", LOCKED, len(CONTENT))], folder, time.monotonic() + seconds
    )


def test_a_mirror_that_behaves_gives_the_file(server: str, downloader: str, tmp_path: Path) -> None:
    """A redirect within the mirror is followed."""
    for name in ("good", "to-good"):
        (file,) = fetched(server, name, tmp_path, 10)
        assert file.read_bytes() == CONTENT
        file.unlink()


@pytest.mark.parametrize("host", ["127.0.0.9", "localhost"])
@pytest.mark.fault("the environment names a proxy, and the mirror is on this machine", area="mirror", outcome="held")
def test_a_mirror_on_this_machine_is_asked_past_every_proxy(
    host: str, downloader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every loopback address; no connection to the proxy is made."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with http.server.ThreadingHTTPServer((host, 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        (file,) = fetched(f"http://{host}:{serving.server_address[1]}", "good", tmp_path, 10)
        serving.shutdown()
        thread.join()
    assert file.read_bytes() == CONTENT


@pytest.mark.slow
@pytest.mark.fault("a mirror drips an answer past the deadline", area="mirror", outcome="refused")
@pytest.mark.parametrize("name", ["drip-body", "drip-head", "drip-line"])
def test_a_mirror_that_drips_is_ended_at_the_deadline(server: str, downloader: str, tmp_path: Path, name: str) -> None:
    """For the body, the headers and the letters of one header; no file stays."""
    began = time.monotonic()
    with pytest.raises(SnapshotError, match="did not finish in time"):
        fetched(server, name, tmp_path, 0.7)
    assert time.monotonic() - began < 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("a mirror sends more or fewer bytes than the lock says", area="mirror", outcome="refused")
@pytest.mark.parametrize("name", ["endless", "endless-head", "short"])
def test_a_mirror_that_sends_another_size_is_refused(server: str, downloader: str, tmp_path: Path, name: str) -> None:
    """Long before the disk is full; no file stays."""
    if (downloader, name) == ("apt", "endless-head"):
        pytest.skip("apt asks again and again until the deadline, with little memory")
    began = time.monotonic()
    with pytest.raises(SnapshotError) as caught:
        fetched(server, name, tmp_path, 20)
    assert "not done in time" not in str(caught.value)
    assert time.monotonic() - began < 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("a mirror redirects to a file, another scheme or another host", area="mirror", outcome="refused")
@pytest.mark.parametrize("name", ["to-file", "to-ftp", "to-other-host", "to-itself"])
def test_a_redirect_elsewhere_is_refused(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """The message has the address of the redirect."""
    monkeypatch.setattr(mirror, "_APT_HELPERS", ())
    with pytest.raises(SnapshotError, match=r"it redirects to|redirect|302"):
        fetched(server, name, tmp_path, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "address",
    [
        "http://m.test/debian [trusted=yes]",
        "http://m.test/debian\n deb x",
        "http://m.test/debian x main #",
        "http://",
        "ftp://a/debian",
    ],
)
@pytest.mark.fault("the mirror's address holds an option of apt's sources", area="mirror", outcome="refused")
def test_an_address_with_more_than_an_address_is_refused(address: str) -> None:
    """It would become a line in apt's sources."""
    with pytest.raises(ConfigurationError, match="has to be the http"):
        mirror.debian_root(address)


@pytest.mark.slow
@pytest.mark.fault("apt's configuration allows unsigned archives", area="mirror", outcome="refused")
def test_an_unsigned_archive_is_refused_whatever_apts_configuration_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete archive with correct sums and no signature, on a machine that accepts such archives."""
    if not (shutil.which("apt-get") and any(keyring.exists() for keyring in mirror._KEYRINGS)):
        pytest.skip("there is no apt with Debian's keyring on this machine")
    served = tmp_path / "debian"
    write_unsigned(served)
    careless = tmp_path / "apt.conf"
    careless.write_text(
        'APT::Get::AllowUnauthenticated "true";\nAcquire::AllowInsecureRepositories "true";\n'
        'Acquire::AllowWeakRepositories "true";\nAPT::Get::Force-Yes "true";\n'
        f'APT::Update::Pre-Invoke {{"touch {tmp_path}/invoked";}};\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(careless))
    with serving_folder(tmp_path) as root, pytest.raises(SnapshotError, match=r"not signed|[Uu]nauthenticated"):
        mirror.fetch_signed(f"{root}/debian", "forky", tmp_path / "state", time.monotonic() + 30)
    assert list(tmp_path.glob("state/**/*.deb")) == []
    assert not (tmp_path / "invoked").exists()


def write_unsigned(root: Path) -> None:
    """A Debian archive of one package and no signature."""
    control = "Package: criu\nVersion: 4.2.1-1\nArchitecture: amd64\nMaintainer: a <a@b.test>\nDescription: x\n"
    package = archive(tar_of([("./control", control.encode())]), tar_of([("./usr/sbin/criu", b"x")]))
    pool = root / "pool"
    pool.mkdir(parents=True)
    (pool / "criu.deb").write_bytes(package)
    index = root / "dists" / "forky" / "main" / "binary-amd64"
    index.mkdir(parents=True)
    entry = f"{control}Filename: pool/criu.deb\nSize: {len(package)}\nSHA256: {hashlib.sha256(package).hexdigest()}\n\n"
    (index / "Packages").write_text(entry)
    digest = hashlib.sha256(entry.encode()).hexdigest()
    date = time.strftime("%a, %d %b %Y %H:%M:%S UTC", time.gmtime())
    (root / "dists" / "forky" / "Release").write_text(
        f"Origin: Debian\nSuite: forky\nCodename: forky\nDate: {date}\nArchitectures: amd64\nComponents: main\n"
        f"SHA256:\n {digest} {len(entry)} main/binary-amd64/Packages\n"
    )


@contextlib.contextmanager
def serving_folder(folder: Path) -> Iterator[str]:
    """Serve a folder; its address."""

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        @override
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- packages ---------------------------------------------------------------------------------------------------------


def tar_of(files: list[tuple[str, bytes]]) -> bytes:
    """A tar file."""
    return members(*(member(name, content) for name, content in files))


def member(
    name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o755
) -> bytes:
    """One member, header and content."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(content), mode
    return info.tobuf(tarfile.GNU_FORMAT) + content + b"\0" * (-len(content) % 512)


def members(*parts: bytes) -> bytes:
    """A tar file of members."""
    return b"".join(parts) + b"\0" * 1024


def with_size(part: bytes, size: int) -> bytes:
    """The member with another size in its header, base 256 (GNU), and a correct checksum."""
    field = (b"\xff" if size < 0 else b"\x80") + struct.pack(">3xq", size)
    changed = bytearray(part[:124] + field + part[136:])
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


def archive(control: bytes, data: bytes, *, name: str = "data.tar.xz", size: str | None = None) -> bytes:
    """A package file."""
    blobs = {"debian-binary": b"2.0\n", "control.tar.xz": lzma.compress(control)}
    blobs[name] = lzma.compress(data) if name.endswith(".xz") else data
    made = b"!<arch>\n"
    for title, blob in blobs.items():
        told = size if size is not None and title == name else str(len(blob))
        made += f"{title:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{told:<10}`\n".encode() + blob + b"\n" * (len(blob) % 2)
    return made


def unpacked(tmp_path: Path, package: bytes) -> Path:
    """Unpack a package; the root."""
    file = tmp_path / "bad_1_amd64.deb"
    file.write_bytes(package)
    unpack_programs(file, tmp_path / "root" / "below")
    return tmp_path / "root" / "below"


IN = f"./{LIBRARIES}"

HOSTILE: dict[str, Callable[[], bytes]] = {
    "a link to /..": lambda: members(member(f"{IN}/a", kind=tarfile.SYMTYPE, link="x/..")),
    "a link to ..": lambda: members(member(f"{IN}/a", kind=tarfile.SYMTYPE, link="..")),
    "a link to .": lambda: members(member(f"{IN}/a", kind=tarfile.SYMTYPE, link=".")),
    "a link to nothing": lambda: members(member(f"{IN}/a", kind=tarfile.SYMTYPE, link="x/")),
    "a link to a name with a line break": lambda: members(member(f"{IN}/a", kind=tarfile.SYMTYPE, link="a\nb")),
    "a file below a link": lambda: members(
        member(f"{IN}/a", kind=tarfile.SYMTYPE, link="b"), member(f"{IN}/b/c", b"x"), member(f"{IN}/a/d", b"x")
    ),
    "a link to itself with a file below": lambda: members(
        member(f"{IN}/a", kind=tarfile.SYMTYPE, link="a"), member(f"{IN}/a/d", b"x")
    ),
    "a hard link": lambda: members(member(f"{IN}/a", b"x"), member(f"{IN}/b", kind=tarfile.LNKTYPE, link=f"{IN}/a")),
    "a device": lambda: members(member(f"{IN}/a", kind=tarfile.CHRTYPE)),
    "a FIFO": lambda: members(member(f"{IN}/a", kind=tarfile.FIFOTYPE)),
    "a file twice": lambda: members(member(f"{IN}/a", b"x"), member(f"{IN}/a", b"y")),
    "a file over a folder": lambda: members(member(f"{IN}/a/b", b"x"), member(f"{IN}/a", b"y")),
    "a folder over a file": lambda: members(member(f"{IN}/a", b"x"), member(f"{IN}/a/b", b"y")),
    "a name that climbs": lambda: members(member(f"{IN}/../../../../x", b"x")),
    "a name with a line break": lambda: members(member(f"{IN}/a\nb", b"x")),
    "a very long name": lambda: members(member(f"{IN}/{'a' * 300}", b"x")),
    "a negative size": lambda: members(with_size(member(f"{IN}/a", b"x"), -1024), member(f"{IN}/b", b"x")),
    "a huge size": lambda: members(with_size(member(f"{IN}/a", b"x"), 1 << 60)),
    "a negative size elsewhere": lambda: members(with_size(member("./usr/share/a", b"x"), -1024)),
    "a huge long name": lambda: members(with_size(member("././@LongLink", b"x", kind=b"L"), 1 << 40)),
    "a damaged header": lambda: members(member(f"{IN}/a", b"x"), b"\x01" * 512, member(f"{IN}/b", b"x")),
    "no end": lambda: member(f"{IN}/a", b"x"),
    "a member that ends early": lambda: member(f"{IN}/a", b"x" * 2000)[:1500],
    "no tar": lambda: b"hello" * 1000,
    "nothing": lambda: b"",
}


@pytest.mark.fault(
    "a Debian package holds a member that climbs out, never ends or is no file", area="packages", outcome="refused"
)
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_member_is_one_clear_error(tmp_path: Path, what: str) -> None:
    """It names the package; no file lands outside of the root, and no link leads out of it."""
    began = time.monotonic()
    with pytest.raises(SnapshotError, match=r"The package file bad_1_amd64\.deb is damaged"):
        unpacked(tmp_path, archive(b"", HOSTILE[what]()))
    assert time.monotonic() - began < 60
    assert {path.name for path in tmp_path.iterdir()} <= {"bad_1_amd64.deb", "root"}
    root = tmp_path / "root"
    for path in root.rglob("*"):
        assert not path.is_symlink() or path.readlink().name == str(path.readlink())
    assert all(path.is_relative_to(root / "below") for path in root.rglob("*") if path != root / "below")


def test_the_message_names_the_member(tmp_path: Path) -> None:
    """Its control characters are escaped."""
    with pytest.raises(SnapshotError, match=re.escape(f"member '{IN}/a\\nb'")):
        unpacked(tmp_path, archive(b"", members(member(f"{IN}/a\nb", b"x"))))


@pytest.mark.fault("a Debian package's own archive is damaged", area="packages", outcome="refused")
@pytest.mark.parametrize("size", ["-60", "-1", "+5", "0x10", "", "9999999999", "1_0", "abc", "60"])
def test_a_damaged_archive_header_is_one_clear_error(tmp_path: Path, size: str) -> None:
    """With a negative size reading would never end."""
    with pytest.raises(SnapshotError, match="is damaged"):
        unpacked(tmp_path, archive(b"", members(member(f"{IN}/a", b"x")), size=size))


def test_members_of_an_archive_without_data_come_to_an_end(tmp_path: Path) -> None:
    """A thousand empty members."""
    header = f"{'x':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{0:<10}`\n".encode()
    with pytest.raises(SnapshotError, match="is damaged"):
        unpacked(tmp_path, b"!<arch>\n" + header * 1000)


@pytest.mark.slow
@pytest.mark.fault("a Debian package unpacks to far more than its size", area="packages", outcome="refused")
@pytest.mark.parametrize("where", ["usr/share/doc/a", f"{LIBRARIES}/a"])
def test_a_package_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path: Path, where: str) -> None:
    """In needed and other members; memory and disk use stay small."""
    with pytest.raises(SnapshotError, match=r"unpacks to more than 16 MB"):
        unpacked(tmp_path, archive(b"", members(member(f"./{where}", bytes(17 << 20)))))


@pytest.mark.parametrize("cut", [10, 70, 100, 200, 300, 400])
def test_a_package_that_was_cut_off_is_an_error(tmp_path: Path, cut: int) -> None:
    """Wherever it is cut."""
    whole = archive(b"", members(member(f"{IN}/a", os.urandom(500))))
    with pytest.raises(SnapshotError, match="is damaged"):
        unpacked(tmp_path, whole[:cut])


def test_a_package_that_is_no_file_is_an_error(tmp_path: Path) -> None:
    """Opening a FIFO would wait."""
    os.mkfifo(tmp_path / "fifo.deb")
    with pytest.raises(SnapshotError, match="not a regular file"):
        unpack_programs(tmp_path / "fifo.deb", tmp_path / "root")


def test_a_full_disk_is_not_reported_as_a_damaged_package(tmp_path: Path, small_disk: Path) -> None:
    """Another mirror would not help."""
    file = tmp_path / "large_1_amd64.deb"
    file.write_bytes(archive(b"", members(member(f"{IN}/a", bytes(6 << 20)))))
    with pytest.raises(NoRoomError, match=rf"no room in {small_disk} for the package file large_1_amd64\.deb"):
        unpack_programs(file, small_disk)


def test_special_bits_owners_and_absolute_links_are_dropped(tmp_path: Path) -> None:
    """A link points to a name in its own folder, wherever it pointed before."""
    root = unpacked(
        tmp_path,
        archive(
            b"",
            members(
                member(f"{IN}/", kind=tarfile.DIRTYPE, mode=0o7777),
                member(f"{IN}/a", b"x", mode=0o6755),
                member(f"{IN}/b", b"x", mode=0o4644),
                member(f"{IN}/c", kind=tarfile.SYMTYPE, link=f"/{LIBRARIES}/a"),
                member("./dev/null", kind=tarfile.CHRTYPE),
            ),
        ),
    )
    folder = root / LIBRARIES
    assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "b").stat().st_mode) == 0o644
    assert (folder / "c").readlink().name == "a" == str((folder / "c").readlink())
    assert not (root / "dev").exists()


def test_a_hostile_package_is_refused_with_dpkg_too(tmp_path: Path) -> None:
    """If Python cannot read zstd, dpkg-deb unpacks it, under the same rules."""
    if not (shutil.which("zstd") and shutil.which("dpkg-deb")):
        pytest.skip("zstd and dpkg-deb are needed")
    data = members(member(f"{IN}/a", kind=tarfile.SYMTYPE, link="x/.."))
    packed = subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout
    with pytest.raises(SnapshotError, match="which is not a file beside it"):
        unpacked(tmp_path, archive(tar_of([("./control", b"")]), packed, name="data.tar.zst"))


def test_every_byte_of_a_package_may_be_damaged(tmp_path: Path) -> None:
    """The package unpacks, or raises SnapshotError."""
    whole = bytearray(archive(b"", members(member(f"{IN}/a", b"hello")), name="data.tar"))
    file = tmp_path / "bad_1_amd64.deb"
    for at in range(0, len(whole), 29):
        for value in (0, 0x2D, 0xFF):
            changed = bytearray(whole)
            changed[at] = value
            file.write_bytes(changed)
            with contextlib.suppress(SnapshotError):
                unpack_programs(file, tmp_path / "root")


def test_a_plain_reader_accepts_what_the_helper_makes() -> None:
    """The archives of these tests are valid before they are damaged."""
    with tarfile.open(fileobj=io.BytesIO(members(member("a", b"x"))), mode="r:") as tar:
        assert tar.getnames() == ["a"]
