"""The commands and their options.

Each command lives in a module of its own that is imported when it runs, so that `torpor --help` costs neither modal nor
httpx.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from torpor._override import override
from torpor._version import __version__
from torpor.cli.terminal import claim_output

if TYPE_CHECKING:
    from typer._click import Context

__all__ = ["app"]

_HELP = """Serve language models from engines that sleep in a memory snapshot and wake in seconds.

\b
build   prepare_image     what the container image holds
        compile_kernels   what to compile or download once
start   launch            start the engine process
        warmup            real requests until nothing is left to compile
        pre_snapshot      put the engine to sleep
--- snapshot ---
wake    post_restore      wake the engine, once per restored replica
"""

_NEW_EXAMPLES = """Examples:

\b
torpor new prompt-file            torpor-prompt-file/, module torpor_prompt_file, class PromptFile
torpor new LlamaCpp --engine      torpor-llamacpp/, module torpor_llamacpp, class LlamaCpp
"""

_WIDEST_HELP = 120


class _Group(TyperGroup):
    """Lists its commands with their whole first paragraph, which typer would cut at the end of the line."""

    @override
    def list_commands(self, ctx: Context) -> list[str]:
        for command in self.commands.values():
            command.short_help = command.short_help or " ".join((command.help or "").split("\n\n")[0].split())
        return super().list_commands(ctx)


app = typer.Typer(
    name="torpor",
    cls=_Group,
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "terminal_width": min(shutil.get_terminal_size().columns, _WIDEST_HELP) - 2,
    },
)

AppFile = Annotated[str, typer.Argument(metavar="APP", help="App file with a deployment, e.g. apps/tiny_cpu.py.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Host = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Listen on this address; by default the deployment's, which is 127.0.0.1 unless it says otherwise.",
        show_default=False,
    ),
]
Port = Annotated[
    int | None, typer.Option(help="The public port, 1 to 65535; by default the deployment's.", show_default=False)
]
Prove = Annotated[
    bool | None,
    typer.Option(
        "--prove/--no-prove",
        help="Restore and wake one replica of a new snapshot before it is put in place; by default without a GPU.",
        show_default=False,
    ),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"torpor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of Torpor's own errors.")] = False,
) -> None:
    if debug:
        os.environ["TORPOR_DEBUG"] = "1"


@app.command()
def plan(
    app_file: AppFile,
    diff: Annotated[
        str, typer.Option(metavar="OTHER", help="Show what differs in another app file, or in a saved plan (.json).")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show everything that an app will do, without doing it."""
    from torpor.cli.plan import show_plan  # noqa: PLC0415

    show_plan(app_file, other=diff, as_json=as_json)


@app.command()
def up(
    app_file: AppFile,
    *,
    backend: Annotated[
        str | None,
        typer.Option(help="How the sleeping server is kept: none, standby (the default) or criu.", show_default=False),
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Restore this snapshot if it fits; else start cold and make it (by CRIU)."),
    ] = None,
    ask: Annotated[str, typer.Option(help="Ask this once it serves, stream the answer, then stop.")] = "",
    records: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Stage records go here; by default under the cache root.")
    ] = None,
    prove: Prove = None,
    host: Host = None,
    port: Port = None,
    as_json: AsJson = False,
) -> None:
    """Run an app's whole lifecycle on this machine.

    While it serves, SIGUSR1 sends the engine to sleep and SIGUSR2 wakes it. Ctrl-C, SIGTERM or a closed terminal ends it:
    requests in flight are finished first, at most for the deployment's drain_timeout_s, and the exit code is 0. A second
    signal ends it at once (130).
    An engine that ends by itself is started again.
    """
    from torpor.cli.up import run_up  # noqa: PLC0415

    claim_output()
    run_up(
        app_file,
        backend=backend,
        snapshot=snapshot,
        question=ask,
        as_json=as_json,
        records=records,
        prove=prove,
        host=host,
        port=port,
    )


@app.command()
def status(
    deployment: Annotated[str, typer.Argument(metavar="[NAME]", help="Only servers of this deployment.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show which servers run here: replicas with state, pid, start, restarts and memory; address, snapshot, last event.

    Exit code 0; with NAME 1 where no server of it serves with all its replicas.
    """
    from torpor.cli.status import run_status  # noqa: PLC0415

    run_status(deployment, as_json=as_json)


@app.command()
def logs(
    name: Annotated[
        str,
        typer.Argument(metavar="[APP|REPLICA]", help="App file, deployment or replica; by default whatever runs here."),
    ] = "",
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", help="How many lines of each log.")] = 100,
) -> None:
    """Show what engines print: of the replicas that run, or of the one that ended last.

    Exit code 0; 1: there is no log yet; 2: none of that name.
    """
    from torpor.cli.logs import run_logs  # noqa: PLC0415

    run_logs(name, follow=follow, lines=lines)


@app.command()
def doctor(
    app_file: Annotated[
        str,
        typer.Argument(metavar="[APP]", help="App file with a deployment; without one, what the machine is good for."),
    ] = "",
    *,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Read all that the app's plugins fetched here, and compare it.")
    ] = False,
    platform: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="modal|here",
            help="Look at the app for Modal or for this machine; by default for Modal where it has a modal.App and this machine "
            "lacks its GPU.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show what is known to fail with an app, and what this machine lacks for snapshots, with what to do about it.

    Exit code 0: nothing; 1: warnings; 2: errors.
    """
    from torpor.cli.doctor import run_doctor  # noqa: PLC0415

    run_doctor(app_file, as_json=as_json, recheck=recheck, platform=platform)


@app.command()
def plugins(as_json: AsJson = False) -> None:
    """List the installed plugins and their hooks."""
    from torpor.cli.plugins import list_plugins  # noqa: PLC0415

    list_plugins(as_json=as_json)


@app.command(epilog=_NEW_EXAMPLES)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the plugin is called, e.g. prompt-file.")],
    *,
    engine: Annotated[
        bool, typer.Option("--engine", help="A plugin that launches an engine; it brings a small one.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The project's own folder, new or empty; by default torpor-NAME, here."),
    ] = None,
) -> None:
    """Make a complete plugin project: package, hooks, contract test, an app to try it in, CI.

    Exit code 0: it is made, whole; 2: a name that cannot be, a folder that is in use or closed, and nothing was made.
    """
    from torpor.cli.new import run_new  # noqa: PLC0415

    run_new(name, engine=engine, into=into)


key = typer.Typer(cls=_Group, help="Bearer keys for the public paths.", no_args_is_help=True)
app.add_typer(key, name="key")


@key.callback()
def _keys() -> None:
    """Keep `new` a command of its own: alone in its group it would become the group."""


@key.command("new")
def new_key(as_json: AsJson = False) -> None:
    """Print a new key and its SHA-256; nothing is stored.

    The key is for the clients ("Authorization: Bearer KEY"), the SHA-256 for the deployment.
    """
    from torpor.cli.key import show_new_key  # noqa: PLC0415

    show_new_key(as_json=as_json)


snapshot = typer.Typer(
    cls=_Group,
    help="Keep a sleeping server in a folder, and restore any number of copies (CRIU).",
    no_args_is_help=True,
)
app.add_typer(snapshot, name="snapshot")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The snapshot's folder.")]


@snapshot.command()
def create(
    app_file: AppFile,
    folder: Folder,
    *,
    mode: Annotated[str, typer.Option(help="root or rootless; by default what works here, rootless first.")] = "",
    copy_memory: Annotated[
        bool, typer.Option("--copy-memory", help="Copies get memory of their own, and need the folder no more.")
    ] = False,
    prove: Prove = None,
    as_json: AsJson = False,
) -> None:
    """Start an app cold, put it to sleep and keep it in a folder."""
    from torpor.cli.snapshot import run_create  # noqa: PLC0415

    run_create(app_file, folder, mode=mode, copy_memory=copy_memory, as_json=as_json, prove=prove)


@snapshot.command()
def inspect(folder: Folder, as_json: AsJson = False) -> None:
    """Show what a snapshot holds, and whether it fits this machine and its app as it is now.

    Exit code 0: it fits; 1: it does not, every reason is listed; 2: there is no snapshot that can be used.
    """
    from torpor.cli.snapshot import run_inspect  # noqa: PLC0415

    run_inspect(folder, as_json=as_json)


@snapshot.command()
def restore(
    folder: Folder,
    *,
    replicas: Annotated[int, typer.Option(help="How many copies to restore.")] = 1,
    host: Host = None,
    port: Port = None,
    verify: Annotated[str, typer.Option(help="fast: sizes and first bytes; full: hashes, too.")] = "fast",
    records: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Stage records go here; by default under the cache root.")
    ] = None,
    even_if_bad: Annotated[
        bool, typer.Option("--even-if-bad", help="Also a snapshot that is marked bad: its replicas did not wake.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore copies of a snapshot and serve until Ctrl-C, SIGTERM or a closed terminal, which end it as they end `up`.

    A copy that ends by itself is restored again, at first at once; SIGHUP does so for those that wait or were given up.
    """
    from torpor.cli.restore import run_restore  # noqa: PLC0415

    run_restore(
        folder=folder,
        replicas=replicas,
        host=host,
        port=port,
        verify=verify,
        as_json=as_json,
        records=records or "",
        even_if_bad=even_if_bad,
    )


Folders = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[DIR...]", help="More snapshots, or folders that hold some, besides the known ones."),
]


@snapshot.command("list")
def list_snapshots(folders: Folders = None, as_json: AsJson = False) -> None:
    """List the snapshots here: deployment, room on the disk, made, last used, and whether each fits.

    Those under the cache root, those that `create` and `up` put elsewhere, and kept weights.
    """
    from torpor.cli.catalog import run_list  # noqa: PLC0415

    run_list(folders or [], as_json=as_json)


@snapshot.command("prune")
def prune_snapshots(
    folders: Folders = None,
    *,
    keep: Annotated[
        int | None, typer.Option(metavar="N", help="Keep the N newest of each deployment, remove the others.")
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Remove those neither made nor used since, e.g. 7d; with --keep, N stay."),
    ] = None,
    unfit: Annotated[
        bool, typer.Option("--unfit", help="Remove those that are damaged, or do not fit this machine and their app.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove snapshots, and the kept weights that no other snapshot needs.

    Never one that a running server uses, and nothing that Torpor did not write for this user.
    """
    from torpor.cli.catalog import run_prune  # noqa: PLC0415

    run_prune(folders or [], keep=keep, older_than=older_than, unfit=unfit, dry_run=dry_run, as_json=as_json)


@snapshot.command()
def rm(folder: Folder) -> None:
    """Delete a snapshot; copies that run go on."""
    from torpor.cli.snapshot import run_rm  # noqa: PLC0415

    run_rm(folder)


@snapshot.command()
def weights(
    prune: Annotated[bool, typer.Option("--prune", help="Delete those that no snapshot needs.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the weights that are kept outside of snapshots, with the snapshots that need them."""
    from torpor.cli.snapshot import run_weights  # noqa: PLC0415

    run_weights(delete=prune, as_json=as_json)


@snapshot.command()
def setup(
    mirror: Annotated[
        str, typer.Option(help="Root of a Debian mirror; by default the one of this machine's apt.")
    ] = "",
    again: Annotated[bool, typer.Option("--again", help="Fetch it though it is there.")] = False,
) -> None:
    """Put CRIU into a private folder of this user, and try it: no root needed, nothing of the system is touched."""
    from torpor.cli.snapshot import run_setup  # noqa: PLC0415

    run_setup(mirror=mirror, again=again)


@snapshot.command()
def compare(
    app_file: AppFile,
    restores: Annotated[int, typer.Option(help="How many restores to time.")] = 3,
    host: Host = None,
    port: Port = None,
    as_json: AsJson = False,
) -> None:
    """Time one cold start against restores of the same app: process start to first token."""
    from torpor.cli.compare import run_compare  # noqa: PLC0415

    run_compare(app_file, restores=restores, as_json=as_json, host=host, port=port)


@app.command()
def bench(
    app_file: AppFile,
    *,
    starts: Annotated[int, typer.Option(help="How many starts of each kind; they take turns.")] = 5,
    backend: Annotated[str, typer.Option(help="criu or standby; by default criu where it works here.")] = "",
    json_file: Annotated[str, typer.Option("--json", metavar="FILE", help="Write JSON; - for standard output.")] = "",
    html_file: Annotated[str, typer.Option("--html", metavar="FILE", help="Write a page with charts.")] = "",
    host: Host = None,
    port: Port = None,
) -> None:
    """Time cold starts against restored starts (criu) or wakes (standby) of an app on this machine."""
    from torpor.cli.bench import run_bench  # noqa: PLC0415

    run_bench(
        app_file,
        starts=starts,
        backend=backend,
        json_file=json_file,
        html_file=html_file,
        host=host,
        port=port,
    )


@app.command()
def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="JSON of `torpor bench`, or stage records of `torpor up`.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="PAGE.html", help="Where to; by default standard output.")
    ] = "-",
) -> None:
    """Draw recorded starts as one HTML page that needs nothing else."""
    from torpor.cli.report import run_report  # noqa: PLC0415

    run_report(files, output=output)


@app.command()
def boots(
    app_name: Annotated[
        str, typer.Argument(metavar="[APP_NAME]", help="Name of an app on Modal, or its id (ap-...).")
    ] = "",
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Read this saved log; - is standard input.")] = None,
    hours: Annotated[float, typer.Option(help="How far back the app's log is read.")] = 24.0,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For fetching the log.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Show what an app's starts on Modal were: cold, restored, failed."""
    from torpor.cli.boots import run_boots  # noqa: PLC0415

    run_boots(app_name, file=file, hours=hours, timeout_s=timeout, as_json=as_json)


@app.command()
def probe(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where the server answers, without a path.")],
    *,
    model: Annotated[str, typer.Option(help="Served name; by default the first that the server lists.")] = "",
    prompt: Annotated[str, typer.Option(help="The question.")] = "Why is the sky blue? Answer in three sentences.",
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable with the bearer key; by default TORPOR_API_KEY.")
    ] = "",
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For all of it.")] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Wait for a server, stream one answer, tell its times.

    TORPOR_MODAL_KEY and TORPOR_MODAL_SECRET hold the proxy token for an app on Modal that demands one.

    Exit code 0: it answered; 1: no answer in time, or a refusal; 2: wrong input.
    """
    from torpor.cli.probe import run_probe  # noqa: PLC0415

    run_probe(
        url,
        model=model,
        prompt=prompt,
        max_tokens=max_tokens,
        key_env=key_env,
        timeout_s=timeout,
        as_json=as_json,
    )


@app.command()
def prewarm(
    target: Annotated[
        str, typer.Argument(metavar="URL|APP", help="URL of the server; or app file, or name, of a deployed app.")
    ],
    *,
    requests: Annotated[int, typer.Option(help="Concurrent requests of one round.")] = 16,
    attempts: Annotated[int, typer.Option(help="Rounds.")] = 8,
    pause: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Between two rounds, for the app to scale down.")
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For all of it.")] = 3600.0,
    as_json: AsJson = False,
) -> None:
    """Drive cold starts of a deployed app until restores begin.

    TORPOR_MODAL_KEY and TORPOR_MODAL_SECRET hold the proxy token for an app on Modal that demands one.

    Exit code 0: a restored start was seen; 1: it gave up; 2: wrong input.
    """
    from torpor.cli.prewarm import run_prewarm  # noqa: PLC0415

    run_prewarm(target, requests=requests, attempts=attempts, pause=pause, timeout_s=timeout, as_json=as_json)
