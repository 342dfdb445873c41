"""`scripts/absolute_links.py`: the README as the package index shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import yaml

from tests import ROOT
from torpor import __version__

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = ROOT / "scripts" / "absolute_links.py"


def test_every_link_of_the_readme_becomes_absolute(tmp_path: Path) -> None:
    """A link to a page shows it at the tag, a picture is the file itself, and other addresses stay."""
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text() + "[a](https://x.example/y) [b](#more)\n")
    subprocess.run([sys.executable, SCRIPT, page, "https://h.example/o/n", "v1.2.3"], check=True, timeout=60)
    changed = page.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", changed)
    assert {link for link in links if not link.startswith("https://")} == {"#more"}
    assert "![A cold start" in changed
    assert "](https://h.example/o/n/raw/v1.2.3/docs/lifecycle.svg)" in changed
    assert "[changelog](https://h.example/o/n/blob/v1.2.3/CHANGELOG.md)" in changed
    assert "[a](https://x.example/y)" in changed


def test_a_wrong_command_line_says_how_it_is_called() -> None:
    """Exit code 2."""
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "scripts/absolute_links.py README.md https://" in done.stderr


def test_the_release_workflow_builds_checks_tries_and_publishes_without_a_token() -> None:
    """Only the job that publishes may ask for an identity, and only a tag starts it."""
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    assert flow[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as true
    jobs = flow["jobs"]
    runs = " ".join(step.get("run", "") for step in jobs["build"]["steps"])
    ordered = (
        "absolute_links.py README.md",
        "python -m build",
        "twine check --strict dist/*",
        "try_wheel.py dist/*.whl",
    )
    assert sorted(ordered, key=runs.index) == list(ordered)
    assert (flow["permissions"], jobs["publish"]["permissions"]) == ({"contents": "read"}, {"id-token": "write"})
    assert (jobs["publish"]["needs"], jobs["publish"]["environment"]) == ("build", "pypi")
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text()


def test_the_changelog_begins_with_the_version_of_the_code() -> None:
    """A release cannot forget either of the two."""
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == __version__
