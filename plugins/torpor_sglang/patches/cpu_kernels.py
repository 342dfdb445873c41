"""Replaces SGLang's kernel library on a CPU, because no registry has a CPU build of it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from typing import TYPE_CHECKING, NoReturn

from torpor.launcher import Patch
from torpor_sglang.patches.cpu import is_cpu_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

__all__ = ["PATCH"]

# Only these are imported unconditionally; SGLang guards the imports of every other submodule itself.
_MODULES = ("sgl_kernel", "sgl_kernel.kvcacheio")


class _KernelFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Provides the two modules with every imported name; calling one raises an error."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the finder's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if fullname in _MODULES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:  # noqa: ARG002
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__version__ = "0.0.0"  # type: ignore[attr-defined]
        module.__getattr__ = lambda name: _missing_kernel(module.__name__, name)  # type: ignore[method-assign]


def _missing_kernel(module: str, name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"{module}.{name} is a GPU kernel; this engine runs on a CPU and has no build of it")

    kernel.__name__ = name
    return kernel


def _has_no_kernels() -> bool:
    return is_cpu_engine() and importlib.util.find_spec("sgl_kernel") is None


def _add_finder() -> None:
    sys.meta_path.append(_KernelFinder())


PATCH = Patch(
    name="cpu-kernels",
    reason=(
        "SGLang imports names of sgl_kernel wherever it runs, and the library has no CPU build on the registry; the "
        "torch-native path of a Qwen3 calls none of them"
    ),
    versions=("0.5.6.post2", "0.5.16", "0.5.18", "0.5.23"),
    applies=_has_no_kernels,
    apply=_add_finder,
)
