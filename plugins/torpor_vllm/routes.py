"""The access class of each of vLLM's routes, by exact path and for all supported versions.

    PUBLIC    for every task, while serving
    TASKS     inference of one task, while serving
    OPENED    what an option of the plugin adds, while serving
    KEYED     with the lifecycle key, while the engine is awake
    SLEEP     with the lifecycle key, while draining with nothing in flight
    WAKE      with the lifecycle key, once each and in the order that the level of the sleep asks for, while waking
    ANSWERED  by the guard itself, from its state; they never reach the engine
    CLOSED    never; each group with the reason

The development routes, sleep and wake among them, exist because the plugin sets VLLM_SERVER_DEV_MODE=1. A path that is in no
list is closed. With the lists of closed paths a test recognises a new route: it compares all lists with the route tables of the
real applications of all supported versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor import Task

__all__ = [
    "ANSWERED",
    "CLOSED",
    "DOCS",
    "KEYED",
    "LACKING",
    "OPENED",
    "PUBLIC",
    "SLEEP",
    "TASKS",
    "WAKE",
    "WAKE_OF_RANKS",
]

PUBLIC = ("/v1/models",)

TASKS: dict[Task, tuple[str, ...]] = {
    "chat": ("/v1/chat/completions",),
    "generate": ("/v1/completions",),
    "embed": ("/v1/embeddings",),
    "rerank": ("/v1/rerank", "/rerank", "/v2/rerank"),
    "score": ("/v1/score", "/score"),
    "classify": ("/classify",),
    "transcribe": ("/v1/audio/transcriptions",),
}
"""vLLM adds a route for what its model can do alone, so one that a model lacks answers 404 behind the open guard, too."""

OPENED = {
    "open_completions": ("/v1/completions",),
    "open_responses": ("/v1/responses",),
    "open_messages": ("/v1/messages", "/v1/messages/count_tokens"),
    "open_tokenize": ("/tokenize", "/detokenize"),
}

LACKING: dict[str, tuple[str, ...]] = {}

KEYED = (
    "/docs",
    "/is_sleeping",
    "/load",
    "/metrics",
    "/openapi.json",
    "/reset_prefix_cache",
    "/server_info",  # holds every argument of the engine
    "/version",
)

DOCS = ("/docs", "/openapi.json")
"""The paths of KEYED that describe the API; the page loads the document."""

SLEEP = ("/collective_rpc", "/sleep", "/collective_rpc")
"""The calls of a sleep: sum the weights (and check all of several workers), sleep, report what is still held."""

WAKE = {
    1: ("/wake_up", "/collective_rpc"),
    2: ("/wake_up", "/collective_rpc", "/wake_up", "/collective_rpc"),
}
"""The calls of a wake by level. Level 1: weights and KV cache together, renewal. Level 2: weights, reload, KV cache, renewal.
The renewal sums the weights again."""


WAKE_OF_RANKS = {level: ("/collective_rpc", *calls) for level, calls in WAKE.items()}
"""The calls of a wake of several workers: take each other's memory back, then as with one; the last call compares the ranks."""

ANSWERED = ("/health", "/ready")

CLOSED = (
    (
        "they generate or answer health for a hosting standard, past the guard's own answer",
        ("/invocations", "/ping"),
    ),
    (
        "they put memory or scheduling to sleep in other ways than the lifecycle's",
        ("/is_paused", "/pause", "/release_kv_cache_memory", "/resume"),
    ),
    (
        "they replace or read the model's weights, from a place that the caller gives",
        (
            "/finish_weight_update",
            "/get_world_size",
            "/init_weight_transfer_engine",
            "/shutdown_weight_transfer_engine",
            "/start_draft_weight_update",
            "/start_weight_update",
            "/update_weight_version",
            "/update_weights",
            "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter",
            "/weight_checker",
            "/weight_info",
        ),
    ),
    (
        "they change how the engine runs for everybody",
        (
            "/abort_requests",
            "/fault_tolerance/apply",
            "/fault_tolerance/status",
            "/inference/v1/abort_requests",
            "/is_scaling_elastic_ep",
            "/kv_event_sources",
            "/reset_encoder_cache",
            "/reset_mm_cache",
            "/scale_elastic_ep",
            "/start_profile",
            "/stop_profile",
        ),
    ),
    (
        "they keep something in the server between requests, which a replica restored from a snapshot does not share",
        (
            "/v1/realtime",
            "/v1/responses/{response_id}",
            "/v1/responses/{response_id}/cancel",
        ),
    ),
    (
        "they are other tasks, or other dialects of the public paths, that no deployment offers",
        (
            "/generative_scoring",
            "/inference/v1/generate",
            "/pooling",
            "/tokenizer_info",
            "/v1/audio/translations",
            "/v1/chat/completions/batch",
            "/v1/chat/completions/derender",
            "/v1/chat/completions/render",
            "/v1/completions/derender",
            "/v1/completions/render",
            "/v1/decisions",
            "/v1/messages/render",
            "/v1/responses/render",
            "/v1/systemone",
            "/v2/embed",
        ),
    ),
    (
        "the API's description is at /openapi.json and /docs",
        ("/docs/oauth2-redirect", "/redoc"),
    ),
)
