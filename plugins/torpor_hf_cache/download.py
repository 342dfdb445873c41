"""Fetch one model revision into a hub cache, and check a fetched one offline. Run as a bare file inside images.

    python3 download.py fetch OWNER/NAME COMMIT --cache DIR [--allow PATTERN]... [--ignore PATTERN]... [--recheck]
    python3 download.py verify OWNER/NAME COMMIT --cache DIR

`fetch` lists the commit's files, writes a manifest (name, size, and the SHA-256 or git hash that the hub gives), lets
huggingface_hub download (0.36 to 2.x), checks every file against the manifest, and writes a completion marker last.
The hub's client itself compares sizes at most, and takes what lies in the cache for whole. A file that fails the check
is removed, so that nothing half-written is taken for whole by anyone. A fetch of what is complete already asks nobody.
`verify` is standard library only and compares existence and sizes: it runs before every start.

    <cache>/models--OWNER--NAME/blobs, snapshots/COMMIT        huggingface_hub's own
    <cache>/models--OWNER--NAME/torpor/COMMIT.manifest.json    what the commit holds
    <cache>/models--OWNER--NAME/torpor/COMMIT.complete.json    all of it was here and right

The hub and the volume are not trusted with paths. A name that leads out of the snapshot, is no name of a file, or is a file and a
folder at once ends the fetch before anything is touched; so does an answer that would have the client write elsewhere. What lies
in the cache counts as a file only if it is a regular one within the cache; markers are bounded and checked field by field.

Exit codes, after sysexits.h; 75 and 76 may pass when tried again, the others will not. 2: wrong use. 65: no such
revision, or a listing or an answer that no hub gives. 66: no such repository, or `verify` found nothing. 70: an error
that this file does not know. 73: the cache cannot be written. 74: no space left. 75: the hub cannot be reached or is
overloaded. 76: a file is missing, cut short or differs from the hub's. 77: gated, or the token was refused.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import re
import resource
import stat
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import IO

    from huggingface_hub.hf_api import RepoFile

__all__ = ["RECHECK_VARIABLE", "FetchError", "fetch", "main", "verify"]

RECHECK_VARIABLE = "TORPOR_RECHECK"
"""Set to 1, every check of the weights hashes all of them (`torpor doctor APP --recheck`)."""


_NO_REVISION, _NO_REPOSITORY, _UNKNOWN, _NOT_WRITABLE, _NO_SPACE, _UNREACHABLE, _DAMAGED, _DENIED = (
    65, 66, 70, 73, 74, 75, 76, 77,
)  # fmt: skip
_OVERLOADED = (408, 425, 429, 500, 502, 503, 504)
_UNAUTHORISED = (401, 403)
_NETWORK_PACKAGES = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2")
_BODY_ENDED_EARLY = ("RemoteProtocolError", "ChunkedEncodingError", "IncompleteRead", "ProtocolError")
_HASH_THREADS = 8
_READ_BYTES = 4 * 1024 * 1024
_PROGRESS_S = 15.0
_MANIFEST_BYTES = 64 * 1024 * 1024
_MOST_FILES = 100_000
_MOST_FILE_BYTES = 1 << 50
_NAME_BYTES, _PATH_BYTES = 255, 1024
_SPARE_BYTES = 64 * 1024 * 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
_DIGESTS = {"git": re.compile(r"[0-9a-f]{40}"), "sha256": re.compile(r"[0-9a-f]{64}")}
_ETAG = re.compile(r"[A-Za-z0-9_+=-][A-Za-z0-9_.+=-]{0,127}")
_SHOWN_CHARACTERS = 120
_SHOWN_AS_GB = 10_000_000


class FetchError(Exception):
    """A fetch or a check failed; `code` is the exit code, the text says what was seen and what to do."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class _File:
    """One file of the commit; `sha256` only of what the hub keeps as LFS or Xet object (`git` is then its pointer's)."""

    size: int
    sha256: str | None
    git: str


@dataclass(frozen=True)
class _Place:
    """Where a commit of a repository lives in a hub cache (the layout is huggingface_hub's, 0.36 to 2.4)."""

    cache: Path
    repo_id: str
    revision: str

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.repo_id.replace('/', '--')}"

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / self.revision

    @property
    def listing(self) -> Path:
        return self.folder / "trees" / f"{self.revision}.json"

    @property
    def manifest(self) -> Path:
        return self.folder / "torpor" / f"{self.revision}.manifest.json"

    @property
    def complete(self) -> Path:
        return self.folder / "torpor" / f"{self.revision}.complete.json"

    def __str__(self) -> str:
        return f"{self.repo_id} at {self.revision}"


@dataclass(frozen=True)
class _Manifest:
    allow: tuple[str, ...]
    ignore: tuple[str, ...]
    files: Mapping[str, _File]

    @property
    def total(self) -> int:
        return sum(file.size for file in self.files.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parse(argv)
    try:
        if options.action == "verify":
            recheck = options.recheck or os.environ.get(RECHECK_VARIABLE) == "1"
            files = verify(options.repo_id, options.revision, cache=options.cache, recheck=recheck)
            state = "are as the hub has them" if recheck else "are here in full size"
            print(f"{options.repo_id} at {options.revision}: {files} files {state}.")
        else:
            with _environment():
                fetch(
                    options.repo_id,
                    options.revision,
                    cache=options.cache,
                    allow=tuple(options.allow),
                    ignore=tuple(options.ignore),
                    recheck=options.recheck,
                )
    except FetchError as error:
        print(error, file=sys.stderr, flush=True)
        return error.code
    return 0


class _Options(argparse.Namespace):
    action: str
    repo_id: str
    revision: str
    cache: Path
    allow: list[str]
    ignore: list[str]
    recheck: bool


def _parse(argv: Sequence[str] | None) -> _Options:
    parser = argparse.ArgumentParser(
        prog="download.py", description="Fetch a model revision into a hub cache, or check one.", allow_abbrev=False
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in (("fetch", "download what is missing, and check all of it"), ("verify", "check sizes, offline")):
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        action.add_argument("repo_id", metavar="OWNER/NAME")
        action.add_argument("revision", metavar="COMMIT", help="40 hex digits")
        action.add_argument("--cache", type=Path, required=True, metavar="DIR", help="the hub cache, as HF_HUB_CACHE")
        mended = ", mend what differs" if name == "fetch" else ", whatever their times say"
        action.add_argument("--recheck", action="store_true", help=f"hash all files again{mended}")
        if name == "fetch":
            action.add_argument("--allow", action="append", default=[], metavar="PATTERN", help="only these files")
            action.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="not these files")
    options = parser.parse_args(argv, namespace=_Options())
    if not re.fullmatch(r"[0-9a-f]{40}", options.revision):
        parser.error(f"the revision is {options.revision!r}; it has to be a commit, 40 lower-case hex digits.")
    return options


# --- verify -----------------------------------------------------------------------------------------------------------


def verify(repo_id: str, revision: str, *, cache: Path, recheck: bool = False) -> int:
    """Check, without a network, that a fetched commit is complete: every file there, in full size, and not written since.

    The completion marker notes each file's place, time and blocks on the disk. A file that differs in them is hashed: damage
    that keeps the size is found, and a copy of the volume, with other times, passes.

    Args:
        repo_id: `owner/name`.
        revision: the commit, 40 hex digits.
        cache: the hub cache.
        recheck: hash every file, whatever its time says.

    Returns:
        The number of files.

    Raises:
        FetchError: nothing was fetched, the fetch did not end, or a file is missing, cut short or damaged (named).
    """
    place = _Place(cache, repo_id, revision)
    manifest = _read_complete(place)
    if manifest is None:
        if not place.folder.is_dir():
            raise FetchError(_NO_REPOSITORY, f"{cache} holds nothing of {repo_id}: it was never fetched, or emptied.")
        raise FetchError(_NO_REPOSITORY, f"{cache} holds no complete {place}: the fetch never ended.")
    damage = _wrong_size(place, manifest) or _wrong_since(place, manifest, recheck=recheck)
    if damage:
        raise FetchError(_DAMAGED, f"{place} is damaged: {damage[0][1]}{_and_more(len(damage) - 1)}.")
    return len(manifest.files)


def _wrong_since(place: _Place, manifest: _Manifest, *, recheck: bool = False) -> list[tuple[str, str]]:
    """Files that were written since the fetch and have another content now: pairs of name and what is wrong."""
    noted = _noted(place)
    suspects = [
        name
        for name in manifest.files
        if recheck or (name in noted and _is_other(noted[name], _facts(place.snapshot / name)))
    ]
    wrong = _wrong_contents(place, manifest, suspects)
    if suspects and not wrong:
        with contextlib.suppress(
            OSError, ValueError, RecursionError
        ):  # on a volume that may not be written to, they are hashed again
            _write(place.complete, {**json.loads(_read(place.complete)), "seen": _all_facts(place, manifest)})
    return wrong


def _noted(place: _Place) -> dict[str, list[int]]:
    """What the completion marker notes of each file; nothing for one of an older version."""
    try:
        seen = json.loads(_read(place.complete)).get("seen", {})
        return {name: [int(number) for number in facts] for name, facts in seen.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _facts(path: Path) -> list[int]:
    """Where a file lies and when it was written: device, inode, time of change (nanoseconds), blocks. Links are followed."""
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_mtime_ns, found.st_blocks]


def _all_facts(place: _Place, manifest: _Manifest) -> dict[str, list[int]]:
    return {name: _facts(place.snapshot / name) for name in manifest.files}


def _is_other(noted: list[int], now: list[int]) -> bool:
    """Whether a file may have another content.

    Inode and blocks count on the same device alone: a volume that is mounted again may give others.
    """
    return noted[2:3] != now[2:3] or (noted[:1] == now[:1] and noted != now)


def _and_more(count: int) -> str:
    return f" (and {count} more)" if count > 0 else ""


def _read_complete(place: _Place) -> _Manifest | None:
    """The manifest, if the completion marker vouches for exactly this one; None also for anything half-written or strange."""
    try:
        text = _read(place.manifest)
        marker = json.loads(_read(place.complete))
        if marker["manifest_sha256"] != hashlib.sha256(text).hexdigest():
            return None
        document = json.loads(text)
        files = {_safe(name): _file(entry) for name, entry in document["files"].items()}
        _check_names(files)
        return _Manifest(allow=_patterns(document["allow"]), ignore=_patterns(document["ignore"]), files=files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _read(path: Path) -> bytes:
    """A file of Torpor's own, bounded.

    Raises:
        OSError: it is not there or no regular file.
        ValueError: it is too long.
    """
    with _regular(path) as reader:
        data = reader.read(_MANIFEST_BYTES + 1)
    if len(data) > _MANIFEST_BYTES:
        raise ValueError("too long")
    return data


def _regular(path: Path) -> IO[bytes]:
    """Open a regular file; a pipe is not waited for. Links are followed: the hub's client makes them.

    Raises:
        OSError: it is not there, or something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError("no list of patterns")
    return tuple(value)


def _file(entry: Mapping[str, object]) -> _File:
    """One entry of a manifest or of a listing.

    Raises:
        ValueError: a field has a value that no file has.
    """
    size, sha256, git = entry["size"], entry["sha256"], entry["git"]
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < _MOST_FILE_BYTES:
        raise ValueError(f"its size is {size!r}")
    if not isinstance(git, str) or not _DIGESTS["git"].fullmatch(git):
        raise ValueError(f"its git hash is {git!r}")
    if sha256 is not None and not (isinstance(sha256, str) and _DIGESTS["sha256"].fullmatch(sha256)):
        raise ValueError(f"its SHA-256 is {sha256!r}")
    return _File(size=size, sha256=sha256, git=git)


def _safe(name: str) -> str:
    """A name as it may stand in a listing: a path below the snapshot, written in the only way there is.

    Raises:
        ValueError: it is another.
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        raise ValueError("it leads out of the snapshot")
    if "" in parts or "." in parts or _CONTROL.search(name):
        raise ValueError("it is no plain path of a file")
    if len(name.encode()) > _PATH_BYTES or any(len(part.encode()) > _NAME_BYTES for part in parts):
        raise ValueError(f"it is longer than {_PATH_BYTES} bytes, or a part of it than {_NAME_BYTES}")
    return name


def _check_names(names: Iterable[str]) -> None:
    """Make sure that no name is a file and a folder at once.

    Raises:
        ValueError: one is; it begins with the name.
    """
    files = set(names)
    for name in files:
        folder = name
        while folder := folder.rpartition("/")[0]:
            if folder in files:
                raise ValueError(f"{folder!r} is a file, and the folder of {name!r}")


def _wrong_size(place: _Place, manifest: _Manifest) -> list[tuple[str, str]]:
    """Files that are not there in full size: pairs of name and what is wrong. Links to blobs are followed, within the cache."""
    wrong = []
    cache = place.cache.resolve()
    for name, file in manifest.files.items():
        path = place.snapshot / name
        try:
            facts = path.stat()
            inside = path.resolve().is_relative_to(cache)
        except (OSError, RuntimeError) as error:  # a circle of links is a RuntimeError before Python 3.13
            said = error.strerror if isinstance(error, OSError) else "its links go in a circle"
            wrong.append((name, f"{name} is not there ({said}); {file.size} bytes expected"))
        else:
            if not inside:
                wrong.append((name, f"{name} is a link that leads out of {place.cache}"))
            elif not stat.S_ISREG(facts.st_mode):
                wrong.append((name, f"{name} is no regular file"))
            elif facts.st_size != file.size:
                wrong.append((name, f"{name} has {facts.st_size} bytes, {file.size} expected"))
    return wrong


# --- fetch ------------------------------------------------------------------------------------------------------------


def fetch(
    repo_id: str,
    revision: str,
    *,
    cache: Path,
    allow: tuple[str, ...] = (),
    ignore: tuple[str, ...] = (),
    recheck: bool = False,
) -> Path:
    """Bring a commit into the cache, completely or not at all.

    huggingface_hub reads its settings at its first import. The command line prepares the environment for that: use it in a
    process that may have imported it, or where HF_HUB_OFFLINE is set.

    Args:
        repo_id: `owner/name`; a token for it is taken from HF_TOKEN.
        revision: the commit, 40 hex digits.
        cache: the hub cache.
        allow: only files that match one of these patterns (fnmatch, on the whole path); empty for all.
        ignore: no files that match one of these.
        recheck: hash everything even if it is complete, and replace what differs.

    Returns: the snapshot's folder.

    Raises:
        FetchError: see the module's exit codes; the message says what to do.
    """
    place = _Place(cache, repo_id, revision)
    done = _read_complete(place)
    same = done is not None and not recheck and (done.allow, done.ignore) == (allow, ignore)
    if done and same and not _wrong_size(place, done) and not _wrong_since(place, done):
        print(f"{place}: {len(done.files)} files, {_amount(done.total)}, complete already; nothing to do.")
        return place.snapshot
    began = time.monotonic()
    with _diagnosed(place):
        suspicious = bool(done and not _wrong_size(place, done) and _wrong_since(place, done))
        manifest = _bring(place, allow, ignore, hash_all=recheck or suspicious)
    took = time.monotonic() - began
    print(f"{place}: {len(manifest.files)} files, {_amount(manifest.total)}, fetched and checked in {took:.1f} s.")
    return place.snapshot


def _bring(place: _Place, allow: tuple[str, ...], ignore: tuple[str, ...], *, hash_all: bool) -> _Manifest:
    """Delete what is damaged, download what is missing, check everything, and mark the commit as complete."""
    _check_folders(place, ())
    place.complete.unlink(missing_ok=True)
    manifest = _list(place, allow, ignore)
    _check_folders(place, manifest.files)
    _write(place.manifest, {"format": 1, "repo_id": place.repo_id, "revision": place.revision, **asdict(manifest)})
    for name, _ in _damage(place, manifest) if hash_all else _wrong_size(place, manifest):
        _forget(place, name)
    _download(place, manifest)
    _check(place, manifest)
    _leave_listing(place, manifest)
    _finish(place, manifest)
    return manifest


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Settings that huggingface_hub and hf_xet read at import, for this process alone."""
    settings = {
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",  # an alias of the former
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Blobs shared between repositories (hub 2.x) are links out of this repository's folder: 0.36 knows nothing of them.
        "HF_HUB_DISABLE_SHARED_BLOBS": "1",
    }
    os.environ.update(settings)
    _pass_proxies_by()
    os.environ.pop("HF_HUB_ENABLE_HF_TRANSFER", None)  # 0.36 fails with it where hf_transfer is not installed
    os.environ.setdefault("HF_XET_HIGH_PERFORMANCE", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Xet's chunk cache is of no use after one download, and in a build step it would become part of the image.
    with tempfile.TemporaryDirectory(prefix="torpor-xet-", ignore_cleanup_errors=True) as folder:
        os.environ["HF_XET_CACHE"] = folder
        yield


def _pass_proxies_by() -> None:
    """Have a hub on this machine asked past every proxy."""
    host = (urlsplit(_endpoint()).hostname or "").rstrip(".")
    if not (host in ("localhost", "::1") or host.endswith(".localhost") or host.startswith("127.")):
        return
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    words = [word.strip() for word in listed.split(",") if word.strip()]
    words += [word for word in (host, "localhost", "127.0.0.1", "::1") if word not in words]  # where it may redirect to
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(words)


def _list(place: _Place, allow: tuple[str, ...], ignore: tuple[str, ...]) -> _Manifest:
    from huggingface_hub import HfApi  # noqa: PLC0415 - only in `fetch`, once the environment is set
    from huggingface_hub.hf_api import RepoFile  # noqa: PLC0415

    tree = HfApi().list_repo_tree(place.repo_id, revision=place.revision, recursive=True)
    listed: dict[str, _File] = {}
    for entry in tree:
        if isinstance(entry, RepoFile):
            _add(place, listed, entry)
    try:
        _check_names(listed)
    except ValueError as error:
        raise _hostile(place, str(error)) from None
    files = {path: listed[path] for path in sorted(listed) if _selected(path, allow, ignore)}
    if not files:
        raise FetchError(
            _NO_REVISION,
            f"{place} has {len(listed)} files, and the patterns select none of them "
            f"(allow {list(allow) or 'all'}, ignore {list(ignore) or 'none'}): change HFCache's patterns.",
        )
    return _Manifest(allow, ignore, files)


def _add(place: _Place, listed: dict[str, _File], entry: RepoFile) -> None:
    """Take one entry of the hub's listing.

    Raises:
        FetchError: it is none that a repository has, or there is no end of them.
    """
    name = str(entry.path)
    try:
        if name in listed:
            raise ValueError("it is listed twice")  # noqa: TRY301 - told like the others
        size, sha256 = (entry.lfs.size, entry.lfs.sha256) if entry.lfs else (entry.size, None)
        listed[_safe(name)] = _file({"size": size, "sha256": sha256, "git": entry.blob_id})
    except ValueError as error:
        raise _hostile(place, f"the file {ascii(name)[:_SHOWN_CHARACTERS]}: {error}") from None
    if len(listed) > _MOST_FILES:
        raise _hostile(place, f"more than {_MOST_FILES} files")


def _hostile(place: _Place, what: str) -> FetchError:
    return FetchError(
        _NO_REVISION,
        f"{_endpoint()} lists for {place} what no repository holds, {what}. Nothing was fetched. Check HF_ENDPOINT and what lies "
        "between here and the hub; if it is the hub, do not use this model.",
    )


def _check_folders(place: _Place, names: Iterable[str]) -> None:
    """Make sure that no folder that is written to is a link out of the repository's: a volume may have been prepared.

    Raises:
        FetchError: one is.
    """
    home = place.cache.resolve() / place.folder.name
    folders = {place.folder, place.folder / "blobs", place.folder / "refs", place.manifest.parent, place.listing.parent}
    folders |= {place.snapshot, *(folder for name in names for folder in (place.snapshot / name).parents)}
    for folder in sorted(folder for folder in folders if folder.is_relative_to(place.folder)):
        if folder.is_symlink() or not folder.resolve().is_relative_to(home):
            raise FetchError(
                _NOT_WRITABLE,
                f"{folder} is a link to {folder.resolve()}, out of {place.folder}: remove it, and fetch again.",
            )


def _selected(path: str, allow: tuple[str, ...], ignore: tuple[str, ...]) -> bool:
    """As `filter_repo_objects` of huggingface_hub selects (0.36 to 2.4): a pattern that ends with / means the folder."""

    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatch(path, f"{each}*" if each.endswith("/") else each) for each in patterns)

    return (not allow or matches(allow)) and not matches(ignore)


def _download(place: _Place, manifest: _Manifest) -> None:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only in `fetch`

    print(f"{place}: fetching {len(manifest.files)} files, {_amount(manifest.total)}, to {place.cache}.", flush=True)
    _leave_listing(place, manifest)  # so that the client asks for none of its own, which could be another
    with _progress(place, manifest), _bounded(place, manifest), _checked_answers(place):
        snapshot_download(
            place.repo_id,
            revision=place.revision,
            cache_dir=place.cache,
            allow_patterns=list(manifest.allow) or None,
            ignore_patterns=list(manifest.ignore) or None,
        )


@contextlib.contextmanager
def _bounded(place: _Place, manifest: _Manifest) -> Iterator[None]:
    """Let no file grow beyond the longest that was listed: the client writes whatever is sent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = max(file.size for file in manifest.files.values()) + _SPARE_BYTES
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    except Exception as error:
        if any(isinstance(each, OSError) and each.errno == errno.EFBIG for each in _chain(error)):
            raise FetchError(
                _DAMAGED,
                f"{place}: the hub sends more than the {limit} bytes that its longest file has. Look for a proxy between.",
            ) from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def _checked_answers(place: _Place) -> Iterator[None]:
    """Look at what the hub says of each file before the client makes paths of it: the ETag is the blob's name (0.36 to 2.4)."""
    from huggingface_hub import file_download  # noqa: PLC0415 - only in `fetch`

    genuine = file_download.get_hf_file_metadata

    def checked(*args: object, **options: object) -> object:
        found = genuine(*args, **options)  # type: ignore[arg-type]
        if (found.etag and not _ETAG.fullmatch(found.etag)) or (found.commit_hash or place.revision) != place.revision:
            raise _hostile(
                place,
                f"a file with the ETag {ascii(found.etag)[:_SHOWN_CHARACTERS]} "
                f"of the commit {ascii(found.commit_hash)[:_SHOWN_CHARACTERS]}",
            )
        return found

    file_download.get_hf_file_metadata = checked  # type: ignore[assignment]
    try:
        yield
    finally:
        file_download.get_hf_file_metadata = genuine


def _leave_listing(place: _Place, manifest: _Manifest) -> None:
    """Leave the hub's client the listing that it looks for when it is offline (`_tree_cache.py` 1.33 and 2.4, format 1).

    Its own holds the whole commit, so that a filtered snapshot would count as incomplete (IncompleteSnapshotError); and
    without any, as 0.36 leaves a cache, 1.33 asks the network even for a commit (OfflineModeIsEnabled).
    """
    files: dict[str, dict[str, object]] = {}
    for name, file in manifest.files.items():
        files[name] = {"size": file.size, "blob_id": file.git}
        if file.sha256:
            files[name] |= {"lfs_sha256": file.sha256, "lfs_size": file.size}
    _write(place.listing, {"format_version": 1, "files": files})


@contextlib.contextmanager
def _progress(place: _Place, manifest: _Manifest) -> Iterator[None]:
    """Say every quarter of a minute how much is there: a build log has no progress bar."""
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(_PROGRESS_S):
            with contextlib.suppress(OSError):
                here = sum(blob.stat().st_size for blob in (place.folder / "blobs").iterdir())
                print(f"  {_amount(here)} of {_amount(manifest.total)}", flush=True)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        ended.set()
        reporter.join()


def _check(place: _Place, manifest: _Manifest) -> None:
    """Compare every file with the manifest; remove those that differ, so that the next fetch downloads them again."""
    damage = _damage(place, manifest)
    for name, _ in damage:
        _forget(place, name)
    if damage:
        raise FetchError(
            _DAMAGED,
            f"{place} arrived damaged: {damage[0][1]}{_and_more(len(damage) - 1)}. The damaged files were removed; fetch "
            "again, and if it stays so, look for a proxy between here and the hub.",
        )


def _damage(place: _Place, manifest: _Manifest) -> list[tuple[str, str]]:
    """What is missing, of the wrong size, or of the wrong content: pairs of name and what is wrong."""
    wrong = _wrong_size(place, manifest)
    sound = [name for name in manifest.files if name not in {name for name, _ in wrong}]
    return wrong + _wrong_contents(place, manifest, sound)


def _wrong_contents(place: _Place, manifest: _Manifest, names: Sequence[str]) -> list[tuple[str, str]]:
    """Which of the files have another content than the hub says: pairs of name and what is wrong."""
    if not names:
        return []
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        seen = pool.map(lambda name: _wrong_content(place.snapshot / name, manifest.files[name]), names)
        return [(name, f"{name} {what}") for name, what in zip(names, seen, strict=True) if what]


def _wrong_content(path: Path, file: _File) -> str | None:
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with _regular(path) as reader:
        while block := reader.read(_READ_BYTES):
            digest.update(block)
    expected = file.sha256 or file.git
    kind = "SHA-256" if file.sha256 else "git hash"
    return None if digest.hexdigest() == expected else f"has the {kind} {digest.hexdigest()}, the hub says {expected}"


def _forget(place: _Place, name: str) -> None:
    """Remove a file and the blob behind it: the hub's client would take either for whole."""
    path = place.snapshot / name
    with contextlib.suppress(FileNotFoundError):
        blob = path.resolve()
        if place.folder.resolve() in blob.parents:
            blob.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _finish(place: _Place, manifest: _Manifest) -> None:
    """Put everything on disk, then the marker: whoever finds it finds all the rest."""
    os.sync()
    digest = hashlib.sha256(_read(place.manifest)).hexdigest()
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    facts = {"manifest_sha256": digest, "files": len(manifest.files), "bytes": manifest.total, "created": created}
    _write(place.complete, {"format": 1, **facts, "seen": _all_facts(place, manifest)})


def _write(path: Path, document: Mapping[str, object]) -> None:
    """Write beside the place, flush, rename: a reader sees the old file, the new one or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    with beside.open("x") as writer:  # a link in its place would be followed
        json.dump(document, writer, indent=1)
        writer.flush()
        os.fsync(writer.fileno())
    beside.replace(path)


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= _SHOWN_AS_GB else f"{size / 1e3:.1f} kB"


# --- what went wrong --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _diagnosed(place: _Place) -> Iterator[None]:
    """Turn whatever comes out of the hub's client into one `FetchError` with a cure."""
    try:
        yield
    except FetchError:
        raise
    except Exception as error:
        raise _diagnosis(place, list(_chain(error))) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those behind it: the client wraps a refused connection two or three times."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _diagnosis(place: _Place, chain: list[BaseException]) -> FetchError:
    for error in chain:
        if isinstance(error, FetchError):
            return error
        for diagnose in (_disk_trouble, _access_trouble, _http_trouble):
            if found := diagnose(place, error):
                return found
    said = _first_line(chain[0])
    if any("Consistency check failed" in str(error) or type(error).__name__ in _BODY_ENDED_EARLY for error in chain):
        return FetchError(_DAMAGED, f"{place}: a file was cut short on its way ({said}). Fetch again.")
    if any(_is_network(error) for error in chain):
        return FetchError(
            _UNREACHABLE,
            f"The hub at {_endpoint()} cannot be reached ({_first_line(chain[-1])}). Check the network, fetch again.",
        )
    return FetchError(_UNKNOWN, f"{place}: {type(chain[0]).__name__}: {said}")


def _access_trouble(place: _Place, error: BaseException) -> FetchError | None:
    """What the hub does not have, or does not give to us; GatedRepoError is a RepositoryNotFoundError, so it is first."""
    from huggingface_hub import errors  # noqa: PLC0415 - only in `fetch`

    has_token = bool(os.environ.get("HF_TOKEN"))
    if isinstance(error, errors.GatedRepoError):
        return FetchError(
            _DENIED,
            f"{place.repo_id} is gated, and {'the token was not granted access' if has_token else 'no token was given'}. "
            f"Accept its terms at {_endpoint()}/{place.repo_id}, then give a token of that account: "
            "HFCache(token_secret='huggingface-secret'), a secret with the key HF_TOKEN (on this machine: the variable "
            "HF_TOKEN).",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FetchError(
            _NO_REVISION,
            f"{place.repo_id} has no revision {place.revision}; its commits stand at "
            f"{_endpoint()}/{place.repo_id}/commits/main.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        why = "the token cannot see it" if has_token else "no token was given (HF_TOKEN)"
        return FetchError(
            _NO_REPOSITORY, f"There is no model {place.repo_id} at {_endpoint()}, or it is private and {why}."
        )
    return None


def _disk_trouble(place: _Place, error: BaseException) -> FetchError | None:
    """No space, no permission; hf_xet (Rust) reports the operating system's error in words."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "os error 28" in str(error):
        return FetchError(
            _NO_SPACE,
            f"There is no space left for {place} at {place.cache} ({_first_line(error)}). Free some or choose another volume; "
            "a Modal Volume v1 also says so at 500,000 files.",
        )
    if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
        return FetchError(_NOT_WRITABLE, f"The cache at {place.cache} cannot be written ({_first_line(error)}).")
    return None


def _http_trouble(_place: _Place, error: BaseException) -> FetchError | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _UNAUTHORISED:
        return FetchError(
            _DENIED, f"{_endpoint()} refused the token of HF_TOKEN (HTTP {status}): it is wrong, expired or too narrow."
        )
    if status in _OVERLOADED:
        return FetchError(
            _UNREACHABLE, f"{_endpoint()} answers HTTP {status} ({_first_line(error)}). Fetch again later."
        )
    return None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _is_network(error: BaseException) -> bool:
    package = type(error).__module__.partition(".")[0]
    return package in _NETWORK_PACKAGES or isinstance(error, (ConnectionError, TimeoutError))


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    sys.exit(main())
