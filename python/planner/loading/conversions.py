"""What transformers does to the tensors of a class on the way from files into a model: its steps, as recipes.

Source: ``convert_and_load_state_dict_in_model`` and ``rename_source_key``, transformers 5.23, core_model_loading.py;
    ``get_model_conversion_mapping``, conversion_mapping.py.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from planner.checkpoint.general_names import (
    GAP,
    MOST_GAPS,
    filled,
    general_name,
    marked,
    part_numbers,
    template,
    unused_number,
)
from planner.loading.recipe import Computed, ConverterRun, ModelSizes, Part, Pieces, Recipe
from planner.loading.stored import StoredTensor
from planner.names import listed

# A literal number as a part of a name: what a step with it does for one layer, it does not do for the others.
_CERTAIN_NUMBER = re.compile(r"(?<![A-Za-z0-9_\\{\[-])[0-9]+(?![A-Za-z0-9_}\]-])")


def is_of_transformers(model: nn.Module) -> bool:
    """Whether the model's class is one of transformers, which then has been loaded already; nothing is imported."""
    modeling = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and isinstance(model, modeling.PreTrainedModel)


@dataclass(frozen=True, slots=True)
class LiveName:
    """What a stored name becomes.

    Args:
        name: a live name, the first one where a converter makes several; the class may not have it.
        pattern: the converter's pattern that it matched, None where the tensor is used as it lies there.
    """

    name: str
    pattern: str | None


@dataclass
class ClassSteps:
    """transformers' steps for a model's class, for one load.

    Args:
        steps: as transformers gives them, each with its memory of having been used.
        base_prefix: local name of the model without its head, which files may have or lack.
        live: the model's tensors by name.
        config: the model's configuration.
    """

    steps: Sequence[Any]
    base_prefix: str
    live: Mapping[str, Tensor]
    config: object
    _renamings: list[Any] = field(init=False)
    _converters: list[Any] = field(init=False)
    _by_pattern: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self._renamings = [step for step in self.steps if isinstance(step, WeightRenaming)]
        self._converters = [step for step in self.steps if isinstance(step, WeightConverter)]
        self._by_pattern = {
            pattern: step for step in self._converters for pattern in step.source_patterns
        }  # the last one of equals counts there, too

    @classmethod
    def of_model(cls, model: Any, live: Mapping[str, Tensor]) -> ClassSteps:
        """The steps of a model of transformers, with its quantiser's, if it has one."""
        from transformers.conversion_mapping import get_model_conversion_mapping

        steps = get_model_conversion_mapping(model, hf_quantizer=_quantiser(model))
        return cls(steps, model.base_model_prefix or "", live, model.config)

    def used(self) -> tuple[object, ...]:
        """Steps that changed a name: what ``save_pretrained`` turns back, as after ``from_pretrained``."""
        return tuple(step for step in self.steps if step.was_used())

    # ---- Names

    def live_names(self, names: Collection[str]) -> dict[str, LiveName]:
        """What stored names become, without those that are live as they are and stay it.

        Cost: names that differ in their numbers only go through the steps once.
        """
        from transformers.core_model_loading import dot_natural_key

        found: dict[str, LiveName] = {}
        if not self._is_plain() or any(GAP in name for name in names):
            for name in sorted(names, key=dot_natural_key):
                self._find(name, *self._stepped(name), found)
            return found
        alike: dict[str, list[str]] = {}
        for name in names:
            alike.setdefault(general_name(name), []).append(name)
        marker = unused_number(alike)
        # In natural order, because some steps wait until a certain name was met.
        for general in sorted(alike, key=lambda general: dot_natural_key(marked(general, marker))):
            self._find_alike(general, marker, alike[general], found)
        return found

    def _is_plain(self) -> bool:
        """Whether no step's effect depends on the value of a number in the name, as far as can be said."""
        from transformers import core_model_loading as steps

        plain = (steps.WeightRenaming, steps.WeightConverter, steps.GroupWeightRename, steps.PrefixChange)
        return all(
            type(step) in plain and not any(map(_CERTAIN_NUMBER.search, step.source_patterns))
            for step in self.steps
        )

    def _find_alike(
        self, general: str, marker: str, names: Sequence[str], found: dict[str, LiveName]
    ) -> None:
        """What names become that differ in their numbers only."""
        start = marked(general, marker)
        text, pattern = self._stepped(start)
        goal = template(text, marker)
        is_same = text == start
        # The first and the last are looked at themselves: should a step care for numbers after all, all of them are.
        is_general = general.count(GAP) < MOST_GAPS and all(
            self._stepped(name) == (name if is_same else filled(goal, part_numbers(name)), pattern)
            for name in {names[0], names[-1]}
        )
        for name in names:
            if not is_general:
                self._find(name, *self._stepped(name), found)
            elif not is_same:
                self._find(name, filled(goal, part_numbers(name)), pattern, found)
            elif pattern is not None or name not in self.live:
                self._find(name, name, pattern, found)

    def _stepped(self, name: str) -> tuple[str, str | None]:
        from transformers.core_model_loading import apply_converters, apply_renamings

        renamed, pattern = apply_converters(apply_renamings(name, self._renamings), self._converters)
        return renamed, pattern

    def _find(self, name: str, renamed: str, pattern: str | None, found: dict[str, LiveName]) -> None:
        goal = renamed if renamed in self.live else self._prefixed(renamed)
        if goal not in self.live and name in self.live:
            goal, pattern = name, None
        if goal != name or pattern is not None or goal not in self.live:
            found[name] = LiveName(goal, pattern)

    def _prefixed(self, name: str) -> str:
        """A name with one level of the base model's name more or less, if that makes it live."""
        if not self.base_prefix:
            return name
        bare = name.removeprefix(f"{self.base_prefix}.")
        if bare != name and bare in self.live:
            return bare
        added = f"{self.base_prefix}.{name}"
        return added if added in self.live else name

    def targets(self, name: str, pattern: str | None) -> list[str]:
        """All live names that a stored tensor has a share in, by the first; the class may not have them."""
        if pattern is None:
            return [name]
        goals = self._by_pattern[pattern].target_patterns
        return [name.replace(goals[0], goal) for goal in goals]

    # ---- Recipes

    def recipes(self, name: str, taken: Sequence[tuple[str, StoredTensor]]) -> dict[str, Recipe]:
        """How a converter's live tensors are made.

        Args:
            name: the first of them.
            taken: the stored tensors that go into them, each with the pattern that it matched.

        Raises:
            ValueError: the converter does not take them, and why.
        """
        from transformers.core_model_loading import dot_natural_key

        ordered = sorted(taken, key=lambda pair: dot_natural_key(pair[1].name))
        converter = self._by_pattern[ordered[0][0]]
        pieces = _pieces(converter, ordered)
        if pieces is not None:
            return {name: pieces}
        shapes = {
            target: tuple(self.live[target].shape)
            for target in self.targets(name, ordered[0][0])
            if target in self.live
        }
        conversion = ConverterRun(converter, tuple(ordered), name, ModelSizes(self.config, shapes))
        return dict(_outcomes(conversion))


def _quantiser(model: Any) -> Any:
    """Who made a model's modules, if a quantiser did: scales go where weights go, by steps that only it knows."""
    known = getattr(model, "hf_quantizer", None)
    said = getattr(model.config, "quantization_config", None)
    if known is not None or said is None or not getattr(model, "is_quantized", False):
        return known
    from transformers.quantizers.auto import AutoHfQuantizer

    return AutoHfQuantizer.from_config(said, pre_quantized=True)


def _pieces(converter: Any, taken: Sequence[tuple[str, StoredTensor]]) -> Pieces | None:
    """A stack of equal tensors, tensors below each other, or a stack of those: nothing is computed, only put in place."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    columns = [[row for pattern, row in taken if pattern == source] for source in converter.source_patterns]
    steps = [(type(step), getattr(step, "dim", None)) for step in converter.operations]
    dtypes = {row.dtype for _, row in taken}
    shapes = [{row.shape for row in column} for column in columns]
    if len(dtypes) > 1 or not all(columns) or len(converter.target_patterns) > 1:
        return None
    (dtype,) = dtypes
    if steps == [(Concatenate, 0)]:
        rows = [row for column in columns for row in column]
        if not rows[0].shape or len({row.shape[1:] for row in rows}) > 1:
            return None
        shape = (sum(row.shape[0] for row in rows), *rows[0].shape[1:])
        return Pieces(dtype, shape, tuple(_one_after_another(rows)))
    is_stack = steps == [(MergeModulelist, 0)] and len(columns) == 1
    if not is_stack and steps != [(MergeModulelist, 0), (Concatenate, 1)]:
        return None
    if any(len(each) > 1 for each in shapes) or len({len(column) for column in columns}) > 1:
        return None
    first = columns[0][0].shape
    if len(columns) == 1:
        return Pieces(dtype, (len(columns[0]), *first), tuple(_one_after_another(columns[0])))
    if not first or len({column[0].shape[1:] for column in columns}) > 1:
        return None
    shape = (len(columns[0]), sum(column[0].shape[0] for column in columns), *first[1:])
    rows = [row for together in zip(*columns, strict=True) for row in together]
    return Pieces(dtype, shape, tuple(_one_after_another(rows)))


def _one_after_another(rows: Sequence[StoredTensor]) -> Iterator[tuple[StoredTensor, int]]:
    at = 0
    for row in rows:
        yield row, at
        at += row.nbytes


def _outcomes(conversion: ConverterRun) -> Iterator[tuple[str, Recipe]]:
    """What a conversion makes, found by a run without values: what is still the memory of a source is a part of it."""
    empty = {row: torch.empty(row.shape, dtype=row.dtype, device="meta") for _, row in conversion.sources}
    storages = {tensor.untyped_storage()._cdata: row for row, tensor in empty.items()}
    sources = tuple(row for _, row in conversion.sources)
    try:
        made = conversion.run(empty.__getitem__)
    except Exception as error:
        names = listed((row.name for row in sources), most=4)
        raise ValueError(
            f"transformers' converter cannot make {conversion.name} of {names}: {type(error).__name__}: {error}"
        ) from error
    for name, tensor in made.items():
        row = storages.get(tensor.untyped_storage()._cdata)
        if row is None or not tensor.is_contiguous() or tensor.dtype != row.dtype:
            yield name, Computed(tensor.dtype, tuple(tensor.shape), sources, conversion, name)
        elif tuple(tensor.shape) == row.shape:
            yield name, row
        else:
            begin = row.begin + int(tensor.storage_offset()) * row.dtype.itemsize
            end = begin + math.prod(tensor.shape) * row.dtype.itemsize
            yield name, Part(row, begin, end, tuple(tensor.shape))
