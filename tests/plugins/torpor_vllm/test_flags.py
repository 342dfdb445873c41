"""Our options as vLLM's flags, and what else may be said to it, held against the real parsers of all supported versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
from typing_extensions import override

from tests.plugins.engine_rules.flags import FlagRules, RealFlagRules, ReservedRules
from tests.shown import ROWS
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.engines.flags import OptionValue

VALUES: dict[str, OptionValue] = {
    "revision": "220b46e3b2180893580a4454f21f22d3ebb187d3",
    "served_model_name": "tiny",
    "host": "0.0.0.0",
    "port": 8000,
    "tensor_parallel": 2,
    "max_num_seqs": 1000,
    "max_model_len": 2048,
    "memory_utilization": 0.5,
    "kv_cache_bytes": 1073741824,
    "sleep_mode": True,
    "offload_graphs": True,
    "eager": True,
    "cuda_graph_max_batch": 1000,
    "dummy_weights": True,
    "load_format": "safetensors",
    "load_strategy": "prefetch",
    "attention_backend": "TRITON_ATTN",
    "worker_extension": "torpor_vllm.worker.Renewal",
    "no_access_log": True,
    "no_metrics": True,
}

# Options of any version that sound like a door or a way out, and were judged: they open no port and take no calls.
JUDGED = {
    "--custom-histogram-buckets": "numbers of the metrics",
    "--disable-access-log-for-endpoints": "no door",
    "--disable-custom-all-reduce": "no door",
    "--disable-server-load-tracking": "a number, at a keyed route",
    "--disable-tokenizer-info-endpoint": "a route that the guard keeps closed",
    "--enable-custom-all-reduce": "no door",
    "--enable-server-load-tracking": "a number, at a keyed route",
    "--enable-tokenizer-info-endpoint": "a route that the guard keeps closed",
    "--log-config-file": "reads a file",
    "--max-parallel-loading-workers": "a number",
    "--mm-ipc-gpu-memory-gb": "between the engine's own processes",
    "--mm-tensor-ipc": "between the engine's own processes",
    "--no-disable-custom-all-reduce": "no door",
    "--no-enable-server-load-tracking": "a number, at a keyed route",
    "--no-enable-tokenizer-info-endpoint": "a route that the guard keeps closed",
    "--no-numa-bind": "no door",
    "--no-ray-workers-use-nsight": "only with the refused executor",
    "--no-trust-remote-code": "the default",
    "--no-trust-request-chat-template": "the default",
    "--no-trust-request-mm-kwargs": "the default",
    "--numa-bind": "no door",
    "--numa-bind-cpus": "no door",
    "--numa-bind-nodes": "no door",
    "--otlp-traces-endpoint": "goes out",
    "--profiler-config": "routes that the guard keeps closed",
    "--ray-workers-use-nsight": "only with the refused executor",
    "--renderer-num-workers": "threads",
    "--tool-server": "goes out",
    "--trust-remote-code": "runs the model's own code: the user's choice of model",
    "--trust-request-chat-template": "a sandboxed template",
    "--trust-request-mm-kwargs": "options of the model's own processor",
    "--worker-cls": "names code of the user's own",
}


class TestTheTable(FlagRules):
    """vLLM's."""

    engine = VLLM
    values = VALUES


class TestExtraArguments(ReservedRules):
    """vLLM's."""

    engine = VLLM
    passing = (
        (),
        ("--block-size", "16"),
        ("--long-prefill-token-threshold", "-1"),
        ("--scheduling-policy=fcfs",),
        ("--compilation-config", '{"mode": 3}'),
        ("--compilation_config.mode", "3"),
        ("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    )


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.shows(ROWS[0], engine="vllm", version="{questions}")
class TestTheRealParsers(RealFlagRules):
    """vLLM's."""

    engine = VLLM
    values = VALUES
    before: ClassVar[tuple[str, ...]] = ("some/model",)
    judged: ClassVar[Mapping[str, str]] = JUDGED

    @override
    def _as_read(self, value: OptionValue) -> str:
        return "['tiny']" if value == "tiny" else str(value)  # a model may have several served names
