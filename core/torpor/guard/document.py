"""The boot document: core sends the lifecycle key's digests and the rules to the engine's launcher through a pipe."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields

from torpor.guard.keys import LifecycleKey
from torpor.guard.rules import GuardRules

__all__ = ["BOOT_FD_VARIABLE", "BootDocument", "boot_document_json", "read_boot"]

BOOT_FD_VARIABLE = "TORPOR_BOOT_FD"
"""Set by Torpor for an engine's launcher: the file descriptor from which it reads its boot document."""

# What a pipe holds on Linux (pipe(7)): core writes the whole document before the reader exists.
_MAX_BYTES = 64 * 1024
_FIELDS = {"key", "replica_id", "rules"}


@dataclass(frozen=True, kw_only=True)
class BootDocument:
    """What core sends to the engine's launcher.

    Attributes:
        key: the digests of this start's lifecycle key; not in the repr. A key in plain text becomes its digests at once.
        replica_id: the id of the replica's life.
        rules: who may use which path.

    Raises:
        ValueError: the key is too short or does not fit into a header.
    """

    key: LifecycleKey | str = field(repr=False)
    replica_id: str
    rules: GuardRules

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", LifecycleKey(self.key))
        if not isinstance(self.replica_id, str) or not self.replica_id:
            raise ValueError("replica_id has to be a string with something in it")


def boot_document_json(*, key: str, replica_id: str, rules: GuardRules) -> str:
    """Return the document as sent through the pipe, with the key's digests, never the key.

    Raises:
        ValueError: the key or the replica id is invalid, or the document does not fit into a pipe.
    """
    document = BootDocument(key=key, replica_id=replica_id, rules=rules)
    text = json.dumps({"key": LifecycleKey(document.key).digests, "replica_id": replica_id, "rules": asdict(rules)})
    if len(text) > _MAX_BYTES:
        raise ValueError(f"the boot document has {len(text)} bytes, more than the {_MAX_BYTES} of a pipe: fewer rules")
    return text


def read_boot() -> BootDocument | None:
    """Read the inherited pipe to its end, close it and remove its variable; None if there is no pipe.

    Call it only under `__name__ == "__main__"` and before anything is spawned: a spawned child imports the main module again,
    where the same descriptor number is another file.

    Raises:
        ValueError: the variable or the document is invalid. The message shows nothing of the document.
    """
    number = os.environ.pop(BOOT_FD_VARIABLE, None)
    if number is None:
        return None
    data = _read_pipe(number)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"the boot document is larger than {_MAX_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the boot document is damaged: it is not JSON") from None
    if not isinstance(document, dict) or set(document) != _FIELDS:
        raise ValueError(f"the boot document is damaged: it has to hold {', '.join(sorted(_FIELDS))} and nothing else")
    return BootDocument(key=document["key"], replica_id=document["replica_id"], rules=_rules(document["rules"]))


def _read_pipe(number: str) -> bytes:
    if not number.isascii() or not number.isdigit():
        raise ValueError(f"{BOOT_FD_VARIABLE}={number!r} is not a descriptor's number")
    try:
        with os.fdopen(int(number), "rb") as pipe:
            return pipe.read(_MAX_BYTES + 1)
    except (OSError, OverflowError, TypeError) as error:
        raise ValueError(f"{BOOT_FD_VARIABLE}={number} is not an open pipe: {error}") from None


def _rules(given: object) -> GuardRules:
    """Rules from JSON. An unknown or missing rule is an error: ignoring it might open a path."""
    names = {item.name for item in fields(GuardRules)}
    if not isinstance(given, dict) or set(given) != names:
        found = sorted(set(given) ^ names) if isinstance(given, dict) else type(given).__name__
        raise ValueError(
            f"the boot document's rules are not this version's ({found}): core and the engine's launcher have to be of one release"
        )
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return GuardRules(**values)  # type: ignore[arg-type] # its __post_init__ looks at every value
