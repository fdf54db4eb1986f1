"""What a reader of a plan has to know or to do; nothing where all is well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from planner.devices.keys import DeviceKey
from planner.names import listed
from planner.plans.advice import more_room
from planner.plans.columns import one_size
from planner.plans.map_alone import execution_map_notice
from planner.plans.parts import DevicePlan, PlanParts, doubts
from planner.plans.places import listed_places, place_name

__all__ = ["Notice", "NoticeKind", "notices"]

NoticeKind: TypeAlias = Literal["bad", "hint"]

_SEQUENTIAL = ("sequential", "balanced", "balanced_low_0")


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to know or to do.

    Args:
        kind: "bad" news, or a "hint".
        text: a sentence.
    """

    kind: NoticeKind
    text: str

    def __str__(self) -> str:
        return self.text


def notices(plan: PlanParts, *, beyond_verdict: bool = False) -> tuple[Notice, ...]:
    """What a reader of a plan should not miss, bad news first.

    Args:
        plan: the plan.
        beyond_verdict: without what pictures say first: how much is offloaded, what would avoid it, and which devices are full.

    Example:
        >>> import torch
        >>> from planner import plan
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
        >>> for notice in notices(plan(model, max_memory={0: 1000, "cpu": 2000})):
        ...     print(notice.kind, notice)
        bad 1.17 KiB of 1.56 KiB are offloaded, all of it to RAM; no plan offloads less.
        hint With 600 B more on GPU 0, everything would be on the accelerators.
    """
    said = [
        *_in_doubt(plan),
        *_map_alone(plan),
        *_oversized(plan),
        *_idle(plan),
        *_about_the_source(plan),
        *_timed(plan),
    ]
    if not beyond_verdict:
        said = [*_offloaded(plan), *_full(plan), *said]
    return tuple(sorted(said, key=lambda notice: notice.kind != "bad"))


def _offloaded(plan: PlanParts) -> Iterator[Notice]:
    tiers = {tier: size for tier, size in plan.offloaded_bytes.items() if size}
    if not tiers:
        return
    total = one_size(plan.account.source.total_bytes)
    parts = " and ".join(f"{one_size(size)} to {place_name(tier)}" for tier, size in tiers.items())
    where = f"all of it to {place_name(next(iter(tiers)))}" if len(tiers) == 1 else parts
    certificate = plan.certificate
    proof = (
        "no plan offloads less"
        if certificate.proven
        else f"any plan offloads at least {one_size(certificate.lower_bound_bytes)}"
        if certificate.lower_bound_bytes
        else "whether that is the least is not known"
    )
    yield Notice("bad", f"{one_size(sum(tiers.values()))} of {total} are offloaded, {where}; {proof}.")
    words = shortfall_words(plan)
    if words:
        yield Notice("hint", words)


def _timed(plan: PlanParts) -> Iterator[Notice]:
    if plan.timing is not None:
        words = plan.timing.sentence
        yield Notice("hint", f"{words[0].upper()}{words[1:]}.")


def shortfall_words(plan: PlanParts) -> str:
    """What would keep everything on the accelerators, as a sentence; nothing where it is there, or where no amount would."""
    shortfall = plan.account.shortfall
    if shortfall is None or not shortfall.more_bytes:
        return ""
    return f"With {', or '.join(more_room(shortfall.more_bytes))}, everything would be on the accelerators."


def _full(plan: PlanParts) -> Iterator[Notice]:
    """Accelerators without room for anything but weights."""
    full = [
        device.id
        for device in plan.devices
        if device.kind == "accelerator"
        and device.used_bytes
        and device.free_bytes == device.headroom_bytes == 0
    ]
    if full:
        yield Notice("bad", f"Nothing is left for activations and the KV cache on {listed_places(full)}.")


def _in_doubt(plan: PlanParts) -> Iterator[Notice]:
    for note in plan.account.source.doubts:
        yield Notice("bad", note)


def _map_alone(plan: PlanParts) -> Iterator[Notice]:
    """A map that loaders would carry out otherwise than the plan does."""
    text = execution_map_notice(plan)
    if text is not None:
        yield Notice("bad", text)


def _oversized(plan: PlanParts) -> Iterator[Notice]:
    names = [reason.name for reason in plan.account.reasons if reason.rule == "oversized"]
    if names:
        yield Notice(
            "bad", f"Larger than every accelerator, so it runs where it lies: {listed(names, most=1)}."
        )


def _idle(plan: PlanParts) -> Iterator[Notice]:
    """Devices that should hold weights and do not, where something would change that."""
    by_id = {device.id: device for device in plan.devices}
    smallest = min(
        (each.needed_bytes for each in plan.account.reasons if each.rule in ("offloaded", "oversized")),
        default=0,
    )
    for key, least_bytes in plan.account.minimum_bytes.items():
        device = by_id.get(key)
        if plan.certificate.stage in _SEQUENTIAL:
            yield _idle_of_sequential(key, device, least_bytes)
        elif device is not None and not device.reserved_bytes and smallest > device_room_bytes(device):
            yield Notice(
                "hint",
                f"{place_name(key)} holds no weights: it has room for {one_size(device_room_bytes(device))}, and the "
                f"smallest block offloaded needs {one_size(smallest, up=True)}.",
            )


def _idle_of_sequential(key: DeviceKey, device: DevicePlan | None, least_bytes: int | None) -> Notice:
    said = f"{place_name(key)} holds no weights"
    if least_bytes is None:
        return Notice("hint", f"{said}, and no budget of it alone would change that.")
    more = f"with a budget of {one_size(least_bytes, up=True)}, the others as they are, it would get some"
    is_less = device is not None and device.budget_bytes is not None and least_bytes <= device.budget_bytes
    return Notice("hint", f"{said}; {more}{', though that is less than it has' if is_less else ''}.")


def device_room_bytes(device: DevicePlan) -> int:
    """What weights may take of a device with a budget, at least 0."""
    return max(0, (device.budget_bytes or 0) - device.headroom_bytes)


def _about_the_source(plan: PlanParts) -> Iterator[Notice]:
    notes = plan.account.source.notes
    known = doubts(notes)
    for note in notes:
        if note not in known:
            yield Notice("hint", note)
