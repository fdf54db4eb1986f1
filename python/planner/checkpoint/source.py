"""What `plan()` plans from: a live model, a flattened tree, or a checkpoint on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from planner.checkpoint.architecture import Architecture
from planner.checkpoint.describe import architecture_record, meta_model
from planner.checkpoint.files import CheckpointFiles, Headers, find_files
from planner.checkpoint.hub_cache import HubName, find_snapshot, hub_name
from planner.checkpoint.hub_remote import remote_folder
from planner.checkpoint.known import class_name, find_architecture, has_transformers
from planner.checkpoint.model_name import model_name
from planner.checkpoint.names import LiveNames, live_names, names_as_stored
from planner.checkpoint.reading import fault, printable
from planner.checkpoint.stored_format import stored_format
from planner.choices import SourceKind
from planner.config.layer import Layer
from planner.errors import CheckpointError, InvalidInputError
from planner.model.layout import Layout
from planner.model.tree import ModuleTree
from planner.names import listed
from planner.plans.parts import BEFORE_QUANTIZATION
from planner.settings.model_facts import import_values
from planner.spelling import shown

_QUANTISED = ("quantization_config", "compression_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A tree, and where it is from.

    Args:
        tree: modules and tensors.
        kind: a live "module", the files of a "checkpoint", or a "config" alone.
        facts: what the model's configuration says of it, read when it was opened; None where it has none.
        notes: what a reader of the plan should know of its names and sizes.
        stored: the tensors of the files, where they are not the tree itself.
        named: what the model is called, where its class does not say it.
        quantization: what its configuration says of a quantiser.
    """

    tree: ModuleTree
    kind: SourceKind
    facts: Layer | None = None
    notes: tuple[str, ...] = ()
    stored: ModuleTree | None = None
    named: str = ""
    quantization: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the model is called: by its folder or its repository; a live one by its class."""
        return self.named or self.tree.class_name

    def format(self, dtype: Any = None) -> str:
        """How its weights are stored, or will be once they are loaded as ``dtype``, as people say it."""
        tree = self.stored or self.tree
        return stored_format(tree.columns.bytes_by_dtype(), self.quantization, dtype)

    def sizes(self, dtype: Any, special_dtypes: Mapping[str, Any]) -> dict[str, int]:
        """Bits of single tensors that the tree itself does not know: those that the files hold for a live model."""
        if self.stored is None:
            return {}
        known = self.stored.uncovered((), "saved")[1]
        special = {name: special_dtypes[name] for name in known if name in special_dtypes}
        sizes = Layout(self.stored, dtype=dtype, special_dtypes=special).stored_sizes()
        return {name: int(sizes[name] * 8) for name in known if name in sizes}


def open_source(
    source: Any, checkpoint: str | os.PathLike[str] | None = None, *, remote: bool = False
) -> Opened:
    """A tree of whatever can be planned.

    Args:
        source: a live model, a flattened tree, or the path of a checkpoint: a folder, a safetensors file, an index or a
            ``config.json``; or what was opened before, which is returned.
        remote: whether a name that is not in the hub's cache is asked of the hub, which needs huggingface_hub.
        checkpoint: for a live model, files whose tensors' sizes count instead of the model's own.

    Raises:
        CheckpointError: files that are missing, malformed or hostile. Fields: ``file``, ``reason``.
        InvalidTreeError: a model that cannot be planned.
        InvalidInputError: a checkpoint beside something that is no live model, or ``remote`` for what is no name.
    """
    if isinstance(source, str | os.PathLike):
        if checkpoint is not None:
            raise InvalidInputError(
                f"checkpoint={shown(checkpoint)} needs a live model; the source is a checkpoint itself"
            )
        name = _absent_name(os.fsdecode(source)) if remote else None
        return _from_files(find_files(source)) if name is None else _from_hub(name)
    if remote:
        raise InvalidInputError(
            "remote=True needs the name of a model on the hub; the source is a model already"
        )
    if isinstance(source, ModuleTree | Opened):
        if checkpoint is not None:
            raise InvalidInputError(f"checkpoint={shown(checkpoint)} needs a live model, not a flattened one")
        return source if isinstance(source, Opened) else Opened(tree=source, kind="module")
    tree = ModuleTree.from_module(source)
    said = _live_config(source)
    opened = Opened(
        tree=tree, kind="module", facts=said.facts, notes=said.notes, quantization=said.quantization
    )
    return opened if checkpoint is None else _beside_files(source, opened, find_files(checkpoint))


def _absent_name(source: str) -> HubName | None:
    """The name of a model that is neither a path nor in the hub's cache with its weights."""
    name = None if os.path.lexists(source) else hub_name(source)
    return None if name is None or _is_cached(name) else name


def _is_cached(name: HubName) -> bool:
    """Whether the cache has the weights, too: a tokenizer, a configuration or another revision is often alone there."""
    try:
        snapshot = find_snapshot(name)
        return snapshot is not None and bool(find_files(snapshot).weights)
    except CheckpointError:
        return False


def _from_hub(name: HubName) -> Opened:
    with remote_folder(name) as folder:
        files = find_files(folder.path)
        folder.fetch_headers(files.weights)
        asked = replace(files, name=name.text, config_path=f"{name.repo}/config.json")
        return replace(_from_files(asked), named=name.repo)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LiveConfig:
    """What a live model's configuration says, and a note where it does not tell it."""

    facts: Layer | None = None
    quantization: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _live_config(model: Any) -> _LiveConfig:
    config: Any = getattr(model, "config", None)
    if not (hasattr(config, "to_dict") and hasattr(config, "model_type")):
        return _LiveConfig()
    try:
        values = config.to_dict()
        facts = import_values(values, f"live {type(config).__name__}")
        return _LiveConfig(facts=facts, quantization=_quantization(values))
    except Exception as error:  # noqa: BLE001 (others' code, and no fact decides a plan)
        words = f"{type(error).__name__}: {error}"
        note = f"the model's configuration cannot be read ({words[:200]}); its facts are left out"
        return _LiveConfig(notes=(note,))


def _file_facts(files: CheckpointFiles) -> Layer | None:
    return import_values(files.config, files.config_path) if files.config else None


def _from_files(files: CheckpointFiles) -> Opened:
    if not files.weights:
        return _from_config(files)
    headers = files.read_headers()
    known = find_architecture(files.config, files.config_path)
    built = _build(files, headers, known.architecture)
    return Opened(
        tree=built.tree,
        kind="checkpoint",
        facts=_file_facts(files),
        notes=(*known.notes, *built.notes),
        named=model_name(files.name),
        quantization=_quantization(files.config),
    )


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
    quantization = _quantization(files.config)
    return Opened(
        tree=ModuleTree.from_module(model),
        kind="config",
        facts=_file_facts(files),
        notes=(BEFORE_QUANTIZATION,) if quantization else (),
        named=model_name(files.name),
        quantization=quantization,
    )


def _beside_files(model: Any, opened: Opened, files: CheckpointFiles) -> Opened:
    """A live model whose tensors are as large as files hold them."""
    if not files.weights:
        raise fault(files.name, "holds no safetensors files")
    architecture = None
    if hasattr(model, "base_model_prefix") and hasattr(model, "_keys_to_ignore_on_load_unexpected"):
        architecture = Architecture.from_record(architecture_record(model))
    built = _build(files, files.read_headers(), architecture)
    stored = built.tree.uncovered((), "saved")[1]
    missing = opened.tree.uncovered(stored, "saved")[1]
    own = tuple(f"{_shown(missing)} not in the files, counted as in the model" for _ in missing[:1])
    return replace(
        opened,
        notes=(*opened.notes, *built.notes, *own),
        stored=built.tree,
        quantization=_quantization(files.config) or opened.quantization,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Built:
    tree: ModuleTree
    notes: tuple[str, ...]


def _build(files: CheckpointFiles, headers: Headers, known: Architecture | None) -> _Built:
    quantised = bool(_quantization(files.config))
    names = (
        names_as_stored(headers, quantised=quantised)
        if known is None
        else live_names(headers, known, files.config, quantised=quantised)
    )
    ties = [pair for rule in known.ties if rule.holds(files.config) for pair in rule.pairs] if known else []
    columns, doubled = headers.tree(
        names.targets,
        list(known.forms) if known else [],
        dict(known.bases) if known else {},
        shown=printable(files.name),
        by_name=names.by_name,
        dropped=set(names.dropped),
        tied=ties,
        quantised=quantised,
    )
    tree = ModuleTree(columns, known.no_split if known else ())
    notes = tuple(_notes(headers, names, known, doubled))
    return _Built(tree=tree, notes=notes)


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a configuration says of a quantiser, empty where it says nothing."""
    inner = config.get("text_config")
    said = (config, inner if isinstance(inner, dict) else {})
    found = (part.get(key) for part in said for key in _QUANTISED)
    return next((each for each in found if isinstance(each, dict)), {})


def _notes(
    headers: Headers,
    names: LiveNames,
    known: Architecture | None,
    doubled: Sequence[str],
) -> Iterator[str]:
    foreign = headers.foreign()
    if foreign:
        yield f"{_shown(foreign)} in the files but not in the index; counted, because loaders load them"
    if doubled:
        yield f"{_shown(doubled)} in the files beside what the configuration ties it to; counted once"
    if known is None:
        return
    described = f"{known.name} of transformers {known.version}"
    if names.dropped:
        yield f"{len(names.dropped)} tensors are of layers that {described} does not load; not counted"
    if names.unknown:
        yield f"{_shown(names.unknown)} not known of {described}; counted all the same"


def _shown(names: Sequence[str]) -> str:
    """Names as the beginning of a sentence, with its verb."""
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'}"
