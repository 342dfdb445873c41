"""The guard's rules: who may use which of the engine's paths, and the limits."""

from __future__ import annotations

from dataclasses import dataclass

from torpor.errors import ConfigurationError
from torpor.guard.protocol import CONTROL, HEALTH
from torpor.values.field_types import shown

__all__ = ["MIN_KEY_LENGTH", "GuardRules", "RulesError", "check_key"]

MIN_KEY_LENGTH = 16
_LARGEST = 2**63 - 1
_PATH_GROUPS = ("public", "open", "keyed", "sleep", "wake")
_SHA256_HEX_DIGITS = 64


class RulesError(ConfigurationError, ValueError):
    """A rule that the guard cannot keep; also a ValueError, for readers of a boot document."""


@dataclass(frozen=True, kw_only=True)
class GuardRules:
    """Who may use which of the engine's paths, and the limits.

    If several of `open`, `public` and `keyed` name a path, the first of them in this order counts.

    Attributes:
        public: exact paths open while serving, behind a bearer key if `bearer_sha256` holds any.
        open: exact paths open while serving without any key, e.g. `/metrics` if the operator wants that.
        keyed: exact paths that only the lifecycle key opens, while the engine is awake.
        sleep: the calls (POST) that put the engine to sleep: with the key, in this order, once each, while draining.
        wake: the calls (POST) that wake it: with the key, in this order, once each, while waking.
        bearer_sha256: SHA-256 (hex) of the bearer keys for the public paths; without any, public paths need no key.
        max_body_bytes: largest request body, bytes.
        max_in_flight: public requests at once; further ones get 503 with Retry-After.
        retry_after_s: value of the Retry-After header, seconds.

    Raises:
        RulesError: a path cannot be matched exactly, belongs to the guard, or is a step and something else as well; or a
            digest or limit is invalid. It is a ConfigurationError and a ValueError.
    """

    public: tuple[str, ...]
    open: tuple[str, ...] = ()
    keyed: tuple[str, ...] = ()
    sleep: tuple[str, ...] = ()
    wake: tuple[str, ...] = ()
    bearer_sha256: tuple[str, ...] = ()
    max_body_bytes: int = 32 * 1024 * 1024
    max_in_flight: int = 1000
    retry_after_s: int = 2

    def __post_init__(self) -> None:
        for group in (*_PATH_GROUPS, "bearer_sha256"):
            given = getattr(self, group)
            _check_strings(group, given)
            object.__setattr__(self, group, tuple(given))
        for group in _PATH_GROUPS:
            for path in getattr(self, group):
                _check_path(group, path)
        for digest in self.bearer_sha256:
            if len(digest) != _SHA256_HEX_DIGITS or set(digest) - set("0123456789abcdef"):
                raise RulesError(
                    "GuardRules.bearer_sha256 has to hold SHA-256 digests of keys, 64 lower-case hex digits each; `torpor key new` "
                    "makes a key and its digest"
                )
        if both := {*self.sleep, *self.wake} & {*self.public, *self.open, *self.keyed}:
            raise RulesError(
                f"GuardRules: {sorted(both)}: a sleep or wake step cannot be reached in another way as well"
            )
        for limit in ("max_body_bytes", "max_in_flight", "retry_after_s"):
            _check_positive(limit, getattr(self, limit))


def check_key(key: object) -> str:
    """Return the lifecycle key, which has to fit into a header.

    Raises:
        ValueError: it is invalid; the message does not repeat it.
    """
    if not isinstance(key, str) or len(key) < MIN_KEY_LENGTH or not all("!" <= letter <= "~" for letter in key):
        raise ValueError(f"key has to be a string of at least {MIN_KEY_LENGTH} visible ASCII characters")
    return key


def _check_strings(name: str, value: object) -> None:
    if isinstance(value, tuple | list) and all(isinstance(item, str) for item in value):
        return
    what = f"a {type(value).__name__}" if name == "bearer_sha256" else shown(value)  # it may be the key itself
    raise RulesError(f"GuardRules.{name} has to be a tuple of strings, not {what}")


def _check_path(group: str, path: str) -> None:
    if path.startswith(CONTROL) or path in HEALTH:
        raise RulesError(
            f"GuardRules.{group}: {path!r} cannot be ruled: {CONTROL}* and {', '.join(HEALTH)} are the guard's own"
        )
    # An escape, a query or a space never compares equal with what a server hands over.
    if not path.startswith("/") or not all("!" <= letter <= "~" for letter in path) or set(path) & set("%?#"):
        raise RulesError(
            f"GuardRules.{group}: {path!r} cannot be ruled: paths begin with '/' and are plain ASCII without '%', '?', '#', ' '"
        )


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
        raise RulesError(
            f"GuardRules.{name} has to be a whole number from 1 on, at most {_LARGEST}, not {shown(value)}"
        )
