"""Compiling the virtual accelerators: once per torch, Python and source text, then loaded from a cache."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

__all__ = ["CompileError", "compiled", "load_extension", "missing"]

NAME = "virtual_accelerators"
SOURCES = Path(__file__).parent / "csrc"
OLDEST_TORCH = (2, 10)  # the oldest that the source text has been compiled for
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", f"-DTORCH_EXTENSION_NAME={NAME}")
LIBRARIES = ("-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python")


class CompileError(RuntimeError):
    """The compiler refused the source text; the message holds what it said."""


def missing() -> str | None:
    """What this machine lacks to have virtual accelerators, in words; None if it lacks nothing."""
    import torch

    if sys.platform != "linux":
        return "the virtual accelerators are only built on Linux"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        return f"the virtual accelerators need torch {'.'.join(map(str, OLDEST_TORCH))}; this is {torch.__version__}"
    if shutil.which(compiler()[0]) is None:
        return f"no C++ compiler: {compiler()[0]} is not installed"
    return None


def compiler() -> list[str]:
    """The command of the C++ compiler, from CXX if that is set."""
    return shlex.split(os.environ.get("CXX", "c++"))


def load_extension() -> ModuleType:
    """The extension as a module, compiled first if need be.

    Cost: a quarter of a minute the first time, then that of loading a shared library.
    """
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(compiled()))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def compiled(cache: Path | None = None) -> Path:
    """The shared library's file, in `cache`.

    Raises:
        CompileError: with what the compiler said.

    Guarantee: of several processes that ask at once, one compiles and the others wait; a file is complete or absent.
    """
    folder = cache or default_cache()
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{NAME}-{fingerprint()}.so"
    with locked(folder / "lock"):
        if not library.exists():
            compile_to(library)
    return library


def default_cache() -> Path:
    """Where compiled libraries are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "device-map-planner" / "rig"


def fingerprint() -> str:
    """Changes with whatever the library depends on."""
    import torch

    parts = [torch.__version__, str(torch.version.git_version), sys.implementation.cache_tag or "", *FLAGS]
    parts += compiler()
    for source in sorted(SOURCES.iterdir()):
        parts += [source.name, source.read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Nobody else is inside while we are; released by the system if the process dies."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def compile_to(library: Path) -> None:
    """One call of the compiler, under another name until the file is complete."""
    from torch.utils.cpp_extension import include_paths, library_paths

    folders = [*include_paths(), sysconfig.get_paths()["include"]]
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    command = [
        *compiler(),
        *FLAGS,
        *(part for folder in folders for part in ("-isystem", folder)),
        str(SOURCES / f"{NAME}.cpp"),
        "-o",
        unfinished,
        *(f"-L{folder}" for folder in library_paths()),
        *LIBRARIES,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        os.unlink(unfinished)
        raise CompileError(done.stderr)
    os.chmod(unfinished, 0o755)
    os.replace(unfinished, library)
