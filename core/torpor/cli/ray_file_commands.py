"""`torpor ray plan` and `torpor ray manifest`: their options. Both read app files alone and need no Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from torpor.cli import actions
from torpor.cli.options import AsJson  # noqa: TC001 - typer reads the annotations

if TYPE_CHECKING:
    from torpor.cli.ray_manifest import Pods, StoreOnNodes

__all__ = ["EXAMPLES", "manifest", "plan"]

EXAMPLES = """Examples:

\b
torpor ray manifest apps/small.py > serve.yaml                               serve deploy serve.yaml
torpor ray manifest apps/*.py --kubernetes --image registry.example/torpor:1 \\
    --snapshots s3://bucket/snapshots > service.yaml                         kubectl apply -f service.yaml
"""

AppFiles = Annotated[list[str], typer.Argument(metavar="APP...", help="App files, each with one deployment.")]
Store = Annotated[
    str,
    typer.Option(metavar="URL", help="Store with snapshots, e.g. s3://bucket/snapshots.", show_default=False),
]
Trust = Annotated[
    str, typer.Option(metavar="FILE", help="Trusted public keys, a path on the nodes.", show_default=False)
]
Unsigned = Annotated[bool, typer.Option("--unsigned", help="Accept snapshots that no trusted key signed.")]
Identity = Annotated[
    str,
    typer.Option(metavar="FILE", help="age identity for encrypted snapshots, a path on the nodes.", show_default=False),
]
AppFolder = Annotated[
    str,
    typer.Option(
        metavar="DIR",
        help="Folder of the app files on the nodes, or in the image; by default the paths that they have here.",
        show_default=False,
    ),
]
Kubernetes = Annotated[bool, typer.Option("--kubernetes", help="Print a RayService for KubeRay.")]
Image = Annotated[
    str,
    typer.Option(
        metavar="IMAGE", help="Image with Torpor, Ray, engine, CRIU and app files; with a tag.", show_default=False
    ),
]
Name = Annotated[
    str, typer.Option(metavar="NAME", help="Name of the RayService; torpor by default.", show_default=False)
]
Namespace = Annotated[
    str, typer.Option(metavar="NAME", help="Namespace; by default that of kubectl.", show_default=False)
]
CacheFolder = Annotated[
    str,
    typer.Option(
        metavar="DIR",
        help="Folder of each machine that keeps snapshots; /var/lib/torpor by default.",
        show_default=False,
    ),
]
Selectors = Annotated[
    list[str] | None,
    typer.Option(
        "--node-selector",
        metavar="[GROUP:]KEY=VALUE",
        help="Label of the machines of a group of nodes, or of all groups with GPUs. May be repeated.",
        show_default=False,
    ),
]
Tolerations = Annotated[
    list[str] | None,
    typer.Option(
        "--toleration",
        metavar="KEY[=VALUE][:EFFECT]",
        help="Taint that all groups accept. May be repeated.",
        show_default=False,
    ),
]
Account = Annotated[
    str, typer.Option(metavar="NAME", help="Service account of the pods, e.g. to read a bucket.", show_default=False)
]
Secret = Annotated[
    str, typer.Option(metavar="NAME", help="Secret whose entries become variables of the pods.", show_default=False)
]
RayVersion = Annotated[
    str, typer.Option(metavar="X.Y.Z", help="Ray in the image; 2.60.0 by default.", show_default=False)
]


def plan(files: AppFiles, *, snapshots: Store = "", app_folder: AppFolder = "", as_json: AsJson = False) -> None:
    """Show what a Ray cluster would serve: applications, routes, nodes, variables, and what is refused.

    Exit code 0: Ray can serve all of it; 2: not all, or wrong input.
    """
    actions.run_ray_plan(files, snapshots=snapshots, app_folder=app_folder, as_json=as_json)


def manifest(
    files: AppFiles,
    *,
    snapshots: Store = "",
    trust: Trust = "",
    unsigned: Unsigned = False,
    identity: Identity = "",
    app_folder: AppFolder = "",
    kubernetes: Kubernetes = False,
    image: Image = "",
    name: Name = "",
    namespace: Namespace = "",
    cache: CacheFolder = "",
    node_selectors: Selectors = None,
    tolerations: Tolerations = None,
    service_account: Account = "",
    secret: Secret = "",
    ray_version: RayVersion = "",
) -> None:
    """Print the configuration file for `serve deploy`, or the manifest of a RayService for `kubectl apply`.

    Exit code 0: printed; 2: wrong input, or Ray cannot serve a deployment.
    """
    pods: Pods = {"image": image, "name": name, "namespace": namespace, "cache": cache, "ray_version": ray_version}
    pods |= {"node_selector": node_selectors or [], "toleration": tolerations or []}
    pods |= {"service_account": service_account, "secret": secret}
    store: StoreOnNodes = {"snapshots": snapshots, "trust": trust, "unsigned": unsigned, "identity": identity}
    actions.run_ray_manifest(files, store=store | {"app_folder": app_folder}, kubernetes=kubernetes, pods=pods)
