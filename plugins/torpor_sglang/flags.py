"""The plugin's options as SGLang flags, in every supported version."""

from __future__ import annotations

from torpor.engine_plugins import Flag, FlagTable
from torpor_sglang.versions import VERSIONS

__all__ = ["FLAGS"]


def _source(v0_5_6: int, v0_5_16: int, v0_5_18: int, v0_5_23: str) -> str:
    """Where each version defines a flag: the line of its server_args.py, or of a file in arg_groups/fields/ (0.5.23)."""
    older = {"0.5.6.post2": v0_5_6, "0.5.16": v0_5_16, "0.5.18": v0_5_18}
    lines = [f"{version} server_args.py:{line}" for version, line in older.items()]
    return "; ".join([*lines, f"0.5.23 arg_groups/fields/{v0_5_23}"])


FLAGS = FlagTable(
    versions=VERSIONS,
    flags=(
        Flag(
            option="model_path",
            instead="Use Deployment.model.",
            flag="--model-path",
            aliases=("--model",),
            reason="the repository id or the folder of the weights",
            source=_source(2126, 456, 492, "model.py:51"),
        ),
        Flag(
            option="revision",
            instead="Use Model.revision.",
            flag="--revision",
            reason="pins the weights to one commit; without it the engine would ask the hub for the newest one",
            source=_source(2216, 529, 598, "model.py:122"),
        ),
        Flag(
            option="served_model_name",
            instead="Use Model.served_name.",
            flag="--served-model-name",
            reason="the name that clients send and /v1/models shows; by default it would be the model path",
            source=_source(2746, 1124, 1369, "serving.py:168"),
        ),
        Flag(
            option="host",
            instead="Use Deployment.host.",
            flag="--host",
            reason="the deployment's address; 0.0.0.0 in a Modal container, because Modal's proxy connects from outside",
            source=_source(2239, 1054, 1277, "serving.py:65"),
        ),
        Flag(
            option="port",
            instead="Use Deployment.port.",
            flag="--port",
            reason="the port that the platform publishes",
            source=_source(2245, 1055, 1278, "serving.py:66"),
        ),
        Flag(
            option="tp_size",
            instead="Use SGLang(tensor_parallel=...).",
            flag="--tp-size",
            aliases=("--tensor-parallel-size",),
            reason="number of GPUs that share the model; '--tp' is only an abbreviation",
            source=_source(2491, 888, 1010, "parallel.py:45"),
        ),
        Flag(
            option="device",
            instead="Use SGLang(device=...).",
            flag="--device",
            reason="SGLang finds GPUs by itself, but a CPU has to be named",
            source=_source(2484, 1018, 1211, "device.py:24"),
        ),
        Flag(
            option="max_running_requests",
            instead="Use Scaling.max_concurrency.",
            flag="--max-running-requests",
            reason="largest batch, in requests; the same as the platform's limit of concurrent requests",
            source=_source(2377, 694, 779, "schedule.py:31"),
        ),
        Flag(
            option="max_total_tokens",
            instead="Use SGLang(max_total_tokens=...).",
            flag="--max-total-tokens",
            reason="size of the KV cache in tokens; on a CPU the default takes most of the memory (measured: 15 of 24 GB)",
            source=_source(2389, 701, 787, "schedule.py:39"),
        ),
        Flag(
            option="cuda_graph_max_batch",
            instead="Use SGLang(cuda_graph_max_batch=...).",
            flag="--cuda-graph-max-bs-decode",
            reason=(
                "largest batch with a captured CUDA graph: every size costs start-up time and memory. "
                "--cuda-graph-max-bs is a deprecated alias in 0.5.16, and in 0.5.23 an error because it is ambiguous"
            ),
            source=_source(3510, 1546, 1879, "exec_.py:629"),
            renamed=(("0.5.6.post2", "--cuda-graph-max-bs"),),
        ),
        Flag(
            option="no_prefill_graphs",
            instead="Use SGLang(prefill_graphs=...).",
            flag="--disable-prefill-cuda-graph",
            reason=(
                "0.5.16 and later capture CUDA graphs of prefills, too. That took 47 of the 98 s of a start (58 shapes, measured), "
                "and their memory cannot be released (breakable_cuda_graph_backend.py)"
            ),
            source="0.5.6.post2 has none unless told to (server_args.py:3638); "
            "0.5.16 server_args.py:1566; 0.5.18 server_args.py:1904; 0.5.23 arg_groups/fields/exec_.py:662",
            needless=("0.5.6.post2",),
        ),
        Flag(
            option="memory_saver",
            instead="Use SGLang(memory_saver=...).",
            flag="--enable-memory-saver",
            reason="without it a release answers 200 but frees no memory",
            source=_source(3715, 2827, 3478, "exec_.py:58"),
        ),
        Flag(
            option="weights_backup",
            instead="Use SGLang(weights_backup=...).",
            flag="--enable-weights-cpu-backup",
            reason="without it a release loses the weights, and the engine answers nonsense after the wake",
            source=_source(3720, 2831, 3483, "exec_.py:62"),
        ),
        Flag(
            option="mem_fraction_static",
            instead="Use SGLang(mem_fraction_static=...).",
            flag="--mem-fraction-static",
            reason="share of the memory for weights and KV cache",
            source=_source(2371, 690, 774, "schedule.py:27"),
        ),
        Flag(
            option="metrics",
            instead="Use SGLang(metrics=...).",
            flag="--enable-metrics",
            reason="Prometheus metrics at /metrics; by default the guard requires its key there",
            source=_source(2616, 1274, 1547, "observability.py:70"),
        ),
        Flag(
            option="dummy_weights",
            instead="Use SGLang(dummy_weights=...).",
            flag="--load-format",
            fixed="dummy",
            reason="random weights in the real shapes, to try start-up and sleep without a download",
            source=_source(2159, 486, 531, "model.py:58"),
        ),
        Flag(
            option="embedding",
            instead="Use Deployment.task.",
            flag="--is-embedding",
            reason="the task asks for vectors or labels: without it a causal model generates text",
            source=_source(2205, 524, 590, "model.py:118"),
        ),
        Flag(
            option="load_format",
            instead="Use SGLang(load_format=...).",
            flag="--load-format",
            reason="how weights are read, e.g. by a faster loader",
            shared=True,
            source=_source(2159, 486, 531, "model.py:58"),
        ),
        Flag(
            option="skip_server_warmup",
            instead="Leave it out: it is always set.",
            flag="--skip-server-warmup",
            reason=(
                "the engine's own warm-up sleeps for a second and sends one short completion; the plugin's warm-up sends real "
                "chats right after the start"
            ),
            source=_source(2262, 1089, 1319, "serving.py:116"),
        ),
        Flag(
            option="attention_backend",
            instead="Use SGLang(attention_backend=...).",
            flag="--attention-backend",
            reason="only torch_native runs on a CPU without AMX",
            source=_source(2938, 1398, 1698, "exec_.py:207"),
        ),
        Flag(
            option="sleep_on_idle",
            instead="Use SGLang(sleep_on_idle=...).",
            flag="--sleep-on-idle",
            reason="an idle scheduler polls without pause, which occupies one CPU core",
            source=_source(2568, 1039, 1256, "device.py:74"),
        ),
        Flag(
            option="enable_adapters",
            instead="Use Model.adapters.",
            flag="--enable-lora",
            reason="the model has adapters: each layer gets buffers for them",
            source=_source(2873, 2331, 2879, "lora.py:34"),
            shared=True,
        ),
        Flag(
            option="adapters_per_batch",
            instead="Use Model.adapters and SGLang(adapters_per_batch=...).",
            flag="--max-loras-per-batch",
            reason="adapters that requests in one batch may ask for, and one more for the model itself; each takes memory",
            source=_source(2903, 2363, 2917, "lora.py:66"),
            shared=True,
        ),
        Flag(
            option="max_adapter_rank",
            instead="Use SGLang(max_adapter_rank=...).",
            flag="--max-lora-rank",
            reason="the highest rank among the adapters; the buffers have this size",
            source=_source(2879, 2339, 2889, "lora.py:42"),
            shared=True,
        ),
        Flag(
            option="adapters",
            instead="Use Model.adapters.",
            flag="--lora-paths",
            reason="the adapters are loaded with the model, so a snapshot holds them",
            source=_source(2895, 2351, 2903, "lora.py:54"),
            shared=True,
        ),
        Flag(
            option="disable_overlap_schedule",
            instead="Leave it out: it is set for a CPU.",
            flag="--disable-overlap-schedule",
            reason="the overlapping scheduler needs GPU streams",
            source=_source(3592, 848, 963, "schedule.py:193"),
        ),
    ),
)
