"""`DeepGEMM`: FP8 GEMM kernels, compiled once with the serving flags and loaded from the image's own disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torpor import (
    IMAGE_ROOT,
    VOLUME_ROOT,
    BuildPlan,
    BuildStep,
    Cache,
    ConfigurationError,
    Finding,
    ImagePatch,
    Plugin,
    check_retries,
    check_seconds,
    check_types,
    check_volume,
    gpu_model,
    hookimpl,
    override,
    plugin_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor import Deployment

__all__ = ["DeepGEMM"]

_KERNELS = f"{IMAGE_ROOT}/kernels"
_FOLDER_VARIABLES = ("SGLANG_DG_CACHE_DIR", "DG_JIT_CACHE_DIR")
_WITHOUT_KERNELS = re.compile(r"T4|L\d+S?|A\d+G?(-\d+GB)?|[PV]100|RTX-?([234]\d{3}|[568]000)", re.IGNORECASE)
"""GPUs older than Hopper."""
_KEYED_PACKAGES = (
    "sglang",
    "vllm",
    "sgl-kernel",
    "sglang-kernel",
    "sgl-deep-gemm",
    "deep-gemm",
    "flashinfer-python",
    "torch",
    "triton",
)


@dataclass(frozen=True, kw_only=True)
class DeepGEMM(Plugin):
    """Compiles DeepGEMM's kernels, and others that the engine JIT-compiles meanwhile, while the image is built.

    The engine's own compile command runs with the serving flags, because the compiled shapes depend on them. The result becomes
    part of the image: kernels are loaded from local disk, and files that a snapshot maps cannot change. The volume only speeds up
    the next build; the serving container does not mount it.

    Attributes:
        volume: name of the volume that keeps results by key: engine and package versions, GPU and nvcc as found inside
            the image, model revision, every flag.
        timeout_s: seconds that one attempt may take.
        retries: further attempts after a crash; each continues from what the last one compiled.
        fast_warmup: compile a selection of batch shapes (SGLang from 0.5.16 on: some 3,000 of 16,000 and more; vLLM: what its
            heuristic picks instead of all). The engine compiles the others when it first meets them. In SGLang the long lists
            take half of a start even if every kernel exists: Qwen3-8B-FP8 on an H100 was ready after 28 s with the short lists,
            and after 66 s with the long ones.
        precompile: load the kernels of every shape when the model is loaded, ahead of any request.
    """

    plugin_name: ClassVar[str] = "deepgemm"
    compiles_for_engine: ClassVar[bool] = True

    volume: str = "deepgemm-cache"
    timeout_s: float = 3600.0
    retries: int = 1
    fast_warmup: bool = False
    precompile: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        check_volume("DeepGEMM.volume", self.volume)
        check_seconds("DeepGEMM.timeout_s", self.timeout_s)
        check_retries("DeepGEMM.retries", self.retries)

    @override
    def check(self, deployment: Deployment) -> Iterator[Finding]:
        for look in (_check_gpu, _compile_argv, _kernel_folder, self._switches):
            try:
                look(deployment)
            except ConfigurationError as error:
                yield Finding(level="error", what="kernels", seen=str(error))
                return

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch(env={**self._switches(deployment), **_cache_env(deployment)})

    @hookimpl
    @override
    def compile_kernels(self, deployment: Deployment) -> BuildPlan:
        _check_gpu(deployment)
        argv = _compile_argv(deployment)
        mount = f"{VOLUME_ROOT}/{self.volume}"
        step = BuildStep(
            name="compile DeepGEMM kernels",
            script="torpor_deepgemm.watch",
            argv=("--", *argv),
            order=20,
            timeout_s=self.timeout_s,
            retries=self.retries,
            gpu=True,
            volumes={mount: self.volume},
            outputs=(_kernel_folder(deployment),),
            cache=Cache(
                volume_dir=mount, image_dir=_KERNELS, key=self._key(deployment, argv), probes=_probes(deployment)
            ),
            engine_args=True,
        )
        return BuildPlan(steps=(step,))

    def _switches(self, deployment: Deployment) -> dict[str, str]:
        return deployment.engine.kernel_compile_env(deployment, fast=self.fast_warmup, at_load=self.precompile)

    def _key(self, deployment: Deployment, argv: tuple[str, ...]) -> tuple[str, ...]:
        engine, model = deployment.engine, deployment.model
        switches = (f"{name}={value}" for name, value in sorted(self._switches(deployment).items()))
        return (
            f"engine={plugin_name(engine)} {engine.engine_version}",
            f"model={model.source} {model.revision or ''}".rstrip(),
            f"gpus={deployment.gpu_count}",
            *switches,
            *argv,
        )


def _check_gpu(deployment: Deployment) -> None:
    """Refuse GPUs below compute capability 9.0: engines then run without DeepGEMM, and compile commands do nothing."""
    name = gpu_model(deployment.gpu)
    if not name or _WITHOUT_KERNELS.fullmatch(name):
        raise ConfigurationError(
            f"DeepGEMM has no kernels for Deployment.gpu {deployment.gpu!r}: it needs a Hopper GPU or newer (H100, H200, B200). "
            "Name one, or drop DeepGEMM() from Deployment.plugins; the engine then takes other FP8 kernels."
        )


def _compile_argv(deployment: Deployment) -> tuple[str, ...]:
    argv = deployment.engine.kernel_compile_argv(deployment)
    if argv is None:
        raise ConfigurationError(
            f"DeepGEMM has nothing to run: the engine {plugin_name(deployment.engine)!r} of deployment {deployment.name!r} has no "
            "kernel compile command (its kernel_compile_argv gives None). Drop DeepGEMM() from Deployment.plugins, or "
            "choose an engine and a device that have one, e.g. SGLang() on a GPU."
        )
    return argv


def _cache_env(deployment: Deployment) -> dict[str, str]:
    """The engine's variables for its kernel caches, which have to be inside the folder that the step keeps."""
    env = deployment.engine.kernel_cache_env(deployment)
    for name, value in env.items():
        if not f"{value}/".startswith(f"{_KERNELS}/"):
            raise ConfigurationError(
                f"The engine {plugin_name(deployment.engine)!r} puts a kernel cache at {name}={value}, outside {_KERNELS}: "
                "it would be compiled and not kept. Let its kernel_cache_env answer with folders under IMAGE_ROOT/kernels."
            )
    return env


def _kernel_folder(deployment: Deployment) -> str:
    env = _cache_env(deployment)
    for name in _FOLDER_VARIABLES:
        if name in env:
            return env[name]
    raise ConfigurationError(
        f"The engine {plugin_name(deployment.engine)!r} does not say where DeepGEMM's kernels go: its kernel_cache_env has none of "
        f"{', '.join(_FOLDER_VARIABLES)}. Set one there, or drop DeepGEMM() from Deployment.plugins."
    )


def _probes(deployment: Deployment) -> tuple[tuple[str, ...], ...]:
    """Return programs that report facts of the image: the compiler that DeepGEMM finds, the GPU, and the packages.

    The programs have no line breaks and no dollars, because a build step is one shell line of a Dockerfile.
    """
    nvcc = (
        "import os, shutil, subprocess; home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH'); "
        "nvcc = home + '/bin/nvcc' if home else shutil.which('nvcc') or '/usr/local/cuda/bin/nvcc'; "
        "subprocess.run([nvcc, '--version'], check=True)"
    )
    packages = (
        f"import importlib.metadata as m; names = {_KEYED_PACKAGES!r}; "
        "found = {(d.name or '').lower().replace('_', '-'): d.version for d in m.distributions()}; "
        "print(*(n + '==' + found[n] for n in names if n in found))"
    )
    python = deployment.engine.engine_python
    return (
        (python, "-c", nvcc),
        ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        (python, "-c", packages),
    )
