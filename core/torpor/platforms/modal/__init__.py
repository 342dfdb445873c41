"""Modal: what an app file needs to serve a deployment there.

app = modal.App(deployment.name)

@app.cls(**cls_options(deployment))
@modal.concurrent(**concurrency(deployment))
class Server(SnapshotServer, deployment=deployment):
...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.platforms.modal.account import deployed_url, web_url
    from torpor.platforms.modal.class_options import (
        ClsOptions,
        Concurrency,
        DownloadOptions,
        cls_options,
        concurrency,
        download_options,
        fill_volumes,
    )
    from torpor.platforms.modal.container_image import image
    from torpor.platforms.modal.server import SnapshotServer
    from torpor.values.modal_options import ModalOptions

__all__ = [
    "ClsOptions",
    "Concurrency",
    "DownloadOptions",
    "ModalOptions",
    "SnapshotServer",
    "cls_options",
    "concurrency",
    "deployed_url",
    "download_options",
    "fill_volumes",
    "image",
    "web_url",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.platforms.modal.account": ("deployed_url", "web_url"),
        "torpor.platforms.modal.class_options": (
            "ClsOptions",
            "Concurrency",
            "DownloadOptions",
            "cls_options",
            "concurrency",
            "download_options",
            "fill_volumes",
        ),
        "torpor.platforms.modal.container_image": ("image",),
        "torpor.platforms.modal.server": ("SnapshotServer",),
        "torpor.values.modal_options": ("ModalOptions",),
    },
)
