"""The first screen: legible at any width, without colour, in a pipe, with any name."""

from __future__ import annotations

import io
import itertools
import json
import re
from math import dist
from pathlib import Path
from typing import Any

import pytest
from colours import oklab
from drawn_models import MIB, Decoder, offloaded, renamed, resident, sequential, with_device_map
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from screens import GIB, GOLDEN, SIXTEEN, TOO_SMALL, UNLIKE, WIDTHS, drawn, golden_text, llama, refused

import planner
from planner import Plan
from planner.model.tree import ModuleTree
from planner.plans.first_screen import first_screen
from planner.plans.places import LEFT_OVER
from planner.plans.runs import blocks_of
from planner.plans.strip import strip_of
from planner.report.device_looks import device_characters, device_styles
from planner.report.terminal import plan_view
from planner.report.terminal_bars import characters
from planner.units import parse_bytes

MADE = pytest.mark.parametrize("made", [offloaded, resident, sequential])
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("model"))


# ---- what a person reads


@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_screen_is_the_golden_one(folder: Path, width: int) -> None:
    assert golden_text(folder, width) == (GOLDEN / f"first_screen_{width}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_and_bars_end_at_sixty_cells(width: int) -> None:
    """Every line of the golden screens; and at forty columns they say what they say at two hundred."""
    text = (GOLDEN / f"first_screen_{width}.txt").read_text(encoding="utf-8")
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    bars = re.findall(r"^ (?:GPU \d+|RAM).*?(\S{20,})", text, re.MULTILINE)
    assert max(map(len, bars), default=0) <= 60
    if width == 200:
        assert max(map(len, bars)) == 60
    for said in ("GPU 1", "24 GiB", "100%", "1.2 GiB left", "46-64", "30.3 GiB", "--headroom", "left over"):
        assert said in " ".join(text.split())


def test_numbers_of_one_column_have_one_unit(folder: Path) -> None:
    plan = planner.plan(folder, max_memory={0: 80 * GIB, 1: 900 * MIB, "cpu": 200 * GIB})
    lines = first_screen(plan).devices
    assert {line.budget.split()[1] for line in lines} == {"GiB"}
    assert {re.findall(r"[KMGT]?i?B", line.left)[0] for line in lines if re.search(r"\d", line.left)} == {
        "GiB"
    }


def test_accelerators_stand_on_one_scale(folder: Path) -> None:
    """A card of a third of the bytes has a third of the cells."""
    text = drawn(plan_view(planner.plan(folder, max_memory=UNLIKE)), 200)
    first, second = (len(re.search(rf"GPU {n} .*?GiB  (\S+)", text)[1]) for n in (0, 1))  # type: ignore[index]
    assert (first, second) == (60, 18)


def test_a_card_is_called_what_its_driver_calls_it() -> None:
    plan, _ = offloaded()
    data = json.loads(plan.to_json())
    data["devices"][0]["name"] = "NVIDIA GeForce RTX 4090"
    named = Plan.from_json(json.dumps(data))
    assert "GPU 0  GeForce RTX 4090" in drawn(plan_view(named), 110)
    assert "GPU 0" in drawn(plan_view(named), 40)


def test_a_device_without_limit_says_so() -> None:
    """As plans of before have it, whose strategies took a disk that was not named."""
    plan, _ = sequential()
    data = json.loads(plan.to_json())
    disk = next(device for device in data["devices"] if device["id"] == "disk")
    disk.update(budget_bytes=None, free_bytes=None)
    assert "no limit" in drawn(plan_view(Plan.from_json(json.dumps(data))), 80)


# ---- widths, pipes, colours


@MADE
@pytest.mark.parametrize("width", [40, 80, 400])
def test_every_line_fits_the_width(made: Any, width: int) -> None:
    text = drawn(plan_view(made()[0]), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width


def test_a_pipe_gets_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    view = plan_view(offloaded()[0])
    assert "\x1b" not in drawn(view, 80)
    assert "\x1b[" in drawn(view, 80, force_terminal=True, color_system="truecolor")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(
        r"\x1b\[[0-9;]*3[0-8]", drawn(view, 80, force_terminal=True, color_system="truecolor")
    )


def test_without_colour_nothing_is_lost() -> None:
    """Colours only repeat what the words say."""
    view = plan_view(offloaded()[0])
    coloured = drawn(view, 80, force_terminal=True, color_system="truecolor")
    plain = "".join(f"{line.rstrip()}\n" for line in ANSI.sub("", coloured).splitlines())
    assert plain == drawn(view, 80)
    assert "RAM → runs on GPU 0" in plain


def test_a_terminal_without_unicode_gets_ascii() -> None:
    plan, _ = offloaded()
    data = json.loads(plan.to_json())
    data["source"]["name"] = "größe"
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file, width=80).print(plan_view(Plan.from_json(json.dumps(data))))
    file.flush()
    text = file.buffer.getvalue().decode("ascii")
    assert "####" in text and "RAM -> runs on GPU 0" in text
    assert "gr\\xf6\\xdfe" in text


def test_sixteen_devices_can_be_told_apart() -> None:
    """By colour, and by pattern where there is none; and none is red, which is for bad news."""
    ids = [*range(16), "cpu", "disk"]
    colours = [oklab(colour) for colour in device_styles(ids)]
    assert min(dist(one, other) for one, other in itertools.combinations(colours, 2)) > 0.08
    for lightness, a, b in colours:
        assert 0.4 < lightness < 0.7, "legible on black and on white"
        assert not (a > 0.1 and -0.2 * a < b < a), "red"
    for is_ascii in (False, True):
        assert len(set(device_characters(ids, is_ascii=is_ascii))) == 18


# ---- the strip


def test_the_strip_stands_in_the_order_of_execution(folder: Path) -> None:
    strip = first_screen(planner.plan(folder, max_memory=UNLIKE)).strip
    assert [(piece.label, piece.home, piece.runs_on) for piece in strip] == [
        ("embed_tokens", 0, 0),
        ("0-45", 0, 0),
        ("46-64", "cpu", 0),
        ("65-79", 1, 1),
        ("norm", 1, 1),
        ("lm_head", 0, 0),
    ]
    assert sum(piece.size_bytes or 0 for piece in strip) == 141_107_412_992


@MADE
def test_the_strip_has_all_blocks_and_bytes(made: Any) -> None:
    plan, _ = made()
    blocks = blocks_of(plan)
    strip = strip_of(blocks)
    assert sum(piece.count for piece in strip) == len(blocks)
    assert sum(piece.size_bytes or 0 for piece in strip) == sum(device.used_bytes for device in plan.devices)


def test_what_takes_turns_layer_by_layer_is_one_piece() -> None:
    """Attention on the card and perceptron on the cpu, sixty times over."""
    tree = ModuleTree.from_module(Decoder(60))
    plan = planner.plan(tree, max_memory={0: 2000 * MIB})
    halves: dict[str, Any] = {
        f"model.layers.{layer}.{part}": device
        for layer in range(60)
        for part, device in (("attn", 0), ("mlp", "cpu"))
    }
    data = json.loads(plan.to_json())
    data["block_bytes"] = dict.fromkeys(["model.embed", *halves, "head"], 1)
    by_hand = with_device_map(Plan.from_json(json.dumps(data)), halves | {"model.embed": 0, "head": 0})
    text = drawn(plan_view(by_hand), 110)
    assert "0-59" in text and "GPU 0 and RAM by turns" in text


def test_lists_of_layers_are_told_apart() -> None:
    names = [f"{side}.layers.{layer}" for side in ("encoder", "decoder") for layer in range(3)]
    plan = planner.plan(ModuleTree.from_module(Decoder(4)), max_memory={0: 300 * MIB})
    data = json.loads(plan.to_json())
    data["block_bytes"] = dict.fromkeys(names, 1)
    plan = with_device_map(Plan.from_json(json.dumps(data)), {"": 0})
    assert [piece.label for piece in first_screen(plan).strip] == ["encoder 0-2", "decoder 0-2"]


def test_long_lists_are_cut_and_counted() -> None:
    """Pieces that cannot be folded; two hundred of them would say little."""
    plan, _ = renamed([f"part{number}x" for number in range(200)])
    device_map: dict[str, Any] = {f"part{number}x": ["cpu", 0][number % 2] for number in range(200)}
    text = drawn(plan_view(with_device_map(plan, device_map)), 80)
    assert len(text.splitlines()) < 45


def test_a_plan_of_before_is_drawn_without_sizes() -> None:
    data = json.loads(offloaded()[0].to_json())
    data["block_bytes"] = {}
    assert "RAM → runs on GPU 0" in drawn(plan_view(Plan.from_json(json.dumps(data))), 110)


# ---- what is advised holds


def test_the_room_that_is_advised_is_enough(folder: Path) -> None:
    """As it is written, on each card; a little less is not."""
    (avoid, *_) = first_screen(planner.plan(folder, max_memory=UNLIKE)).advice
    found = re.findall(r"([\d.]+ GiB) more on GPU (\d)", ", or ".join(avoid.ways))
    assert len(found) == 2
    for size, device in found:
        enough = {**UNLIKE, int(device): UNLIKE[int(device)] + parse_bytes(size)}
        assert not sum(planner.plan(folder, max_memory=enough).offloaded_bytes.values())
        enough[int(device)] -= GIB
        assert sum(planner.plan(folder, max_memory=enough).offloaded_bytes.values())


def test_the_format_that_is_advised_fits(folder: Path) -> None:
    """Everything on the accelerators; and no format is said where none does."""
    (avoid, *_) = first_screen(planner.plan(folder, max_memory=UNLIKE)).advice
    (name,) = re.findall(r"--dtype (\S+)", ", or ".join(avoid.ways))
    smaller = planner.plan(folder, max_memory=UNLIKE, dtype=name)
    assert not sum(smaller.offloaded_bytes.values())
    (avoid, *_) = first_screen(planner.plan(folder, max_memory={**UNLIKE, 0: 10 * GIB, 1: 10 * GIB})).advice
    assert "--dtype" not in " ".join(avoid.ways)


def test_the_headroom_that_is_advised_leaves_room(folder: Path) -> None:
    screen = first_screen(planner.plan(folder, max_memory=UNLIKE))
    assert [line.remark for line in screen.devices] == ["", "too little to run in", ""]
    (found,) = re.findall(r"--headroom (\d)=(\S+)", " ".join(screen.advice[-1].ways))
    again = planner.plan(folder, max_memory=UNLIKE, headroom={int(found[0]): found[1]})
    assert {line.remark for line in first_screen(again).devices} == {""}
    python_words = first_screen(planner.plan(folder, max_memory=UNLIKE), is_shell=False).advice[-1].ways
    assert python_words == ("leave room on GPU 1: headroom={1: '2GiB'}",)


def test_no_headroom_is_advised_where_nothing_else_has_room(folder: Path) -> None:
    full = {0: 70 * GIB, 1: 64 * GIB}
    assert not [
        each for each in first_screen(planner.plan(folder, max_memory=full)).advice if "run" in each.aim
    ]


# ---- a "no"


@pytest.mark.parametrize(
    "budgets", [TOO_SMALL, {0: 24 * GIB}, dict.fromkeys(range(8), 16 * GIB), {"cpu": 64 * GIB}]
)
def test_what_would_make_it_fit_does(folder: Path, budgets: dict[Any, int]) -> None:
    no_plan = refused(folder, max_memory=budgets)
    screen = first_screen(no_plan)
    assert screen.tone == "no" and screen.verdict.startswith("Does not fit: ")
    ways = ", or ".join(way for each in screen.advice for way in each.ways)
    for device, size in re.findall(r"-d (\w+)=([\w.]+)", ways):
        planner.plan(folder, max_memory={**budgets, device: parse_bytes(size)})
    for name in re.findall(r"--dtype (\S+)", ways):
        planner.plan(folder, max_memory=budgets, dtype=name)
    rooms = re.findall(r"([\d.]+ GiB) more (?:on (?:one of )?GPUs? (\d)|in RAM)", ways)
    assert rooms
    for size, card in rooms:
        device = int(card) if card else "cpu"
        planner.plan(folder, max_memory={**budgets, device: budgets[device] + parse_bytes(size)})


def test_equal_cards_are_one_way(folder: Path) -> None:
    (advice,) = first_screen(refused(folder, max_memory=dict.fromkeys(range(8), 16 * GIB))).advice
    assert advice.ways == (
        "3.86 GiB more on one of GPUs 0-7",
        "7 GiB in RAM: -d cpu=7GiB",
        "8-bit weights (67.7 GiB): --dtype fp8",
    )


def test_what_is_left_over_stands_in_the_strip(folder: Path) -> None:
    no_plan = refused(folder, max_memory=TOO_SMALL)
    left = [piece for piece in first_screen(no_plan).strip if piece.home == LEFT_OVER]
    assert sum(piece.size_bytes or 0 for piece in left) == no_plan.left_bytes > 0
    used = sum(line.device.used_bytes for line in first_screen(no_plan).devices)
    assert used + no_plan.left_bytes == no_plan.source.total_bytes


@pytest.mark.parametrize(
    ("size", "settings", "is_auto_enough"),
    [
        (24 * GIB, {"strategy": "sequential"}, False),
        (67 * GIB, {"strategy": "sequential"}, True),
        (24 * GIB, {"granularity": "module"}, False),
        (24 * GIB, {"mode": "gpu_only"}, False),
    ],
)
def test_every_no_is_drawn(folder: Path, size: int, settings: dict[str, Any], is_auto_enough: bool) -> None:
    no_plan = refused(folder, max_memory={0: size, 1: size}, **settings)
    assert "left over" in drawn(plan_view(no_plan), 80)
    assert ("--set strategy=auto" in drawn(plan_view(no_plan), 200)) == is_auto_enough


def test_what_was_looked_for_is_said(folder: Path) -> None:
    no_plan = refused(folder, max_memory={"cpu": 64 * GIB})
    said = "no accelerator was found: torch is a build for the CPU"
    assert said in drawn(plan_view(no_plan, remarks=[said]), 110)


# ---- any name


@given(
    st.lists(
        st.text(min_size=1).filter(lambda name: "." not in name and name.isprintable() is False), max_size=3
    )
)
def test_names_cannot_command_the_terminal(names: list[str]) -> None:
    """Escapes, line ends and marks of direction are spelled out."""
    plan, _ = renamed(["a", "b", "c"])
    data = json.loads(plan.to_json())
    data["block_bytes"] = dict.fromkeys(["a", "b", *names], 1)
    data["source"]["name"] = "".join(names)
    text = drawn(plan_view(with_device_map(Plan.from_json(json.dumps(data)), {"": 0})), 400)
    assert all(each.isprintable() or each == "\n" for each in text)


def test_markup_in_a_name_is_a_name() -> None:
    plan, _ = renamed(["[red]x[/]"])
    assert "[red]x[/]" in drawn(plan_view(plan), 80, force_terminal=True)


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=4), st.integers(4, 200))
def test_bars_show_every_part_and_fill_their_width(sizes: list[int], width: int) -> None:
    whole = sum(sizes) or 1
    counts = characters([size / whole for size in sizes], width)
    assert sum(counts) == (width if any(sizes) else 0)
    assert all((count > 0) == (size > 0) for count, size in zip(counts, sizes, strict=True))


def test_sixteen_cards_fit_one_screen(folder: Path) -> None:
    text = drawn(plan_view(planner.plan(folder, max_memory=SIXTEEN)), 110)
    assert len(text.splitlines()) < 32
