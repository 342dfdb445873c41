"""`torpor snapshot restore`: replicas of a snapshot behind one port, until a signal.

A restore takes half a second: what this module imports delays CRIU.
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
from torpor.snapshots import gpu
from torpor.snapshots.store.paths import records_file
from torpor.telemetry.events import warnings_only
from torpor.telemetry.progress import listening
from torpor.values.addresses import url
from torpor.values.bounds import checked_count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
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
        gpus: NotRequired[str]


__all__ = ["Served", "run_restore"]

_TURN_S = 0.0005
_SCHEMA = 2
"""Of the line of JSON that says what was restored."""


class Served:
    """Serves replicas in a command: says what happens, listens to signals, ends them.

    Args:
        as_json: print what was restored as one line of JSON, with what failed before (`events`). Each later event is one more
            line.
        announced: tells others of the command; by default of a restore, once it serves.
        fetched: how the snapshot came from a store, for that line.
    """

    def __init__(
        self, *, as_json: bool, announced: Announcement | None = None, fetched: Mapping[str, object] | None = None
    ) -> None:
        self._announced = announced
        self._fetched = {"fetched": fetched} if fetched else {}
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
                with contextlib.suppress(OutputError):  # the reader is gone; the replicas serve on
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
        """Have `serve` check whether a replica is left."""
        self._told.look()

    def run(self, replicas: Replicas, count: int) -> None:
        """Restore so many, serve until a signal, end them."""
        try:
            with listening(self.show_progress):
                _start(replicas, count)
            _say_if_public(replicas)
            self.serve(replicas, count)
        finally:
            replicas.stop()
            self.end()

    def serve(self, replicas: Replicas, wanted: int, then: Callable[[], None] | None = None) -> None:
        """Say what was restored, and serve until a signal, or while `then` runs.

        Args:
            replicas: they serve already.
            wanted: how many there should be.
            then: called instead of waiting for a signal.

        Raises:
            EngineError: the last replica was given up.
        """
        self._told.listen(hup_means_again=then is None)
        with self._printing:
            before, self._before = self._before or [], None
            if self._as_json:
                events = {"events": [event.as_json() for event in before]}
                result(json.dumps(_described(replicas, self._stages, self._began) | self._fetched | events))
            else:
                _print_serving(replicas, self._stages, time.monotonic() - self._began)
        self._tell_serving(replicas, wanted)
        if then is None:
            _serve(replicas, wanted, self._told, lambda: self._tell_serving(replicas, wanted))
            self._announcement().ending()
        finished_or_ended(then, self._told, lambda: drained(replicas, self._told))

    def _tell_serving(self, replicas: Replicas, wanted: int) -> None:
        self._announcement().replicas_serve(replicas, url=url(*replicas.address), wanted=wanted)

    def _announcement(self) -> Announcement:
        """Made at its first use, so that a restore imports it once its replicas serve."""
        with self._printing:
            if self._announced is None:
                from torpor.cli.announcing import Announcement  # noqa: PLC0415 - announcing: 1 ms before CRIU begins

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
    gpus: str = "",
    first: FirstProcess | None = None,
    fetched: Mapping[str, object] | None = None,
) -> None:
    """Restore replicas and serve until SIGINT or SIGTERM; then finish requests in flight and end everything.

    Args:
        folder: the snapshot.
        replicas: how many.
        port: public port; the deployment's by default.
        verify: `fast` or `full`.
        as_json: see `Served`.
        host: address of the public port; the deployment's by default.
        records: file for the stage records; by default one under the cache root.
        even_if_bad: restore even a snapshot whose replicas repeatedly did not wake.
        gpus: the value of `--gpus`.
        first: the first sandbox's process, started earlier.
        fetched: how the snapshot came from a store, for the line of JSON.
    """
    checked_count("--replicas", replicas, most=MAX_REPLICAS, what="replicas")
    host, port = given_address(host, port)
    if verify not in ("fast", "full"):
        raise ConfigurationError(f"--verify is {verify!r}; allowed are fast and full.")
    if records:
        check_output("--records", str(records), makes_folders=True)
    _begin_to_serve()
    served, full, folder = Served(as_json=as_json, fetched=fetched), verify == "full", Path(folder)
    restored = _replicas(folder, served, host=host, port=port, full=full, first=first, even_if_bad=even_if_bad)
    restored.records = Path(records) if records else records_file(restored.manifest.deployment.name)
    served.run(_on_gpus(restored, gpus), replicas)


def _replicas(
    folder: Path,
    served: Served,
    *,
    host: str | None,
    port: int | None,
    full: bool,
    first: FirstProcess | None,
    even_if_bad: bool,
) -> Replicas:
    """The replicas of a snapshot, of which `served` is told; arguments as of `run_restore`."""
    return Replicas(
        folder,
        host=host,
        port=port,
        full=full,
        on_stage=served.note,
        on_event=served.tell,
        first=first,
        supervised=True,
        even_if_bad=even_if_bad,
    )


def _on_gpus(replicas: Replicas, text: str) -> Replicas:
    """The replicas, on the GPUs of `--gpus` if there are some."""
    replicas.gpus = gpu.gpus_for_replicas("--gpus", text, replicas.manifest) if text else ()
    return replicas


def _begin_to_serve() -> None:
    """Prepare this process: its output, its signals, its limits."""
    claim_output()
    warnings_only()
    ends_on_sigterm()
    descriptors.raise_limit()


def _start(replicas: Replicas, count: int) -> None:
    """Start them with a short switch interval: threads that drive CRIU need Python only briefly, while others import."""
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_S)
    try:
        replicas.start(count)
    finally:
        sys.setswitchinterval(usual_s)
        gc.enable()


def _serve(replicas: Replicas, wanted: int, told: Signals, tell_serving: Callable[[], None]) -> None:
    while not told.end:
        if not replicas.serving and not replicas.restarting:
            raise EngineError(
                f"No replica of {replicas.folder} serves any more: each ended by itself too often (Deployment.max_restarts). "
                "The last lines of each stand above."
            )
        told.wait()
        if told.wanted:
            told.wanted.clear()
            say("restored replicas do not sleep: SIGUSR1 and SIGUSR2 are for `torpor up` without --snapshot")
        if told.again and not told.end:
            told.again = False
            replicas.restart_now()
            missing = wanted - len(replicas.serving) - replicas.restarting
            try:
                if missing > 0:
                    with told.ended_at_once():
                        replicas.start(missing)
                        tell_serving()
                say(f"{len(replicas.serving)} of {wanted} replicas serve")
            except TorporError as error:
                say(f"no replica was restored: {error}")


def _described(replicas: Replicas, stages: dict[str, list[dict[str, object]]], started: float) -> dict[str, object]:
    return {
        "schema": _SCHEMA,
        "url": url(*replicas.address),
        "began_at": started,
        "served_at": time.monotonic(),
        "verify_s": replicas.verify_s,
        "records": str(replicas.records) if replicas.records else None,
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
                "gpus": [place._asdict() for place in one.replica.gpus],
                "stages": stages.get(one.replica.name, []),
            }
            for one in replicas.serving
        ],
    }


def _cuda_calls(resumed: Resumed | None) -> list[dict[str, float]]:
    """Seconds of the GPU driver for each process; empty without a GPU."""
    return [vars(process).copy() for process in resumed.processes] if resumed else []


def _print_serving(replicas: Replicas, stages: dict[str, list[dict[str, object]]], seconds: float) -> None:
    for one in replicas.serving:
        took = [f"cold ({one.boot.reason})"] if one.boot.kind == "cold" else []
        took += [f"sandbox {one.replica.sandbox_s:.3f}", f"criu {one.replica.criu_s:.3f}"]
        took += [f"cuda {one.replica.cuda_s:.3f}"] if one.replica.cuda_s is not None else []
        took += [f"{stage['stage']} {stage['seconds']:.3f}" for stage in stages.get(one.replica.name, [])]
        where = f", GPU {' and '.join(str(place.number) for place in one.replica.gpus)}" if one.replica.gpus else ""
        say(f"{one.replica.name}{where}: replica id {one.boot.running_engine.replica_id}, {', '.join(took)} s")
    manifest, count = replicas.manifest, len(replicas.serving)
    say(
        f"{manifest.deployment.name}: {count} {'replica serves' if count == 1 else 'replicas serve'} {manifest.served_name} on "
        f"{url(*replicas.address)}, {seconds:.3f} s after the start - Ctrl-C ends it"
    )
    if replicas.records and replicas.records.exists():  # a log line has said why there is none
        say(f"records: {replicas.records}")


def _say_if_public(replicas: Replicas) -> None:
    for one in replicas.serving[:1]:
        if warning := public_warning(one.boot.deployment, *replicas.address):
            say(warning)


def _say_event(event: ReplicaEvent) -> None:
    """What happened to a replica by itself."""
    say(event.described())
    if event.event == "replica_given_up":
        say(f"kill -HUP {os.getpid()} tries it again")
