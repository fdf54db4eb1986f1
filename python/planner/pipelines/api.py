"""`planner.pipeline`: a model whose stages are in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from planner.errors import InvalidInputError, PipelineError
from planner.pipelines.failing import described, layers_said
from planner.pipelines.generating import generate, positions_of, tensor_bytes
from planner.pipelines.opening import Asked, Opened, open_stage
from planner.pipelines.processes import join_processes
from planner.pipelines.request import Request, fingerprint, padding_mask, require_ids, require_mask, token_ids
from planner.pipelines.sampling import Sampling
from planner.pipelines.schedule import Carrier, batches_of, equally_long_batches_of, warn_of_version
from planner.pipelines.settings import warn_of_settings
from planner.pipelines.signs import Sign
from planner.pipelines.stage import Stage
from planner.plans.plan import Plan
from planner.spelling import count_of, shown

__all__ = ["Pipeline", "pipeline"]

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")
_CHECKPOINT = "checkpoint"


class Pipeline:
    """A model whose stages run in several processes; this one's part of it. Made by :func:`planner.pipeline`.

    Every process has to make the same calls in the same order. Used as a context manager, it is closed at the end.

    Guarantee: one process that fails, ends or hangs ends the calls of all others within ``timeout_s`` with a
        :class:`planner.PipelineError` that names it. Such a pipeline is over, and has to be made anew.
    """

    def __init__(self, opened: Opened) -> None:
        group = opened.processes.group
        assert group is not None, "an open pipeline is connected"
        self._opened: Opened | None = opened
        self._carrier: Carrier | None = Carrier(
            opened.stage, group, lambda works: self._tell(self._step, works)
        )
        self._calls = self._step = self._cache_bytes = 0
        self._stage = opened.stage
        opened.failing.cut = self._cut
        if opened.stage.is_first:
            warn_of_settings(opened.stage.model)

    @property
    def stage(self) -> Stage:
        """This process's stage: ``index``, ``count``, ``layers``, ``model``, ``device``."""
        return self._stage

    @property
    def read_bytes(self) -> int:
        """Bytes of the checkpoint's files that this process has read."""
        return self._stage.read_bytes

    @property
    def cache_bytes(self) -> int:
        """Bytes of this stage's caches at the end of the last call, after which they were freed; 0 before the first."""
        return self._cache_bytes

    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        *,
        eos_token_id: int | Sequence[int] | Literal["checkpoint"] | None = "checkpoint",
        pad_token_id: int | None = None,
        attention_mask: Tensor | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Tensor:
        """New tokens after those that are given.

        Args:
            ids: tokens (rows, tokens), the same on every rank; rows of unequal length are padded on the left.
            max_new_tokens: how many new ones at most.
            eos_token_id: tokens that end a row; by default those of the checkpoint's generation settings, None for none.
            pad_token_id: what rows that have ended get; by default the checkpoint's, else the first that ends a row.
            attention_mask: 1 for tokens, 0 for padding; by default what is not ``pad_token_id``, where that ends no row, else all.
            do_sample: whether tokens are drawn; otherwise the likeliest is taken.
            temperature: what logits are divided by before drawing.
            top_k: of how many of the likeliest is drawn; None of all.
            top_p: of the likeliest that have this share together.
            seed: where drawing begins; None goes on with torch's generator of the last rank.

        Returns:
            On every rank, all tokens, on the device that ids are on.

        Raises:
            PipelineError: a rank failed, is gone, hangs, or was called with something else. Fields: ``rank``, ``stage``,
                ``layers``, ``step``.
            InvalidInputError: arguments that make no sense.

        Guarantee: the tokens are those of the whole model's ``generate`` in one process with the same settings, also drawn ones with
            ``torch.manual_seed(seed)`` before, where the same kernels run; that is, with what the checkpoint's settings say of scores,
            such as ``repetition_penalty``, and of drawing only what is said here. All ranks end in the same step.

        Cost: for each new token one forward through all stages, and one broadcast.
        """

        def request() -> Request:
            given = require_ids(ids, self._stage.vocab_size)
            most = count_of(max_new_tokens)
            if not isinstance(most, int) or most < 1:
                raise InvalidInputError(
                    f"max_new_tokens must be a whole number of at least 1, not {shown(max_new_tokens)}"
                )
            ends = self._tokens("eos_token_id", None if eos_token_id == _CHECKPOINT else (eos_token_id,))
            pads = self._tokens("pad_token_id", None if pad_token_id is None else (pad_token_id,))
            sampling = Sampling(bool(do_sample), temperature, top_k, top_p, seed)
            sampling.require_sense()
            mask = padding_mask(given, pads, ends) if attention_mask is None else attention_mask
            mask = require_mask(mask, given)
            return Request(given, mask, most, ends, (*pads, *ends, 0)[0], sampling)

        def run(opened: Opened, asked: Request) -> Tensor:
            group = opened.processes.group
            assert group is not None and self._carrier is not None, "an open pipeline is connected"
            caches = self._caches(opened, asked.mask)
            try:
                found = generate(self._stage, self._carrier, group, asked, caches, self._tell)
            finally:
                self._cache_bytes = tensor_bytes(caches)
            return found.to(ids.device)

        return self._call(request, lambda asked: asked.fingerprint, run)

    def forward(self, ids: Tensor, *, attention_mask: Tensor | None = None) -> Tensor | None:
        """One forward of the whole model.

        Args:
            ids: tokens (rows, tokens), the same on every rank.
            attention_mask: 1 for tokens, 0 for padding. Positions count from a row's first token on, as in :meth:`generate`.

        Returns:
            On the last rank, logits (rows, tokens, vocabulary); None on the others.

        Raises:
            PipelineError: a rank failed, is gone, hangs, or was called with something else. Fields: ``rank``, ``stage``,
                ``layers``, ``step``.
            InvalidInputError: arguments that make no sense.

        Cost: one forward through all stages.
        """

        def request() -> tuple[Tensor, Tensor]:
            given = require_ids(ids, self._stage.vocab_size)
            return given, require_mask(attention_mask, given)

        def run(opened: Opened, asked: tuple[Tensor, Tensor]) -> Tensor | None:
            assert self._carrier is not None, "an open pipeline is connected"
            given, mask = (tensor.to(self._stage.device) for tensor in asked)
            caches = self._caches(opened, mask)
            self._tell(1, False)
            try:
                return self._carrier.forward(given, mask, positions_of(mask), caches, last_only=False)
            finally:
                self._cache_bytes = tensor_bytes(caches)

        return self._call(request, lambda asked: fingerprint(*asked), run)

    def close(self) -> None:
        """Ends this process's part: connections are closed, and weights are freed. Doing it again does nothing."""
        opened, self._opened = self._opened, None
        if opened is not None:
            self._carrier = None
            self._stage = opened.stage = opened.stage.let_go()
            opened.signs.end()
            opened.store.close()
            opened.processes.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _trace: Any) -> None:
        opened = self._opened
        if error is not None and opened is not None and opened.failing.ended is None:
            opened.failing.own(error, None, "left its pipeline")
        self.close()

    def __repr__(self) -> str:
        stage = self._stage
        state = "" if self._opened is not None else ", closed"
        return f"Pipeline(stage {stage.index} of {stage.count}, {layers_said(stage.layers)}{state})"

    def _tokens(self, what: str, asked: tuple[Any] | None) -> tuple[int, ...]:
        """Tokens that a call says, or else those of the checkpoint's settings for generating that there are."""
        words = self._stage.vocab_size
        if asked is not None:
            return token_ids(asked[0], what, words)
        said = getattr(getattr(self._stage.model, "generation_config", None), what, None)
        several = said if isinstance(said, list | tuple) else [said]
        return tuple(each for each in several if type(each) is int and 0 <= each < words)

    def _caches(self, opened: Opened, mask: Tensor) -> list[Any]:
        asked = opened.microbatches
        is_by_longest = self._stage.goes_by_longest_row
        many = equally_long_batches_of(mask, asked) if is_by_longest else batches_of(len(mask), asked)
        return [self._stage.new_cache() for _ in range(many)]

    def _cut(self) -> None:
        """Lets go of all that holds a connection, and breaks it."""
        self._carrier = None
        if self._opened is not None:
            self._opened.processes.cut()

    def _tell(self, step: int, is_working: bool) -> None:
        self._step = step
        assert self._opened is not None, "told in a call of an open pipeline"
        self._opened.signs.mine = Sign(self._calls, step, "computing" if is_working else "waiting")

    def _call(
        self,
        understand: Callable[[], _Given],
        digest: Callable[[_Given], str],
        run: Callable[[Opened, _Given], _Found],
    ) -> _Found:
        """A call that every rank makes: with the same arguments, or none goes on."""
        opened = self._opened
        if opened is None:
            raise PipelineError("this pipeline is closed; make another one", rank=self._stage.index)
        if opened.failing.ended is not None:
            ended = opened.failing.ended
            raise PipelineError(f"this pipeline is over, make another one: {ended.message}", **ended.fields)
        self._calls += 1
        given: _Given | Exception
        try:
            given = understand()
            note = {"asked": digest(given)}
        except Exception as error:  # noqa: BLE001 # whatever it is, the others are to hear it
            given, note = error, {"wrong": described(error)}
        self._tell(0, False)
        with opened.failing.together():
            notes = opened.meetings.hold("call", self._calls, note)
        try:
            if isinstance(given, Exception):
                raise given
            _require_same(opened, notes)
            with opened.failing.together():
                return run(opened, given)
        finally:
            opened.signs.mine = Sign(self._calls, 0, "idle")
            if self._carrier is not None:
                self._carrier.forget()


def _require_same(opened: Opened, notes: Sequence[Mapping[str, str]]) -> None:
    """Raises PipelineError where a rank was called with nonsense, or with something else; the pipeline may be used again."""
    for rank, note in enumerate(notes):
        if "wrong" in note:
            raise opened.failing.error_of(rank, f"was called with what makes no sense: {note['wrong']}")
    odd = [rank for rank, note in enumerate(notes) if note != notes[0]]
    if odd:
        raise opened.failing.error_of(
            odd[0], "was called with other arguments than rank 0: every rank makes the same calls"
        )


def pipeline(
    checkpoint: str | os.PathLike[str],
    *,
    plan: Plan | str | os.PathLike[str] | None = None,
    stages: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    microbatches: int | None = None,
    timeout_s: float = 300.0,
) -> Pipeline:
    """A model whose stages run in several processes, on as many devices, of one machine or of several.

    To be called in every process of a script that torchrun started, with the same arguments, and in the same order where there are
    several: not from threads that race. Each process reads the tensors of its own
    stage and no others, from files that it can reach itself.

    Args:
        checkpoint: a folder, a safetensors file, an index, or a name on the hub that is in the hub's cache; of a class of transformers.
        plan: a plan, or the file that its ``to_json`` was written to: each of its runs is a stage, in the order of ranks.
        stages: in the place of a plan, how many layers each stage has.
        device: where this process's stage runs; by default the accelerator that the plan says, or else the one with the local rank's
            number, and the cpu where there is none.
        dtype: "auto", what the plan was made for, else as stored; or one dtype for all floating tensors.
        microbatches: into how many parts the rows of a call are cut, so that several stages work at once; as many as divide the
            rows, where these do not, and as leave rows beside equally long ones, where a model's positions go by the longest. By default those of a plan by ``strategy="pipeline"``, else 1.
        timeout_s: how long a process waits for another in one step, before it takes it for one that hangs.

    Returns:
        This process's part of the pipeline.

    Raises:
        PipelineError: the processes do not agree, or another of them cannot go on; on every rank. Fields: ``rank``, ``stage``,
            ``layers``, ``step``.
        CheckpointError, PlanMismatchError, InvalidTreeError, InvalidInputError: what keeps this process from going on; the others get
            a PipelineError that says so.

    Guarantee: nothing is read but headers before all processes have agreed. The default process group is joined where there is one;
        otherwise one is made, with the backend that torch has for the device, and ended with the last pipeline in it.

    Cost: headers, building the model on the meta device, and reading the stage's own tensors, all in parallel.

    Example:
        >>> import planner
        >>> planner.pipeline("model", stages=(3, 0))
        Traceback (most recent call last):
        planner.errors.InvalidInputError: stage 1 would have 0 layers; every stage needs a whole number of them, at least 1
    """
    if (plan is None) == (stages is None):
        raise InvalidInputError("give either plan= or stages=, how many layers each stage has")
    if not (microbatches is None or (type(microbatches) is int and microbatches > 0)):
        raise InvalidInputError(
            f"microbatches must be a whole number of at least 1, not {shown(microbatches)}"
        )
    if not count_of(timeout_s):
        raise InvalidInputError(f"timeout_s must be a number of seconds above 0, not {shown(timeout_s)}")
    warn_of_version()
    asked = Asked(checkpoint, plan, stages, device, dtype, microbatches, float(timeout_s))
    processes = join_processes(asked.timeout_s)
    try:
        return Pipeline(open_stage(asked, processes))
    except BaseException:
        processes.close()
        raise
