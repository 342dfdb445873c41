"""What will be served: app files and configuration put together, and checked as a whole.

Everything that can be known before a start is refused here: two deployments of one name, two models of one name, a table for a
deployment that is not there, a budget that this machine does not have, a model that does not fit beside what is pinned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from torpor.app_file import App, load_app
from torpor.app_modules import folder_of
from torpor.errors import ConfigurationError, SnapshotError
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.requirements import check_gpu
from torpor.platforms.local.serve.configuration import DeploymentTable
from torpor.serving.fleet import Fleet
from torpor.serving.sizes import Budget, Room, Size, Taken
from torpor.serving.terms import Terms
from torpor.serving.values import ServedModel
from torpor.snapshots.gpu.driver import look
from torpor.snapshots.store.manifest import MANIFEST
from torpor.snapshots.store.paths import snapshot_folder
from torpor.snapshots.store.stored import inspect
from torpor.snapshots.targets import check_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torpor.deployment import Deployment
    from torpor.platforms.local.serve.configuration import BudgetTable, Configuration

__all__ = ["AppFiles", "Plan", "Planned", "check_pinned", "file_stamp", "plan_of"]

_MIB = 1 << 20
_MEMORY_SHARE = 0.9
Value = TypeVar("Value")
Stamps: TypeAlias = "dict[Path, tuple[int, int, int]]"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One deployment that will be served.

    Attributes:
        app: its app.
        terms: how long it stays, how many replicas.
        models: every name that requests may use for it.
        snapshot: the snapshot's folder; None if it cannot be captured here.
        has_snapshot: whether a snapshot lies there.
        estimate: size of a serving replica, if the snapshot's manifest says it.
        asleep: size of a sleeping replica, likewise.
        notes: what a user should know, one sentence each.
    """

    app: App
    terms: Terms
    models: tuple[ServedModel, ...]
    snapshot: Path | None
    has_snapshot: bool
    estimate: Size | None
    asleep: Size | None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the deployment."""
        return self.app.deployment.name

    def same_engine(self, other: Planned) -> bool:
        """Whether its replicas are as good for another plan."""
        return (self.app.deployment, self.snapshot) == (other.app.deployment, other.snapshot)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that will be served.

    Attributes:
        budget: the memory for all replicas together.
        deployments: in the order of their app files.
    """

    budget: Budget
    deployments: tuple[Planned, ...]

    def fleet(self) -> Fleet:
        """A fleet with these deployments; none of them has started."""
        fleet = Fleet(self.budget)
        for one in self.deployments:
            fleet.put(one.terms, has_snapshot=one.has_snapshot, size=one.estimate, asleep=one.asleep)
        return fleet


class AppFiles:
    """Imports app files, each again only once it or a module beside it has changed. So an untouched deployment stays the same."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Stamps, App]] = {}

    def load(self, file: str) -> App:
        """The app in a file.

        Raises:
            ConfigurationError: it cannot be imported.
        """
        known, folder = self._known.get(file), folder_of(Path(file))
        if known is not None and _as_stamped(known[0]):
            return known[1]
        if known is not None and not _as_stamped({one: known[0][one] for one in known[0] if one != Path(file)}):
            folder.forget()
        stamp = file_stamp(Path(file))  # of what is read: an edit meanwhile is seen next time
        app = load_app(file)
        self._known[file] = {Path(file): stamp, **{one: file_stamp(one) for one in folder.files()}}, app
        return app

    def files(self) -> list[Path]:
        """Every file that was read, each once."""
        return sorted({one for stamps, _ in self._known.values() for one in stamps})


def _as_stamped(stamps: Stamps) -> bool:
    """Whether no file has changed since."""
    return all(file_stamp(file) == stamp for file, stamp in stamps.items())


def file_stamp(file: Path) -> tuple[int, int, int]:
    """What changes when the file changes: inode, size, time of change; zeros if there is none."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_size, found.st_mtime_ns


def plan_of(files: Iterable[str], configuration: Configuration, apps: AppFiles | None = None) -> Plan:
    """Import the app files, and put them and the configuration together.

    Args:
        files: app files of the command line.
        configuration: from its file.
        apps: imports the files; those that it knows already only if they have changed.

    Raises:
        ConfigurationError: they do not fit together, or not on this machine; the message says what to change.
    """
    load = (apps or AppFiles()).load
    found = [load(file) for file in _each_once([*files, *map(str, configuration.apps)])]
    if not found:
        raise ConfigurationError(
            "There is nothing to serve: name app files, or list them as `apps` in the configuration."
        )
    _check_names(found, configuration)
    tables = configuration.deployments
    plan = Plan(
        budget=_budget(configuration.budget, needs_gpus=any(app.deployment.gpu for app in found)),
        deployments=tuple(_planned(app, tables.get(app.deployment.name)) for app in found),
    )
    _check_models(plan.deployments)
    check_pinned(plan.budget, [(one.terms, one.estimate) for one in plan.deployments])
    return plan


def check_pinned(budget: Budget, deployments: Sequence[tuple[Terms, Size | None]]) -> None:
    """Refuse what cannot fit, as far as sizes are known: what is pinned together, and everything else beside it.

    Args:
        budget: all there is.
        deployments: terms, and the size as far as it is known.

    Raises:
        ConfigurationError: names the deployment and its size.
    """
    room = Room(budget)
    for terms, estimate in deployments:
        for _ in range(max(1, terms.least) if terms.pinned else 0):
            size = terms.size or estimate
            if size is None:
                continue
            cards = room.place(size)
            if cards is None:
                raise ConfigurationError(_too_large(terms, size, budget, "beside the other pinned ones"))
            room.take(Taken.of(size, cards))
    for terms, estimate in deployments:
        size = terms.size or estimate
        if not terms.pinned and size is not None and room.place(size) is None:
            raise ConfigurationError(_too_large(terms, size, budget, "beside what is pinned"))
        if terms.gpu_count > len(budget.gpus):
            raise ConfigurationError(
                f"{terms.name!r} needs {terms.gpu_count} GPUs, and the budget has {len(budget.gpus)}."
            )


def _too_large(terms: Terms, size: Size, budget: Budget, beside: str) -> str:
    gpus = f", {', '.join(map(_gb, size.gpus))} of GPU memory" if size.gpus else ""
    has = f"{_gb(budget.host) if budget.host is not None else 'any'} of host memory"
    has += f", {', '.join(map(_gb, budget.gpus))} on its GPUs" if budget.gpus else ""
    return (
        f"{terms.name!r} takes {_gb(size.host)} of host memory{gpus}; that does not fit {beside}. The budget has {has}. Raise the "
        "budget, pin less, or serve it elsewhere."
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _or(value: Value | None, default: Value) -> Value:
    """The value, or the default if none was given."""
    return default if value is None else value


def _each_once(files: Sequence[str]) -> list[str]:
    seen: dict[Path, str] = {}
    for file in files:
        seen.setdefault(Path(file).absolute(), file)
    return list(seen.values())


def _check_names(apps: Sequence[App], configuration: Configuration) -> None:
    seen: dict[str, Path] = {}
    for app in apps:
        name = app.deployment.name
        if name in seen:
            raise ConfigurationError(
                f"{seen[name]} and {app.file} both define a deployment {name!r}; give one of them another name."
            )
        seen[name] = app.file
    for name in configuration.deployments:
        if name not in seen:
            raise ConfigurationError(
                f"{configuration.file} has a table [deployment.{name}], and no app file defines that deployment. There are: "
                f"{', '.join(seen)}."
            )


def _check_models(deployments: Sequence[Planned]) -> None:
    seen: dict[str, str] = {}
    for one in deployments:
        for model in one.models:
            if (other := seen.setdefault(model.name, one.name)) != one.name:
                raise ConfigurationError(
                    f"The deployments {other!r} and {one.name!r} both serve a model {model.name!r}; change Model.served_name, or "
                    "the aliases, of one of them."
                )


def _budget(table: BudgetTable, *, needs_gpus: bool) -> Budget:
    """What the user allows; by default 90 % of the host's memory, and every GPU's."""
    host = table.memory if table.memory is not None else int(_host_memory() * _MEMORY_SHARE)
    gpus = tuple(gpu.memory_mib * _MIB for gpu in look().gpus) if needs_gpus or table.gpu_memory is not None else ()
    wanted = table.gpu_memory
    if wanted is None:
        return Budget(host, gpus)
    sizes = wanted if isinstance(wanted, tuple) else (wanted,) * len(gpus)
    if len(sizes) != len(gpus):
        raise ConfigurationError(
            f"[budget] gpu_memory lists {len(sizes)} sizes, and this machine has {len(gpus)} GPUs."
        )
    for number, (size, most) in enumerate(zip(sizes, gpus, strict=True)):
        if size > most:
            raise ConfigurationError(f"[budget] gpu_memory is {_gb(size)} for GPU {number}, which has {_gb(most)}.")
    return Budget(host, sizes)


def _host_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _planned(app: App, table: DeploymentTable | None) -> Planned:
    table = table or DeploymentTable()
    deployment = app.deployment
    check_gpu(deployment)
    snapshot, notes = _snapshot(deployment, table)
    has, estimate, asleep, more = _known(snapshot)
    return Planned(
        app=app,
        terms=_terms(deployment, table, can_restore=snapshot is not None),
        models=_models(deployment, table),
        snapshot=snapshot,
        has_snapshot=has,
        estimate=estimate,
        asleep=asleep,
        notes=(*notes, *more),
    )


def _snapshot(deployment: Deployment, table: DeploymentTable) -> tuple[Path | None, tuple[str, ...]]:
    """The folder of its snapshot, or why there can be none."""
    if not deployment.snapshot:
        return None, ("Deployment.snapshot is False: it starts cold each time",)
    folder = (table.snapshot or snapshot_folder(deployment.name)).absolute()
    if reasons := CriuBackend().available(deployment):
        return None, (
            f"it cannot be captured here ({'; '.join(reasons)}): it starts cold each time, and can sleep in memory",
        )
    try:
        check_target(folder)
    except SnapshotError as error:
        raise ConfigurationError(f"The snapshot's folder of {deployment.name!r} cannot be used: {error}") from error
    return folder, ()


def _known(snapshot: Path | None) -> tuple[bool, Size | None, Size | None, tuple[str, ...]]:
    """Whether there is a snapshot; the sizes of its replica, serving and asleep; notes.

    The engine slept when it was captured. So the manifest has what a sleeping replica takes; a serving one takes more on a GPU.
    """
    if snapshot is None or not (snapshot / MANIFEST).is_file():
        return False, None, None, ()
    try:
        manifest = inspect(snapshot)
    except SnapshotError as error:
        return False, None, None, (f"its snapshot cannot be used, and a new one will be captured: {error}",)
    gpus = tuple(manifest.gpu.memory.values()) if manifest.gpu else ()
    size = Size(max(0, manifest.image_bytes - sum(gpus)) + manifest.side_file_bytes, gpus)
    return True, None if gpus else size, size, ()


def _terms(deployment: Deployment, table: DeploymentTable, *, can_restore: bool) -> Terms:
    scaling = deployment.scaling
    least = _or(table.min_containers, scaling.min_containers)
    most = _or(table.max_containers, scaling.max_containers or max(1, least))
    target = _or(table.target_concurrency, scaling.target_concurrency)
    requests = _or(table.max_concurrency, scaling.max_concurrency)
    for low, high, what in ((least, most, "containers"), (target, requests, "concurrency")):
        if low > high:
            words = ("min_", "max_") if what == "containers" else ("target_", "max_")
            raise ConfigurationError(
                f"[deployment.{deployment.name}] {words[0]}{what} is {low}, above {words[1]}{what} ({high})."
            )
    size = None
    if table.memory is not None or table.gpu_memory is not None:
        if deployment.gpu_count and table.gpu_memory is None:
            raise ConfigurationError(f"[deployment.{deployment.name}] has `memory` alone; give `gpu_memory` as well.")
        if table.gpu_memory is not None and not deployment.gpu_count:
            raise ConfigurationError(f"[deployment.{deployment.name}] has `gpu_memory`, and Deployment.gpu is None.")
        size = Size(table.memory or 0, (table.gpu_memory or 0,) * deployment.gpu_count)
    base = Terms(name=deployment.name)
    return replace(
        base,
        idle_s=_or(table.idle_s, float(scaling.scaledown_window_s)),
        keep=_or(table.keep, "on disk" if can_restore else "asleep"),
        pinned=table.pinned,
        can_sleep=deployment.engine.supports_sleep,
        capture=_or(table.capture, "when idle") if can_restore else "never",
        capture_after_s=_or(table.capture_after_s, base.capture_after_s),
        queue=_or(table.queue, base.queue),
        deadline_s=_or(table.deadline_s, base.deadline_s),
        target=target,
        most_requests=requests,
        least=least,
        most=most,
        buffer=_or(table.buffer_containers, scaling.buffer_containers),
        gpu_count=deployment.gpu_count,
        size=size,
    )


def _models(deployment: Deployment, table: DeploymentTable) -> tuple[ServedModel, ...]:
    keys: object = getattr(deployment.engine, "api_key_sha256", ())
    digests = tuple(keys) if isinstance(keys, tuple) else ()
    names = [deployment.model.served_name, *table.aliases]
    model = ServedModel(
        name=names[0],
        deployment=deployment.name,
        key_sha256=digests,
        public_paths=deployment.engine.public_paths,
    )
    return tuple(replace(model, name=name) for name in dict.fromkeys(names))
