"""The fields of a public request to vLLM, checked with the real models of all supported versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.plugins.engine_rules.fields import FieldRules, RealFieldRules
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from collections.abc import Mapping

JUDGED = {
    "MOONCAKE_REQUESTER_LOCAL_HOSTNAME": "only with a refused transfer",
    "S3_ENDPOINT_URL": "goes out for weights",
    "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": "kernels",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "the user's own --max-model-len",
    "VLLM_CHAT_TEMPLATE_FUEL": "a limit",
    "VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT": "a limit",
    "VLLM_CUSTOM_SCOPES_FOR_PROFILING": "a profile",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "a log",
    "VLLM_DEEPEP_V2_ALLOW_HYBRID_MODE": "kernels",
    "VLLM_DEEPEP_V2_ALLOW_MULTIPLE_REDUCTION": "kernels",
    "VLLM_DP_MASTER_PORT": "only with refused data parallelism",
    "VLLM_EC_SIDE_CHANNEL_PORT": "only with a refused transfer",
    "VLLM_ELASTIC_EP_DRAIN_REQUESTS": "only with refused elasticity",
    "VLLM_HTTP_MAX_REQUEST_BODY_SIZE": "a limit; the guard has its own",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "a limit",
    "VLLM_MAX_EMBED_DECODE_BYTES": "a limit",
    "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB": "a limit",
    "VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES": "a limit",
    "VLLM_MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB": "a limit",
    "VLLM_MEDIA_CACHE": "a folder",
    "VLLM_MEDIA_CACHE_MAX_SIZE_MB": "a limit",
    "VLLM_MEDIA_CACHE_TTL_HOURS": "a limit",
    "VLLM_MEDIA_CONNECTOR": "names code of the user's own",
    "VLLM_MEDIA_FETCH_MAX_RETRIES": "a limit",
    "VLLM_MEDIA_LOADING_THREAD_COUNT": "threads",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "the launcher sets it",
    "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": "only with a refused transfer",
    "VLLM_MOONCAKE_BOOTSTRAP_PORT": "only with a refused transfer",
    "VLLM_NIXL_SIDE_CHANNEL_PORT": "only with a refused transfer",
    "VLLM_P2P_MAX_PEERS": "only with a refused transfer",
    "VLLM_P2P_SIDE_CHANNEL_PORT": "only with a refused transfer",
    "VLLM_PLUGINS": "names code of the user's own",
    "VLLM_PORT": "the engine's own processes, on loopback",
    "VLLM_REPLICATE_EMBED": "where the model's own weights are",
    "VLLM_REQUEST_BODY_LOG_LEVEL": "a log",
    "VLLM_ROCM_USE_AITER_CUSTOM_AR": "kernels",
    "VLLM_SERVER_DEV_MODE": "the plugin sets it, and the guard closes what comes with it",
    "VLLM_USAGE_STATS_SERVER": "goes out, and the plugin switches it off",
}


class TestFields(FieldRules):
    """vLLM's."""

    engine = VLLM


@pytest.mark.vllm
@pytest.mark.slow
class TestTheRealFields(RealFieldRules):
    """vLLM's."""

    engine = VLLM
    judged: ClassVar[Mapping[str, str]] = JUDGED
