"""The mode that tells a model's code beside which block a tensor lies."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from planner.choices import AttentionKernel
from planner.memory.recording.kernels import attention
from planner.memory.recording.recorder import Recorder

__all__ = ["BlockDevices"]

_DEVICE = torch.Tensor.device


class BlockDevices(TorchFunctionMode):
    """Tells the model's code beside which block a tensor lies, and runs attention as accelerators would.

    Args:
        recorder: knows.
        kernel: which of torch's kernels attention runs.
    """

    def __init__(self, recorder: Recorder, kernel: AttentionKernel) -> None:
        super().__init__()
        self.recorder = recorder
        self.kernel = kernel

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__self__", None) is _DEVICE:
            tensor = args[0]
            return (
                self.recorder.numbers.device(self.recorder.place_of(tensor))
                if tensor.is_meta
                else tensor.device
            )
        if func is torch.nn.functional.scaled_dot_product_attention and self.kernel != "math":
            return attention(self.kernel, *args, **kwargs)
        if func is torch.tensor and kwargs.get("device") is not None:
            return self._made_there(func, args, kwargs)
        return func(*args, **kwargs)

    def _made_there(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Below this function, the number of a meta device is lost."""
        device = torch.device(kwargs["device"])
        if device.type != "meta":
            return func(*args, **kwargs)
        self.recorder.forced = self.recorder.numbers.place(device)
        try:
            return func(*args, **kwargs)
        finally:
            self.recorder.forced = None
