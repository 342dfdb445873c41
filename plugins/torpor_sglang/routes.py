"""The access class of each of SGLang's routes, by exact path and for all supported versions.

    PUBLIC    for every task, while serving
    TASKS     inference of one task, while serving
    OPENED    what an option of the plugin adds, while serving
    KEYED     with the lifecycle key, while the engine is awake
    SLEEP     with the lifecycle key, once each and in this order, while draining with nothing in flight
    WAKE      with the lifecycle key, once each and in this order, while waking
    ANSWERED  by the guard itself, from its state; they never reach the engine
    CLOSED    never; each group with the reason

A path that is in no list is closed as well. With the lists of closed paths a test recognises a new route: it compares all lists
with the route tables of the real applications of all supported versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor import Task

__all__ = ["ANSWERED", "CLOSED", "DOCS", "KEYED", "LACKING", "OPENED", "PUBLIC", "SLEEP", "TASKS", "WAKE"]

PUBLIC = ("/v1/models",)

TASKS: dict[Task, tuple[str, ...]] = {
    "chat": ("/v1/chat/completions",),
    "generate": ("/v1/completions",),
    "embed": ("/v1/embeddings",),
    "rerank": ("/v1/rerank",),
    "score": ("/v1/score",),
    "classify": ("/v1/classify",),
    "transcribe": ("/v1/audio/transcriptions",),
}
"""`/classify` and `/encode` are not among them: they take what no rule checks (EmbeddingReqInput)."""

OPENED = {
    "open_completions": ("/v1/completions",),
    "open_responses": ("/v1/responses",),
    "open_messages": ("/v1/messages", "/v1/messages/count_tokens"),
    "open_tokenize": ("/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize"),
}

LACKING = {
    "0.5.6.post2": ("/v1/audio/transcriptions", "/v1/messages", "/v1/messages/count_tokens"),
}

KEYED = (
    "/abort_request",
    "/docs",
    "/flush_cache",
    "/freeze_gc",
    "/generate",
    "/get_load",  # 0.5.6.post2; deprecated in 0.5.16
    "/get_model_info",
    "/get_server_info",
    "/metrics",
    "/model_info",
    "/openapi.json",
    "/server_info",  # holds every argument of the engine
    "/v1/loads",
)

DOCS = ("/docs", "/openapi.json")
"""The paths of KEYED that describe the API; the page loads the document."""

SLEEP = ("/pause_generation", "/release_memory_occupation")

WAKE = ("/resume_memory_occupation", "/continue_generation")

ANSWERED = ("/health", "/ready")

CLOSED = (
    (
        "while memory is released these generate a token on unmapped memory, and the engine ends (0.5.16 measured)",
        ("/health_generate", "/ping"),
    ),
    (
        "they replace or read the model's weights, from a path or an address that the caller gives",
        (
            "/begin_weight_update",
            "/destroy_weights_update_group",
            "/end_weight_update",
            "/get_remote_instance_transfer_engine_info",
            "/get_weight_version",
            "/get_weights_by_name",
            "/init_weights_send_group_for_remote_instance",
            "/init_weights_update_group",
            "/load_lora_adapter",
            "/load_lora_adapter_from_tensors",
            "/remote_instance_transfer_engine_info",
            "/send_weights_to_remote_instance",
            "/unload_lora_adapter",
            "/update_weight_version",
            "/update_weights_from_disk",
            "/update_weights_from_distributed",
            "/update_weights_from_ipc",
            "/update_weights_from_tensor",
            "/weight_version",
            "/weights_checker",
        ),
    ),
    (
        "they change how the engine runs for everybody, or write files where the caller says",
        (
            "/configure_logging",
            "/dump_expert_distribution_record",
            "/pd_role_switch",
            "/set_internal_state",
            "/set_trace_level",
            "/slow_down",
            "/start_expert_distribution_record",
            "/start_profile",
            "/stop_expert_distribution_record",
            "/stop_profile",
        ),
    ),
    (
        "they read files of the server's, or load a corpus into it",
        ("/add_external_corpus", "/generate_from_file", "/list_external_corpora", "/remove_external_corpus"),
    ),
    (
        "they attach, detach or empty a storage that several engines may share",
        (
            "/clear_hicache_storage_backend",
            "/get_hicache_l3_cache_layout",
            "/hicache/storage-backend",
            "/hicache/storage-backend/clear",
        ),
    ),
    (
        "they grow or shrink the group of expert ranks",
        ("/is_scaling_elastic_ep", "/scale_elastic_ep"),
    ),
    (
        "they keep something in the server between requests, which a replica restored from a snapshot does not share",
        (
            "/close_session",
            "/open_session",
            "/v1/realtime",
            "/v1/responses/{response_id}",
            "/v1/responses/{response_id}/cancel",
        ),
    ),
    (
        "they are other tasks, or other dialects of the public paths, that no deployment offers",
        (
            "/",
            "/api/chat",
            "/api/generate",
            "/api/show",
            "/api/tags",
            "/classify",
            "/encode",
            "/invocations",
            "/parse_function_call",
            "/separate_reasoning",
            "/v1/decisions",
            "/v1/models/{model:path}",
            "/v1/systemone",
            "/vertex_generate",
        ),
    ),
    (
        "the API's description is at /openapi.json and /docs",
        ("/docs/oauth2-redirect", "/redoc"),
    ),
)
