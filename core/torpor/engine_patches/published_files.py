"""A compiled file that somebody may have loaded is never replaced by one of the same name.

Compile caches publish a file by renaming a new one over its name. On a cold cache two ranks, or two engines, compile the same
kernel at once. The second rename then deletes the file that the first process has loaded: its mappings show "(deleted)", and
the capture is refused, because no replica could open that file. These caches publish files that processes keep mapped:

    Triton              launcher stubs and cuda_utils: os.replace (3.5 and 3.9 runtime/cache.py, FileCacheManager.put)
    CuTe DSL            os.replace (torch 2.14 _inductor/runtime/cutedsl_cache.py)
    SGLang's extensions os.replace (0.5.23 rust_extensions/loader.py)
    Inductor, C++       built in place, under a FileLock (_inductor/codecache.py)
    FlashInfer          built in place by ninja; built and loaded under one FileLock (jit/core.py, JitSpec.build_and_load)
    tvm-ffi             built in place by ninja, under a FileLock (cpp/extension.py); SGLang's JIT kernels are built by it
    torch extensions    built in place, under a FileBaton (utils/cpp_extension.py)

The locked ones build once: whoever comes second finds nothing to do. Others publish files that are read and closed, which nobody
minds: DeepGEMM a folder with kernel.cubin, whose second rename fails (csrc/jit/compiler.hpp), Inductor's and vLLM's caches pickles
and JSON (codecache.py, write_atomic; vLLM compilation/decorators.py). So what has to change is a rename of one program file (ELF)
onto another. Two engines that start cold at once on one machine are held apart by the same rule.
"""

from __future__ import annotations

import filecmp
import functools
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from torpor.engine_patches.patches import Patch

if TYPE_CHECKING:
    from collections.abc import Callable

    Move = Callable[..., None]

__all__ = ["published_files"]

PathText: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
_ELF = b"\x7fELF"
_TRIES = 100
_NAMES = ("rename", "replace")


def published_files(versions: tuple[str, ...]) -> Patch:
    """Return the patch; `versions` are those of the engine with which it was tested.

    It changes `os.rename` and `os.replace` for program files: a name that exists keeps its file if both are equal. If they
    differ, the new file gets the name, and the old one goes on under another name in the same folder.
    """
    return Patch(
        name="published-files",
        reason=(
            "two ranks that compile the same kernel at once publish it twice; the second rename deletes the file that the first "
            "rank has loaded, and no capture can hold that"
        ),
        versions=versions,
        applies=lambda: True,
        apply=_keep_published,
    )


def _keep_published() -> None:
    for name in _NAMES:
        setattr(os, name, _keeping(getattr(os, name)))


def _keeping(move: Move) -> Move:
    @functools.wraps(move)
    def moved(src: PathText, dst: PathText, **folders: int | None) -> None:
        if any(folder is not None for folder in folders.values()) or not _published(src, dst, move):
            move(src, dst, **folders)

    return moved


def _published(src: PathText, dst: PathText, move: Move) -> bool:
    new = Path(os.fsdecode(src))
    return _is_program(new) and _publish(new, Path(os.fsdecode(dst)), move)


def _publish(new: Path, name: Path, move: Move) -> bool:
    """Give a file its name without deleting another one. False if it has to be renamed as usual.

    A check before a rename would leave a moment for the other process; a hard link is made only if the name is free.
    """
    for _ in range(_TRIES):
        try:
            os.link(new, name)
        except FileExistsError:
            match _in_the_way(new, name):
                case "another kind":
                    return False
                case "other content":
                    _set_aside(name, move)
                    continue
                case "nothing":
                    continue
        except OSError:  # a file system without hard links, or another one: the rename says what is wrong
            return False
        new.unlink()
        return True
    return False


def _in_the_way(new: Path, name: Path) -> Literal["equal", "other content", "another kind", "nothing"]:
    """What has the name that a file is to get."""
    try:
        if new.samefile(name) or not _is_program(name):
            return "another kind"
        return "equal" if filecmp.cmp(new, name, shallow=False) else "other content"
    except FileNotFoundError:
        return "nothing"


def _set_aside(path: Path, move: Move) -> None:
    """Give a file another name, so that a process that has loaded it still finds it."""
    try:
        move(path, f"{path}.{secrets.token_hex(4)}.replaced")
    except FileNotFoundError:
        return  # another process did


def _is_program(path: Path) -> bool:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(len(_ELF)) == _ELF
    except OSError:
        return False
