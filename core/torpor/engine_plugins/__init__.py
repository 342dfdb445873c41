"""What engine plugins are made of: what is the same for every engine that is an OpenAI-like HTTP server.

    chat_server      the plugin base class: options, guard rules, launch and warm-up
    gpus             how many GPUs an engine takes, against how many the deployment has
    flags            options as an engine's command line, one record per flag, per version
    reserved         flags and variables that nobody else may give, each with the reason
    warmup           the chat-shaped requests of a warm-up
    kernel_caches    homes for the caches of Triton, Inductor, FlashInfer, ...

An engine's plugin adds what only its engine has: the table of flags, the routes, the calls of its sleep and wake. Its
launcher, which runs in the engine's process, is made of `torpor.launcher`.
"""

from __future__ import annotations
