"""Requests to servers: clients, streamed chats, proxies, Modal's proxy token, limits of open files. httpx comes at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.network.chat_request import ChatRequest
    from torpor.network.task_request import TaskExchange

__all__ = ["CONNECT_S", "ChatRequest", "TaskExchange"]

CONNECT_S = 10.0
"""Seconds that a command waits for an address where nothing listens, unless its user names a deadline."""

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.network.chat_request": ("ChatRequest",),
        "torpor.network.task_request": ("TaskExchange",),
    },
)
