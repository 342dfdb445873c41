"""Notify a service manager (`sd_notify(3)`): systemd with `Type=notify` waits until the server serves.

NOTIFY_SOCKET   a datagram socket, a path or an abstract name (`@...`). It is removed from the environment, so that no engine
                and no snapshot has it
"""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["SOCKET_VARIABLE", "ServiceManager"]

SOCKET_VARIABLE = "NOTIFY_SOCKET"
_SEND_S = 1.0


class ServiceManager:
    """Reports the command's state to the service manager that started it, if there is one."""

    def __init__(self) -> None:
        self._address = os.environ.pop(SOCKET_VARIABLE, "")

    def ready(self, status: str) -> None:
        """The server serves, or serves again."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """What a person reads in `systemctl status`."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """The server ends: it finishes what is in flight."""
        self._send("STOPPING=1", "STATUS=finishing requests in flight")

    def _send(self, *lines: str) -> None:
        """Send a message; errors are ignored, as the manager may have gone."""
        if not self._address:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines)
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_SEND_S)
            sender.connect(os.fsencode(address))
            sender.sendall(message.encode(errors="replace"))
