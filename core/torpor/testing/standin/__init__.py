"""A stand-in for an engine: `python -m torpor.testing.standin --port 8000 [--dialect vllm] [--fault NAME]`.

It is a process tree with a real HTTP server behind the real guard, and is ready in a fraction of a second. It shows faults
on request (`torpor.testing.faults`). It has two dialects. The dialect sets the routes, health and sleep, and how the
server ends when the process that holds the "memory" fails.

    sglang    a second release or resume, or a health probe while asleep, ends the whole tree by SIGKILL
    vllm      a second sleep or wake is harmless, and chats wait while it sleeps; a dead engine core ends the server

With `--tp-size N` it has N schedulers that share the model, and one of them can fail on its own (`ranks`).

`server` defines its flags. It ignores unknown flags, so that it accepts the engine arguments of any plugin.

Environment:
    TORPOR_BOOT_FD        the pipe with the guard's boot document; without it the server does not start
    TORPOR_UNGUARDED=1    start without a guard, for debugging
    VLLM_SERVER_DEV_MODE=1    vllm only: adds the management routes
"""
