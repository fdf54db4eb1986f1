"""A pipeline of diffusers: several models in folders beside each other, planned together, each below its own name.

Source: ``model_index.json`` and its components, ``from_pretrained`` of diffusers 0.42, pipelines/pipeline_utils.py. Its own
``device_map`` is a word ("balanced") and moves whole components; a component's ``from_pretrained`` takes a dict, for which
``DeviceMap.below`` is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from planner.checkpoint.building import open_files
from planner.checkpoint.files import files_at, resolved
from planner.checkpoint.inside import resolve_inside
from planner.checkpoint.model_name import model_name
from planner.checkpoint.opened import Opened
from planner.checkpoint.place import Place
from planner.checkpoint.reading import fault, read_json_object
from planner.checkpoint.refused import PICKLED_ENDS, beside, python_command
from planner.model.layout import repeated
from planner.model.tree import ModuleTree
from planner.names import listed
from planner.plans.parts import LEFT_OUT

INDEX: Final = "model_index.json"
_WEIGHTS_END: Final = ".safetensors"
_OWN_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")
# What runs when: what reads the prompt, what draws, what makes an image of it, what looks at that.
_ORDER: Final = (
    ("text_encoder", "image_encoder", "vision"),
    (),
    ("vae", "vqvae", "movq", "vocoder"),
    ("safety",),
)
_DRAWS: Final = 1
# Classes of what has no weights ever.
_HAS_NO_WEIGHTS: Final = re.compile(r"Scheduler|Tokenizer|Processor|Extractor")


def is_pipeline(place: Place, names: Sequence[str]) -> bool:
    """Whether a folder is a pipeline's; one with a model of its own is that model."""
    if INDEX not in names or any(name in names for name in _OWN_WEIGHTS):
        return False
    return place.file in (None, INDEX)


def open_pipeline(place: Place) -> Opened:
    """All components that have weights, in the order in which they run.

    Raises:
        CheckpointError: a component that cannot be planned, or none with weights. Fields: ``file``, ``reason``.
    """
    (path,) = resolved(place.folder, [INDEX], place.folder)
    index = read_json_object(path)
    parts: list[tuple[str, Opened]] = []
    absent: list[str] = []
    for name in sorted(_components(index), key=_rank):
        opened = _open_component(place.folder, name, path)
        if opened is not None:
            parts.append((name, opened))
        elif not _HAS_NO_WEIGHTS.search(index[name][1]):
            absent.append(name)
    if not parts:
        raise fault(place.folder, f"none of the components that {INDEX} names has weights here")
    kind = index.get("_class_name")
    no_split = sorted({cls for _, opened in parts for cls in _no_split(opened.tree)})
    tree = ModuleTree.beside(
        kind if isinstance(kind, str) else "", [(name, opened.tree) for name, opened in parts], no_split
    )
    notes = (
        "a pipeline: the map of a component is plan.device_map.below(its name), for that component's from_pretrained",
        *(
            f"{LEFT_OUT} {listed(absent)}, which {INDEX} names and which has no weights here"
            for _ in absent[:1]
        ),
        *_notes(parts),
    )
    return Opened(
        tree=tree,
        kind="checkpoint",
        notes=notes,
        named=model_name(place.folder),
    )


def _components(index: dict[str, Any]) -> Iterator[str]:
    """Names of the components; those that are left out have no class."""
    for name, said in index.items():
        is_class = isinstance(said, list) and len(said) == 2 and isinstance(said[1], str)
        if is_class and name.isidentifier() and not name.startswith("_"):
            yield name


def _rank(name: str) -> int:
    ranks = (rank for rank, starts in enumerate(_ORDER) if starts and name.startswith(starts))
    return next(ranks, _DRAWS)


def _open_component(folder: str, name: str, said_by: str) -> Opened | None:
    """A component; None for one without weights, such as a tokenizer or a scheduler."""
    path = resolve_inside(folder, name, said_by)
    if path is None or not os.path.isdir(path):
        return None
    inner = Place(name=path, folder=path)
    files = inner.names()
    if not any(file.endswith(_WEIGHTS_END) for file in files):
        pickled = [file for file in files if file.endswith(PICKLED_ENDS)]
        if pickled:
            raise fault(path, _pickled(folder, pickled))
        return None
    return open_files(files_at(inner))


def _pickled(folder: str, files: Sequence[str]) -> str:
    target = beside(folder, "-safetensors")
    code = "import sys; from diffusers import DiffusionPipeline as P; P.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    return (
        f"holds only pickled weights ({listed(files)}), which run code when they are read; planner reads safetensors files "
        f"only. This writes the pipeline with them to {target}: {python_command(code, folder, target)}"
    )


def _no_split(tree: ModuleTree) -> Sequence[str]:
    """Classes of a component that must not be split: its own, else those that repeat in it."""
    return tree.no_split_classes or repeated(tree)[0]


def _notes(parts: Sequence[tuple[str, Opened]]) -> Iterator[str]:
    """What is to be said of components, once for all of which it is said."""
    of: dict[str, list[str]] = {}
    for name, opened in parts:
        for note in opened.notes:
            of.setdefault(note, []).append(name)
    for note, names in of.items():
        yield f"{', '.join(names)}: {note}"
