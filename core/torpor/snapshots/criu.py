"""CRIU: finding it, its options, dump and restore inside a sandbox, and what its log says when it fails.

CRIU 4.2 is the least: 3.x fails on the vDSO of new kernels, 4.1 on every INET socket from kernel 6.16 on (CRIU issue
2705: SO_PASSCRED), though `criu check` calls itself content in both cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.snapshots.sandbox import Sandbox

__all__ = ["LEAST", "SIDE_FILES", "Criu", "Dumped", "Restored", "Tcp", "dump", "find", "restore"]

LEAST = (4, 2, 0)
"""The oldest CRIU that is used."""

SIDE_FILES = "side.tar"
"""Name of the archive of the private folders, in the folder of the images."""

Tcp = Literal["close", "established"]
"""What becomes of TCP connections inside the tree: closed (the default), or kept (tensor parallelism over gloo)."""


@dataclass(frozen=True, kw_only=True)
class Criu:
    """A usable CRIU.

    Attributes:
        argv: how it is started: the program, with its own loader where it lies in a private prefix.
        program: the file itself.
        version: major, minor, patch.
    """

    argv: tuple[str, ...]
    program: Path
    version: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Dumped:
    """What a dump gave.

    Attributes:
        criu_s: seconds that CRIU took.
        frozen_s: seconds for which the tree stood still (CRIU's own statistics, and the packing of the side files).
        side_files_s: seconds for packing the private folders.
        image_bytes: size of the images.
        side_file_bytes: size of the archive of the private folders.
    """

    criu_s: float
    frozen_s: float
    side_files_s: float
    image_bytes: int
    side_file_bytes: int


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a restore took, in seconds: the side files are laid before CRIU starts."""

    criu_s: float
    side_files_s: float


def find(prefix: Path | None = None) -> Criu:
    """The CRIU to use: TORPOR_CRIU_PREFIX, then `prefix` (where `torpor snapshot setup` put one), then PATH.

    Args:
        prefix: a private prefix made by `torpor.snapshots.criu_setup.install`.

    Raises:
        SnapshotError: none was found, or none that is new enough; each one seen is named with its version.
    """
    raise NotImplementedError


def dump(
    criu: Criu, sandbox: Sandbox, images: Path, *, timeout_s: float, leave_running: bool = False, tcp: Tcp = "close"
) -> Dumped:
    """Dump a sandbox's tree and its private folders.

    Args:
        criu: from `find`.
        sandbox: with a tree in it.
        images: an empty or missing folder; made 0700, its files 0600. CRIU's log is `dump.log` in it.
        timeout_s: seconds for CRIU; it is killed then.
        leave_running: let the tree run on; it is ended otherwise. The sandbox stays in both cases.
        tcp: what becomes of the tree's TCP connections.

    Raises:
        SnapshotError: with CRIU's own reason. The images are removed but for `dump.log`. When CRIU gave up by itself, the
            tree runs on as before; when it was killed in the middle (deadline, somebody's SIGKILL), the tree cannot be
            trusted and the sandbox is ended (`sandbox.alive` says which).
    """
    raise NotImplementedError


def restore(
    criu: Criu, sandbox: Sandbox, images: Path, *, work: Path, timeout_s: float, tcp: Tcp = "close"
) -> Restored:
    """Lay the side files and restore the tree into an empty sandbox; `sandbox.poll` and `wait` follow it from then on.

    Any number may run at once from the same images: nothing is written there.

    Args:
        criu: from `find`.
        sandbox: fresh, made with the same `mode`, `scratch` and `private` as the dumped one.
        images: what `dump` wrote.
        work: an existing private folder, one per replica; CRIU's log is `restore.log` in it.
        timeout_s: seconds for CRIU; it is killed then.
        tcp: as at the dump.

    Raises:
        SnapshotError: with CRIU's own reason. Nothing is left running: the sandbox is ended.
    """
    raise NotImplementedError
