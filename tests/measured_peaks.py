"""Real runs on the virtual accelerators and their peaks, and recordings of the same runs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from planner.memory.recording.session import RecordedRun
from rig import Accelerators

__all__ = ["RIG_KERNELS", "measured_peaks", "run_of"]

Peaks = dict[str, dict[int, int]]
_CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


def run_of(given: Mapping[str, torch.Tensor], steps: int, options: Mapping[str, Any]) -> RecordedRun:
    """The recording of what :func:`measured_peaks` runs."""
    inputs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in given.items()}
    return RecordedRun(inputs=inputs, steps=steps, options=options, composed=RIG_KERNELS)


def _layer_norm(x: torch.Tensor, shape: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """Of other operators on the virtual accelerators: what lies otherwise than its shape is copied, and once more as rows; then there
    is one result, and one with weight and bias."""
    whole = x.contiguous()
    rows = x.reshape(1, -1, *shape)
    made = None if weight is None and bias is None else torch.empty_like(rows)
    out = torch.ops.aten.native_layer_norm.default(x, shape, weight, bias, epsilon)
    del made, rows, whole
    return out


# What accelerators have as one kernel.
RIG_KERNELS = {torch.ops.aten.native_layer_norm.default: _layer_norm}


def measured_peaks(
    model: nn.Module,
    accelerators: Accelerators,
    given: Mapping[str, torch.Tensor],
    *,
    steps: int,
    options: Mapping[str, Any],
    device: int = 0,
    cache: Callable[[], Any] | None = None,
) -> Peaks:
    """The most bytes on each accelerator in a prefill and in steps of one token, weights included.

    Args:
        model: where it runs.
        given: inputs of the first forward, anywhere.
        steps: of one token each, where the model keeps a cache.
        options: further arguments of each forward, no tensors.
        device: where the inputs go.
        cache: makes what the first forward gets; None where the model makes its own.
    """
    run: Any = _Real(model, accelerators, options, device)
    with _collected(), run.watched():
        kwargs = {name: tensor.to(device) for name, tensor in given.items()}
        run.forward("prefill", kwargs if cache is None else kwargs | {"past_key_values": cache()})
        main = next(kwargs[name] for name in ("decoder_input_ids", "input_ids", *kwargs) if name in kwargs)
        rows, tokens, *rest = main.shape
        rest = rest if "decoder_input_ids" in kwargs else []
        for step in range(steps if run.cache else 0):
            run.forward(
                f"decode {step + 1}" if step else "decode",
                run.following(kwargs, (rows, 1, *rest), tokens + step),
            )
    return run.peaks


@contextmanager
def _collected() -> Iterator[None]:
    """Garbage goes before and after, and never between."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


class _Real:
    def __init__(
        self, model: Any, accelerators: Accelerators, options: Mapping[str, Any], device: int
    ) -> None:
        self.model = model
        self.accelerators = accelerators
        self.options = options
        self.device = device
        self.peaks: Peaks = {}
        self.cache: dict[str, Any] = {}
        self.encoded: torch.Tensor | None = None
        self.encoder_output: Any = BaseModelOutput

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Meanwhile the class of what its encoder returns is seen."""
        is_seq2seq = getattr(self.model.config, "is_encoder_decoder", False)
        encoder = self.model.get_encoder() if is_seq2seq else self.model
        if encoder is self.model:
            yield
            return
        hook = encoder.register_forward_hook(self._see_class)
        try:
            yield
        finally:
            hook.remove()

    def _see_class(self, _: nn.Module, arguments: Any, output: Any) -> None:
        if "last_hidden_state" in getattr(type(output), "__dataclass_fields__", ()):
            self.encoder_output = type(output)

    def forward(self, phase: str, kwargs: dict[str, Any]) -> None:
        """One forward, whose results are let go but for what the next needs."""
        for device in self.accelerators.devices:
            torch.accelerator.reset_peak_memory_stats(device.index)
        with torch.no_grad():
            output = self.model(**kwargs, **self.options)
        self.peaks[phase] = {
            device.index: self.accelerators.peak_bytes(device.index) for device in self.accelerators.devices
        }
        found = {key: kept for key in _CACHES if (kept := getattr(output, key, None)) is not None}
        self.cache = dict(list(found.items())[-1:]) or self.cache
        if self.encoded is None:
            self.encoded = getattr(output, "encoder_last_hidden_state", None)

    def following(self, given: Mapping[str, Any], shape: tuple[int, ...], tokens: int) -> dict[str, Any]:
        """Arguments of a step after so many tokens."""
        word = torch.ones(shape, dtype=torch.long, device=self.device)
        kwargs: dict[str, Any] = dict(self.cache)
        if getattr(self.model.config, "is_encoder_decoder", False):
            kwargs |= {
                "decoder_input_ids": word,
                "encoder_outputs": self.encoder_output(last_hidden_state=self.encoded),
            }
            if "attention_mask" in given:
                kwargs["attention_mask"] = given["attention_mask"]
        else:
            kwargs["input_ids"] = word
            if "attention_mask" in given:
                kwargs["attention_mask"] = torch.ones(
                    (shape[0], tokens + 1), dtype=torch.long, device=self.device
                )
        return kwargs
