"""`LlamaCpp`: the engine plugin."""

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

__all__ = ["LlamaCpp"]

ENGINE_VERSION = "2026.10"
"""The lowest tested version of xllamacpp."""


@dataclass(frozen=True, kw_only=True)
class LlamaCpp(EnginePlugin):
    """Serves a GGUF file with llama.cpp on the CPU. Asleep, it holds neither weights nor KV cache in memory.

    Attributes:
        context_tokens: size of the KV cache in tokens; all running requests share it.
        parallel: requests that run at once; more requests wait.
        threads: CPU threads; with 0, llama.cpp uses one per core.
        image: registry reference of an image with Python, for platforms that build an image.
        python: interpreter with this package in it; empty for the one that runs Torpor.
    """

    plugin_name: ClassVar[str] = "llamacpp"
    supports_sleep: ClassVar[bool] = True
    public_paths: ClassVar[tuple[str, ...]] = ("/v1/chat/completions", "/v1/models")
    ready_path: ClassVar[str] = "/v1/models"
    guarded: ClassVar[bool] = True

    context_tokens: int = 4096
    parallel: int = 4
    threads: int = 0
    image: str = "python:3.12-slim-bookworm"
    python: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        if self.context_tokens < 1 or self.parallel < 1 or self.threads < 0:
            raise ConfigurationError(
                f"LlamaCpp: context_tokens is {self.context_tokens}, parallel {self.parallel} (1 or more is allowed), threads "
                f"{self.threads} (0 or more is allowed)."
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
            "--context-tokens": self.context_tokens,
            "--parallel": self.parallel,
            "--threads": self.threads,
        }
        flags = [str(word) for option in options.items() for word in option]
        return (self.engine_python, "-m", "torpor_llamacpp.serve", *flags, *recipe.engine_args)

    @override
    def flag_reasons(self) -> Mapping[str, str]:
        return {
            "--model": "the deployment's model",
            "--served-name": "the name that clients send",
            "--host": "the deployment's address; 0.0.0.0 in a Modal container",
            "--port": "the deployment's port",
            "--context-tokens": "option context_tokens",
            "--parallel": "option parallel",
            "--threads": "option threads",
        }

    @override
    def check(self, deployment: Deployment) -> Iterator[Finding]:
        if not (deployment.model.path or "").endswith(".gguf"):
            yield Finding(
                level="error",
                what="model",
                seen=f"LlamaCpp serves a GGUF file, and the model is {deployment.model.source!r}",
                cure="write Model(path='/models/chat.gguf')",
            )
        if deployment.gpu is not None:
            yield Finding(
                level="error",
                what="GPU",
                seen=f"Deployment.gpu is {deployment.gpu!r}, but LlamaCpp runs on the CPU, so you would pay for an idle GPU",
                cure="leave gpu out",
            )

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch(base=self.image, pip=("uvicorn>=0.35", f"xllamacpp>={ENGINE_VERSION},<2026.12"))

    @hookimpl
    @override
    def compile_kernels(self, deployment: Deployment) -> BuildPlan | None:
        path = deployment.model.path
        if path is None:
            return None
        check = Preflight(
            name="model file",
            argv=("test", "-s", path),
            timeout_s=10,
            cure=f"Create the GGUF file {path}, or change Model(path=...).",
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
