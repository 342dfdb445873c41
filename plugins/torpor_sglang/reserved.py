"""Flags that an extra engine argument must not be: ours, and those that would open a way round the guard.

Checked twice: `check_extra_args` looks at the command line before the start, and the launcher looks at the arguments as
SGLang has parsed them, whatever they came from, and at the environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor_sglang.flags import FLAGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["RESERVED", "Reserved", "check_environment", "check_extra_args", "check_parsed_args", "reserved_flags"]


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """Flags that are refused for one reason.

    Args:
        flags: every spelling of every one of them, in full.
        why: what they would do.
        instead: what to use in their place.
        harmless: values of the parsed arguments that leave the guard in place, by attribute; others stop the launcher.
    """

    flags: tuple[str, ...]
    why: str
    instead: str
    harmless: tuple[tuple[str, tuple[object, ...]], ...] = ()


_ONE_DOOR = "Use the one HTTP server, which the guard stands before."
_NO_SPLIT = "Serve the whole model from one engine."

RESERVED = (
    Reserved(
        flags=("--tokenizer-worker-num", "--enable-http-worker-reuseport"),
        why="each HTTP worker would import the server anew, without the guard",
        instead="Keep one worker; start more replicas for more throughput.",
        harmless=(("tokenizer_worker_num", (1,)), ("enable_http_worker_reuseport", (False,))),
    ),
    Reserved(
        flags=(
            "--grpc-mode",
            "--smg-grpc-mode",
            "--grpc-port",
            "--grpc-response-timeout-secs",
            "--grpc-http-sidecar-port",
            "--smg-http-sidecar-port",
            "--sidecar",
            "--sidecar-args",
        ),
        why="it opens a gRPC server or a second HTTP server, which the guard does not see",
        instead=_ONE_DOOR,
        harmless=(
            ("grpc_mode", (False,)),
            ("smg_grpc_mode", (False,)),
            ("grpc_port", (None,)),
            ("sidecar", (None,)),
        ),
    ),
    Reserved(
        flags=("--enable-http2", "--http2-max-concurrent-streams", "--http2-initial-connection-window-size"),
        why="it replaces the HTTP server by one that the guard was not tested with",
        instead="Let the platform speak HTTP/2 to the clients.",
        harmless=(("enable_http2", (False,)),),
    ),
    Reserved(
        flags=("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--ssl-keyfile-password", "--enable-ssl-refresh"),
        why="with TLS in the engine the lifecycle could not reach its own guard, and a private key would be in the snapshot",
        instead="Let the platform end TLS.",
        harmless=(("ssl_keyfile", (None,)), ("ssl_certfile", (None,)), ("enable_ssl_refresh", (False,))),
    ),
    Reserved(
        flags=("--fastapi-root-path",),
        why="the engine would answer under paths that the guard's lists do not name",
        instead="Strip a prefix before the request reaches the server.",
        harmless=(("fastapi_root_path", ("",)),),
    ),
    Reserved(
        flags=("--api-key", "--admin-api-key"),
        why="SGLang shows its keys in /server_info, in its log and in the process list, and they would be in the snapshot",
        instead="Use the guard's bearer keys, which it knows as SHA-256 only.",
        harmless=(("api_key", (None,)), ("admin_api_key", (None,))),
    ),
    Reserved(
        flags=("--enable-custom-logit-processor",),
        why="with it a request may bring Python code that the engine runs, whoever sends it",
        instead="Use the sampling parameters of the API.",
        harmless=(("enable_custom_logit_processor", (False,)),),
    ),
    Reserved(
        flags=("--config",),
        why="a file could set any other flag, past this check",
        instead="Write the flags out.",
    ),
    Reserved(
        flags=("--nnodes", "--node-rank", "--dist-init-addr", "--nccl-init-addr", "--use-ray"),
        why="parts of the engine would run outside this process tree, beyond its snapshot and its end",
        instead="Serve from one machine.",
        harmless=(("nnodes", (1,)), ("node_rank", (0,)), ("use_ray", (False,))),
    ),
    Reserved(
        flags=(
            "--disaggregation-mode",
            "--disaggregation-bootstrap-port",
            "--enable-pd-role-switch",
            "--encoder-only",
            "--language-only",
            "--encoder-urls",
            "--encoder-bootstrap-port",
            "--encoder-register-urls",
        ),
        why="it splits the engine over servers that talk through ports of their own, without a guard",
        instead=_NO_SPLIT,
        harmless=(("disaggregation_mode", ("null",)), ("encoder_only", (False,)), ("language_only", (False,))),
    ),
    Reserved(
        flags=(
            "--decoupled-spec-role",
            "--decoupled-spec-bind-endpoint",
            "--decoupled-spec-connect-endpoints",
            "--decoupled-spec-rank",
        ),
        why="draft and target would talk through a port of their own, without a guard",
        instead=_NO_SPLIT,
        harmless=(("decoupled_spec_role", ("null", None)),),
    ),
    Reserved(
        flags=("--gated-launch-port",),
        why="it opens a control server of its own, and the start waits for a call to it",
        instead="Wait for the guard's /ready.",
        harmless=(("gated_launch_port", (None,)),),
    ),
    Reserved(
        flags=(
            "--engine-info-bootstrap-port",
            "--remote-instance-weight-loader-start-seed-via-transfer-engine",
            "--enable-elastic-expert-backup",
        ),
        why="it opens a server that hands weights, or their addresses, to whoever asks",
        instead="Load weights from files.",
        harmless=(
            ("remote_instance_weight_loader_start_seed_via_transfer_engine", (False,)),
            ("enable_elastic_expert_backup", (False,)),
        ),
    ),
    Reserved(
        flags=("--kv-events-config", "--load-publish-endpoint"),
        why="it publishes what the engine is doing (KV events hold the prompts' tokens) on a port without a key",
        instead="Read /metrics, through the guard.",
        harmless=(("kv_events_config", (None,)), ("load_publish_endpoint", (None, "off"))),
    ),
    Reserved(
        flags=("--weight-cache-mode", "--weight-cache-socket", "--weight-cache-timeout"),
        why="weights in another process cannot be released, so the engine could not sleep (0.5.23 weight_updater.py)",
        instead="Leave the weights in the engine.",
        harmless=(("weight_cache_mode", ("off",)),),
    ),
    Reserved(
        flags=("--help",),
        why="the engine would print its help and end",
        instead="Run the engine's own launcher with it.",
    ),
)

# Servers that SGLang starts for an environment variable; flag for flag the same as above.
_RESERVED_ENVIRONMENT = (
    ("SGLANG_GRPC_PORT", "opens a gRPC server beside the HTTP server (0.5.16 environ.py:882, 0.5.23 environ.py:1714)"),
    ("SGLANG_RUST_SERVER", "replaces the HTTP server by another (0.5.23 environ.py:2160)"),
    ("DUMPER_SERVER_PORT", "opens a control server on every interface (debug_utils/dumper.py)"),
)
_OFF = ("", "0", "false", "False", "off", "-1")


def check_parsed_args(version: str, server_args: object) -> None:
    """Refuse arguments, as SGLang has parsed them, that the guard could be passed by.

    Args:
        version: the SGLang version that parsed them.
        server_args: its `ServerArgs`; attributes that a version lacks are harmless.

    Raises:
        ConfigurationError: names the argument, its value and the reason.
    """
    for entry in RESERVED:
        for attribute, harmless in entry.harmless:
            value = getattr(server_args, attribute, harmless[0])
            if value not in harmless:
                raise ConfigurationError(
                    f"SGLang {version} would start with {attribute}={value!r}: {entry.why}. {entry.instead}"
                )


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse environment variables for which SGLang opens a server beside the guarded one.

    Raises:
        ConfigurationError: names the variable and the reason.
    """
    for name, why in _RESERVED_ENVIRONMENT:
        if environ.get(name, "") not in _OFF:
            raise ConfigurationError(f"The environment variable {name}={environ[name]} is refused: it {why}. Unset it.")


def reserved_flags() -> tuple[str, ...]:
    """Return every flag that an extra argument must not be, in full: ours, and those of `RESERVED`."""
    return tuple(sorted(dict(_refusals())))


def check_extra_args(version: str, argv: Sequence[str]) -> None:
    """Refuse extra engine arguments that the plugin sets itself or that the guard could be passed by.

    Every spelling that argparse takes is caught: `--flag value`, `--flag=value`, and a beginning such as `--tok`, which
    is refused wherever it could mean a reserved flag.

    Args:
        version: the SGLang version that will read them.
        argv: flags and values as the user wrote them.

    Raises:
        ConfigurationError: names the argument, the reason and what to use instead.
    """
    refused = dict(_refusals())
    for argument in argv:
        if argument == "--" or re.match(r"-[A-Za-z]", argument):
            raise ConfigurationError(
                f"Engine argument {argument!r} is no flag of SGLang {version}; write flags as --name."
            )
        if not argument.startswith("--"):
            continue
        name = argument.partition("=")[0]
        if name in refused:
            raise ConfigurationError(f"Engine argument {argument!r} is refused: {refused[name]}")
        if meant := [flag for flag in refused if flag.startswith(name)]:
            raise ConfigurationError(
                f"Engine argument {argument!r} is refused: SGLang {version} may take it as an abbreviation of "
                f"{' or '.join(meant)}, which is not for extra arguments. Write the flag that you mean in full."
            )


def _refusals() -> Iterator[tuple[str, str]]:
    """Give for every reserved flag the end of the message that refuses it."""
    for flag in FLAGS:
        for name in flag.spellings():
            yield name, f"the plugin sets it ({flag.reason}). {flag.instead}"
    for entry in RESERVED:
        for name in entry.flags:
            yield name, f"{entry.why}. {entry.instead}"
