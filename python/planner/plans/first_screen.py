"""What every picture says first: which model, whether it fits, what lies where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from planner.plans.advice import Advice, advice, is_too_full, left_bytes
from planner.plans.columns import in_one_unit
from planner.plans.no_plan import NoPlan
from planner.plans.notices import Notice, notices
from planner.plans.parts import DevicePlan, PlanParts
from planner.plans.runs import blocks_of
from planner.plans.strip import Piece, strip_of
from planner.plans.verdict import holds_all, model_facts, verdict

Tone = Literal["good", "bad", "no"]

__all__ = ["DeviceLine", "FirstScreen", "device_lines", "first_screen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLine:
    """One device in words.

    Args:
        device: its bytes.
        budget: its size, in the unit of all.
        percent: how much of it is taken; "" without limit.
        left: what is left of it, or what lies there.
        remark: what is wrong with that; "" where nothing is.
    """

    device: DevicePlan
    budget: str
    percent: str
    left: str
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstScreen:
    """The answer, before anything else.

    Args:
        name: the model's.
        facts: its format, size and length.
        verdict: one sentence.
        tone: "good" where nothing is offloaded, "bad" where something is, "no" where there is no plan.
        devices: a line each.
        strip: blocks in the order of execution.
        advice: what to do.
        notices: what else should not be missed.
    """

    name: str
    facts: str
    verdict: str
    tone: Tone
    devices: tuple[DeviceLine, ...]
    strip: tuple[Piece, ...]
    advice: tuple[Advice, ...]
    notices: tuple[Notice, ...]


def first_screen(
    plan: PlanParts | NoPlan, *, is_shell: bool = True, remarks: Sequence[str] = ()
) -> FirstScreen:
    """The first screen of a plan, or of the attempt at one.

    Args:
        plan: the plan, or where there is none, how far it got.
        is_shell: advice names the command's options, otherwise the keywords of `plan()`.
        remarks: further notices, such as what was looked for where no accelerator was found.

    Cost: O(blocks · depth).

    Example:
        >>> import torch
        >>> from planner import plan
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(10, 10, bias=False) for _ in range(4)))
        >>> screen = first_screen(plan(model, max_memory={0: 1000, "cpu": 2000}))
        >>> print(screen.name, screen.facts, screen.verdict, sep="; ")
        Sequential; float32, 1.56 KiB, 4 layers; Does not fit on GPU 0: 1.17 KiB rest in RAM and are streamed for each token.
    """
    said = [Notice("bad", remark) for remark in remarks]
    if isinstance(plan, NoPlan):
        return FirstScreen(
            name=plan.source.name or "the model",
            facts=model_facts(plan.source),
            verdict=plan.verdict,
            tone="no",
            devices=device_lines(plan.attempt.devices, runs=False),
            strip=strip_of(plan.blocks),
            advice=plan.advice(is_shell=is_shell),
            notices=(*said, *(Notice("bad", doubt) for doubt in plan.source.doubts)),
        )
    blocks = blocks_of(plan)
    return FirstScreen(
        name=plan.account.source.name or "the model",
        facts=model_facts(plan.account.source),
        verdict=verdict(plan, blocks),
        tone="good" if holds_all(plan) else "bad",
        devices=device_lines(plan.devices),
        strip=strip_of(blocks),
        advice=advice(plan, is_shell=is_shell),
        notices=(*said, *notices(plan, beyond_verdict=True)),
    )


def device_lines(devices: tuple[DevicePlan, ...], *, runs: bool = True) -> tuple[DeviceLine, ...]:
    """A line for each device; numbers of one column have one unit.

    Args:
        devices: the plan's.
        runs: it is a plan that will run, so that full devices are worth a remark.
    """
    has_accelerator = any(device.kind == "accelerator" and device.budget_bytes for device in devices)
    rests = [
        (has_accelerator and device.kind != "accelerator") or device.kind == "disk" for device in devices
    ]
    shown = [
        device.used_bytes if is_rest else left_bytes(device)
        for device, is_rest in zip(devices, rests, strict=True)
    ]
    budgets = _column([device.budget_bytes for device in devices])
    numbers = _column(shown)
    return tuple(
        DeviceLine(
            device=device,
            budget=budget,
            percent=_percent(device),
            left=_left(device, number, is_rest=is_rest),
            remark="too little to run in" if runs and is_too_full(device) else "",
        )
        for device, budget, number, is_rest in zip(devices, budgets, numbers, rests, strict=True)
    )


def _left(device: DevicePlan, number: str, *, is_rest: bool) -> str:
    if is_rest:
        return f"{number} of weights rest here" if device.used_bytes else "unused"
    if number == "no limit":
        return number
    return f"{number} left" if left_bytes(device) else "nothing left"


def _percent(device: DevicePlan) -> str:
    """Whole percents; 0 only where nothing is taken."""
    taken = device.taken_bytes
    if device.budget_bytes is None or not device.budget_bytes:
        return ""
    share = 100 * taken / device.budget_bytes
    return f"{max(1, round(share)) if share else 0}%"


def _column(sizes_bytes: list[int | None]) -> list[str]:
    known = iter(in_one_unit([size for size in sizes_bytes if size is not None]))
    return ["no limit" if size is None else next(known) for size in sizes_bytes]
