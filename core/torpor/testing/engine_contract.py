"""`EngineContract`: what a plugin that launches an engine has to keep, one test per rule."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from torpor.deployment import Model, plugin_name
from torpor.hookspecs import EnginePlugin
from torpor.recipe import IMAGE_ROOT, ImagePatch, Recipe
from torpor.tasks.routes import TASKS
from torpor.testing.contract import PluginContract
from torpor.testing.failing import broken
from torpor.testing.inspection import hook_options, implemented_hooks
from torpor.testing.live import OWN_ROUTES
from torpor.testing.live_rules import LiveRules
from torpor.values.adapters import Adapter
from torpor.values.sleep_parts import lost_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.deployment import Deployment

__all__ = ["EngineContract", "EngineRules"]

_ADAPTER = "/adapters/contract"
_FOREIGN_FLAG = ("--torpor-contract-probe", "1")


class EngineRules:
    """What an engine plugin declares; nothing is started."""

    engine_args_probe: ClassVar[tuple[str, ...]] = _FOREIGN_FLAG
    """Engine arguments of another plugin, which this one has to pass on; override them if the engine's must be real."""

    def test_launches(self, plugin: object) -> None:
        """The plugin implements launch, and answers what core and other plugins ask about its engine."""
        if "launch" not in implemented_hooks(plugin):
            broken(
                f"{type(plugin).__name__} does not implement launch.",
                rule="an engine plugin implements launch.",
                cure="implement it with @hookimpl, or use PluginContract for a plugin that goes beside an engine.",
            )
        if not isinstance(plugin, EnginePlugin):
            broken(
                f"{type(plugin).__name__} does not derive from torpor.EnginePlugin.",
                rule="a plugin that launches answers what core and other plugins ask about its engine.",
                cure="derive it from torpor.EnginePlugin, which has an answer for everything, and override what differs.",
            )

    def test_is_the_engine_of_its_deployment(self, plugin: object, deployment: Deployment) -> None:
        """The fixture `deployment` holds the plugin under test as its engine."""
        if deployment.engine != plugin:
            broken(
                f"The engine of the fixture `deployment` is {plugin_name(deployment.engine)!r}.",
                rule="`deployment` holds the plugin of the fixture `plugin` as its engine.",
                cure="take `plugin` as an argument of your `deployment` fixture, and list no other engine.",
            )

    def test_public_paths_are_exact(self, plugin: EnginePlugin) -> None:
        """The guard's allow-list is a list of whole paths."""
        for task in plugin.tasks:
            paths = plugin.public_routes(task)
            wrong = [path for path in paths if not _exact(path) or path in OWN_ROUTES]
            if not wrong and (paths or not plugin.guarded):
                continue
            broken(
                f"{type(plugin).__name__}.public_paths is {paths!r} for the task {task!r}{f': look at {wrong}' if wrong else ''}.",
                rule="public_paths lists what anyone may call, each a whole absolute path; /health and /ready are the guard's own.",
                cure='write e.g. ("/v1/chat/completions", "/v1/models"), without patterns, queries and final slashes.',
            )
        if not _exact(plugin.ready_path):
            broken(
                f"{type(plugin).__name__}.ready_path is {plugin.ready_path!r}.",
                rule="ready_path is an absolute path of the engine that answers 200 from the moment at which chats are served.",
                cure='write e.g. "/v1/models".',
            )

        if plugin.health_path and not _exact(plugin.health_path):
            broken(
                f"{type(plugin).__name__}.health_path is {plugin.health_path!r}.",
                rule="health_path is an absolute path, answered only while the part of the engine lives that works on requests.",
                cure='write e.g. "/server_info", and put it among the paths that the guard opens for the lifecycle key; or "".',
            )

    def test_tasks_are_known_and_asked_where_they_are_open(self, plugin: EnginePlugin) -> None:
        """Every task of the engine is one of Torpor's, and warm-up and canary ask it where clients do."""
        unknown = [task for task in plugin.tasks if task not in TASKS]
        if unknown or not plugin.tasks:
            broken(
                f"{type(plugin).__name__}.tasks is {plugin.tasks!r}.",
                rule="an engine plugin has at least one task, and each is one that a deployment can name.",
                cure=f"name tasks out of {', '.join(TASKS)}; the default is ('chat',).",
            )
        for task in plugin.tasks:
            path = plugin.task_route(task).path
            if plugin.guarded and path not in plugin.public_routes(task):
                broken(
                    f"{type(plugin).__name__} is asked for the task {task!r} at {path}, which is not among its public routes "
                    f"{plugin.public_routes(task)!r}.",
                    rule="what warm-up and canary ask is what clients may ask.",
                    cure="let public_routes(task) name that path, or task_route(task) another one.",
                )

    def test_sleep_is_declared_and_implemented(self, plugin: EnginePlugin) -> None:
        """Who says that the engine sleeps implements both hooks, and the other way round."""
        hooks = [hook for hook in ("pre_snapshot", "post_restore") if hook in implemented_hooks(plugin)]
        if len(hooks) != (2 if plugin.supports_sleep else 0):
            broken(
                f"{type(plugin).__name__}.supports_sleep is {plugin.supports_sleep}, and of pre_snapshot and post_restore it "
                f"implements {' and '.join(hooks) or 'neither'}.",
                rule="an engine that sleeps says so and implements both hooks; one that does not, neither.",
                cure="set supports_sleep: ClassVar[bool] = True and implement both, or drop them.",
            )

    def test_a_sleep_loses_nothing(self, plugin: EnginePlugin, deployment: Deployment) -> None:
        """An engine that sleeps says what the sleep drops, and somebody restores all that an answer depends on."""
        parts = plugin.sleep_parts(deployment) if plugin.supports_sleep else ()
        name = type(plugin).__name__
        if plugin.supports_sleep and "weights" not in [part.what for part in parts]:
            broken(
                f"{name}.sleep_parts names {[part.what for part in parts]!r}.",
                rule="an engine that sleeps says what becomes of its weights, and of everything else that a sleep drops.",
                cure='return (SleepPart(what="weights", option="...", dropped=True, restored_by="..."), ...) from sleep_parts.',
            )
        for part in lost_parts(parts):
            broken(
                f"{name}.sleep_parts: the {part.what} are dropped ({part.option}), and restored_by is empty.",
                rule="whatever a sleep drops and an answer depends on is restored at the wake, or the option is refused.",
                cure="restore it in post_restore and say so, or refuse the option in __post_init__ or check.",
            )
        told = plugin.rank_sleep(deployment)
        dropped = tuple(part.what for part in parts if part.dropped)
        if told is not None and told.released != dropped:
            broken(
                f"{name}.rank_sleep says that a sleep frees {told.released!r}, and sleep_parts {dropped!r}.",
                rule="both say the same.",
                cure="compute RankSleep.released from sleep_parts.",
            )

    def test_sleeps_last_and_wakes_first(self, plugin: object) -> None:
        """Between the engine's sleep and its wake no other plugin talks to it."""
        wanted = {"pre_snapshot": "trylast", "post_restore": "tryfirst"}
        for hook, option in wanted.items():
            if hook in implemented_hooks(plugin) and not hook_options(plugin, hook).get(option):
                broken(
                    f"{type(plugin).__name__}.{hook} is not marked {option}.",
                    rule="the engine's own pre_snapshot runs last and its post_restore first: others need it awake.",
                    cure=f"write @hookimpl({option}=True) above {hook}.",
                )

    def test_answers_other_plugins(self, plugin: EnginePlugin, deployment: Deployment) -> None:
        """What other plugins ask the engine has answers of the right shape."""
        rule = "the questions of torpor.EnginePlugin are answered as its docstrings say."
        env = plugin.kernel_cache_env(deployment)
        stray = {name: path for name, path in env.items() if not path.startswith(f"{IMAGE_ROOT}/kernels")}
        if stray:
            broken(
                f"{type(plugin).__name__}.kernel_cache_env puts {stray!r} elsewhere.",
                rule=rule,
                cure=f"put every kernel cache under {IMAGE_ROOT}/kernels (torpor.recipe.IMAGE_ROOT).",
            )
        for name, argv in {
            "engine_argv": plugin.engine_argv(deployment, _recipe(())),
            "kernel_compile_argv": plugin.kernel_compile_argv(deployment),
        }.items():
            optional = argv is None and name == "kernel_compile_argv"
            if not optional and (
                not isinstance(argv, tuple) or not argv or not all(isinstance(word, str) for word in argv)
            ):
                broken(
                    f"{type(plugin).__name__}.{name} returned {argv!r}.",
                    rule=rule,
                    cure="return the command line as a tuple of strings, the program first.",
                )

    def test_loads_the_adapters_of_its_model(self, plugin: EnginePlugin, deployment: Deployment) -> None:
        """An engine that serves adapters gets the name and the folder of each."""
        if not plugin.serves_adapters:
            return
        model = Model(path="/models/contract", adapters={"contract-adapter": Adapter(path=_ADAPTER)})
        loading = replace(deployment, model=model)
        if any(finding.level == "error" and finding.what == "adapters" for finding in plugin.check(loading)):
            return  # its options cannot serve any
        argv = plugin.engine_argv(loading, _recipe(()))
        if not any(_ADAPTER in word for word in argv) or not any("contract-adapter" in word for word in argv):
            broken(
                f"{type(plugin).__name__}.engine_argv leaves the adapter 'contract-adapter' in {_ADAPTER} out: {argv!r}.",
                rule="an engine with serves_adapters loads each adapter of Model.adapters with the model, under its name.",
                cure="add torpor.engine_plugins.adapter_folders(deployment, recipe.env) to the command line, or leave "
                "serves_adapters False.",
            )

    def test_passes_other_plugins_arguments_on(self, plugin: EnginePlugin, deployment: Deployment) -> None:
        """Engine arguments that other plugins ask for reach the engine."""
        probe = self.engine_args_probe
        argv = plugin.engine_argv(deployment, _recipe(probe))
        if argv[-len(probe) :] != probe:
            broken(
                f"{type(plugin).__name__}.engine_argv leaves {probe!r} out: {argv!r}.",
                rule="engine_argv ends with recipe.engine_args, and launch starts what engine_argv returns.",
                cure="return (*your_own_arguments, *recipe.engine_args), and call self.engine_argv in launch.",
            )


class EngineContract(PluginContract, EngineRules, LiveRules):
    """Rules for a plugin that launches an engine, on top of those for every plugin.

    The live rules start the engine. They run when the class has a fixture `live_deployment` that returns a deployment
    which can start on this machine, and are skipped otherwise. All of them share one start.
    """


def _exact(path: str) -> bool:
    return path.startswith("/") and not path.endswith("/") and not set(path) & set("*?#{} ")


def _recipe(engine_args: tuple[str, ...]) -> Recipe:
    env: Mapping[str, str] = {}
    return Recipe(image=ImagePatch(env=env, engine_args=engine_args))
