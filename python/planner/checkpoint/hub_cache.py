"""Models by their names on the hub, found in the hub's cache on this machine; nothing is downloaded.

Source: the cache's layout and its variables, huggingface_hub 1.33, ``constants.py`` and ``try_to_load_from_cache`` of
``file_download.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from planner.checkpoint.reading import fault, read_regular, system_reason
from planner.errors import CheckpointError
from planner.names import listed

_PART: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"(?P<repo>(?:{_PART}/)?{_PART})(?:@(?P<revision>[^@\s]{{1,200}}))?")
_MAIN: Final = "main"
_MOST_REF_BYTES: Final = 200
_STORE: Final = "models--"
_FILE_ENDS: Final = (
    ".json",
    ".safetensors",
    ".gguf",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".yaml",
    ".yml",
    ".toml",
    ".txt",
)


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository of the hub, and which of its revisions is meant.

    Args:
        repo: "organisation/name", or a bare name as the oldest models have them.
        revision: a branch, a tag or a commit.
    """

    repo: str
    revision: str = _MAIN

    @property
    def text(self) -> str:
        """As it is written where a model is named."""
        return self.repo if self.revision == _MAIN else f"{self.repo}@{self.revision}"

    @property
    def download_command(self) -> str:
        """What puts it into the cache."""
        return f"hf download {self.repo}" + ("" if self.revision == _MAIN else f" --revision {self.revision}")


def hub_name(source: str) -> HubName | None:
    """The name of a repository, where a text can be one.

    Example:
        >>> hub_name("meta-llama/Llama-3.1-8B@v1.0")
        HubName(repo='meta-llama/Llama-3.1-8B', revision='v1.0')
        >>> hub_name("./llama") is None
        True
    """
    found = _NAME.fullmatch(source)
    # A name of three parts is a path, and two dots or dashes in a row are refused by the hub, which joins parts with them.
    if found is None or "--" in found["repo"] or ".." in found["repo"] or source.endswith(_FILE_ENDS):
        return None
    return HubName(found["repo"], found["revision"] or _MAIN)


def cache_folder(environ: Mapping[str, str] = os.environ) -> str:
    """Where the hub keeps what it has downloaded, by its own variables in its own order."""
    above = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    home = environ.get("HF_HOME") or os.path.join(above, "huggingface")
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return os.path.expanduser(os.path.expandvars(named))


def find_snapshot(name: HubName, environ: Mapping[str, str] = os.environ) -> str | None:
    """The folder of a revision; None where this repository was never downloaded.

    Raises:
        CheckpointError: the repository is there, the revision is not; the revisions that are there are named.
    """
    store = os.path.join(cache_folder(environ), _STORE + name.repo.replace("/", "--"))
    return snapshot_in(store, name.revision) if os.path.isdir(store) else None


def is_store(folder: str) -> bool:
    """Whether a folder is a repository's place in the cache, and not a checkpoint itself."""
    return os.path.isdir(os.path.join(folder, "snapshots")) and os.path.basename(
        os.path.abspath(folder)
    ).startswith(_STORE)


def repository_of(folder: Path) -> str | None:
    """The repository of which a folder in the cache is a snapshot.

    Example:
        >>> repository_of(Path("hub/models--org--llama/snapshots/0a1b"))
        'org/llama'
    """
    store = folder.parent.parent.name
    is_snapshot = folder.parent.name == "snapshots" and store.startswith(_STORE)
    return store.removeprefix(_STORE).replace("--", "/") if is_snapshot else None


def snapshot_in(store: str, revision: str = _MAIN) -> str:
    """The folder of a revision in a repository's place in the cache.

    Raises:
        CheckpointError: no such revision, or no right to look for it.
    """
    snapshots = os.path.join(store, "snapshots")
    commit = _commit(store, revision)
    if _is_one_part(commit) and os.path.isdir(os.path.join(snapshots, commit)):
        return os.path.join(snapshots, commit)
    there = _folders(snapshots)
    # Nothing says which commit "main" is where a commit was asked for by its number when it was downloaded.
    if revision == commit == _MAIN and len(there) == 1:
        return os.path.join(snapshots, there[0])
    known = sorted({*_refs_to(there, store), *there})
    has = f"; it has {listed(known, most=8)}" if known else ""
    raise fault(store, f"holds no snapshot of the revision {revision!r}{has}")


def _commit(store: str, revision: str) -> str:
    """The commit that a branch or tag stood at when it was downloaded; a revision without a reference is one itself."""
    if all(_is_one_part(part) for part in revision.split("/")):
        reference = os.path.join(store, "refs", *revision.split("/"))
        if os.path.isfile(reference):
            return read_regular(reference, _MOST_REF_BYTES).decode("ascii", "replace").strip()
    return revision


def _folders(snapshots: str) -> list[str]:
    try:
        with os.scandir(snapshots) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise fault(snapshots, system_reason(error)) from error


def _refs_to(there: list[str], store: str) -> list[str]:
    """Branches and tags whose commits are there; a reference may be of a commit of which no file was downloaded."""
    root = os.path.join(store, "refs")
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            ref = os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
            with suppress(CheckpointError):  # one that cannot be read leads nowhere
                if _commit(store, ref) in there:
                    found.append(ref)
    return found


def _is_one_part(name: str) -> bool:
    return name not in ("", ".", "..") and not re.search(r"[/\\\0:]", name)
