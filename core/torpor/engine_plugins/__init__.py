"""What an engine plugin is built of: what is the same for every engine that is an OpenAI-like HTTP server.

An engine's plugin adds what only its engine has: the table of flags, the routes, the calls of its sleep and wake. Its
launcher, which runs in the engine's process, is built of `torpor.launcher`. The names of `__all__` are public:

    plugin           ChatServer: options, guard rules, launch and warm-up; Routes: who may call which of the engine's routes;
                     SNAPSHOT_ENV: variables that an engine built on torch needs for a snapshot
    canary           TokenLogprobs and GeneratedToken: what an engine's canary compares; ask_completion gets it by the OpenAI
                     completions route, read_logprobs, finite_or_nan and TOP_CHOICES are for an engine's own route
    calls            call and call_object: management calls that demand 200, and a JSON object
    GPUs             ParallelFlags, gpus_needed and gpu_findings: how many GPUs an engine takes, against the deployment's;
                     untried_findings: parallelism that no snapshot was tried with; RankSleep and WeightsPlace: what each rank
                     frees in a sleep, and where its weights are meanwhile; SleepPart: what a sleep drops and who restores it
    several GPUs     NCCL_SETTINGS and NCCL_SNAPSHOT_ENV: variables for a snapshot of an engine on several GPUs, each with its
                     reason; nccl_refusals: those that an environment has otherwise; wants_nccl_suspended: whether a deployment
                     needs them
    adapters         adapter_folders: where the files of `Model.adapters` are; adapter_env: the names that the launcher's patches
                     have to know; ADAPTER_OPTIONS: what a table of flags calls those that load them
    drafts           speculative_words: the flags among words that ask for speculative decoding
    flags            Flag, FlagTable and OptionValue: options as a command line, one record per flag, per version
    reserved         Reserved and Reservations: flags and variables that nobody else may give, each with the reason
    warm-up          warm_up: chat-shaped requests until nothing is left to compile; warm_up_deployment: those of its task;
                     warm_up_features: those for FEATURES, each a Feature: JSON schemas, tools, log probabilities, ...
    kernel caches    shared_cache_env and DEEP_GEMM_FOLDER: homes for the caches of Triton, Inductor, FlashInfer, ...;
                     COMPILE_LINES: what a log says when something is compiled
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.engine_plugins.adapters import ADAPTER_OPTIONS, adapter_env, adapter_folders
    from torpor.engine_plugins.chat_server import SNAPSHOT_ENV, ChatServer, Routes, call, call_object
    from torpor.engine_plugins.drafts import speculative_words
    from torpor.engine_plugins.feature_warmup import warm_up_features
    from torpor.engine_plugins.features import FEATURES, Feature
    from torpor.engine_plugins.flags import Flag, FlagTable, OptionValue
    from torpor.engine_plugins.gpus import ParallelFlags, gpu_findings, gpus_needed, untried_findings
    from torpor.engine_plugins.kernel_caches import COMPILE_LINES, DEEP_GEMM_FOLDER, shared_cache_env
    from torpor.engine_plugins.logprobs import TOP_CHOICES, ask_completion, finite_or_nan, read_logprobs
    from torpor.engine_plugins.nccl_settings import (
        NCCL_SETTINGS,
        NCCL_SNAPSHOT_ENV,
        NcclSetting,
        nccl_refusals,
        wants_nccl_suspended,
    )
    from torpor.engine_plugins.reserved import Reservations, Reserved
    from torpor.engine_plugins.task_warmup import warm_up_deployment
    from torpor.engine_plugins.warmup import warm_up
    from torpor.values.canary_answers import GeneratedToken, TokenLogprobs
    from torpor.values.rank_sleep import RankSleep, WeightsPlace
    from torpor.values.sleep_parts import SleepPart

__all__ = [
    "ADAPTER_OPTIONS",
    "COMPILE_LINES",
    "DEEP_GEMM_FOLDER",
    "FEATURES",
    "NCCL_SETTINGS",
    "NCCL_SNAPSHOT_ENV",
    "SNAPSHOT_ENV",
    "TOP_CHOICES",
    "ChatServer",
    "Feature",
    "Flag",
    "FlagTable",
    "GeneratedToken",
    "NcclSetting",
    "OptionValue",
    "ParallelFlags",
    "RankSleep",
    "Reservations",
    "Reserved",
    "Routes",
    "SleepPart",
    "TokenLogprobs",
    "WeightsPlace",
    "adapter_env",
    "adapter_folders",
    "ask_completion",
    "call",
    "call_object",
    "finite_or_nan",
    "gpu_findings",
    "gpus_needed",
    "nccl_refusals",
    "read_logprobs",
    "shared_cache_env",
    "speculative_words",
    "untried_findings",
    "wants_nccl_suspended",
    "warm_up",
    "warm_up_deployment",
    "warm_up_features",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.engine_plugins.adapters": (
            "ADAPTER_OPTIONS",
            "adapter_env",
            "adapter_folders",
        ),
        "torpor.engine_plugins.chat_server": (
            "ChatServer",
            "Routes",
            "SNAPSHOT_ENV",
            "call",
            "call_object",
        ),
        "torpor.engine_plugins.drafts": ("speculative_words",),
        "torpor.engine_plugins.feature_warmup": ("warm_up_features",),
        "torpor.engine_plugins.features": (
            "FEATURES",
            "Feature",
        ),
        "torpor.engine_plugins.flags": (
            "Flag",
            "FlagTable",
            "OptionValue",
        ),
        "torpor.engine_plugins.gpus": (
            "ParallelFlags",
            "gpu_findings",
            "gpus_needed",
            "untried_findings",
        ),
        "torpor.engine_plugins.kernel_caches": (
            "COMPILE_LINES",
            "DEEP_GEMM_FOLDER",
            "shared_cache_env",
        ),
        "torpor.engine_plugins.logprobs": (
            "TOP_CHOICES",
            "ask_completion",
            "finite_or_nan",
            "read_logprobs",
        ),
        "torpor.engine_plugins.nccl_settings": (
            "NCCL_SETTINGS",
            "NCCL_SNAPSHOT_ENV",
            "NcclSetting",
            "nccl_refusals",
            "wants_nccl_suspended",
        ),
        "torpor.engine_plugins.reserved": (
            "Reservations",
            "Reserved",
        ),
        "torpor.engine_plugins.task_warmup": ("warm_up_deployment",),
        "torpor.engine_plugins.warmup": ("warm_up",),
        "torpor.values.canary_answers": (
            "GeneratedToken",
            "TokenLogprobs",
        ),
        "torpor.values.sleep_parts": ("SleepPart",),
        "torpor.values.rank_sleep": (
            "RankSleep",
            "WeightsPlace",
        ),
    },
)
