"""How many GPUs an engine takes, and whether the deployment has as many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.values.findings import Finding
from torpor.values.gpu_names import gpu_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.deployment import Deployment

__all__ = ["ParallelFlags", "gpu_findings", "gpus_needed"]

_SHORTEST_ABBREVIATION = 4


@dataclass(frozen=True, kw_only=True)
class ParallelFlags:
    """Flags of an engine by which it takes more GPUs than those that share one model.

    Parallelism inside of those (experts, attention, decode contexts) takes no further ones, so it is not listed.

    Args:
        stages: flags whose number multiplies the GPUs: pipelines, prefill contexts. The first of a group is the flag, the
            others are its other names.
        copies: the same for data parallelism.
        shared: flags with which the copies share the GPUs of one model, e.g. `--enable-dp-attention`.
    """

    stages: tuple[tuple[str, ...], ...] = ()
    copies: tuple[tuple[str, ...], ...] = ()
    shared: tuple[str, ...] = ()


def gpus_needed(tensor_parallel: int, extra_args: Sequence[str], flags: ParallelFlags) -> int:
    """GPUs that the engine takes.

    Args:
        tensor_parallel: GPUs that share the model.
        extra_args: further flags; a number that cannot be read counts as 1, and the engine refuses it.
        flags: which of them count.
    """
    groups = flags.stages
    if not any(_is(word, flags.shared) for word in extra_args):
        groups = (*groups, *flags.copies)
    needed = tensor_parallel
    for names in groups:
        needed *= _number(extra_args, names)
    return needed


def gpu_findings(engine: str, deployment: Deployment, *, device: str, needed: int) -> Iterator[Finding]:
    """What is wrong between an engine and the deployment's GPUs.

    Args:
        engine: the plugin's class, for the message.
        deployment: whose GPUs.
        device: `cuda` or `cpu`.
        needed: GPUs that the engine takes.
    """
    there, gpu = deployment.gpu_count, deployment.gpu
    if device == "cpu":
        if there:
            yield Finding(
                level="error",
                what="GPUs",
                seen=f"Deployment.gpu is {gpu!r}, and {engine}.device is 'cpu': the GPU would be paid for and stay idle",
                cure=f"leave Deployment.gpu out, or let {engine} run on it (device='cuda')",
            )
        return
    if not there and needed == 1:
        yield Finding(
            level="warning",
            what="GPUs",
            seen=f"Deployment.gpu is None, and {engine}.device is 'cuda': a platform would give no GPU, and no snapshot would hold "
            "GPU memory",
            cure=f"name the GPU, e.g. gpu='H100!', or set {engine}(device='cpu')",
        )
    elif needed > there:
        yield Finding(
            level="error",
            what="GPUs",
            seen=f"{engine} takes {_gpus(needed)} (tensor_parallel, and what extra_args multiply it by), and Deployment.gpu is "
            f"{gpu!r}: {_gpus(there) if there else 'none'}",
            cure=f"write gpu='{_named(deployment, needed)}', or lower tensor_parallel",
        )
    elif needed < there:
        yield Finding(
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
            found = (
                int(value)
                if value.isascii() and value.isdecimal() and 0 < len(value) < len("10000") and int(value)
                else 1
            )
    return found
