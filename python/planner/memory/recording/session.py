"""One recording: a prefill and decode steps of a model's copy on the meta device."""

from __future__ import annotations

import gc
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from planner.choices import AttentionKernel
from planner.errors import PlannerError, RecordingError
from planner.memory.recording.alike import AlikeLayers, UnlikeError
from planner.memory.recording.block_devices import BlockDevices
from planner.memory.recording.kernels import COMPOSED
from planner.memory.recording.recorder import Recorder
from planner.memory.recording.twin import bordered, enclosing_of, twin_of, weights_of
from planner.memory.tape import Tape

__all__ = ["Forwards", "RecordedRun", "Watcher", "record_run", "with_fused_experts"]

_NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD
# Under which a class returns what it keeps for the next forward.
_CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """What is run: one prefill, and steps of one token.

    Args:
        inputs: by argument, shape and element type of the first forward's inputs.
        step_inputs: the same of inputs that each step needs beside its token.
        steps: of one token each, after the first forward; none where the model keeps no cache.
        options: further arguments of each forward, no tensors.
        attention_kernel: which of torch's kernels attention runs.
        is_padded: what the model's code is told of masks.
        cache: makes the cache that the first forward gets; None where the model makes its own.
        composed: operators that a backend makes of others beyond those that all do, and functions that call these.
    """

    inputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    step_inputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)
    steps: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)
    attention_kernel: AttentionKernel = "math"
    is_padded: bool = False
    cache: Callable[[nn.Module], Any] | None = None
    composed: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)


def record_run(
    model: nn.Module, blocks: Sequence[str], run: RecordedRun, *, all_layers: bool = False
) -> Tape:
    """Records one run.

    Args:
        model: only looked at.
        blocks: names of what is placed as a whole, modules or tensors, in any order.
        run: what is run.
        all_layers: runs layers that are alike, too; see :class:`AlikeLayers`.

    Raises:
        RecordingError: the model's code asks for what the meta device does not have; says in which block, at which operator.
        MemoryError: this machine has no memory left.

    Guarantee: nothing of the model is changed, read or kept alive.

    Cost: some 20 microseconds for each operator, and the copying of the model's structure once.
    """
    try:
        return _recorded(model, blocks, run, all_layers=all_layers)
    except UnlikeError:
        return _recorded(model, blocks, run, all_layers=True)


def _recorded(model: nn.Module, blocks: Sequence[str], run: RecordedRun, *, all_layers: bool) -> Tape:
    twin = twin_of(model)
    notes = with_fused_experts(twin)
    recorder = Recorder(
        weights_of(twin, blocks),
        [tensor.untyped_storage() for tensor in (*twin.parameters(), *twin.buffers())],
        len(blocks),
        {**COMPOSED, **run.composed},
        is_padded=run.is_padded,
    )

    def given(_: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        made = torch.zeros(shape, dtype=dtype, device="meta")
        recorder.made(made, 0, "input")
        return made

    enclosing = enclosing_of(twin, blocks)
    skip = frozenset(getattr(twin, "_skip_keys_device_placement", None) or ())
    if not all_layers:
        AlikeLayers(recorder).stand_in(twin, blocks)
    bordered(twin, blocks, enclosing, recorder, skip)
    was_enabled = gc.isenabled()
    gc.disable()  # what is freed, and when, is the same each time
    try:
        with BlockDevices(recorder, run.attention_kernel), recorder, torch.no_grad():
            Forwards(twin, recorder, run, given).run()
    except (PlannerError, UnlikeError, MemoryError):
        raise
    except Exception as error:
        place = recorder.failed_in(error)
        block = blocks[place - 1] if place else ""
        raise RecordingError(
            f"a forward of {type(model).__name__} cannot be recorded: {type(error).__name__} after {recorder.last_operator}"
            f"{f' in {block!r}' if block else ''}: {str(error).partition(chr(10))[0]}",
            block=block,
            operator=recorder.last_operator,
        ) from error
    finally:
        if was_enabled:
            gc.enable()
        recorder.forget()
    return Tape(
        tuple(blocks),
        tuple(recorder.events),
        tuple(recorder.assumed),
        notes,
        tuple(each for _, each in enclosing),
        tuple(recorder.carried),
    )


def with_fused_experts(twin: nn.Module) -> tuple[str, ...]:
    """Experts that a class would loop over, by values, run as one operator, which is recorded in the place of the loop."""
    settable = getattr(twin, "_can_set_experts_implementation", None)
    config: Any = getattr(twin, "config", None)
    if settable is None or not settable() or getattr(config, "_experts_implementation", None) != "eager":
        return ()
    twin.set_experts_implementation("grouped_mm")  # type: ignore[operator]
    return ("experts are recorded as one grouped operator, which takes no less than the loop over them",)


class Watcher(Protocol):
    """Is told where forwards begin and end."""

    def phase(self, name: str) -> None:
        """A forward begins; its inputs are there."""

    def output(self, value: Any) -> None:
        """It has returned something."""

    def after(self) -> None:
        """What it has returned has been let go, but for what the next one needs."""


class Forwards:
    """The forwards of one run: a prefill, and steps that get what the model has kept.

    Args:
        model: what is run, wherever it lies.
        watcher: is told of each forward.
        run: what is run.
        given: makes an input of a name, a shape and an element type.
    """

    def __init__(
        self,
        model: nn.Module,
        watcher: Watcher,
        run: RecordedRun,
        given: Callable[[str, tuple[int, ...], torch.dtype], torch.Tensor],
    ) -> None:
        self.model = model
        self.watcher = watcher
        self.recording = run
        self.given = given
        self.config: Any = getattr(model, "config", None)
        self.is_seq2seq = bool(getattr(self.config, "is_encoder_decoder", False))
        self.cache_key = ""
        self.cache: Any = None
        self.encoded: Any = None
        # What its forward does not go without, also where an encoder's output is there in its place.
        takes = inspect.signature(model.forward).parameters.values()
        self.required = [each.name for each in takes if each.default is each.empty and each.kind is _NAMED]
        # Of what its encoder returns, the class; decoders of mixtures read more of that than hidden states.
        self.encoder_output: Any = None

    def run(self) -> None:
        """The prefill and the steps."""
        encoder = self.model.get_encoder() if self.is_seq2seq else self.model  # type: ignore[operator]
        seeing = None if encoder is self.model else encoder.register_forward_hook(self._see_class)
        try:
            self._run()
        finally:
            if seeing is not None:
                seeing.remove()

    def _run(self) -> None:
        kwargs = {name: self.given(name, *said) for name, said in self.recording.inputs.items()}
        if self.recording.cache is not None:
            self.cache_key, self.cache = "past_key_values", self.recording.cache(self.model)
            self._forward("prefill", kwargs | {self.cache_key: self.cache})
        else:
            self._forward("prefill", kwargs)
        rows, tokens, *rest = self._main(kwargs).shape
        for step in range(self.recording.steps if self.cache is not None else 0):
            following = self.given(
                "input_ids", (rows, 1, *rest) if self.is_seq2seq else (rows, 1), torch.long
            )
            self._forward(
                f"decode {step + 1}" if step else "decode", self._next(kwargs, following, tokens + step)
            )

    def _see_class(self, _: nn.Module, arguments: Any, output: Any) -> None:
        if "last_hidden_state" in getattr(type(output), "__dataclass_fields__", ()):
            self.encoder_output = type(output)

    @staticmethod
    def _main(kwargs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The input that is continued: rows, tokens and, where each token has several numbers, these."""
        names = ("decoder_input_ids", "input_ids", "inputs_embeds")
        return next((kwargs[name] for name in names if name in kwargs), next(iter(kwargs.values())))

    def _next(self, given: Mapping[str, Any], following: torch.Tensor, tokens: int) -> dict[str, Any]:
        """Arguments of a step after so many tokens."""
        kwargs: dict[str, Any] = {self.cache_key: self.cache}
        if self.is_seq2seq:
            kwargs |= dict.fromkeys(self.required)
            kwargs |= {
                "decoder_input_ids": following,
                "encoder_outputs": (self.encoder_output or _plain_output())(last_hidden_state=self.encoded),
            }
            if "attention_mask" in given:
                kwargs["attention_mask"] = given["attention_mask"]
        else:
            kwargs["input_ids"] = following
            if "attention_mask" in given:
                kwargs["attention_mask"] = self.given(
                    "attention_mask", (following.shape[0], tokens + 1), torch.long
                )
        for name, said in self.recording.step_inputs.items():
            # One that has as many rows for a token as for a prompt is handed on as it is.
            is_same = name in given and given[name].shape == said[0]
            kwargs[name] = given[name] if is_same else self.given(name, *said)
        return kwargs

    def _forward(self, phase: str, kwargs: dict[str, Any]) -> None:
        options = dict(self.recording.options)
        self.watcher.phase(phase)
        output: Any = self.model(**kwargs, **options)
        self.watcher.output(output)
        self._keep(output)
        del output
        self.watcher.after()

    def _keep(self, output: Any) -> None:
        for key in _CACHES:
            found = getattr(output, key, None)
            if found is not None:
                self.cache_key, self.cache = key, found
        encoded = getattr(output, "encoder_last_hidden_state", None)
        if self.encoded is None and encoded is not None:
            self.encoded = encoded


def _plain_output() -> Any:
    """What most encoders return, from where the model's own class has it."""
    return sys.modules["transformers.modeling_outputs"].BaseModelOutput
