"""The commands and their options. What a command does is in a module of its own (`torpor.cli.actions`)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torpor._version import __version__
from torpor.cli import actions
from torpor.cli.options import (
    AppFile,
    AsJson,
    Ask,
    Backend,
    CommandGroup,
    Documents,
    EngineMetrics,
    Gpus,
    Host,
    Identity,
    KeyFile,
    LongWaiting,
    Metrics,
    Port,
    Prove,
    Question,
    Records,
    Served,
    Snapshot,
    SoundFile,
    TaskName,
    TrustedKeys,
    Unsigned,
    Waiting,
    checked_question,
    keep_named,
)
from torpor.cli.ray_commands import ray
from torpor.cli.snapshot_commands import snapshot
from torpor.cli.terminal import DEBUG_VARIABLE, claim_output
from torpor.network.light_httpx import leave_command_line_out

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["app", "run"]

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
torpor new my-texts --task embed  torpor-my-texts/, with an app that serves embeddings
"""

_WIDEST_HELP = 120

app = typer.Typer(
    name="torpor",
    cls=CommandGroup,
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
key = typer.Typer(
    cls=CommandGroup,
    help="Keys: bearer keys for the public paths, and keys for snapshots in a store.",
    no_args_is_help=True,
)
app.add_typer(key, name="key")
app.add_typer(snapshot, name="snapshot")
app.add_typer(ray, name="ray")


def run(words: Sequence[str]) -> None:
    """Run a command line, to its end.

    Args:
        words: of the line, without the program.
    """
    leave_command_line_out()
    keep_named(app, words)
    app(words)


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
        os.environ[DEBUG_VARIABLE] = "1"


@app.command()
def plan(
    app_file: AppFile,
    diff: Annotated[
        str, typer.Option(metavar="OTHER", help="Show what differs in another app file, or in a saved plan (.json).")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show everything that an app will do, without doing it."""
    actions.show_plan(app_file, other=diff, as_json=as_json)


@app.command()
def up(
    app_file: AppFile,
    *,
    backend: Backend = None,
    snapshot: Snapshot = "",
    trust: TrustedKeys = None,
    unsigned: Unsigned = False,
    identity: Identity = None,
    ask: Ask = None,
    records: Records = None,
    prove: Prove = None,
    host: Host = None,
    port: Port = None,
    gpus: Gpus = "",
    metrics: Metrics = "",
    engine_metrics: EngineMetrics = False,
    as_json: AsJson = False,
) -> None:
    """Run an app's whole lifecycle on this machine.

    SIGUSR1 puts the engine to sleep, SIGUSR2 wakes it. One that ends by itself is started again. Ctrl-C, SIGTERM or a hang-up
    finishes requests in flight, for at most drain_timeout_s, and exits with 0; a second signal ends it at once (130).
    """
    claim_output()
    source = actions.source_of(snapshot, trust=trust, unsigned=unsigned, identity=identity)
    actions.run_up(
        app_file,
        backend=backend,
        snapshot=Path(snapshot) if snapshot and source is None else None,
        source=source,
        question=checked_question("--ask", ask),
        as_json=as_json,
        records=records,
        prove=prove,
        host=host,
        port=port,
        gpus=gpus,
        metrics=(metrics, engine_metrics),
    )


@app.command()
def serve(
    app_files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[APP]...", help="App files, each with one deployment.", show_default=False),
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Configuration (TOML): budget, and terms of each deployment."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Show what would be served, and serve nothing.")] = False,
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Listen on this address; 127.0.0.1 by default.", show_default=False),
    ] = None,
    port: Annotated[int | None, typer.Option(help="The public port; 8000 by default.", show_default=False)] = None,
    metrics: Metrics = "",
    engine_metrics: EngineMetrics = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Show what would be served as JSON, and serve nothing.")
    ] = False,
) -> None:
    """Serve several deployments at one OpenAI-compatible address, each to zero and back.

    A request's model decides which deployment answers. It is restored, woken or started cold when a request comes, and falls
    asleep and to disk when none comes. SIGHUP, or a change of a file, reads configuration and apps again. Ctrl-C or SIGTERM
    ends it: it finishes requests in flight. docs/serve.md has the configuration.
    """
    claim_output()
    actions.run_serve(
        app_files or [],
        config=config,
        host=host,
        port=port,
        check=check,
        as_json=as_json,
        metrics=metrics,
        engine_metrics=engine_metrics,
    )


@app.command()
def wake(deployment: Served) -> None:
    """Have `torpor serve` start or wake a deployment, without a request."""
    actions.run_control(deployment, "wake")


@app.command()
def sleep(deployment: Served) -> None:
    """Have `torpor serve` let a deployment fall one state, once no request is in flight."""
    actions.run_control(deployment, "sleep")


@app.command()
def pin(
    deployment: Served,
    *,
    off: Annotated[bool, typer.Option("--off", help="Let it fall again.")] = False,
) -> None:
    """Have `torpor serve` keep a deployment: neither idle time nor another deployment's need lets it fall."""
    actions.run_control(deployment, "unpin" if off else "pin")


@app.command()
def status(
    deployment: Annotated[str, typer.Argument(metavar="[NAME]", help="Only servers of this deployment.")] = "",
    *,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds, until Ctrl-C.")] = False,
    key: Annotated[bool, typer.Option("--key", help="Print the key of the control page of `torpor serve`.")] = False,
) -> None:
    """Show which servers run here: replicas with state, pid, start, restarts and memory; address, snapshot, last event.

    Exit code 0; with NAME 1 if no server of that name serves with all its replicas.
    """
    actions.run_status(deployment, as_json=as_json, watch=watch, key=key)


@app.command()
def logs(
    name: Annotated[
        str,
        typer.Argument(metavar="[APP|REPLICA]", help="App file, deployment or replica; by default all that run here."),
    ] = "",
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines as they come, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", help="Show the last N lines of each log.")] = 100,
) -> None:
    """Show what engines print: those of all replicas that run, or of the one that ended last.

    Exit code 0; 1: there is no log yet; 2: there is no log of that name.
    """
    actions.run_logs(name, follow=follow, lines=lines)


@app.command()
def doctor(
    app_file: Annotated[
        str,
        typer.Argument(metavar="[APP]", help="App file with a deployment; without one, only the machine is checked."),
    ] = "",
    *,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Read all files that the app's plugins downloaded here, and compare them.")
    ] = False,
    platform: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="modal|here",
            help="Check the app for Modal or for this machine; by default for Modal if the file has a modal.App and this "
            "machine lacks the GPU.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Find what blocks an app's start, and what this machine lacks for snapshots, with what to do about it.

    Exit code 0: no problems; 1: warnings; 2: errors.
    """
    actions.run_doctor(app_file, as_json=as_json, recheck=recheck, platform=platform)


@app.command()
def plugins(as_json: AsJson = False) -> None:
    """List the installed plugins and their hooks."""
    actions.list_plugins(as_json=as_json)


@app.command(epilog=_NEW_EXAMPLES)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin, e.g. prompt-file.")],
    *,
    engine: Annotated[
        bool, typer.Option("--engine", help="Write a plugin that launches an engine; it brings a small one.")
    ] = False,
    task: Annotated[
        str,
        typer.Option(
            metavar="TASK",
            help="What its app serves and the plugin asks: chat, generate, embed, rerank, score, classify or transcribe.",
        ),
    ] = "chat",
    into: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The project's folder, new or empty; by default torpor-NAME, here."),
    ] = None,
) -> None:
    """Write a complete plugin project: package, hooks, contract test, an app to try it in, CI.

    Exit code 0: the project is complete; 2: the name or the folder cannot be used, and nothing was written.
    """
    actions.run_new(name, engine=engine, into=into, task=task)


@key.command("new")
def new_key(as_json: AsJson = False) -> None:
    """Print a new key and its SHA-256; nothing is stored.

    The key is for the clients ("Authorization: Bearer KEY"), the SHA-256 for the deployment.
    """
    actions.show_new_key(as_json=as_json)


@key.command("signing")
def new_signing_key(file: KeyFile, as_json: AsJson = False) -> None:
    """Make a key that signs snapshots in a store: the private one in FILE, the public one in FILE.pub.

    `torpor snapshot push --key FILE` signs; `torpor snapshot pull --trust FILE.pub` demands that signature.
    """
    actions.run_new_signing_key(file, as_json=as_json)


@key.command("encryption")
def new_identity(file: KeyFile, as_json: AsJson = False) -> None:
    """Make an age identity in FILE that decrypts snapshots of a store, and print its recipient.

    `torpor snapshot push --recipient` encrypts for it; `torpor snapshot pull --identity FILE` decrypts.
    """
    actions.run_new_identity(file, as_json=as_json)


@app.command()
def bench(
    app_file: AppFile,
    *,
    starts: Annotated[int, typer.Option(help="How many starts of each kind; the kinds take turns.")] = 5,
    backend: Annotated[str, typer.Option(help="criu or standby; by default criu if it works here.")] = "",
    json_file: Annotated[str, typer.Option("--json", metavar="FILE", help="Write JSON; - for standard output.")] = "",
    html_file: Annotated[str, typer.Option("--html", metavar="FILE", help="Write a page with charts.")] = "",
    host: Host = None,
    port: Port = None,
) -> None:
    """Time cold starts against restored starts (criu) or wakes (standby) of an app on this machine."""
    actions.run_bench(
        app_file, starts=starts, backend=backend, json_file=json_file, html_file=html_file, host=host, port=port
    )


@app.command()
def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="JSON of `torpor bench`, or stage records of `torpor up`.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="PAGE.html", help="Write the page here; - is standard output.")
    ] = "-",
) -> None:
    """Draw recorded starts as one HTML page without further files."""
    actions.run_report(files, output=output)


@app.command()
def boots(
    app_name: Annotated[
        str, typer.Argument(metavar="[APP_NAME]", help="Name of an app on Modal, or its id (ap-...).")
    ] = "",
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Read this saved log; - is standard input.")] = None,
    hours: Annotated[float, typer.Option(help="How many hours back the app's log is read.")] = 24.0,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Deadline for fetching the log.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Show the starts of an app on Modal: cold, restored, failed."""
    actions.run_boots(app_name, file=file, hours=hours, timeout_s=timeout, as_json=as_json)


@app.command()
def probe(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server's URL, without a path.")],
    *,
    model: Annotated[str, typer.Option(help="Served model; by default the first that the server lists.")] = "",
    task: TaskName = "chat",
    prompt: Question = "Why is the sky blue? Answer in three sentences.",
    document: Documents = None,
    sound: SoundFile = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable with the bearer key; by default TORPOR_API_KEY.")
    ] = "",
    timeout: Waiting = None,
    as_json: AsJson = False,
) -> None:
    """Wait for a server, ask it once and show how long each part took; a chat is streamed.

    TORPOR_MODAL_KEY and TORPOR_MODAL_SECRET hold the proxy token for an app on Modal that demands one.

    Exit code 0: it answered; 1: no answer in time, or a refusal; 2: wrong input.
    """
    given = actions.Probe(
        task=task,
        model=model,
        prompt=prompt,
        documents=document or (),
        sound=sound,
        max_tokens=max_tokens,
        key_env=key_env,
        timeout_s=timeout,
    )
    actions.run_probe(url, given, as_json=as_json)


@app.command()
def prewarm(
    target: Annotated[
        str, typer.Argument(metavar="URL|APP", help="The server's URL; or app file, or name, of a deployed app.")
    ],
    *,
    requests: Annotated[int, typer.Option(help="Concurrent requests in each round.")] = 16,
    attempts: Annotated[int, typer.Option(help="Number of rounds.")] = 8,
    pause: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Pause between two rounds, so that the app scales down.")
    ] = None,
    timeout: LongWaiting = None,
    as_json: AsJson = False,
) -> None:
    """Start a deployed app cold, again and again, until its starts are restored from a snapshot.

    TORPOR_MODAL_KEY and TORPOR_MODAL_SECRET hold the proxy token for an app on Modal that demands one.

    Exit code 0: a restored start was seen; 1: it gave up; 2: wrong input.
    """
    actions.run_prewarm(target, requests=requests, attempts=attempts, pause=pause, timeout_s=timeout, as_json=as_json)
