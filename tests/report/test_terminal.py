"""The terminal view: legible at any width, without colour, in a pipe, with any name."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from drawn_models import offloaded, renamed, resident, sequential, with_device_map
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from planner import Plan
from planner.plans.columns import one_size
from planner.report.terminal import PlanView, plan_view
from planner.report.terminal_bars import characters
from planner.units import format_bytes


def printed(view: PlanView, **console: Any) -> str:
    """What arrives in a file."""
    file = io.StringIO()
    Console(file=file, **console).print(view)
    return file.getvalue()


@pytest.mark.parametrize("made", [offloaded, resident, sequential])
@pytest.mark.parametrize("width", [30, 80, 400])
@pytest.mark.parametrize("has_tree", [True, False])
def test_every_line_fits_the_width(made: Any, width: int, has_tree: bool) -> None:
    plan, tree = made()
    text = printed(plan_view(plan, tree if has_tree else None), width=width)
    assert max(cell_len(line) for line in text.splitlines()) <= width


def test_the_numbers_are_those_of_the_plan() -> None:
    """Each device's line has its key and every number that the plan gives it."""
    plan, tree = offloaded()
    lines = printed(plan_view(plan, tree), width=80).splitlines()
    for device in plan.devices:
        line = next(line for line in lines if re.match(rf"{device.id} .*[█·]", line))
        numbers = (
            device.used_bytes,
            device.reserved_bytes,
            device.headroom_bytes,
            device.free_bytes,
            device.budget_bytes,
        )
        shown = re.findall(r"[\d.]+ (?:[KMGTP]i)?B", line)
        assert shown == [format_bytes(number) for number in numbers if number is not None]


def test_a_pipe_gets_no_colour() -> None:
    plan, tree = offloaded()
    assert "\x1b" not in printed(plan_view(plan, tree), width=80)
    assert "\x1b[" in printed(plan_view(plan, tree), width=80, force_terminal=True, color_system="standard")


def test_without_colour_nothing_is_lost() -> None:
    """Colours only repeat what the words say."""
    plan, tree = offloaded()
    plain = printed(plan_view(plan, tree), width=80)
    coloured = printed(plan_view(plan, tree), width=80, force_terminal=True, color_system="truecolor")
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain
    assert "→ cpu, runs on 0" in plain


def test_a_terminal_without_unicode_gets_ascii() -> None:
    plan, _ = offloaded()
    view = plan_view(with_device_map(plan, {"größe": 0, "model": "cpu"}))
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file, width=80).print(view)
    file.flush()
    text = file.buffer.getvalue().decode("ascii")
    assert "####" in text
    assert "gr\\xf6\\xdfe" in text


def test_a_device_without_limit_says_so() -> None:
    """As plans of before have it, whose strategies took a disk that was not named."""
    plan, tree = sequential()
    data = json.loads(plan.to_json())
    disk = next(device for device in data["devices"] if device["id"] == "disk")
    disk.update(budget_bytes=None, free_bytes=None)
    plan = Plan.from_json(json.dumps(data))
    assert "no limit" in printed(plan_view(plan, tree), width=80)


def test_what_matters_is_said_below() -> None:
    plan, tree = offloaded()
    text = " ".join(printed(plan_view(plan, tree), width=400).split())
    assert f"{one_size(plan.offloaded_bytes['cpu'])} of" in text and "to RAM" in text
    assert "everything would be on the accelerators." in text
    plan, tree = resident()
    assert "!" not in printed(plan_view(plan, tree), width=80)


def test_long_lists_are_cut_and_counted() -> None:
    """Names that are no numbers cannot be folded; two hundred of them would say little."""
    plan, tree = renamed([f"part{number}x" for number in range(200)])
    text = printed(plan_view(plan, tree), width=80)
    assert "and 177 more, " in text
    assert len(text.splitlines()) < 40


@given(
    st.lists(
        st.text(min_size=1).filter(lambda name: "." not in name and name.isprintable() is False), max_size=3
    )
)
def test_names_cannot_command_the_terminal(names: list[str]) -> None:
    """Escapes, line ends and marks of direction are spelled out."""
    plan, _ = renamed(["a", "b", "c"])
    text = printed(
        plan_view(with_device_map(plan, {"a": 0, "b": "cpu"} | dict.fromkeys(names, 0))), width=400
    )
    assert "no bytes of its own" in text or not names
    assert all(each.isprintable() or each == "\n" for each in text)


def test_markup_in_a_name_is_a_name() -> None:
    plan, tree = renamed(["[bold red]x[/]", "b", "c"])
    assert "[bold red]x[/]" in printed(plan_view(plan, tree), width=80, force_terminal=True)


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=4), st.integers(4, 200))
def test_bars_show_every_part_and_fill_their_width(sizes: list[int], width: int) -> None:
    whole = sum(sizes) or 1
    counts = characters([size / whole for size in sizes], width)
    assert sum(counts) == (width if any(sizes) else 0)
    assert all((count > 0) == (size > 0) for count, size in zip(counts, sizes, strict=True))


def test_a_model_in_one_piece_is_one_line() -> None:
    plan, tree = renamed(["only"])
    text = printed(plan_view(plan, tree), width=80)
    assert "the model  100 B  → 0" in text
