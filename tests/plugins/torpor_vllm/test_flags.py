"""The plugin's options as vLLM flags, and extra arguments, checked with the real parsers of all supported versions."""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, ClassVar, cast

import pytest
from typing_extensions import override

from tests.plugins.engine_rules.flags import FlagRules, RealFlagRules, ReservedRules
from tests.shown import ROWS
from torpor import DRAFT_METHODS, Deployment, Draft, Model
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.plugins.local_engines import Questions
    from torpor import DraftMethod
    from torpor.engine_plugins.flags import OptionValue

ADAPTER = '{"name": "sql", "path": "/adapters/a=b, c", "base_model_name": "tiny"}'

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
    "runner": "pooling",
    "load_strategy": "prefetch",
    "attention_backend": "TRITON_ATTN",
    "worker_extension": "torpor_vllm.worker.Renewal",
    "enable_adapters": True,
    "adapters_per_batch": 2,
    "adapters_in_memory": 4,
    "max_adapter_rank": 64,
    "adapters": (ADAPTER,),
    "no_access_log": True,
    "no_metrics": True,
}

# Options of any version with suspicious names that were reviewed: they open no port and accept no calls.
JUDGED = {
    "--allow-credentials": "what browsers may send",
    "--allow-deprecated-quantization": "no door",
    "--allowed-headers": "what browsers may send",
    "--allowed-methods": "what browsers may send",
    "--allowed-origins": "which pages of browsers may read answers",
    "--chat-template": "the server's own",
    "--chat-template-content-format": "the server's own",
    "--custom-histogram-buckets": "numbers of the metrics",
    "--default-chat-template-kwargs": "the server's own",
    "--disable-access-log-for-endpoints": "no door",
    "--disable-custom-all-reduce": "no door",
    "--disable-log-requests": "the default",
    "--disable-per-request-metrics": "the default",
    "--disable-request-id-headers": "the default",
    "--disable-server-load-tracking": "a number, at a keyed route",
    "--disable-tokenizer-info-endpoint": "a route that the guard keeps closed",
    "--enable-custom-all-reduce": "no door",
    "--enable-log-requests": "prompts in the log, which is the owner's alone",
    "--enable-per-request-metrics": "numbers in an answer",
    "--enable-request-id-headers": "an id in an answer",
    "--enable-server-load-tracking": "a number, at a keyed route",
    "--enable-tokenizer-info-endpoint": "a route that the guard keeps closed",
    "--io-processor-plugin": "names code of the user's own",
    "--log-config-file": "reads a file",
    "--max-parallel-loading-workers": "a number",
    "--media-io-kwargs": "the server's own",
    "--mm-ipc-gpu-memory-gb": "between the engine's own processes",
    "--mm-tensor-ipc": "between the engine's own processes",
    "--no-allow-credentials": "the default",
    "--no-allow-deprecated-quantization": "the default",
    "--no-disable-custom-all-reduce": "no door",
    "--no-enable-log-requests": "the default",
    "--no-enable-per-request-metrics": "the default",
    "--no-enable-request-id-headers": "the default",
    "--no-enable-server-load-tracking": "a number, at a keyed route",
    "--no-enable-tokenizer-info-endpoint": "a route that the guard keeps closed",
    "--no-numa-bind": "no door",
    "--no-ray-workers-use-nsight": "only with the refused executor",
    "--no-trust-remote-code": "the default",
    "--numa-bind": "no door",
    "--numa-bind-cpus": "no door",
    "--numa-bind-nodes": "no door",
    "--otlp-traces-endpoint": "goes out",
    "--per-request-spec-decode-metrics": "numbers in an answer",
    "--profiler-config": "routes that the guard keeps closed",
    "--ray-workers-use-nsight": "only with the refused executor",
    "--reasoning-parser-plugin": "names code of the user's own",
    "--renderer-num-workers": "threads",
    "--tool-parser-plugin": "names code of the user's own",
    "--tool-server": "goes out",
    "--trust-remote-code": "runs the model's own code: the user's choice of model",
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
        if value == (ADAPTER,):
            fields = "name='sql', path='/adapters/a=b, c', base_model_name='tiny', is_3d_lora_weight=False"
            return f"[LoRAModulePath({fields})]"
        return "['tiny']" if value == "tiny" else str(value)  # a model may have several served names


@pytest.mark.vllm
@pytest.mark.parametrize("method", DRAFT_METHODS)
def test_each_versions_real_parser_reads_a_draft(questions: Questions, method: DraftMethod) -> None:
    """As a mapping, with a method and fields that vLLM's configuration has."""
    draft = Draft(method=method) if method == "ngram" else Draft(method=method, repo_id="a/draft", revision="0" * 40)
    plugin = VLLM(version=questions.version)
    deployment = Deployment(name="d", model=Model(path="/m", draft=draft), gpu="H100", plugins=(plugin,))
    words = plugin.engine_flags(deployment, serving=False)[-2:]
    answer = questions.parse(("some/model", *words))
    assert "error" not in answer, answer
    values = cast("dict[str, str]", answer["values"])
    assert ast.literal_eval(values["speculative_config"]) == json.loads(words[1])
    known = questions.ask("speculation")
    assert set(json.loads(words[1])) <= set(known["fields"])
    assert json.loads(words[1])["method"] in known["methods"]
