"""An adapter, such as a LoRA: a few tensors that change a base model, which is planned with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from planner.checkpoint.adapter_names import AdapterFile
from planner.checkpoint.building import open_files
from planner.checkpoint.files import CheckpointFiles, files_at, resolved
from planner.checkpoint.gguf import is_gguf
from planner.checkpoint.hub_cache import HubName, hub_name
from planner.checkpoint.model_name import model_name
from planner.checkpoint.opened import Opened
from planner.checkpoint.pipeline import is_pipeline
from planner.checkpoint.place import Place, locate
from planner.checkpoint.reading import fault, read_json_object
from planner.checkpoint.refused import refuse_folder
from planner.errors import CheckpointError

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_PICKLED: Final = "adapter_model.bin"
_MODEL_CONFIG: Final = "config.json"
_MODEL: Final = ("model.safetensors", "model.safetensors.index.json")
_METHODS: Final = {"LORA": "LoRA", "LOHA": "LoHa", "LOKR": "LoKr", "ADALORA": "AdaLoRA"}
_FILES: Final = (CONFIG, WEIGHTS, _PICKLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter in a folder.

    Args:
        place: the folder.
        file: its tensors.
        method: what peft calls it: "LORA" and others.
        base: the model that it changes, as its configuration says it; None for one beside it in the folder.
        revision: of that model on the hub.
    """

    place: Place
    file: AdapterFile
    method: str
    base: str | None
    revision: str | None

    @property
    def format(self) -> str:
        """As people call it."""
        return _METHODS.get(self.method, f"{self.method} adapter")


def is_adapter(place: Place, names: Sequence[str]) -> bool:
    """Whether a folder, or a file that was named in it, is an adapter's."""
    if CONFIG not in names or not (WEIGHTS in names or _PICKLED in names):
        return False
    return place.file is None or place.file in _FILES


_NO_BASES: Final[Sequence[tuple[Callable[[Place, Sequence[str]], bool], str]]] = (
    (is_adapter, "an adapter itself; merge that first"),
    (is_pipeline, f"a pipeline; in {CONFIG}, name the folder of the component that it changes"),
    (is_gguf, f"a GGUF file; in {CONFIG}, name the model that this was made of, which peft changes"),
)


def read_adapter(place: Place, names: Sequence[str]) -> Adapter:
    """The adapter in a folder. Raises CheckpointError: pickled weights, or a configuration that names no base."""
    if WEIGHTS not in names:
        refuse_folder(place, [name for name in names if name == _PICKLED])
    config_path, weights = resolved(place.folder, [CONFIG, WEIGHTS], place.folder)
    config = read_json_object(config_path)
    base, revision, method = (config.get(key) for key in ("base_model_name_or_path", "revision", "peft_type"))
    # As transformers has it: a folder that has a model's configuration, too, has its base.
    is_beside = _MODEL_CONFIG in names and any(name in names for name in _MODEL)
    if not is_beside and not (isinstance(base, str) and base):
        raise fault(config_path, "names no base model: base_model_name_or_path is missing")
    return Adapter(
        place=place,
        file=AdapterFile(path=weights, copied=_texts(config.get("modules_to_save"))),
        method=method if isinstance(method, str) else "peft",
        base=None if is_beside else str(base),
        revision=revision if isinstance(revision, str) and revision else None,
    )


def base_files(adapter: Adapter) -> CheckpointFiles:
    """The files of the model that an adapter changes.

    Raises:
        CheckpointError: it is not on this machine, or is no model itself; says what to type.
    """
    if adapter.base is None:
        return files_at(replace(adapter.place, file=None))
    name = base_name(adapter)
    try:
        place = locate(adapter.base if name is None else name.text)
    except CheckpointError as error:
        raise fault(adapter.place.folder, _without_base(adapter, name)) from error
    require_model(adapter, place)
    try:
        return files_at(place)
    except CheckpointError as error:
        # In front: a reason may end in a command that is pasted.
        raise fault(error.file, f"(the base of {adapter.place.folder}) {error.reason}") from error


def require_model(adapter: Adapter, place: Place) -> None:
    """Raises CheckpointError if what an adapter changes is no model that peft could change."""
    names = place.names()
    for holds, words in _NO_BASES:
        if holds(place, names):
            raise fault(adapter.place.folder, f"{_what(adapter)}, which is {words}")


def base_name(adapter: Adapter) -> HubName | None:
    """The base's name on the hub, where it is no path of this machine."""
    if adapter.base is None or os.path.lexists(adapter.base):
        return None
    revision = f"@{adapter.revision}" if adapter.revision else ""
    return hub_name(adapter.base + revision)


def open_adapter(adapter: Adapter, base: CheckpointFiles) -> Opened:
    """The base model with the adapter's tensors in the modules that they belong to."""
    if not base.weights:
        raise fault(base.name, f"holds no safetensors files; it is the base of {adapter.place.folder}")
    opened = open_files(base, adapter.file)
    note = (
        f"{adapter.format} of {adapter.base or 'the model beside it'}: names are the base model's, and each of the adapter's "
        "tensors is counted in the module that it changes, in 32 bits, as peft loads it"
    )
    return replace(
        opened, notes=(note, *opened.notes), named=model_name(adapter.place.folder), adapter=adapter.format
    )


def _texts(said: object) -> tuple[str, ...]:
    return tuple(text for text in said if isinstance(text, str) and text) if isinstance(said, list) else ()


def _what(adapter: Adapter) -> str:
    return f"a {adapter.format} and no model: it changes {adapter.base}"


def _without_base(adapter: Adapter, name: HubName | None) -> str:
    if name is None:
        return (
            f"{_what(adapter)}, which is not there; put it there, or change base_model_name_or_path in {CONFIG}, "
            "and both are planned"
        )
    return (
        f"{_what(adapter)}, which is not on this machine: `{name.download_command}` puts it into the hub's cache, "
        f"and then both are planned; --remote (in Python, remote=True) reads its headers from the hub; "
        f"`planner plan {name.text}` plans the base alone"
    )
