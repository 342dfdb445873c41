"""How many GPUs an engine takes, and whether the deployment has as many."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.values.findings import Finding
from torpor.values.gpu_names import gpu_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.deployment import Deployment

__all__ = ["ParallelFlags", "gpu_findings", "gpus_needed", "untried_findings"]

_SHORTEST_ABBREVIATION = 4
_GPU_COUNT = re.compile(r"(?=0*[1-9])[0-9]{1,4}")


@dataclass(frozen=True, kw_only=True)
class ParallelFlags:
    """Flags by which an engine takes more GPUs than those that share one model.

    Parallelism inside those GPUs (experts, attention, decode contexts) takes no further ones and is not listed.

    Args:
        stages: flags whose number multiplies the GPUs: pipelines, prefill contexts. Each group is a flag and its other names.
        data: the same for data parallelism.
        shared: flags with which data parallelism uses the GPUs of one model, e.g. `--enable-dp-attention`.
        inside: flags of parallelism that takes no further GPUs, e.g. that of experts. They count only for `untried_findings`.
    """

    stages: tuple[tuple[str, ...], ...] = ()
    data: tuple[tuple[str, ...], ...] = ()
    shared: tuple[str, ...] = ()
    inside: tuple[tuple[str, ...], ...] = ()


def gpus_needed(tensor_parallel: int, extra_args: Sequence[str], flags: ParallelFlags) -> int:
    """GPUs that the engine takes.

    Args:
        tensor_parallel: GPUs that share the model.
        extra_args: further flags. A number that cannot be read counts as 1; the engine refuses it.
        flags: those of `extra_args` that count.
    """
    groups = flags.stages
    if not any(_is(word, flags.shared) for word in extra_args):
        groups = (*groups, *flags.data)
    needed = tensor_parallel
    for names in groups:
        needed *= _number(extra_args, names)
    return needed


def gpu_findings(engine: str, deployment: Deployment, *, device: str, needed: int) -> Iterator[Finding]:
    """Compare the GPUs that an engine takes with those of its deployment.

    Args:
        engine: the plugin's class, for the message.
        deployment: whose GPUs.
        device: `cuda` or `cpu`.
        needed: GPUs that the engine takes.
    """
    if device == "cpu":
        if deployment.gpu_count:
            yield Finding(
                level="error",
                what="GPUs",
                seen=f"Deployment.gpu is {deployment.gpu!r}, and {engine}.device is 'cpu': the GPU would be paid for and stay idle",
                cure=f"leave Deployment.gpu out, or let {engine} run on it (device='cuda')",
            )
    elif not deployment.gpu_count and needed == 1:
        yield Finding(
            level="warning",
            what="GPUs",
            seen=f"Deployment.gpu is None, and {engine}.device is 'cuda': a platform would give no GPU, and no snapshot would hold "
            "GPU memory",
            cure=f"name the GPU, e.g. gpu='H100!', or set {engine}(device='cpu')",
        )
    elif needed != deployment.gpu_count:
        yield _other_number(engine, deployment, needed)


def untried_findings(
    engine: str, deployment: Deployment, extra_args: Sequence[str], flags: ParallelFlags
) -> Iterator[Finding]:
    """Parallelism that no snapshot was tried with: everything beside tensor parallelism.

    Args:
        engine: the plugin's class, for the message.
        deployment: a finding comes only where several GPUs go into one snapshot.
        extra_args: further flags.
        flags: those of `extra_args` that count.
    """
    if not deployment.gpu_snapshot or deployment.gpu_count == 1:
        return
    used = [names[0] for names in (*flags.stages, *flags.data) if _number(extra_args, names) > 1]
    used += [names[0] for names in flags.inside if any(_is(word, names) for word in extra_args)]
    if used:
        yield Finding(
            level="warning",
            what="GPUs",
            seen=f"{engine}.extra_args has {', '.join(used)}: snapshots of several GPUs were tried with tensor parallelism alone. "
            "Every NCCL communicator is suspended, but memory that GPUs share in other ways (DeepEP, NVSHMEM) cannot be captured",
            cure="use tensor_parallel alone, or set Deployment.gpu_snapshot=False; or try it: a capture that succeeds is proven "
            "only by a restore (torpor snapshot compare)",
        )


def _other_number(engine: str, deployment: Deployment, needed: int) -> Finding:
    """The finding for an engine that takes more or fewer GPUs than the deployment has."""
    there, gpu = deployment.gpu_count, deployment.gpu
    if needed > there:
        return Finding(
            level="error",
            what="GPUs",
            seen=f"{engine} takes {_gpus(needed)} (tensor_parallel, and what extra_args multiply it by), and Deployment.gpu is "
            f"{gpu!r}: {_gpus(there) if there else 'none'}",
            cure=f"write gpu='{_named(deployment, needed)}', or lower tensor_parallel",
        )
    return Finding(
        level="error",
        what="GPUs",
        seen=f"Deployment.gpu is {gpu!r}, {_gpus(there)}, and {engine} takes {_gpus(needed)}: the other "
        f"{'one' if there - needed == 1 else there - needed} would be paid for and stay idle",
        cure=f"write gpu='{_named(deployment, needed)}', or set {engine}(tensor_parallel={there})",
    )


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _named(deployment: Deployment, count: int) -> str:
    name = (deployment.gpu or "H100!").partition(":")[0] or gpu_model(deployment.gpu)
    return name if count == 1 else f"{name}:{count}"


def _is(word: str, names: Sequence[str]) -> bool:
    """Whether a word is one of the flags, in any spelling that argparse and vLLM's parser take."""
    flag = word.partition("=")[0].replace("_", "-")
    long = len(flag) > len("--") + _SHORTEST_ABBREVIATION
    return flag in names or (long and flag.startswith("--") and any(name.startswith(flag) for name in names))


def _number(words: Sequence[str], names: Sequence[str]) -> int:
    """The number that the last of a flag's words gives; 1 where there is none."""
    found = 1
    for place, word in enumerate(words):
        if _is(word, names):
            value = word.partition("=")[2] if "=" in word else next(iter(words[place + 1 : place + 2]), "")
            found = int(value) if _GPU_COUNT.fullmatch(value) else 1
    return found
