"""A parameter that notes when its data is reached for: what is written there, torch does not count."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from planner.dispatching.tensors.placeholder import at_hand

__all__ = ["WatchedTensor", "unwatched", "watched"]


class WatchedTensor(torch.Tensor):
    """What lies in a slot while an offloaded plain parameter is brought in.

    ``isinstance(…, nn.Parameter)`` holds, but the class is no subclass of it: ``nn.Parameter(tensor)`` asks that the tensor's
    ``detach()`` gives its own class, and what is detached must not be a parameter.

    Guarantee: ``was_reached`` says whether its values may have been changed without being counted: through ``.data``, another
        ``.data``, NumPy, DLPack or the storage, also those of what was detached from it.
    """

    # Slots, because the instance's dict is for marks.
    __slots__ = ("_is_param", "_reached", "_source")

    _is_param: bool
    _source: WatchedTensor

    # As for parameters, so that operators cost and give what they do for those.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, data: torch.Tensor, requires_grad: bool = True, **_: Any) -> Any:
        # Libraries rebuild a parameter by calling its class.
        return nn.Parameter(data, requires_grad=requires_grad)

    @property
    def was_reached(self) -> bool:
        """Whether its data was reached for."""
        return getattr(self, "_reached", False)

    def _note(self) -> None:
        self._reached = True
        source = getattr(self, "_source", None)
        if source is not None:
            source._note()

    @property
    def data(self) -> torch.Tensor:
        """As of any tensor."""
        self._note()
        found: torch.Tensor = torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]
        return found

    @data.setter
    def data(self, values: torch.Tensor) -> None:
        self._note()
        values = at_hand(values)
        if values is not self:  # as after `weight.data -= …` of one's own placeholder
            torch.Tensor.data.__set__(self, values)  # type: ignore[attr-defined]

    def detach(self) -> torch.Tensor:
        """As of any tensor; reaching for its data is reaching for this one's."""
        made = torch.Tensor._make_subclass(WatchedTensor, super().detach())
        made._source = self
        return made

    def numpy(self, *, force: bool = False) -> Any:
        """As of any tensor."""
        self._note()
        return super().numpy(force=force)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self._note()
        return super().__array__(*args, **kwargs)  # type: ignore[no-untyped-call]

    def __dlpack__(self, **options: Any) -> Any:
        self._note()
        return super().__dlpack__(**options)

    def untyped_storage(self) -> torch.UntypedStorage:
        """As of any tensor."""
        self._note()
        return super().untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = self._plain(self.clone(memory_format=torch.preserve_format).detach())
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain(super().detach()).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def _plain(self, values: torch.Tensor) -> torch.Tensor:
        """Values as what this stands for."""
        made = torch.Tensor._make_subclass(torch.Tensor, values)
        if getattr(self, "_is_param", False):
            made = nn.Parameter(made, requires_grad=self.requires_grad)
        made.__dict__.update(self.__dict__)
        return made


def watched(data: torch.Tensor, *, requires_grad: bool) -> WatchedTensor:
    """Data as a parameter that notes when it is reached for."""
    made: WatchedTensor = torch.Tensor._make_subclass(WatchedTensor, data, requires_grad)
    made._is_param = True
    return made


def unwatched(tensor: torch.Tensor) -> torch.Tensor:
    """The same data in a plain tensor, for code that only reads it."""
    return torch.Tensor.detach(tensor) if isinstance(tensor, WatchedTensor) else tensor
