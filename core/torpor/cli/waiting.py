"""How long a command waits for a server: what its user says, or less where nothing listens."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.cli.terminal import say
from torpor.errors import ServerUnavailableError
from torpor.network import CONNECT_S
from torpor.network.not_there import NobodyThereError
from torpor.values.addresses import checked_url, shown_url
from torpor.values.bounds import checked_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["WaitingLimits", "waiting_limits"]


@dataclass(frozen=True, kw_only=True)
class WaitingLimits:
    """Deadlines of a command that asks a server.

    Attributes:
        timeout_s: seconds for all of it.
        connect_s: seconds after which an address where nothing listens is given up; None for `timeout_s`.
    """

    timeout_s: float
    connect_s: float | None

    @contextlib.contextmanager
    def told(self, url: str) -> Iterator[None]:
        """Say what is asked and for how long, and what to do if nothing listens there.

        Args:
            url: where the server answers.

        Raises:
            ConfigurationError: the URL is none.
        """
        shorter = "" if self.connect_s is None else f", {self.connect_s:g} s while nothing listens there"
        say(f"asking {shown_url(checked_url(url))}, for at most {self.timeout_s:g} s{shorter}")
        try:
            yield
        except ServerUnavailableError as error:
            if isinstance(error.__cause__, NobodyThereError):
                error.add_note("--timeout SECONDS waits that long for a server that is about to start")
            raise


def waiting_limits(timeout_s: float | None, usual_s: float) -> WaitingLimits:
    """The deadlines of a command.

    Args:
        timeout_s: the value of `--timeout`; None if it was not given.
        usual_s: the deadline without that option, seconds.

    Raises:
        ConfigurationError: the value is not finite and positive.
    """
    if timeout_s is None:
        return WaitingLimits(timeout_s=usual_s, connect_s=CONNECT_S)
    return WaitingLimits(timeout_s=checked_seconds("--timeout", timeout_s), connect_s=None)
