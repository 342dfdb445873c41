"""The table of environment variables, read from the code.

A variable of Torpor's is a constant of a module, `NAME_VARIABLE = "TORPOR_NAME"`, with its meaning in the docstring below it. The
meaning of one that people do not set begins with "Set by". The sources are read as text, so nothing of them is imported.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scripts.site.docstrings import prose

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FOREIGN", "Variable", "foreign_table", "named_in_code", "read_in_code", "variable_table", "variables"]

ROOT = Path(__file__).parents[2]
SOURCES = ("core", "plugins")
_NAME = re.compile(r"TORPOR_[A-Z][A-Z_]*[A-Z]_?")
_DEFINED = re.compile(r"^\w+ = \"TORPOR_", re.MULTILINE)
_STRING = re.compile(r"^(\w+) = \"(\w+)\"", re.MULTILINE)
_READ = re.compile(r"os\.environ(?:\.get\(|\.pop\(|\[)(?:\"(\w+)\"|([A-Z_]+))(?!\](?: = |\.))")

FOREIGN = {
    "COLUMNS": "width of tables and help texts, in letters",
    "HF_HUB_ENABLE_HF_TRANSFER": "removed for a download; the hub's library 0.36 fails with it where hf_transfer is missing",
    "HF_ENDPOINT": "the hub from which weights are downloaded",
    "HF_HOME": "where the hub's cache of this machine lies: `torpor doctor` estimates a snapshot by it",
    "HF_HUB_CACHE": "the same, for the folder itself",
    "HF_TOKEN": "the token for a gated model; only the build step that downloads gets it",
    "NO_COLOR": "no colours in the terminal",
    "NO_PROXY": "hosts that are asked without a proxy, beside this machine, which always is; `no_proxy` wins",
    "NOTIFY_SOCKET": "systemd's socket: a command that serves says when it is ready. No engine inherits it",
    "PATH": "where `criu` and `nvidia-smi` are looked for",
    "PYTHONPATH": "where an engine's process on Modal finds Torpor, beside what is named already",
    "RAY_ADDRESS": "the cluster of `torpor ray` commands without `--address`",
    "RAY_SERVE_ENABLE_HA_PROXY": "1 if Ray was started with HAProxy; then `--host` has no effect, and is refused",
    "SUDO_UID": "with sudo: the user whose CRIU is trusted",
    "TERM": "`dumb` has no live line of progress",
    "TMPDIR": "the folder of short-lived files; one that does not last is refused for a snapshot",
    "XDG_CACHE_HOME": "the folder above the cache root, instead of `~/.cache`",
    "MODAL_TASK_ID": "on Modal: the container, by which a replica knows that it was restored",
}
"""Variables of other projects that Torpor reads, each with what it does."""


class Variable(NamedTuple):
    """An environment variable of Torpor's.

    Attributes:
        name: as the environment has it; a prefix ends with `_`.
        meaning: what it does; empty if the code does not say.
        by_hand: whether people set it.
        for_tests: whether only tests read it.
    """

    name: str
    meaning: str
    by_hand: bool
    for_tests: bool


@functools.cache
def variables() -> tuple[Variable, ...]:
    """Every variable of Torpor's that a constant of the code holds, by name. Two constants with one name count once."""
    found: dict[str, Variable] = {}
    for file, text in _sources().items():
        for name, meaning in _constants(ast.parse(text)) if _DEFINED.search(text) else ():
            if name not in found or not found[name].meaning:
                for_tests = "testing" in file.relative_to(ROOT).parts
                found[name] = Variable(name, meaning, not meaning.startswith("Set by"), for_tests)
    return tuple(found[name] for name in sorted(found))


def variable_table(*, by_hand: bool) -> str:
    """A row for each variable that people set, or for each that Torpor sets."""
    rows = [
        f"| `{one.name}{'...' if one.name.endswith('_') else ''}` | {one.meaning.replace('|', chr(92) + '|')} |"
        for one in variables()
        if one.by_hand is by_hand and not one.for_tests
    ]
    return "\n".join(("| variable | what it does |", "|---|---|", *rows))


def foreign_table() -> str:
    """A row for each variable of another project."""
    rows = [f"| `{name}` | {FOREIGN[name]} |" for name in sorted(FOREIGN)]
    return "\n".join(("| variable | what Torpor does with it |", "|---|---|", *rows))


@functools.cache
def named_in_code() -> frozenset[str]:
    """Every name of Torpor's that stands anywhere in the code, comments included."""
    return frozenset(name for text in _sources().values() for name in _NAME.findall(text))


@functools.cache
def read_in_code() -> frozenset[str]:
    """Every variable of another project that the code reads by its literal name, or by a constant's; the stand-in apart."""
    constants = {name: value for text in _sources().values() for name, value in _STRING.findall(text)}
    asked = {name for file, text in _sources().items() if "testing" not in file.parts for name in _READ.findall(text)}
    names = {literal or constants.get(constant, "") for literal, constant in asked}
    return frozenset(name.upper() for name in names if name and not name.startswith("TORPOR_"))


@functools.cache
def _sources() -> dict[Path, str]:
    files = (file for source in SOURCES for file in sorted((ROOT / source).rglob("*.py")))
    return {file: file.read_text(encoding="utf-8") for file in files}


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names of Torpor's variables that a module's constants hold, each with the docstring below it."""
    for node, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and _NAME.fullmatch(str(node.value.value))
        ):
            told = below.value if isinstance(below, ast.Expr) else None
            yield str(node.value.value), prose(str(told.value)) if isinstance(told, ast.Constant) else ""
