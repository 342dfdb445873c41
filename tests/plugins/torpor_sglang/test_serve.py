"""The launcher without an engine: its refusals and its imports."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from torpor.guard import GuardRules, boot_document_json

if TYPE_CHECKING:
    from pathlib import Path


DOCUMENT = boot_document_json(key="k" * 43, replica_id="0123456789abcdef", rules=GuardRules(public=("/v1/models",)))


def launch(
    *argv: str, boot: bool = False, document: str = DOCUMENT, python_path: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the launcher with this interpreter, which has no SGLang."""
    paths = [str(python_path)] if python_path else []
    given = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *(path for path in sys.path if path)]), **env}
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as pipe:
        pipe.write(document)
    if boot:
        given["TORPOR_BOOT_FD"] = str(read_end)
    try:
        return subprocess.run(
            [sys.executable, "-m", "torpor_sglang.serve", *argv],
            env=given,
            pass_fds=(read_end,),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(read_end)


def fake_sglang(folder: Path, version: str) -> Path:
    """Create a folder that looks like an installed SGLang of some version."""
    information = folder / f"sglang-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
    return folder


def test_without_a_boot_document_nothing_is_started() -> None:
    """Without the guard, the engine's management routes would be open."""
    ran = launch("--model-path", "m")
    assert ran.returncode == 2
    assert "No boot document for the guard (TORPOR_BOOT_FD is not set), so nothing is started" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_damaged_boot_document_starts_nothing_and_is_not_repeated() -> None:
    """The message names the damage without showing the content."""
    ran = launch("--model-path", "m", boot=True, document='{"key": "secret-secret-secret"', TORPOR_UNGUARDED="1")
    assert ran.returncode == 2
    assert (
        "boot document cannot be used, so nothing is started: the boot document is damaged: it is not JSON"
        in ran.stderr
    )
    assert "secret" not in ran.stderr
    assert "Traceback" not in ran.stderr


def test_an_unguarded_start_needs_a_variable() -> None:
    """With TORPOR_UNGUARDED=1 the launcher continues, here until it finds no engine."""
    ran = launch("--model-path", "m", TORPOR_UNGUARDED="1")
    assert ran.returncode == 2
    assert "SGLang is not installed for this Python" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_an_unsupported_version_is_refused(tmp_path: Path) -> None:
    """A version with unknown routes is not served, unless a variable allows it."""
    ran = launch("--model-path", "m", boot=True, python_path=fake_sglang(tmp_path, "0.4.0"))
    assert ran.returncode == 2
    assert "SGLang 0.4.0 is not supported; supported are 0.5.6.post2, 0.5.16, 0.5.18, 0.5.23" in ran.stderr
    assert "TORPOR_ANY_ENGINE=1" in ran.stderr
    tried = launch("--model-path", "m", boot=True, python_path=tmp_path, TORPOR_ANY_ENGINE="1")
    assert "torpor_sglang: SGLang 0.4.0; guarded; patches: " in tried.stderr


@pytest.mark.parametrize("name", ["SGLANG_GRPC_PORT", "SGLANG_RUST_SERVER", "DUMPER_SERVER_PORT"])
def test_a_variable_that_opens_another_server_stops_the_start(tmp_path: Path, name: str) -> None:
    """The launcher checks the engine's environment like its flags."""
    ran = launch("--model-path", "m", boot=True, python_path=fake_sglang(tmp_path, "0.5.23"), **{name: "1"})
    assert ran.returncode == 2
    assert f"The environment variable {name}=1 is refused" in ran.stderr


def test_an_unknown_patch_stops_the_start(tmp_path: Path) -> None:
    """A misspelt switch is an error with the list of names."""
    ran = launch(boot=True, python_path=fake_sglang(tmp_path, "0.5.23"), TORPOR_PATCHES="-tqdm")
    assert ran.returncode == 2
    assert "'-tqdm' is not '-' and the name of a patch; patches are orphans, " in ran.stderr


def test_the_start_reports_active_and_untested_patches(tmp_path: Path) -> None:
    """One line names version, guard and patches, and marks patches that were not tested with this version."""
    folder = fake_sglang(tmp_path, "0.4.0")
    ran = launch("--device", "cpu", boot=True, python_path=folder, TORPOR_PATCHES="-tqdm-lock", TORPOR_ANY_ENGINE="1")
    line = next(line for line in ran.stderr.splitlines() if line.startswith("torpor_sglang: SGLang"))
    version, guarded, on, not_needed, off = line.split("; ")
    assert (version, guarded) == ("torpor_sglang: SGLang 0.4.0", "guarded")
    names = ("orphans", "process-identity", "published-files", "http-limits", "public-requests", "finished-streams")
    assert on.startswith(f"patches: {', '.join(f'{name} (not tested with it)' for name in names)}")
    assert "torchvision-schemas" in not_needed
    assert off == "switched off: tqdm-lock"


def test_the_launcher_imports_only_what_the_engine_has() -> None:
    """The engine's environment has no pluggy, structlog or modal; the launcher imports none of them, and no httpx."""
    code = (
        "import sys\n"
        "for name in ('pluggy', 'httpx', 'structlog', 'modal', 'typer', 'rich', 'psutil'): sys.modules[name] = None\n"
        "import torpor_sglang, torpor_sglang.serve, torpor.launcher.guarded_app\n"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
