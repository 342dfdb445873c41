"""SGLang flags that extra arguments may not use: flags that the plugin sets, and flags that bypass the guard."""

from __future__ import annotations

from torpor.engine_plugins import Reservations, Reserved
from torpor_sglang.flags import FLAGS

__all__ = ["RESERVED"]

_GUARDED_SERVER = "Use the HTTP server behind the guard."
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
        instead=_GUARDED_SERVER,
        harmless=(
            ("grpc_mode", (False,)),
            ("smg_grpc_mode", (False,)),
            ("grpc_port", (None,)),
            ("sidecar", (None,)),
        ),
    ),
    Reserved(
        flags=("--enable-http2", "--http2-max-concurrent-streams", "--http2-initial-connection-window-size"),
        why="it replaces the HTTP server with one that the guard was not tested with",
        instead="Use HTTP/2 between the platform and the clients.",
        harmless=(("enable_http2", (False,)),),
    ),
    Reserved(
        flags=("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--ssl-keyfile-password", "--enable-ssl-refresh"),
        why="the lifecycle could not reach the guard over TLS, and the snapshot would hold the private key",
        instead="Terminate TLS at the platform.",
        harmless=(("ssl_keyfile", (None,)), ("ssl_certfile", (None,)), ("enable_ssl_refresh", (False,))),
    ),
    Reserved(
        flags=("--fastapi-root-path",),
        why="the engine would serve paths that are not in the guard's lists",
        instead="Strip the prefix in a proxy.",
        harmless=(("fastapi_root_path", ("",)),),
    ),
    Reserved(
        flags=("--api-key", "--admin-api-key"),
        why="SGLang shows its keys in /server_info, its log and the process list, and the snapshot would hold them",
        instead="Use the guard's bearer keys, of which it stores only the SHA-256.",
        harmless=(("api_key", (None,)), ("admin_api_key", (None,))),
    ),
    Reserved(
        flags=("--enable-custom-logit-processor",),
        why="any client could send Python code that the engine runs",
        instead="Use the sampling parameters of the API.",
        harmless=(("enable_custom_logit_processor", (False,)),),
    ),
    Reserved(
        flags=("--trust-request-chat-template",),
        why="a request could bring its own template, which is code and can run in the server forever",
        instead="Set the template at start: --chat-template.",
        harmless=(("trust_request_chat_template", (False,)),),
    ),
    Reserved(
        flags=("--allowed-media-domains",),
        why="the launcher restricts media addresses itself, because not every version can",
        instead="Use SGLang(media_domains=...).",
        harmless=(("allowed_media_domains", ([], None)),),
    ),
    Reserved(
        flags=("--trust-mm-content-hashes",),
        why="a request could name the cache entry of another client's image",
        instead="Let the server compute the hashes.",
        harmless=(("trust_mm_content_hashes", (False,)),),
    ),
    Reserved(
        flags=("--config",),
        why="a file could set any other flag and bypass this check",
        instead="Write the flags themselves.",
    ),
    Reserved(
        flags=("--nnodes", "--node-rank", "--dist-init-addr", "--nccl-init-addr", "--use-ray"),
        why="parts of the engine would run outside this process tree: no snapshot holds them, and nothing ends them",
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
        why="it splits the engine into several servers, which use additional ports without a guard",
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
        why="draft and target model would use an additional port without a guard",
        instead=_NO_SPLIT,
        harmless=(("decoupled_spec_role", ("null", None)),),
    ),
    Reserved(
        flags=("--gated-launch-port",),
        why="it opens a separate control server, and the start waits for a call to it",
        instead="Wait for the guard's /ready.",
        harmless=(("gated_launch_port", (None,)),),
    ),
    Reserved(
        flags=(
            "--engine-info-bootstrap-port",
            "--remote-instance-weight-loader-start-seed-via-transfer-engine",
            "--enable-elastic-expert-backup",
        ),
        why="it opens a server that gives weights, or their addresses, to any client",
        instead="Load weights from files.",
        harmless=(
            ("remote_instance_weight_loader_start_seed_via_transfer_engine", (False,)),
            ("enable_elastic_expert_backup", (False,)),
        ),
    ),
    Reserved(
        flags=("--kv-events-config", "--load-publish-endpoint"),
        why="it publishes the engine's activity on a port without a key; KV events contain the tokens of prompts",
        instead="Read /metrics through the guard.",
        harmless=(("kv_events_config", (None,)), ("load_publish_endpoint", (None, "off"))),
    ),
    Reserved(
        flags=("--weight-cache-mode", "--weight-cache-socket", "--weight-cache-timeout"),
        why="the engine cannot release weights in another process, so it could not sleep (0.5.23 weight_updater.py)",
        instead="Keep the weights in the engine.",
        harmless=(("weight_cache_mode", ("off",)),),
    ),
    Reserved(
        flags=("--help",),
        why="the engine would print its help and exit",
        instead="Run SGLang's own launcher with it.",
    ),
)

# Environment variables with the same effects as the flags above.
_ENVIRONMENT = (
    ("SGLANG_GRPC_PORT", "opens a gRPC server beside the HTTP server (0.5.16 environ.py:882, 0.5.23 environ.py:1714)"),
    ("SGLANG_RUST_SERVER", "replaces the HTTP server with another one (0.5.23 environ.py:2160)"),
    (
        "SGLANG_ENABLE_REQUEST_DECOMPRESSION",
        "unpacks bodies before their size is known: 32 MB can become gigabytes (0.5.16 environ.py:235, 0.5.23 environ.py:333)",
    ),
    (
        "SGLANG_ENABLE_REQUEST_HEADER_OVERRIDES",
        "lets headers set request fields that are refused in the body (0.5.16 environ.py:237, 0.5.23 environ.py:335)",
    ),
    ("SGLANG_HTTP_SERVER_APP_PATH", "replaces the application behind the guard (0.5.23 http_server.py)"),
    ("DUMPER_SERVER_PORT", "opens a control server on every interface (debug_utils/dumper.py)"),
)

RESERVED = Reservations(table=FLAGS, reserved=_RESERVED, environment=_ENVIRONMENT)
