"""What a folder is, if it is not a snapshot of this user. Only a snapshot that Torpor wrote is ever replaced or removed."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import DamagedSnapshotError
from torpor.snapshots.store.fields import NEW_ONE, shown
from torpor.snapshots.store.manifest import FAILURES, HERE, IMAGES, LOGS, MANIFEST, MANIFEST_BYTES, OUTSIDE, PRIVATE
from torpor.snapshots.store.reading import check_owned, opened_folder, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["found_instead", "mounted_inside"]

_PARTS = {MANIFEST, PRIVATE, OUTSIDE, IMAGES, LOGS, FAILURES, HERE}
_SHOWN = 5
_LONGEST_PATH = 4096
_ESCAPED = re.compile(rb"\\([0-7]{3})")  # proc(5): blanks and the like in a mount point


def found_instead(folder: Path) -> str:
    """What a folder is, if not a snapshot that Torpor wrote for this user; empty for a snapshot of any format.

    Args:
        folder: without links.
    """
    try:
        check_owned(folder.lstat(), stat.S_IFDIR, closed=False)  # a snapshot that is open to others may be removed
        folder_fd = opened_folder(folder)
    except FileNotFoundError:
        return "there is nothing"
    except DamagedSnapshotError as error:
        return f"it {error}"
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"
    try:
        names = sorted(os.listdir(folder_fd))  # noqa: PTH208 - of a descriptor
        fields = read_json(folder, MANIFEST, folder_fd, most=MANIFEST_BYTES, closed=False)
        return (
            _other_kind(fields.content)
            or _other_images(folder_fd)
            or _others(fields.content, names)
            or _others_inside(fields.content, folder_fd)
            or mounted_inside(folder)
        )
    except FileNotFoundError:
        return f"there is no {MANIFEST} in it; it holds {_listed(names)}"
    except DamagedSnapshotError as error:
        return str(error).removesuffix(f"; {NEW_ONE}")
    finally:
        os.close(folder_fd)


def mounted_inside(folder: Path) -> str:
    """Whether a disk is mounted in a folder, in words: its files are not the snapshot's, but would be deleted with it."""
    begin = os.fsencode(folder) + b"/"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            place = _ESCAPED.sub(lambda code: bytes([int(code[1], 8)]), line.split(b" ")[4])
            if place.startswith(begin):
                return f"something is mounted in it, at {shown(os.fsdecode(place), _LONGEST_PATH)}; unmount it first"
    return ""


def _other_kind(content: Mapping[str, object]) -> str:
    """Whether the file is the manifest of something else."""
    schema, deployment = content.get("schema"), content.get("deployment")
    if type(schema) is int and isinstance(deployment, dict) and isinstance(deployment.get("torpor"), str):
        return ""
    return f"its {MANIFEST} is not that of a snapshot: it has the fields {_listed(sorted(content))}"


def _other_images(folder_fd: int) -> str:
    """What is wrong with the folder of images."""
    try:
        check_owned(os.stat(IMAGES, dir_fd=folder_fd, follow_symlinks=False), stat.S_IFDIR, closed=False)
    except FileNotFoundError:
        return f"there is no folder {IMAGES} in it"
    except DamagedSnapshotError as error:
        return f"its folder {IMAGES} {error}"
    return ""


def _others(content: Mapping[str, object], names: list[str]) -> str:
    """Files beside the parts of a snapshot."""
    listed = content.get("files")
    own = _PARTS | {str(path).partition("/")[0] for path in listed} if isinstance(listed, dict) else _PARTS
    others = [name for name in names if name not in own and not name.startswith((f".{FAILURES}.", f".{HERE}."))]
    return f"beside a snapshot it holds {_listed(others)}, which Torpor did not write" if others else ""


def _others_inside(content: Mapping[str, object], folder_fd: int) -> str:
    """Files in the folders of a snapshot that the manifest does not list; if it has no list, only folders count."""
    listed = content.get("files")
    for part in (IMAGES, LOGS):
        own = {str(path) for path in listed if str(path).startswith(f"{part}/")} if isinstance(listed, dict) else set()
        others = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            inner_fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
            try:
                with os.scandir(inner_fd) as entries:
                    for entry in entries:
                        path = f"{part}/{entry.name}"
                        if path not in own and (own or entry.is_dir(follow_symlinks=False)):
                            others.append(path)
            finally:
                os.close(inner_fd)
        if others:
            return f"beside the files of a snapshot it holds {_listed(sorted(others))}, which Torpor did not write"
    return ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(map(shown, names[:_SHOWN])) or "nothing") + more
