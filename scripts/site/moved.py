"""Addresses of the site that moved: a link to an old one still leads to what it named.

Sections moved to other pages. A browser does not send the part after `#` to a server, so a small script on every page looks it up.
"""

from __future__ import annotations

import json

__all__ = ["MOVED", "SCRIPT", "script"]

SCRIPT = "moved.js"
"""Its name in the site's folder."""

MOVED = {
    "canary.html#measurements": "lab-notes.html#the-canary",
    "serve.html#what-it-costs-and-what-it-loses": "lab-notes.html#several-models-at-one-address",
    "snapshots.html#any-gpu-of-the-machine": "gpu-snapshots.html#any-gpu-of-the-machine",
    "snapshots.html#how-a-replica-gets-its-memory": "image.html#how-a-replica-gets-its-memory",
    "snapshots.html#several-gpus-in-one-snapshot": "gpu-snapshots.html#several-gpus-in-one-snapshot",
    "snapshots.html#what-a-restore-takes-besides-criu-and-the-engine": (
        "image.html#what-a-restore-takes-besides-criu-and-the-engine"
    ),
    "snapshots.html#what-is-in-an-image": "image.html#what-is-in-an-image",
    "snapshots.html#why-gvisor-is-not-a-backend-yet": "gvisor.html",
    "tasks.html#what-was-run": "lab-notes.html#tasks-and-routes",
}
"""New addresses by old ones. An old section that is still on its page is not looked up."""

_SCRIPT = """// Sections that moved to another page: written by scripts/site/moved.py.
const moved = {table};
function follow() {{
  const here = location.pathname.split("/").pop() + location.hash;
  if (here in moved && !document.getElementById(location.hash.slice(1))) location.replace(moved[here]);
}}
follow();
addEventListener("hashchange", follow);
"""


def script() -> str:
    """The script's text."""
    return _SCRIPT.format(table=json.dumps(MOVED, indent=2))
