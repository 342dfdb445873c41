"""Which environment variables look like secrets: a snapshot holds the environment of every process in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["check_no_secrets", "secret_names"]

_SECRET = re.compile(
    r"(^|_)(TOKENS?|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?|APIKEYS?|(API|ACCESS|PRIVATE|SECRET|AUTH|LICENSE)_KEYS?)(_|$)",
    re.IGNORECASE,
)
_HARMLESS = re.compile(r"^(TOKENIZERS_|MAX_|NUM_)|_(FILE|PATH|DIR|URL|URI)$", re.IGNORECASE)


def secret_names(env: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the variables that look like secrets and hold something; values are never told."""
    return tuple(
        sorted(name for name, value in env.items() if value and _SECRET.search(name) and not _HARMLESS.search(name))
    )


def check_no_secrets(*environments: Mapping[str, str]) -> None:
    """Refuse environments with secrets in them.

    Raises:
        SnapshotError: the names, and what to do.
    """
    names: Iterable[str] = {name for env in environments for name in secret_names(env)}
    if names:
        listed = ", ".join(sorted(names))
        unset = " ".join(f"-u {name}" for name in sorted(names))
        raise SnapshotError(
            f"The engine's environment holds what looks like a secret: {listed}. A snapshot keeps the environment of "
            f"every process, readable by whoever gets the folder. Start without: env {unset} "
            "torpor ...; a build step that needs a secret runs outside of the snapshot."
        )
