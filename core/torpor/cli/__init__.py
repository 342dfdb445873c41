"""The command `torpor`: plan, up, snapshot, bench, report, boots, probe, prewarm, doctor, plugins, new.

`torpor.cli.commands` has the options. A plain `torpor snapshot restore` is parsed here instead: a restore takes half a second,
and importing the option parser would add a tenth to it. A plain `torpor up` is, too: the engine starts 0.1 s earlier. So is a plain
`torpor serve`: the parser would stay in its memory.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING, cast

from torpor.cli.exit_codes import FAILED, INTERRUPTED
from torpor.cli.interrupts import end_as_hung_up, interrupted, note_ctrl_c
from torpor.cli.terminal import DEBUG_VARIABLE, OutputError, flush_results, guard_streams, say
from torpor.errors import TorporError
from torpor.network.shortage import shortage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from torpor.cli.restore import RestoreOptions

__all__ = ["main"]


def main() -> None:
    """Run the command; an error of Torpor's own becomes one paragraph on standard error and an exit code."""
    note_ctrl_c()
    try:
        guard_streams()
        _run()
        flush_results()
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit:
        if interrupted():  # click turns it into an exit
            _end_interrupted()
        raise
    except OutputError as error:
        if not error.left:
            say(f"torpor: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        if interrupted():
            _end_interrupted()
        if os.environ.get(DEBUG_VARIABLE, "") not in ("", "0") or not (said := _said_of(error)):
            raise
        say(f"torpor: {said}")
        sys.exit(error.exit_code if isinstance(error, TorporError) else FAILED)


def _run() -> None:
    if (options := _plain_restore(sys.argv[1:])) is not None:
        _restore(options)
        return
    gc.disable()  # until the command's own module is imported, see `actions`
    from torpor.cli.plain_lines import ran_plainly  # noqa: PLC0415 - pathlib: 5 ms of a restore

    if ran_plainly(sys.argv[1:]):
        return
    from torpor.cli.commands import run  # noqa: PLC0415 - typer: 110 ms of a restore

    try:
        run(sys.argv[1:])
    except SystemExit:
        flush_results()
        raise


def _said_of(error: Exception) -> str:
    """An error of Torpor's own, or of the operating system, as one paragraph; empty for any other, which is a bug."""
    lack = shortage(error)
    if not (lack or isinstance(error, TorporError | OSError)):
        return ""
    notes = "".join(f"\n  ({note})" for note in getattr(error, "__notes__", []))
    hint = "" if lack or isinstance(error, TorporError) else f" ({DEBUG_VARIABLE}=1 shows where it comes from.)"
    return f"{type(error).__name__}: {error}{lack and ' '}{lack}{hint}{notes}"


def _restore(options: RestoreOptions) -> None:
    """Restore; the first sandbox starts while the rest is imported."""
    gc.disable()  # until the replicas serve: imports leave no garbage, and the search takes 5% of a restore's CPU time
    from torpor.snapshots.sandbox.first_process import FirstProcess  # noqa: PLC0415 - 5 ms of every other command

    with FirstProcess(str(options["folder"])) as first:
        from torpor.cli.restore import run_restore  # noqa: PLC0415 - 30 ms during which the sandbox starts

        run_restore(**options, first=first)


def _end_interrupted() -> NoReturn:
    with contextlib.suppress(OutputError):  # the terminal or the reader is gone
        say("torpor: interrupted; everything it started was ended")
        flush_results()
    end_as_hung_up()
    # Not sys.exit: CPython ends itself by SIGINT when the interrupt came in the `exec` of a dataclass, caught or not.
    os._exit(INTERRUPTED)


def _plain_restore(words: Sequence[str]) -> RestoreOptions | None:
    """The options of a plain `snapshot restore`: DIR, --replicas, --host, --port, --verify, --records, --gpus, --json.

    None for every other line, also for a wrong one and on any system but Linux: those are for the full parser.
    """
    if words[:2] != ["snapshot", "restore"] or sys.platform != "linux":
        return None
    options: RestoreOptions = {
        "folder": "",
        "replicas": 1,
        "port": None,
        "verify": "fast",
        "as_json": False,
    }
    texts: dict[str, str] = {}
    rest = iter(words[2:])
    for word in rest:
        if word == "--json":
            options["as_json"] = True
        elif word in ("--replicas", "--host", "--port", "--verify", "--records", "--gpus"):
            value = next(rest, "")
            if word == "--verify" and value in ("fast", "full"):
                options["verify"] = value
            elif word == "--replicas" and value.isdecimal():
                options["replicas"] = int(value)
            elif word == "--port" and value.isdecimal():
                options["port"] = int(value)
            elif word in ("--host", "--records", "--gpus") and value and not value.startswith("-"):
                texts[word[2:]] = value
            else:
                return None
        elif word.startswith("-") or options["folder"] or "://" in word:  # a snapshot of a store is pulled first
            return None
        else:
            options["folder"] = word
    return cast("RestoreOptions", {**options, **texts}) if options["folder"] else None
