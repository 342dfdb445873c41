"""The HTTP client for servers that may be anywhere: through the environment's proxies, and to this machine without."""

from __future__ import annotations

import httpx

from torpor._override import override
from torpor.network.proxies import is_loopback

__all__ = ["OutwardClient"]


class OutwardClient(httpx.AsyncClient):
    """httpx's client, with loopback addresses past every proxy, those that a redirect leads to as well."""

    @override
    def _transport_for_url(self, url: httpx.URL) -> httpx.AsyncBaseTransport:
        # httpx takes whole host names alone for what goes past a proxy, and 127.0.0.0/8 is a network.
        return self._transport if is_loopback(url.host) else super()._transport_for_url(url)
