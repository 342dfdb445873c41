"""The NCCL that torch would load in this interpreter: its file and version, as one line of JSON.

It is run by the engine's own interpreter, as `python -c`, and imports neither torch nor anything of Torpor. torch's library names
the folder beside torch in its RPATH, which the loader searches before LD_LIBRARY_PATH; the wheels nvidia-nccl-cu12 and -cu13
both put their file there. NCCL needs no GPU to say its version.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from pathlib import Path

__all__ = ["look"]

_FILE = "nvidia/nccl/lib/libnccl.so.2"


def look() -> dict[str, object]:
    """Find the library and ask it.

    Returns:
        `torch`, whether torch is installed; `file` and `code` (of `ncclGetVersion`) where a library was found; `against`, why not.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {"torch": False, "against": "torch is not installed"}
    places = [Path(spec.origin).parent.parent, *map(Path, sys.path)]
    file = next((str(place / _FILE) for place in places if (place / _FILE).is_file()), "libnccl.so.2")
    code = ctypes.c_int()
    try:
        answer = ctypes.CDLL(file).ncclGetVersion(ctypes.byref(code))
    except (OSError, AttributeError) as error:
        return {"torch": True, "against": str(error)}
    if answer != 0:
        return {"torch": True, "against": f"ncclGetVersion of {file} gave {answer}"}
    return {"torch": True, "file": file, "code": code.value}


if __name__ == "__main__":
    print(json.dumps(look()))
