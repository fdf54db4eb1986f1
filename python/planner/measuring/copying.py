"""How fast bytes get from one device to another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Final

import torch

from planner.devices.machine_parts import Link
from planner.devices.rate import Rate
from planner.measuring.computing import first_line
from planner.measuring.places import Place
from planner.measuring.shots import Shots, shots_of

_COPIED_BYTES: Final = 64 << 20
_LEAST_BYTES: Final = 4


def measured_links(places: Sequence[Place], most_s: float) -> tuple[list[Link], list[str]]:
    """Links between the host and each accelerator, and between these; and what could not be measured.

    Args:
        places: of :func:`planner.measuring.places.places`.
        most_s: for each link, about.
    """
    links: list[Link] = []
    notes: list[str] = []
    for source, to in permutations(places, 2):
        kinds = (True, False) if source.is_host or to.is_host else (True,)
        for is_pinned in kinds:
            try:
                links.append(_link(source, to, is_pinned, most_s))
            except (RuntimeError, NotImplementedError) as error:
                memory = "pinned" if is_pinned else "pageable"
                notes.append(f"{source.key} to {to.key}, {memory}: {first_line(error)}")
    return links, notes


def _link(source: Place, to: Place, is_pinned: bool, most_s: float) -> Link:
    how = f"copies from {'pinned' if is_pinned else 'pageable'} memory" if source.is_host else "copies"
    large = _copies(source, to, _COPIED_BYTES, is_pinned, most_s / 2)
    small = _copies(source, to, _LEAST_BYTES, is_pinned, most_s / 2)
    return Link(
        source=source.key,
        to=to.key,
        is_pinned=is_pinned,
        bytes_per_s=_beyond(large, small, f"{how} of {_COPIED_BYTES >> 20} MiB"),
        latency_ps=small.duration_ps(f"{how} of {_LEAST_BYTES} bytes"),
    )


def _beyond(large: Shots, small: Shots, how: str) -> Rate:
    """The rate of a long copy without what even the shortest takes, which counts by itself."""
    least_s = small.least_s if small.least_s < large.least_s else 0.0
    pure = Shots(large.median_s - least_s, large.least_s - least_s, large.most_s - least_s, large.count)
    return pure.rate(_COPIED_BYTES, how)


def _copies(source: Place, to: Place, size_bytes: int, is_pinned: bool, most_s: float) -> Shots:
    from_buffer, to_buffer = _buffer(source, size_bytes, is_pinned), _buffer(to, size_bytes, is_pinned)

    def wait() -> None:
        source.wait()
        to.wait()

    return shots_of(lambda: to_buffer.copy_(from_buffer, non_blocking=True), wait, most_s=most_s)


def _buffer(place: Place, size_bytes: int, is_pinned: bool) -> torch.Tensor:
    buffer = torch.full((size_bytes,), 1, dtype=torch.uint8, device=place.device)
    return buffer.pin_memory() if place.is_host and is_pinned else buffer
