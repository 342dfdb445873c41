"""What a failed request means: the server is not there yet, nothing listens at its address, or this process cannot ask."""

from __future__ import annotations

import email.utils
import os
import time
from urllib.parse import urlsplit

import httpx

from torpor.errors import ServerUnavailableError
from torpor.network.shortage import shortage
from torpor.values.addresses import shown_url

__all__ = [
    "CONNECT_TIMEOUT_S",
    "NobodyThereError",
    "TryLaterError",
    "check_connects",
    "check_means",
    "check_there",
]

CONNECT_TIMEOUT_S = 10.0
"""Seconds for one attempt to connect."""

_WAITING = frozenset({429, 502, 503, 504})
_MOST_CAUSES = 10


class TryLaterError(Exception):
    """The server is not there yet.

    Args:
        reason: what was seen.
        pause_s: seconds that the server asked for; None if it did not.
    """

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class NobodyThereError(TryLaterError):
    """No connection can be made: nothing listens there, or the name leads nowhere."""


def check_there(response: httpx.Response) -> None:
    """Check the status of an answer.

    Raises:
        TryLaterError: the server is not there yet.
    """
    if response.status_code in _WAITING:
        raise TryLaterError(
            f"the server answers {response.status_code}", _retry_after(response.headers.get("Retry-After", ""))
        )


def check_means(error: Exception, url: str) -> None:
    """Check why a request failed: if this process has too few descriptors, for example, waiting would not help.

    Raises:
        ServerUnavailableError: this process lacks the means to ask.
    """
    if shortage(error):
        raise ServerUnavailableError(f"{shown_url(url)} could not be asked: {error}.") from error


def check_connects(error: Exception, url: str) -> None:
    """Check whether a request failed because no connection could be made.

    Raises:
        NobodyThereError: so it is; what the system said is in the message.
        ServerUnavailableError: this process lacks the means to ask; see `check_means`.
    """
    check_means(error, url)
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        place = urlsplit(shown_url(url))
        raise NobodyThereError(f"no connection to {place.scheme}://{place.netloc} ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """What the operating system said: the innermost error that has a number."""
    seen, said = error, ""
    for _ in range(_MOST_CAUSES):
        if isinstance(seen, BaseExceptionGroup):
            seen = seen.exceptions[0]
        if isinstance(seen, OSError) and seen.strerror:
            said = os.strerror(seen.errno) if isinstance(seen, ConnectionError) and seen.errno else seen.strerror
        inner = seen.__cause__ or seen.__context__
        if inner is None:
            break
        seen = inner
    return said or str(error) or f"no answer within {CONNECT_TIMEOUT_S:g} s"


def _retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks for (a number, or an HTTP date); None for none."""
    try:
        if value.strip().isdecimal():
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
