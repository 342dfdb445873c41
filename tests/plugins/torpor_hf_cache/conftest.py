"""Hub clients of several versions, and a hub on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.hub_server import COMMIT, HubServer, Repository

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
CLIENTS = HERE.parents[2] / ".cache" / "hub-clients"
SCRIPT = HERE.parents[2] / "plugins" / "torpor_hf_cache" / "download.py"

WEIGHTS = {f"model-0000{number}-of-00002.safetensors": bytes([number]) * 200_000 for number in (1, 2)}
TEXTS = {
    "config.json": b'{"architectures": ["Qwen3ForCausalLM"]}',
    "tokenizer.json": b'{"version": "1.0"}' * 50,
    "original/params.json": b'{"dim": 64}',
    "README.md": b"# Tiny",
}


def tiny() -> Repository:
    """A small model with two weight files, and the same weights in another format."""
    return Repository(files={**TEXTS, **WEIGHTS}, lfs=tuple(WEIGHTS))


@dataclass
class Client:
    """Runs the download script with this Python and one version of huggingface_hub."""

    hub: HubServer
    cache: Path
    home: Path
    packages: Path | None
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.cache / "models--org--tiny"

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / COMMIT

    def env(self) -> dict[str, str]:
        """An environment without the user's token and settings; offline, as in the image."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
        if self.packages is not None:
            env["PYTHONPATH"] = str(self.packages)
        return {**env, "HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home), "HF_HUB_OFFLINE": "1", **self.variables}

    def argv(self, action: str, *options: str, repo_id: str = "org/tiny", revision: str = COMMIT) -> list[str]:
        return [sys.executable, str(SCRIPT), action, repo_id, revision, "--cache", str(self.cache), *options]

    def run(self, action: str, *options: str, **names: str) -> subprocess.CompletedProcess[str]:
        argv = self.argv(action, *options, **names)
        return subprocess.run(argv, env=self.env(), capture_output=True, text=True, timeout=120, check=False)

    def fetch(self, *options: str, **names: str) -> subprocess.CompletedProcess[str]:
        return self.run("fetch", *options, **names)

    def verify(self) -> subprocess.CompletedProcess[str]:
        return self.run("verify")

    def python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", code, *arguments]
        return subprocess.run(argv, env=self.env(), capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(
    params=[
        "installed",
        pytest.param("0.36.0", marks=pytest.mark.slow),
        pytest.param("1.33.0", marks=pytest.mark.slow),
    ]
)
def packages(request: pytest.FixtureRequest) -> Path | None:
    """The folder of a huggingface_hub version, installed once and kept; None for the one in this environment."""
    version = str(request.param)
    if version == "installed":
        return None
    place = CLIENTS / version
    if not place.is_dir():
        beside = CLIENTS / f".{version}.{os.getpid()}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", str(beside), "--requirement", str(HERE / f"hub-{version}.txt")], check=True)
        try:
            beside.rename(place)
        except OSError:  # another run installed it first
            shutil.rmtree(beside)
    return place


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer({"org/tiny": tiny()}) as server:
        yield server


@pytest.fixture
def repository(hub: HubServer) -> Repository:
    return hub.repositories["org/tiny"]


@pytest.fixture
def client(hub: HubServer, tmp_path: Path, packages: Path | None) -> Client:
    """The script, with each version of the client in turn."""
    return Client(hub=hub, cache=tmp_path / "volume" / "hub", home=tmp_path / "home", packages=packages)


@pytest.fixture
def one_client(hub: HubServer, tmp_path: Path) -> Client:
    """The script with this environment's client, for tests that do not depend on its version."""
    return Client(hub=hub, cache=tmp_path / "volume" / "hub", home=tmp_path / "home", packages=None)
