"""What a deployment needs of this machine: GPUs and packages."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from torpor.engine.child_process import run_child
from torpor.errors import ConfigurationError
from torpor.recipe import requirement_name
from torpor.snapshots.gpu.driver import look
from torpor.telemetry.events import log
from torpor.values.gpu_names import gpu_model, is_this_gpu
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.recipe import Recipe

__all__ = ["check_gpu", "missing_packages"]

_QUERY_TIMEOUT_S = 20.0


def check_gpu(deployment: Deployment) -> None:
    """Check that this machine has the GPUs that the deployment names.

    Raises:
        ConfigurationError: it has not; the message lists the GPUs that it has.
    """
    if deployment.gpu is None:
        return
    wanted = gpu_model(deployment.gpu)
    seen = [gpu.name for gpu in look().gpus]
    fitting = [name for name in seen if is_this_gpu(wanted, name)]
    if len(fitting) < deployment.gpu_count:
        raise ConfigurationError(
            f"Deployment {deployment.name!r} needs {deployment.gpu_count} x {wanted}; this machine has "
            f"{', '.join(seen) or 'no NVIDIA GPU (neither NVML nor nvidia-smi lists one)'}. Run it on a machine with that GPU "
            "or on Modal (`modal deploy`), or set Deployment.gpu to what is here (None for an engine on the CPU, as in "
            "apps/tiny_cpu.py)."
        )


def missing_packages(deployment: Deployment, recipe: Recipe) -> dict[str, str]:
    """Packages that the recipe needs and this machine lacks, with the plugin that needs each.

    Python packages are looked up in the engine's interpreter, Debian packages with dpkg if it is there. Nothing is installed:
    the machine belongs to its owner.

    Raises:
        ConfigurationError: the interpreter does not answer.
    """
    missing: dict[str, str] = {}
    wanted = {
        requirement_name(line): recipe.origins.get(f"pip:{requirement_name(line)}", "?") for line in recipe.image.pip
    }
    if wanted:
        here = _installed(deployment.engine.engine_python)
        missing |= {f"pip:{name}": plugin for name, plugin in wanted.items() if name not in here}
    if recipe.image.apt and shutil.which("dpkg-query"):
        for name in recipe.image.apt:
            try:
                found = run_child(["dpkg-query", "-W", name], timeout_s=_QUERY_TIMEOUT_S)
            except (OSError, subprocess.SubprocessError) as error:
                log("warning", "debian_packages_unknown", package=name, reason=plain(str(error)))
                break
            if found.returncode != 0:
                missing[f"apt:{name}"] = recipe.origins.get(f"apt:{name}", "?")
    return missing


def _installed(python: str) -> set[str]:
    code = "import importlib.metadata as m; print(*{d.name for d in m.distributions() if d.name}, sep='\\n')"
    try:
        listed = run_child([python, "-c", code], timeout_s=_QUERY_TIMEOUT_S)
        listed.check_returncode()
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"The engine's interpreter {python!r} cannot be asked for its packages: {error}."
        ) from error
    return {requirement_name(line) for line in listed.stdout.decode(errors="replace").split()}
