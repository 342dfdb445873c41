"""`torpor.platforms.modal.account`: any error of Modal's client, or no answer at all, becomes one of Torpor's errors in time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from modal import exception

from torpor import ConfigurationError, ServerUnavailableError, TorporError
from torpor.platforms.modal import account as modal_account

if TYPE_CHECKING:
    from pathlib import Path

ASKS = "from torpor.platforms.modal.account import app_url; app_url('x', timeout_s=1.0)"


@pytest.mark.slow
@pytest.mark.fault("Modal accepts a connection and never answers", area="Modal", outcome="refused")
def test_a_modal_that_never_answers_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    """By itself the client retries forever. Closing it adds no second traceback."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = {
            **os.environ,
            "HOME": str(tmp_path),
            "MODAL_TOKEN_ID": "ak-x",
            "MODAL_TOKEN_SECRET": "as-x",
            "MODAL_SERVER_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        began = time.monotonic()
        asked = subprocess.run(
            [sys.executable, "-c", ASKS], env=env, capture_output=True, text=True, timeout=60, check=False
        )
    assert time.monotonic() - began < 30
    assert asked.stderr.count("Traceback") == 1  # of the program, which does not catch it
    assert asked.stderr.endswith("ServerUnavailableError: Modal did not say within 1 s where the app is.\n")


@pytest.mark.fault("Modal answers with an error of any kind", area="Modal", outcome="refused")
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exception.AuthError("no"), ConfigurationError),
        (exception.PermissionDeniedError("no"), ConfigurationError),
        (exception.ConnectionError("no"), ServerUnavailableError),
        (exception.ServiceError("no"), ServerUnavailableError),
        (exception.InternalError("no"), ServerUnavailableError),
        (exception.ResourceExhaustedError("no"), ServerUnavailableError),
        (exception.VersionError("no"), ServerUnavailableError),
        (ConnectionResetError("no"), ServerUnavailableError),
    ],
    ids=repr,
)
def test_every_error_of_the_client_becomes_one_of_torpors(error: Exception, kind: type[TorporError]) -> None:
    """The message is one paragraph and quotes the client's error."""
    with pytest.raises(kind, match="no") as seen, modal_account._answers_of_modal():
        raise error
    assert "\n" not in str(seen.value)
