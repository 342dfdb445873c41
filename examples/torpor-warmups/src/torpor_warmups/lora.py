"""`LoraPreload`: loads LoRA adapters with the engine, and asks each of them before and after every sleep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torpor import (
    ConfigurationError,
    EngineRequestError,
    Finding,
    ImagePatch,
    Plugin,
    check_types,
    hookimpl,
    override,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx
    from torpor import Deployment, Engine

__all__ = ["LoraPreload"]

FLAGS = {
    "vllm": "--lora-modules",
    "standin_vllm": "--lora-modules",
    "sglang": "--lora-paths",
    "standin": "--lora-paths",
}
"""The flag that takes `name=path` pairs, by engine plugin (vLLM 0.33 `openai/cli_args.py`, SGLang 0.5.23 `server_args.py`)."""

_LEAST_DIFFERENCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class LoraPreload(Plugin):
    """Has the engine load LoRA adapters, warms each one up, and checks after every wake that each is still applied.

    An adapter is applied if it gives the first token another probability than the base model does. One that came back as nothing,
    or as another one's zeros, would answer like the base model, and no canary of the base model would notice.

    Attributes:
        adapters: pairs of the name that clients send and the adapter's folder.
        max_rank: the highest rank among them.
        must_differ: whether an adapter that answers like the base model fails the start or the wake.
    """

    plugin_name: ClassVar[str] = "lora_preload"

    adapters: tuple[tuple[str, str], ...]
    max_rank: int = 16
    must_differ: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        names = [name for name, _ in self.adapters]
        if not names or len(set(names)) < len(names):
            raise ConfigurationError(f"LoraPreload.adapters names {shown(names)}; give one adapter or more, each once.")
        for name, path in self.adapters:
            if not name or "=" in name or not name.isprintable() or " " in name or not path.startswith("/"):
                raise ConfigurationError(
                    f"LoraPreload.adapters holds {shown((name, path))}; a name has neither '=' nor a space, a path is absolute."
                )
        if self.max_rank < 1:
            raise ConfigurationError(f"LoraPreload.max_rank is {self.max_rank}; the lowest allowed value is 1.")

    @override
    def check(self, deployment: Deployment) -> Iterator[Finding]:
        if deployment.engine.plugin_name not in FLAGS:
            engines = ", ".join(FLAGS)
            seen = f"the engine {deployment.engine.plugin_name!r} is none of those whose flags LoraPreload knows ({engines})"
            yield Finding(level="error", what="adapters", seen=seen, cure="drop LoraPreload(), or use one of them")
        if deployment.model.served_name in dict(self.adapters):
            seen = f"an adapter has the name of the model, {deployment.model.served_name!r}"
            yield Finding(level="error", what="adapters", seen=seen, cure="give it another name")

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch | None:
        flag = FLAGS.get(deployment.engine.plugin_name)
        if flag is None:  # `check` refuses the deployment
            return None
        modules = tuple(f"{name}={path}" for name, path in self.adapters)
        return ImagePatch(
            engine_args=("--enable-lora", "--max-lora-rank", str(self.max_rank), flag, *modules),
            flag_reasons={
                "--enable-lora": "it serves adapters",
                "--max-lora-rank": "the highest rank among the adapters; buffers have this size",
                flag: "adapters that are loaded with the engine are in its snapshot",
            },
        )

    @hookimpl
    @override
    def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        self._ask_all(deployment, client)

    @hookimpl
    @override
    def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        self._ask_all(deployment, client)

    def _ask_all(self, deployment: Deployment, client: httpx.Client) -> None:
        base = _first_token(client, deployment.model.served_name) if self.must_differ else None
        for name, _ in self.adapters:
            told = _first_token(client, name)
            if base is not None and told[0] == base[0] and abs(told[1] - base[1]) < _LEAST_DIFFERENCE:
                raise EngineRequestError(
                    f"The adapter {name!r} answers like the base model (first token {told[0]!r}, log probability {told[1]:.6f}): "
                    "it is not applied. Look for it in the engine's log; LoraPreload(must_differ=False) serves it all the same."
                )


def _first_token(client: httpx.Client, model: str) -> tuple[str, float]:
    """A model's first token for a fixed question, and its log probability; ("", 0) if the engine does not tell."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
    }
    answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    told = (answer.json()["choices"][0].get("logprobs") or {}).get("content") or []
    return (str(told[0]["token"]), float(told[0]["logprob"])) if told else ("", 0.0)
