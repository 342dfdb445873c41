"""`Transformers`: the engine plugin."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torpor import (
    BuildPlan,
    ConfigurationError,
    Engine,
    EnginePlugin,
    Finding,
    ImagePatch,
    Preflight,
    check_types,
    hookimpl,
    override,
    start_engine,
)
from torpor.engine_plugins import SleepPart
from torpor.guard import GuardRules

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import httpx
    from torpor import Deployment, Recipe

__all__ = ["Transformers"]

ENGINE_VERSION = "5.19"
"""The lowest tested version of transformers."""


@dataclass(frozen=True, kw_only=True)
class Transformers(EnginePlugin):
    """Serves a causal language model with `transformers`, one request at a time. Asleep, it holds no weights in memory.

    It is for models that no other engine has, and for trials: a real engine answers many requests at once.

    Attributes:
        device: `cpu`, or `cuda` for one GPU.
        parallel: requests that the server reads at once; the model answers one after the other.
        threads: CPU threads; with 0, torch decides.
        image: registry reference of an image with Python, for platforms that build an image.
        python: interpreter with this package, torch and transformers; empty for the one that runs Torpor.
    """

    plugin_name: ClassVar[str] = "transformers"
    supports_sleep: ClassVar[bool] = True
    public_paths: ClassVar[tuple[str, ...]] = ("/v1/chat/completions", "/v1/models")
    ready_path: ClassVar[str] = "/v1/models"
    guarded: ClassVar[bool] = True

    device: str = "cpu"
    parallel: int = 4
    threads: int = 0
    image: str = "python:3.12-slim-bookworm"
    python: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        if self.device not in ("cpu", "cuda"):
            raise ConfigurationError(f"Transformers.device is {self.device!r}; allowed are 'cpu' and 'cuda'.")
        if self.parallel < 1 or self.threads < 0:
            raise ConfigurationError(
                f"Transformers: parallel is {self.parallel} (1 or more is allowed), threads {self.threads} (0 or more is allowed)."
            )

    @property
    @override
    def engine_version(self) -> str:
        return ENGINE_VERSION

    @property
    @override
    def engine_python(self) -> str:
        return self.python or sys.executable

    @override
    def engine_argv(self, deployment: Deployment, recipe: Recipe) -> tuple[str, ...]:
        model = deployment.model
        options = {
            "--model": model.source,
            "--served-name": model.served_name,
            "--host": deployment.host,
            "--port": deployment.port,
            "--device": self.device,
            "--parallel": self.parallel,
            "--threads": self.threads,
        }
        flags = [str(word) for option in options.items() for word in option]
        return (self.engine_python, "-m", "torpor_transformers.serve", *flags, *recipe.engine_args)

    @override
    def flag_reasons(self) -> Mapping[str, str]:
        return {
            "--model": "the deployment's model",
            "--served-name": "the name that clients send",
            "--host": "the deployment's address; 0.0.0.0 in a Modal container",
            "--port": "the deployment's port",
            "--device": "option device",
            "--parallel": "option parallel",
            "--threads": "option threads",
        }

    @override
    def check(self, deployment: Deployment) -> Iterator[Finding]:
        if deployment.model.path is None:
            yield Finding(
                level="error",
                what="model",
                seen=f"Transformers serves a folder, and the model is {deployment.model.source!r}",
                cure="download it, and write Model(path='/models/name')",
            )
        if (deployment.gpu is None) != (self.device == "cpu") or deployment.gpu_count > 1:
            yield Finding(
                level="error",
                what="GPU",
                seen=f"Deployment.gpu is {deployment.gpu!r}, and Transformers.device is {self.device!r}, which takes "
                f"{'none' if self.device == 'cpu' else 'one GPU'}",
                cure="leave gpu out" if self.device == "cpu" else "name one GPU, e.g. gpu='L4'",
            )

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        packages = ("torch>=2.8", f"transformers>={ENGINE_VERSION}", "jinja2>=3.1", "uvicorn>=0.35")
        return ImagePatch(base=self.image, pip=packages, env={"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"})

    @hookimpl
    @override
    def compile_kernels(self, deployment: Deployment) -> BuildPlan | None:
        path = deployment.model.path
        if path is None:
            return None
        check = Preflight(
            name="model folder",
            argv=("test", "-s", f"{path}/config.json"),
            timeout_s=10,
            cure=f"Put the model's files into {path}, or change Model(path=...).",
        )
        return BuildPlan(preflight=(check,))

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
        rules = GuardRules(
            public=self.public_paths,
            sleep=("/sleep",),
            wake=("/wake",),
            max_in_flight=deployment.scaling.max_concurrency,
        )
        return start_engine(self.engine_argv(deployment, recipe), env=recipe.env, guard=rules)

    @hookimpl
    @override
    def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        for stream in (False, True):
            body = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 16, "stream": stream}
            client.post("/v1/chat/completions", json=body).raise_for_status()

    @override
    def sleep_parts(self, deployment: Deployment) -> tuple[SleepPart, ...]:
        checks = ("canary",) if deployment.canary_mismatch == "fail" else ()
        read = "the engine reads the model's files again"
        return (
            SleepPart(what="weights", option="always", dropped=True, restored_by=read, checked_by=checks),
            SleepPart(what="KV cache", option="always", dropped=True, needed=False),
        )

    @hookimpl(trylast=True)
    @override
    def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        client.post("/sleep").raise_for_status()

    @hookimpl(tryfirst=True)
    @override
    def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        client.post("/wake").raise_for_status()
