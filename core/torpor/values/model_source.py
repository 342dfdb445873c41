"""Where weights come from: a commit of a repository on the Hugging Face hub, or a local folder. `Model` and `Adapter` share it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from torpor.errors import ConfigurationError
from torpor.values.checks import LINE_BREAK
from torpor.values.field_types import shown

__all__ = ["check_line", "check_source", "hub_snapshot", "is_repository"]

_REVISION = re.compile(r"[0-9a-f]{40}")
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes: NAME_MAX and PATH_MAX of Linux, without the NUL
_REPO_ID = re.compile(r"(?!-|\.+/)[\w.-]+/(?!\.+$)[\w.-]+", re.ASCII)


def check_source(owner: str, what: str, *, repo_id: str | None, revision: str | None, path: str | None) -> None:
    """Refuse a source that is neither a pinned commit nor a folder, or both.

    Args:
        owner: class of the value, for messages.
        what: what the folder holds, for messages, e.g. `a model`.
        repo_id: `owner/name` on the hub.
        revision: its commit, 40 hex digits.
        path: a local folder.

    Raises:
        ConfigurationError: names the field, its value and what is allowed.
    """
    if (repo_id is None) == (path is None):
        raise ConfigurationError(f"{owner}: give either repo_id ('owner/name' on the hub) or path (a local folder).")
    if path is not None:
        if not path.strip():
            raise ConfigurationError(f"{owner}.path is {shown(path)}; give a folder with {what} in it.")
        check_line(f"{owner}.path", path)
        _check_path(f"{owner}.path", path)
        if revision is not None:
            raise ConfigurationError(f"{owner}.revision goes with repo_id; a local path has none.")
        if path.startswith("-"):
            raise ConfigurationError(
                f"{owner}.path is {shown(path)}; an engine reads an argument that begins with '-' as a flag. Write "
                f"{shown(f'./{path}')}."
            )
        return
    if not is_repository(repo_id or ""):
        raise ConfigurationError(f"{owner}.repo_id is {shown(repo_id)}; it has to be 'owner/name'.")
    if revision is None or not _REVISION.fullmatch(revision):
        raise ConfigurationError(
            f"{owner}.revision is {shown(revision)}; it has to be a commit of {repo_id}, 40 lower-case hex "
            "digits: branches and tags move, but a snapshot needs the weights that it was taken with. "
            "The commit is on the model's page under 'Files and versions', 'History'."
        )


def _check_path(name: str, path: str) -> None:
    """Refuse what no file can be called."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{name} is {shown(path)}, which no folder can be called. Write its name in UTF-8."
        ) from error
    if len(encoded) > _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
        raise ConfigurationError(
            f"{name} is {shown(path)}; Linux has paths of {_LONGEST_PATH} bytes, each name in it of {_LONGEST_NAME}. Give a "
            "shorter one."
        )


def check_line(name: str, value: str | None) -> None:
    """Refuse text of several lines.

    Raises:
        ConfigurationError: names the field and its value.
    """
    if value is not None and LINE_BREAK.search(value):
        raise ConfigurationError(f"{name} is {shown(value)}; it has to be one line, without NUL.")


def is_repository(name: str) -> bool:
    """Whether a name has the form of a repository on the hub, `owner/name`."""
    return _REPO_ID.fullmatch(name) is not None


def hub_snapshot(cache: str | Path, repo_id: str, revision: str) -> Path:
    """The folder of a commit in a hub cache, in the layout of huggingface_hub 0.36 to 2.4.

    Args:
        cache: the folder in HF_HUB_CACHE.
        repo_id: `owner/name`.
        revision: the commit.
    """
    return Path(cache, f"models--{repo_id.replace('/', '--')}", "snapshots", revision)
