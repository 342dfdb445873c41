"""What vLLM needs on several GPUs so that a snapshot of it can be restored, each setting with its reason.

NCCL's communicators are suspended for the sleep (`torpor.launcher.NcclCommunicators`). Everything else by which ranks share GPU
memory cannot be taken away and given back, so it is switched off, and read back in every worker before the capture. None of it
was run on GPUs with vLLM: the sources were read, and SGLang's snapshots of two H200 needed the same.

vLLM can suspend NCCL by itself (`--enable-nccl-comm-suspend`, vllm#51485). That is refused: it leaves out the communicators of
torch's process groups, only warns about an NCCL that cannot suspend, and its workers would suspend PyNccl's communicators twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torpor import ConfigurationError
from torpor.engine_plugins import NCCL_SNAPSHOT_ENV, NcclSetting, nccl_refusals

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = [
    "ALL_REDUCE_SETTINGS",
    "FLAG_REASONS",
    "SNAPSHOT_ENV",
    "WORDS",
    "check_words",
    "refusals",
    "seconds_for_ranks",
]

_ENVS = "0.32.0 and 0.33.0 envs.py, cuda_communicator.py"
ALL_REDUCE_SETTINGS = (
    NcclSetting(
        "VLLM_ALLREDUCE_USE_SYMM_MEM",
        "0",
        "an all-reduce would map the other GPUs' buffers as torch's symmetric memory; on by default",
        _ENVS,
        needed=True,
    ),
    NcclSetting(
        "VLLM_ALLREDUCE_USE_FLASHINFER",
        "0",
        "FlashInfer's all-reduce would share a workspace by handles of its own; on by default",
        _ENVS,
        needed=True,
    ),
    NcclSetting(
        "VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC",
        "0",
        "FlashInfer's all-reduce over PCIe would share a workspace by CUDA IPC; off by default",
        _ENVS,
        needed=True,
    ),
    NcclSetting(
        "VLLM_USE_NCCL_SYMM_MEM",
        "0",
        "NCCL would register tensors as windows on all GPUs, which a suspend does not take away; off by default",
        "0.32.0 and 0.33.0 envs.py, pynccl_allocator.py",
        needed=True,
    ),
)
"""Variables of vLLM's own, beside those of NCCL. Quick all-reduce and AITER exist on AMD's GPUs only."""

SNAPSHOT_ENV = {**NCCL_SNAPSHOT_ENV, **{setting.variable: setting.value for setting in ALL_REDUCE_SETTINGS}}

_CUSTOM_FLAG, _FUSED_FLAG = "--disable-custom-all-reduce", "--compilation-config.pass_config.fuse_allreduce_rms"
WORDS = (_CUSTOM_FLAG, _FUSED_FLAG, "false")
"""Flags that the plugin adds. An extra argument may repeat them (config/parallel.py; config/vllm.py,
`enable_allreduce_rms_fusion`, which is true on Hopper and Blackwell)."""

FLAG_REASONS = {
    _CUSTOM_FLAG: "custom all-reduce shares buffers by CUDA IPC handles, with which a snapshot of several GPUs cannot be restored",
    _FUSED_FLAG: "all-reduce and norm as one kernel of FlashInfer's share a workspace between GPUs, which no snapshot can hold",
}

_STAGES = ("--pipeline-parallel-size", "-pp")
_SHARE = 0.75
_COMPILE_FLAG = "--compilation-config"
_CUSTOM = ("--no-disable-custom-all-reduce", "--enable-custom-all-reduce")
_PLAIN_ALL2ALL = ("allgather_reducescatter",)


def seconds_for_ranks(*timeouts_s: float) -> str:
    """Seconds that a worker waits for the others, as text for a call to it: less than the stage, so that its error comes first."""
    return f"{min(timeouts_s) * _SHARE:g}"


def check_words(words: Sequence[str]) -> None:
    """Refuse further engine flags that contradict these settings.

    Raises:
        ConfigurationError: names the flag, the reason and what to write instead.
    """
    for place, word in enumerate(words):
        flag, equals, value = word.replace("_", "-").partition("=")
        value = value if equals else next(iter(words[place + 1 : place + 2]), "")
        if why := _contradicts(flag, value):
            raise ConfigurationError(f"Engine argument {word!r} is refused: {why}")


def _contradicts(flag: str, value: str) -> str:
    """Why a flag may not be there; empty if it may."""
    end = "with which a snapshot of several GPUs cannot be restored. Leave it out."
    if flag in _CUSTOM:
        return f"custom all-reduce shares buffers by CUDA IPC, {end}"
    if flag == _FUSED_FLAG.replace("_", "-") and value.lower() != "false":
        return f"the fused all-reduce shares a workspace between GPUs, {end}"
    if flag in _STAGES and value != "1":
        return f"stages of a pipeline send to each other through NCCL communicators that torch keeps to itself, {end}"
    if flag == _COMPILE_FLAG:
        return (
            f"it would be replaced by {_FUSED_FLAG}=false, which a snapshot of several GPUs needs. Write each of its values by its "
            f"name: {_COMPILE_FLAG}.NAME VALUE."
        )
    return ""


class Config(Protocol):
    """The part of vLLM's configuration that is read back, in both versions."""

    model_config: object
    parallel_config: object
    compilation_config: object


def refusals(config: Config, environ: Mapping[str, str]) -> Iterable[str]:
    """What this worker resolved otherwise than a snapshot needs, each as a sentence; none if all is right."""
    yield from nccl_refusals(environ)
    for setting in ALL_REDUCE_SETTINGS:
        if (value := environ.get(setting.variable)) != setting.value:
            yield f"{setting.variable} is {value!r} and has to be {setting.value!r}: otherwise {setting.reason}"
    yield from _resolved_otherwise(config)


def _resolved_otherwise(config: Config) -> Iterator[str]:
    parallel = config.parallel_config
    if not _of(parallel, "disable_custom_all_reduce"):
        yield "custom all-reduce is on (disable_custom_all_reduce is False), which shares buffers by CUDA IPC"
    if _of(_of(config.compilation_config, "pass_config"), "fuse_allreduce_rms"):
        yield "all-reduce and norm are fused (fuse_allreduce_rms is True), which shares a workspace between GPUs"
    if _of(config.model_config, "enable_nccl_comm_suspend"):
        yield "vLLM suspends NCCL by itself (enable_nccl_comm_suspend is True), and Torpor would do it a second time"
    if _of(parallel, "pipeline_parallel_size") != 1:
        yield "pipeline_parallel_size is not 1, and stages send to each other through communicators that torch keeps to itself"
    all2all = _of(parallel, "all2all_backend")
    if _of(parallel, "enable_expert_parallel") and all2all not in _PLAIN_ALL2ALL:
        yield f"all2all_backend is {all2all!r}, which shares buffers between GPUs; allowed is {_PLAIN_ALL2ALL[0]!r}"


def _of(thing: object, name: str) -> object:
    """An attribute of vLLM's; one that a version lacks is an error there, not a setting that is off."""
    return getattr(thing, name)
