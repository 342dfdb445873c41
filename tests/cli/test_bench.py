"""`torpor bench` and `torpor report` as a user types them, with the stand-in app."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import TYPE_CHECKING, cast

import pytest

from tests.cli.test_snapshot_commands import INTERRUPTED, Cli
from tests.report.recorded import measured
from tests.snapshots.conftest import refuse, wait_for
from tests.snapshots.kept import engines_on, write_app
from torpor.cli.timed import without_left_overs
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.report import Bench, read_report
from torpor.report.page import page
from torpor.runtime.captured_secrets import secret_names
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.snapshots.store.paths import criu_prefix
from torpor.telemetry.records import read_records
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

CLOCKS = ("port_s", "ready_s", "first_token_s")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command line with a cache root of its own and the CRIU of this machine."""
    env = {name: value for name, value in os.environ.items() if name not in secret_names(os.environ)}
    env |= {"TORPOR_CACHE": str(tmp_path / "c"), "COLUMNS": "200"}
    env.setdefault(PREFIX_VARIABLE, str(criu_prefix()))
    return Cli(env=env, cache=tmp_path / "c")


def without_criu(cli: Cli, folder: Path) -> Cli:
    """The same on a machine that has no CRIU."""
    return Cli(env={**cli.env, PREFIX_VARIABLE: str(folder / "none"), "PATH": str(folder)}, cache=cli.cache)


def stages(content: dict[str, object], number: int) -> list[str]:
    """Names of the stages of a start, in order."""
    starts = cast("list[dict[str, list[dict[str, str]]]]", content["starts"])
    return [span["stage"] for span in starts[number]["spans"]]


def check_clocks(bench: Bench, clocks: tuple[str, ...]) -> None:
    """The clocks of a start are in order, and its stages lie within them, in order."""
    for start in bench.starts:
        seen = [getattr(start, clock) for clock in clocks]
        assert seen == sorted(seen)
        assert seen[0] > 0
        begins = [span.start_s for span in start.spans]
        assert begins == sorted(begins)
        assert start.spans[-1].stage == "first_answer"
        (opened,) = [span for span in start.spans if span.stage == "serve"]
        assert start.ready_s is not None
        assert opened.start_s < start.ready_s + 0.02  # nobody is let in before; two clocks meet here


@pytest.mark.slow
def test_cold_starts_and_wakes_take_turns(cli: Cli, tmp_path: Path) -> None:
    """Where there is no CRIU, with the reason: JSON, table and page of one run; `report` makes the same page of the JSON."""
    port = unused_port()
    app = write_app(tmp_path / "app", port=port)
    json_file, html_file, again = (tmp_path / name for name in ("bench.json", "bench.html", "again.html"))
    words = ("--starts", "2", "--json", json_file, "--html", html_file)
    ran = without_criu(cli, tmp_path).run("bench", app, *words)
    assert ran.stdout == ""
    assert "standby, as CRIU cannot be used here: " in ran.stderr
    assert "first token" in ran.stderr
    assert "a wake is" in ran.stderr
    bench = read_report(json_file)
    assert isinstance(bench, Bench)
    assert [(one.boot, one.number) for one in bench.starts] == [
        ("cold", 1),
        ("woken", 1),
        ("cold", 2),
        ("woken", 2),
    ]
    check_clocks(bench, CLOCKS[1:])
    assert [one.port_s is None for one in bench.starts] == [False, True, False, True]
    assert bench.floor is None
    content = json.loads(json_file.read_text())
    cold = ["process", "preflight", "launch", "ready", "warmup", "serve", "first_answer"]
    assert stages(content, 0) == cold
    assert stages(content, 1) == ["post_restore", "canary_check", "serve", "first_answer"]
    assert f"{bench.spread['cold']['first_token_s'].median:.3f}" in ran.stderr
    assert html_file.read_text() == page([bench])
    cli.run("report", json_file, "-o", again)
    assert again.read_text() == html_file.read_text()
    assert cli.run("report", json_file).stdout == html_file.read_text()
    assert engines_on(port) == []


@pytest.mark.slow
@pytest.mark.criu
def test_cold_and_restored_starts_take_turns(cli: Cli, tmp_path: Path) -> None:
    """With CRIU: the result holds the snapshot's bytes and their floor, and the snapshot is removed; stdout is the JSON alone."""
    if reasons := CriuBackend().available():
        refuse("; ".join(reasons))
    port = unused_port()
    app = write_app(tmp_path / "app", port=port)
    ran = cli.run("bench", app, "--starts", "1", "--backend", "criu", "--json", "-")
    content = json.loads(ran.stdout)
    bench = Bench.from_json(content)
    check_clocks(bench, CLOCKS)
    restored = [
        "process",
        "verify",
        "sandbox",
        "side_files",
        "criu",
        "imports",
        "post_restore",
        "canary_check",
        "serve",
    ]
    assert stages(content, 1) == [*restored, "first_answer"]
    floor = bench.floor
    assert floor is not None
    # No order of these two: shared pages and pages of zeroes count in `mapped_bytes` more than they take in the images.
    assert floor.image_bytes > 0
    assert floor.mapped_bytes > 0
    assert 0 < floor.side_file_bytes <= floor.copied_bytes
    assert 0 < floor.copied_s < floor.all_s
    assert floor.copied_s < bench.starts[1].total_s
    assert list((cli.cache / "snapshots").iterdir()) == []
    assert engines_on(port) == []


@pytest.mark.slow
def test_a_file_of_stage_records_is_drawn(cli: Cli, tmp_path: Path) -> None:
    """`torpor up` prints the path of its records, or takes one; `report` draws them."""
    app = write_app(tmp_path / "app", port=unused_port())
    records = tmp_path / "records.jsonl"
    cli.run("up", app, "--backend", "standby", "--ask", "hello", "--records", records)
    drawn = cli.run("report", records).stdout
    assert drawn == page([read_report(records)])
    assert f'value="{read_records(records)[0].seconds!r}"' in drawn


@pytest.mark.slow
def test_a_failed_start_ends_the_bench_with_its_reason(cli: Cli, tmp_path: Path) -> None:
    """The engine's own words are in the message; no file is written and nothing is left."""
    port = unused_port()
    app = write_app(tmp_path / "app", port=port, more=", fault=Fault.EXIT_AT_START")
    app.write_text("from torpor.testing import Fault\n" + app.read_text())
    json_file = tmp_path / "bench.json"
    ran = cli.run("bench", app, "--starts", "1", "--backend", "standby", "--json", json_file, code=1)
    assert "exit_at_start" in ran.stderr
    assert not json_file.exists()
    assert engines_on(port) == []


@pytest.mark.slow
def test_ctrl_c_ends_everything_that_a_bench_started(cli: Cli, tmp_path: Path) -> None:
    """In the middle of a start."""
    port = unused_port()
    app = write_app(tmp_path / "app", port=port)
    with cli.running("bench", app, "--starts", "500", "--backend", "standby") as bench:
        bench.says("woken      1")
        assert bench.end(signal.SIGINT) == INTERRUPTED
    assert engines_on(port) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("report {tmp}/none.json", "none.json cannot be read: No such file"),
        ("report {tmp}/text", "holds no JSON"),
        ("report {tmp}/other.json", "JSON of another kind"),
        ("report {tmp}/bench.json -o {tmp}/none/page.html", "there is no folder"),
        ("bench {tmp}/none.py", "no app file"),
        ("bench {tmp}/kept.py --starts 0", "allowed are 1 to 1000"),
        ("bench {tmp}/kept.py --backend docker", "bench knows criu and standby"),
        ("bench {tmp}/kept.py --backend criu", "--backend standby works anywhere"),
        ("bench {tmp}/kept.py --json {tmp}", "is a folder"),
        ("bench {tmp}/kept.py --json - --html -", "both name standard output"),
    ],
)
def test_wrong_input_is_one_paragraph_that_says_what_to_change(cli: Cli, tmp_path: Path, line: str, said: str) -> None:
    """Exit code 2, no traceback, nothing on standard output; here there is no CRIU."""
    write_app(tmp_path, port=unused_port())
    (tmp_path / "text").write_text("a text\n")
    (tmp_path / "other.json").write_text('{"stages": []}')
    (tmp_path / "bench.json").write_text(json.dumps(measured(pairs=1).as_json()))
    ran = without_criu(cli, tmp_path).run(*line.format(tmp=tmp_path).split(), code=2)
    assert ran.stdout == ""
    assert ran.stderr.startswith("torpor: ConfigurationError: ")
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_taken_port_is_reported_before_anything_starts(cli: Cli, tmp_path: Path) -> None:
    """Otherwise the figures would be those of another server."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        app = write_app(tmp_path / "app", port=taken.getsockname()[1])
        ran = cli.run("bench", app, "--backend", "standby", code=2)
    assert "PortInUseError" in ran.stderr
    assert "another Deployment.port" in ran.stderr


@pytest.mark.criu
@pytest.mark.fault("`bench` was killed before it could clear up", area="commands", outcome="held")
def test_the_next_bench_clears_what_a_killed_one_left(cli: Cli, tmp_path: Path) -> None:
    """Its snapshot and its records. A user's snapshot stays, also one with the same ending of the name."""
    if reasons := CriuBackend().available():
        refuse("; ".join(reasons))
    port = unused_port()
    app = write_app(tmp_path / "app", port=port)
    snapshots, timed = cli.cache / "snapshots", cli.cache / "timed"
    cli.run("snapshot", "create", app, snapshots / "mine-bench")
    name = str(json.loads((snapshots / "mine-bench" / "manifest.json").read_text())["deployment"]["name"])
    with cli.running("bench", app, "--backend", "criu", "--starts", "5") as bench:
        bench.says("restored   1")
        assert wait_for(lambda: any(timed.iterdir()))
        bench.process.kill()
        bench.process.wait(30)
        assert wait_for(lambda: not engines_on(port))
    assert (snapshots / f"{name}-bench").is_dir()
    assert any(timed.iterdir())
    cli.run("bench", app, "--backend", "standby", "--starts", "1")
    assert [folder.name for folder in snapshots.iterdir()] == ["mine-bench"]
    assert list(timed.iterdir()) == []


def test_a_bench_that_runs_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files stay until no bench runs."""
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path))
    with without_left_overs():
        kept = tmp_path / "timed" / "records"
        kept.mkdir()
        with without_left_overs():
            assert kept.is_dir()
    with without_left_overs():
        assert not kept.exists()
