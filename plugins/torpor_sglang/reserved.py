"""Flags of SGLang's that extra arguments may not use: the plugin's own, and those that would bypass the guard."""

from __future__ import annotations

from torpor.engine_plugins import Reservations, Reserved
from torpor_sglang.flags import FLAGS

__all__ = ["RESERVED"]

_ONE_DOOR = "Use the one HTTP server, which the guard stands before."
_NO_SPLIT = "Serve the whole model from one engine."

_RESERVED = (
    Reserved(
        flags=("--tokenizer-worker-num", "--enable-http-worker-reuseport"),
        why="each HTTP worker would import the server again, without the guard",
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
        flags=("--trust-request-chat-template",),
        why="with it a request may bring a template, which is code that the server renders, for ever if it likes",
        instead="Give the server its template: --chat-template.",
        harmless=(("trust_request_chat_template", (False,)),),
    ),
    Reserved(
        flags=("--allowed-media-domains",),
        why="the launcher judges where media comes from, in every version",
        instead="Use SGLang(media_domains=...).",
        harmless=(("allowed_media_domains", ([], None)),),
    ),
    Reserved(
        flags=("--trust-mm-content-hashes",),
        why="with it a request names the cache entry of its image, and so another caller's",
        instead="Let the server hash what it gets.",
        harmless=(("trust_mm_content_hashes", (False,)),),
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
_ENVIRONMENT = (
    ("SGLANG_GRPC_PORT", "opens a gRPC server beside the HTTP server (0.5.16 environ.py:882, 0.5.23 environ.py:1714)"),
    ("SGLANG_RUST_SERVER", "replaces the HTTP server by another (0.5.23 environ.py:2160)"),
    (
        "SGLANG_ENABLE_REQUEST_DECOMPRESSION",
        "unpacks bodies before their size is known: 32 MB become gigabytes (0.5.16 environ.py:235, 0.5.23 environ.py:333)",
    ),
    (
        "SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES",
        "lets headers set fields of a request, past what is refused there (0.5.16 environ.py:237, 0.5.23 environ.py:335)",
    ),
    ("SGLANG_HTTP_SERVER_APP_PATH", "replaces the application that the guard stands before (0.5.23 http_server.py)"),
    ("DUMPER_SERVER_PORT", "opens a control server on every interface (debug_utils/dumper.py)"),
)

RESERVED = Reservations(table=FLAGS, reserved=_RESERVED, environment=_ENVIRONMENT)
