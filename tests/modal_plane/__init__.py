"""A loopback Modal control plane for the real, unmodified client: `modal deploy`, `modal run`, `python app.py`.

    with ModalPlane(tmp_path) as plane:
        assert plane.modal("deploy", "app.py", cwd=tmp_path).code == 0
        assert plane.app("name").service("Server").gpu == ("H100!", 1)

It is built on `modal_proto`, the message definitions in the client's own wheel. It records every request, keeps the created
objects, and answers everything that needs no container: images are "built" at once, files and blobs are kept. Calls of
functions fail with a message that says so, or return a value that the test gave.
"""

from tests.modal_plane.container import Container
from tests.modal_plane.plane import Finished, ModalPlane
from tests.modal_plane.reader import DeployedApp, DeployedFunction, Layer, WebServer
from tests.modal_plane.store import LogEntry

__all__ = ["Container", "DeployedApp", "DeployedFunction", "Finished", "Layer", "LogEntry", "ModalPlane", "WebServer"]
