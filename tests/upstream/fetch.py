"""Test files of accelerate and transformers, which only their source distributions have, fetched once into a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ACCELERATE", "PARTS", "TRANSFORMERS", "Distribution", "UnreachableError", "Upstream", "fetched"]


@dataclass(frozen=True, slots=True)
class Distribution:
    """A source distribution on the package index, and which of its test files are wanted.

    Args:
        name: on the index.
        version: exactly this one.
        digest: SHA-256 of the archive.
        files: names of the files in its folder `tests`, without `.py`.
    """

    name: str
    version: str
    digest: str
    files: tuple[str, ...]

    @property
    def title(self) -> str:
        """The name of the archive, and of the folder in it."""
        return f"{self.name}-{self.version}"


ACCELERATE = Distribution(
    "accelerate",
    "1.15.0",
    "5654f8c5eaa0d4fa68b33e287a97765da6849bf6d51dcac874e73fbbddfb6134",
    ("test_modeling_utils", "test_big_modeling", "test_hooks", "test_offload", "test_accelerator"),
)
# The distribution has no tests of single models, but those that every model shares.
TRANSFORMERS = Distribution(
    "transformers",
    "5.23.0",
    "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71",
    ("test_modeling_common",),
)
# Of accelerate's last file, what saves and loads models; the rest is training, and takes minutes.
PARTS = {
    "test_accelerator": ("test_save_model", "test_save_sharded_model", "test_get_state_dict_from_offload")
}
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


def fetched(distribution: Distribution) -> Upstream:
    """The test files, from the cache if they are in it.

    Raises:
        UnreachableError: they are not, and the package index could not be reached.
    """
    folder = cache() / distribution.title
    if not all((folder / "tests" / f"{name}.py").exists() for name in distribution.files):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            fill(Path(unfinished), distribution)
            shutil.copytree(unfinished, folder, dirs_exist_ok=True)
    return Upstream(folder / "tests", folder / "packages")


def cache() -> Path:
    """Beside the compiled rig."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "device-map-planner" / "upstream"


def fill(folder: Path, distribution: Distribution) -> None:
    """Downloads and unpacks into an empty folder."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{distribution.name}=={distribution.version} --hash=sha256:{distribution.digest}")
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
    archive = folder / f"{distribution.title}.tar.gz"
    with tarfile.open(archive) as members:
        for name in distribution.files:
            member = members.getmember(f"{distribution.title}/tests/{name}.py")
            member.name = f"tests/{name}.py"
            members.extract(member, folder, filter="data")
    archive.unlink()


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise UnreachableError(done.stderr.strip())
