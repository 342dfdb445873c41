"""The fields of a public request to SGLang, checked with the real models of all supported versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.plugins.engine_rules.fields import FieldRules, RealFieldRules
from torpor_sglang import SGLang

if TYPE_CHECKING:
    from collections.abc import Mapping

JUDGED = {
    "EXA_API_KEY": "a key of the user's for a tool server",
    "MOONCAKE_CHECK_SERVER": "only with a refused transfer engine",
    "MOONCAKE_MASTER_METRICS_PORT": "only with a refused transfer engine",
    "MOONCAKE_TE_META_DATA_SERVER": "only with a refused transfer engine",
    "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "the user's own --context-length",
    "SGLANG_BACKUP_PORT_BASE": "only with the refused elastic expert backup",
    "SGLANG_CUSTOM_ALL_REDUCE_V2_MAX_SIZE_KB": "kernels",
    "SGLANG_DISABLE_REQUEST_LOGGING": "a log",
    "SGLANG_DSPARK_EMBED_IN_GRAPH": "kernels",
    "SGLANG_EMBEDDINGS_SPARSE_HEAD": "another kind of model",
    "SGLANG_EMBEDDING_POOL_SIZE_MB": "a limit",
    "SGLANG_ENABLE_EMBED_REPLICATION": "where the model's own weights are",
    "SGLANG_ENABLE_CUSTOM_ALL_REDUCE_V2_MULTINODE": "kernels",
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "a route that the guard closes",
    "SGLANG_ENABLE_RESPONSE_TEMPLATE_TURN_GRAMMAR": "a grammar of the model's own",
    "SGLANG_ENCODER_GRPC_TIMEOUT_SECS": "only with refused encoder servers",
    "SGLANG_ENCODER_HTTP_TIMEOUT": "only with refused encoder servers",
    "SGLANG_FORCE_CUSTOM_ALL_REDUCE_V2_PULL_SIZE_KB": "kernels",
    "SGLANG_FORCE_CUSTOM_ALL_REDUCE_V2_PUSH_SIZE_KB": "kernels",
    "SGLANG_GRPC_WORKER_THREADS": "only with the refused gRPC server",
    "SGLANG_LOG_PICKLE_IPC_OBJECTS": "a log",
    "SGLANG_LOG_REQUEST_EXCEEDED_MS": "a log",
    "SGLANG_LOG_REQUEST_HEADERS": "a log, of headers without the guard's keys",
    "SGLANG_M3_ALLOW_CUSTOM_AR": "kernels",
    "SGLANG_MAX_BATCH_REQS_PER_HTTP_REQ": "a limit",
    "SGLANG_MLX_USE_CUSTOM_ROPE": "kernels",
    "SGLANG_MOONCAKE_CUSTOM_MEM_POOL": "memory",
    "SGLANG_OPT_DSV41_ENGRAM_PEER_SHARDS": "between the engine's own ranks",
    "SGLANG_OPT_USE_CUSTOM_ALL_REDUCE_V2": "kernels",
    "SGLANG_OPT_USE_INKLING_CUSTOM_AR": "kernels",
    "SGLANG_PLUGINS": "names code of the user's own",
    "SGLANG_PORT": "the engine's own ranks, on loopback",
    "SGLANG_QUANT_ALLOW_DOWNCASTING": "kernels",
    "SGLANG_REQUEST_STATE_WAIT_TIMEOUT": "a limit",
    "SGLANG_TCP_STORE_PORT": "the engine's own ranks, on loopback",
    "SGLANG_TEST_REQUEST_TIME_STATS": "a log",
    "SGLANG_USE_CUDA_IPC_TRANSPORT": "between the engine's own processes",
    "SGLANG_USE_CUSTOM_ROUTER_SUM": "kernels",
    "SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE": "kernels",
    "SGLANG_USE_PICKLE_IPC": "between the engine's own processes, over sockets in the file system",
    "SGLANG_VIT_ENABLE_VECTORIZED_POS_EMBED": "kernels",
    "SGLANG_WEIGHT_CACHE_READY_TEMPLATE": "only with the refused --weight-cache-mode",
    "SGLANG_WEIGHT_CACHE_SOCKET_TEMPLATE": "only with the refused --weight-cache-mode",
    "SGLANG_ZMQ_ALLOWED_PEERS": "who may talk to the engine's own sockets",
}


class TestFields(FieldRules):
    """SGLang's."""

    engine = SGLang


@pytest.mark.sglang
@pytest.mark.slow
class TestTheRealFields(RealFieldRules):
    """SGLang's."""

    engine = SGLang
    judged: ClassVar[Mapping[str, str]] = JUDGED
