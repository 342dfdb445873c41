"""The plugin's options as SGLang flags, and extra arguments, checked with the real parsers of all supported versions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar, cast

import pytest
from typing_extensions import override

from tests.plugins.engine_rules.flags import FlagRules, RealFlagRules, ReservedRules
from tests.shown import ROWS
from torpor import Draft
from torpor_sglang import SGLang
from torpor_sglang.drafts import draft_words
from torpor_sglang.flags import FLAGS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.plugins.local_engines import Questions
    from torpor.engine_plugins.flags import OptionValue

ADAPTER = '{"lora_name": "sql", "lora_path": "/adapters/a=b, c"}'

VALUES: dict[str, OptionValue] = {
    "model_path": "Qwen/Qwen3-8B-FP8",
    "revision": "220b46e3b2180893580a4454f21f22d3ebb187d3",
    "served_model_name": "tiny",
    "host": "0.0.0.0",
    "port": 8000,
    "tp_size": 2,
    "device": "cpu",
    "max_running_requests": 1000,
    "max_total_tokens": 4096,
    "cuda_graph_max_batch": 1000,
    "no_prefill_graphs": True,
    "memory_saver": True,
    "weights_backup": True,
    "mem_fraction_static": 0.1,
    "metrics": True,
    "dummy_weights": True,
    "embedding": True,
    "load_format": "safetensors",
    "skip_server_warmup": True,
    "attention_backend": "torch_native",
    "sleep_on_idle": True,
    "disable_overlap_schedule": True,
    "enable_adapters": True,
    "adapters_per_batch": 3,
    "max_adapter_rank": 64,
    "adapters": (ADAPTER,),
}

# Options of any version with suspicious names that were reviewed: they open no port and accept no calls.
JUDGED = {
    "--allow-auto-truncate": "shortens prompts",
    "--bucket-e2e-request-latency": "numbers of the metrics",
    "--chat-template": "the server's own",
    "--completion-template": "the server's own",
    "--crash-dump-folder": "a folder",
    "--custom-weight-loader": "names code of the user's own",
    "--debug-tensor-dump-inject": "no door",
    "--debug-tensor-dump-input-file": "reads a file",
    "--debug-tensor-dump-layers": "numbers",
    "--debug-tensor-dump-output-folder": "a folder",
    "--decrypted-config-file": "reads a file",
    "--decrypted-draft-config-file": "reads a file",
    "--default-chat-template-kwargs": "the server's own",
    "--detokenizer-worker-num": "processes without a port",
    "--disable-custom-all-reduce": "no door",
    "--disaggregation-decode-host-receive-threshold": "only with the refused --disaggregation-mode",
    "--disaggregation-ib-device": "only with the refused --disaggregation-mode",
    "--disaggregation-transfer-backend": "only with the refused --disaggregation-mode",
    "--enable-cache-report": "no door",
    "--enable-dp-attention-local-control-broadcast": "between the engine's own processes",
    "--enable-precise-embedding-interpolation": "no door",
    "--enable-profile-cuda-graph": "no door",
    "--enable-request-time-stats-logging": "times in the log",
    "--enable-unified-cache-external-linker": "goes out to a store",
    "--encoder-transfer-backend": "only with the refused --encoder-only",
    "--expert-balancedness-report-mode": "no door",
    "--export-metrics-to-file": "writes a file",
    "--export-metrics-to-file-dir": "writes a file",
    "--file-storage-path": "a folder",
    "--flexkv-config-file": "reads a file",
    "--forward-hooks": "names code of the user's own",
    "--forward-pass-metrics-ipc-name": "a socket in the file system",
    "--forward-pass-metrics-worker-id": "a number",
    "--hf-chat-template-name": "the server's own",
    "--hicache-host-memory-fraction": "host memory",
    "--hicache-host-memory-mode": "host memory",
    "--is-embedding": "another kind of model",
    "--limit-mm-data-per-request": "a limit",
    "--lmcache-config-file": "reads a file",
    "--load-snapshot-publish-interval": "a number",
    "--log-level-http": "no door",
    "--log-requests": "prompts in the log, which is the owner's alone",
    "--log-requests-format": "a form",
    "--log-requests-level": "prompts in the log, which is the owner's alone",
    "--log-requests-target": "where the log goes",
    "--max-queued-requests": "a limit",
    "--media-url-max-file-size-mb": "a limit",
    "--mm-feature-transport": "between the engine's own processes",
    "--mm-io-worker-num": "threads",
    "--mm-per-request-timeout": "a limit",
    "--mm-processor-worker-num": "threads",
    "--modelopt-export-path": "a folder",
    "--msprobe-dump-config": "reads a file",
    "--nccl-port": "where the engine's own ranks meet, on loopback",
    "--no-ple-offload-embedding": "no door",
    "--numa-node": "no door",
    "--otlp-traces-endpoint": "goes out",
    "--ple-offload-embedding": "where the model's own weights are",
    "--prefill-max-requests": "a limit",
    "--remote-instance-weight-loader-backend": "goes out for weights",
    "--remote-instance-weight-loader-seed-instance-ip": "goes out for weights",
    "--remote-instance-weight-loader-seed-instance-service-port": "goes out for weights",
    "--remote-instance-weight-loader-send-weights-group-ports": "goes out for weights",
    "--rl-quant-profile": "reads a file",
    "--speculative-ngram-external-corpus-max-tokens": "a limit",
    "--speculative-ngram-external-corpus-path": "reads a file",
    "--speculative-ngram-external-sam-budget": "a limit",
    "--tokenizer-metrics-allowed-custom-labels": "labels",
    "--tokenizer-metrics-custom-labels-header": "labels",
    "--tool-server": "goes out",
    "--trust-remote-code": "runs the model's own code: the user's choice of model",
    "--unified-cache-external-linker-backend": "goes out to a store",
    "--unified-cache-external-linker-config": "goes out to a store",
}


class TestTheTable(FlagRules):
    """SGLang's."""

    engine = SGLang
    values = VALUES


class TestExtraArguments(ReservedRules):
    """SGLang's."""

    engine = SGLang
    passing = (
        (),
        ("--page-size", "16"),
        ("--chunked-prefill-size", "-1"),
        ("--schedule-policy=fcfs",),
        ("--json-model-override-args", '{"rope_theta": 1}'),
        ("--enable-metrics-for-all-schedulers",),
    )


@pytest.mark.sglang
@pytest.mark.shows(ROWS[0], engine="sglang", version="{questions}")
class TestTheRealParsers(RealFlagRules):
    """SGLang's."""

    engine = SGLang
    values = VALUES
    before: ClassVar[tuple[str, ...]] = ("--model-path", "some/model")
    judged: ClassVar[Mapping[str, str]] = JUDGED

    @override
    def _as_read(self, value: OptionValue) -> str:
        return str([json.loads(ADAPTER)]) if value == (ADAPTER,) else str(value)


@pytest.mark.sglang
@pytest.mark.parametrize(
    ("version", "argv", "complaint"),
    [
        ("0.5.23", ("--cuda-graph-max-bs", "8"), "ambiguous option: --cuda-graph-max-bs"),
        ("0.5.6.post2", ("--cuda-graph-max-bs-decode", "8"), "unrecognized arguments: --cuda-graph-max-bs-decode"),
    ],
)
def test_a_versions_real_parser_refuses_a_flag_that_it_lacks(
    request: pytest.FixtureRequest, version: str, argv: tuple[str, ...], complaint: str
) -> None:
    """This shows that the parsers are real and the tests above can fail."""
    questions = request.getfixturevalue("asked")(version)
    assert complaint in questions.parse(("--model-path", "some/model", *argv)).get("error", "")


@pytest.mark.sglang
def test_the_requested_version_answers(questions: Questions) -> None:
    """Each version imports its own code, not that of the environment with its dependencies."""
    assert questions.ask("version")["distribution"] == questions.version


@pytest.mark.sglang
@pytest.mark.slow
def test_a_config_file_cannot_set_a_reserved_flag(questions: Questions, tiny_model: Path, tmp_path: Path) -> None:
    """The launcher checks SGLang's arguments after SGLang has read its configuration file."""
    config = tmp_path / "engine.yaml"
    config.write_text("tokenizer-worker-num: 2\n")
    argv = ("--model-path", str(tiny_model), "--device", "cpu", "--attention-backend", "torch_native")
    harmless = questions.ask("checked", argv=argv)
    refused = questions.ask("checked", argv=(*argv, "--config", str(config)))
    assert harmless == {}
    assert "would start with tokenizer_worker_num=2" in refused["refused"]


def test_an_option_that_is_off_sets_no_flag() -> None:
    """None and False set no flag; True sets the flag without a value."""
    argv = FLAGS.argv("0.5.16", {"model_path": "m", "revision": None, "metrics": False, "memory_saver": True})
    assert argv == ("--model-path", "m", "--enable-memory-saver")


@pytest.mark.parametrize(
    ("version", "flag"),
    [
        ("0.5.6.post2", "--cuda-graph-max-bs"),
        ("0.5.16", "--cuda-graph-max-bs-decode"),
        ("0.5.18", "--cuda-graph-max-bs-decode"),
        ("0.5.23", "--cuda-graph-max-bs-decode"),
    ],
)
def test_the_graph_limit_has_each_versions_own_name(version: str, flag: str) -> None:
    """One option sets the flag that the version has."""
    assert FLAGS.argv(version, {"cuda_graph_max_batch": 1000}) == (flag, "1000")


DRAFTS = (
    Draft(repo_id="a/draft", revision="0" * 40, tokens=3),
    Draft(method="eagle", path="/e"),
    Draft(method="eagle3", path="/e"),
    Draft(method="ngram", tokens=7),
)


@pytest.mark.sglang
@pytest.mark.parametrize("draft", DRAFTS, ids=lambda draft: draft.method)
def test_each_versions_real_parser_reads_a_draft(questions: Questions, draft: Draft) -> None:
    """Its algorithm, its weights with their commit, and its guesses."""
    answer = questions.parse(("--model-path", "some/model", *draft_words(draft)))
    assert "error" not in answer, answer
    values = cast("dict[str, str]", answer["values"])
    algorithm = {"model": "STANDALONE", "ngram": "NGRAM"}.get(draft.method, draft.method.upper())
    assert values["speculative_algorithm"] == algorithm
    assert values["speculative_draft_model_path"] == str(draft.source or None)
    assert values["speculative_draft_model_revision"] == str(draft.revision)
    assert values["speculative_num_draft_tokens"] == str(draft.tokens + 1)
