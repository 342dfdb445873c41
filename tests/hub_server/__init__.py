"""A small Hugging Face hub on loopback: what `huggingface_hub`'s own client needs to list and download a model.

    with HubServer({"org/tiny": Repository(files={"config.json": b"{}"}, lfs=("model.safetensors",))}) as hub:
        subprocess.run([...], env={"HF_ENDPOINT": hub.url})

It has the routes and headers that the client of 0.36 to 2.4 uses (`hf_api.py`, `file_download.py`, `utils/_http.py`):
`/api/models/R/revision/SHA`, `/api/models/R/tree/SHA` (paged by Link headers), `/R/resolve/SHA/PATH` (HEAD and GET,
ETag, X-Repo-Commit, X-Linked-Etag, X-Linked-Size, a redirect for LFS files), errors by X-Error-Code. Faults are fields.
"""

from __future__ import annotations

from tests.hub_server.repository import COMMIT, Repository
from tests.hub_server.server import HubServer, Seen

__all__ = ["COMMIT", "HubServer", "Repository", "Seen"]
