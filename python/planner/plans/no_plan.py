"""What there is to say where there is no plan: how far the best attempt got, and what would make one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.devices.keys import DeviceKey
from planner.plans.advice import Advice, format_words, more_room
from planner.plans.columns import one_size
from planner.plans.parts import PlanParts, Source
from planner.plans.places import LEFT_OVER, listed_places
from planner.plans.runs import Run, blocks_of

__all__ = ["NoPlan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoPlan:
    """The best attempt at a plan.

    Args:
        attempt: what it placed; what has no place has the home ``LEFT_OVER``.
        more_bytes: by device, what alone would be enough; None where the strategy does not look for it.
        auto_has_plan: strategy ``auto`` would find one, where another one was asked for.
        named_bytes: by device that was not named, with how much of it there would be a plan.
        smaller_formats: by format in which there is a plan, about how many bytes the whole model would have.
        is_proven: there is none; otherwise none was found.
    """

    attempt: PlanParts
    more_bytes: Mapping[DeviceKey, int] | None
    auto_has_plan: bool
    named_bytes: Mapping[DeviceKey, int]
    smaller_formats: Mapping[str, int]
    is_proven: bool

    @property
    def source(self) -> Source:
        """What was to be planned."""
        return self.attempt.account.source

    @property
    def blocks(self) -> tuple[Run, ...]:
        """Each block as a run of its own, in the order of execution."""
        return blocks_of(self.attempt)

    @property
    def left_bytes(self) -> int:
        """What has no place."""
        return sum(run.size_bytes or 0 for run in self.blocks if run.home == LEFT_OVER)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.is_proven and not self.left_bytes:
            return "Does not fit: there is room for all of it, but none in which it could run."
        total = one_size(self.source.total_bytes)
        left = f"{one_size(self.left_bytes)} of {total} are left over"
        if self.is_proven:
            return f"Does not fit: {left}."
        return f"No plan was found: {left}."

    def advice(self, *, is_shell: bool = True) -> tuple[Advice, ...]:
        """What would make it fit, in the order of what people can do.

        Args:
            is_shell: say options as the command has them, otherwise as `plan()` has them.
        """
        ways = tuple(self._ways(is_shell))
        return (Advice("To make it fit", ways),) if ways else ()

    def _ways(self, is_shell: bool) -> Iterator[str]:
        more_bytes = self.more_bytes or {}
        if self.auto_has_plan:
            auto = "--set strategy=auto" if is_shell else "strategy='auto'"
            yield f"another strategy: {auto}"
        yield from more_room(
            {device: size for device, size in more_bytes.items() if device not in ("cpu", "disk")}
        )
        yield from more_room(
            {device: size for device, size in more_bytes.items() if device in ("cpu", "disk")}
        )
        for device, size in self.named_bytes.items():
            option = (
                f"-d {device}={_option(size)}"
                if is_shell
                else f"max_memory={{{device!r}: '{_option(size)}', ...}}"
            )
            yield f"{one_size(size)} {'in RAM' if device == 'cpu' else 'on disk'}: {option}"
        for name, size in self.smaller_formats.items():
            yield format_words(name, size, is_shell=is_shell)
        yield from self._less_headroom(more_bytes)

    def _less_headroom(self, more_bytes: Mapping[DeviceKey, int]) -> Iterator[str]:
        enough = [
            device
            for device in self.attempt.devices
            if 0 < more_bytes.get(device.id, 0) <= device.headroom_bytes
        ]
        if enough:
            sizes = " and ".join(dict.fromkeys(one_size(device.headroom_bytes) for device in enough))
            yield f"less than the headroom of {sizes} on {listed_places([device.id for device in enough], 'or')}"


def _option(size_bytes: int) -> str:
    return one_size(size_bytes).replace(" ", "")
