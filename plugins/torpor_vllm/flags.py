"""The plugin's options as vLLM flags, in every supported version."""

from __future__ import annotations

from torpor.engine_plugins import Flag, FlagTable
from torpor_vllm.versions import VERSIONS

__all__ = ["FLAGS"]


def _source(engine_args: str) -> str:
    return f"0.32.0 and 0.33.0 engine/arg_utils.py, {engine_args}"


def _frontend(where: str) -> str:
    return f"0.32.0 entrypoints/launchers/cli_args.py, 0.33.0 entrypoints/common/cli_args.py, {where}"


FLAGS = FlagTable(
    versions=VERSIONS,
    flags=(
        Flag(
            option="revision",
            instead="Use Model.revision.",
            flag="--revision",
            reason="pins weights and tokenizer to one commit; without it the engine would ask the hub for the newest one",
            source=_source("ModelConfig; config/model.py:609 for the tokenizer"),
        ),
        Flag(
            option="served_model_name",
            instead="Use Model.served_name.",
            flag="--served-model-name",
            reason="the name that clients send and /v1/models shows; a request with another name gets 404",
            source=_source("ModelConfig"),
        ),
        Flag(
            option="host",
            instead="Use Deployment.host.",
            flag="--host",
            reason="the deployment's address, because the engine's default is every interface; 0.0.0.0 in a Modal container, "
            "because Modal's proxy connects from outside",
            source=_frontend("FrontendArgs.host"),
        ),
        Flag(
            option="port",
            instead="Use Deployment.port.",
            flag="--port",
            reason="the port that the platform publishes",
            source=_frontend("FrontendArgs.port"),
        ),
        Flag(
            option="tensor_parallel",
            instead="Use VLLM(tensor_parallel=...).",
            flag="--tensor-parallel-size",
            reason="number of GPUs that share the model",
            source=_source("ParallelConfig"),
        ),
        Flag(
            option="max_num_seqs",
            instead="Use Scaling.max_concurrency.",
            flag="--max-num-seqs",
            reason="largest batch, in requests; the same as the platform's limit of concurrent requests",
            source=_source("SchedulerConfig"),
        ),
        Flag(
            option="max_model_len",
            instead="Use VLLM(max_model_len=...).",
            flag="--max-model-len",
            reason="most tokens of prompt and answer together; the model's own limit may need more KV cache than fits",
            source=_source("ModelConfig"),
        ),
        Flag(
            option="memory_utilization",
            instead="Use VLLM(memory_utilization=...).",
            flag="--gpu-memory-utilization",
            aliases=("--device-memory-utilization",),
            reason="share of the memory for weights, KV cache and graphs",
            source=_source("CacheConfig"),
        ),
        Flag(
            option="kv_cache_bytes",
            instead="Use VLLM(kv_cache_bytes=...).",
            flag="--kv-cache-memory-bytes",
            reason="size of the KV cache; on a CPU the default takes most of the memory",
            source=_source("CacheConfig; v1/worker/cpu_worker.py"),
        ),
        Flag(
            option="sleep_mode",
            instead="Leave it out: it is set for a GPU.",
            flag="--enable-sleep-mode",
            reason="without it weights and KV cache cannot be released; on a CPU they never can, so the engine only pauses",
            source=_source("ModelConfig; config/model.py:666"),
        ),
        Flag(
            option="offload_graphs",
            instead="Use VLLM(offload_graphs=...).",
            flag="--sleep-mode-offload-cudagraph",
            reason="moves the memory of CUDA graphs to the host during the sleep, too, and restores it at the same addresses",
            source=_source("ModelConfig; config/model.py:384"),
        ),
        Flag(
            option="eager",
            instead="Use VLLM(eager=...).",
            flag="--enforce-eager",
            reason="no torch.compile and no CUDA graphs: the fastest start and the slowest answers",
            source=_source("ModelConfig"),
        ),
        Flag(
            option="cuda_graph_max_batch",
            instead="Use VLLM(cuda_graph_max_batch=...).",
            flag="--max-cudagraph-capture-size",
            reason="largest batch with a captured CUDA graph: every size costs start-up time and memory",
            source=_source("CompilationConfig"),
        ),
        Flag(
            option="dummy_weights",
            instead="Use VLLM(dummy_weights=...).",
            flag="--load-format",
            fixed="dummy",
            reason="random weights in the real shapes, to try start-up and sleep without a download",
            source=_source("LoadConfig"),
        ),
        Flag(
            option="runner",
            instead="Use Deployment.task.",
            flag="--runner",
            reason="the task asks for vectors, scores or labels: without it vLLM runs a causal model to generate text",
            source=_source("ModelConfig; config/model.py, RunnerOption"),
        ),
        Flag(
            option="load_format",
            instead="Use VLLM(load_format=...).",
            flag="--load-format",
            reason="how weights are read, e.g. by a faster loader",
            source=_source("LoadConfig"),
            shared=True,
        ),
        Flag(
            option="load_strategy",
            instead="Use VLLM(load_strategy=...).",
            flag="--safetensors-load-strategy",
            reason="how safetensors files are read; `prefetch` reads ahead into the page cache, for network file systems",
            source=_source("LoadConfig"),
        ),
        Flag(
            option="attention_backend",
            instead="Use VLLM(attention_backend=...).",
            flag="--attention-backend",
            reason="attention kernels, by vLLM's name",
            source=_source("AttentionConfig"),
        ),
        Flag(
            option="worker_extension",
            instead="Leave it out: it is always set.",
            flag="--worker-extension-cls",
            reason="lets the workers renew their random state after a restore, because every replica starts with the same one",
            source=_source("ParallelConfig; v1/worker/worker_base.py"),
        ),
        Flag(
            option="enable_adapters",
            instead="Use Model.adapters.",
            flag="--enable-lora",
            reason="the model has adapters: each layer gets buffers for them",
            source=_source("LoRAConfig"),
            shared=True,
        ),
        Flag(
            option="adapters_per_batch",
            instead="Use Model.adapters and VLLM(adapters_per_batch=...).",
            flag="--max-loras",
            reason="adapters that requests in one batch may ask for; each takes memory beside the weights. The default is 1",
            source=_source("LoRAConfig; config/lora.py"),
            shared=True,
        ),
        Flag(
            option="adapters_in_memory",
            instead="Use Model.adapters.",
            flag="--max-cpu-loras",
            reason="all adapters stay in memory, those of no batch in host memory: after a wake nothing is read again",
            source=_source("LoRAConfig; config/lora.py"),
            shared=True,
        ),
        Flag(
            option="max_adapter_rank",
            instead="Use VLLM(max_adapter_rank=...).",
            flag="--max-lora-rank",
            reason="the highest rank among the adapters; the buffers have this size",
            source=_source("LoRAConfig; config/lora.py, MaxLoRARanks"),
            shared=True,
        ),
        Flag(
            option="adapters",
            instead="Use Model.adapters.",
            flag="--lora-modules",
            reason="the adapters are loaded with the model, so a snapshot holds them",
            source=_frontend("LoRAParserAction"),
            shared=True,
        ),
        Flag(
            option="no_access_log",
            instead="Use VLLM(access_log=...).",
            flag="--disable-uvicorn-access-log",
            reason="errors quote the end of the log, and one line for every request would fill it",
            source=_frontend("FrontendArgs.disable_uvicorn_access_log"),
        ),
        Flag(
            option="no_metrics",
            instead="Use VLLM(metrics=...).",
            flag="--disable-log-stats",
            reason="drops all metrics but uvicorn's",
            source=_source("EngineArgs.disable_log_stats"),
        ),
    ),
)
