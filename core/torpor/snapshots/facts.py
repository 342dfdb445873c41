"""The facts of this machine and of a deployment, in the form in which a manifest has them."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torpor._version import __version__
from torpor.snapshots.criu.program import VERSION, Criu, candidates, find
from torpor.snapshots.store.manifest import DeploymentFacts, MachineFacts
from torpor.snapshots.store.paths import criu_prefix
from torpor.values.addresses import LOOPBACK

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.recipe import Recipe
    from torpor.snapshots.store.gpu_state import Gpu

__all__ = ["deployment_facts", "known_criu", "machine_facts"]

_AT_MINSIGSTKSZ = 51  # include/uapi/linux/auxvec.h
_WORD_BYTES = 8
_CPUINFO_BYTES = 8192  # the first processor's block; the file has one for each


def known_criu(made_on: MachineFacts) -> Criu:
    """The CRIU to use. If the program that made the snapshot is unchanged, it need not be asked for its version (30 ms).

    Raises:
        CriuError: there is none, or it is too old.
    """
    path, size, changed_ns = made_on.criu_file
    for argv in candidates(criu_prefix()):
        if argv[-1] == path:
            with contextlib.suppress(OSError):
                facts = os.stat(path)  # noqa: PTH116
                if (facts.st_size, facts.st_mtime_ns) == (size, changed_ns) and VERSION.fullmatch(made_on.criu):
                    return Criu(argv=argv, program=Path(path), version=made_on.criu, cache=criu_prefix())
        break
    return find(criu_prefix(), cache=criu_prefix())


def machine_facts(criu: Criu, *, driver: str = "", gpus: tuple[Gpu, ...] = ()) -> MachineFacts:
    """The facts of this machine.

    Args:
        criu: the program.
        driver: version of the NVIDIA driver, if a GPU is used.
        gpus: the GPUs to compare.
    """
    kernel = os.uname()
    program = criu.program.stat()
    return MachineFacts(
        architecture=kernel.machine,
        kernel=kernel.release,
        glibc=_c_library(),
        registers=_register_bytes(),
        criu=criu.version,
        criu_file=(str(criu.program), program.st_size, program.st_mtime_ns),
        cpu=_cpu_features(),
        driver=driver,
        gpus=gpus,
    )


def deployment_facts(deployment: Deployment, recipe: Recipe) -> DeploymentFacts:
    """The facts of a deployment.

    Args:
        deployment: what is served.
        recipe: relocated to this machine.
    """
    from torpor.deployment import plugin_name  # noqa: PLC0415 - deployment: 5 ms beside CRIU's work

    engine = deployment.engine
    placed = deployment if deployment.host == LOOPBACK else replace(deployment, host=LOOPBACK)  # as in every sandbox
    return DeploymentFacts(
        torpor=__version__,
        name=deployment.name,
        port=deployment.port,
        plugins={plugin_name(plugin): f"{_version(plugin)} {plugin!r}".strip() for plugin in deployment.plugins},
        task=deployment.task,
        engine=f"{plugin_name(engine)} {engine.engine_version}",
        model=deployment.model.source,
        revision=deployment.model.revision or "",
        argv=engine.engine_argv(placed, recipe),
        env=dict(recipe.env),
    )


def _version(plugin: object) -> str:
    """Version of the plugin's package, if it names one; bundled plugins have Torpor's."""
    package = type(plugin).__module__.partition(".")[0]
    return str(getattr(sys.modules.get(package), "__version__", ""))


def _cpu_features() -> tuple[str, ...]:
    """The features that the kernel lists as `flags` (x86) or `Features` (ARM)."""
    with Path("/proc/cpuinfo").open("rb") as stream:
        for line in stream.read(_CPUINFO_BYTES).decode(errors="replace").splitlines():
            name, _, words = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return tuple(sorted(words.split()))
    return ()


def _c_library() -> str:
    """Name and version of the C library; empty if it has no such name (musl)."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):
        return ""


def _register_bytes() -> int:
    """What the kernel needs to save a thread's registers, bytes; 0 if it does not say (x86: before Linux 5.14)."""
    words = Path("/proc/self/auxv").read_bytes()
    values = [int.from_bytes(words[at : at + _WORD_BYTES], sys.byteorder) for at in range(0, len(words), _WORD_BYTES)]
    return dict(zip(values[::2], values[1::2], strict=False)).get(_AT_MINSIGSTKSZ, 0)
