"""Keep handles of processes across a capture, as an engine's watchdog does, and report on them to each connection."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess

from torpor.engine_patches.process_identity import keep_process_identities, restored

keep_process_identities()

import psutil  # noqa: E402 - after the call, as in a launcher

child = subprocess.Popen(["sleep", "600"])
ended = subprocess.Popen(["true"])
handles = {"self": psutil.Process(), "child": psutil.Process(child.pid)}
handles["child of a fork's parent"] = psutil.Process(child.pid)
gone = psutil.Process(ended.pid)
ended.wait()
members = {handles["child"]}
handles["child"].cpu_percent()
list(psutil.process_iter())
asked, ask = os.pipe()
told, tell = os.pipe()
if os.fork() == 0:  # a fork keeps its parent's handles and has an identity of its own
    parent = psutil.Process().parent()
    assert parent is not None
    while os.read(asked, 1):
        os.write(tell, b"1" if parent.is_running() and handles["child"].is_running() else b"0")
    os._exit(0)
listener = socket.create_server(("127.0.0.1", 8000))
print("up", flush=True)
while True:
    connection, _ = listener.accept()
    os.write(ask, b"?")
    answer: dict[str, object] = {name: handle.is_running() for name, handle in handles.items()}
    answer["in the fork"] = os.read(told, 1) == b"1"
    answer["equal"] = handles["child"] == psutil.Process(child.pid)
    answer["found in a set"] = psutil.Process(child.pid) in members
    answer["percent"] = handles["child"].cpu_percent() >= 0
    answer["parent"] = handles["child"].parent() == handles["self"]
    answer["listed"] = handles["child"] in list(psutil.process_iter())
    answer["one that ended"] = not gone.is_running()
    answer["restores"] = restored()
    with contextlib.suppress(psutil.NoSuchProcess):
        handles["child"].send_signal(signal.SIGCONT)
        answer["signalled"] = True
    connection.sendall(json.dumps(answer).encode() + b"\n")
    connection.close()
