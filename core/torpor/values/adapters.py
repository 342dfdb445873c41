"""LoRA adapters of a model: `Adapter`, which is a commit on the hub or a folder, and `Adapters`, which maps names to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.values.field_types import article, check_types, shown
from torpor.values.model_source import check_source, hub_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HUB_CACHE_VARIABLE", "Adapter", "Adapters", "checked_adapters"]

HUB_CACHE_VARIABLE = "HF_HUB_CACHE"
"""Names the folder of the hub's cache; a plugin that fetches weights sets it in the engine's environment."""

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_LONGEST = 128
_MOST = 500
_LISTED = "letters, digits, '.', '_' and '-', 128 at most, beginning with a letter or a digit"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter: which one, exactly.

    Attributes:
        repo_id: `owner/name` on the Hugging Face hub; give this or `path`.
        revision: the commit of `repo_id`, 40 hex digits.
        path: a local folder with `adapter_config.json` and the adapter's weights, in place of `repo_id`.
        base: the name of its base model in `adapter_config.json`, if that is another name of the model that is served.
    """

    repo_id: str | None = None
    revision: str | None = None
    path: str | None = None
    base: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_source("Adapter", "an adapter", repo_id=self.repo_id, revision=self.revision, path=self.path)
        if self.base is not None and not self.base.strip():
            raise ConfigurationError(
                f"Adapter.base is {shown(self.base)}; give the base model's name as adapter_config.json has it, or leave it out."
            )

    @property
    def source(self) -> str:
        """The repository or the folder."""
        return self.repo_id or self.path or ""

    def folder(self, env: Mapping[str, str]) -> Path | None:
        """Where its files are on the machine that serves; None if nothing keeps the hub's files there.

        Args:
            env: the engine's environment.
        """
        if self.path is not None:
            return Path(self.path).absolute()
        cache = env.get(HUB_CACHE_VARIABLE)
        return hub_snapshot(cache, self.repo_id or "", self.revision or "") if cache else None


class Adapters(Mapping[str, Adapter]):
    """Adapters by the name that clients send. It cannot change and can be hashed, as all that a deployment holds.

    Args:
        given: the adapters.
    """

    def __init__(self, given: Mapping[str, Adapter] | None = None) -> None:
        self._given = dict(given or {})

    def __getitem__(self, name: str) -> Adapter:
        return self._given[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __hash__(self) -> int:
        return hash(frozenset(self._given.items()))  # equal mappings may differ in their order

    def __repr__(self) -> str:
        return repr(self._given)


def checked_adapters(given: object, *, served_name: str) -> Adapters:
    """The adapters of a model.

    Args:
        given: what was given as `Model.adapters`.
        served_name: the model's own name.

    Raises:
        ConfigurationError: names the adapter, what is wrong with it and what is allowed.
    """
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"Model.adapters is {shown(given)}, {article(given)}; it has to be a mapping of names to adapters, e.g. "
            "{'sql': Adapter(path='/models/sql')}."
        )
    if len(given) > _MOST:
        raise ConfigurationError(f"Model.adapters holds {len(given)} adapters; {_MOST} at most.")
    sources: dict[tuple[str, str | None], str] = {}
    for name, adapter in given.items():
        _check_name(name, served_name)
        if not isinstance(adapter, Adapter):
            raise ConfigurationError(
                f"Model.adapters[{shown(name)}] is {shown(adapter)}, {article(adapter)}; write Adapter(path='/models/sql') or "
                "Adapter(repo_id='owner/name', revision='...')."
            )
        other = sources.setdefault((adapter.source, adapter.revision), name)
        if other != name:
            raise ConfigurationError(
                f"Model.adapters: {other!r} and {name!r} are both {shown(adapter.source)}. Name each adapter once: the canary "
                "could not tell them apart."
            )
    return given if isinstance(given, Adapters) else Adapters(given)


def _is_name(name: str) -> bool:
    return 0 < len(name) <= _LONGEST and name[0] in _LETTERS and set(name) <= _LETTERS | set("._-")


def _check_name(name: object, served_name: str) -> None:
    if not isinstance(name, str) or not _is_name(name):
        raise ConfigurationError(f"Model.adapters has the name {shown(name)}; a name is made of {_LISTED}.")
    if name == served_name:
        raise ConfigurationError(
            f"Model.adapters has an adapter {name!r}, which is the model's own served name: a request could not say which it "
            "means. Give the adapter another name, or change Model.served_name."
        )
