"""What to serve: `Deployment`, `Model` and `Scaling`, validated frozen values.

A deployment is the same value on the laptop, in the image build and in the container. It holds names, numbers and plugin
instances.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import isroutine
from types import ModuleType
from typing import TYPE_CHECKING, Literal, cast

from torpor.errors import ConfigurationError, PluginError
from torpor.hook_methods import check_hooks, marked_names
from torpor.plugin_order import ordered
from torpor.tasks.routes import TASKS, Task
from torpor.values.adapters import Adapter, Adapters, checked_adapters
from torpor.values.addresses import LOOPBACK, checked_host
from torpor.values.bounds import LONGEST_S
from torpor.values.checks import check_seconds
from torpor.values.drafts import Draft  # noqa: TC001 - check_types resolves it
from torpor.values.field_types import article, check_types, shown
from torpor.values.gpu_names import check_gpu_name
from torpor.values.model_source import check_line, check_source
from torpor.values.setting_names import declared_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.hookspecs import EnginePlugin, Plugin
    from torpor.values.modal_options import ModalOptions
    from torpor.values.ray_options import RayOptions

__all__ = ["Deployment", "Model", "Scaling", "plugin_name"]

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_GENERATING = ("chat", "generate")
_LOWEST_PORT, _MAX_PORT = 1024, 65535
_MOST_REQUESTS, _MOST_REPLICAS, _MOST_RESTARTS = 1_000_000, 100_000, 1_000_000


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which weights, exactly.

    Attributes:
        repo_id: `owner/name` on the Hugging Face hub; give this or `path`.
        revision: the commit of `repo_id`, 40 hex digits. A branch can change after the snapshot was taken.
        path: a local folder with the model, in place of `repo_id`.
        served_name: the name that clients send; the default is `repo_id`, or the folder's name.
        adapters: LoRA adapters by the name that clients send, `{"sql": Adapter(path="/models/sql")}`. They are fetched and checked
            like the weights, loaded with the engine, and asked after every wake.
        draft: what guesses ahead of the model (speculative decoding); None for nothing.
    """

    repo_id: str | None = None
    revision: str | None = None
    path: str | None = None
    served_name: str = ""
    adapters: Mapping[str, Adapter] = field(default_factory=Adapters)
    draft: Draft | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_source("Model", "a model", repo_id=self.repo_id, revision=self.revision, path=self.path)
        check_line("Model.served_name", self.served_name)
        if self.served_name and not self.served_name.strip():
            raise ConfigurationError(
                f"Model.served_name is {shown(self.served_name)}; give the name that clients send."
            )
        if not self.served_name:
            object.__setattr__(self, "served_name", self.repo_id or (self.path or "").rstrip("/").rsplit("/", 1)[-1])
            if not self.served_name:
                raise ConfigurationError(
                    f"Model.path is {shown(self.path)}, which has no last part to be the model's name: give Model.served_name, "
                    "the name that clients send."
                )
        _no_flag("Model.served_name", self.served_name, self.served_name.lstrip("-") or "a name")
        _utf_8("Model.served_name", self.served_name)
        object.__setattr__(self, "adapters", checked_adapters(self.adapters, served_name=self.served_name))

    @property
    def source(self) -> str:
        """What an engine takes as its model path: the repository or the folder."""
        return self.repo_id or self.path or ""

    @property
    def served_names(self) -> tuple[str, ...]:
        """Every name that clients may send: the model's own, then its adapters'."""
        return (self.served_name, *self.adapters)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How many requests a replica takes and how many replicas there are.

    Attributes:
        target_concurrency: requests in flight at which the platform adds a replica.
        max_concurrency: requests that one replica takes at most; also the engine's limit of running requests.
        min_containers: replicas kept up without traffic.
        max_containers: replicas at most; None leaves it to the platform.
        buffer_containers: idle replicas kept ahead of traffic.
        scaledown_window_s: seconds that an idle replica stays.
    """

    target_concurrency: int = 10
    max_concurrency: int = 100
    min_containers: int = 0
    max_containers: int | None = None
    buffer_containers: int = 0
    scaledown_window_s: int = 300

    def __post_init__(self) -> None:
        check_types(self)
        _between("Scaling.target_concurrency", self.target_concurrency, 1, _MOST_REQUESTS, "requests")
        _between("Scaling.max_concurrency", self.max_concurrency, 1, _MOST_REQUESTS, "requests")
        if self.max_concurrency < self.target_concurrency:
            raise ConfigurationError(
                f"Scaling.max_concurrency is {self.max_concurrency} requests, below target_concurrency "
                f"({self.target_concurrency}): raise the maximum or lower the target."
            )
        _between("Scaling.min_containers", self.min_containers, 0, _MOST_REPLICAS, "replicas")
        _between("Scaling.buffer_containers", self.buffer_containers, 0, _MOST_REPLICAS, "replicas")
        if self.max_containers is not None:
            lowest = max(1, self.min_containers)
            _between("Scaling.max_containers", self.max_containers, lowest, _MOST_REPLICAS, "replicas")
        _between("Scaling.scaledown_window_s", self.scaledown_window_s, 2, int(LONGEST_S), "seconds")


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One server: a model, an engine, the plugins around it, and the numbers that every platform needs.

    Attributes:
        name: lower-case letters, digits and dashes; the app's name on Modal, the folder's name elsewhere.
        model: which weights.
        plugins: plugin instances, in the order in which their hooks run; exactly one of them launches an engine. A plugin may say
            that it runs before or after another one (`Plugin.runs_before`); then it is put there.
        task: what is served: `chat`, `generate`, `embed`, `rerank`, `score`, `classify` or `transcribe`. It decides which public
            routes open, what warms up, and what the canary asks. The engine's version has to have it.
        gpu: the GPU's name as Modal has it, e.g. `H100!` (`!` = no silent upgrade) or `H100!:2`; `any`, or the name of a card
            that Modal does not have (`RTX4090`), for a machine of your own; None for a CPU.
        unlisted_gpu: take a name that Torpor does not know as a GPU's, for a machine of your own; the local platform looks for
            its words in the driver's names.
        port: where the engine listens, 1024 to 65535.
        host: the address that it listens on, on a machine of one's own: 127.0.0.1 is for this machine alone. In Modal's
            containers an engine always listens on 0.0.0.0, as Modal's proxy comes from outside.
        scaling: requests per replica, replicas.
        startup_timeout_s: seconds from launch until ready. Modal gets the sum of all stages (`torpor plan` shows it).
        warmup_timeout_s: seconds for all warm-up hooks; one kernel that is compiled there can take minutes (on an H100 the
            first sampled request took more than 118 s without a FlashInfer cache).
        drain_timeout_s: seconds that requests in flight get before a sleep, or the end of a command that serves, cuts them off.
        sleep_timeout_s: seconds for all `pre_snapshot` hooks.
        wake_timeout_s: seconds for all `post_restore` hooks and the canary after them.
        stop_timeout_s: seconds between SIGTERM and SIGKILL.
        health_timeout_s: seconds within which a busy engine has to answer its health path. After three failures in a row Torpor
            kills and replaces it. Not used on Modal.
        region: where to run, in the platform's words; None for anywhere.
        snapshot: whether the platform may snapshot the sleeping server.
        gpu_snapshot: whether GPU memory goes into the snapshot too; the default is "when there is a GPU".
        canary_mismatch: `fail` ends a replica that answers differently after a wake; `warn` only logs it.
        cold_start_on_failed_wake: whether a replica whose wake fails is started cold and serves; False ends it with an error.
        max_restarts: how often in a row an engine that ends while it serves is started again; 0 for never. A replica that has
            served for 5 minutes counts from 0 again. On Modal the container ends, and Modal starts another.
        secrets_in_snapshot: `refuse` takes no snapshot while an environment variable that looks like a secret (HF_TOKEN,
            *_API_KEY, ...) would be in it; `warn` only logs the names. A `standby` writes nothing down and is not
            asked.
        modal: options that Modal alone has; None for its defaults.
        ray: options that Ray alone has; None for its defaults.
    """

    name: str
    model: Model
    plugins: tuple[Plugin, ...]
    task: Task = "chat"
    gpu: str | None = None
    unlisted_gpu: bool = False
    port: int = 8000
    host: str = LOOPBACK
    scaling: Scaling = field(default_factory=Scaling)
    startup_timeout_s: float = 600.0
    warmup_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0
    sleep_timeout_s: float = 120.0
    wake_timeout_s: float = 120.0
    stop_timeout_s: float = 10.0
    health_timeout_s: float = 30.0
    region: str | None = None
    snapshot: bool = True
    gpu_snapshot: bool | None = None
    canary_mismatch: Literal["fail", "warn"] = "fail"
    cold_start_on_failed_wake: bool = True
    max_restarts: int = 5
    secrets_in_snapshot: Literal["refuse", "warn"] = "refuse"
    modal: ModalOptions | None = None
    ray: RayOptions | None = None

    def __post_init__(self) -> None:
        if isinstance(self.gpu, tuple | list):
            raise ConfigurationError(
                f"Deployment.gpu is {shown(self.gpu)}, {article(self.gpu)}; it has to be one name: a snapshot of one kind of GPU "
                "does not fit another one. For several GPUs of one kind write 'H100!:2'."
            )
        check_types(self)
        self._check_name_and_place()
        self._check_times()
        self._check_policies()
        self._check_gpu_snapshot()
        self._check_plugins()
        self._check_task()
        self._check_adapters()
        self._check_draft()
        self._check_modal()
        self._check_ray()

    def _check_name_and_place(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"Deployment.name is {shown(self.name)}; allowed are 1 to 64 lower-case letters, digits and inner dashes."
            )
        if self.gpu is not None:
            check_gpu_name(self.gpu, unlisted=self.unlisted_gpu)
        check_line("Deployment.region", self.region)
        _utf_8("Deployment.region", self.region)
        if self.region is not None and not self.region.strip():
            raise ConfigurationError(
                f"Deployment.region is {shown(self.region)}; name one, e.g. 'us-east', or leave it out."
            )
        if not _LOWEST_PORT <= self.port <= _MAX_PORT:
            raise ConfigurationError(f"Deployment.port is {self.port}; allowed are {_LOWEST_PORT} to {_MAX_PORT}.")
        object.__setattr__(self, "host", checked_host("Deployment.host", self.host))

    def _check_times(self) -> None:
        for item in fields(self):
            if item.name.endswith("_timeout_s"):
                check_seconds(f"Deployment.{item.name}", getattr(self, item.name))

    def _check_policies(self) -> None:
        if self.canary_mismatch not in ("fail", "warn"):
            raise ConfigurationError(
                f"Deployment.canary_mismatch is {shown(self.canary_mismatch)}; allowed: 'fail', 'warn'."
            )
        _between("Deployment.max_restarts", self.max_restarts, 0, _MOST_RESTARTS, "restarts")
        if self.secrets_in_snapshot not in ("refuse", "warn"):
            raise ConfigurationError(
                f"Deployment.secrets_in_snapshot is {shown(self.secrets_in_snapshot)}; allowed: 'refuse', 'warn'."
            )

    def _check_gpu_snapshot(self) -> None:
        """Fill in the default, or refuse a GPU snapshot without a GPU or without a snapshot."""
        if self.gpu_snapshot is None:
            object.__setattr__(self, "gpu_snapshot", self.snapshot and self.gpu is not None)
        elif self.gpu_snapshot and (self.gpu is None or not self.snapshot):
            raise ConfigurationError(
                "Deployment.gpu_snapshot needs a gpu and snapshot=True: GPU memory goes into the same snapshot."
            )

    def _check_modal(self) -> None:
        if self.modal is None:
            return
        from torpor.values.modal_options import ModalOptions  # noqa: PLC0415 - modal_options: 1.2 ms of a restore

        if not isinstance(self.modal, ModalOptions):
            raise ConfigurationError(
                f"Deployment.modal is {shown(self.modal)}; it has to be ModalOptions(...), or None."
            )
        self.modal.check_secrets(snapshot=self.snapshot, secrets_in_snapshot=self.secrets_in_snapshot)

    def _check_ray(self) -> None:
        if self.ray is None:
            return
        if not hasattr(self.ray, "check_gpu"):  # importing the class to ask costs every restore a millisecond
            raise ConfigurationError(f"Deployment.ray is {shown(self.ray)}; it has to be RayOptions(...), or None.")
        self.ray.check_gpu(self.gpu)

    def _check_plugins(self) -> None:
        seen: set[str] = set()
        for plugin in self.plugins:
            _check_plugin(plugin)
            name = plugin_name(plugin)
            if name in seen:
                raise ConfigurationError(f"Deployment.plugins holds {name!r} twice; remove one of the two.")
            seen.add(name)
        object.__setattr__(self, "plugins", ordered([(plugin_name(plugin), plugin) for plugin in self.plugins]))
        self._check_engine(", ".join(sorted(seen)) or "none given")

    def _check_engine(self, given: str) -> None:
        """Demand that exactly one plugin launches, and that it is an `EnginePlugin`."""
        from torpor.hookspecs import EnginePlugin  # noqa: PLC0415 - pluggy: 1.9 ms of `from torpor import Model`

        engines = [plugin for plugin in self.plugins if _launches(plugin)]
        if not engines:
            raise ConfigurationError(
                f"Deployment {self.name!r} has no engine: none of its plugins ({given}) "
                "implements launch. Add an engine's plugin; `torpor plugins` lists what is installed."
            )
        if len(engines) > 1:
            raise ConfigurationError(
                f"Deployment {self.name!r} has {len(engines)} engines ({', '.join(map(plugin_name, engines))}); exactly one plugin "
                "may implement launch. Remove the others."
            )
        if not isinstance(engines[0], EnginePlugin):
            raise PluginError(
                f"Plugin {plugin_name(engines[0])!r} implements launch, but its class does not derive from torpor.EnginePlugin, "
                "which answers what is asked about an engine. Derive it from EnginePlugin."
            )

    def plugin(self, name: str) -> Plugin | None:
        """The plugin of this name; None if the deployment has none."""
        return next((plugin for plugin in self.plugins if plugin_name(plugin) == name), None)

    def option(self, plugin: str, option: str) -> object:
        """An option's value of another plugin.

        Args:
            plugin: its name.
            option: the option's name.

        Raises:
            ConfigurationError: there is no such plugin or option; the message names those that there are.
        """
        found = self.plugin(plugin)
        if found is None:
            there = ", ".join(map(plugin_name, self.plugins))
            raise ConfigurationError(f"Deployment {self.name!r} has no plugin {plugin!r}; there are: {there}.")
        options: list[str] = [item.name for item in fields(found)] if is_dataclass(found) else []
        if option not in options:
            there = ", ".join(options) or "none"
            raise ConfigurationError(f"Plugin {plugin!r} has no option {option!r}; there are: {there}.")
        value: object = getattr(found, option)
        return value

    def _check_adapters(self) -> None:
        """Refuse adapters for an engine that loads none."""
        if self.model.adapters and not self.engine.serves_adapters:
            raise ConfigurationError(
                f"Model.adapters names {', '.join(self.model.adapters)}, and the engine {plugin_name(self.engine)} loads no "
                "adapters. Leave them out, or choose an engine that loads them, e.g. torpor_vllm.VLLM."
            )

    def _check_draft(self) -> None:
        """Refuse a draft that the engine cannot use, or that guesses for a task without an answer of several tokens."""
        draft, engine = self.model.draft, self.engine
        if draft is None:
            return
        if self.task not in _GENERATING:
            raise ConfigurationError(
                f"Model.draft guesses tokens ahead, and the task {self.task!r} generates none: leave it out."
            )
        if draft.method not in engine.draft_methods:
            names = ", ".join(map(repr, engine.draft_methods))
            has = f"{names}. Choose one of them, or leave the draft out." if names else "none. Leave the draft out."
            raise ConfigurationError(
                f"Model.draft has the method {draft.method!r}. {plugin_name(engine)} {engine.engine_version} with its options here "
                f"has {has}"
            )

    def _check_task(self) -> None:
        """Refuse a task that there is not, or that the engine lacks."""
        if self.task not in TASKS:
            raise ConfigurationError(f"Deployment.task is {shown(self.task)}; allowed: {', '.join(map(repr, TASKS))}.")
        engine = self.engine
        if self.task not in engine.tasks:
            version = f" {engine.engine_version}" if engine.engine_version else ""
            raise ConfigurationError(
                f"Deployment.task is {self.task!r}, which the engine {plugin_name(engine)}{version} does not have; it has "
                f"{', '.join(map(repr, engine.tasks))}. Choose one of these, or an engine or version that has {self.task!r}."
            )

    @property
    def public_paths(self) -> tuple[str, ...]:
        """The engine's HTTP paths that are open to clients for this task."""
        return self.engine.public_routes(self.task)

    @property
    def engine(self) -> EnginePlugin:
        """The plugin that launches the engine; core and other plugins ask it about that engine."""
        return cast("EnginePlugin", next(plugin for plugin in self.plugins if _launches(plugin)))

    @property
    def gpu_count(self) -> int:
        """How many GPUs one replica gets."""
        if self.gpu is None:
            return 0
        return int(self.gpu.partition(":")[2] or 1)


def plugin_name(plugin: object) -> str:
    """The name under which core registers a plugin: its `plugin_name`, else its class's name in lower case.

    It is a class attribute because a container has no package metadata and so no entry-point names.
    """
    name = getattr(plugin, "plugin_name", "")
    return name if isinstance(name, str) and name else type(plugin).__name__.lower()


def _launches(plugin: object) -> bool:
    """Whether `launch` carries the mark that `@hookimpl` leaves (pluggy: attribute `<project>_impl`)."""
    return getattr(getattr(plugin, "launch", None), "torpor_impl", None) is not None


def _check_plugin(plugin: object) -> None:
    """Refuse what is no plugin, and a plugin with hooks that would not run."""
    if isinstance(plugin, type):
        raise ConfigurationError(f"Deployment.plugins holds the class {plugin.__name__}; write {plugin.__name__}().")
    if isinstance(plugin, str):  # pluggy would register it, and never call it
        raise ConfigurationError(
            f"Deployment.plugins holds the text {shown(plugin)}, which has no hooks; import the plugin's class and "
            "put an instance of it there. `torpor plugins` lists where each class is (MODULE:CLASS)."
        )
    if isinstance(plugin, ModuleType) or isroutine(plugin):
        raise ConfigurationError(
            f"Deployment.plugins holds {article(plugin)}, {shown(plugin)}; put an instance of a plugin's class there."
        )
    check_hooks(plugin_name(plugin), plugin)
    declared_settings(plugin_name(plugin), plugin)
    if not marked_names(plugin) and not hasattr(plugin, "plugin_name"):
        raise ConfigurationError(
            f"Deployment.plugins holds {shown(plugin)}, {article(plugin)} without a hook; put instances of plugins' classes there, "
            "e.g. plugins=(HFCache(), SGLang())."
        )
    try:
        hash(plugin)
    except TypeError:
        raise ConfigurationError(f"Plugin {plugin_name(plugin)!r} cannot be hashed: {_loose(plugin)}") from None


def _loose(plugin: object) -> str:
    """Name the plugin's mutable options, and say what to do."""
    loose = (
        [item.name for item in fields(plugin) if _changes(getattr(plugin, item.name))] if is_dataclass(plugin) else []
    )
    if loose:
        return f"its option {', '.join(loose)} holds a mutable value. Write tuples instead of lists, sets and dicts."
    return "decorate its class with @dataclass(frozen=True, kw_only=True), and leave __eq__ and __hash__ to it."


def _changes(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return True
    return False


def _no_flag(name: str, value: str | None, better: str) -> None:
    if value is not None and value.startswith("-"):
        raise ConfigurationError(
            f"{name} is {shown(value)}; an engine reads an argument that begins with '-' as a flag. Write {shown(better)}."
        )


def _utf_8(name: str, value: str | None) -> None:
    """Refuse text that is no UTF-8. A path is not checked: Linux takes any bytes."""
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{name} is {shown(value)}; it is no valid UTF-8, so no request can carry it. Give a name in UTF-8."
        ) from error


def _between(name: str, value: int, lowest: int, highest: int, unit: str) -> None:
    if value < lowest:
        raise ConfigurationError(f"{name} is {value} {unit}; the lowest allowed value is {lowest}.")
    if value > highest:
        raise ConfigurationError(f"{name} is {value} {unit}; the highest allowed value is {highest}.")
