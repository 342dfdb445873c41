"""What will be served: app files and configuration put together, and checked as a whole.

Everything that can be known before a start is refused here: two deployments of one name, two models of one name, a table for a
deployment that is not there, a budget that this machine does not have, a model that does not fit beside what is pinned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torpor.errors import ConfigurationError, SnapshotError
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.requirements import check_gpu
from torpor.platforms.local.serve.app_files import AppFiles
from torpor.platforms.local.serve.budget import budget_of, check_pinned
from torpor.platforms.local.serve.configuration import DeploymentTable
from torpor.platforms.local.serve.kept_sizes import Sizes, kept_sizes
from torpor.serving.fleet import Fleet
from torpor.serving.sizes import Size
from torpor.serving.terms import Terms
from torpor.serving.values import ServedModel
from torpor.snapshots.store.manifest import MANIFEST
from torpor.snapshots.store.paths import snapshot_folder
from torpor.snapshots.store.stored import inspect
from torpor.snapshots.targets import check_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torpor.app_file import App
    from torpor.deployment import Deployment
    from torpor.platforms.local.serve.configuration import Configuration
    from torpor.serving.sizes import Budget

__all__ = ["Plan", "Planned", "plan_of"]

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One deployment that will be served.

    Attributes:
        app: its app.
        terms: how long it stays, how many replicas.
        models: every name that requests may use for it.
        snapshot: the snapshot's folder; None if it cannot be captured here.
        has_snapshot: whether a snapshot lies there.
        estimate: size of a serving replica: as an earlier server measured it, else as the snapshot's manifest says.
        asleep: size of a sleeping replica, likewise.
        kept: what an earlier server measured.
        notes: what a user should know, one sentence each.
    """

    app: App
    terms: Terms
    models: tuple[ServedModel, ...]
    snapshot: Path | None
    has_snapshot: bool
    estimate: Size | None
    asleep: Size | None
    kept: Sizes
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the deployment."""
        return self.app.deployment.name

    def put_in(self, fleet: Fleet, *, renewed: bool = False) -> None:
        """Add the deployment to a fleet, or change it there."""
        fleet.put(
            self.terms,
            has_snapshot=self.has_snapshot,
            size=self.estimate,
            asleep=self.asleep,
            measured=self.kept.serving,
            renewed=renewed,
        )

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
            one.put_in(fleet)
        return fleet


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
        budget=budget_of(configuration.budget, needs_gpus=any(app.deployment.gpu for app in found)),
        deployments=tuple(_planned(app, tables.get(app.deployment.name)) for app in found),
    )
    _check_models(plan.deployments)
    check_pinned(plan.budget, [(one.terms, one.estimate) for one in plan.deployments])
    return plan


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
                    f"The deployments {other!r} and {one.name!r} both serve a model {model.name!r}; change Model.served_name, "
                    "the adapter's name or the aliases of one of them."
                )


def _planned(app: App, table: DeploymentTable | None) -> Planned:
    table = table or DeploymentTable()
    deployment = app.deployment
    check_gpu(deployment)
    snapshot, notes = _snapshot(deployment, table)
    has, estimate, asleep, more = _known(snapshot)
    kept, problem = kept_sizes(deployment)
    return Planned(
        app=app,
        terms=_terms(deployment, table, can_restore=snapshot is not None),
        models=_models(deployment, table),
        snapshot=snapshot,
        has_snapshot=has,
        estimate=kept.serving or estimate,
        asleep=kept.asleep or asleep,
        kept=kept,
        notes=(*notes, *more, *([problem] if problem else [])),
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
    names = deployment.model.served_names
    model = ServedModel(
        name=names[0],
        deployment=deployment.name,
        key_sha256=digests,
        public_paths=deployment.public_paths,
    )
    aliases = [name for name in dict.fromkeys(table.aliases) if name not in names]
    return (
        *(replace(model, name=name) for name in names),
        *(replace(model, name=name, alias_of=names[0]) for name in aliases),
    )
