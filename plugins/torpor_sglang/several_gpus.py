"""What SGLang must not use on several GPUs when it is put to sleep: whatever maps memory of another GPU and cannot let go of it.

NCCL can (`torpor_sglang.patches.nccl_communicators`). Everything else is switched off, and what SGLang made of that is read
back: by the launcher before the engine starts, and by every scheduler before it sleeps.

Custom all-reduce is switched off rather than torn down for the sleep and built again. Its kernels get the addresses of the other
GPUs' buffers as they were when a CUDA graph was captured, both of its own buffers and of every tensor that a captured
all-reduce reads (custom_all_reduce.py: `get_graph_buffer_ipc_meta`, `register_graph_buffers`). cudaIpcOpenMemHandle chooses the
address, so a second opening gives other ones, and every graph would have to be captured again at each wake:
seconds, where the whole wake is to take less. Without it one stream decodes 12 % slower (two H200, Qwen3-8B-FP8).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from torpor import ConfigurationError
from torpor.engine_plugins import NCCL_SNAPSHOT_ENV, nccl_refusals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "SETTINGS",
    "SUSPEND_VARIABLE",
    "TOO_OLD",
    "TOO_OLD_REASON",
    "WORDS",
    "Setting",
    "check_several_gpus",
    "refused_word",
    "seconds_for_ranks",
    "suspend_env",
    "wrong_settings",
]

SUSPEND_VARIABLE = "TORPOR_SUSPEND_NCCL"
"""Set by the plugin for an engine that has to suspend its communicators: seconds that a rank waits for the others."""

_SHARE, _SECONDS = 0.75, 90.0

TOO_OLD = ("0.5.6.post2",)
TOO_OLD_REASON = "its torch 2.9 brings NCCL 2.27, which cannot let go of the memory of other GPUs"

WORDS = ("--disable-custom-all-reduce", "--enforce-disable-flashinfer-allreduce-fusion")
"""Flags that the plugin adds. 0.5.16 server_args.py:1639, 1667; 0.5.18 server_args.py:1994, 2030; 0.5.23
arg_groups/fields/exec_.py:725, 766. An extra argument may repeat them."""


class Setting(NamedTuple):
    """One of SGLang's settings, as its parser stores it.

    Args:
        attribute: its name in the engine's arguments.
        allowed: its allowed values; a version that lacks the attribute has no such thing.
        flag: the flag that sets it; empty for `WORDS`.
        reason: what another value would do.
    """

    attribute: str
    allowed: tuple[object, ...]
    flag: str
    reason: str


SETTINGS = (
    Setting(
        "disable_custom_all_reduce",
        (True,),
        "",
        "custom all-reduce shares buffers by CUDA IPC handles, whose addresses are part of the CUDA graphs",
    ),
    Setting(
        "flashinfer_allreduce_fusion_backend",
        (None,),
        "--flashinfer-allreduce-fusion-backend",
        "FlashInfer's fused all-reduce holds a workspace in memory of the other GPUs, and SGLang switches it on by itself for "
        "some models",
    ),
    Setting(
        "enable_symm_mem",
        (False,),
        "--enable-symm-mem",
        "NCCL's symmetric memory is mapped on every GPU, and it switches NVLink multicast on",
    ),
    Setting(
        "enable_torch_symm_mem",
        (False,),
        "--enable-torch-symm-mem",
        "torch's symmetric memory is mapped on every GPU",
    ),
    Setting(
        "enable_nccl_nvls", (False,), "--enable-nccl-nvls", "NVLink multicast makes a checkpoint hang before driver 595"
    ),
    Setting("enable_mscclpp", (False,), "--enable-mscclpp", "MSCCL++ maps buffers of the other GPUs"),
    Setting(
        "mm_feature_transport",
        (None, "cpu"),
        "--mm-feature-transport",
        "processes would share image features by CUDA IPC or VMM handles",
    ),
    Setting(
        "moe_a2a_backend",
        ("none", None),
        "--moe-a2a-backend",
        "the exchange of experts (DeepEP and the like) holds buffers of the other GPUs, through NVSHMEM or IPC handles",
    ),
    Setting(
        "elastic_ep_backend", (None,), "--elastic-ep-backend", "it exchanges experts by a transfer engine of its own"
    ),
    Setting(
        "pp_size",
        (1,),
        "--pp-size",
        "stages of a pipeline send to each other through NCCL communicators that torch keeps to itself",
    ),
)
"""Sources: server_args.py of 0.5.16 and 0.5.18, arg_groups/fields/ of 0.5.23, and each module under
srt/distributed/device_communicators/. Seen needed on two H200: custom all-reduce off. The others were off there, too."""

_ALIASES = {"--pipeline-parallel-size": "--pp-size"}
_VARIABLES = (
    (
        "SGLANG_ENABLE_PCIE_IPC_ALLREDUCE",
        "FlashInfer's all-reduce over PCIe shares buffers by IPC handles (0.5.23 environ.py:1539)",
    ),
    (
        "SGLANG_USE_CUDA_IPC_TRANSPORT",
        "processes would share image features by CUDA IPC handles (0.5.16 environ.py:811)",
    ),
)
_OFF = ("", "0", "false", "False")
_SHORTEST_ABBREVIATION = 6


def suspend_env(stage_s: float) -> dict[str, str]:
    """The variables of an engine that has to suspend its communicators.

    Args:
        stage_s: seconds for a sleep or a wake. A rank gives up earlier, so that its error says which rank is missing.
    """
    return {**NCCL_SNAPSHOT_ENV, SUSPEND_VARIABLE: f"{stage_s * _SHARE:g}"}


def seconds_for_ranks(environ: Mapping[str, str]) -> float:
    """Seconds that a rank waits for the others."""
    return float(environ.get(SUSPEND_VARIABLE, _SECONDS))


def refused_word(words: Sequence[str]) -> str:
    """Why a command line does not fit an engine that suspends its communicators; empty if it fits.

    Args:
        words: flags and values as a user gives them, e.g. `SGLang.extra_args`.
    """
    flags = {setting.flag: setting for setting in SETTINGS if setting.flag}
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        meant = _ALIASES.get(name, name)
        if meant not in flags and len(meant) > _SHORTEST_ABBREVIATION and meant.startswith("--"):
            meant = next((_ALIASES.get(flag, flag) for flag in (*flags, *_ALIASES) if flag.startswith(meant)), meant)
        if (setting := flags.get(meant)) is None:
            continue
        value = value or next(iter(words[place + 1 : place + 2]), "")
        if value in {str(allowed) for allowed in setting.allowed if allowed is not False and allowed is not True}:
            continue
        return f"{name} is refused for a snapshot of several GPUs: {setting.reason}"
    return ""


def wrong_settings(arguments: object) -> Iterator[str]:
    """What an engine has resolved otherwise than a snapshot of several GPUs needs, each as a sentence.

    Args:
        arguments: SGLang's arguments (ServerArgs), as the running process has them.
    """
    # 0.5.23 keeps what it decided beside what the user gave.
    module = sys.modules.get("sglang.srt.arg_groups.model_override_base")
    view = getattr(module, "resolved_view", None)
    resolved = view(arguments) if view else arguments
    for setting in SETTINGS:
        value = getattr(resolved, setting.attribute, setting.allowed[0])
        if value not in setting.allowed:
            yield f"SGLang has {setting.attribute}={value!r}: {setting.reason}"
    for variable, reason in _VARIABLES:
        if os.environ.get(variable, "") not in _OFF:
            yield f"{variable}={os.environ[variable]}: {reason}"


def check_several_gpus(arguments: object) -> None:
    """Refuse to start an engine on several GPUs that could not be put to sleep.

    Args:
        arguments: SGLang's arguments as its parser returned them.

    Raises:
        ConfigurationError: names each setting and variable.
    """
    if SUSPEND_VARIABLE not in os.environ:
        return
    if wrong := [*nccl_refusals(os.environ), *wrong_settings(arguments)]:
        raise ConfigurationError(
            f"An engine on several GPUs would start with settings that no snapshot can have: {'; '.join(wrong)}. "
            "Change them, or set Deployment.gpu_snapshot=False."
        )
