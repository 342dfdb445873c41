"""Stands in for an engine's tree in dumps and restores: a listener, a child, memory, open files, locks and shared memory.

Run with megabytes of memory to hold; listens on 127.0.0.1:8000 and answers each connection with one JSON line of what it
still has. Given `log`, it prints without end.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import mmap
import os
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

megabytes = int(sys.argv[1])
memory = os.urandom(1 << 20) * megabytes
held = tempfile.NamedTemporaryFile(prefix="held")  # noqa: SIM115 - open for as long as this runs
held.write(b"content")
held.flush()
fcntl.flock(held, fcntl.LOCK_EX)
nameless = tempfile.TemporaryFile()  # noqa: SIM115
nameless.write(b"nameless")
nameless.flush()
with Path("/dev/shm/segment").open("w+b") as segment:
    segment.truncate(1 << 16)
    shared = mmap.mmap(segment.fileno(), 1 << 16)
shared[:6] = b"shared"
local = socket.socket(socket.AF_UNIX)
local.bind(os.environ["TMPDIR"] + "/local")
local.listen()
listener = socket.create_server(("127.0.0.1", 8000))
pair = socket.create_connection(listener.getsockname())  # an established connection inside the tree
accepted, _ = listener.accept()
asked, ask = os.pipe()
told, tell = os.pipe()
child = os.fork()
if child == 0:
    while os.read(asked, 1):
        os.write(tell, f"{os.getpid():5}".encode())
    os._exit(0)
threading.Thread(target=threading.Event().wait, daemon=True).start()
if "log" in sys.argv:
    threading.Thread(
        target=lambda: deque(print(number, flush=True) for number in itertools.count()), daemon=True
    ).start()
print("up", flush=True)
while True:
    connection, _ = listener.accept()
    os.write(ask, b"?")
    answer = {
        "pid": os.getpid(),
        "child": int(os.read(told, 5)),
        "session": os.getsid(0),
        "memory": hashlib.sha256(memory).hexdigest() if megabytes else "",
        "held": Path(held.name).read_text(),
        "nameless": os.pread(nameless.fileno(), 100, 0).decode(),
        "shared": shared[:6].decode(),
        "threads": threading.active_count(),
        "monotonic": time.monotonic(),
    }
    connection.sendall(json.dumps(answer).encode() + b"\n")
    connection.close()
