"""The commands of `torpor ray` and their options."""

from __future__ import annotations

from typing import Annotated

import typer

from torpor.cli import actions
from torpor.cli.options import AsJson, CommandGroup, Identity, StoreOptions, TrustedKeys, Unsigned
from torpor.cli.ray_file_commands import EXAMPLES, manifest, plan
from torpor.values.addresses import EVERYWHERE

__all__ = ["ray"]

ray = typer.Typer(
    cls=CommandGroup,
    help="Serve deployments on a Ray cluster, each to zero and back (Ray Serve).",
    no_args_is_help=True,
)
ray.command()(plan)
ray.command(epilog=EXAMPLES)(manifest)

AppFiles = Annotated[
    list[str], typer.Argument(metavar="APP...", help="App files; nodes have them at the same absolute paths.")
]
Address = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT", help="Head of the cluster; auto: the one on this machine, or what RAY_ADDRESS names."
    ),
]


Snapshots = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="Store with their snapshots, e.g. s3://bucket/snapshots. A replica takes the newest that fits its node; without one "
        "it starts cold.",
        show_default=False,
    ),
]
ServeHost = Annotated[str, typer.Option(metavar="ADDRESS", help="Serve listens here, if it does not run yet.")]
ServePort = Annotated[int, typer.Option(help="Port of Serve's HTTP address.")]
HeadOnly = Annotated[bool, typer.Option("--head-only", help="Requests come in at the head alone, not at every node.")]
Running = Annotated[float, typer.Option(metavar="SECONDS", help="Deadline for all of them to run.")]


@ray.command()
def up(
    files: AppFiles,
    *,
    snapshots: Snapshots = "",
    trust: TrustedKeys = None,
    unsigned: Unsigned = False,
    identity: Identity = None,
    address: Address = "auto",
    host: ServeHost = EVERYWHERE,
    port: ServePort = 8000,
    head_only: HeadOnly = False,
    timeout: Running = 600.0,
) -> None:
    """Deploy apps on a running cluster. Several models share one address: a request's `model` decides.

    Exit code 0: they run, at zero or with min_containers; 1: no cluster, or not in time; 2: wrong input, nothing was deployed.
    """
    store = StoreOptions(snapshots=snapshots, trust=trust, unsigned=unsigned, identity=identity)
    actions.run_ray_up(files, address, host=host, port=port, head_only=head_only, timeout_s=timeout, **store)


@ray.command()
def status(address: Address = "auto", as_json: AsJson = False) -> None:
    """Show what Torpor serves on the cluster, with the replicas of each deployment.

    Exit code 0: printed; 1: no cluster.
    """
    actions.run_ray_status(address, as_json=as_json)


@ray.command()
def down(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Deployments; by default all of Torpor's.")
    ] = None,
    address: Address = "auto",
) -> None:
    """Remove deployments from the cluster. Ray, and applications of others, stay.

    Exit code 0: removed; 1: no cluster, or still there after a minute; 2: there is no such deployment.
    """
    actions.run_ray_down(names or [], address=address)
