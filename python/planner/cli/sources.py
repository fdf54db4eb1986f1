"""What `MODEL` on the command line names."""

from __future__ import annotations

from planner.tree import ModuleTree

__all__ = ["open_source"]


def open_source(path: str) -> ModuleTree:
    """The modules and tensors of a model's folder, safetensors file, index or config.json."""
    raise NotImplementedError(path)
