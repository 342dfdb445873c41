"""Names of GPUs: those that Modal rents out, and others. For a misspelt name it finds the one that was meant."""

from __future__ import annotations

import re
from difflib import get_close_matches

from torpor.errors import ConfigurationError
from torpor.values.field_types import shown

__all__ = ["MODAL", "OWN", "check_gpu_name", "gpu_model", "is_this_gpu"]

MODAL = (
    "T4",
    "L4",
    "A10",
    "A10G",
    "L40S",
    "A100",
    "A100-40GB",
    "A100-80GB",
    "RTX-PRO-6000",
    "H100",
    "H200",
    "B200",
    "B200+",
)
"""Modal's names (https://modal.com/docs/guide/gpu, November 2026), and A10G, which it still takes for A10."""

OWN = (
    *(
        "P100",
        "V100",
        "A2",
        "A16",
        "A30",
        "A40",
        "A800",
        "L2",
        "L20",
        "L40",
        "H20",
        "H800",
        "GH200",
        "GB10",
        "GB200",
        "B100",
    ),
    *(
        "B300",
        "GB300",
        "A2000",
        "A4000",
        "A4500",
        "A5000",
        "A5500",
        "A6000",
        "RTX-PRO-4000",
        "RTX-PRO-4500",
        "RTX-PRO-5000",
    ),
    *(
        "RTX2060",
        "RTX2070",
        "RTX2080",
        "RTX3060",
        "RTX3070",
        "RTX3080",
        "RTX3090",
        "RTX4060",
        "RTX4070",
        "RTX4080",
        "RTX4090",
    ),
    *("RTX5060", "RTX5070", "RTX5080", "RTX5090", "RTX4000", "RTX5000", "RTX6000", "RTX8000", "ANY"),
)
"""Names of cards that Modal does not have; `any` is any NVIDIA GPU."""

_SHAPE = re.compile(r"([A-Za-z0-9+-]+)(!?)(?::(\d{1,20}))?", re.ASCII)
_MOST = 8


def check_gpu_name(gpu: str, *, unlisted: bool) -> None:
    """Refuse a text that names no GPU.

    Args:
        gpu: as in `Deployment.gpu`.
        unlisted: whether the name may be one that is not listed here.

    Raises:
        ConfigurationError: says what was probably meant.
    """
    shape = _SHAPE.fullmatch(gpu)
    if shape is None:
        raise ConfigurationError(f"Deployment.gpu is {shown(gpu)}; write it like 'H100', 'H100!' or 'H100!:2'.")
    name, _, count = shape.groups()
    if count is not None and (not 1 <= int(count) <= _MOST or count.startswith("0")):
        raise ConfigurationError(
            f"Deployment.gpu is {gpu!r}, which asks for {count} GPUs; write it like 'H100!:2', with 1 to {_MOST} of them, or "
            "'H100!' for one. For an engine on the CPU leave gpu out."
        )
    if unlisted or _plain(name) in {_plain(known) for known in (*MODAL, *OWN)}:
        return
    close = get_close_matches(_plain(name), [_plain(known) for known in (*MODAL, *OWN)], n=3, cutoff=0.5)
    meant = [known for known in (*MODAL, *OWN) if _plain(known) in close]
    hint = (
        f" Did you mean {' or '.join(map(repr, sorted(meant, key=lambda known: close.index(_plain(known)))))}?"
        if meant
        else ""
    )
    raise ConfigurationError(
        f"Deployment.gpu is {shown(gpu)}, and no GPU of that name is known.{hint} Modal has {', '.join(MODAL)}. For another card "
        "of a machine of your own set Deployment.unlisted_gpu=True, or name it gpu='any'."
    )


def gpu_model(gpu: str | None) -> str:
    """The name without `!` and count; empty for no GPU."""
    return (gpu or "").partition(":")[0].rstrip("!")


def is_this_gpu(wanted: str, seen: str) -> bool:
    """Whether `wanted` (`RTX4090`) names the card that the driver calls `seen` (`NVIDIA GeForce RTX 4090`)."""
    if _plain(wanted) == "any":
        return True
    words = re.split(r"[^a-z0-9]+", seen.lower())
    parts = re.split(r"[^a-z0-9]+", re.sub(r"rtx(?=\d)", "rtx-", wanted.lower().rstrip("+")))
    return all(part in words for part in parts if part)


def _plain(name: str) -> str:
    return name.lower().replace("-", "")
