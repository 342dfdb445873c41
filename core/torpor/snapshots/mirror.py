"""A Debian mirror: which one this machine uses, and files from it, checked by hash or by apt's signatures."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from torpor.child_process import run_child
from torpor.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.snapshots.criu_lock import Deb

__all__ = ["GoneError", "debian_root", "fetch_locked", "fetch_signed"]

_APT_HELPERS = (Path("/usr/lib/apt/apt-helper"),)
_SOURCES = Path("/etc/apt")
_KEYRINGS = tuple(Path(f"/usr/share/keyrings/debian-archive-keyring.{suffix}") for suffix in ("gpg", "pgp"))
_SCHEMES = ("http", "https")
_NOT_FOUND = 404
_READ_BYTES = 1 << 16
_READ_TIMEOUT_S = 30.0
_CURE = "Check the network and apt's proxy settings, or name another mirror (--mirror)."


class GoneError(Exception):
    """A locked file is no longer on the mirror."""


def debian_root(given: str | None = None, *, sources: Path = _SOURCES) -> str:
    """Root of the Debian mirror to use, without a slash at its end: the given one, else the first of apt's sources.

    Args:
        given: an http(s) address.
        sources: folder of apt's settings.

    Raises:
        SnapshotError: the given one is no http(s) address, or the sources name no Debian mirror.
    """
    found = [given] if given else _from_files(sources)
    for address in found:
        if urlsplit(address).scheme in _SCHEMES:
            return address.rstrip("/")
    raise SnapshotError(
        f"{given!r} is no http(s) address of a mirror."
        if given
        else f"No Debian mirror is named in {sources} (sources.list, sources.list.d); name one with --mirror (it ends in /debian)."
    )


def fetch_locked(root: str, lock: Sequence[Deb], folder: Path, deadline: float) -> list[Path]:
    """Fetch files and check their sums; by apt's own downloader where there is one, as it knows the machine's proxies.

    Args:
        root: of the mirror.
        lock: what to fetch.
        folder: where to.
        deadline: on the monotonic clock.

    Raises:
        GoneError: the mirror does not have one of them.
        SnapshotError: no answer, not in time, or not what the lock says.
    """
    files = {package: folder / package.name for package in lock}
    helper = next((helper for helper in _APT_HELPERS if os.access(helper, os.X_OK)), None)
    if helper:
        _by_apt_helper(helper, root, files, deadline)
    else:
        for package, file in files.items():
            _by_urllib(f"{root}/{package.path}", file, deadline)
    for package, file in files.items():
        seen = hashlib.sha256(file.read_bytes()).hexdigest()
        if seen != package.sha256:
            raise SnapshotError(
                f"{package.name} from {root} is not what the lock says: SHA-256 {seen}, expected {package.sha256}. "
                "The mirror or something on the way changed it; nothing was installed. Try another mirror (--mirror)."
            )
    return list(files.values())


def fetch_signed(root: str, suite: str, state: Path, deadline: float) -> list[Path]:
    """Let apt resolve CRIU with everything under it and fetch it, checked by the archive's signatures.

    Args:
        root: of the mirror.
        suite: of Debian.
        state: a folder for apt, made here: neither the machine's sources nor its package database are used.
        deadline: on the monotonic clock.

    Raises:
        SnapshotError: no apt, no keyring of Debian's archive, or apt failed; its own words are in the message.
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
        "APT::Update::Post-Invoke-Success": "",
        "APT::Update::Post-Invoke": "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",
    }
    options = [option for name, value in settings.items() for option in ("-o", f"{name}={value}")]
    _run(["apt-get", *options, "-qq", "update"], deadline)
    _run(["apt-get", *options, "-qq", "-y", "--download-only", "install", "criu"], deadline)
    return sorted((state / "cache" / "archives").glob("*.deb"))


def _from_files(sources: Path) -> list[str]:
    """Addresses of Debian's own archive in apt's settings, in the two formats of sources.list(5)."""
    files = [sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))]
    addresses: list[str] = []
    for file in files:
        if file.suffix in (".list", ".sources") and file.is_file():
            text = re.sub(r"^\s*#.*$", "", file.read_text(errors="replace"), flags=re.MULTILINE)
            if file.suffix == ".list":
                addresses += re.findall(r"^\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)", text, re.MULTILINE)
            else:
                for value in re.findall(r"^URIs:((?:.*)(?:\n[ \t]+.*)*)", text, re.MULTILINE | re.IGNORECASE):
                    addresses += value.split()
    return [address for address in addresses if urlsplit(address).path.rstrip("/").endswith("/debian")]


def _by_apt_helper(helper: Path, root: str, files: dict[Deb, Path], deadline: float) -> None:
    argv = [str(helper), "-o", "APT::Sandbox::User=root"]
    argv += ["-o", f"Acquire::http::Timeout={_READ_TIMEOUT_S:.0f}", "-o", "Acquire::Retries=2", "download-file"]
    for package, file in files.items():
        argv += [f"{root}/{package.path}", str(file), f"SHA256:{package.sha256}"]
    try:
        _run(argv, deadline)
    except SnapshotError as error:
        if gone := re.search(r"(\S+)\s+404\s", str(error)):
            raise GoneError(f"{gone.group(1)} is gone") from error
        raise


def _by_urllib(address: str, file: Path, deadline: float) -> None:
    try:
        with (
            urllib.request.urlopen(address, timeout=_READ_TIMEOUT_S) as answer,  # noqa: S310 - the scheme was checked
            file.open("wb") as stream,
        ):
            while chunk := answer.read(_READ_BYTES):
                stream.write(chunk)
                if time.monotonic() > deadline:
                    raise TimeoutError("not done in time")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == _NOT_FOUND:
            raise GoneError(f"{address} is gone") from error
        raise SnapshotError(f"{address} answered {error.code} {error.reason}. {_CURE}") from error
    except OSError as error:  # URLError is one
        raise SnapshotError(f"{address} cannot be fetched: {getattr(error, 'reason', error)}. {_CURE}") from error


def _run(argv: Sequence[str], deadline: float) -> None:
    program = Path(argv[0]).name
    try:
        result = run_child(
            argv,
            timeout_s=max(0.1, deadline - time.monotonic()),
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except subprocess.TimeoutExpired:
        raise SnapshotError(f"{program} was not done in time. {_CURE}") from None
    if result.returncode != 0:
        said = result.stderr.decode(errors="replace")
        errors = [line[3:] for line in said.splitlines() if line.startswith("E: ")] or [said.strip()]
        raise SnapshotError(f"{program} failed: {'; '.join(errors)[:2000]}. {_CURE}")
