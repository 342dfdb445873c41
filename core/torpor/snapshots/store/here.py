"""What this machine notes about a snapshot that was captured on another one: `here.json` in the snapshot's folder.

A snapshot names files by their paths at the capture. If they lie elsewhere here, a sandbox shows them at those paths. The list of
outside files has their times at the capture; here each has another. A pull reads them once and notes their times, so later
restores compare size and time only, as on the first machine.

A snapshot of this machine has no such file.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, NamedTuple, cast

from torpor.errors import DamagedSnapshotError
from torpor.snapshots.store.fields import NEW_ONE
from torpor.snapshots.store.manifest import HERE, DeploymentFacts
from torpor.snapshots.store.reading import read_part

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["AS_CAPTURED", "Here", "read_here"]

_MOST_BYTES = 64 << 20
_BEFORE, _AFTER = r"(?<![\w./-])", r"(?![\w.-])"
"""What is not beside a path in a text: characters of a longer path."""


class Here(NamedTuple):
    """Where a snapshot's files lie on this machine.

    Attributes:
        moved: folders that lie elsewhere here: path at the capture, path here.
        app_file: the app file here; empty if it lies where `moved` says.
        changed: by path at the capture, the time of change (or a folder's digest) of each file that was compared here.
    """

    moved: tuple[tuple[str, str], ...] = ()
    app_file: str = ""
    changed: Mapping[str, int | str] = {}

    def path(self, captured: str) -> str:
        """The path here of a file of the capture."""
        for then, now in self.moved:
            if captured == then or captured.startswith(f"{then}/"):
                return now + captured[len(then) :]
        return captured

    def as_captured(self, facts: DeploymentFacts) -> DeploymentFacts:
        """The facts of a deployment here, with paths as at the capture, so that both can be compared."""
        if not self.moved:
            return facts
        return DeploymentFacts(
            torpor=facts.torpor,
            name=facts.name,
            port=facts.port,
            plugins={name: self._captured(text) for name, text in facts.plugins.items()},
            task=facts.task,
            engine=facts.engine,
            model=self._captured(facts.model),
            revision=facts.revision,
            argv=tuple(map(self._captured, facts.argv)),
            env={name: self._captured(text) for name, text in facts.env.items()},
        )

    def write(self, folder: Path) -> None:
        """Write it into a snapshot's folder, readable by its owner only, in one step."""
        unfinished = folder / f".{HERE}.{os.getpid()}.{os.urandom(4).hex()}"
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(self._asdict(), stream)
            unfinished.replace(folder / HERE)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def _captured(self, text: str) -> str:
        for then, now in self.moved:
            text = re.sub(f"{_BEFORE}{re.escape(now)}{_AFTER}", lambda _, then=then: then, text)  # type: ignore[misc]
        return text


AS_CAPTURED = Here()
"""Everything lies where it lay at the capture."""


def read_here(folder: Path) -> Here:
    """What is noted about a snapshot; `AS_CAPTURED` if it was captured here.

    Raises:
        DamagedSnapshotError: the note is damaged.
    """
    try:
        fields = read_part(folder, HERE, most=_MOST_BYTES)
    except FileNotFoundError:
        return AS_CAPTURED
    except OSError as error:
        raise DamagedSnapshotError(f"{folder / HERE} cannot be read ({error.strerror}); {NEW_ONE}") from error
    pairs = fields.items("moved")
    for pair in pairs:
        match pair:
            case [str(then), str(now)] if _is_folder(then) and _is_folder(now):
                pass
            case _:
                fields.refuse("moved", pair, "two absolute paths")
    app_file = fields.text("app_file")
    changed = fields.inner("changed")
    times = {name: changed.take(name) for name in changed.names()}
    for name, time in times.items():
        if type(time) not in (int, str):
            fields.refuse(name, time, "a time or a hash")
    fields.end()
    moved = tuple((then, now) for then, now in cast("list[list[str]]", pairs))
    return Here(moved=moved, app_file=app_file, changed=cast("dict[str, int | str]", times))


def _is_folder(path: str) -> bool:
    """Whether it is an absolute path in its shortest form, and not the root."""
    return path.startswith("/") and "\0" not in path and path == os.path.normpath(path) and len(path) > 1
