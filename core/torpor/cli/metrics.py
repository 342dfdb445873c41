"""`--metrics` and `--engine-metrics` of commands that serve."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.platforms.local import metrics
from torpor.values.addresses import LOOPBACK, url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torpor.platforms.local.metrics.figures import Source

__all__ = ["metrics_served"]


@contextlib.contextmanager
def metrics_served(given: str, source: Source, *, engines: bool, tell: Callable[[str], None]) -> Iterator[None]:
    """Serve the metrics of a command at an address of their own while the block runs; nothing if none was given.

    Args:
        given: the value of `--metrics`; empty for none.
        source: of the figures.
        engines: whether `--engine-metrics` was given.
        tell: called with lines for people.

    Raises:
        ConfigurationError: no address, or nobody can listen there; or `--engine-metrics` without one.
        PortInUseError: somebody else listens there.
    """
    if not given:
        if engines:
            raise ConfigurationError("--engine-metrics needs an address to show them at: give --metrics PORT, too.")
        yield
        return
    host, port = metrics.metrics_address(given)
    with metrics.MetricsServer(metrics.CommandMetrics(source, engines=engines), host=host, port=port) as server:
        tell(f"metrics on {url(host, server.port)}/metrics")
        if host not in (LOOPBACK, "::1"):
            tell(f"warning: everybody who reaches {host} can read the metrics: names of deployments, load, memory")
        yield
