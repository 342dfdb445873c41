"""`VLLM`: the engine plugin."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from torpor import (
    DRAFT_METHODS,
    IMAGE_ROOT,
    VOLUME_ROOT,
    BuildPlan,
    BuildStep,
    Cache,
    ConfigurationError,
    Engine,
    EngineRequestError,
    ImagePatch,
    check_volume,
    hookimpl,
    override,
)
from torpor.engine_plugins import (
    SNAPSHOT_ENV,
    ChatServer,
    ParallelFlags,
    RankSleep,
    adapter_env,
    call,
    call_object,
    gpus_needed,
    speculative_words,
    wants_nccl_suspended,
)
from torpor_vllm import routes, several_gpus
from torpor_vllm.acceptance import acceptance_since, counters
from torpor_vllm.caches import COMPILE_FOLDER, cache_env
from torpor_vllm.compiling import PROGRAM
from torpor_vllm.fields import FIELDS
from torpor_vllm.log_progress import PROGRESS_LINES
from torpor_vllm.rank_reports import check_asleep, check_awake, reports_of
from torpor_vllm.reserved import RESERVED
from torpor_vllm.sleep_parts import DRAFT_NAMES, PRESERVE, kept_names, sleep_parts
from torpor_vllm.versions import DEFAULT_VERSION, NCCL_VERSIONS, SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from torpor import Deployment, DraftMethod, Recipe, Task
    from torpor.engine_plugins import OptionValue, Routes, SleepPart, TokenLogprobs

__all__ = ["VLLM"]

SleepLevel = Literal[1, 2]
_KERNELS = f"{IMAGE_ROOT}/kernels"
_POOLING: tuple[Task, ...] = ("embed", "rerank", "score", "classify")
_EXTENSION = "torpor_vllm.worker.Renewal"
_IDLE_TIMEOUT_S = 10.0
# Names and needs as in 0.32.0 and 0.33.0 (config/load.py, the wheels' extras).
_LOAD_FORMATS: dict[str, tuple[str, ...]] = {
    "runai_streamer": ("runai-model-streamer>=0.15.7",),
    "fastsafetensors": ("fastsafetensors>=0.3.3",),
    "instanttensor": ("instanttensor>=0.2.2",),
}
_MOST_BYTES = 2**50
_SPECULATIVE = "--speculative-config"
# 0.32.0 and 0.33.0 config/speculative.py, SpeculativeMethod
_DRAFT_METHODS: dict[DraftMethod, str] = {
    "model": "draft_model",
    "eagle": "eagle",
    "eagle3": "eagle3",
    "ngram": "ngram",
}
_ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # 0.32.0 and 0.33.0 config/lora.py, MaxLoRARanks
_SEED_BITS = 32  # numpy takes no larger seed


@dataclass(frozen=True, kw_only=True)
class VLLM(ChatServer):
    """Serves the model with vLLM, behind the guard, and puts it to sleep by its sleep mode.

    The options that every engine has are those of `ChatServer`; `version` is 0.33.0 or 0.32.0.

    Attributes:
        sleep_level: 1 keeps the weights in pinned memory of the worker, and so in every snapshot; 2 drops them, and the wake
            reads them from the model's files again.
        max_model_len: longest prompt and answer together, tokens; None leaves it to the model.
        memory_utilization: share of the device's memory for vLLM, 0 to 1; None leaves it to vLLM (0.92).
        kv_cache_bytes: size of the KV cache; on a CPU set it. None leaves it to vLLM.
        eager: neither compile nor capture graphs: the fastest start and the slowest answers.
        cuda_graph_max_batch: largest batch with a CUDA graph, requests; None leaves it to vLLM.
        offload_graphs: take the memory of CUDA graphs to the host during the sleep, too.
        load_strategy: how safetensors files are read: `lazy`, `eager`, `prefetch`; None leaves it to vLLM.
        startup_plan: let vLLM store the memory profile of a start, so that the next start skips profiling.
        access_log: a line in the log for every request.
        compile_volume: name of the volume that keeps compiled kernels for the next build.
        compile_timeout_s: seconds that the throw-away start of the image's build may take.
    """

    plugin_name: ClassVar[str] = "vllm"
    supports_sleep: ClassVar[bool] = True
    gives_logprobs: ClassVar[bool] = True
    serves_adapters: ClassVar[bool] = True
    adapter_tasks: ClassVar[tuple[Task, ...]] = ("chat", "generate", *_POOLING)
    supported_versions: ClassVar[tuple[str, ...]] = SUPPORTED_VERSIONS
    # vLLM's own image: the wheel pins exact versions of torch, CUDA and FlashInfer, and the image has the tested set.
    default_images: ClassVar[tuple[tuple[str, str], ...]] = tuple(
        (version, f"vllm/vllm-openai:v{version}") for version in SUPPORTED_VERSIONS
    )
    launcher: ClassVar[str] = "torpor_vllm.serve"
    routes: ClassVar[Routes] = routes
    reserved = RESERVED
    # engine/arg_utils.py of 0.32.0 and 0.33.0; data parallelism is refused (reserved.py)
    parallel_flags: ClassVar[ParallelFlags] = ParallelFlags(
        stages=(("--pipeline-parallel-size",), ("--prefill-context-parallel-size",)),
        inside=(("--enable-expert-parallel",), ("--decode-context-parallel-size",)),
    )
    nccl_versions: ClassVar[tuple[tuple[str, str], ...]] = NCCL_VERSIONS
    request_fields = FIELDS
    progress_lines: ClassVar[tuple[tuple[str, str], ...]] = PROGRESS_LINES

    version: str = DEFAULT_VERSION
    sleep_level: SleepLevel = 1
    max_model_len: int | None = None
    memory_utilization: float | None = None
    kv_cache_bytes: int | None = None
    eager: bool = False
    cuda_graph_max_batch: int | None = None
    offload_graphs: bool = False
    load_strategy: str | None = None
    startup_plan: bool = False
    access_log: bool = False
    compile_volume: str = "vllm-cache"
    compile_timeout_s: float = 1800.0

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sleep_level not in get_args(SleepLevel):
            raise ConfigurationError(
                f"VLLM.sleep_level is {self.sleep_level!r}; allowed are 1 (weights kept in host memory) and 2 (weights dropped "
                "and read again at the wake)."
            )
        if self.sleep_level == 2 and self.dummy_weights:  # noqa: PLR2004 - the level's name
            raise ConfigurationError(
                "VLLM.sleep_level is 2, which reads the weights again at the wake, and dummy_weights has none to read. "
                "Use sleep_level=1 with dummy weights."
            )
        if self.offload_graphs and (self.eager or self.device == "cpu"):
            raise ConfigurationError(
                "VLLM.offload_graphs is on, but there are no CUDA graphs with eager=True or on a CPU: leave it out."
            )
        if self.max_adapter_rank not in _ADAPTER_RANKS:
            raise ConfigurationError(
                f"VLLM.max_adapter_rank is {self.max_adapter_rank}; vLLM has buffers of the ranks "
                f"{', '.join(map(str, _ADAPTER_RANKS))}. Choose the next higher one."
            )
        check_volume("VLLM.compile_volume", self.compile_volume)
        self.seconds("compile_timeout_s")
        self.one_word("load_strategy")
        self.at_least("kv_cache_bytes", 1, _MOST_BYTES)
        for option in ("max_model_len", "cuda_graph_max_batch"):
            self.at_least(option, 1)
        self.between_0_and_1("memory_utilization")

    @override
    def kernel_cache_env(self, deployment: Deployment) -> dict[str, str]:
        return cache_env(_KERNELS)

    @override
    def kernel_compile_env(self, deployment: Deployment, *, fast: bool, at_load: bool) -> dict[str, str]:
        # Sources: vLLM 0.33.0 envs.py:1600 and 1626; `relax` is a heuristic's selection of shapes, and vLLM's default.
        shapes = ("relax" if fast else "full") if at_load else "skip"
        return {"VLLM_USE_DEEP_GEMM": "1", "VLLM_DEEP_GEMM_WARMUP": shapes}

    @override
    def kernel_compile_argv(self, deployment: Deployment) -> tuple[str, ...] | None:
        # vLLM has no command that only compiles, so this starts an engine; on a CPU there is nothing worth keeping.
        if self.device == "cpu":
            return None
        flags = self.engine_flags(deployment, serving=False)
        return (self.python, "-c", PROGRAM, *flags, *self.extra_args)

    @property
    @override
    def health_path(self) -> str:
        return "/is_sleeping"  # the core's process answers it between two steps (`v1/engine/core.py`)

    @override
    def load_formats(self) -> dict[str, tuple[str, ...]]:
        return {} if self.device == "cpu" else dict(_LOAD_FORMATS)

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        env = {
            # /sleep and /wake_up exist only in development mode; the guard closes its other routes.
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",  # otherwise a reporting thread would be in the snapshot
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "VLLM_HOST_IP": "127.0.0.1",  # its processes connect over loopback, which every replica has
            **SNAPSHOT_ENV,
            **self.request_env(),
            **adapter_env(deployment),
            **self.kernel_cache_env(deployment),
        }
        if self.startup_plan:
            env["VLLM_ENABLE_STARTUP_PLAN"] = "1"
        if self._shares_gpu_memory(deployment):
            env |= several_gpus.SNAPSHOT_ENV
        if self.device == "cpu":
            # By default libgomp's threads spin at barriers; two engines that share cores would wait for each other.
            env |= {"OMP_WAIT_POLICY": "passive", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        return ImagePatch(base=self.base_image, env=env, python_link=True)  # its images have only python3

    @hookimpl
    @override
    def compile_kernels(self, deployment: Deployment) -> BuildPlan | None:
        # A plugin that compiles for the engine (DeepGEMM) already runs the same command.
        others = (plugin for plugin in deployment.plugins if plugin is not self)
        if any(getattr(plugin, "compiles_for_engine", False) for plugin in others) or self.eager:
            return None
        argv = self.kernel_compile_argv(deployment)
        if argv is None:
            return None
        mount = f"{VOLUME_ROOT}/{self.compile_volume}"
        key = (
            f"engine=vllm {self.version}",
            f"model={deployment.model.source} {deployment.model.revision or ''}".rstrip(),
        )
        step = BuildStep(
            name="compile vLLM's graphs",
            argv=argv,
            order=20,
            timeout_s=self.compile_timeout_s,
            retries=1,
            gpu=True,
            volumes={mount: self.compile_volume},
            outputs=(f"{_KERNELS}/{COMPILE_FOLDER}",),
            cache=Cache(
                volume_dir=mount,
                image_dir=_KERNELS,
                key=(*key, f"gpus={deployment.gpu_count}", *argv),
                probes=(("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),),
            ),
            engine_args=True,
        )
        return BuildPlan(steps=(step,))

    @hookimpl(trylast=True)
    @override
    def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        ranks = self._ranks()
        if ranks > 1:
            seconds = several_gpus.seconds_for_ranks(deployment.sleep_timeout_s, deployment.wake_timeout_s)
            reports_of(client, "torpor_before_sleep", seconds, ranks=ranks)
        else:
            reports_of(client, "torpor_note_weights", ranks=1)
        # `wait` aborts no request; after the guard's drain it returns quickly.
        answer = call_object(client, f"/sleep?level={self.sleep_level}&mode=wait", engine="vLLM")
        if answer.get("status") != "sleeping":
            raise EngineRequestError(f"vLLM was told to sleep and answered {answer!r}; nothing may be captured.")
        check_asleep(reports_of(client, "torpor_let_go", ranks=ranks))

    @hookimpl(tryfirst=True)
    @override
    def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        ranks = self._ranks()
        if ranks > 1:
            reports_of(client, "torpor_take_back", ranks=ranks)
        if self.sleep_level == 1:
            answer = call_object(client, "/wake_up", engine="vLLM")
        else:
            call(client, "/wake_up?tags=weights", engine="vLLM")
            call(client, "/collective_rpc", {"method": "reload_weights"}, engine="vLLM")
            answer = call_object(client, "/wake_up?tags=kv_cache", engine="vLLM")
        if answer.get("status") != "awake":
            raise EngineRequestError(f"vLLM was woken and answered {answer!r}; it does not serve.")
        seed = str(secrets.randbits(_SEED_BITS))
        reports = reports_of(client, "torpor_after_wake", seed, ranks=ranks)
        if ranks > 1 or deployment.canary_mismatch == "fail":
            check_awake(reports)

    @override
    def adapter_refusal(self, deployment: Deployment) -> tuple[str, str] | None:
        if self.sleep_level == 2:  # noqa: PLR2004 - the level's name
            return (
                "VLLM.sleep_level is 2: the sleep drops the adapters' weights, and the wake reads only the model's files again",
                "use sleep_level=1 with adapters",
            )
        return super().adapter_refusal(deployment)

    @override
    def adapter_word(self, deployment: Deployment, name: str, folder: str) -> str:
        # 0.32.0 entrypoints/launchers/cli_args.py:38 splits NAME=PATH at every "="; JSON takes any path.
        return json.dumps({"name": name, "path": folder, "base_model_name": deployment.model.served_name})

    @override
    def rank_sleep(self, deployment: Deployment) -> RankSleep:
        released = tuple(part.what for part in self.sleep_parts(deployment) if part.dropped)
        return RankSleep(released=released, weights="snapshot" if self.sleep_level == 1 else "model")

    @override
    def sleep_parts(self, deployment: Deployment) -> tuple[SleepPart, ...]:
        return tuple(sleep_parts(self, deployment, ranks=self._ranks()))

    @override
    def sleep_steps(self) -> tuple[str, ...]:
        return routes.SLEEP

    @override
    def wake_steps(self) -> tuple[str, ...]:
        return (routes.WAKE_OF_RANKS if self._ranks() > 1 else routes.WAKE)[self.sleep_level]

    @override
    def engine_argv(self, deployment: Deployment, recipe: Recipe) -> tuple[str, ...]:
        argv = super().engine_argv(deployment, recipe)
        if self.sleep_level == 1:
            return argv
        if any(word.partition("=")[0] == "--enable-lora" for word in argv):
            raise ConfigurationError(
                "vLLM is to load adapters, and VLLM.sleep_level is 2: nothing would load them again after a sleep. Use "
                "sleep_level=1 with adapters."
            )
        return (*argv, PRESERVE, DRAFT_NAMES) if speculative_words(argv) and not kept_names(argv) else argv

    def _ranks(self) -> int:
        """Worker processes among which the model is divided."""
        return gpus_needed(self.tensor_parallel, self.extra_args, self.parallel_flags)

    def _shares_gpu_memory(self, deployment: Deployment) -> bool:
        """Whether the workers have to let go of each other's GPU memory for a snapshot."""
        return wants_nccl_suspended(deployment, device=self.device, gpus=self._ranks())

    @override
    def regex_fields(self) -> Mapping[str, object]:
        return {"structured_outputs": {"regex": "[a-z]{3,8}"}}

    @override
    def ask_logprobs(
        self, deployment: Deployment, client: httpx.Client, *, model: str, prompt: str, tokens: int
    ) -> TokenLogprobs:
        before = counters(client) if self.metrics else None
        answer = super().ask_logprobs(deployment, client, model=model, prompt=prompt, tokens=tokens)
        if before is None:
            return answer
        return answer._replace(acceptance=acceptance_since(before, client))

    @override
    def forget_prompts(self, client: httpx.Client) -> None:
        deadline = time.monotonic() + _IDLE_TIMEOUT_S
        while not (answer := call_object(client, "/reset_prefix_cache", engine="vLLM")).get("success"):
            if time.monotonic() > deadline:
                raise EngineRequestError(
                    f"vLLM was not idle {_IDLE_TIMEOUT_S:g} s after the warm-up: POST /reset_prefix_cache gives {answer!r}."
                )
            time.sleep(0.05)

    @override
    def engine_flags(self, deployment: Deployment, *, serving: bool) -> tuple[str, ...]:
        cpu, shares = self.device == "cpu", self._shares_gpu_memory(deployment)
        options: dict[str, OptionValue] = {
            "revision": deployment.model.revision,
            "served_model_name": deployment.model.served_name,
            "tensor_parallel": self.tensor_parallel,
            "max_num_seqs": deployment.scaling.max_concurrency,
            "max_model_len": self.max_model_len,
            "memory_utilization": self.memory_utilization,
            "kv_cache_bytes": self.kv_cache_bytes,
            "sleep_mode": not cpu,
            "offload_graphs": self.offload_graphs,
            "eager": self.eager,
            "cuda_graph_max_batch": self.cuda_graph_max_batch,
            "dummy_weights": self.dummy_weights,
            "runner": "pooling" if deployment.task in _POOLING else None,
            "load_format": self.load_format,
            "load_strategy": self.load_strategy,
            "attention_backend": self.attention_backend,
            "no_metrics": not self.metrics,
        }
        if serving:
            options |= {
                "worker_extension": _EXTENSION,  # no part of what compiled graphs depend on (config/parallel.py:943)
                "host": deployment.host,
                "port": deployment.port,
                "no_access_log": not self.access_log,
            }
        options |= self._adapter_options(deployment)
        if shares:
            several_gpus.check_words(self.extra_args)
        words = several_gpus.WORDS if shares else ()
        flags = RESERVED.table.argv(self.version, options)
        return (deployment.model.source, *flags, *words, *self._draft_words(deployment))

    @staticmethod
    def _draft_words(deployment: Deployment) -> tuple[str, ...]:
        """The flag of a draft; vLLM takes it as JSON (config/speculative.py)."""
        draft = deployment.model.draft
        if draft is None:
            return ()
        given = {
            "method": _DRAFT_METHODS[draft.method],
            "model": draft.source or None,
            "revision": draft.revision,
            "num_speculative_tokens": draft.tokens,
        }
        return _SPECULATIVE, json.dumps({name: value for name, value in given.items() if value is not None})

    @property
    @override
    def draft_methods(self) -> tuple[DraftMethod, ...]:
        return DRAFT_METHODS

    @property
    @override
    def sees_acceptance(self) -> bool:
        return self.metrics

    def _adapter_options(self, deployment: Deployment) -> dict[str, OptionValue]:
        given, at_once = len(deployment.model.adapters), self.adapters_at_once(deployment)
        if not given:
            return {}
        return {
            "enable_adapters": True,
            "adapters_per_batch": at_once,
            "max_adapter_rank": self.max_adapter_rank,
            # vLLM keeps as many in host memory as in a batch, and would read the others' files again at their next request
            "adapters_in_memory": given if at_once < given else None,
        }

    @override
    def flag_reasons(self) -> dict[str, str]:
        kept = {
            _SPECULATIVE: "Model.draft guesses tokens ahead, which the model checks all at once",
            PRESERVE: "a sleep of level 2 drops the draft model's weights, and the wake reads the target's alone again",
        }
        return {**several_gpus.FLAG_REASONS, **kept, **super().flag_reasons()}
