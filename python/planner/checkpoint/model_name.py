"""What a model in files is called."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from planner.checkpoint.hub_cache import repository_of
from planner.checkpoint.reading import printable

_ENDS: Final = re.compile(r"(?:-[0-9]+-of-[0-9]+)?\.(?:safetensors|gguf)$")
# Files that have this name in every folder, whatever model is in it.
_USUAL: Final = ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model")


def model_name(path: str) -> str:
    """The name of the model at a path: of a snapshot of the hub's cache the repository's, of a file with a name of its own that
    name, else the folder's; the same from wherever the path leads there.

    Example:
        >>> model_name("models/llama-70b/config.json"), model_name("models/flux1-dev.safetensors")
        ('llama-70b', 'flux1-dev')
    """
    folder, file = (path, "") if os.path.isdir(path) else os.path.split(path)
    stem = _ENDS.sub("", file)
    if stem != file and not stem.startswith(_USUAL):
        return printable(stem)
    real = Path(os.path.realpath(folder or os.curdir))
    return printable(repository_of(real) or real.name)
