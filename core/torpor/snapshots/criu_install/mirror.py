"""Finds this machine's Debian mirror and fetches files from it, checked by hash or by apt's signatures."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from torpor.engine.child_process import run_child
from torpor.errors import ConfigurationError, SnapshotError
from torpor.network.proxies import is_loopback, past_proxies

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torpor.snapshots.criu_install.lock import Deb

__all__ = ["GoneError", "debian_root", "fetch_locked", "fetch_signed"]

_APT_HELPERS = (Path("/usr/lib/apt/apt-helper"),)
_SOURCES = Path("/etc/apt")
_KEYRINGS = tuple(Path(f"/usr/share/keyrings/debian-archive-keyring.{suffix}") for suffix in ("gpg", "pgp"))
_SCHEMES = ("http", "https")
_NOT_FOUND = 404
_READ_TIMEOUT_S = 30.0
_SOURCES_BYTES = 1 << 20
_INDEX_BYTES = 512 << 20
"""Largest file that apt may write: a suite's package list, unpacked, has about 60 MB."""
_ULIMIT_BLOCK = 512  # unit of `ulimit -f` in sh(1)
_ADDRESS = re.compile(
    r"https?://[^\s\[\]'\"<>\\^`{|}?#]+|https?://\[[0-9A-Fa-f:.]+\](:\d+)?(/[^\s\[\]'\"<>\\^`{|}?#]*)?"
)
_COPIED_SETTINGS = re.compile(r'Acquire::(?:(?:http|https|socks)(?:::[^\s"]+)?|ForceIPv[46]|Retries) "[^"\n]*";')
_CURE = "Check the network and apt's proxy settings, or name another mirror (--mirror)."


class GoneError(Exception):
    """A locked file is no longer on the mirror."""


def debian_root(given: str | None = None, *, sources: Path = _SOURCES) -> str:
    """Root of the Debian mirror to use, without a slash at its end: `given`, else the first of apt's sources.

    Args:
        given: an http(s) address.
        sources: folder of apt's settings.

    Raises:
        ConfigurationError: `given` is not an http(s) address.
        SnapshotError: the sources name no Debian mirror.
    """
    found = [given] if given else _from_files(sources)
    for address in found:
        if urlsplit(address).scheme in _SCHEMES and _ADDRESS.fullmatch(address):
            return address.rstrip("/")
    if given:
        raise ConfigurationError(
            f"--mirror is {given!r}; it has to be the http(s) address of a Debian mirror, e.g. http://deb.debian.org/debian."
        )
    raise SnapshotError(
        f"No Debian mirror is named in {sources} (sources.list, sources.list.d); name one with --mirror (it ends in /debian)."
    )


def fetch_locked(root: str, lock: Sequence[Deb], folder: Path, deadline: float) -> list[Path]:
    """Fetch files and check their sums. Uses apt's downloader where there is one, because it knows the machine's proxies.

    It ends at the deadline, no file grows beyond its size in the lock, and a file with a wrong sum is removed.

    Args:
        root: of the mirror.
        lock: the files to fetch.
        folder: where they go.
        deadline: on the monotonic clock.

    Raises:
        GoneError: the mirror does not have one of them.
        SnapshotError: no answer, not in time, or a wrong size or sum.
    """
    files = {package: folder / package.name for package in lock}
    try:
        _download(root, files, deadline)
        for package, file in files.items():
            _check(package, file, root)
    except BaseException:
        _remove(folder, files.values())
        raise
    return list(files.values())


def fetch_signed(root: str, suite: str, state: Path, deadline: float) -> list[Path]:
    """Let apt resolve CRIU and its dependencies and fetch them, verified by the archive's signatures.

    Args:
        root: of the mirror.
        suite: of Debian.
        state: folder for apt, made here; the machine's sources and package database are not used.
        deadline: on the monotonic clock.

    Raises:
        SnapshotError: no apt, no keyring of Debian's archive, or apt failed; the message has apt's own errors.
    """
    keyring = next((keyring for keyring in _KEYRINGS if keyring.exists()), None)
    if keyring is None or not shutil.which("apt-get"):
        raise SnapshotError(
            "apt and Debian's archive keyring are needed to check signatures (package debian-archive-keyring)"
        )
    for folder in ("lists/partial", "cache/archives/partial", "etc/preferences.d"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    sources = state / "etc" / "sources.list"
    sources.write_text(f"deb [arch=amd64 signed-by={keyring}] {root} {suite} main\n")
    config = state / "apt.conf"
    config.write_text(_own_settings(state, deadline))
    options = _options(state, sources)
    _run(["apt-get", *options, "-qq", "update"], deadline, most_bytes=_INDEX_BYTES, config=config)
    _check_signed(state)
    install = ["apt-get", *options, "-qq", "-y", "--download-only", "install", "criu"]
    _run(install, deadline, most_bytes=_INDEX_BYTES, config=config)
    return sorted((state / "cache" / "archives").glob("*.deb"))


def _options(state: Path, sources: Path) -> list[str]:
    """Options by which apt uses a state folder of its own and refuses unsigned archives."""
    settings = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc": state / "etc",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",
        # apt does not read the machine's settings here. These are its defaults, named so that nothing can change them.
        "APT::Get::AllowUnauthenticated": "false",
        "APT::Get::Force-Yes": "false",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::AllowWeakRepositories": "false",
        "Acquire::AllowDowngradeToInsecureRepositories": "false",
    }
    return [option for name, value in settings.items() for option in ("-o", f"{name}={value}")]


def _own_settings(state: Path, deadline: float) -> str:
    """A configuration in place of the machine's; of that it takes only proxies and other network settings.

    The machine's own may allow unsigned archives, name another verifier, or run commands.
    """
    lines = [f'Dir::Etc::parts "{state}/none";', f'Dir::Etc::main "{state}/none";']
    if shutil.which("apt-config"):
        lines += [
            line for line in _run(["apt-config", "dump"], deadline).splitlines() if _COPIED_SETTINGS.fullmatch(line)
        ]
    return "\n".join(lines) + "\n"


def _check_signed(state: Path) -> None:
    """Make sure that apt kept a signed release file; it keeps only one that it has verified."""
    lists = state / "lists"
    if not any(lists.glob("*_InRelease")) and not any(lists.glob("*_Release.gpg")):
        raise SnapshotError("the archive is not signed, and packages of an unsigned archive are never used")


def _from_files(sources: Path) -> list[str]:
    """Addresses of Debian's own archive in apt's settings, in the two formats of sources.list(5)."""
    files = [sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))]
    addresses: list[str] = []
    for file in files:
        if file.suffix in (".list", ".sources") and file.is_file():
            with file.open(errors="replace") as stream:
                text = re.sub(r"^\s*#.*$", "", stream.read(_SOURCES_BYTES), flags=re.MULTILINE)
            if file.suffix == ".list":
                addresses += re.findall(r"^\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)", text, re.MULTILINE)
            else:
                for value in re.findall(r"^URIs:((?:.*)(?:\n[ \t]+.*)*)", text, re.MULTILINE | re.IGNORECASE):
                    addresses += value.split()
    return [address for address in addresses if urlsplit(address).path.rstrip("/").endswith("/debian")]


def _download(root: str, files: dict[Deb, Path], deadline: float) -> None:
    helper = next((helper for helper in _APT_HELPERS if os.access(helper, os.X_OK)), None)
    addresses = [(f"{root}/{package.path}", str(file), package) for package, file in files.items()]
    host = urlsplit(root).hostname or ""
    direct = host if is_loopback(host) else ""
    if helper:
        argv = [str(helper), "-o", "APT::Sandbox::User=root"]
        argv += ["-o", f"Acquire::http::Timeout={_READ_TIMEOUT_S:.0f}", "-o", "Acquire::Retries=2", "download-file"]
        if direct:
            argv += [word for scheme in _SCHEMES for word in ("-o", f"Acquire::{scheme}::Proxy::{direct}=DIRECT")]
        for address, file, package in addresses:
            argv += [address, file, f"SHA256:{package.sha256}"]
    else:
        argv = [sys.executable, "-I", str(Path(__file__).with_name("mirror_download.py"))]
        for address, file, package in addresses:
            argv += [address, file, str(package.size)]
    try:
        most_bytes = max((package.size for package in files), default=0) + _ULIMIT_BLOCK
        _run(argv, deadline, most_bytes=most_bytes, direct=direct)
    except SnapshotError as error:
        for package, fetched in files.items():
            if fetched.is_file() and fetched.stat().st_size > package.size:
                raise SnapshotError(_other_than_locked(package, root, f"more than {package.size} bytes")) from error
        if gone := re.search(r"(\S+)\s+404\s", str(error)):
            raise GoneError(f"{gone.group(1)} is gone") from error
        raise


def _check(package: Deb, file: Path, root: str) -> None:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != package.sha256:
        raise SnapshotError(
            _other_than_locked(package, root, f"SHA-256 {digest.hexdigest()}, expected {package.sha256}")
        )


def _remove(folder: Path, files: Iterable[Path]) -> None:
    """Remove the files, and others that a downloader left: apt renames a file with a wrong sum to `.FAILED`."""
    names = tuple(file.name for file in files)
    for left in folder.iterdir():
        if left.name.startswith(names):
            left.unlink(missing_ok=True)


def _other_than_locked(package: Deb, root: str, seen: str) -> str:
    return (
        f"{package.name} from {root} is not what the lock says: {seen}. The mirror, or a machine on the way, changed it. Nothing "
        "was installed. Try another mirror (--mirror)."
    )


def _run(
    argv: Sequence[str], deadline: float, *, most_bytes: int = 0, config: Path | None = None, direct: str = ""
) -> str:
    """Run a program to its end and return its output; at the deadline, end it with everything that it started.

    Args:
        argv: the command line.
        deadline: on the monotonic clock.
        most_bytes: largest file that it may write; 0 for any size.
        config: a file that apt reads in place of the machine's settings.
        direct: a host on this machine, to be reached without a proxy.

    Raises:
        SnapshotError: it failed (the message has its own errors), or did not finish in time.
    """
    program = Path(argv[0]).name
    limited = (
        "/bin/sh",
        "-c",
        'ulimit -f "$1" && shift && exec "$@"',
        "sh",
        str(-(-most_bytes // _ULIMIT_BLOCK)),
        *argv,
    )
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    env |= past_proxies(env, *filter(None, [direct]))
    try:
        result = run_child(
            limited if most_bytes else argv,
            timeout_s=max(0.1, deadline - time.monotonic()),
            env={**env, **({"APT_CONFIG": str(config)} if config else {})},
        )
    except subprocess.TimeoutExpired:
        raise SnapshotError(f"{program} did not finish in time. {_CURE}") from None
    if result.returncode != 0:
        said = result.stderr.decode(errors="replace")
        errors = [line[3:] for line in said.splitlines() if line.startswith("E: ")] or [said.strip()]
        raise SnapshotError(f"{program} failed: {'; '.join(errors)[:2000]}. {_CURE}")
    return result.stdout.decode(errors="replace")
