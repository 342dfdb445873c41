"""What `torpor serve` serves: app files and `serve.toml`, every value checked when it is read.

apps = ["apps/*.py"]            # beside those of the command line; relative to this file

[server]
host = "127.0.0.1"
port = 8000
key_sha256 = ["..."]            # keys of the control paths, as `torpor key new` prints them

[budget]
memory = "64 GB"                # host memory of all replicas together
gpu_memory = "70 GB"            # of each GPU; or a list with one size for each

[deployment.NAME]
aliases = ["gpt-4"]
pinned = false
idle_s = 300                    # by default Scaling.scaledown_window_s of the app
keep = "on disk"                # or "asleep": the lowest state to which idle time lets it fall
snapshot = "snapshots/NAME"
capture = "when idle"           # or "never"
capture_after_s = 5
queue = 1000
deadline_s = 600
min_containers = 0              # these five by default as Scaling of the app says
max_containers = 1
buffer_containers = 0
target_concurrency = 10
max_concurrency = 100
memory = "10 GB"                # of one replica, if it is to be known before its first start
gpu_memory = "40 GB"            # on each of its GPUs
"""

from __future__ import annotations

import glob
import re
import tomllib
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from torpor.errors import ConfigurationError
from torpor.platforms.local.serve.sizes_text import bytes_of
from torpor.values.addresses import checked_host, checked_port
from torpor.values.bounds import LONGEST_S
from torpor.values.field_types import article, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torpor.serving.terms import Capture, Keep

__all__ = ["BudgetTable", "Configuration", "DeploymentTable", "ServerTable", "read_configuration"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 1 << 20
_MOST = 1_000_000
_MOST_REPLICAS = 64
Value = TypeVar("Value")
Default = TypeVar("Default")


@dataclass(frozen=True, kw_only=True)
class ServerTable:
    """The table `[server]`.

    Attributes:
        host: address of the gateway; None for 127.0.0.1.
        port: its port; None for 8000.
        key_sha256: SHA-256 digests of the keys of the control paths.
    """

    host: str | None = None
    port: int | None = None
    key_sha256: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BudgetTable:
    """The table `[budget]`.

    Attributes:
        memory: bytes of host memory; None for the default.
        gpu_memory: bytes on every GPU, or on each; None for all of their memory.
    """

    memory: int | None = None
    gpu_memory: int | tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class DeploymentTable:
    """One table `[deployment.NAME]`; None stands for the default. See `torpor.serving.terms.Terms`.

    Attributes:
        aliases: further names of the model.
        pinned: see `Terms`, as the others.
        idle_s: seconds.
        keep: the lowest state by idle time.
        snapshot: folder.
        capture: whether it is captured once idle.
        capture_after_s: seconds.
        queue: requests that may wait.
        deadline_s: seconds that they wait.
        min_containers: as on Modal.
        max_containers: as on Modal.
        buffer_containers: as on Modal.
        target_concurrency: as on Modal.
        max_concurrency: as on Modal.
        memory: bytes of host memory of one replica.
        gpu_memory: bytes on each of its GPUs.
    """

    aliases: tuple[str, ...] = ()
    pinned: bool = False
    idle_s: float | None = None
    keep: Keep | None = None
    snapshot: Path | None = None
    capture: Capture | None = None
    capture_after_s: float | None = None
    queue: int | None = None
    deadline_s: float | None = None
    min_containers: int | None = None
    max_containers: int | None = None
    buffer_containers: int | None = None
    target_concurrency: int | None = None
    max_concurrency: int | None = None
    memory: int | None = None
    gpu_memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The whole file.

    Attributes:
        file: where it was read from; None without a file.
        apps: app files, without those of the command line.
        server: the table `[server]`.
        budget: the table `[budget]`.
        deployments: the tables `[deployment.NAME]`, by name.
    """

    file: Path | None = None
    apps: tuple[Path, ...] = ()
    server: ServerTable = field(default_factory=ServerTable)
    budget: BudgetTable = field(default_factory=BudgetTable)
    deployments: Mapping[str, DeploymentTable] = field(default_factory=dict)


def read_configuration(file: Path | None) -> Configuration:
    """Read and check a configuration; without a file every value has its default.

    Raises:
        ConfigurationError: it cannot be read, or a key or value is wrong; the message names it.
    """
    if file is None:
        return Configuration()
    try:
        with file.open("rb") as stream:
            text = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"--config {file} cannot be read: {error.strerror}.") from error
    if len(text) > _MOST_BYTES:
        raise ConfigurationError(f"--config {file} has more than {_MOST_BYTES} bytes; it cannot be a configuration.")
    try:
        content = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{file} is no TOML: {error}.") from error
    return _read(file, content)


def _read(file: Path, content: Mapping[str, object]) -> Configuration:
    top = _Table(str(file), content, file.absolute().parent)
    configuration = Configuration(
        file=file,
        apps=tuple(path for pattern in top.take("apps", _texts, ()) for path in _matching(top, pattern)),
        server=_server(top.table("server")),
        budget=_budget(top.table("budget")),
        deployments={name: _deployment(table) for name, table in top.tables("deployment")},
    )
    top.end()
    return configuration


def _server(table: _Table) -> ServerTable:
    read = ServerTable(
        host=table.take("host", checked_host, None),
        port=table.take("port", _port, None),
        key_sha256=table.take("key_sha256", _digests, ()),
    )
    table.end()
    return read


def _budget(table: _Table) -> BudgetTable:
    read = BudgetTable(
        memory=table.take("memory", bytes_of, None), gpu_memory=table.take("gpu_memory", _gpu_sizes, None)
    )
    table.end()
    return read


def _deployment(table: _Table) -> DeploymentTable:
    read = DeploymentTable(
        aliases=table.take("aliases", _texts, ()),
        pinned=table.take("pinned", _flag, False),
        idle_s=table.take("idle_s", _seconds, None),
        keep=cast("Keep | None", table.take("keep", _choice("on disk", "asleep"), None)),
        snapshot=table.take("snapshot", table.path, None),
        capture=cast("Capture | None", table.take("capture", _choice("when idle", "never"), None)),
        capture_after_s=table.take("capture_after_s", _seconds, None),
        queue=table.take("queue", _whole(1, _MOST), None),
        deadline_s=table.take("deadline_s", _seconds, None),
        min_containers=table.take("min_containers", _whole(0, _MOST_REPLICAS), None),
        max_containers=table.take("max_containers", _whole(1, _MOST_REPLICAS), None),
        buffer_containers=table.take("buffer_containers", _whole(0, _MOST_REPLICAS), None),
        target_concurrency=table.take("target_concurrency", _whole(1, _MOST), None),
        max_concurrency=table.take("max_concurrency", _whole(1, _MOST), None),
        memory=table.take("memory", bytes_of, None),
        gpu_memory=table.take("gpu_memory", bytes_of, None),
    )
    table.end()
    return read


class _Table:
    """One table of the file: its keys are taken one by one, and what is left at the end is refused by name."""

    def __init__(self, where: str, content: object, folder: Path) -> None:
        if not isinstance(content, dict):
            raise ConfigurationError(f"{where} is {shown(content)}, {article(content)}; it has to be a table.")
        self._where = where
        self._left = dict(content)
        self._known: list[str] = []
        self.folder = folder

    def take(self, key: str, check: Callable[[str, object], Value], default: Default) -> Value | Default:
        """The checked value of a key, or the default."""
        self._known.append(key)
        if key not in self._left:
            return default
        return check(self._named(key), self._left.pop(key))

    def table(self, key: str) -> _Table:
        """The table of that name; an empty one if there is none."""
        self._known.append(key)
        return _Table(self._named(f"[{key}]"), self._left.pop(key, {}), self.folder)

    def tables(self, key: str) -> list[tuple[str, _Table]]:
        """The tables below a key, with their names."""
        self._known.append(key)
        found = self._left.pop(key, {})
        if not isinstance(found, dict):
            raise ConfigurationError(f"{self._named(key)} is {article(found)}; write [{key}.NAME].")
        return [(name, _Table(self._named(f"[{key}.{name}]"), one, self.folder)) for name, one in found.items()]

    def path(self, where: str, value: object) -> Path:
        """A path, relative to the file's folder."""
        return self.folder / Path(_text(where, value)).expanduser()

    def end(self) -> None:
        """Refuse keys that nobody took."""
        for key in self._left:
            near = get_close_matches(key, self._known, n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(
                f"{self._where} has the unknown key {shown(key)}; {meant}Known are: {', '.join(self._known)}."
            )

    def _named(self, key: str) -> str:
        return f"{self._where}: {key}" if self._where.endswith(".toml") else f"{self._where} {key}"


def _matching(table: _Table, pattern: str) -> Sequence[Path]:
    found = sorted(glob.glob(str(table.folder / Path(pattern).expanduser())))  # noqa: PTH207 - a pattern may be absolute
    if not found:
        raise ConfigurationError(f"apps has {shown(pattern)}, and no file has that name under {table.folder}.")
    return [Path(path) for path in found]


def _text(where: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\n" in value or "\0" in value:
        raise ConfigurationError(f"{where} is {shown(value)}; it has to be text on one line.")
    return value


def _texts(where: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigurationError(f"{where} is {shown(value)}; it has to be a list of texts.")
    return tuple(_text(where, item) for item in value)


def _digests(where: str, value: object) -> tuple[str, ...]:
    found = _texts(where, value)
    for digest in found:
        if not _DIGEST.fullmatch(digest):
            raise ConfigurationError(
                f"{where} holds a text of {len(digest)} characters; it has to be a SHA-256, 64 lower-case hex digits, as "
                "`torpor key new` prints it."
            )
    return found


def _flag(where: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{where} is {shown(value)}; it has to be true or false.")
    return value


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{where} is {shown(value)}; it has to be a number.")
    return value


def _seconds(where: str, value: object) -> float:
    seconds = _number(where, value)
    if not 0 < seconds <= LONGEST_S:
        raise ConfigurationError(f"{where} is {seconds} seconds; it has to be above 0, and at most {LONGEST_S:.0f}.")
    return float(seconds)


def _whole(least: int, most: int) -> Callable[[str, object], int]:
    def check(where: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigurationError(f"{where} is {shown(value)}; it has to be a whole number from {least} to {most}.")
        return value

    return check


def _port(where: str, value: object) -> int:
    return checked_port(where, _whole(1, 65535)(where, value))


def _choice(*allowed: str) -> Callable[[str, object], str]:
    def check(where: str, value: object) -> str:
        if value not in allowed:
            raise ConfigurationError(f"{where} is {shown(value)}; allowed: {', '.join(map(repr, allowed))}.")
        return str(value)

    return check


def _gpu_sizes(where: str, value: object) -> int | tuple[int, ...]:
    if isinstance(value, list):
        return tuple(bytes_of(where, item) for item in value)
    return bytes_of(where, value)
