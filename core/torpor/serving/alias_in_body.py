"""Replace an alias in a request that has begun to come. The gateway knows aliases, an engine need not: vLLM answers them with 404.

Only the value and what says its length change; every other byte of the body reaches the engine as it came.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torpor.serving.bodies import ChunkedBody

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.serving.exchange import Exchange
    from torpor.serving.model_in_json import Edit

__all__ = ["replace_in_body"]

_LENGTH = re.compile(rb"(?i)\ncontent-length:[\t ]*(\d+)")


def replace_in_body(exchange: Exchange, edits: Sequence[Edit]) -> None:
    """Replace bytes of a request's body in what is held of the request.

    A body in chunks continues behind one chunk; see `torpor.serving.bodies.ChunkedBody.reframed`.

    Args:
        exchange: of the request; nothing of it was sent yet, and its chunks are still taken apart.
        edits: see `torpor.serving.router.Scanner.edits`; the indices count in what the scanner got.
    """
    held = exchange.held
    if isinstance(exchange.body, ChunkedBody) and exchange.payload is not None:
        _replace(exchange.payload, edits)
        body_start = held.index(b"\r\n\r\n") + 4
        exchange.held = bytes(held[:body_start]) + exchange.body.reframed(exchange.payload)
        return
    exchange.held = changed = held if isinstance(held, bytearray) else bytearray(held)
    before = len(changed)
    _replace(changed, edits)
    length = _LENGTH.search(changed)
    assert length is not None, "a body without chunks has a length"
    changed[length.start(1) : length.end(1)] = b"%d" % (exchange.head.length + len(changed) - before)


def _replace(data: bytearray, edits: Sequence[Edit]) -> None:
    for first, last, new in edits:
        data[first:last] = new
