"""What `plan()` plans from: a live model, a flattened tree, or a checkpoint on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from planner.checkpoint.files import CheckpointFiles, find_files
from planner.tree import ModuleTree

__all__ = ["Opened", "open_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A tree, and where it is from.

    Args:
        tree: modules and tensors.
        kind: a live "module", the files of a "checkpoint", or a "config" alone.
        config: what a ``config.json`` or a live model's configuration says.
        notes: what a reader of the plan should know of its names and sizes.
    """

    tree: ModuleTree
    kind: Literal["module", "checkpoint", "config"]
    config: Any = None
    notes: tuple[str, ...] = ()


def open_source(source: Any) -> Opened:
    """A tree of whatever can be planned.

    Args:
        source: a live model, a flattened tree, or the path of a checkpoint: a folder, a safetensors file, an index or a
            ``config.json``.

    Raises:
        CheckpointError: files that are missing, malformed or hostile. Fields: ``file``, ``reason``.
        InvalidTreeError: a model that cannot be planned.
    """
    if isinstance(source, ModuleTree):
        return Opened(tree=source, kind="module")
    if not isinstance(source, str | os.PathLike):
        return Opened(
            tree=ModuleTree.from_module(source), kind="module", config=getattr(source, "config", None)
        )
    return _from_files(find_files(source))


def _from_files(files: CheckpointFiles) -> Opened:
    headers = files.read_headers()
    general = headers.general_names()
    live = []
    for name in general:
        parts = name.split("\0")
        live.append(["".join(part if i == 0 else f"\0{i - 1}\0{part}" for i, part in enumerate(parts))])
    columns, _ = headers.tree(live, [], {}, shown=files.name, by_name=False, tied=[], quantised=False)
    told = files.config_path if files.config else None
    return Opened(tree=ModuleTree(columns), kind="checkpoint", config=told)
