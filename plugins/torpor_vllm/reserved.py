"""vLLM flags that extra arguments may not use: flags that the plugin sets, and flags that bypass the guard."""

from __future__ import annotations

from torpor.engine_plugins import Reservations, Reserved
from torpor_vllm.flags import FLAGS

__all__ = ["RESERVED"]

_GUARDED_SERVER = "Use the HTTP server behind the guard."
_ONE_SERVER = "Keep one server process; start more replicas for more throughput."
_ONE_MACHINE = "Serve from one machine."
_RESERVED = (
    Reserved(
        flags=("--middleware",),
        why="a middleware added later would run outside the guard, which has to be the outermost layer",
        instead="Put it in a proxy before the server.",
        harmless=(("middleware", ([],)),),
    ),
    Reserved(
        flags=("--model",),
        why="the model is the first argument, and vLLM 0.33.0 warns that the flag is deprecated",
        instead="Use Deployment.model.",
    ),
    Reserved(
        flags=("--api-server-count", "-asc"),
        why="each server process would have its own guard, with its own state",
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
        why="it starts more servers, or a supervisor with its own port",
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
        why="the engine would have no HTTP server, or a gRPC server that the guard does not see",
        instead=_GUARDED_SERVER,
        harmless=(("headless", (False,)), ("grpc", (False,)), ("grpc_port", (None,))),
    ),
    Reserved(
        flags=("--uds",),
        why="the server would listen on a Unix socket, which the lifecycle does not use",
        instead=_GUARDED_SERVER,
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
        why="the lifecycle could not reach the guard over TLS, and the snapshot would hold the private key",
        instead="Terminate TLS at the platform.",
        harmless=(("ssl_keyfile", (None,)), ("ssl_certfile", (None,)), ("enable_ssl_refresh", (False,))),
    ),
    Reserved(
        flags=("--root-path",),
        why="the engine would serve paths that are not in the guard's lists",
        instead="Strip the prefix in a proxy.",
        harmless=(("root_path", ("", None)),),
    ),
    Reserved(
        flags=("--api-key",),
        why="vLLM's key protects /v1 only, is shown in the process list, and would be in the snapshot",
        instead="Use the guard's bearer keys, of which it stores only the SHA-256.",
        harmless=(("api_key", (None,)),),
    ),
    Reserved(
        flags=("--hf-token",),
        why="it would be in the process list and in the snapshot, and the weights are downloaded before the engine starts",
        instead="Name the platform's secret in HFCache; only its download step gets it.",
        harmless=(("hf_token", (None,)),),
    ),
    Reserved(
        flags=("--trust-request-chat-template", "--no-trust-request-chat-template"),
        why="a request could bring its own template, which is code and can run in the server forever",
        instead="Set the template at start: --chat-template.",
        harmless=(("trust_request_chat_template", (False,)),),
    ),
    Reserved(
        flags=("--trust-request-mm-kwargs", "--no-trust-request-mm-kwargs"),
        why="a request could choose how much memory its media takes",
        instead="Set these at start: --mm-processor-kwargs, --media-io-kwargs.",
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
        why="a request could bring tensors, which torch loads without a check",
        instead="Send text and media.",
        harmless=(("enable_prompt_embeds", (False,)), ("enable_mm_embeds", (False,))),
    ),
    Reserved(
        flags=("--allowed-local-media-path",),
        why="a request could name files on the server",
        instead="Send media as data: URLs.",
        harmless=(("allowed_local_media_path", ("",)),),
    ),
    Reserved(
        flags=("--allowed-media-domains",),
        why="the launcher restricts media addresses itself",
        instead="Use VLLM(media_domains=...).",
        harmless=(("allowed_media_domains", (None, [])),),
    ),
    Reserved(
        flags=("--config",),
        why="a file could set any other flag and bypass this check",
        instead="Write the flags themselves.",
    ),
    Reserved(
        flags=("--nnodes", "--node-rank", "--master-addr", "--master-port", "--distributed-executor-backend"),
        why="parts of the engine would run outside this process tree: no snapshot holds them, and nothing ends them",
        instead=_ONE_MACHINE,
        harmless=(
            ("nnodes", (1,)),
            ("node_rank", (0,)),
            ("distributed_executor_backend", (None, "mp", "uni")),
        ),
    ),
    Reserved(
        flags=("--kv-transfer-config", "--kv-events-config", "--ec-transfer-config", "--weight-transfer-config"),
        why="it opens ports that give KV cache, its events or weights to any client, without a key",
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
        why="processes could start and end while the engine serves, which a snapshot cannot hold",
        instead=_ONE_MACHINE,
        harmless=(("enable_elastic_ep", (False,)), ("enable_fault_tolerance", (False,))),
    ),
    Reserved(
        flags=(  # 0.32.0 negates a flag with `--no-`, 0.33.0 an `--enable-` flag with `--disable-`
            "--no-enable-sleep-mode",
            "--disable-sleep-mode",
            "--no-sleep-mode-offload-cudagraph",
            "--no-enforce-eager",
            "--no-enable-lora",
            "--disable-lora",
            "--no-disable-uvicorn-access-log",
            "--enable-uvicorn-access-log",
        ),
        why="it negates a flag that the plugin sets",
        instead="Use the plugin's option.",
    ),
    Reserved(
        flags=("--enable-nccl-comm-suspend", "--no-enable-nccl-comm-suspend", "--disable-nccl-comm-suspend"),
        why="Torpor suspends all NCCL communicators for a sleep, and vLLM would suspend some of them before",
        instead="Leave it out.",
        harmless=(("enable_nccl_comm_suspend", (False,)),),
    ),
    Reserved(
        flags=("--help",),
        why="the engine would print its help and exit",
        instead="Run `vllm serve --help`.",
    ),
)

# Environment variables with the same effects as the flags above.
_ENVIRONMENT = (
    ("VLLM_USE_RUST_FRONTEND", "replaces the HTTP server with another one, without the guard (envs.py:1456)"),
    ("VLLM_API_KEY", "puts a key into the engine's memory and so into the snapshot (envs.py:829)"),
    ("VLLM_ALLOW_INSECURE_SERIALIZATION", "makes the engine's processes load pickles (envs.py)"),
    (
        "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION",
        "lets two requests with the same X-Request-Id receive each other's answers (envs.py)",
    ),
    ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "adds routes that load adapters from an address in the request (envs.py)"),
)

RESERVED = Reservations(table=FLAGS, reserved=_RESERVED, environment=_ENVIRONMENT)
