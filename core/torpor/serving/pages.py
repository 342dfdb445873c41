"""Requests to the gateway's own pages, as `torpor.serving.values.Pages` gets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.serving.values import PageRequest

if TYPE_CHECKING:
    from torpor.serving.exchange import Exchange
    from torpor.serving.router import PageCall

__all__ = ["MAX_PAGE_BYTES", "page_request"]

MAX_PAGE_BYTES = 64 * 1024


def page_request(call: PageCall, exchange: Exchange) -> PageRequest:
    """The whole request of an exchange."""
    head, _, body = bytes(exchange.held).partition(b"\r\n\r\n")
    headers = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip(" \t")
    return PageRequest(
        method=exchange.head.method.decode(),
        path=call.path,
        query=call.query,
        headers=headers,
        body=body if exchange.payload is None else bytes(exchange.payload),
    )
