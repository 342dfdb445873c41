"""The CRIU program: where it is looked for, which one may run, and its version.

CRIU must be 4.2 or newer. 3.x fails on the vDSO of new kernels. 4.1 fails on every INET socket from kernel 6.16 on (CRIU issue
2705: SO_PASSCRED). `criu check` reports no problem in either case.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import CriuError
from torpor.snapshots.criu.trusted import distrust

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "LEAST",
    "PREFIX_VARIABLE",
    "VERSION",
    "Criu",
    "boot_id",
    "candidates",
    "find",
    "in_prefix",
    "new_enough",
    "resolved",
    "version_of",
]

LEAST = "4.2"
"""The oldest CRIU that Torpor uses."""

PREFIX_VARIABLE = "TORPOR_CRIU_PREFIX"
"""A prefix in which CRIU is looked for before every other place; `torpor snapshot setup` installs it there."""

VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?")
"""How a version of CRIU is written."""

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_VERSION_TIMEOUT_S = 10.0


class Criu(NamedTuple):
    """A usable CRIU.

    Attributes:
        argv: how to start it: the program, behind its own loader where it lies in a private prefix.
        program: the file itself.
        version: for instance `4.2.1`.
        cache: folder in which CRIU keeps what it finds out about the running kernel (saves 25 ms per run); None keeps nothing.
    """

    argv: tuple[str, ...]
    program: Path
    version: str
    cache: Path | None = None

    def identity(self) -> str:
        """A key that changes with this program, this user and each boot; 16 hex digits."""
        import hashlib  # noqa: PLC0415 - hashlib: 2.4 ms that a restore as root saves

        facts = self.program.stat()
        text = f"{boot_id()} {self.program} {self.version} {facts.st_size} {facts.st_mtime_ns} {os.geteuid()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def boot_id() -> str:
    """The kernel's id of this boot (random(4)); empty where /proc does not have it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def find(prefix: Path | None = None, *, cache: Path | None = None) -> Criu:
    """Find the CRIU to use: in TORPOR_CRIU_PREFIX, then in `prefix` (where `torpor snapshot setup` installs it), then on PATH.

    Args:
        prefix: a private prefix that `torpor.snapshots.criu_install.install.install` filled.
        cache: see `Criu.cache`; a private folder, made when missing.

    Raises:
        CriuError: there is none, or none that is new enough (the message lists each one with its version); or another user
            could change the one in a prefix.
    """
    seen = []
    for folder, argv in _found(prefix):
        if folder is not None and (why := _distrusted(folder, argv)):
            raise CriuError(
                f"The CRIU in {folder} is not run: {why}. Make it and the folders above it writable by their owner alone (chmod "
                f"go-w), or name a prefix in a folder of your own ({PREFIX_VARIABLE})."
            )
        program = Path(argv[-1])
        version = version_of(argv)
        if version and new_enough(version):
            return Criu(argv=argv, program=program, version=version, cache=cache)
        seen.append(f"{program} ({version or 'does not run'})")
    raise CriuError(
        f"CRIU {LEAST} or newer is needed; "
        + (f"found only {', '.join(seen)}" if seen else "none was found")
        + ". `torpor snapshot setup` installs one into a private folder, without root (x86-64); or install your "
        f"distribution's package if it is {LEAST} or newer."
    )


def in_prefix(prefix: Path) -> tuple[str, ...] | None:
    """How to start the CRIU of a prefix (a private one behind its own loader); None when the prefix has none."""
    prefix = resolved(prefix)
    root = prefix / "root"
    program = root / "usr/sbin/criu"
    if os.access(program, os.X_OK):
        for libraries in sorted(root.glob("usr/lib/*-linux-gnu")):
            for loader in sorted(libraries.glob("ld-linux*.so.*")):
                return str(loader), "--library-path", str(libraries), str(program)
    for program in (prefix / "sbin/criu", prefix / "bin/criu"):
        if os.access(program, os.X_OK):
            return (str(program),)
    return None


def candidates(prefix: Path | None = None) -> Iterator[tuple[str, ...]]:
    """How to start each CRIU that `find` would try, in its order; skips prefixes that another user could change."""
    for folder, argv in _found(prefix):
        if folder is None or _distrusted(folder, argv) is None:
            yield argv


def _found(prefix: Path | None) -> Iterator[tuple[Path | None, tuple[str, ...]]]:
    """Each CRIU with its prefix; the one on PATH belongs to the system and has None."""
    chosen = os.environ.get(PREFIX_VARIABLE)
    for folder in (Path(chosen) if chosen else None, prefix):
        if folder and (argv := in_prefix(folder)):
            yield folder, argv
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS))
    if program := shutil.which("criu", path=path):
        yield None, (program,)


def resolved(prefix: Path) -> Path:
    """A prefix as an absolute path without `..` and links, so that every check, write and run uses the same folder."""
    return Path(os.path.realpath(prefix))


def _distrusted(prefix: Path, argv: Sequence[str]) -> str | None:
    """Why the CRIU of a prefix, its loader or its libraries may not run; None when they may."""
    files = [word for word in argv if word.startswith("/")]
    try:
        files += [entry.path for folder in tuple(files) if os.path.isdir(folder) for entry in os.scandir(folder)]  # noqa: PTH112
    except OSError as error:
        return f"{prefix} cannot be read ({error.strerror})"
    place, passed = _without_dots(prefix)
    return distrust([*passed, place, *files], below=Path(place))


def _without_dots(prefix: Path) -> tuple[str, list[str]]:
    """A path without `..`, its other links kept; and the links before a `..` (the kernel goes up from their target)."""
    place = "/" if prefix.is_absolute() else os.getcwd()  # noqa: PTH109 - text, as in `distrust`
    passed: list[str] = []
    for part in prefix.parts:
        if part != "..":
            place = os.path.join(place, part)  # noqa: PTH118
            continue
        real = os.path.realpath(place)
        passed += [place] if real != place else []
        place = os.path.dirname(real)  # noqa: PTH120
    return place, passed


def version_of(argv: Sequence[str]) -> str | None:
    """Ask a CRIU for its version, e.g. `4.2.1`; None when it does not run (wrong architecture, missing libraries, ...)."""
    from torpor.engine.child_process import run_child  # noqa: PLC0415 - child_process: 4 ms that a restore saves

    try:
        said = run_child([*argv, "--version"], timeout_s=_VERSION_TIMEOUT_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = VERSION.match(said.partition(b"Version: ")[2].decode(errors="replace"))
    return match[0] if match else None


def new_enough(version: str) -> bool:
    """Whether Torpor uses a CRIU of this version."""
    from packaging.version import Version  # noqa: PLC0415 - packaging: 1.5 ms that a restore saves

    return Version(version) >= Version(LEAST)
