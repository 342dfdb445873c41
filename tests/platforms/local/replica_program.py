"""Stands in for a replica: a guard's `GET /ready`, and answers that show how a connection is forwarded.

Its argument is its name. It listens on 127.0.0.1:8000 and answers:

    /ready   200 or 503, as `/set/1` and `/set/0` set it
    /count   how many requests `/ready` got
    /name    its name
    /slow    five chunks, 100 ms apart
    /flood   endless bytes; `/flooded` says how many were sent
    /echo    the request's body, then its SHA-256
"""

from __future__ import annotations

import asyncio
import hashlib
import sys

NAME = sys.argv[1] if len(sys.argv) > 1 else ""
state = {"ready": True, "asked": 0, "flooded": 0}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection, one after the other."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            await answer(head.split()[1].decode(), body_length(head), reader, writer)
            if b"onnection: close" in head:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def body_length(head: bytes) -> int:
    """The length that a head tells."""
    return int((head.lower().partition(b"content-length: ")[2].split() or [b"0"])[0])


async def answer(path: str, length: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request."""
    status, body = "200 OK", NAME
    if path == "/ready":
        state["asked"] += 1
        status = "200 OK" if state["ready"] else "503 Service Unavailable"
    elif path.startswith("/set/"):
        state["ready"] = path.endswith("1")
    elif path in ("/count", "/flooded"):
        body = str(state["asked" if path == "/count" else "flooded"])
    elif path == "/slow":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        for number in range(5):
            writer.write(str(number).encode())
            await asyncio.sleep(0.1)
        return
    elif path == "/flood":
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            state["flooded"] += 65536
    elif path == "/echo":
        await echo(length, reader, writer)
        return
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    await writer.drain()


async def echo(length: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with a body of this length while it comes, and with its SHA-256."""
    digest = hashlib.sha256()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (length + 2 * digest.digest_size))
    while length:
        data = await reader.read(min(65536, length))
        length -= len(data)
        digest.update(data)
        writer.write(data)
        await writer.drain()
    writer.write(digest.hexdigest().encode())
    await writer.drain()


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.start_server(serve, "127.0.0.1", 8000)
    print("up", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
