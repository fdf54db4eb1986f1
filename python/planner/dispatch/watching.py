"""A parameter that notes when somebody reaches for its data: what is written there, torch does not count."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["WatchedParameter"]


class WatchedParameter(nn.Parameter):
    """What lies in a slot while an offloaded plain parameter is brought in.

    Guarantee: ``was_reached`` says whether its values may have been changed without being counted: through ``.data``, another
        ``.data``, NumPy or DLPack.
    """

    # A slot, because the instance's dict is for marks.
    __slots__ = ("_reached",)

    @property
    def was_reached(self) -> bool:
        """Whether somebody has had its data."""
        return getattr(self, "_reached", False)

    @property
    def data(self) -> torch.Tensor:
        """As of any tensor."""
        self._reached = True
        found: torch.Tensor = torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]
        return found

    @data.setter
    def data(self, values: torch.Tensor) -> None:
        self._reached = True
        torch.Tensor.data.__set__(self, values)  # type: ignore[attr-defined]

    def numpy(self, *, force: bool = False) -> Any:
        """As of any tensor."""
        self._reached = True
        return super().numpy(force=force)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self._reached = True
        return super().__array__(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __dlpack__(self, **options: Any) -> Any:
        self._reached = True
        return super().__dlpack__(**options)

    def untyped_storage(self) -> torch.UntypedStorage:
        """As of any tensor."""
        self._reached = True
        return super().untyped_storage()
