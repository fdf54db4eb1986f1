"""One stage of a pipeline: a model with a part of its layers, which takes what the stage before it gives."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from planner.errors import PipelineError, PlanMismatchError
from planner.pipelines.beginning import Next
from planner.pipelines.comparing import require_equal_stages
from planner.pipelines.cutting import Cut, cut_model, owner_of
from planner.pipelines.layers import LayerList, find_layers
from planner.pipelines.reading import StageWeights, open_whole
from planner.pipelines.running import StageForward
from planner.pipelines.runs import StageRun

__all__ = ["PreparedStage", "Stage", "prepare_stage"]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One stage, with its weights.

    Args:
        index: which stage, from 0 on.
        count: how many there are.
        layers: numbers of its layers in the whole model.
        model: the model's own class with these layers only.
        device: where it runs.
        read_bytes: bytes of files that were read for it.
        dtype: of hidden states that it takes and gives.
        hidden_size: their width.
        vocab_size: width of what the last stage gives.
    """

    index: int
    count: int
    layers: range
    model: nn.Module
    device: torch.device
    read_bytes: int
    dtype: torch.dtype
    hidden_size: int
    vocab_size: int
    _run: StageForward | None

    @property
    def is_first(self) -> bool:
        """Whether it takes ids of tokens, and not hidden states."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether it gives logits, and not hidden states."""
        return self.index == self.count - 1

    @property
    def _running(self) -> StageForward:
        if self._run is None:
            raise PipelineError(
                "this stage is closed, and its weights are gone", rank=self.index, stage=self.index
            )
        return self._run

    def let_go(self) -> Stage:
        """Lets go of the weights; returns what can be said of the stage without them."""
        if self._run is not None:
            self._run.let_go()
        return replace(self, model=nn.Module(), _run=None)

    @property
    def goes_by_longest_row(self) -> bool:
        """Whether what a row gives depends on how long the longest one is that it is run with."""
        return self._running.goes_by_longest_row

    def new_cache(self) -> Any:
        """An empty cache for its layers, one for each batch that is under way."""
        return self._running.new_cache()

    def next(self, ids: Tensor, mask: Tensor, cache: Any, tokens: int) -> Next:
        """What the model's own code for generating gives its next forward, the same on every stage.

        Args:
            ids: all tokens so far.
            mask: over all of them.
            cache: of those before.
            tokens: how many are new.
        """
        return self._running.forwards.next(ids, mask, cache, tokens)

    def forward(
        self,
        arrived: Tensor,
        *,
        cache: Any,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """What it makes of ids, on the first stage, or of hidden states.

        Args:
            arrived: ids of new tokens (rows, tokens), or hidden states (rows, tokens, hidden size).
            cache: of :meth:`new_cache`, written to.
            attention_mask: 1 for tokens, 0 for padding, over all tokens so far with the new ones; the same on every stage.
            position_ids: of the new tokens; the same on every stage. By default, the model's own.
            last_only: of logits, those of the last token only.

        Returns:
            Hidden states; of the last stage, logits.
        """
        return self._running(arrived, cache, attention_mask, position_ids, last_only=last_only)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedStage:
    """A stage that is judged, and of which nothing has been read yet.

    Args:
        run: which layers.
        model: the model's own class with these layers only, on meta.
        device: where it will run.
        weights: how its tensors come out of the files.
        fingerprint: digest of what names the files of the whole model have, and of what that has for them: the same on every stage.
    """

    run: StageRun
    model: nn.Module
    device: torch.device
    weights: StageWeights
    fingerprint: str
    cut: Cut

    @property
    def weight_bytes(self) -> int:
        """Bytes that its weights will take on the device."""
        return self.weights.nbytes

    def read(self, progress: Callable[[int, int], object] | None = None) -> Stage:
        """Reads its weights, straight to the device.

        Args:
            progress: is called with bytes done and bytes in all; by default nothing is told.

        Raises:
            OffloadError: a file that cannot be read, or a number that the dtype cannot hold. Fields: ``name``.
        """
        read_bytes = self.weights.read_into(self.model, progress)
        run = StageForward(self.model, self.cut, self.run)
        return Stage(
            index=self.run.index,
            count=self.run.count,
            layers=self.run.layers,
            model=self.model,
            device=self.device,
            read_bytes=read_bytes,
            dtype=run.dtype,
            hidden_size=run.hidden_size,
            vocab_size=run.vocab_size,
            _run=run,
        )


def prepare_stage(
    checkpoint: str | os.PathLike[str],
    runs: Sequence[StageRun],
    index: int,
    device: str | torch.device = "cpu",
    *,
    dtype: str | torch.dtype = "auto",
    special_dtypes: Mapping[str, Any] = MappingProxyType({}),
    attention: str | None = None,
) -> PreparedStage:
    """A stage, cut out of its model and held against the files; nothing is read but headers.

    Args:
        checkpoint: as of :func:`planner.load`.
        runs: all stages.
        index: which of them.
        device: where it will run.
        dtype: as of :func:`planner.load`.
        special_dtypes: the same by name of a tensor, before the general one.
        attention: transformers' name of an attention ("eager", "sdpa", …); by default the one that it chooses.

    Raises:
        CheckpointError: files that are missing, malformed or do not fit. Fields: ``file``, ``reason``, ``findings``.
        PlanMismatchError: more or fewer layers than the model has. Fields: ``findings``.
        PipelineError: a stage that begins where the model's layers depend on each other, or stages that compute something else.
        InvalidTreeError: a model that cannot be cut into stages. Fields: ``name``.
    """
    place = torch.device(device)
    whole = open_whole(checkpoint, dtype, special_dtypes, attention)
    model, run = whole.model, runs[index]
    layers = find_layers(model)
    _require_all(model, layers, runs)
    _require_own_choices(model, runs)
    roles = require_equal_stages(model, layers)
    fingerprint = whole.fingerprint()
    # Before layers get other numbers: what no file has may depend on them.
    weights = whole.weights_of(owner_of(model, layers, roles, run), place)
    return PreparedStage(run, model, place, weights, fingerprint, cut_model(model, layers, roles, run))


def _require_own_choices(model: nn.Module, runs: Sequence[StageRun]) -> None:
    """Raises for a stage that begins with a layer which attends to what the one before it has chosen."""
    config: Any = model.config
    modes = getattr(config.get_text_config(decoder=True), "indexer_types", None) or ()
    own = [number for number, mode in enumerate(modes) if mode != "shared"]
    odd = next((run for run in runs if modes and run.layers.start not in own), None)
    if odd is not None:
        raise PipelineError(
            f"stage {odd.index} would begin with layer {odd.layers.start} of {type(model).__name__}, which attends to the tokens that"
            f" the layer before it has chosen: begin stages with layers {', '.join(map(str, own))}",
            stage=odd.index,
            layers=odd.layers,
        )


def _require_all(model: nn.Module, layers: LayerList, runs: Sequence[StageRun]) -> None:
    total = sum(len(run.layers) for run in runs)
    if total != layers.length:
        said = f"the stages have {total} layers together, and '{layers.name}' of {type(model).__name__} has {layers.length}"
        raise PlanMismatchError(f"{said}: plan this very checkpoint", findings=(said,))
