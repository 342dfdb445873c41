"""Public names of a package that are imported when they are first used (PEP 562).

A container, an engine's process or a command that needs one name of a package pays for one module of it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # what type checkers take for True; `typing` would be half of `import torpor`'s time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["lazy_names"]


def lazy_names(
    package: str, homes: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
        package: the package's `__name__`.
        homes: public names by the module that defines them.

    Returns:
        Both functions, to be assigned in the package's `__init__`.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def load(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        __import__(home[name])  # importlib would be 0.3 ms of `import torpor`
        value: object = getattr(sys.modules[home[name]], name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return list(sys.modules[package].__dict__["__all__"])

    return load, names
