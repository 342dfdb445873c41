"""Fetches files over http(s), as a program of its own, so that the caller can end it at any time.

    python -I mirror_download.py ADDRESS FILE SIZE [ADDRESS FILE SIZE]...

Within one process, a name lookup, a handshake or a header that never ends could not be given up. Standard library only. Errors go
to standard error in apt's form: one line that begins with `E: `.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from http.client import HTTPMessage
    from typing import IO

__all__ = ["fetch", "main"]

_READ_BYTES = 1 << 16
_READ_TIMEOUT_S = 30.0
_PORTS = {"http": 80, "https": 443}


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to the same host, and to another scheme only from http to https."""

    max_redirections = 5

    def redirect_request(  # noqa: PLR0917 - of HTTPRedirectHandler
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in _PORTS or (old.scheme == "https" and new.scheme != "https"):
            raise OSError(f"it redirects to {newurl[:200]!r}, which is not an {old.scheme} address")
        moved = (new.hostname, new.port or _PORTS[new.scheme]) != (old.hostname, old.port or _PORTS[old.scheme])
        upgraded = (
            new.hostname == old.hostname
            and (old.scheme, new.scheme) == ("http", "https")
            and not (new.port or old.port)
        )
        if moved and not upgraded:
            raise OSError(f"it redirects to another host, {new.netloc[:200]!r}; name that mirror if you trust it")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(opener: urllib.request.OpenerDirector, address: str, file: str, size: int) -> None:
    """Fetch one file of a known size.

    Raises:
        OSError: no answer, another answer, or a wrong number of bytes.
    """
    with opener.open(address, timeout=_READ_TIMEOUT_S) as answer:
        told = answer.headers.get("Content-Length", "")
        if told.isdigit() and int(told) != size:
            raise OSError(f"it has {told} bytes, the lock says {size}")
        seen = 0
        with open(file, "xb") as stream:  # noqa: PTH123 - the path is an argument
            while chunk := answer.read(min(_READ_BYTES, size - seen + 1)):
                seen += len(chunk)
                if seen > size:
                    raise OSError(f"it has more than the {size} bytes that the lock says")
                stream.write(chunk)
    if seen != size:
        raise OSError(f"it ended after {seen} bytes, the lock says {size}")


def main(argv: list[str]) -> int:
    """Fetch all files; returns the exit code."""
    opener = urllib.request.build_opener(_SameHost())
    for address, file, size in zip(argv[::3], argv[1::3], argv[2::3], strict=True):
        try:
            fetch(opener, address, file, int(size))
        except urllib.error.HTTPError as error:
            error.close()
            print(f"E: {address}  {error.code} {error.reason}", file=sys.stderr)
            return 1
        except (OSError, ValueError) as error:  # URLError is an OSError
            print(f"E: {address} cannot be fetched: {getattr(error, 'reason', error)}", file=sys.stderr)
            return 1
        except Exception as error:  # http.client's errors for damaged answers
            print(f"E: {address} cannot be fetched: {type(error).__name__} {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
