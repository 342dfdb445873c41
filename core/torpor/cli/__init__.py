"""The command `torpor`: plan, up, snapshot, bench, report, boots, probe, prewarm, doctor, plugins, new.

The options are in `torpor.cli.commands`. A plain `torpor snapshot restore` goes past them: a restore takes half a second,
and the library that reads options alone would take a tenth of it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING

from torpor.cli.interrupts import end_as_hung_up, interrupted, note_ctrl_c
from torpor.errors import TorporError
from torpor.shortage import shortage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from torpor.cli.restore import RestoreOptions

__all__ = ["main"]

_INTERRUPTED = 130  # 128 and the number of SIGINT, as a shell says


def main() -> None:
    """Run the command; Torpor's own errors become one paragraph on standard error and their exit code."""
    note_ctrl_c()
    try:
        if (plain := _plain_restore(sys.argv[1:])) is not None:
            _restore(plain)
        else:
            from torpor.cli.commands import app  # noqa: PLC0415

            app()
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit:
        if interrupted():  # click makes an exit of it
            _end_interrupted()
        raise
    except Exception as error:
        if interrupted():
            _end_interrupted()
        lack = shortage(error)
        if not (lack or isinstance(error, TorporError)) or os.environ.get("TORPOR_DEBUG", "") not in ("", "0"):
            raise
        notes = "".join(f"\n  ({note})" for note in getattr(error, "__notes__", []))
        print(f"torpor: {type(error).__name__}: {error}{lack and ' '}{lack}{notes}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, TorporError) else 1)


def _restore(options: RestoreOptions) -> None:
    """Restore, with a sandbox on its way while the rest is imported."""
    gc.disable()  # until the copies serve: imports leave no garbage, and looking for it takes a twentieth of a restore's CPU
    from torpor.snapshots.first_process import FirstProcess  # noqa: PLC0415

    with FirstProcess(str(options["folder"])) as first:
        from torpor.cli.restore import run_restore  # noqa: PLC0415

        run_restore(**options, first=first)


def _end_interrupted() -> NoReturn:
    with contextlib.suppress(OSError):  # the terminal, or whoever read it, has gone
        print("torpor: interrupted; everything it started was ended", file=sys.stderr, flush=True)
        sys.stdout.flush()
    end_as_hung_up()
    # Not sys.exit: CPython ends itself by SIGINT when the interrupt came in the `exec` of a dataclass, caught or not.
    os._exit(_INTERRUPTED)


def _plain_restore(words: Sequence[str]) -> RestoreOptions | None:
    """The options of `snapshot restore DIR [--replicas N] [--host H] [--port P] [--verify HOW] [--json]` in plain words.

    None for every other line; those, mistakes among them, are for the full parser, and so is another system than Linux.
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
    rest = iter(words[2:])
    for word in rest:
        if word == "--json":
            options["as_json"] = True
        elif word in ("--replicas", "--host", "--port", "--verify"):
            value = next(rest, "")
            if word == "--verify" and value in ("fast", "full"):
                options["verify"] = value
            elif word == "--replicas" and value.isdecimal():
                options["replicas"] = int(value)
            elif word == "--port" and value.isdecimal():
                options["port"] = int(value)
            elif word == "--host" and value and not value.startswith("-"):
                options["host"] = value
            else:
                return None
        elif word.startswith("-") or options["folder"]:
            return None
        else:
            options["folder"] = word
    return options if options["folder"] else None
