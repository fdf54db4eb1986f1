"""accelerate's test files, which only its source distribution has, fetched once into a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FILES", "PARTS", "VERSION", "UnreachableError", "Upstream", "fetched"]

VERSION = "1.15.0"
FILES = ("test_modeling_utils", "test_big_modeling", "test_hooks", "test_offload", "test_accelerator")
# Of the last one, what saves and loads models; the rest is training, and takes minutes.
PARTS = {
    "test_accelerator": ("test_save_model", "test_save_sharded_model", "test_get_state_dict_from_offload")
}
SOURCES = (
    f"accelerate=={VERSION} --hash=sha256:5654f8c5eaa0d4fa68b33e287a97765da6849bf6d51dcac874e73fbbddfb6134"
)
NEEDED = "parameterized==0.9.0"  # what those files import and nothing else here does


class UnreachableError(RuntimeError):
    """The package index did not give what was asked; the message is pip's."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where the files are.

    Args:
        tests: folder of accelerate's test files.
        packages: folder to import from what they need in addition.
    """

    tests: Path
    packages: Path


def fetched() -> Upstream:
    """The test files, from the cache if they are in it.

    Raises:
        UnreachableError: they are not, and the package index could not be reached.
    """
    folder = cache() / f"accelerate-{VERSION}"
    if not all((folder / "tests" / f"{name}.py").exists() for name in FILES):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            fill(Path(unfinished))
            shutil.copytree(unfinished, folder, dirs_exist_ok=True)
    return Upstream(folder / "tests", folder / "packages")


def cache() -> Path:
    """Beside the compiled rig."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "device-map-planner" / "upstream"


def fill(folder: Path) -> None:
    """Downloads and unpacks into an empty folder."""
    requirement = folder / "requirement.txt"
    requirement.write_text(SOURCES)
    pip(
        "download",
        "--no-deps",
        "--no-binary",
        ":all:",
        "--dest",
        str(folder),
        "--requirement",
        str(requirement),
    )
    pip("install", "--no-deps", "--target", str(folder / "packages"), NEEDED)
    archive = folder / f"accelerate-{VERSION}.tar.gz"
    with tarfile.open(archive) as members:
        for name in FILES:
            member = members.getmember(f"accelerate-{VERSION}/tests/{name}.py")
            member.name = f"tests/{name}.py"
            members.extract(member, folder, filter="data")
    archive.unlink()


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise UnreachableError(done.stderr.strip())
