"""`StandIn` and `StandInVLLM`: the engine plugins that run the stand-in engine, one per dialect."""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from torpor._override import override
from torpor._version import __version__
from torpor.engine.start import start_engine
from torpor.engine_plugins.adapters import adapter_folders
from torpor.engine_plugins.feature_warmup import warm_up_features
from torpor.engine_plugins.features import FEATURES, Feature
from torpor.engine_plugins.kernel_caches import COMPILE_LINES
from torpor.engine_plugins.task_warmup import warm_up_deployment
from torpor.errors import ConfigurationError
from torpor.guard import GuardRules
from torpor.hookspecs import EnginePlugin, hookimpl
from torpor.recipe import IMAGE_ROOT, ImagePatch
from torpor.tasks.routes import ROUTES, TASKS, TaskRoute
from torpor.testing.faults import Fault
from torpor.testing.standin.app import KERNELS_VARIABLE
from torpor.testing.standin.vllm import DEV_MODE_VARIABLE, RENEW
from torpor.values.bounds import LONGEST_S
from torpor.values.drafts import DRAFT_METHODS, DraftMethod
from torpor.values.field_types import check_types, shown
from torpor.values.sleep_parts import SleepPart

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from torpor.deployment import Deployment
    from torpor.engine.handle import Engine
    from torpor.recipe import Recipe
    from torpor.tasks.routes import Task

__all__ = ["StandIn", "StandInVLLM"]

_TAGS = ("kv_cache", "weights")


@dataclass(frozen=True, kw_only=True)
class StandIn(EnginePlugin):
    """Runs the stand-in engine: a real process tree with real HTTP and no model, for tests of plugins and of core.

    This one speaks SGLang's dialect; `StandInVLLM` has the same options and speaks vLLM's.

    Attributes:
        fault: the fault to show (`torpor.testing.Fault`); None for none.
        fault_s: seconds, for faults that need a time (a slow start, an end while asleep).
        fault_once: a file; a fault at the wake happens only in the process that creates it.
        token_s: seconds per token of an answer.
        warmup_requests: number of chats in the warm-up.
        warmup_features: what the warm-up asks for beside (`torpor.engine_plugins.features`).
        journal: file that gets a JSON line for every request that reaches the engine; empty for none.
        python: interpreter with Torpor and uvicorn; the default is the current one.
        max_adapter_rank: highest rank among the adapters.
        extra_args: further engine flags, accepted and ignored.
    """

    plugin_name: ClassVar[str] = "standin"
    supports_sleep: ClassVar[bool] = True
    public_paths: ClassVar[tuple[str, ...]] = ("/v1/chat/completions", "/v1/models")
    ready_path: ClassVar[str] = "/v1/models"
    guarded: ClassVar[bool] = True
    compile_lines: ClassVar[tuple[str, ...]] = COMPILE_LINES
    serves_adapters: ClassVar[bool] = True
    adapter_flag: ClassVar[str] = "--lora-paths"
    dialect: ClassVar[str] = "sglang"
    own_routes: ClassVar[Mapping[Task, TaskRoute]] = MappingProxyType(
        {"score": TaskRoute("/v1/score", ("query", "items"), (("label_token_ids", (1, 2)),))}
    )
    """The tasks' routes that differ from `torpor.tasks.routes.ROUTES`."""
    steps: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (
        ("/pause_generation", "/release_memory_occupation"),
        ("/resume_memory_occupation", "/continue_generation"),
    )
    """The guard's sleep and wake steps, in order."""
    engine_env: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Variables without which the engine has no management routes."""
    asks_scheduler: ClassVar[str] = "/server_info"
    """The path that is answered from the scheduler's state."""
    keyed_paths: ClassVar[tuple[str, ...]] = ("/model_info", "/server_info", "/metrics", "/flush_cache")

    fault: Fault | None = None
    fault_s: float = 1.0
    fault_once: str = ""
    token_s: float = 0.0
    warmup_requests: int = 2
    warmup_features: tuple[Feature, ...] = ()
    journal: str = ""
    python: str = ""
    max_adapter_rank: int = 16
    extra_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        if self.fault is not None and self.fault not in tuple(Fault):
            raise ConfigurationError(f"StandIn.fault is {shown(self.fault)}; there are: {', '.join(Fault)}.")
        if not (0 <= self.fault_s <= LONGEST_S and 0 <= self.token_s <= LONGEST_S and self.warmup_requests >= 0):
            raise ConfigurationError(
                f"StandIn: fault_s is {self.fault_s} s, token_s {self.token_s} s, warmup_requests {self.warmup_requests}; "
                f"none of them may be below 0, nor a time above {LONGEST_S:.0f} s."
            )

        if unknown := set(self.warmup_features) - set(FEATURES):
            raise ConfigurationError(
                f"StandIn.warmup_features holds {shown(min(unknown))}; there are {', '.join(FEATURES)}."
            )

    @property
    @override
    def tasks(self) -> tuple[Task, ...]:
        return TASKS

    @property
    @override
    def draft_methods(self) -> tuple[DraftMethod, ...]:
        return DRAFT_METHODS

    @override
    def public_routes(self, task: Task) -> tuple[str, ...]:
        return self.public_paths if task == "chat" else (self.task_route(task).path, "/v1/models")

    @override
    def task_route(self, task: Task) -> TaskRoute:
        return self.own_routes.get(task, ROUTES[task])

    @property
    @override
    def most_adapter_rank(self) -> int | None:
        return self.max_adapter_rank

    @property
    @override
    def engine_version(self) -> str:
        return __version__

    @property
    @override
    def engine_python(self) -> str:
        return self.python or sys.executable

    @property
    @override
    def health_path(self) -> str:
        return self.asks_scheduler

    @override
    def sleep_parts(self, deployment: Deployment) -> tuple[SleepPart, ...]:
        checks = ("canary",) if deployment.canary_mismatch == "fail" else ()
        kept = SleepPart(
            what="weights", option="plugin", dropped=True, restored_by="the stand-in has them still", checked_by=checks
        )
        return kept, SleepPart(what="KV cache", option="plugin", dropped=True, needed=False)

    @override
    def kernel_cache_env(self, deployment: Deployment) -> dict[str, str]:
        compiles = self.fault is Fault.COMPILES_AT_FIRST_SCHEMA
        return {KERNELS_VARIABLE: f"{IMAGE_ROOT}/kernels"} if compiles else {}

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch | None:
        env = self.kernel_cache_env(deployment)
        return ImagePatch(env=env) if env else None

    @override
    def engine_argv(self, deployment: Deployment, recipe: Recipe) -> tuple[str, ...]:
        argv = [self.engine_python, "-m", "torpor.testing.standin", "--dialect", self.dialect]
        argv += [
            "--host",
            deployment.host,
            "--port",
            str(deployment.port),
            "--served-model-name",
            deployment.model.served_name,
            "--token-s",
            str(self.token_s),
        ]
        if deployment.model.draft is not None:
            argv += ["--draft-tokens", str(deployment.model.draft.tokens)]
        argv += ["--task", deployment.task] if deployment.task != "chat" else []
        if self.fault is not None:
            argv += ["--fault", str(self.fault), "--fault-s", str(self.fault_s)]
        if self.fault_once:
            argv += ["--fault-once", self.fault_once]
        if self.journal:
            argv += ["--journal", self.journal]
        if folders := adapter_folders(deployment, recipe.env):
            argv += [self.adapter_flag, *(f"{name}={folder}" for name, folder in folders.items())]
        return (*argv, *self.extra_args, *recipe.engine_args)

    @override
    def flag_reasons(self) -> Mapping[str, str]:
        return {
            "--dialect": "whose routes for sleep and wake it has, and whose habits",
            "--host": "the deployment's address; 0.0.0.0 in a container of Modal's",
            "--port": "the deployment's port",
            "--served-model-name": "the name that clients send",
            "--task": "what the deployment serves",
            self.adapter_flag: "the adapters, which are loaded with the model",
            "--draft-tokens": "Model.draft: how many tokens are guessed for each step",
            "--token-s": "option token_s: seconds for each token",
            "--fault": "option fault: what goes wrong",
            "--fault-s": "option fault_s: seconds, for the faults that take some",
            "--fault-once": "option fault_once: the file whose maker has the fault",
            "--journal": "option journal: where each request is written down",
        } | {word.partition("=")[0]: "given in extra_args" for word in self.extra_args if word.startswith("--")}

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
        sleep, wake = self.steps
        rules = GuardRules(
            public=deployment.public_paths,
            keyed=self.keyed_paths,
            sleep=sleep,
            wake=wake,
            max_in_flight=deployment.scaling.max_concurrency,
        )
        return start_engine(self.engine_argv(deployment, recipe), env={**recipe.env, **self.engine_env}, guard=rules)

    @hookimpl
    @override
    def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        if deployment.task != "chat":
            if self.warmup_requests:
                warm_up_deployment(client, deployment, prompt_words=(8,), burst=0, timeout_s=60.0)
            return
        for model in deployment.model.served_names:
            for number in range(self.warmup_requests):
                body = {
                    "model": model,
                    "messages": [{"role": "user", "content": f"Warm up, round {number}."}],
                    "max_tokens": 16,
                }
                client.post("/v1/chat/completions", json=body).raise_for_status()
        warm_up_features(client, deployment, self.warmup_features, regex={"regex": "[a-z]{3,8}"}, timeout_s=60.0)

    @hookimpl(trylast=True)
    @override
    def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        client.post("/pause_generation", json={}).raise_for_status()
        client.post("/release_memory_occupation", json={"tags": list(_TAGS)}).raise_for_status()

    @hookimpl(tryfirst=True)
    @override
    def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        # Once each, as for SGLang: a second resume ends the engine.
        client.post("/resume_memory_occupation", json={"tags": list(_TAGS)}).raise_for_status()
        client.post("/continue_generation", json={}).raise_for_status()


@dataclass(frozen=True, kw_only=True)
class StandInVLLM(StandIn):
    """The same engine in vLLM's dialect: a second sleep or wake is harmless, and chats sent while asleep wait.

    Attributes:
        fault: as for `StandIn`, like all the others.
    """

    plugin_name: ClassVar[str] = "standin_vllm"
    dialect: ClassVar[str] = "vllm"
    adapter_flag: ClassVar[str] = "--lora-modules"
    own_routes: ClassVar[Mapping[Task, TaskRoute]] = MappingProxyType({"classify": TaskRoute("/classify", ("input",))})
    steps: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("/sleep",), ("/wake_up", "/collective_rpc"))
    asks_scheduler: ClassVar[str] = "/is_sleeping"
    keyed_paths: ClassVar[tuple[str, ...]] = ("/is_sleeping", "/server_info", "/metrics")
    engine_env: ClassVar[Mapping[str, str]] = MappingProxyType({DEV_MODE_VARIABLE: "1"})

    @hookimpl(trylast=True)
    @override
    def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        client.post("/sleep", params={"level": 1, "mode": "wait"}).raise_for_status()

    @hookimpl(tryfirst=True)
    @override
    def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        client.post("/wake_up").raise_for_status()
        # Every replica of a snapshot has the same random state until it gets a new seed.
        seed = str(secrets.randbits(32))
        client.post("/collective_rpc", json={"method": RENEW, "args": [seed]}).raise_for_status()
