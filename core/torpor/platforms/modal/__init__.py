"""Modal: a deployment as a container image, the options of a class, and the class that carries the lifecycle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.platforms.modal.account import deployed_url, web_url
    from torpor.platforms.modal.server import (
        ClsOptions,
        Concurrency,
        DownloadOptions,
        SnapshotServer,
        cls_options,
        concurrency,
        download_options,
        fill_volumes,
        image,
    )
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
        "torpor.platforms.modal.server": (
            "ClsOptions",
            "Concurrency",
            "DownloadOptions",
            "SnapshotServer",
            "cls_options",
            "concurrency",
            "download_options",
            "fill_volumes",
            "image",
        ),
        "torpor.values.modal_options": ("ModalOptions",),
    },
)
