"""`SGLang`: the engine plugin."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from torpor import (
    IMAGE_ROOT,
    ConfigurationError,
    Engine,
    EngineRequestError,
    Finding,
    ImagePatch,
    hookimpl,
    override,
    shown,
)
from torpor.engine_plugins import (
    SNAPSHOT_ENV,
    ChatServer,
    ParallelFlags,
    RankSleep,
    adapter_env,
    call,
    gpus_needed,
    wants_nccl_suspended,
)
from torpor_sglang import logprobs, routes
from torpor_sglang.caches import cache_env
from torpor_sglang.drafts import DRAFT_REASONS, draft_methods_beside_adapters, draft_words, methods_of
from torpor_sglang.fields import FIELDS
from torpor_sglang.log_progress import PROGRESS_LINES
from torpor_sglang.places import FOLDER_VARIABLE, FREES_VARIABLE, PLACES_VARIABLE, SUMS_VARIABLE, places_text
from torpor_sglang.reserved import RESERVED
from torpor_sglang.several_gpus import TOO_OLD, TOO_OLD_REASON, WORDS, refused_word, suspend_env
from torpor_sglang.sleep_parts import sleep_parts
from torpor_sglang.versions import DEFAULT_VERSION, NCCL_VERSIONS, SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import httpx

    from torpor import Deployment, DraftMethod, Recipe, Task, TaskRoute
    from torpor.engine_plugins import OptionValue, Routes, SleepPart, TokenLogprobs, WeightsPlace
    from torpor_sglang.places import Place

__all__ = ["SGLang"]

TAGS = ("kv_cache", "weights")
_LABEL_TOKENS = (1, 2)
WeightsStore = Literal["saver", "file", "memory"]
_OK = 200
_IDLE_TIMEOUT_S = 10.0
_FAST_COMPILE_SINCE, _BEFORE_FAST_COMPILE = "0.5.16", ("0.5.6.post2",)
# Choices of --load-format (0.5.16 and 0.5.18 server_args.py, 0.5.23 arg_groups/choices.py), and the extras that they need;
# for fastsafetensors there is no extra.
_STREAMER, _FASTSAFETENSORS = ("runai-model-streamer>=0.15.7",), ("fastsafetensors>=0.3.3",)
_LOAD_FORMATS: dict[str, dict[str, tuple[str, ...]]] = {
    "0.5.6.post2": {},
    "0.5.16": {"runai_streamer": _STREAMER, "fastsafetensors": _FASTSAFETENSORS},
    "0.5.18": {"runai_streamer": _STREAMER, "fastsafetensors": _FASTSAFETENSORS},
    "0.5.23": {
        "runai_streamer": _STREAMER,
        "fastsafetensors": _FASTSAFETENSORS,
        "instanttensor": ("instanttensor>=0.1.9",),
    },
}


@dataclass(frozen=True, kw_only=True)
class SGLang(ChatServer):
    """Serves the model with SGLang, behind the guard, and puts it to sleep by releasing its memory.

    The options that every engine has are those of `ChatServer`; `version` is one of `SUPPORTED_VERSIONS`, and `image` is
    required except for 0.5.6.post2.

    Attributes:
        cuda_graph_max_batch: largest batch with a CUDA graph of its own, requests; None leaves it to SGLang.
        mem_fraction_static: share of the device's memory for weights and KV cache, 0 to 1; None leaves it to SGLang.
        max_total_tokens: size of the KV cache, tokens; on a CPU set it (the default took 15 GB). None leaves it to SGLang.
        sleep_on_idle: let an idle scheduler sleep instead of polling; for machines with few cores.
        memory_saver: make weights and KV cache releasable; without it a sleep frees nothing.
        prefill_graphs: capture CUDA graphs of prefills as well as of decodes, where the version does (from 0.5.16 on).
        weights_backup: keep the weights during the sleep; without it they are lost.
        weights_store: where the backup is. `saver`: in pinned memory of SGLang's process, and so in every snapshot. `file`:
            outside of the snapshot, one file for all replicas of a machine. `memory`: in memory that is pinned once, for an
            engine that stays in its process. The last two need 0.5.16 or later.
        sleep_tags: what a sleep releases: `kv_cache`, `weights` or both.
        release_graphs: also release the memory of CUDA graphs. It is kept like the weights, so it needs `file` or `memory`, and
            no graphs of prefills.
    """

    plugin_name: ClassVar[str] = "sglang"
    supports_sleep: ClassVar[bool] = True
    gives_logprobs: ClassVar[bool] = True
    serves_adapters: ClassVar[bool] = True
    adapter_tasks: ClassVar[tuple[Task, ...]] = (
        "chat",
        "generate",
        "embed",
    )  # `_resolve_lora_path` of 0.5.6.post2 to 0.5.23
    supported_versions: ClassVar[tuple[str, ...]] = SUPPORTED_VERSIONS
    default_images: ClassVar[tuple[tuple[str, str], ...]] = (
        (DEFAULT_VERSION, "lmsysorg/sglang:v0.5.6.post2-cu129-amd64-runtime"),
    )
    launcher: ClassVar[str] = "torpor_sglang.serve"
    routes: ClassVar[Routes] = routes
    reserved = RESERVED
    # 0.5.6.post2 and 0.5.16 server_args.py, 0.5.23 arg_groups/fields/parallel.py
    parallel_flags: ClassVar[ParallelFlags] = ParallelFlags(
        stages=(("--pp-size", "--pipeline-parallel-size"),),
        data=(("--dp-size", "--data-parallel-size"),),
        shared=("--enable-dp-attention",),
        inside=(("--ep-size", "--expert-parallel-size", "--ep"), ("--enable-dp-attention",), ("--moe-a2a-backend",)),
    )
    nccl_versions: ClassVar[tuple[tuple[str, str], ...]] = NCCL_VERSIONS
    request_fields = FIELDS
    progress_lines: ClassVar[tuple[tuple[str, str], ...]] = PROGRESS_LINES

    version: str = DEFAULT_VERSION
    cuda_graph_max_batch: int | None = None
    mem_fraction_static: float | None = None
    max_total_tokens: int | None = None
    sleep_on_idle: bool = False
    memory_saver: bool = True
    prefill_graphs: bool = True
    weights_backup: bool = True
    weights_store: WeightsStore = "saver"
    sleep_tags: tuple[str, ...] = TAGS
    release_graphs: bool = False

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sleep_tags or set(self.sleep_tags) - set(TAGS):
            # SGLang answers an unknown tag with 200 and ignores it. `cuda_graph` without its own backup is unsafe on 0.5.6.post2
            # and 0.5.16 (sgl-project/sglang#32718).
            raise ConfigurationError(
                f"SGLang.sleep_tags is {shown(self.sleep_tags)}; allowed are one or both of {TAGS!r}."
            )
        if "weights" in self.sleep_tags and self.memory_saver and not (self.weights_backup or self.dummy_weights):
            raise ConfigurationError(
                "SGLang.weights_backup is off while sleep_tags releases the weights: they would come back as garbage. "
                "Turn the backup on, or use sleep_tags=('kv_cache',)."
            )
        self._check_store()
        self.at_least("cuda_graph_max_batch", 1)
        self.at_least("max_total_tokens", 1)
        self.between_0_and_1("mem_fraction_static")

    def _check_store(self) -> None:
        """Refuse a backup that does not fit the version, the device or the other options."""
        if self.weights_store not in get_args(WeightsStore):
            raise ConfigurationError(
                f"SGLang.weights_store is {shown(self.weights_store)}; allowed are {', '.join(get_args(WeightsStore))}."
            )
        keeps = self.weights_store != "saver"
        if keeps and not (self.weights_backup and self.memory_saver and self.device == "cuda"):
            raise ConfigurationError(
                f"SGLang.weights_store is {self.weights_store!r}, which wants weights_backup, memory_saver and the device "
                "'cuda'; leave it at 'saver' without them."
            )
        if keeps and self.version == DEFAULT_VERSION:
            raise ConfigurationError(
                f"SGLang.weights_store is {self.weights_store!r}, which wants SGLang 0.5.16 or later; {self.version} was never "
                "tried with it. Leave it at 'saver'."
            )
        if self.release_graphs and (not keeps or self.prefill_graphs):
            raise ConfigurationError(
                "SGLang.release_graphs is on: the memory of CUDA graphs is kept where the weights are, so set "
                "weights_store='file' or 'memory', and prefill_graphs=False, whose graphs SGLang cannot release."
            )

    @override
    def task_route(self, task: Task) -> TaskRoute:
        route = super().task_route(task)
        if task == "score":
            # Of a causal model the probabilities of two tokens; a classifier's scores need no tokens and pass over these.
            return route._replace(names=("query", "items"), further=(("label_token_ids", _LABEL_TOKENS),))
        return route

    @override
    def kernel_cache_env(self, deployment: Deployment) -> dict[str, str]:
        return cache_env(f"{IMAGE_ROOT}/kernels")

    @override
    def kernel_compile_argv(self, deployment: Deployment) -> tuple[str, ...] | None:
        # `python -m sglang.compile_deep_gemm` takes every server flag. The M values that it compiles follow from them
        # (chunked prefill size), so it gets the serving flags.
        if self.device == "cpu":
            return None
        return (
            self.python,
            "-m",
            "sglang.compile_deep_gemm",
            *self.engine_flags(deployment, serving=False),
            *self.extra_args,
        )

    @override
    def kernel_compile_env(self, deployment: Deployment, *, fast: bool, at_load: bool) -> dict[str, str]:
        # Sources: SGLang `srt/environ.py` and `srt/layers/deep_gemm_wrapper/` of 0.5.6.post2, 0.5.16 and 0.5.23.
        switches = {"SGLANG_ENABLE_JIT_DEEPGEMM": "1"}
        if not at_load:
            switches["SGLANG_JIT_DEEPGEMM_PRECOMPILE"] = "0"
        if fast:
            if self.version in _BEFORE_FAST_COMPILE:
                raise ConfigurationError(
                    f"SGLang {self.version} compiles every batch shape: SGLANG_JIT_DEEPGEMM_FAST_WARMUP is known from "
                    f"{_FAST_COMPILE_SINCE} on. Leave fast_warmup out, or choose a newer SGLang."
                )
            switches["SGLANG_JIT_DEEPGEMM_FAST_WARMUP"] = "1"
        return switches

    @property
    @override
    def health_path(self) -> str:
        # Its answer has the scheduler's state in it; the name changed (`srt/entrypoints/http_server.py`).
        return "/get_server_info" if self.version == "0.5.6.post2" else "/server_info"

    @override
    def load_formats(self) -> dict[str, tuple[str, ...]]:
        return {} if self.device == "cpu" else dict(_LOAD_FORMATS[self.version])

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        env = {
            # /health answers from the server's status instead of generating a token for a second (0.5.6.post2 to 0.5.23).
            "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
            **SNAPSHOT_ENV,
            **self.request_env(),
            **adapter_env(deployment),
            **self.kernel_cache_env(deployment),
        }
        if self._suspends(deployment):
            env |= suspend_env(min(deployment.sleep_timeout_s, deployment.wake_timeout_s))
        if (
            self.weights_store == "saver"
            and (self.weights_backup or not self.dummy_weights)
            and not self._warns(deployment)
        ):
            env[SUMS_VARIABLE] = "1"
        if self.device == "cpu":
            env["SGLANG_USE_CPU_ENGINE"] = "1"
            # libgomp's threads spin at barriers by default: a token took 3 to 18 times as long where they shared their cores.
            env["OMP_WAIT_POLICY"] = "passive"
            return ImagePatch(base=self.base_image, env=env)
        if self.memory_saver:
            env[FREES_VARIABLE] = "1"
        if self.weights_store != "saver":
            places: dict[str, Place] = {"weights": self.weights_store}
            if self.release_graphs:
                places["cuda_graph"] = "memory"  # its content always differs, so replicas cannot share a file of it
            env |= {PLACES_VARIABLE: places_text(places), FOLDER_VARIABLE: f"{IMAGE_ROOT}/kept"}
        if self.release_graphs:
            env["SGLANG_MEMORY_SAVER_CUDA_GRAPH"] = "1"  # 0.5.16 environ.py:832
        return ImagePatch(base=self.base_image, env=env)

    @hookimpl(trylast=True)
    @override
    def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        self._flush_when_idle(client)
        call(client, "/pause_generation", {}, engine="SGLang")
        call(client, "/release_memory_occupation", {"tags": list(self._tags())}, engine="SGLang")

    @hookimpl(tryfirst=True)
    @override
    def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        # Once each: a second resume is a KeyError in the scheduler, which ends the whole server.
        call(client, "/resume_memory_occupation", {"tags": list(self._tags())}, engine="SGLang")
        call(client, "/continue_generation", {}, engine="SGLang")

    @override
    def check(self, deployment: Deployment) -> Iterable[Finding]:
        yield from super().check(deployment)
        if ":" in deployment.model.served_name:  # `check_server_args` of every supported version
            yield Finding(
                level="error",
                what="served name",
                seen=f"SGLang takes no ':' in a served name ({deployment.model.served_name!r}): it reads MODEL:ADAPTER there",
                cure="give Model.served_name without one",
            )
        if self._suspends(deployment) and (seen := self._unfit(self.extra_args)):
            yield Finding(
                level="error",
                what="several GPUs",
                seen=seen[0],
                cure=f"{seen[1]}, or set Deployment.gpu_snapshot=False",
            )

        if self.device == "cuda" and not self.memory_saver:
            yield Finding(
                level="warning",
                what="sleep",
                seen="SGLang.memory_saver is off, so a sleep frees nothing: weights and KV cache stay on the GPU",
                cure="leave memory_saver on, unless only the snapshot counts",
            )

    @override
    def engine_argv(self, deployment: Deployment, recipe: Recipe) -> tuple[str, ...]:
        if self._suspends(deployment) and (seen := self._unfit((*self.extra_args, *recipe.engine_args))):
            raise ConfigurationError(f"SGLang on several GPUs: {seen[0]}. {seen[1][:1].upper()}{seen[1][1:]}.")
        return super().engine_argv(deployment, recipe)

    @override
    def adapter_refusal(self, deployment: Deployment) -> tuple[str, str] | None:
        if self.device == "cpu":
            return (
                f"SGLang {self.version} serves no adapters on a CPU: its LoRA backends take pinned memory and kernels of a GPU",
                "leave Model.adapters out, serve on a GPU, or use vLLM, which serves adapters on a CPU",
            )
        draft, taken = deployment.model.draft, draft_methods_beside_adapters(self.version)
        if draft is not None and draft.method not in taken:
            return (
                f"SGLang {self.version} takes no draft of the method {draft.method!r} beside adapters",
                f"leave Model.adapters or Model.draft out, or choose a method that goes with them: {', '.join(taken)}",
            )
        return super().adapter_refusal(deployment)

    @override
    def adapter_word(self, deployment: Deployment, name: str, folder: str) -> str:
        return json.dumps({"lora_name": name, "lora_path": folder})  # `LoRAPathAction`, in every version

    def _suspends(self, deployment: Deployment) -> bool:
        """Whether this engine has to let go of the memory of other GPUs."""
        gpus = gpus_needed(self.tensor_parallel, self.extra_args, self.parallel_flags)
        return wants_nccl_suspended(deployment, device=self.device, gpus=gpus)

    @staticmethod
    def _warns(deployment: Deployment) -> bool:
        """Whether a replica serves with another answer than before its sleep."""
        return deployment.canary_mismatch == "warn"

    def _unfit(self, words: Sequence[str]) -> tuple[str, str] | None:
        """What no snapshot of several GPUs can have, and the cure."""
        if self.version in TOO_OLD:
            newer = SUPPORTED_VERSIONS[-1]
            return f"version {self.version} cannot be snapshotted: {TOO_OLD_REASON}", f"use version {newer}"
        refused = refused_word(words)
        return (refused, "leave it out") if refused else None

    @override
    def rank_sleep(self, deployment: Deployment) -> RankSleep:
        kept: WeightsPlace = "snapshot" if self.weights_store == "saver" else self.weights_store
        released = tuple(part.what for part in self.sleep_parts(deployment) if part.dropped)
        return RankSleep(released=released, weights=kept if "weights" in released else "gpu")

    @override
    def sleep_parts(self, deployment: Deployment) -> tuple[SleepPart, ...]:
        return tuple(sleep_parts(self, deployment))

    def _tags(self) -> tuple[str, ...]:
        return (*self.sleep_tags, "cuda_graph") if self.release_graphs else self.sleep_tags

    @override
    def engine_flags(self, deployment: Deployment, *, serving: bool) -> tuple[str, ...]:
        cpu = self.device == "cpu"
        options: dict[str, OptionValue] = {
            "model_path": deployment.model.source,
            "revision": deployment.model.revision,
            "tp_size": self.tensor_parallel,
            "device": "cpu" if cpu else None,
            "max_running_requests": deployment.scaling.max_concurrency,
            "max_total_tokens": self.max_total_tokens,
            "cuda_graph_max_batch": self.cuda_graph_max_batch,
            "no_prefill_graphs": not self.prefill_graphs and not cpu,
            "mem_fraction_static": self.mem_fraction_static,
            "dummy_weights": self.dummy_weights,
            "embedding": deployment.task in ("embed", "classify"),
            "load_format": self.load_format,
            "attention_backend": self.attention_backend or ("torch_native" if cpu else None),
            "disable_overlap_schedule": cpu,
            "sleep_on_idle": self.sleep_on_idle,
        }
        options |= self._serving_options(deployment) if serving else {}
        further = WORDS if serving and self._suspends(deployment) else ()
        return (
            *RESERVED.table.argv(self.version, options),
            *(word for word in further if word not in self.extra_args),
            *draft_words(deployment.model.draft),
        )

    def _serving_options(self, deployment: Deployment) -> dict[str, OptionValue]:
        """Those on which compiled kernels do not depend. SGLang refuses buffers for adapters without their files."""
        saver = self.memory_saver and self.device != "cpu"  # torch_memory_saver is CUDA only; a CPU frees nothing
        return {
            "host": deployment.host,
            "port": deployment.port,
            "served_model_name": deployment.model.served_name,
            "skip_server_warmup": True,
            "metrics": self.metrics,
            "memory_saver": saver,
            "weights_backup": saver and self.weights_backup and self.weights_store == "saver",
            **self._adapter_options(deployment),
        }

    def _adapter_options(self, deployment: Deployment) -> dict[str, OptionValue]:
        at_once = self.adapters_at_once(deployment)
        if not at_once:
            return {}
        return {
            "enable_adapters": True,
            "adapters_per_batch": at_once + 1,  # requests to the model itself count as an adapter
            "max_adapter_rank": self.max_adapter_rank,
        }

    @property
    @override
    def draft_methods(self) -> tuple[DraftMethod, ...]:
        return methods_of(self.device)

    @override
    def flag_reasons(self) -> dict[str, str]:
        return {**DRAFT_REASONS, **super().flag_reasons()}

    @override
    def sleep_steps(self) -> tuple[str, ...]:
        return routes.SLEEP

    @override
    def wake_steps(self) -> tuple[str, ...]:
        return routes.WAKE

    @override
    def regex_fields(self) -> Mapping[str, object]:
        return {"regex": "[a-z]{3,8}"}

    @override
    def ask_logprobs(
        self, deployment: Deployment, client: httpx.Client, *, model: str, prompt: str, tokens: int
    ) -> TokenLogprobs:
        adapter = None if model == deployment.model.served_name else model
        return logprobs.ask(client, prompt=prompt, tokens=tokens, adapter=adapter)

    @override
    def forget_prompts(self, client: httpx.Client) -> None:
        self._flush_when_idle(client)

    def _flush_when_idle(self, client: httpx.Client) -> None:
        """Wait until the scheduler is idle: a release before that fails an assertion and ends the server.

        The guard knows when the last answer was sent; the scheduler may need a moment longer. /flush_cache answers 400 until it
        is idle, in every supported version.
        """
        deadline = time.monotonic() + _IDLE_TIMEOUT_S
        while (response := client.post("/flush_cache")).status_code != _OK:
            if time.monotonic() > deadline:
                raise EngineRequestError(
                    f"SGLang was not idle {_IDLE_TIMEOUT_S:g} s after the last answer: POST /flush_cache gives "
                    f"{response.status_code} {response.text[:200]!r}. Nothing was released."
                )
            time.sleep(0.05)
