"""Our options as SGLang's flags, held against the real argument parsers of all supported versions."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import pytest

from torpor import ConfigurationError
from torpor_sglang.flags import FLAGS, Flag, OptionValue, engine_argv, flag_name
from torpor_sglang.reserved import check_extra_args, reserved_flags
from torpor_sglang.versions import SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from tests.plugins.local_engines import Questions

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
    "load_format": "safetensors",
    "skip_server_warmup": True,
    "attention_backend": "torch_native",
    "sleep_on_idle": True,
    "disable_overlap_schedule": True,
}

# Options of any version that sound like a door or a way out, and were judged: they open no port and take no calls.
JUDGED = {
    "--custom-weight-loader": "names code of the user's own",
    "--debug-tensor-dump-input-file": "reads a file",
    "--decrypted-config-file": "reads a file",
    "--decrypted-draft-config-file": "reads a file",
    "--detokenizer-worker-num": "processes without a port",
    "--disable-custom-all-reduce": "no door",
    "--disaggregation-decode-host-receive-threshold": "only with the refused --disaggregation-mode",
    "--disaggregation-ib-device": "only with the refused --disaggregation-mode",
    "--enable-cache-report": "no door",
    "--enable-profile-cuda-graph": "no door",
    "--enable-unified-cache-external-linker": "goes out to a store",
    "--expert-balancedness-report-mode": "no door",
    "--export-metrics-to-file": "writes a file",
    "--export-metrics-to-file-dir": "writes a file",
    "--file-storage-path": "a folder",
    "--flexkv-config-file": "reads a file",
    "--forward-hooks": "names code of the user's own",
    "--forward-pass-metrics-ipc-name": "a socket in the file system",
    "--forward-pass-metrics-worker-id": "a number",
    "--hicache-host-memory-fraction": "host memory",
    "--hicache-host-memory-mode": "host memory",
    "--lmcache-config-file": "reads a file",
    "--log-level-http": "no door",
    "--media-url-max-file-size-mb": "a limit",
    "--mm-feature-transport": "between the engine's own processes",
    "--mm-io-worker-num": "threads",
    "--mm-processor-worker-num": "threads",
    "--modelopt-export-path": "a folder",
    "--nccl-port": "where the engine's own ranks meet, on loopback",
    "--numa-node": "no door",
    "--otlp-traces-endpoint": "goes out",
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
    "--trust-mm-content-hashes": "no door",
    "--trust-remote-code": "runs the model's own code: the user's choice of model",
    "--trust-request-chat-template": "a sandboxed template",
    "--unified-cache-external-linker-backend": "goes out to a store",
    "--unified-cache-external-linker-config": "goes out to a store",
}
SOUNDS_LIKE_A_DOOR = re.compile(
    "port|grpc|ssl|tls|key|http|endpoint|bootstrap|sidecar|url|server|addr|host|listen|bind|socket|ray|worker|remote|zmq|ipc|"
    "custom|hook|node|external|file|pickle|trust"
)


@pytest.mark.sglang
@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.option)
def test_every_flag_is_read_by_the_real_parser_as_the_option_meant(questions: Questions, flag: Flag) -> None:
    """A flag, alone beside the model, is taken in full by the version's parser and gives the option's value."""
    if questions.version in flag.needless:
        assert engine_argv(questions.version, {flag.option: VALUES[flag.option]}) == ()
        return
    base: dict[str, OptionValue] = {} if flag.option == "model_path" else {"model_path": "some/model"}
    value = VALUES[flag.option]
    answer = questions.parse(engine_argv(questions.version, base | {flag.option: value}))
    assert "error" not in answer
    values = answer["values"]
    assert isinstance(values, dict)
    attributes = [name[2:].replace("-", "_") for name in (flag.name(questions.version), *flag.aliases)]
    assert [values[name] for name in attributes if name in values] == [flag.fixed or str(value)]


@pytest.mark.sglang
def test_all_flags_together_are_read_by_the_real_parser(questions: Questions) -> None:
    """The whole set that a plugin may ask for is one valid command line."""
    together = {option: value for option, value in VALUES.items() if option != "load_format"}
    assert "error" not in questions.parse(engine_argv(questions.version, together))


@pytest.mark.sglang
@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.option)
def test_flags_are_written_in_full(questions: Questions, flag: Flag) -> None:
    """No flag leans on argparse's abbreviations: its name is among the version's own spellings."""
    spellings = {name for names in questions.ask("options") for name in names}
    if questions.version in flag.needless:
        assert flag.flag not in spellings
        return
    assert flag.name(questions.version) in spellings


@pytest.mark.sglang
@pytest.mark.parametrize(
    ("version", "argv", "complaint"),
    [
        ("0.5.23", ("--cuda-graph-max-bs", "8"), "ambiguous option: --cuda-graph-max-bs"),
        ("0.5.6.post2", ("--cuda-graph-max-bs-decode", "8"), "unrecognized arguments: --cuda-graph-max-bs-decode"),
        ("0.5.16", ("--no-such-flag",), "unrecognized arguments: --no-such-flag"),
    ],
)
def test_a_flag_that_a_version_lacks_is_refused_by_its_real_parser(
    request: pytest.FixtureRequest, version: str, argv: tuple[str, ...], complaint: str
) -> None:
    """The parsers are the real ones, so the tests above can fail."""
    questions = request.getfixturevalue("asked")(version)
    assert complaint in questions.parse(("--model-path", "some/model", *argv)).get("error", "")


@pytest.mark.sglang
def test_the_version_asked_is_the_version_answering(questions: Questions) -> None:
    """Each version's own code is imported, not that of the environment that lends its dependencies."""
    assert questions.ask("version")["distribution"] == questions.version


@pytest.mark.sglang
def test_every_other_flag_of_the_engine_may_be_passed_through(questions: Questions) -> None:
    """A flag that is not reserved is not refused, whatever it begins with."""
    reserved = set(reserved_flags())
    for name in itertools.chain.from_iterable(questions.ask("options")):
        if name.startswith("--") and name not in reserved:
            check_extra_args(questions.version, (name,))


@pytest.mark.sglang
def test_every_spelling_of_a_reserved_flag_is_reserved(questions: Questions) -> None:
    """The parser's aliases are reserved with the flag."""
    reserved = set(reserved_flags())
    for names in questions.ask("options"):
        long = {name for name in names if name.startswith("--")}
        assert not long & reserved or long <= reserved


@pytest.mark.sglang
def test_every_reserved_flag_is_real(asked: object, request: pytest.FixtureRequest) -> None:
    """No reserved flag is a misspelling: some supported version has it."""
    ask = request.getfixturevalue("asked")
    real = {name for version in SUPPORTED_VERSIONS for names in ask(version).ask("options") for name in names}
    assert not set(reserved_flags()) - real


@pytest.mark.sglang
def test_every_option_that_sounds_like_a_door_has_been_judged(questions: Questions) -> None:
    """A new version's new ports, servers and keys are noticed: each is reserved, or judged harmless above."""
    known = set(reserved_flags()) | set(JUDGED)
    names = {name for names in questions.ask("options") for name in names if name.startswith("--")}
    assert sorted(name for name in names - known if SOUNDS_LIKE_A_DOOR.search(name)) == []


def test_options_that_are_off_leave_no_flag() -> None:
    """None and False write nothing; True writes the flag alone."""
    argv = engine_argv("0.5.16", {"model_path": "m", "revision": None, "metrics": False, "memory_saver": True})
    assert argv == ("--model-path", "m", "--enable-memory-saver")


def test_the_order_of_the_flags_does_not_depend_on_the_order_of_the_options() -> None:
    """The same options give the same command line, so that a cache key made of it holds."""
    one = engine_argv("0.5.23", {"port": 1, "host": "h"})
    other = engine_argv("0.5.23", {"host": "h", "port": 1})
    assert one == other == ("--host", "h", "--port", "1")


@pytest.mark.parametrize(
    ("version", "flag"),
    [
        ("0.5.6.post2", "--cuda-graph-max-bs"),
        ("0.5.16", "--cuda-graph-max-bs-decode"),
        ("0.5.23", "--cuda-graph-max-bs-decode"),
    ],
)
def test_the_graph_limit_has_each_versions_own_name(version: str, flag: str) -> None:
    """One option, and the flag that the version knows it by."""
    assert engine_argv(version, {"cuda_graph_max_batch": 1000}) == (flag, "1000")


def test_an_unknown_option_is_an_error_that_lists_the_known_ones() -> None:
    """A misspelt option is not dropped."""
    with pytest.raises(ConfigurationError, match=r"'cuda_graph_max_bs' is unknown; known: model_path, .*metrics"):
        engine_argv("0.5.23", {"cuda_graph_max_bs": 8})


def test_an_unsupported_version_has_no_flags() -> None:
    """A version without records is refused, not guessed."""
    with pytest.raises(
        ConfigurationError, match=r"0\.4\.0 is not supported; supported are 0\.5\.6\.post2, 0\.5\.16, 0\.5\.23"
    ):
        flag_name("0.4.0", "port")


def test_two_options_cannot_set_one_flag() -> None:
    """Dummy weights and a load format exclude each other."""
    with pytest.raises(ConfigurationError, match="load_format wants --load-format, which another option has set"):
        engine_argv("0.5.23", {"dummy_weights": True, "load_format": "pt"})


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.option)
def test_every_flag_has_a_reason_and_a_source(flag: Flag) -> None:
    """A record says why we set the flag and where each version defines it."""
    assert len(flag.reason) > 20
    assert all(version in flag.source for version in SUPPORTED_VERSIONS)
    assert flag.instead.endswith(".")
