"""`torpor prewarm`: when it finds a restored start, and when it gives up."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.chat_server import ChatServer, Reply
from tests.command_line import torpor
from tests.guard.engine import OTHER_KEY, REPLICA_ID
from tests.guard.server import GuardedServer
from tests.platforms.modal.modal_lines import RESTORING, after, woken
from torpor import ConfigurationError
from torpor.errors import EngineRequestError
from torpor.platforms.modal.log import BootsReport, classify
from torpor.platforms.modal.log_lines import LogLine
from torpor.platforms.modal.prewarm import Prewarmed, Round, prewarm

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

pytestmark = pytest.mark.slow

UNAVAILABLE = Reply(status=503, headers={"Retry-After": "0"})


def replica(tag: str, boot: str, *, wakes: int = 0, pause_s: float = 0.0) -> Reply:
    """The guard's answer to `/ready`."""
    headers = {"torpor-boot": boot, "torpor-replica": tag, "torpor-wakes": str(wakes)}
    return Reply(headers=headers, pieces=(b'{"state": "serving"}',), pause_s=pause_s)


def drive(
    url: str,
    *,
    requests: int = 1,
    attempts: int = 5,
    pause_s: float = 0.0,
    timeout_s: float = 30.0,
    read_log: Callable[[float], BootsReport] | None = None,
    on_round: Callable[[Round], None] | None = None,
) -> Prewarmed:
    """Prewarm without pauses."""
    return prewarm(
        url,
        requests=requests,
        attempts=attempts,
        pause_s=pause_s,
        timeout_s=timeout_s,
        read_log=read_log,
        on_round=on_round,
    )


def test_it_goes_on_until_a_restored_replica_answers() -> None:
    """Cold starts come first, then the one that made the snapshot, then a restore. Each is reported when it is seen."""
    script = [
        replica("a", "cold"),
        UNAVAILABLE,
        replica("b", "woken", wakes=1),
        replica("c", "restored", wakes=1),
    ]
    told: list[Round] = []
    with ChatServer(script) as server:
        ended = drive(server.url, on_round=told.append)
    assert ended.end == "restored"
    assert [(one.tag, one.boot, one.wakes) for each in ended.rounds for one in each.new] == [
        ("a", "cold", "0"),
        ("b", "woken", "1"),
        ("c", "restored", "1"),
    ]
    assert (ended.starts, ended.last_seen, tuple(told)) == (2, "the server answers 503", ended.rounds)
    assert {seen.path for seen in server.seen} == {"/ready"}


def test_a_replica_of_an_earlier_round_is_not_counted_as_a_start() -> None:
    """It is counted separately. Prewarm gives up after the last round."""
    with ChatServer([replica("a", "cold")]) as server:
        ended = drive(server.url, attempts=3)
    assert (ended.end, ended.starts, len(server.seen)) == ("attempts", 1, 3)
    assert [(len(one.new), one.known) for one in ended.rounds] == [(1, 0), (0, 1), (0, 1)]


def test_the_requests_of_a_round_are_sent_at_once() -> None:
    """More requests than one replica takes make a platform start several replicas."""
    with ChatServer([replica("a", "cold", pause_s=2.0)]) as server:
        ended = drive(server.url, requests=6, attempts=1)
    at = [seen.at for seen in server.seen]
    assert len(at) == 6
    assert max(at) - min(at) < 2.0  # one after another they would be further apart
    assert ended.rounds[0].answered == 6


def test_a_restored_replica_ends_the_round() -> None:
    """Prewarm does not wait for the cold starts of the same round."""
    with ChatServer([replica("a", "restored", wakes=1), replica("b", "cold", pause_s=20.0)]) as server:
        ended = drive(server.url, requests=2)
    assert (ended.end, ended.rounds[0].answered) == ("restored", 1)
    assert ended.seconds < 15


def test_the_deadline_covers_the_waiting() -> None:
    """The result keeps the reason of the last wait."""
    with ChatServer([UNAVAILABLE]) as server:
        began = time.monotonic()
        ended = drive(server.url, requests=2, timeout_s=1.0)
    assert (ended.end, ended.last_seen, ended.starts) == ("timeout", "the server answers 503", 0)
    assert 0.9 < time.monotonic() - began < 10


def test_the_deadline_covers_the_pause() -> None:
    """An hour between two rounds is cut short."""
    with ChatServer([replica("a", "cold")]) as server:
        ended = drive(server.url, pause_s=3600.0, timeout_s=2.0)
    assert (ended.end, len(ended.rounds)) == ("timeout", 1)
    assert ended.seconds < 10


def test_a_server_that_does_not_report_its_start_is_an_error_without_a_log() -> None:
    """Nothing else shows how it started."""
    silent = Reply(pieces=(b"ok",))
    with ChatServer([silent]) as server, pytest.raises(EngineRequestError, match=r"no header torpor-boot.*app's name"):
        drive(server.url, requests=3)


def test_a_server_that_does_not_report_its_start_is_judged_by_its_log() -> None:
    """A restore in the log counts if it came after the first request and has no note."""
    asked: list[float] = []

    def read_log(hours: float) -> BootsReport:
        asked.append(hours)
        now = time.time()
        old = [LogLine(text=RESTORING, at=now - 300, container="ta-old")]
        lines = [RESTORING, after("b1", restored=True), *woken("b1", now - 1_795_608_000.0 + 2)]
        fresh = [LogLine(text=line, at=now, container="ta-B") for line in lines]
        return classify(old if len(asked) == 1 else old + fresh)

    with ChatServer([Reply(pieces=(b"ok",))]) as server:
        ended = drive(server.url, read_log=read_log)
    assert (ended.end, [one.restored_in_log for one in ended.rounds]) == ("restored", [0, 1])
    assert all(0 < hours < 1 for hours in asked)


def test_a_refusal_ends_it_with_the_servers_words() -> None:
    """Otherwise prewarm would ask the URL of a stopped app forever."""
    with (
        ChatServer([Reply(status=404, pieces=(b"modal-http: app is stopped",))]) as server,
        pytest.raises(EngineRequestError, match="404: modal-http: app is stopped"),
    ):
        drive(server.url, requests=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"requests": 0}, "--requests is 0"), ({"attempts": 0}, "--attempts is 0"), ({"pause_s": -1.0}, "--pause is -1")],
)
def test_a_wrong_number_is_an_error(options: dict[str, float], words: str) -> None:
    """Before anything is sent."""
    numbers = {"requests": 1, "attempts": 1, "pause_s": 0.0, "timeout_s": 1.0, **options}
    with pytest.raises(ConfigurationError, match=words):
        prewarm("http://127.0.0.1:1", **numbers)  # type: ignore[arg-type] # one of them is wrong


def test_the_real_guard_distinguishes_a_restored_replica_from_its_original() -> None:
    """With its old replica id the replica woke in place; with a new one it was restored."""
    with GuardedServer() as server:
        url = f"http://127.0.0.1:{server.port}"
        assert server.control("serve").status == 200
        cold = drive(url, attempts=1)
        for identity in (b'{"key": "%s"}' % OTHER_KEY.encode(), b'{"replica_id": "copy"}'):
            key = server_key(server)
            for path in ("/_torpor/drain", "/pause", "/release", "/_torpor/asleep"):
                assert server.ask(path, method="POST", key=key).status == 200
            assert server.ask("/_torpor/wake", method="POST", key=key, body=identity).status == 200
            for path in ("/resume", "/continue", "/_torpor/serve"):
                assert server.ask(path, method="POST", key=server_key(server)).status == 200
            if b"replica_id" not in identity:
                in_place = drive(url, attempts=1)
        restored = drive(url, attempts=1)
    seen = [ended.rounds[0].new[0] for ended in (cold, in_place, restored)]
    assert [(one.boot, one.wakes) for one in seen] == [("cold", "0"), ("woken", "1"), ("restored", "2")]
    assert seen[0].tag == seen[1].tag != seen[2].tag
    assert REPLICA_ID not in str(seen)
    assert [ended.end for ended in (cold, in_place, restored)] == ["attempts", "attempts", "restored"]


def server_key(server: GuardedServer) -> str:
    """The key that opens the control routes now."""
    return OTHER_KEY if server.ask("/_torpor/state", key=OTHER_KEY).status == 200 else "k" * 43


# --- the command ------------------------------------------------------------------------------------------------------


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return torpor("prewarm", *argv, without=("TORPOR_", "MODAL_"))


def test_the_result_is_on_standard_output_and_the_rounds_on_standard_error() -> None:
    """Exit code 0 for a restored start."""
    with ChatServer([replica("a", "cold"), replica("b", "restored", wakes=1)]) as server:
        done = command(server.url, "--requests", "1", "--pause", "0")
    assert done.returncode == 0
    assert done.stdout.startswith("restores have begun (other starts seen: 1, rounds: 2, ")
    _, first, second = done.stderr.splitlines()
    assert (first.startswith("round 1: 1 answers in "), "replicas: a cold after " in first) == (True, True)
    assert "replicas: b restored after " in second


def test_giving_up_is_exit_code_1_with_the_count_in_the_json() -> None:
    """The JSON says after how many starts, and why."""
    with ChatServer([replica("a", "cold"), replica("b", "cold")]) as server:
        done = command(server.url, "--requests", "1", "--attempts", "2", "--pause", "0", "--json")
        text = command(server.url, "--requests", "1", "--attempts", "2", "--pause", "0")
    said = json.loads(done.stdout)
    assert (done.returncode, said["end"], said["starts"], said["url"]) == (1, "attempts", 2, server.url)
    assert [one["restored"] for one in said["rounds"]] == [False, False]
    assert text.returncode == 1
    assert text.stdout.startswith("gave up without a restored start (other starts seen: 1, rounds: 2, ")
    assert "only replicas that ran before" in text.stdout


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("http://127.0.0.1:1", "--timeout", "-1"), "--timeout is -1"),
        (("http://127.0.0.1:1", "--requests", "0"), "--requests is 0"),
        (("no_such_app.py",), "There is no app file 'no_such_app.py'"),
    ],
)
def test_wrong_input_is_one_paragraph_and_exit_code_2(argv: tuple[str, ...], words: str) -> None:
    """No request is sent."""
    done = command(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
