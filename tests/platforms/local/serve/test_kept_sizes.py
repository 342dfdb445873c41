"""Measured sizes are kept over a restart of the server, for exactly the deployment that was measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.platforms.local.serve.served import ask, wait_until, write_app
from torpor import ConfigurationError
from torpor.app_file import load_app
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.serve.configuration import read_configuration
from torpor.platforms.local.serve.kept_sizes import KeptSizes, Sizes, kept_sizes, sizes_folder
from torpor.platforms.local.serve.planned import plan_of
from torpor.serving.sizes import Size

if TYPE_CHECKING:
    from pathlib import Path

    from tests.platforms.local.serve.conftest import Serve
    from torpor import Deployment

SIZES = Sizes(Size(3_000_000, ()), Size(1_000_000, ()))


@pytest.fixture
def deployment(tmp_path: Path, cache: Path) -> Deployment:
    """A deployment, with a cache root of its own."""
    return load_app(write_app(tmp_path, "a")).deployment


def keep(deployment: Deployment, sizes: Sizes = SIZES) -> Path:
    """Write them; returns the file."""
    kept = KeptSizes(deployment)
    assert kept.note(sizes)
    kept.write()
    assert not kept.note(sizes)
    (file,) = sizes_folder().iterdir()
    return file


def test_what_was_measured_is_read_again(deployment: Deployment) -> None:
    """Both sizes, or one of them; the file is for its owner only."""
    assert kept_sizes(deployment) == (Sizes(), "")
    for sizes in (SIZES, Sizes(Size(1, (2, 3))), Sizes(None, Size(5))):
        file = keep(deployment, sizes)
        assert file.stat().st_mode & 0o077 == 0
        assert kept_sizes(deployment) == (sizes, "")


def test_another_state_of_the_deployment_measures_again(deployment: Deployment, tmp_path: Path) -> None:
    """One option of its plugin differs: nothing of it is known, and nothing is wrong."""
    keep(deployment)
    other = load_app(write_app(tmp_path, "a", more="token_s=0.25")).deployment
    assert kept_sizes(other) == (Sizes(), "")


@pytest.mark.fault("the file of measured sizes is damaged", area="serve", outcome="held")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (b"{", "it is not JSON"),
        (b"[]", "not an object"),
        (b'{"schema": "x", "fingerprint": 1}', "its field schema is x"),
        (b"{}", "its field schema is missing"),
        ({"serving": {"host": -1, "gpus": []}}, "its field serving.host is -1"),
        ({"serving": 7}, "its field serving is 7"),
        ({"asleep": {"host": 1}}, "its field asleep.gpus is missing"),
        ({"more": 1}, "unknown field more"),
        (b"\xff" * 70_000, "has 70000 bytes; at most"),
    ],
)
def test_a_damaged_file_is_told_and_ignored(
    deployment: Deployment, change: bytes | dict[str, object], said: str
) -> None:
    """The reason names the file and what was seen. The next measurement replaces it."""
    file = keep(deployment)
    if isinstance(change, dict):
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    else:
        file.write_bytes(change)
    sizes, problem = kept_sizes(deployment)
    assert sizes == Sizes()
    assert problem.startswith("its measured sizes are ignored, and measured again: ")
    assert str(file) in problem
    assert said in problem
    keep(deployment)
    assert kept_sizes(deployment) == (SIZES, "")


def test_a_later_version_and_an_unfinished_file_are_passed_over(deployment: Deployment) -> None:
    """A server that was killed while it wrote leaves a file that the next one removes."""
    file = keep(deployment)
    unfinished = file.with_name(f".{file.name}.1-abcdef00")
    unfinished.write_text('{"sch')
    assert kept_sizes(deployment) == (SIZES, "")
    assert not unfinished.exists()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 2, "more": 1}))
    assert kept_sizes(deployment) == (Sizes(), "")


def test_a_cache_that_cannot_be_written_costs_nothing_else(deployment: Deployment, cache: Path) -> None:
    """A file stands where the folder should be: nothing is kept, nothing is raised."""
    (cache / "sizes").write_text("")
    kept = KeptSizes(deployment)
    kept.note(SIZES)
    kept.write()
    assert kept_sizes(deployment) == (Sizes(), "")


def test_a_measured_size_that_cannot_fit_is_refused_before_a_start(deployment: Deployment, tmp_path: Path) -> None:
    """The message says how much, and where that is written."""
    keep(deployment)
    file = tmp_path / "serve.toml"
    file.write_text('[budget]\nmemory = "2 MB"\n')
    with pytest.raises(ConfigurationError, match=f"'a' takes 0.00 GB.*Measured sizes are in {sizes_folder()}"):
        plan_of([str(tmp_path / "a.py")], read_configuration(file))


def test_the_next_server_knows_what_this_one_measured(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as it has started, without a request."""
    monkeypatch.setattr(CriuBackend, "available", lambda *_: ("there is no CRIU",))
    file = write_app(tmp_path, "a")
    server = serve(file)
    assert ask(server.address[1], "model-a").status == 200
    deployment = load_app(file).deployment
    assert wait_until(lambda: kept_sizes(deployment)[0].serving is not None)
    measured = server.status()[0]["size"]
    server.stop()
    assert serve(file).status()[0]["size"] == measured
