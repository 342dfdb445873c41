"""`torpor snapshot restore`: copies of a snapshot behind one port, until a signal.

Its time counts: what is imported here is imported before CRIU begins.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.cli.ending import drained, finished_or_ended
from torpor.cli.interrupts import Signals, ends_on_sigterm
from torpor.cli.listening import given_address, public_warning
from torpor.cli.outputs import check_output
from torpor.cli.terminal import OutputError, claim_output, result, say, say_live
from torpor.errors import ConfigurationError, EngineError, TorporError
from torpor.network import descriptors
from torpor.platforms.local.replicas import MAX_REPLICAS, Replicas
from torpor.snapshots.store.paths import records_file
from torpor.telemetry.events import warnings_only
from torpor.telemetry.progress import listening
from torpor.values.addresses import url
from torpor.values.bounds import checked_count

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NotRequired, TypedDict

    from torpor.cli.announcing import Announcement
    from torpor.runtime.supervision import ReplicaEvent
    from torpor.snapshots.gpu.checkpoint import Resumed
    from torpor.snapshots.sandbox.first_process import FirstProcess
    from torpor.telemetry.records import StageRecord

    class RestoreOptions(TypedDict):
        """The options of the command."""

        folder: str | Path
        replicas: int
        port: int | None
        host: NotRequired[str]
        verify: str
        as_json: bool
        records: NotRequired[str]


__all__ = ["Served", "run_restore"]

_TURN_S = 0.0005


class Served:
    """Replicas as a command serves them: what is told of them, the signals that it listens to, their end.

    Args:
        as_json: tell what was restored as one line of JSON, with what went wrong before (`events`), and what happens to replicas
            by themselves from then on as one more line each.
        announced: what others are told of the command; by default of a restore, from when it serves.
    """

    def __init__(self, *, as_json: bool, announced: Announcement | None = None) -> None:
        self._announced = announced
        self._before: list[ReplicaEvent] | None = []
        self._printing = threading.Lock()
        self._as_json = as_json
        self._began = time.monotonic()
        self._stages: dict[str, list[dict[str, object]]] = {}
        self._told = Signals()

    def note(self, name: str, record: StageRecord) -> None:
        """A stage of a wake ended."""
        self._stages.setdefault(name, []).append(
            {"stage": record.stage, "seconds": record.seconds, "ended_at": record.ended_at}
        )

    def tell(self, event: ReplicaEvent) -> None:
        """Something happened to a replica by itself."""
        with self._printing:
            if self._before is not None:
                self._before.append(event)
            elif self._as_json:
                with contextlib.suppress(OutputError):  # nobody reads it any more; the replicas serve on
                    result(json.dumps(event.as_json()))
            _say_event(event)
        self._announcement().event(event)
        self.look()

    def show_progress(self, text: str) -> None:
        """A hook or core says how far the work is: in the live line on a terminal, elsewhere as a line."""
        with self._printing:
            if self._as_json:
                say(json.dumps({"progress": text}))
            else:
                say_live(text)

    def look(self) -> None:
        """Have `serve` look whether a replica is left."""
        self._told.look()

    def serve(self, copies: Replicas, wanted: int, then: Callable[[], None] | None = None) -> None:
        """Say what was restored, and serve until a signal, or do something else.

        Args:
            copies: they serve.
            wanted: how many there are to be.
            then: called in place of waiting for a signal.

        Raises:
            EngineError: the last replica was given up.
        """
        self._told.listen(hup_means_again=then is None)
        with self._printing:
            before, self._before = self._before or [], None
            if self._as_json:
                events = {"events": [event.as_json() for event in before]}
                result(json.dumps(_described(copies, self._stages, self._began) | events))
            else:
                _print_serving(copies, self._stages, time.monotonic() - self._began)
        self._tell_serving(copies, wanted)
        if then is None:
            _serve(copies, wanted, self._told, lambda: self._tell_serving(copies, wanted))
            self._announcement().ending()
        finished_or_ended(then, self._told, lambda: drained(copies, self._told))

    def _tell_serving(self, copies: Replicas, wanted: int) -> None:
        self._announcement().replicas_serve(copies, url=url(*copies.address), wanted=wanted)

    def _announcement(self) -> Announcement:
        """Made when there is something to tell, so that a restore imports it when its replicas serve."""
        with self._printing:
            if self._announced is None:
                from torpor.cli.announcing import Announcement  # noqa: PLC0415

                self._announced = Announcement("snapshot restore")
            return self._announced

    def end(self) -> None:
        """Tell others that the command ends."""
        if self._announced is not None:
            self._announced.close()


def run_restore(
    *,
    folder: str | Path,
    replicas: int,
    port: int | None,
    verify: str,
    as_json: bool,
    host: str | None = None,
    records: str | Path = "",
    even_if_bad: bool = False,
    first: FirstProcess | None = None,
) -> None:
    """Restore, say so, serve until SIGINT or SIGTERM, finish requests in flight, end everything.

    A replica that ends by itself is started again.

    Args:
        folder: the snapshot.
        replicas: how many copies.
        port: public port; the deployment's by default.
        verify: `fast` or `full`.
        as_json: see `Served`.
        host: address of the public port; the deployment's by default.
        records: file for the stage records; by default one under the cache root.
        even_if_bad: also a snapshot whose replicas did not wake several times in a row.
        first: for the first sandbox, started before this module was imported.
    """
    checked_count("--replicas", replicas, most=MAX_REPLICAS, what="replicas")
    host, port = given_address(host, port)
    if verify not in ("fast", "full"):
        raise ConfigurationError(f"--verify is {verify!r}; allowed are fast and full.")
    if records:
        check_output("--records", str(records), makes_folders=True)
    claim_output()
    served = Served(as_json=as_json)
    warnings_only()
    ends_on_sigterm()
    descriptors.raise_limit()
    copies = Replicas(
        Path(folder),
        host=host,
        port=port,
        full=verify == "full",
        on_stage=served.note,
        on_event=served.tell,
        first=first,
        supervised=True,
        even_if_bad=even_if_bad,
    )
    copies.records = Path(records) if records else records_file(copies.manifest.deployment.name)
    try:
        with listening(served.show_progress):
            _start(copies, replicas)
        _say_if_public(copies)
        served.serve(copies, replicas)
    finally:
        copies.stop()
        served.end()


def _start(copies: Replicas, count: int) -> None:
    """Start them, with threads that take turns often: those that drive CRIU need Python for moments only, beside imports."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_S)
    try:
        copies.start(count)
    finally:
        sys.setswitchinterval(usual_s)
        gc.enable()


def _serve(copies: Replicas, wanted: int, told: Signals, tell_serving: Callable[[], None]) -> None:
    while not told.end:
        if not copies.serving and not copies.restarting:
            raise EngineError(
                f"No replica of {copies.folder} serves any more: each ended by itself again and again (Deployment.max_restarts). "
                "The last lines of each stand above."
            )
        told.wait()
        if told.wanted:
            told.wanted.clear()
            say("restored replicas do not sleep: SIGUSR1 and SIGUSR2 are for `torpor up` without --snapshot")
        if told.again and not told.end:
            told.again = False
            copies.restart_now()
            missing = wanted - len(copies.serving) - copies.restarting
            try:
                if missing > 0:
                    with told.ended_at_once():
                        copies.start(missing)
                        tell_serving()
                say(f"{len(copies.serving)} of {wanted} copies serve")
            except TorporError as error:
                say(f"no copy was restored: {error}")


def _described(copies: Replicas, stages: dict[str, list[dict[str, object]]], started: float) -> dict[str, object]:
    return {
        "serving": url(*copies.address),
        "began_at": started,
        "served_at": time.monotonic(),
        "verify_s": copies.verify_s,
        "records": str(copies.records) if copies.records else None,
        "replicas": [
            {
                "name": one.replica.name,
                "boot": one.boot.kind,
                "reason": one.boot.reason,
                "replica_id": one.boot.running_engine.replica_id,
                "sandbox_s": one.replica.sandbox_s,
                "side_files_s": one.replica.side_files_s,
                "criu_s": one.replica.criu_s,
                "cuda_s": one.replica.cuda_s,
                "cuda": _cuda_calls(one.replica.cuda),
                "stages": stages.get(one.replica.name, []),
            }
            for one in copies.serving
        ],
    }


def _cuda_calls(resumed: Resumed | None) -> list[dict[str, float]]:
    """What the GPU driver took for each process; nothing without a GPU."""
    return [vars(process).copy() for process in resumed.processes] if resumed else []


def _print_serving(copies: Replicas, stages: dict[str, list[dict[str, object]]], seconds: float) -> None:
    for one in copies.serving:
        took = [f"cold ({one.boot.reason})"] if one.boot.kind == "cold" else []
        took += [f"sandbox {one.replica.sandbox_s:.3f}", f"criu {one.replica.criu_s:.3f}"]
        took += [f"cuda {one.replica.cuda_s:.3f}"] if one.replica.cuda_s is not None else []
        took += [f"{stage['stage']} {stage['seconds']:.3f}" for stage in stages.get(one.replica.name, [])]
        say(f"{one.replica.name}: boot {one.boot.running_engine.replica_id}, {', '.join(took)} s")
    say(
        f"serving {copies.manifest.served_name} with {len(copies.serving)} on {url(*copies.address)} after "
        f"{seconds:.3f} s - Ctrl-C ends it"
    )
    if copies.records and copies.records.exists():  # a log line has said why there is none
        say(f"records: {copies.records}")


def _say_if_public(copies: Replicas) -> None:
    for one in copies.serving[:1]:
        if warning := public_warning(one.boot.deployment, *copies.address):
            say(warning)


def _say_event(event: ReplicaEvent) -> None:
    """What happened to a replica by itself."""
    say(event.described())
    if event.event == "replica_given_up":
        say(f"kill -HUP {os.getpid()} tries it again")
