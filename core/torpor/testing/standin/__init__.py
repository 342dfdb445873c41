"""A stand-in for an engine: `python -m torpor.testing.standin --port 8000 [--dialect vllm] [--fault NAME]`.

A real process tree with a real HTTP server behind the real guard, ready in a fraction of a second, with faults on
request (`torpor.testing.faults`). It speaks one of two dialects: routes, health and sleep are those of the engine it
stands in for, and so is its end when the process that holds the "memory" fails.

    sglang    a second release or resume, or a health probe while asleep, ends the whole tree by SIGKILL
    vllm      a second sleep or wake is harmless, chats sent while asleep wait; an engine core that dies ends the server

Its flags are in `server`. It ignores unknown flags, so that a plugin's engine arguments do no harm.

Environment:
    TORPOR_BOOT_FD        the pipe with the guard's boot document; without it nothing is started
    TORPOR_UNGUARDED=1    start without a guard, for debugging
    VLLM_SERVER_DEV_MODE=1    vllm only: without it there are no management routes
"""
