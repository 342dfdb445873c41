"""The object store of the loopback control plane: the client PUTs files over 4 MB here, as it does to S3."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from typing_extensions import override

if TYPE_CHECKING:
    from tests.modal_plane.store import Store


class BlobServer:
    """PUT and GET of `/blob/<id>` on a free loopback port; the client checks the MD5 in the ETag."""

    def __init__(self, store: Store) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def url(self, blob_id: str) -> str:
        """The URL to put and get a blob."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/blob/{blob_id}"

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(store: Store) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            body = self._body()
            store.blobs[self.path.removeprefix("/blob/")] = body
            self._answer(200, b"", etag=hashlib.md5(body).hexdigest())

        def do_GET(self) -> None:
            body = store.blobs.get(self.path.removeprefix("/blob/"))
            self._answer(404 if body is None else 200, body or b"")

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "") != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"]))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, status: int, body: bytes, etag: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if etag:
                self.send_header("ETag", f'"{etag}"')
            self.end_headers()
            self.wfile.write(body)

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Print nothing: tests read the client's output."""

    return Handler
