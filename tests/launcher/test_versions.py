"""`EngineVersions`: the installed version is found by its distribution's name, and compared by PEP 440."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from torpor import ConfigurationError
from torpor.launcher import EngineVersions

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = EngineVersions(
    engine="Deep",
    supported=("1.2.post1", "2.0"),
    distributions=("deep-engine", "deep-engine-cpu"),
    cure="install it.",
)


def install(folder: Path, name: str, version: str) -> None:
    """Let a distribution seem to be installed in a folder."""
    information = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("2.0", "2.0"),
        ("2.0.0", "2.0"),
        ("1.2-1", "1.2.post1"),
        ("2.0+cpu", "2.0+cpu"),
        ("3.1", "3.1"),
        ("made-here", "made-here"),
    ],
)
def test_a_supported_version_is_spelt_as_the_plugin_spells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, found: str
) -> None:
    """Whatever its wheel writes; a local build is another version."""
    install(tmp_path, "deep-engine", version)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert VERSIONS.installed() == found


def test_the_first_distribution_that_is_installed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under either name."""
    install(tmp_path, "deep-engine-cpu", "2.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert VERSIONS.installed() == "2.0"
    install(tmp_path, "deep-engine", "3.1")
    metadata.MetadataPathFinder().invalidate_caches()
    assert VERSIONS.installed() == "3.1"


def test_an_engine_without_packaging_compares_text(tmp_path: Path) -> None:
    """The engine's own environment need not have it."""
    install(tmp_path, "deep-engine", "2.0.0")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules['packaging'] = None\n"
        "from torpor.launcher import EngineVersions\n"
        "print(EngineVersions(engine='Deep', supported=('2.0',), distributions=('deep-engine',), cure='').installed())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "2.0.0\n"


def test_an_engine_that_is_not_installed_is_a_configuration_error() -> None:
    """With the cure."""
    with pytest.raises(ConfigurationError, match=r"^Deep is not installed for this Python; install it\.$"):
        VERSIONS.installed()


def test_an_unchecked_version_is_refused_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By TORPOR_ANY_ENGINE=1."""
    VERSIONS.check("2.0")
    with pytest.raises(ConfigurationError, match=r"Deep 3\.1 is not supported; supported are 1\.2\.post1, 2\.0\."):
        VERSIONS.check("3.1")
    monkeypatch.setenv("TORPOR_ANY_ENGINE", "1")
    VERSIONS.check("3.1")
