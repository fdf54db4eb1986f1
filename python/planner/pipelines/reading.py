"""The tensors of one stage, out of the files of the whole model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from planner.loading.file_order import Staying, read_in_file_order
from planner.loading.initial import initial_values
from planner.loading.live import live_tensors
from planner.loading.options import cast_rule, wanted_dtype
from planner.loading.recipes import Recipes, find_recipes
from planner.loading.skeleton import build_skeleton
from planner.loading.source import CheckpointSource, open_checkpoint, require_nothing
from planner.loading.targets import CastRule
from planner.loading.weights import WantedTensor
from planner.pipelines.cutting import Cut

__all__ = ["StageWeights", "weights_of"]


@dataclass(frozen=True, slots=True, eq=False)
class WholeWeights:
    """How the tensors of a whole model come out of its files."""

    source: CheckpointSource
    recipes: Recipes
    dtype_of: CastRule

    def make_buffers(self, model: nn.Module) -> None:
        """Fills buffers that no file has."""
        names = [
            name
            for name, buffer in model.named_buffers()
            if buffer.is_meta and name.rpartition(".")[2] in _owner(model, name)._non_persistent_buffers_set
        ]
        initial = initial_values(model, names)
        require_nothing(initial.findings, self.source.files.name)
        for name, value in initial.values.items():
            _owner(model, name)._buffers[name.rpartition(".")[2]] = value

    def of_stage(self, model: nn.Module, cut: Cut) -> StageWeights:
        """Those of a stage's tensors. Raises CheckpointError."""
        wanted: dict[str, WantedTensor] = {}
        findings: list[str] = []
        for local, tensor in live_tensors(model).items():
            name = cut.names[id(tensor)]
            name = self.recipes.ties.get(name, name)
            recipe = self.recipes.by_name.get(name)
            if recipe is None:
                findings.append(f"no file has '{name}'")
            elif tuple(tensor.shape) != recipe.shape:
                findings.append(
                    f"'{name}' is {list(recipe.shape)} in the files and {list(tensor.shape)} in the model"
                )
            else:
                dtype = self.dtype_of(name, recipe.dtype, tensor)
                wanted[local] = WantedTensor(name, recipe, dtype, isinstance(tensor, nn.Parameter))
        require_nothing(findings, self.source.files.name)
        return StageWeights(self.source, wanted)


@dataclass(frozen=True, slots=True, eq=False)
class StageWeights:
    """How the tensors of one stage come out of the files.

    Args:
        source: the open files.
        wanted: by name in the stage.
    """

    source: CheckpointSource
    wanted: dict[str, WantedTensor]

    @property
    def nbytes(self) -> int:
        """Bytes that they take in memory, each once."""
        return sum(each.nbytes for each in {each.name: each for each in self.wanted.values()}.values())

    def read_into(
        self, model: nn.Module, device: torch.device, progress: Callable[[int, int], object] | None
    ) -> int:
        """Reads them to a device and puts them into the model; returns the bytes read."""
        total, done = self.nbytes, 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            if progress is not None:
                progress(done, total)

        rows = {each.name: Staying(each, device) for each in self.wanted.values()}
        with torch.inference_mode(False), torch.no_grad():
            found = read_in_file_order(rows.values(), self.source.opened, advance)
            made: dict[str, Any] = {}
            for local, each in self.wanted.items():
                value = found.by_name[each.name]
                if each.is_parameter:
                    value = made.setdefault(each.name, nn.Parameter(value, requires_grad=False))
                owner, key = _owner(model, local), local.rpartition(".")[2]
                owner.__dict__["_parameters" if each.is_parameter else "_buffers"][key] = value
            for module in model.modules():
                for key, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[key] = buffer.to(device)
        return found.read_bytes


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def weights_of(
    checkpoint: str | os.PathLike[str],
    dtype: str | torch.dtype,
    special_dtypes: Mapping[str, Any],
    attention: str | None,
) -> tuple[WholeWeights, nn.Module]:
    """A checkpoint's model on meta, and how its tensors come out of the files. Raises CheckpointError."""
    source = open_checkpoint(checkpoint)
    model = build_skeleton(source.files, source.rows, wanted_dtype(dtype))
    if attention is not None:
        model.set_attn_implementation(attention)  # type: ignore[operator]
    recipes = find_recipes(source.rows, model)
    require_nothing(recipes.findings, source.files.name)
    return WholeWeights(source, recipes, cast_rule(dtype, special_dtypes)), model
