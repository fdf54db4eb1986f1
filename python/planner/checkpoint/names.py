"""Names in files as the names that a live model has, for many names at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planner.checkpoint.adapter_names import AdapterNames
from planner.checkpoint.architecture import Architecture
from planner.checkpoint.carried_names import carriers
from planner.checkpoint.files import Headers
from planner.checkpoint.general_names import (
    GAP,
    MOST_GAPS,
    filled,
    general_name,
    marked,
    part_numbers,
    template,
    unchanged,
    unused_number,
)
from planner.checkpoint.transforms import Renaming

_NUMBER = re.compile(r"([0-9]+)")
_LITERAL_NUMBER = re.compile(r"(?<!\\)[0-9]")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.([0-9]+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveNames:
    """What tensors in files become.

    Args:
        by_name: whether ``targets`` go by name, or by name without its numbers.
        texts: those names.
        targets: live names of each; a number is written as its place between zero bytes.
        dropped: rows of tensors that are not loaded.
        unknown: live names that the architecture does not have, with ``*`` for numbers; of quantised ones, only those in
            modules that it does not have.
    """

    by_name: bool
    texts: Sequence[str]
    targets: list[list[str]]
    dropped: list[int]
    unknown: tuple[str, ...]

    def general(self) -> set[str]:
        """Live names of all that is loaded, with ``*`` for numbers."""
        names = {name for targets in self.targets for name in targets}
        if self.by_name:
            return {general_name(name, "*") for name in names}
        return {"*".join(name.split(GAP)[::2]) for name in names}

    def of_rows(self, stored: Mapping[int, str]) -> dict[int, str]:
        """What rows with these names become: of each the first name, of those that become something."""
        if self.by_name:
            return {row: self.targets[row][0] for row in stored if self.targets[row]}
        targets = dict(zip(self.texts, self.targets, strict=True))
        found = {}
        for row, name in stored.items():
            for target in targets[general_name(name)][:1]:
                found[row] = filled(target, part_numbers(name))
        return found


def names_as_stored(headers: Headers, adapter: AdapterNames, *, quantised: bool) -> LiveNames:
    """Names as they are in the files, but of what belongs to a weight: it has the weight's, or stands beside it."""
    general = headers.general_names()
    owners = adapter.owners(general, set(general).__contains__)
    weight_of = carriers([name for name in general if name not in owners], quantised=quantised)
    targets: list[list[str]] = []
    for name in general:
        if name in owners:
            weight, own = owners[name]
            if not own:
                targets.append([])
                continue
            name = f"{weight.rpartition('.')[0]}.{own}"
        targets.append([unchanged(weight_of.get(name, name))])
    return LiveNames(by_name=False, texts=general, targets=targets, dropped=[], unknown=())


def live_names(
    headers: Headers,
    architecture: Architecture,
    config: Mapping[str, Any],
    adapter: AdapterNames,
    *,
    quantised: bool,
) -> LiveNames:
    """Names as a live model has them.

    Args:
        headers: what the files hold.
        architecture: whose names are meant.
        config: content of ``config.json``; says how many layers there are.
        adapter: names among them that are of an adapter.
        quantised: whether modules may hold scales and the like beside what the architecture knows.

    Cost: names that differ in their numbers only are translated once, unless a step is about a certain number.
    """
    general = headers.general_names()
    by_name = any(not step.is_plain or step.kind == "offset" for step in architecture.transforms)
    by_name = by_name or any(name.count(GAP) >= MOST_GAPS for name in general)
    marker = "" if by_name else unused_number(general)
    texts = headers.names() if by_name else [marked(name, marker) for name in general]
    renaming = Renaming(architecture.transforms, architecture.base_prefix, architecture.has_tensor)
    stored = set(texts)
    owners = adapter.owners(texts, lambda name: name in stored or architecture.has_tensor(name))
    weight_of = dict(carriers([text for text in texts if text not in owners], quantised=quantised))
    weight_of.update({text: weight for text, (weight, _) in owners.items()})
    found: dict[str, list[str]] = {}
    for text in sorted({weight_of.get(text, text) for text in texts}, key=_natural):
        found[text] = renaming.live_names(text)
    unknown = {name for names in found.values() for name in names if not architecture.has_tensor(name)}
    unloaded = _not_loaded(unknown, architecture)
    beside = {name for name in unknown if quantised and architecture.has_module(name.rpartition(".")[0])}
    targets: list[list[str]] = []
    for text in texts:
        names = [name for name in found[weight_of.get(text, text)] if name not in unloaded]
        if text in owners:  # what belongs to a weight that is taken apart stays whole, beside the first part
            own = owners[text][1]
            names = [f"{name.rpartition('.')[0]}.{own}" for name in names[:1] if own]
        targets.append(names)
    return LiveNames(
        by_name=by_name,
        texts=texts if by_name else general,
        targets=targets if by_name else [[template(name, marker) for name in names] for names in targets],
        dropped=_layers_not_loaded(headers, architecture, config),
        unknown=tuple(sorted({general_name(name, "*") for name in unknown - unloaded - beside})),
    )


def _not_loaded(unknown: set[str], architecture: Architecture) -> set[str]:
    """Names that transformers expects in files and leaves there."""
    patterns = [pattern for pattern in architecture.ignored if not _LITERAL_NUMBER.search(pattern)]
    if not patterns:
        return set()
    expression = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    return {name for name in unknown if expression.search(name)}


def _layers_not_loaded(headers: Headers, architecture: Architecture, config: Mapping[str, Any]) -> list[int]:
    """Rows of layers behind the last one that the model has, as far as the architecture says that they may be there."""
    patterns = [pattern for pattern in architecture.ignored if _LITERAL_NUMBER.search(pattern)]
    count = _layer_count(config)
    if not patterns or count is None:
        return []
    expression = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    rows = []
    for row, name in enumerate(headers.names()):
        layer = _LAYER.search(name) if expression.search(name) else None
        if layer is not None and int(layer.group(1)) >= count:
            rows.append(row)
    return rows


def _layer_count(config: Mapping[str, Any]) -> int | None:
    inner = config.get("text_config")
    for said in (config, inner if isinstance(inner, dict) else {}):
        count = said.get("num_hidden_layers")
        if type(count) is int:
            return count
    return None


def _natural(name: str) -> list[Any]:
    """Order in which transformers loads: numbers by value. A part is a number or a text, always in turn."""
    return [int(part) if place % 2 else part for place, part in enumerate(_NUMBER.split(name))]
