"""Flags of vLLM's that extra arguments may not use: the plugin's own, and those that would bypass the guard."""

from __future__ import annotations

from torpor.engine_plugins import Reservations, Reserved
from torpor_vllm.flags import FLAGS

__all__ = ["RESERVED"]

_ONE_DOOR = "Use the one HTTP server, which the guard stands before."
_ONE_SERVER = "Keep one server process; start more replicas for more throughput."
_ONE_MACHINE = "Serve from one machine."
_RESERVED = (
    Reserved(
        flags=("--middleware",),
        why="the guard has to be the outermost layer, and a layer added after it would stand outside",
        instead="Put it into a proxy before the server.",
        harmless=(("middleware", ([],)),),
    ),
    Reserved(
        flags=("--model",),
        why="the model is the first argument, and vLLM 0.33.0 warns that the flag will go",
        instead="Use Deployment.model.",
    ),
    Reserved(
        flags=("--api-server-count", "-asc"),
        why="each server process has a guard with a state of its own",
        instead=_ONE_SERVER,
        harmless=(("api_server_count", (None, 1)),),
    ),
    Reserved(
        flags=(
            "--data-parallel-size",
            "--data-parallel-rank",
            "--data-parallel-start-rank",
            "--data-parallel-size-local",
            "--data-parallel-address",
            "--data-parallel-rpc-port",
            "--data-parallel-backend",
            "--data-parallel-hybrid-lb",
            "--no-data-parallel-hybrid-lb",
            "--data-parallel-external-lb",
            "--no-data-parallel-external-lb",
            "--data-parallel-multi-port-external-lb",
            "--data-parallel-supervisor-port",
        ),
        why="it starts further servers, or a supervisor with a port of its own",
        instead=_ONE_SERVER,
        harmless=(
            ("data_parallel_size", (1,)),
            ("data_parallel_rank", (None,)),
            ("data_parallel_start_rank", (None,)),
            ("data_parallel_hybrid_lb", (False,)),
            ("data_parallel_external_lb", (False,)),
            ("data_parallel_multi_port_external_lb", (False,)),
        ),
    ),
    Reserved(
        flags=("--headless", "--grpc", "--grpc-port"),
        why="there would be no HTTP server, or a gRPC server that the guard does not see",
        instead=_ONE_DOOR,
        harmless=(("headless", (False,)), ("grpc", (False,)), ("grpc_port", (None,))),
    ),
    Reserved(
        flags=("--uds",),
        why="the server would listen on a socket in the file system, where the lifecycle does not look for it",
        instead=_ONE_DOOR,
        harmless=(("uds", (None,)),),
    ),
    Reserved(
        flags=(
            "--ssl-keyfile",
            "--ssl-certfile",
            "--ssl-ca-certs",
            "--ssl-cert-reqs",
            "--ssl-ciphers",
            "--enable-ssl-refresh",
            "--no-enable-ssl-refresh",
            "--disable-ssl-refresh",
        ),
        why="with TLS in the engine the lifecycle could not reach its own guard, and a private key would be in the snapshot",
        instead="Let the platform end TLS.",
        harmless=(("ssl_keyfile", (None,)), ("ssl_certfile", (None,)), ("enable_ssl_refresh", (False,))),
    ),
    Reserved(
        flags=("--root-path",),
        why="the engine would answer under paths that the guard's lists do not name",
        instead="Strip a prefix before the request reaches the server.",
        harmless=(("root_path", ("", None)),),
    ),
    Reserved(
        flags=("--api-key",),
        why="vLLM's key guards /v1 alone, stands in the process list, and would be in the snapshot",
        instead="Use the guard's bearer keys, which it knows as SHA-256 only.",
        harmless=(("api_key", (None,)),),
    ),
    Reserved(
        flags=("--hf-token",),
        why="it would be in the process list and in the snapshot, and weights are on disk before the engine starts",
        instead="Name the platform's secret in HFCache, whose download alone gets it.",
        harmless=(("hf_token", (None,)),),
    ),
    Reserved(
        flags=("--trust-request-chat-template", "--no-trust-request-chat-template"),
        why="with it a request may bring a template, which is code that the server renders, for ever if it likes",
        instead="Give the server its template: --chat-template.",
        harmless=(("trust_request_chat_template", (False,)),),
    ),
    Reserved(
        flags=("--trust-request-mm-kwargs", "--no-trust-request-mm-kwargs"),
        why="with it a request sets how much memory its media takes",
        instead="Give the server its settings: --mm-processor-kwargs, --media-io-kwargs.",
        harmless=(("trust_request_mm_kwargs", (False,)),),
    ),
    Reserved(
        flags=(
            "--enable-prompt-embeds",
            "--no-enable-prompt-embeds",
            "--disable-prompt-embeds",
            "--enable-mm-embeds",
            "--no-enable-mm-embeds",
            "--disable-mm-embeds",
        ),
        why="with it a request brings tensors, which torch loads and nobody checks",
        instead="Send text and media.",
        harmless=(("enable_prompt_embeds", (False,)), ("enable_mm_embeds", (False,))),
    ),
    Reserved(
        flags=("--allowed-local-media-path",),
        why="with it a request names files of the server's",
        instead="Send media as data: URLs.",
        harmless=(("allowed_local_media_path", ("",)),),
    ),
    Reserved(
        flags=("--allowed-media-domains",),
        why="the launcher judges where media comes from",
        instead="Use VLLM(media_domains=...).",
        harmless=(("allowed_media_domains", (None, [])),),
    ),
    Reserved(
        flags=("--config",),
        why="a file could set any other flag, past this check",
        instead="Write the flags out.",
    ),
    Reserved(
        flags=("--nnodes", "--node-rank", "--master-addr", "--master-port", "--distributed-executor-backend"),
        why="parts of the engine would run outside this process tree, beyond its snapshot and its end",
        instead=_ONE_MACHINE,
        harmless=(
            ("nnodes", (1,)),
            ("node_rank", (0,)),
            ("distributed_executor_backend", (None, "mp", "uni")),
        ),
    ),
    Reserved(
        flags=("--kv-transfer-config", "--kv-events-config", "--ec-transfer-config", "--weight-transfer-config"),
        why="it opens ports that hand KV cache, its events or weights to others, without a key",
        instead="Serve the whole model from one engine.",
        harmless=(
            ("kv_transfer_config", (None,)),
            ("kv_events_config", (None,)),
            ("ec_transfer_config", (None,)),
            ("weight_transfer_config", (None,)),
        ),
    ),
    Reserved(
        flags=(
            "--enable-elastic-ep",
            "--no-enable-elastic-ep",
            "--disable-elastic-ep",
            "--enable-fault-tolerance",
            "--no-enable-fault-tolerance",
            "--disable-fault-tolerance",
        ),
        why="processes would come and go while the engine serves, which no snapshot follows",
        instead=_ONE_MACHINE,
        harmless=(("enable_elastic_ep", (False,)), ("enable_fault_tolerance", (False,))),
    ),
    Reserved(
        flags=(  # 0.32.0 denies a flag by `--no-`, 0.33.0 `--enable-` by `--disable-`
            "--no-enable-sleep-mode",
            "--disable-sleep-mode",
            "--no-sleep-mode-offload-cudagraph",
            "--no-enforce-eager",
            "--no-disable-uvicorn-access-log",
            "--enable-uvicorn-access-log",
        ),
        why="it is the other half of a flag that the plugin sets",
        instead="Use the plugin's option.",
    ),
    Reserved(
        flags=("--help",),
        why="the engine would print its help and end",
        instead="Run `vllm serve --help`.",
    ),
)

# What vLLM does for a variable; flag for flag the same as above.
_ENVIRONMENT = (
    ("VLLM_USE_RUST_FRONTEND", "replaces the HTTP server by another, without the guard (envs.py:1456)"),
    ("VLLM_API_KEY", "puts a key into the engine's memory and so into the snapshot (envs.py:829)"),
    ("VLLM_ALLOW_INSECURE_SERIALIZATION", "has the engine's processes load pickles (envs.py)"),
    (
        "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION",
        "lets two requests with one X-Request-Id take each other's answers (envs.py)",
    ),
    ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "adds routes that load adapters from where the caller says (envs.py)"),
)

RESERVED = Reservations(table=FLAGS, reserved=_RESERVED, environment=_ENVIRONMENT)
