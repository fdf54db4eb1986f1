"""From the safetensors files of one model to its tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from planner.checkpoint.adapter_names import AdapterFile, AdapterNames
from planner.checkpoint.architecture import Architecture
from planner.checkpoint.cache_config import completed_config
from planner.checkpoint.describe import meta_model
from planner.checkpoint.files import CheckpointFiles, Headers
from planner.checkpoint.general_names import general_name
from planner.checkpoint.known import class_name, find_architecture, has_transformers
from planner.checkpoint.made import MadeTensor, forms_without
from planner.checkpoint.model_name import model_name
from planner.checkpoint.names import LiveNames, live_names, names_as_stored
from planner.checkpoint.opened import Opened
from planner.checkpoint.reading import fault, printable
from planner.config.layer import Layer
from planner.errors import UnknownMemoryError
from planner.memory.header_check import head_notes
from planner.model.tree import ModuleTree
from planner.names import listed
from planner.plans.parts import BEFORE_QUANTIZATION
from planner.settings.model_facts import import_values

_QUANTISED = ("quantization_config", "compression_config")
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_")  # as safetensors names them


def open_files(files: CheckpointFiles, adapter: AdapterFile | None = None) -> Opened:
    """The model that files hold, or a configuration describes.

    Args:
        adapter: what changes the model; its tensors are counted in the modules that they belong to.
    """
    if not files.weights:
        return _from_config(files)
    headers = files.read_headers([] if adapter is None else [adapter.path])
    known = find_architecture(files.config, files.config_path)
    built = build(files, headers, known.architecture, adapter)
    return Opened(
        tree=built.tree,
        kind="checkpoint",
        facts=_facts(files),
        notes=(*known.notes, *built.notes),
        named=model_name(files.name),
        quantization=quantization(files.config),
        fixed_bits=built.fixed_bits,
        made_elements=built.made_elements,
        configuration=files.config or {},
        head_notes=cache(partial(_head_notes, files.config, headers)),
    )


def _head_notes(config: Mapping[str, Any], headers: Headers) -> tuple[str, ...]:
    """What differs between the configuration's heads and the weights; packed weights are integers, whose rows say nothing."""
    try:
        filled = completed_config(config)
    except UnknownMemoryError:
        return ()  # it leaves out its layers, so nothing is computed from it
    shapes = {name: shape for name, dtype, shape, _ in headers.rows() if dtype.startswith(_FLOATS)}
    return head_notes(filled, shapes)


def _facts(files: CheckpointFiles) -> Layer | None:
    return import_values(files.config, files.config_path) if files.config else None


def _from_config(files: CheckpointFiles) -> Opened:
    """A model that has no files: sizes are those that its class makes of the configuration."""
    name = class_name(files.config)
    if name is None:
        raise fault(files.config_path, "names no model: it has neither architectures nor a known model_type")
    if not has_transformers():
        raise fault(
            files.config_path, f"has no weights beside it; sizes of {name} need transformers and torch"
        )
    try:
        model = meta_model(name, files.config, files.config_path)
    except ValueError as error:
        raise fault(files.config_path, str(error)) from error
    packed = quantization(files.config)
    return Opened(
        tree=ModuleTree.from_module(model),
        kind="config",
        facts=_facts(files),
        notes=(BEFORE_QUANTIZATION,) if packed else (),
        named=model_name(files.name),
        quantization=packed,
        configuration=files.config,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The tree of a model's files.

    Args:
        tree: modules and tensors.
        notes: what was counted otherwise than the files have it, and what was not known.
        fixed_bits: bits of the adapter's tensors, whatever dtype is asked for.
        made_elements: elements of tensors that no file has, because the class makes them, by name.
    """

    tree: ModuleTree
    notes: tuple[str, ...]
    fixed_bits: Mapping[str, int]
    made_elements: Mapping[str, int]


def build(
    files: CheckpointFiles,
    headers: Headers,
    known: Architecture | None,
    adapter_file: AdapterFile | None = None,
) -> Built:
    """The tree that tensors in files make, with the names that a live model of this architecture has for them."""
    quantised = bool(_said_of_quantisers(files.config))
    adapter = AdapterNames.among(headers.names(), adapter_file)
    names = (
        names_as_stored(headers, adapter, quantised=quantised)
        if known is None
        else live_names(headers, known, files.config, adapter, quantised=quantised)
    )
    ties = [pair for rule in known.ties if rule.holds(files.config) for pair in rule.pairs] if known else []
    made = _absent(known, names) if known else {}
    columns, doubled = headers.tree(
        names.targets,
        forms_without(known.forms, made) if known else [],
        dict(known.bases) if known else {},
        shown=printable(files.name),
        by_name=names.by_name,
        dropped=set(names.dropped),
        tied=ties,
        quantised=quantised,
    )
    tree = ModuleTree(columns, known.no_split if known else ())
    notes = tuple(_notes(files, headers, names, known, doubled, adapter))
    counts = _element_counts(tree, made, files.config) if made else {}
    return Built(
        tree=tree, notes=notes, fixed_bits=adapter.fixed_bits(headers, names.of_rows), made_elements=counts
    )


def _absent(known: Architecture, names: LiveNames) -> Mapping[str, MadeTensor]:
    """By general name, the tensors that the files lack and the class makes."""
    if not known.made:
        return {}
    there = names.general()
    return {made.name: made for made in known.made if made.name not in there}


def _element_counts(
    tree: ModuleTree, made: Mapping[str, MadeTensor], config: Mapping[str, Any]
) -> dict[str, int]:
    """Elements of those tensors, by their names in a tree."""
    found = ((name, made.get(general_name(name, "*"))) for name in tree.uncovered(())[1])
    return {name: each.element_count(config) for name, each in found if each is not None}


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a configuration says of a quantiser, empty where it says nothing."""
    return next(iter(_said_of_quantisers(config)), {})


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the model before it was quantised."""
    kept = {key: value for key, value in config.items() if key not in _QUANTISED}
    inner = kept.get("text_config")
    return {**kept, "text_config": without_quantization(inner)} if isinstance(inner, dict) else kept


def _said_of_quantisers(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All that it says; that there was one may be all."""
    inner = config.get("text_config")
    said = (config, inner if isinstance(inner, dict) else {})
    found = (part.get(key) for part in said for key in _QUANTISED)
    return [each for each in found if isinstance(each, dict)]


def _notes(
    files: CheckpointFiles,
    headers: Headers,
    names: LiveNames,
    known: Architecture | None,
    doubled: Sequence[str],
    adapter: AdapterNames,
) -> Iterator[str]:
    if files.variant is not None:
        yield f"the files are there as variant {files.variant!r} only: from_pretrained wants variant={files.variant!r}"
    foreign = [name for name in headers.foreign() if name not in adapter.stored]
    if foreign:
        yield f"{shown_names(foreign)} in the files but not in the index; counted, because loaders load them"
    if doubled:
        yield f"{shown_names(doubled)} in the files beside what the configuration ties it to; counted once"
    if known is None:
        return
    described = f"{known.name} of transformers {known.version}"
    if names.dropped:
        yield f"{len(names.dropped)} tensors are of layers that {described} does not load; not counted"
    if names.unknown:
        yield f"{shown_names(names.unknown)} not known of {described}; counted all the same"


def shown_names(names: Sequence[str]) -> str:
    """Names as the beginning of a sentence, with its verb."""
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'}"
