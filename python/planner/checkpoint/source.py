"""What `plan()` plans from: a live model, a flattened tree, or a checkpoint on disk."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from planner.checkpoint.adapter import (
    Adapter,
    base_files,
    base_name,
    is_adapter,
    open_adapter,
    read_adapter,
    require_model,
)
from planner.checkpoint.architecture import Architecture
from planner.checkpoint.building import build, open_files, quantization, shown_names
from planner.checkpoint.describe import architecture_record
from planner.checkpoint.files import WEIGHTS_END, CheckpointFiles, Headers, files_at, find_files
from planner.checkpoint.gguf import is_gguf, open_gguf
from planner.checkpoint.hub_cache import HubName, find_snapshot, hub_name
from planner.checkpoint.opened import Opened
from planner.checkpoint.pipeline import is_pipeline, open_pipeline
from planner.checkpoint.place import Place, locate
from planner.checkpoint.reading import fault
from planner.checkpoint.refused import PICKLED_ENDS
from planner.config.layer import Layer
from planner.errors import CheckpointError, InvalidInputError
from planner.model.tree import ModuleTree
from planner.names import listed
from planner.settings.model_facts import import_values
from planner.spelling import shown

if TYPE_CHECKING:
    from planner.checkpoint.hub_remote import RemoteFolder

__all__ = ["Opened", "open_beside", "open_source"]


def open_source(
    source: Any, checkpoint: str | os.PathLike[str] | None = None, *, remote: bool = False
) -> Opened:
    """A tree of whatever can be planned.

    Args:
        source: a live model, a flattened tree, or the path of a checkpoint: a folder, a safetensors or GGUF file, an index or
            a ``config.json``, the folder of an adapter or of a pipeline; or what was opened before, which is returned.
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
        return _open_place(locate(source), remote=remote) if name is None else _from_hub(name)
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
        tree=tree,
        kind="module",
        facts=said.facts,
        notes=said.notes,
        quantization=said.quantization,
        configuration=said.values,
        live=weakref.ref(source),
    )
    if checkpoint is None:
        return opened
    files = find_files(checkpoint)
    if not files.weights:
        raise fault(files.name, "holds no safetensors files")
    return _beside_files(source, opened, files, files.read_headers())


def open_beside(model: Any, files: CheckpointFiles, headers: Headers) -> Opened:
    """A live model, and the sizes that its tensors have in files whose headers were read. Raises as :func:`open_source`."""
    return _beside_files(model, open_source(model), files, headers)


def _open_place(place: Place, *, remote: bool = False) -> Opened:
    """What lies in one place, whatever its format."""
    names = place.names()
    if is_adapter(place, names):
        return _with_base(read_adapter(place, names), remote=remote)
    if is_pipeline(place, names):
        return open_pipeline(place)
    if is_gguf(place, names):
        return open_gguf(place, names)
    return open_files(files_at(place))


def _with_base(adapter: Adapter, *, remote: bool) -> Opened:
    name = base_name(adapter) if remote else None
    if name is None or _is_cached(name):
        return open_adapter(adapter, base_files(adapter))
    from planner.checkpoint.hub_remote import remote_folder  # few models are asked of the hub

    with remote_folder(name) as folder:
        require_model(adapter, Place(name=folder.path, folder=folder.path))
        return open_adapter(adapter, _fetched(folder, name))


def _absent_name(source: str) -> HubName | None:
    """The name of a model that is neither a path nor in the hub's cache with its weights."""
    name = None if os.path.lexists(source) else hub_name(source)
    return None if name is None or _is_cached(name) else name


def _is_cached(name: HubName) -> bool:
    """Whether the cache has the weights, too: a tokenizer, a configuration or another revision is often alone there."""
    try:
        snapshot = find_snapshot(name)
        if snapshot is None:
            return False
        place = Place(name=snapshot, folder=snapshot)
        names = place.names()
        is_other = any(holds(place, names) for holds in (is_adapter, is_pipeline, is_gguf))
        return is_other or bool(files_at(place).weights)
    except CheckpointError:
        return False


def _from_hub(name: HubName) -> Opened:
    from planner.checkpoint.hub_remote import remote_folder  # few models are asked of the hub

    with remote_folder(name) as folder:
        place = Place(name=folder.path, folder=folder.path)
        names = place.names()
        if is_adapter(place, names):
            adapter = read_adapter(place, names)
            folder.fetch_headers([adapter.file.path])
            return replace(_with_base(adapter, remote=True), named=name.repo)
        _require_remote(name, place, names)
        return replace(open_files(_fetched(folder, name)), named=name.repo)


def _require_remote(name: HubName, place: Place, names: Sequence[str]) -> None:
    """Raises CheckpointError for what is read, or converted, on this machine only."""
    pickled = [each for each in names if each.endswith(PICKLED_ENDS)]
    if is_pipeline(place, names):
        what = "is a pipeline, which is read"
    elif is_gguf(place, names):
        what = "has GGUF files, which are read"
    elif pickled and not any(each.endswith(WEIGHTS_END) for each in names):
        what = f"holds only pickled weights ({listed(pickled)}), which can be converted"
    else:
        return
    raise fault(name.repo, f"{what} on this machine only: `{name.download_command}`, and plan it again")


def _fetched(folder: RemoteFolder, name: HubName) -> CheckpointFiles:
    files = find_files(folder.path)
    folder.fetch_headers(files.weights)
    return replace(files, name=name.text, config_path=f"{name.repo}/config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class _LiveConfig:
    """What a live model's configuration says, and a note where it does not tell it."""

    facts: Layer | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _live_config(model: Any) -> _LiveConfig:
    config: Any = getattr(model, "config", None)
    if not (hasattr(config, "to_dict") and hasattr(config, "model_type")):
        return _LiveConfig()
    try:
        values = config.to_dict()
        facts = import_values(values, f"live {type(config).__name__}")
        return _LiveConfig(facts=facts, values=values, quantization=quantization(values))
    except Exception as error:  # noqa: BLE001 (others' code, and no fact decides a plan)
        words = f"{type(error).__name__}: {error}"
        note = f"the model's configuration cannot be read ({words[:200]}); its facts are left out"
        return _LiveConfig(notes=(note,))


def _beside_files(model: Any, opened: Opened, files: CheckpointFiles, headers: Headers) -> Opened:
    """A live model whose tensors are as large as files hold them."""
    architecture = None
    if hasattr(model, "base_model_prefix") and hasattr(model, "_keys_to_ignore_on_load_unexpected"):
        architecture = Architecture.from_record(architecture_record(model))
    built = build(files, headers, architecture)
    stored = built.tree.uncovered((), "saved")[1]
    missing = opened.tree.uncovered(stored, "saved")[1]
    own = tuple(f"{shown_names(missing)} not in the files, counted as in the model" for _ in missing[:1])
    return replace(
        opened,
        notes=(*opened.notes, *built.notes, *own),
        stored=built.tree,
        quantization=quantization(files.config) or opened.quantization,
    )
