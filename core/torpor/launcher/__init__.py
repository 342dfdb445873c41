"""What the launchers of engines are made of: the code that runs inside the engine's own process.

A launcher is a module of an engine's plugin (`python -m torpor_sglang.serve`, `python -m torpor_vllm.serve`), run by the
engine's interpreter: it takes the guard's boot document, applies the plugin's patches and starts the engine's own server.

    boot            the boot document, the end of the tree on SIGTERM, the line that says what was started
    versions        which version of the engine is installed, and whether it is one that was checked
    patches         named changes to the running engine, each with its reason, each to be switched off
    after_import    a change to a module of the engine's as soon as it is imported
    http_limits     limits on heads, with limited_h11 and limited_httptools, uvicorn's two parsers that keep them
    public_requests what a public request may carry: media, templates, token ids, fields
    guarded_app     the guard as the outermost layer of a Starlette application
    orphans, tqdm_lock, tile_permission    what every engine's processes need

Nothing but the standard library is needed here: the engine's packages are the engine's business. Where one of them is
changed, it is asked for first.
"""

from __future__ import annotations
