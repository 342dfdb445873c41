"""Renews the random state of a process: after a restore every replica has the snapshot's, and would sample the same text.

The guard calls it at every wake, in its own process. Engines with samplers in other processes call it there. Only modules that
are already imported are touched. Sources that ask the kernel each time need nothing: `secrets`, `os.urandom`,
`random.SystemRandom`, `uuid.uuid4`.

It does not reach generators with a state of their own: `random.Random()`, numpy's Generators (`default_rng`),
`torch.Generator()`, generators in C++. An engine that samples with one of those renews it in the guard's `on_wake`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["generators_of_their_own", "renew_random_state"]

_SEED_BYTES = 4  # numpy's legacy state takes no larger seed
_KERNEL_BYTES = 64
_MULTICAST = 1 << 40  # RFC 4122, 4.5: a node that is no network card's address
_NODE_BITS = 48


class _Seeded(Protocol):
    def seed(self, seed: int) -> None: ...


class _Torch(Protocol):
    def manual_seed(self, seed: int) -> object: ...


class _OpenSSL(Protocol):
    def RAND_add(self, data: bytes, entropy: float) -> None: ...  # noqa: N802 - OpenSSL's name


def renew_random_state(*, seed: int | None = None) -> None:
    """Renew every random source of this process that has a known place.

    `random`, numpy's legacy state and torch's generators (CUDA's too) get the seed. OpenSSL's generator, the node and clock of
    `uuid.uuid1` and the names of temporary files and semaphores get random bits from the kernel.

    Args:
        seed: for processes that have to draw the same numbers, like the ranks of one tensor-parallel group; 0 to 2**32 - 1.
            By default a random one from the kernel.
    """
    number = int.from_bytes(os.urandom(_SEED_BYTES), "little") if seed is None else seed
    for name, renew in _SOURCES.items():
        if (module := sys.modules.get(name)) is not None:
            renew(module, number)


def generators_of_their_own() -> dict[str, int]:
    """Count the generators that `renew_random_state` does not reach, by type; for a warning.

    It counts what Python's garbage collector sees: `random.Random`, numpy's `Generator` and `RandomState`. It walks over every
    object, which takes 0.1 s in a large process.
    """
    kinds: dict[type, str] = {}
    for module_name, names in (("random", ("Random",)), ("numpy.random", ("Generator", "RandomState"))):
        module = sys.modules.get(module_name)
        kinds |= {
            kind: f"{module_name}.{name}" for name in names if isinstance(kind := getattr(module, name, None), type)
        }
    renewed = {id(default) for default in map(_default_of, _DEFAULTS) if default is not None}
    counts: dict[str, int] = {}
    for found in gc.get_objects():
        if (name := kinds.get(type(found))) and id(found) not in renewed:
            counts[name] = counts.get(name, 0) + 1
    return counts


def _default_of(path: str) -> object:
    """The object at `module:attribute.attribute`, if that module is imported."""
    module_name, _, attributes = path.partition(":")
    found: object = sys.modules.get(module_name)
    for attribute in attributes.split("."):
        found = getattr(found, attribute, None)
    return found


def _renew_seeded(module: object, seed: int) -> None:
    """Python's `random` and `numpy.random`: functions of the module's own over one hidden state."""
    cast("_Seeded", module).seed(seed)


def _renew_torch(module: object, seed: int) -> None:
    """Seed all of torch's default generators; those of uninitialised devices when they are initialised."""
    if hasattr(module, "manual_seed"):  # missing after an import that failed half-way
        cast("_Torch", module).manual_seed(seed)


def _renew_openssl(module: object, _seed: int) -> None:
    cast("_OpenSSL", module).RAND_add(os.urandom(_KERNEL_BYTES), float(_KERNEL_BYTES))


def _renew_uuid(module: object, _seed: int) -> None:
    """For `uuid1` and the like: another node, no last time, and not libuuid's generator, whose state is hidden."""
    facts = vars(module)
    facts["_node"] = int.from_bytes(os.urandom(_NODE_BITS // 8), "big") | _MULTICAST
    if "_generate_time_safe" in facts:
        facts["_generate_time_safe"] = None  # uuid then makes them itself (uuid.py of Python 3.11 to 3.14)
    for name in ("_last_timestamp", "_last_timestamp_v6", "_last_timestamp_v7"):
        if name in facts:
            facts[name] = None


def _renew_names(holder: object, attribute: str) -> None:
    """Restart a sequence of random names: it seeds itself when its process id has changed."""
    if (sequence := getattr(holder, attribute, None)) is not None:
        with contextlib.suppress(AttributeError):
            sequence._rng_pid = None  # noqa: SLF001 - tempfile._RandomNameSequence of Python 3.11 to 3.14


_DEFAULTS = (
    *("random:_inst", "numpy.random:mtrand._rand", "tempfile:_name_sequence._rng"),
    "multiprocessing.synchronize:SemLock._rand._rng",
)
"""The renewed generators, where the garbage collector sees them."""

_SOURCES: dict[str, Callable[[object, int], None]] = {
    "random": _renew_seeded,
    "numpy.random": _renew_seeded,
    "torch": _renew_torch,
    "_ssl": _renew_openssl,
    "uuid": _renew_uuid,
    "tempfile": lambda module, _: _renew_names(module, "_name_sequence"),
    "multiprocessing.synchronize": lambda module, _: _renew_names(getattr(module, "SemLock", None), "_rand"),
}
