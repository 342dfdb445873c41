"""Fetches one model revision into a hub cache, and checks a fetched one offline. Runs as a bare file inside images.

    python3 download.py fetch OWNER/NAME COMMIT --cache DIR [--allow PATTERN]... [--ignore PATTERN]... [--recheck]
    python3 download.py verify OWNER/NAME COMMIT --cache DIR

`fetch` lists the commit's files and writes a manifest: name, size, and the SHA-256 or git hash that the hub gives. It lets
huggingface_hub (0.36 to 2.x) download, checks every file against the manifest, and writes a completion marker last. The
hub's client compares sizes at most and trusts every file in the cache, so `fetch` removes a file that fails the check.
If the commit is already complete, `fetch` sends no request. `verify` runs before every start: it checks that the files
exist and have the right size, with the standard library only.

    <cache>/models--OWNER--NAME/blobs, snapshots/COMMIT        huggingface_hub's own
    <cache>/models--OWNER--NAME/torpor/COMMIT.manifest.json    what the commit holds
    <cache>/models--OWNER--NAME/torpor/COMMIT.complete.json    every file was complete and correct

Paths from the hub and from the volume are not trusted. The fetch ends before it writes anything if a listed name points outside
the snapshot, is not a valid file name, or is both a file and a folder; it also ends if an answer would make the client write
elsewhere. Only a regular file inside the cache counts as a file. Markers have a size limit, and every field is checked.

Exit codes, after sysexits.h; a retry can help with 75 and 76 only. 2: wrong use. 65: no such revision, or a malformed
listing or answer. 66: no such repository, or `verify` found nothing. 70: an unknown error. 73: the cache cannot be
written. 74: no space left. 75: the hub cannot be reached or is overloaded. 76: a file is missing, cut short or differs
from the hub's. 77: gated, or the hub refused the token.
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
"""If it is 1, every check of the weights hashes all files (`torpor doctor APP --recheck`)."""

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
    """A fetch or a check failed. `code` is the exit code; the message says what was found and what to do."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class _File:
    """One file of the commit. Only LFS and Xet objects have `sha256`; their `git` is the hash of the pointer file."""

    size: int
    sha256: str | None
    git: str


@dataclass(frozen=True)
class _Place:
    """The paths of a commit in a hub cache, in the layout of huggingface_hub 0.36 to 2.4."""

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
            state = "match the hub's hashes" if recheck else "are complete"
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
    for name, text in (("fetch", "download missing files, and check all"), ("verify", "check sizes, offline")):
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        action.add_argument("repo_id", metavar="OWNER/NAME")
        action.add_argument("revision", metavar="COMMIT", help="40 hex digits")
        action.add_argument("--cache", type=Path, required=True, metavar="DIR", help="the hub cache, as HF_HUB_CACHE")
        replaced = " and replace those that differ" if name == "fetch" else ", even if their times are unchanged"
        action.add_argument("--recheck", action="store_true", help=f"hash all files again{replaced}")
        if name == "fetch":
            action.add_argument("--allow", action="append", default=[], metavar="PATTERN", help="only these files")
            action.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="not these files")
    options = parser.parse_args(argv, namespace=_Options())
    if not re.fullmatch(r"[0-9a-f]{40}", options.revision):
        parser.error(f"the revision is {options.revision!r}; it has to be a commit, 40 lower-case hex digits.")
    return options


# --- verify -----------------------------------------------------------------------------------------------------------


def verify(repo_id: str, revision: str, *, cache: Path, recheck: bool = False) -> int:
    """Check offline that a fetched commit is complete: every file exists, has its full size, and was not written since.

    The completion marker holds each file's inode, time of change and block count. If one of these differs, the file is hashed.
    This finds damage that keeps the size, and accepts a copy of the volume, whose times differ.

    Args:
        repo_id: `owner/name`.
        revision: the commit, 40 hex digits.
        cache: the hub cache.
        recheck: hash every file, even if its time is unchanged.

    Returns:
        The number of files.

    Raises:
        FetchError: nothing was fetched, the fetch did not finish, or a file is missing, cut short or damaged; it is named.
    """
    place = _Place(cache, repo_id, revision)
    manifest = _read_complete(place)
    if manifest is None:
        if not place.folder.is_dir():
            raise FetchError(
                _NO_REPOSITORY, f"{cache} has no files of {repo_id}: it was never fetched, or was deleted."
            )
        raise FetchError(_NO_REPOSITORY, f"{cache} does not hold all of {place}: the fetch never finished.")
    damage = _wrong_size(place, manifest) or _wrong_since(place, manifest, recheck=recheck)
    if damage:
        raise FetchError(_DAMAGED, f"{place} is damaged: {damage[0][1]}{_and_more(len(damage) - 1)}.")
    return len(manifest.files)


def _wrong_since(place: _Place, manifest: _Manifest, *, recheck: bool = False) -> list[tuple[str, str]]:
    """Find files whose content changed since the fetch: pairs of the name and the problem."""
    noted = _noted(place)
    suspects = [
        name
        for name in manifest.files
        if recheck or (name in noted and _is_other(noted[name], _facts(place.snapshot / name)))
    ]
    wrong = _wrong_contents(place, manifest, suspects)
    if suspects and not wrong:
        # If the volume is read-only, the next check hashes these files again.
        with contextlib.suppress(OSError, ValueError, RecursionError):
            _write(place.complete, {**json.loads(_read(place.complete)), "seen": _all_facts(place, manifest)})
    return wrong


def _noted(place: _Place) -> dict[str, list[int]]:
    """Read each file's facts from the completion marker; empty if an older version wrote the marker."""
    try:
        seen = json.loads(_read(place.complete)).get("seen", {})
        return {name: [int(number) for number in facts] for name, facts in seen.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _facts(path: Path) -> list[int]:
    """Device, inode, time of change (nanoseconds) and block count of a file. Follows links."""
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_mtime_ns, found.st_blocks]


def _all_facts(place: _Place, manifest: _Manifest) -> dict[str, list[int]]:
    return {name: _facts(place.snapshot / name) for name in manifest.files}


def _is_other(noted: list[int], now: list[int]) -> bool:
    """Whether the file's content may have changed.

    Inode and blocks are compared on the same device only: they may change when a volume is mounted again.
    """
    return noted[2:3] != now[2:3] or (noted[:1] == now[:1] and noted != now)


def _and_more(count: int) -> str:
    return f" (and {count} more)" if count > 0 else ""


def _read_complete(place: _Place) -> _Manifest | None:
    """Return the manifest if the completion marker holds its hash; None if one of them is missing or malformed."""
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
    """Read one of Torpor's own files, up to a size limit.

    Raises:
        OSError: it does not exist, or is not a regular file.
        ValueError: it is too long.
    """
    with _regular(path) as reader:
        data = reader.read(_MANIFEST_BYTES + 1)
    if len(data) > _MANIFEST_BYTES:
        raise ValueError("too long")
    return data


def _regular(path: Path) -> IO[bytes]:
    """Open a regular file, without waiting if it is a pipe. Follows links, because the hub's client makes them.

    Raises:
        OSError: it does not exist, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError("not a list of patterns")
    return tuple(value)


def _file(entry: Mapping[str, object]) -> _File:
    """Parse one entry of a manifest or of a listing.

    Raises:
        ValueError: a field has an invalid value.
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
    """Return the name if it is a normalised path below the snapshot.

    Raises:
        ValueError: it is not.
    """
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        raise ValueError("it points outside the snapshot")
    if "" in parts or "." in parts or _CONTROL.search(name):
        raise ValueError("it is not a plain file path")
    if len(name.encode()) > _PATH_BYTES or any(len(part.encode()) > _NAME_BYTES for part in parts):
        raise ValueError(f"it is longer than {_PATH_BYTES} bytes, or one part is longer than {_NAME_BYTES}")
    return name


def _check_names(names: Iterable[str]) -> None:
    """Make sure that no name is both a file and a folder.

    Raises:
        ValueError: one is; the message begins with the name.
    """
    files = set(names)
    for name in files:
        folder = name
        while folder := folder.rpartition("/")[0]:
            if folder in files:
                raise ValueError(f"{folder!r} is both a file and the folder of {name!r}")


def _wrong_size(place: _Place, manifest: _Manifest) -> list[tuple[str, str]]:
    """Find files that are missing or have the wrong size: pairs of the name and the problem. Follows links inside the cache."""
    wrong = []
    cache = place.cache.resolve()
    for name, file in manifest.files.items():
        path = place.snapshot / name
        try:
            facts = path.stat()
            inside = path.resolve().is_relative_to(cache)
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
            said = error.strerror if isinstance(error, OSError) else "its links form a loop"
            wrong.append((name, f"{name} is missing ({said}); {file.size} bytes expected"))
        else:
            if not inside:
                wrong.append((name, f"{name} is a link that points outside {place.cache}"))
            elif not stat.S_ISREG(facts.st_mode):
                wrong.append((name, f"{name} is not a regular file"))
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
    """Fetch a commit into the cache, completely or not at all.

    huggingface_hub reads its settings when it is first imported, and only the command line prepares the environment for that.
    So use the command line if this process may have imported it already, or if HF_HUB_OFFLINE is set.

    Args:
        repo_id: `owner/name`; HF_TOKEN holds its token.
        revision: the commit, 40 hex digits.
        cache: the hub cache.
        allow: only files that match one of these patterns (fnmatch, on the whole path); empty for all.
        ignore: skip files that match one of these.
        recheck: hash every file even if the commit is complete, and replace those that differ.

    Returns:
        The snapshot's folder.

    Raises:
        FetchError: the module lists the exit codes; the message says what to do.
    """
    place = _Place(cache, repo_id, revision)
    done = _read_complete(place)
    same = done is not None and not recheck and (done.allow, done.ignore) == (allow, ignore)
    if done and same and not _wrong_size(place, done) and not _wrong_since(place, done):
        print(f"{place}: {len(done.files)} files, {_amount(done.total)}, already complete; nothing to do.")
        return place.snapshot
    began = time.monotonic()
    with _diagnosed(place):
        suspicious = bool(done and not _wrong_size(place, done) and _wrong_since(place, done))
        manifest = _bring(place, allow, ignore, hash_all=recheck or suspicious)
    _say_fetched(place, manifest, time.monotonic() - began)
    return place.snapshot


def _say_fetched(place: _Place, manifest: _Manifest, took_s: float) -> None:
    print(f"{place}: {len(manifest.files)} files, {_amount(manifest.total)}, fetched and checked in {took_s:.1f} s.")


def _bring(place: _Place, allow: tuple[str, ...], ignore: tuple[str, ...], *, hash_all: bool) -> _Manifest:
    """Delete damaged files, download missing ones, check all, and mark the commit as complete."""
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
    """Set the variables that huggingface_hub and hf_xet read at import, for this process only."""
    settings = {
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",  # an alias of HF_HUB_OFFLINE
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Hub 2.x can share blobs between repositories through links out of the repository's folder; 0.36 cannot read those.
        "HF_HUB_DISABLE_SHARED_BLOBS": "1",
    }
    os.environ.update(settings)
    _pass_proxies_by()
    os.environ.pop("HF_HUB_ENABLE_HF_TRANSFER", None)  # 0.36 fails with it if hf_transfer is not installed
    os.environ.setdefault("HF_XET_HIGH_PERFORMANCE", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Nothing reads Xet's chunk cache after this download, and in a build step it would become part of the image.
    with tempfile.TemporaryDirectory(prefix="torpor-xet-", ignore_cleanup_errors=True) as folder:
        os.environ["HF_XET_CACHE"] = folder
        yield


def _pass_proxies_by() -> None:
    """Exclude the hub from proxies if it runs on this machine."""
    host = (urlsplit(_endpoint()).hostname or "").rstrip(".")
    if not (host in ("localhost", "::1") or host.endswith(".localhost") or host.startswith("127.")):
        return
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    words = [word.strip() for word in listed.split(",") if word.strip()]
    words += [word for word in (host, "localhost", "127.0.0.1", "::1") if word not in words]  # a redirect may go there
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(words)


def _list(place: _Place, allow: tuple[str, ...], ignore: tuple[str, ...]) -> _Manifest:
    from huggingface_hub import HfApi  # noqa: PLC0415 - only where huggingface_hub is installed; it reads its settings at import
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
    """Add one entry of the hub's listing.

    Raises:
        FetchError: the entry is invalid, or there are too many.
    """
    name = str(entry.path)
    try:
        if name in listed:
            raise ValueError("it is listed twice")  # noqa: TRY301 - reported like the other errors
        size, sha256 = (entry.lfs.size, entry.lfs.sha256) if entry.lfs else (entry.size, None)
        listed[_safe(name)] = _file({"size": size, "sha256": sha256, "git": entry.blob_id})
    except ValueError as error:
        raise _hostile(place, f"the file {ascii(name)[:_SHOWN_CHARACTERS]}: {error}") from None
    if len(listed) > _MOST_FILES:
        raise _hostile(place, f"more than {_MOST_FILES} files")


def _hostile(place: _Place, what: str) -> FetchError:
    return FetchError(
        _NO_REVISION,
        f"{_endpoint()} gave an invalid listing of {place}: {what}. Nothing was fetched. Check HF_ENDPOINT and any proxy "
        "before the hub; if the hub itself sends this, do not use this model.",
    )


def _check_folders(place: _Place, names: Iterable[str]) -> None:
    """Make sure that no folder to write to is a link out of the repository's folder: somebody may have tampered with the volume.

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
                f"{folder} is a link to {folder.resolve()}, outside {place.folder}: remove it, and fetch again.",
            )


def _selected(path: str, allow: tuple[str, ...], ignore: tuple[str, ...]) -> bool:
    """Select like `filter_repo_objects` of huggingface_hub (0.36 to 2.4): a pattern that ends with / means the folder."""

    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatch(path, f"{each}*" if each.endswith("/") else each) for each in patterns)

    return (not allow or matches(allow)) and not matches(ignore)


def _download(place: _Place, manifest: _Manifest) -> None:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only where huggingface_hub is installed

    print(f"{place}: fetching {len(manifest.files)} files, {_amount(manifest.total)}, to {place.cache}.", flush=True)
    _leave_listing(place, manifest)  # otherwise the client asks for its own, which may differ
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
    """Limit the size of a file to the largest listed one: the client writes whatever the hub sends."""
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
                f"{place}: the hub sent more than {limit} bytes, the limit for its largest file. Look for a proxy before the hub.",
            ) from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def _checked_answers(place: _Place) -> Iterator[None]:
    """Check each file's metadata before the client builds paths from it: the ETag is the blob's name (0.36 to 2.4)."""
    from huggingface_hub import file_download  # noqa: PLC0415 - only where huggingface_hub is installed

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
    """Write the listing that the hub's client reads when it is offline (`_tree_cache.py` 1.33 and 2.4, format 1).

    The client's own listing holds the whole commit, so a filtered snapshot would count as incomplete
    (IncompleteSnapshotError). Without a listing, as 0.36 leaves a cache, 1.33 asks the network even for a commit
    (OfflineModeIsEnabled).
    """
    files: dict[str, dict[str, object]] = {}
    for name, file in manifest.files.items():
        files[name] = {"size": file.size, "blob_id": file.git}
        if file.sha256:
            files[name] |= {"lfs_sha256": file.sha256, "lfs_size": file.size}
    _write(place.listing, {"format_version": 1, "files": files})


@contextlib.contextmanager
def _progress(place: _Place, manifest: _Manifest) -> Iterator[None]:
    """Print every 15 seconds how much has arrived: a build log has no progress bar."""
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
    """Compare every file with the manifest. Remove those that differ, so that the next fetch downloads them again."""
    damage = _damage(place, manifest)
    for name, _ in damage:
        _forget(place, name)
    if damage:
        raise FetchError(
            _DAMAGED,
            f"{place} arrived damaged: {damage[0][1]}{_and_more(len(damage) - 1)}. The damaged files were removed. Fetch "
            "again; if they arrive damaged again, look for a proxy before the hub.",
        )


def _damage(place: _Place, manifest: _Manifest) -> list[tuple[str, str]]:
    """Find files that are missing or have the wrong size or content: pairs of the name and the problem."""
    wrong = _wrong_size(place, manifest)
    sound = [name for name in manifest.files if name not in {name for name, _ in wrong}]
    return wrong + _wrong_contents(place, manifest, sound)


def _wrong_contents(place: _Place, manifest: _Manifest, names: Sequence[str]) -> list[tuple[str, str]]:
    """Find files whose hash differs from the hub's: pairs of the name and the problem."""
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
    """Remove a file and its blob: the hub's client would trust either of them."""
    path = place.snapshot / name
    with contextlib.suppress(FileNotFoundError):
        blob = path.resolve()
        if place.folder.resolve() in blob.parents:
            blob.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _finish(place: _Place, manifest: _Manifest) -> None:
    """Flush everything to disk, then write the marker: if the marker exists, so does the rest."""
    os.sync()
    digest = hashlib.sha256(_read(place.manifest)).hexdigest()
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    facts = {"manifest_sha256": digest, "files": len(manifest.files), "bytes": manifest.total, "created": created}
    _write(place.complete, {"format": 1, **facts, "seen": _all_facts(place, manifest)})


def _write(path: Path, document: Mapping[str, object]) -> None:
    """Write a temporary file, flush it, rename it: a reader sees the old file, the new one or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    with beside.open("x") as writer:  # "x": a link with this name must not be followed
        json.dump(document, writer, indent=1)
        writer.flush()
        os.fsync(writer.fileno())
    beside.replace(path)


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= _SHOWN_AS_GB else f"{size / 1e3:.1f} kB"


# --- what went wrong --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _diagnosed(place: _Place) -> Iterator[None]:
    """Turn every exception of the hub's client into one `FetchError` that says what to do."""
    try:
        yield
    except FetchError:
        raise
    except Exception as error:
        raise _diagnosis(place, list(_chain(error))) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and its causes: the client wraps a refused connection two or three times."""
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
        return FetchError(_DAMAGED, f"{place}: a file was cut short in transit ({said}). Fetch again.")
    if any(_is_network(error) for error in chain):
        return FetchError(
            _UNREACHABLE,
            f"The hub at {_endpoint()} cannot be reached ({_first_line(chain[-1])}). Check the network, then fetch again.",
        )
    return FetchError(_UNKNOWN, f"{place}: {type(chain[0]).__name__}: {said}")


def _access_trouble(place: _Place, error: BaseException) -> FetchError | None:
    """The hub lacks it or denies access. GatedRepoError is a RepositoryNotFoundError, so it is checked first."""
    from huggingface_hub import errors  # noqa: PLC0415 - only where huggingface_hub is installed

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
            f"{place.repo_id} has no revision {place.revision}; its commits are listed at "
            f"{_endpoint()}/{place.repo_id}/commits/main.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        why = "the token cannot see it" if has_token else "no token was given (HF_TOKEN)"
        return FetchError(
            _NO_REPOSITORY, f"There is no model {place.repo_id} at {_endpoint()}, or it is private and {why}."
        )
    return None


def _disk_trouble(place: _Place, error: BaseException) -> FetchError | None:
    """No space or no permission. hf_xet (Rust) reports the system's error as text only."""
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
            _DENIED,
            f"{_endpoint()} refused the token of HF_TOKEN (HTTP {status}): it is wrong, expired or lacks a permission.",
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
