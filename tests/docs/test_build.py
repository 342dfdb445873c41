"""Building the site: what is wrong with a page is an error that names the page."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from scripts.site import build, llms

from tests import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_the_navigation_and_the_pages_agree() -> None:
    """A page outside the navigation, one that is not there, one that is in it twice."""
    pages = {"a.md": "# A\n", "b.md": "# B\n"}
    assert build.problems(pages, (), ["a.md", "b.md"]) == []
    assert build.problems(pages, (), ["a.md", "c.md", "a.md"]) == [
        "The navigation in zensical.toml names c.md, which is no page.",
        "b.md is not in the navigation. Add it to zensical.toml.",
        "The navigation names a.md twice.",
    ]


@pytest.mark.parametrize("picture", ["![A picture](a.svg)", '<img alt="" src="a.svg">'])
def test_a_picture_has_a_file(picture: str) -> None:
    """In both spellings. Pictures from elsewhere are found by the test of the built site."""
    pages = {"a.md": f"# A\n\n{picture}\n"}
    assert build.problems(pages, ["a.svg"], ["a.md"]) == []
    assert build.problems(pages, ["b.svg"], ["a.md"]) == ["a.md shows a.svg, which is no file of the site."]


def test_a_part_of_the_navigation_has_the_pages_of_its_parts() -> None:
    """At any depth, in order."""
    nav: list[dict[str, Any]] = [{"Home": "a.md"}, {"Guides": ["b.md", {"More": ["c.md", {"D": "d.md"}]}]}]
    assert list(llms.nav_pages(nav)) == [("Home", ["a.md"]), ("Guides", ["b.md", "c.md", "d.md"])]


@pytest.mark.slow
@pytest.mark.parametrize(("link", "wrong"), [("none.md", "page does not exist"), ("#none", "anchor does not exist")])
def test_a_link_to_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the page. The old site stays."""
    monkeypatch.setattr(build, "written", lambda: {"a.md": f"# A\n\nSee [this]({link}).\n"})
    monkeypatch.setattr(build, "configured", lambda: {"nav": [{"A": "a.md"}]})
    (tmp_path / "llms.txt").write_text("old")
    assert build.main(["--to", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert wrong in told
    assert "a.md:3" in told
    assert "Traceback" not in told
    assert (tmp_path / "llms.txt").read_text() == "old"


def test_a_folder_without_a_site_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error says what to name instead."""
    (tmp_path / "mine.txt").write_text("mine")
    assert build.main(["--to", str(tmp_path)]) == 1
    assert "holds files, but no site. Name an empty or new folder" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").exists()


def test_a_taken_port_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the port and the option."""
    monkeypatch.setattr(build, "build", lambda _target: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert build.main(["--to", str(tmp_path), "--serve", str(port)]) == 1
    assert f"Cannot bind port {port} on 127.0.0.1" in capsys.readouterr().err


@pytest.mark.slow
def test_the_site_is_served_on_this_machine(tmp_path: Path) -> None:
    """Its address is the first line of the output, so a script can read it. SIGINT ends it with 0."""
    (tmp_path / "index.html").write_text("the site")
    code = (
        "import signal, sys\n"
        "from scripts.site import build\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job inherits it ignored
        "build.build = lambda _target: None\n"
        f"sys.exit(build.main(['--to', {str(tmp_path)!r}, '--serve', '0']))\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().partition(" ")[0]
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.read() == b"the site"
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.communicate()
