"""The HTTP side of the loopback hub."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, unquote, urlsplit

from typing_extensions import override

if TYPE_CHECKING:
    from tests.hub_server.repository import Repository

__all__ = ["HubServer", "Seen"]

_PAGE = 3
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/]+)")
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_CDN = re.compile(r"/cdn/(?P<repo>[^/]+/[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class Seen:
    """One request: method, path, and its bearer token."""

    method: str
    path: str
    token: str | None


class HubServer:
    """Serves `repositories` on a free loopback port while entered; `seen` lists the requests."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.seen: list[Seen] = []
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """The value for `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def cdn_url(self) -> str:
        """The URL of LFS files: another host name, as in reality, which must not get the token."""
        return f"http://localhost:{self._server.server_address[1]}/cdn"

    def downloads(self) -> list[str]:
        """Paths of the requested bodies."""
        return [seen.path for seen in self.seen if seen.method == "GET" and not seen.path.startswith("/api/")]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: tests read `seen`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.server.hub.seen.append(Seen(self.command, path, token))
        for pattern, answer in ((_API, self._listing), (_CDN, self._blob), (_RESOLVE, self._file)):
            if match := pattern.fullmatch(path):
                repository = self.server.hub.repositories.get(match["repo"])
                if repository is None:
                    self._refuse(401 if token is None else 404, "RepoNotFound", "Repository not found")
                elif "revision" in match.re.groupindex and match["revision"] != repository.commit:
                    self._refuse(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
                else:
                    answer(repository, match, token)
                return
        self._refuse(404, None, "Not found")

    def _listing(self, repository: Repository, match: re.Match[str], _token: str | None) -> None:
        """Listings are public, even those of a gated repository; its files are not."""
        if match["what"] == "revision":
            siblings = [{"rfilename": path} for path in repository.files]
            found = {"id": match["repo"], "modelId": match["repo"], "sha": repository.commit, "siblings": siblings}
            self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})
            return
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        paths = list(repository.files)
        headers = {"Content-Type": "application/json"}
        if start + _PAGE < len(paths):
            headers["Link"] = f'<{self.server.hub.url}{match[0]}?recursive=true&cursor={start + _PAGE}>; rel="next"'
        page = [repository.entry(path) for path in paths[start : start + _PAGE]]
        if start + _PAGE >= len(paths):
            page += [dict(entry) for entry in repository.strange]
        self._send(200, json.dumps(page).encode(), headers)

    def _file(self, repository: Repository, match: re.Match[str], token: str | None) -> None:
        path = match["path"]
        if path not in repository.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif repository.gated is not None and token not in repository.gated:
            self._refuse(401 if token is None else 403, "GatedRepo", f"Access to model {match['repo']} is restricted.")
        elif repository.failures.get(path, 0) > 0:
            repository.failures[path] -= 1
            self._refuse(503, None, "Try again")
        elif path in repository.lfs:
            headers = {
                "Location": f"{self.server.hub.cdn_url}/{match['repo']}/{path}",
                "X-Repo-Commit": repository.commit,
                "X-Linked-Etag": f'"{repository.etag(path)}"',
                "X-Linked-Size": str(len(repository.shrunk.get(path, repository.files[path]))),
            }
            self._send(302, b"", headers)
        else:
            self._body(repository, path, {"X-Repo-Commit": repository.commit, "ETag": f'"{repository.etag(path)}"'})

    def _blob(self, repository: Repository, match: re.Match[str], _token: str | None) -> None:
        self._body(repository, match["path"], {"ETag": f'"{repository.etag(match["path"])}"'})

    def _body(self, repository: Repository, path: str, headers: dict[str, str]) -> None:
        content = repository.sent(path)
        status, start = 200, 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            status, start = 206, int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, content[start:], headers, cut=repository.cut.get(path), pause_s=repository.slow.get(path, 0))

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], *, cut: int | None = None, pause_s: float = 0
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = body if cut is None else body[:cut]
        half = len(sent) // 2 if pause_s else 0
        self.wfile.write(sent[:half])
        self.wfile.flush()
        time.sleep(pause_s)
        self.wfile.write(sent[half:])
        if cut is not None:
            self.close_connection = True
