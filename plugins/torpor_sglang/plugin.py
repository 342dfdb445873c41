"""`SGLang`: the engine plugin."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from torpor import ConfigurationError, Engine, EngineRequestError, ImagePatch, Plugin, hookimpl
from torpor._override import override
from torpor.guard import GuardRules
from torpor.progress import tell
from torpor.recipe import IMAGE_ROOT
from torpor_sglang import routes
from torpor_sglang.caches import cache_env
from torpor_sglang.flags import FLAGS, OptionValue, engine_argv
from torpor_sglang.places import FOLDER_VARIABLE, PLACES_VARIABLE, places_text
from torpor_sglang.reserved import check_extra_args
from torpor_sglang.versions import DEFAULT_VERSION, SUPPORTED_VERSIONS

if TYPE_CHECKING:
    import httpx

    from torpor import Deployment, Recipe
    from torpor_sglang.places import Place

__all__ = ["SGLang"]

DEFAULT_IMAGES = {DEFAULT_VERSION: "lmsysorg/sglang:v0.5.6.post2-cu129-amd64-runtime"}
TAGS = ("kv_cache", "weights")
WeightsStore = Literal["saver", "file", "memory"]
_OK = 200
_IDLE_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class SGLang(Plugin):
    """Serves the model with SGLang, behind the guard, and puts it to sleep by releasing its memory.

    Attributes:
        version: SGLang's version; supported are 0.5.6.post2, 0.5.16 and 0.5.23.
        image: registry reference of an image with that version; required except for 0.5.6.post2.
        python: interpreter in which SGLang is installed.
        device: `cuda` or `cpu`.
        tensor_parallel: GPUs that share the model; at most the deployment's GPUs.
        attention_backend: SGLang's name of it; None leaves the choice to SGLang (`torch_native` on a CPU).
        cuda_graph_max_batch: largest batch with a CUDA graph of its own, requests; None leaves it to SGLang.
        mem_fraction_static: share of the device's memory for weights and KV cache, 0 to 1; None leaves it to SGLang.
        max_total_tokens: size of the KV cache, tokens; on a CPU set it (the default took 15 GB). None leaves it to SGLang.
        sleep_on_idle: let an idle scheduler sleep instead of polling; for machines with few cores.
        load_format: how weights are read, SGLang's name of it; None leaves it to SGLang.
        memory_saver: make weights and KV cache releasable; without it a sleep frees nothing.
        prefill_graphs: capture CUDA graphs of prefills as well as of decodes, where the version does (from 0.5.16 on).
        weights_backup: keep the weights during the sleep; without it they are lost.
        weights_store: where the backup is: `saver`, SGLang's own, in pinned memory of its process and so in every snapshot;
            `file`, outside of the snapshot, one for all replicas of a machine; `memory`, pinned once and kept, for an engine
            that stays in its process. The last two need 0.5.16 or later.
        sleep_tags: what a sleep releases: `kv_cache`, `weights` or both.
        release_graphs: release the memory of CUDA graphs, too; kept like the weights, so `saver` does not do, nor do graphs
            of prefills.
        metrics: serve Prometheus metrics on /metrics (with the lifecycle key).
        open_metrics: serve them to everybody.
        open_docs: serve the API's description, /docs and /openapi.json, to everybody; otherwise it takes the lifecycle key.
        max_body_bytes: largest request body, bytes. How many requests may be in flight is `Scaling.max_concurrency`.
        dummy_weights: random weights in place of the model's, for trying things out.
        api_key_sha256: SHA-256 (hex) of bearer keys; with any, the public paths ask for one.
        warmup_prompt_words: prompt lengths of the warm-up, words.
        warmup_burst: requests sent at once at the end of the warm-up.
        warmup_request_timeout_s: seconds without a byte for one warm-up request, which may compile kernels.
        extra_args: further engine flags, passed through.
    """

    plugin_name: ClassVar[str] = "sglang"
    supports_sleep: ClassVar[bool] = True
    sleep_is_idempotent: ClassVar[bool] = False  # a second release or resume kills the server (scheduler KeyError)
    health_safe_while_asleep: ClassVar[bool] = (
        False  # from 0.5.10.post1 on a probe runs a forward pass on unmapped memory
    )
    public_paths: ClassVar[tuple[str, ...]] = routes.PUBLIC
    ready_path: ClassVar[str] = "/v1/models"
    guarded: ClassVar[bool] = True

    version: str = DEFAULT_VERSION
    image: str | None = None
    python: str = "python3"
    device: str = "cuda"
    tensor_parallel: int = 1
    attention_backend: str | None = None
    cuda_graph_max_batch: int | None = None
    mem_fraction_static: float | None = None
    max_total_tokens: int | None = None
    sleep_on_idle: bool = False
    load_format: str | None = None
    memory_saver: bool = True
    prefill_graphs: bool = True
    weights_backup: bool = True
    weights_store: WeightsStore = "saver"
    sleep_tags: tuple[str, ...] = TAGS
    release_graphs: bool = False
    metrics: bool = True
    open_metrics: bool = False
    open_docs: bool = False
    max_body_bytes: int = 32 * 1024 * 1024
    dummy_weights: bool = False
    api_key_sha256: tuple[str, ...] = ()
    warmup_prompt_words: tuple[int, ...] = (8, 600)
    warmup_burst: int = 4
    warmup_request_timeout_s: float = 500.0
    extra_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.version not in SUPPORTED_VERSIONS:
            raise ConfigurationError(
                f"SGLang.version is {self.version!r}; supported are {', '.join(SUPPORTED_VERSIONS)}."
            )
        if self.device not in ("cuda", "cpu"):
            raise ConfigurationError(f"SGLang.device is {self.device!r}; allowed are 'cuda' and 'cpu'.")
        if self.device == "cuda" and self.image is None and self.version not in DEFAULT_IMAGES:
            raise ConfigurationError(
                f"SGLang.image is required for version {self.version}: give the registry reference of an image that holds it, "
                f"e.g. image='lmsysorg/sglang:v{self.version}-...' with the tag from SGLang's releases."
            )
        if not self.sleep_tags or set(self.sleep_tags) - set(TAGS):
            # An unknown tag is answered with 200 and ignored, and `cuda_graph` without its own backup is not safe on
            # 0.5.6.post2 and 0.5.16 (sgl-project/sglang#32718).
            raise ConfigurationError(f"SGLang.sleep_tags is {self.sleep_tags!r}; allowed are one or both of {TAGS!r}.")
        if "weights" in self.sleep_tags and self.memory_saver and not (self.weights_backup or self.dummy_weights):
            raise ConfigurationError(
                "SGLang.weights_backup is off while sleep_tags releases the weights: they would come back as garbage. "
                "Turn the backup on, or use sleep_tags=('kv_cache',)."
            )
        self._check_store()
        for name, value, lowest in (
            ("tensor_parallel", self.tensor_parallel, 1),
            ("cuda_graph_max_batch", self.cuda_graph_max_batch, 1),
            ("warmup_burst", self.warmup_burst, 0),
            ("max_body_bytes", self.max_body_bytes, 1),
        ):
            if value is not None and value < lowest:
                raise ConfigurationError(f"SGLang.{name} is {value}; the lowest allowed value is {lowest}.")
        if self.mem_fraction_static is not None and not 0 < self.mem_fraction_static < 1:
            raise ConfigurationError(
                f"SGLang.mem_fraction_static is {self.mem_fraction_static}; it has to be between 0 and 1."
            )
        if not self.warmup_prompt_words:
            raise ConfigurationError("SGLang.warmup_prompt_words is empty; give at least one prompt length in words.")
        check_extra_args(self.version, self.extra_args)

    def _check_store(self) -> None:
        """Refuse a backup that the version, the device or the other options do not go with."""
        if self.weights_store not in get_args(WeightsStore):
            raise ConfigurationError(
                f"SGLang.weights_store is {self.weights_store!r}; allowed are {', '.join(get_args(WeightsStore))}."
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

    @property
    @override
    def engine_version(self) -> str:
        return self.version

    @property
    @override
    def engine_python(self) -> str:
        return self.python

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
            *self._flags(deployment, serving=False),
            *self.extra_args,
        )

    @override
    def engine_argv(self, deployment: Deployment, recipe: Recipe) -> tuple[str, ...]:
        check_extra_args(self.version, recipe.engine_args)
        flags = self._flags(deployment, serving=True)
        return (self.python, "-m", "torpor_sglang.serve", *flags, *self.extra_args, *recipe.engine_args)

    @override
    def log_progress(self, line: str) -> str:
        from torpor_sglang.log_progress import log_progress  # noqa: PLC0415 - a restore has no use for it

        return log_progress(line)

    @override
    def flag_reasons(self) -> dict[str, str]:
        other = "load_format" if self.dummy_weights else "dummy_weights"  # one flag carries both
        given = {word.partition("=")[0]: "given in SGLang.extra_args" for word in self.extra_args}
        return given | {flag.name(self.version): flag.reason for flag in FLAGS if flag.option != other}

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        env = {
            # /health answers from the server's status instead of generating a token for a second (0.5.6.post2 to 0.5.23).
            "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
            # No pool of Inductor workers may be alive in a snapshot; SGLang does not set this, vLLM does.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            # Stale NCCL graph registrations hang after a release (torch_memory_saver#88).
            "NCCL_GRAPH_REGISTER": "0",
            **self.kernel_cache_env(deployment),
        }
        if self.device == "cpu":
            env["SGLANG_USE_CPU_ENGINE"] = "1"
            # libgomp's threads spin at barriers by default: a token took 3 to 18 times as long where they shared their cores.
            env["OMP_WAIT_POLICY"] = "passive"
            return ImagePatch(base=self.image, env=env)
        if self.weights_store != "saver":
            places: dict[str, Place] = {"weights": self.weights_store}
            if self.release_graphs:
                places["cuda_graph"] = "memory"  # it is never the same twice, so no file of it could be shared
            env |= {PLACES_VARIABLE: places_text(places), FOLDER_VARIABLE: f"{IMAGE_ROOT}/kept"}
        if self.release_graphs:
            env["SGLANG_MEMORY_SAVER_CUDA_GRAPH"] = "1"  # 0.5.16 environ.py:832
        return ImagePatch(base=self.image or DEFAULT_IMAGES[self.version], env=env)

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
        if self.tensor_parallel > max(1, deployment.gpu_count):
            raise ConfigurationError(
                f"SGLang.tensor_parallel is {self.tensor_parallel}, but Deployment.gpu is {deployment.gpu!r}: ask for as many GPUs."
            )
        argv = self.engine_argv(deployment, recipe)
        return Engine.start(argv, env=recipe.env, guard=self._rules(deployment))

    @hookimpl
    @override
    def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        from torpor_sglang.warmup import send, send_burst, warmup_requests  # noqa: PLC0415 - a restore warms nothing up

        model = deployment.model.served_name
        requests = warmup_requests(self.warmup_prompt_words)
        for number, request in enumerate(requests, start=1):
            tell(f"request {number} of {len(requests)}")
            send(client, request, model=model, timeout_s=self.warmup_request_timeout_s)
        burst = min(self.warmup_burst, deployment.scaling.max_concurrency)
        tell(f"{burst} requests at once")
        send_burst(client, burst, model=model, timeout_s=self.warmup_request_timeout_s)
        # The canary comes next. After a wake it is asked with an empty prefix cache; with prefixes of these requests in it,
        # other kernels run, and close calls between two tokens fall otherwise (seen on an H100 with random weights).
        self._flush_when_idle(client)

    @hookimpl(trylast=True)
    @override
    def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        self._flush_when_idle(client)
        _post(client, "/pause_generation", {})
        _post(client, "/release_memory_occupation", {"tags": list(self._tags())})

    @hookimpl(tryfirst=True)
    @override
    def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        # Once each: a second resume is a KeyError in the scheduler, and the whole server's end.
        _post(client, "/resume_memory_occupation", {"tags": list(self._tags())})
        _post(client, "/continue_generation", {})

    def _tags(self) -> tuple[str, ...]:
        return (*self.sleep_tags, "cuda_graph") if self.release_graphs else self.sleep_tags

    def _flags(self, deployment: Deployment, *, serving: bool) -> tuple[str, ...]:
        """The engine's flags; a compile run keeps only what kernels depend on."""
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
            "load_format": self.load_format,
            "attention_backend": self.attention_backend or ("torch_native" if cpu else None),
            "disable_overlap_schedule": cpu,
            "sleep_on_idle": self.sleep_on_idle,
        }
        if serving:
            saver = (
                self.memory_saver and not cpu
            )  # torch_memory_saver is CUDA only; a CPU answers the calls and frees nothing
            options |= {
                "host": "0.0.0.0",  # noqa: S104 - the guard stands in front, and a platform's proxy comes from outside
                "port": deployment.port,
                "served_model_name": deployment.model.served_name,
                "skip_server_warmup": True,
                "metrics": self.metrics,
                "memory_saver": saver,
                "weights_backup": saver and self.weights_backup and self.weights_store == "saver",
            }
        return engine_argv(self.version, options)

    def _rules(self, deployment: Deployment) -> GuardRules:
        metrics = ("/metrics",) if self.metrics and self.open_metrics else ()
        return GuardRules(
            public=self.public_paths,
            open=(*metrics, *(routes.DOCS if self.open_docs else ())),
            keyed=routes.KEYED,
            sleep=routes.SLEEP,
            wake=routes.WAKE,
            bearer_sha256=self.api_key_sha256,
            max_body_bytes=self.max_body_bytes,
            max_in_flight=deployment.scaling.max_concurrency,
        )

    def _flush_when_idle(self, client: httpx.Client) -> None:
        """Wait until the scheduler is idle: a release before that fails an assertion and ends the server.

        The guard knows when the last answer left; the scheduler may need a moment longer. /flush_cache answers 400
        until it is idle, in every supported version.
        """
        deadline = time.monotonic() + _IDLE_TIMEOUT_S
        while (response := client.post("/flush_cache")).status_code != _OK:
            if time.monotonic() > deadline:
                raise EngineRequestError(
                    f"SGLang was not idle {_IDLE_TIMEOUT_S:g} s after the last answer: POST /flush_cache gives "
                    f"{response.status_code} {response.text[:200]!r}. Nothing was released."
                )
            time.sleep(0.05)


def _post(client: httpx.Client, path: str, body: dict[str, object]) -> None:
    """Post a management call and demand 200.

    Raises:
        EngineRequestError: anything else came back.
    """
    response = client.post(path, json=body)
    if response.status_code != _OK:
        raise EngineRequestError(
            f"SGLang answered POST {path} {body} with {response.status_code}: {response.text[:500]!r}."
        )
