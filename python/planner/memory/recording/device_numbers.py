"""Which number of the meta device stands for which place of a recording."""

from __future__ import annotations

from collections import OrderedDict

import torch

__all__ = ["DeviceNumbers"]

# torch keeps a device's number in one signed byte: the next would be negative.
_MOST = 127


class DeviceNumbers:
    """Numbers of meta devices, given to places as they are asked for.

    There are fewer numbers than blocks in large models. The one that was not asked for longest is given again: code between blocks
    asks where a tensor lies and uses the answer at once.
    """

    def __init__(self) -> None:
        self._number: OrderedDict[int, int] = OrderedDict()  # by place
        self._place = {0: 0}

    def device(self, place: int) -> torch.device:
        """The meta device of a place; that of the inputs is number 0."""
        if place == 0:
            return torch.device("meta", 0)
        number = self._number.get(place)
        if number is None:
            number = len(self._number) + 1
            if number > _MOST:
                number = self._number.popitem(last=False)[1]
            self._number[place] = number
            self._place[number] = place
        self._number.move_to_end(place)
        return torch.device("meta", number)

    def place(self, device: torch.device) -> int:
        """The place that a meta device stands for; one without a number is that of the inputs."""
        return self._place.get(device.index or 0, 0)
