"""GGUF files, as llama.cpp runs them: planned in its own names, block by block."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Final

from planner.checkpoint.files import Headers, all_numbered, resolved
from planner.checkpoint.model_name import model_name
from planner.checkpoint.opened import Opened
from planner.checkpoint.place import Place
from planner.checkpoint.reading import fault, printable, read_regular
from planner.errors import CheckpointError
from planner.model.tree import ModuleTree
from planner.names import listed
from planner.settings.model_facts import import_facts

_END: Final = ".gguf"
_START: Final = b"GGUF"
_SAFETENSORS_END: Final = ".safetensors"
_SPLIT: Final = re.compile(r"(.*)-[0-9]{5}-of-[0-9]{5}\.gguf")
_PROJECTOR: Final = re.compile(r"(?i)(?:^|[-_.])mmproj(?:[-_.]|$)")
_BLOCKS: Final = ("blk.*", "enc.blk.*", "dec.blk.*", "v.blk.*", "a.blk.*")
# As llama.cpp meets them; the names of all other modules come behind.
_ORDER: Final = (
    ("v", "a", "mm", "resampler"),
    ("token_embd", "per_layer_token_embd", "per_layer_model_proj", "per_layer_proj_norm", "position_embd"),
    ("token_types", "token_embd_norm", "rope_freqs", "altup_proj"),
    ("enc", "dec", "blk", "altup_unembd_proj", "output_norm", "cls", "output"),
)
_TIED: Final = ("output.weight", "token_embd.weight")
_HEAD: Final = "output_norm.weight"
_FACTS: Final = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}
_NOT_MODELS: Final = {"adapter": "a LoRA adapter", "imatrix": "an importance matrix"}
# What a quantiser's format asks for is too late: llama.cpp runs the types that are there.
_IS_PACKED: Final = {"quant_method": "gguf"}
# Source: ``llama_ftype`` of llama.cpp, as ``LlamaFileType`` of gguf 0.19 has it.
FILE_TYPES: Final[Mapping[int, str]] = {
    **dict(enumerate(("F32", "F16", "Q4_0", "Q4_1"))),
    **dict(enumerate(("Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M"), 7)),
    **dict(enumerate(("Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS", "IQ3_XXS"), 16)),
    **dict(enumerate(("IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16"), 24)),
    **dict(enumerate(("TQ1_0", "TQ2_0", "MXFP4_MOE", "NVFP4", "Q1_0"), 36)),
}

Facts = Mapping[str, int | float | bool | str]


def is_gguf(place: Place, names: Sequence[str]) -> bool:
    """Whether a file is a GGUF file, or a folder has no other weights that are planned."""
    if place.file is None:
        has_others = any(name.endswith(_SAFETENSORS_END) for name in names)
        return not has_others and any(name.endswith(_END) for name in names)
    return place.file.endswith(_END) or _starts_as_gguf(place)


def open_gguf(place: Place, names: Sequence[str]) -> Opened:
    """The model in a GGUF file, or in the one that a folder holds; all files of one that is split.

    Raises:
        CheckpointError: files that are missing, malformed or hostile, several models, or none but an adapter. Fields: ``file``,
            ``reason``.
    """
    files = _files(place, names)
    paths = resolved(place.folder, files, place.folder)
    headers, facts = Headers.read_gguf(list(paths), [printable(path) for path in paths])
    _require_model(os.path.join(place.folder, files[0]), facts)
    stored = set(headers.names())
    is_tied = _HEAD in stored and _TIED[1] in stored and _TIED[0] not in stored
    order: list[tuple[str, list[int]]] = [(name, []) for group in _ORDER for name in group]
    forms: list[tuple[str, list[str], list[tuple[str, list[int]]], list[tuple[str, bool]]]] = [
        (str(facts.get("general.architecture", "")), [], order, [])
    ]
    columns, _ = headers.tree(
        [[_numbered(name)] for name in headers.general_names()],
        forms,
        {},
        shown=printable(place.name),
        by_name=False,
        dropped=set(),
        tied=[_TIED] if is_tied else [],
        quantised=False,
    )
    return Opened(
        tree=ModuleTree(columns, _BLOCKS),
        kind="checkpoint",
        facts=import_facts(_known(facts), place.name),
        notes=tuple(_notes(files, names)),
        named=model_name(place.path if place.file else place.folder),
        quantization=_IS_PACKED,
        stored_as=_format(facts, columns.bytes_by_dtype()),
    )


def _files(place: Place, names: Sequence[str]) -> list[str]:
    """Names of the files of one model, in order."""
    if place.file is not None:
        return sorted(all_numbered(place.folder, [place.file]))
    there = [name for name in names if name.endswith(_END)]
    models: dict[str, list[str]] = {}
    for name in there:
        split = _SPLIT.fullmatch(name)
        models.setdefault(split[1] if split else name, []).append(name)
    if len(models) > 1:
        models = {stem: files for stem, files in models.items() if not _PROJECTOR.search(stem)} or models
    if len(models) > 1:
        first = [files[0] for files in models.values()]
        raise fault(
            place.folder, f"holds {len(models)} GGUF models, name one of them: {listed(first, most=20)}"
        )
    return sorted(all_numbered(place.folder, next(iter(models.values()))))


def _require_model(path: str, facts: Facts) -> None:
    what = _NOT_MODELS.get(str(facts.get("general.type")))
    if what is not None:
        base = facts.get("general.base_model.0.name")
        of = f" of {base}" if isinstance(base, str) else ""
        raise fault(path, f"is {what}{of}, and no model: plan the GGUF file of the model itself")


def _numbered(general: str) -> str:
    """A general name as the target that keeps its numbers."""
    first, *rest = general.split("\0")
    return first + "".join(f"\0{place}\0{text}" for place, text in enumerate(rest))


def _known(facts: Facts) -> dict[str, object]:
    """What is said of the model, by the names of our own facts."""
    architecture = facts.get("general.architecture")
    values = {fact: facts.get(f"{architecture}.{key}") for fact, key in _FACTS.items()}
    return {fact: value for fact, value in values.items() if type(value) is int}


def _format(facts: Facts, bytes_by_type: Sequence[tuple[str, int]]) -> str:
    """What people call it: by what the file says, else by the type of most of its bytes."""
    said = facts.get("general.file_type")
    word = FILE_TYPES.get(said) if isinstance(said, int) else None
    return word or max(bytes_by_type, key=lambda pair: pair[1], default=("", 0))[0]


def _notes(files: Sequence[str], names: Sequence[str]) -> list[str]:
    notes = [
        "names are llama.cpp's, which runs these files; the map says where its blocks lie, and is not one for from_pretrained"
    ]
    projectors = [name for name in names if name.endswith(_END) and _PROJECTOR.search(name)]
    others = [name for name in projectors if name not in files]
    if others:
        notes.append(f"{listed(others)} beside it is not counted: it is planned when it is named")
    return notes


def _starts_as_gguf(place: Place) -> bool:
    try:
        return read_regular(place.path, len(_START)) == _START
    except CheckpointError:
        return False  # what is wrong with it is said where it is read
