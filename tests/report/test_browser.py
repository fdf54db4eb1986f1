"""The HTML report in a real browser: quiet, the plan's numbers, keys, search, table, both schemes, any width, large models.

Skipped where there is no Chromium with its driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from browsing import Browser, started
from drawn_models import MIB, Decoder, drawn_bytes, offloaded, renamed, resident, sequential, with_device_map
from screens import refused
from torch import nn

import planner
from planner.model.tree import ModuleTree
from planner.plans.first_screen import first_screen
from planner.plans.parts import Reason
from planner.plans.places import place_name
from planner.plans.runs import blocks_of
from planner.plans.wording import sentence
from planner.report.html import html_report
from planner.report.rows import plan_rows
from planner.units import format_bytes
from tiny_models import built

PLANS = pytest.mark.parametrize("made", [offloaded, resident, sequential])
LOOKS = pytest.mark.parametrize(("width", "scheme"), [(w, s) for w in (400, 1400) for s in ("light", "dark")])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("pages")) as found:
        yield found


def open_map(browser: Browser, page: str, **look: Any) -> None:
    """A page with its second tab in front."""
    browser.open(page, **look)
    browser.find("#tab-map").click()


def focus_treemap(browser: Browser) -> None:
    """As a keyboard gets there: Tab from the search box."""
    browser.find("#query").click()
    for _ in range(10):
        browser.press("\ue004")
        if browser.run("return document.activeElement.classList.contains('cell')"):
            return
    raise AssertionError("Tab does not lead to the treemap")


def reasons_shown(browser: Browser) -> list[str]:
    """Sentences of the details."""
    return browser.texts("#details-reasons li")


def page_sentence(reason: Reason) -> str:
    """As `explain` says it, with devices as people call them."""
    return sentence(replace(reason, device=place_name(reason.device)))


def table_rows(browser: Browser) -> list[tuple[str, str, str]]:
    """Name, bytes and device of every row of every page of the table."""
    found: list[tuple[str, str, str]] = []
    while True:
        found += browser.run("""
            return [...document.querySelectorAll("#table tbody tr")].map((line) => [
              line.querySelector("th").textContent, line.querySelector("data").value,
              line.querySelector("[data-label='lies on']").textContent])""")
        if not browser.find("#page-after").is_enabled():
            return [(name, size, place) for name, size, place in found]
        browser.find("#page-after").click()


# ---- quiet


@PLANS
@pytest.mark.parametrize("has_tree", [True, False])
def test_the_page_is_quiet(browser: Browser, made: Any, has_tree: bool) -> None:
    """No word in the console, no breach of the policy, nothing asked for but the page."""
    plan, tree = made()
    browser.open(html_report(plan, tree if has_tree else None))
    for tab in browser.find_all("[role=tab]"):
        tab.click()
    browser.find("#tab-map").click()
    browser.find(".cell")  # waits: the picture is drawn when the page has its size
    assert browser.find_all(".cell")
    assert browser.complaints() == []
    asked = browser.requests()
    assert len([address for address in asked if address.startswith("file:")]) == 1
    assert not [address for address in asked if not address.startswith(("file:", "data:"))]


def test_hostile_names_are_text(browser: Browser) -> None:
    names = [
        "</script><script>window.hit = 1</script>",
        "<img src=x onerror='window.hit = 1'>",
        "\"'&\u2028é\u202e<",
        "{{data}}",
    ]
    plan, _ = renamed(["a", "b", "c"])
    browser.open(html_report(with_device_map(plan, {"a": 0, "b": "cpu"} | dict.fromkeys(names, 0))))
    assert browser.run("return window.hit") is None
    browser.find("#tab-table").click()
    assert set(names) <= {name for name, *_ in table_rows(browser)}
    assert browser.complaints() == []


def test_the_policy_stops_foreign_scripts_and_addresses(browser: Browser) -> None:
    """So that what is tested above cannot pass because nothing was tried."""
    browser.open(html_report(*resident()))
    browser.run("""
        const script = document.createElement("script");
        try { script.text = "window.hit = 1"; } catch (error) { console.error(error.message); }
        document.head.append(script);
        const image = document.createElement("img");
        image.src = "https://example.invalid/x.png";
        document.body.append(image);""")
    assert browser.run("return window.hit") is None
    assert browser.complaints()


# ---- numbers


@PLANS
def test_the_numbers_of_devices_are_the_plan_s(browser: Browser, made: Any) -> None:
    plan, tree = made()
    browser.open(html_report(plan, tree))
    shown = browser.run("""
        return [...document.querySelectorAll(".devices tr")].map((line) => [line.dataset.device,
          ...[...line.querySelectorAll("data")].map((data) => Number(data.value)), line.lastElementChild.textContent])""")
    assert shown == [
        [
            str(line.device.id),
            line.device.budget_bytes,
            line.device.used_bytes,
            f"{line.left}: {line.remark}" if line.remark else line.left,
        ]
        for line in first_screen(plan).devices
    ]


@PLANS
def test_the_bytes_in_the_treemap_are_the_plan_s(browser: Browser, made: Any) -> None:
    """What the script adds up by device is what the plan says is used."""
    plan, tree = made()
    open_map(browser, html_report(plan, tree))
    facts = dict(zip(browser.texts("#details-facts dt"), browser.texts("#details-facts dd"), strict=True))
    used = {device.id: device.used_bytes for device in plan.devices if device.used_bytes}
    assert drawn_bytes(plan_rows(plan, tree)) == used
    assert {key: words for key, words in facts.items() if key.startswith("on ")} == {
        f"on {place_name(device)}": format_bytes(size) for device, size in used.items()
    }


def test_areas_are_bytes_and_neighbours_stay_neighbours(browser: Browser) -> None:
    """Of modules that lie side by side: in reading order, whatever their sizes."""
    browser.open(html_report(*offloaded()))
    areas = browser.run("""
        return inStrips([1, 6, 2, 6, 4, 3, 2].map((size) => ({ size })), { x: 0, y: 0, width: 600, height: 400 })
          .map(({ item, x, y, width, height }) => [item.size, x, y, width, height])""")
    assert [size for size, *_ in areas] == [1, 6, 2, 6, 4, 3, 2]
    assert [round(width * height) for _, _, _, width, height in areas] == [
        size * 10_000 for size, *_ in areas
    ]
    corners = [(round(y, 3), round(x, 3)) for _, x, y, _, _ in areas]
    assert corners == sorted(corners)
    assert all(x + width <= 600.001 and y + height <= 400.001 for _, x, y, width, height in areas)
    assert max(max(width / height, height / width) for _, _, _, width, height in areas) < 6


def test_sizes_are_written_as_everywhere_else(browser: Browser) -> None:
    """The script's format is Python's, halves included."""
    rng = Random(5)
    sizes = [0, 1, 1023, 1024, 1152, 1179648 * 1024, 2**53 - 1, 5 * 2**50]
    sizes += [rng.randrange(1 << rng.randrange(1, 53)) for _ in range(2000)]
    sizes += [
        (2 * rng.randrange(400) + 1) << (10 * rng.randrange(1, 4) - rng.randrange(4)) for _ in range(500)
    ]
    browser.open(html_report(*resident()))
    shown = browser.run("return arguments[0].map(formatBytes)", sizes)
    assert shown == [format_bytes(size) for size in sizes]


# ---- keys and pointer


def test_keyboard_focus_shows_the_reason(browser: Browser) -> None:
    """Every cell that the arrow keys reach: its name, and the sentences that `explain` uses."""
    plan, tree = offloaded()
    open_map(browser, html_report(plan, tree))
    focus_treemap(browser)
    said = {
        reason.name: [page_sentence(each) for each in plan.reasons if each.name == reason.name]
        for reason in plan.reasons
    }
    seen = set()
    for _ in range(len(browser.find_all(".cell"))):
        name = browser.text("#details-name")
        assert browser.run("return document.activeElement.getAttribute('aria-label')").startswith(f"{name}, ")
        assert (
            browser.run("return document.activeElement.getAttribute('aria-describedby')") == "details-reasons"
        )
        if name in said:
            assert reasons_shown(browser) == said[name]
            seen.add(name)
        browser.press("\ue014")
    assert {"model.layers.0", "model.layers.11", "model.embed"} <= seen


def test_pointing_shows_the_reason(browser: Browser) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    plan, tree = offloaded()
    open_map(browser, html_report(plan, tree))
    target = browser.find(".cell.cpu:not(.open)")
    name = target.get_attribute("aria-label").partition(",")[0]
    ActionChains(browser.driver).move_to_element(target).perform()
    assert browser.text("#details-name") == name
    block = ".".join(name.split(".")[:3])
    assert reasons_shown(browser) == [page_sentence(each) for each in plan.reasons if each.name == block]


def test_a_module_that_is_pointed_at_does_not_hide_what_is_inside(browser: Browser) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    open_map(browser, html_report(*offloaded()))
    outer, inner = browser.find(".cell.open"), browser.find(".cell:not(.open)")
    ActionChains(browser.driver).move_to_element(outer.find_element("css selector", ".name")).perform()
    assert browser.text("#details-name") == outer.get_attribute("aria-label").partition(",")[0]
    ActionChains(browser.driver).move_to_element(inner).perform()
    assert browser.text("#details-name") == inner.get_attribute("aria-label").partition(",")[0]


def test_keys_go_into_a_module_and_back(browser: Browser) -> None:
    plan, tree = offloaded()
    open_map(browser, html_report(plan, tree))
    focus_treemap(browser)
    browser.press("\ue007")
    assert browser.texts("#path button") == ["the model", "model"]
    assert browser.run("return decodeURIComponent(location.hash)") == "#model"
    assert browser.run("return document.activeElement.classList.contains('cell')")
    browser.press("\ue00c")
    assert browser.texts("#path button") == ["the model"]
    browser.driver.back()
    browser.run("return new Promise((done) => setTimeout(done, 50))")
    assert browser.texts("#path button") == ["the model", "model"]


def test_only_one_cell_is_on_the_way_of_tab(browser: Browser) -> None:
    open_map(browser, html_report(*offloaded()))
    focus_treemap(browser)
    browser.press("\ue014", "\ue014")
    assert len(browser.find_all('.cell[tabindex="0"]')) == 1
    browser.press("\ue004")
    assert not browser.run("return document.activeElement.classList.contains('cell')")


# ---- search


def test_search_finds_modules_and_leads_to_them(browser: Browser) -> None:
    plan, tree = offloaded()
    open_map(browser, html_report(plan, tree))
    browser.find("#query").send_keys("LAYERS.7.mlp")
    wanted = [name for name in plan_rows(plan, tree).names if "layers.7.mlp" in name]
    assert browser.text("#found-count") == f"{len(wanted)} found:"
    assert browser.texts("#found-list .name") == wanted
    assert len(browser.find_all(".cell.hit")) < len(browser.find_all(".cell"))
    browser.find("#found-list button").click()
    assert browser.text("#details-name") == "model.layers.7.mlp"
    assert browser.run("return document.activeElement.getAttribute('aria-label')").startswith(
        "model.layers.7.mlp,"
    )


def test_search_says_when_nothing_is_found(browser: Browser) -> None:
    browser.open(html_report(*offloaded()))
    browser.find("#query").send_keys("nothing like it")
    assert browser.text("#found-count") == "Nothing has that name."
    browser.find("#query").clear()
    browser.find("#query").send_keys("e")
    assert browser.complaints() == []


def test_without_the_model_search_leads_to_the_block(browser: Browser) -> None:
    """As `explain` does: any name inside a block is explained by the block."""
    plan, _ = offloaded()
    browser.open(html_report(plan))
    browser.find("#query").send_keys("model.layers.7.mlp.up.weight")
    assert browser.texts("#found-list .name") == ["model.layers.7"]


# ---- table


@PLANS
@pytest.mark.parametrize("has_tree", [True, False])
def test_the_table_has_all_rows(browser: Browser, made: Any, has_tree: bool) -> None:
    plan, tree = made()
    rows = plan_rows(plan, tree if has_tree else None)
    browser.open(html_report(plan, tree if has_tree else None))
    browser.find("#tab-table").click()
    browser.find("#inside-blocks").click()
    places = {-1: "several devices", -2: "nowhere: no tensors"}
    assert table_rows(browser) == [
        (name or "the model", str(size), places.get(home) or place_name(rows.devices[home]))
        for name, size, home in zip(rows.names, rows.sizes_bytes, rows.homes, strict=True)
    ]


def test_the_table_begins_with_what_was_decided(browser: Browser) -> None:
    plan, tree = offloaded()
    browser.open(html_report(plan, tree))
    browser.find("#tab-table").click()
    names = [name for name, *_ in table_rows(browser)]
    assert {reason.name for reason in plan.reasons} <= set(names)
    assert "model.layers.0.attn" not in names


# ---- looks


@LOOKS
def test_nothing_is_wider_than_the_window(browser: Browser, width: int, scheme: str) -> None:
    plan, tree = offloaded()
    browser.open(html_report(plan, tree), width=width, scheme=scheme)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    browser.find("#tab-table").click()
    browser.find("#inside-blocks").click()
    browser.find("#query").send_keys("mlp")
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_a_name_without_a_break_is_broken(browser: Browser) -> None:
    plan, _ = renamed(["a", "b", "c"])
    browser.open(html_report(with_device_map(plan, {"a": 0, "b": "cpu", "c": 0, "x" * 500: 0})), width=400)
    browser.find("#query").send_keys("x")
    browser.find("#found-list button").click()
    assert browser.text("#details-name") == "x" * 500
    assert browser.run("return document.documentElement.scrollWidth") <= 400


@LOOKS
def test_all_text_can_be_read(browser: Browser, width: int, scheme: str) -> None:
    """At least 4.5 to 1 between each text and what it lies on, as the browser has computed both."""
    plan, tree = offloaded()
    browser.open(html_report(plan, tree), width=width, scheme=scheme)
    browser.find("#query").send_keys("mlp")
    for closed in browser.find_all("details"):
        closed.click()
    faint = browser.run("""
        const channel = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        const light = (rgb) => 0.2126 * channel(rgb[0]) + 0.7152 * channel(rgb[1]) + 0.0722 * channel(rgb[2]);
        const parse = (text) => text.match(/[\\d.]+/g).map(Number).map((value, index) => index < 3 ? value / 255 : value);
        const ground = (element) => {
          for (let each = element; each; each = each.parentElement) {
            const colour = parse(getComputedStyle(each).backgroundColor);
            if (colour.length === 3 || colour[3] > 0.99) return colour;
          }
          return [1, 1, 1];
        };
        return [...document.body.querySelectorAll("*")]
          .filter((each) => !["SCRIPT", "STYLE", "NOSCRIPT"].includes(each.tagName))
          .filter((each) => each.checkVisibility() && [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
          .map((each) => {
            const [one, other] = [light(parse(getComputedStyle(each).color)), light(ground(each))];
            return [each.textContent.slice(0, 40), (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)];
          })
          .filter(([, ratio]) => !(ratio >= 4.5));""")
    assert faint == []
    assert browser.run("return matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")


def test_the_schemes_differ(browser: Browser) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        browser.open(html_report(*resident()), scheme=scheme)
        grounds.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]


# ---- the first tab


def lanes(browser: Browser) -> list[list[Any]]:
    """Of each lane its name, and of each segment its home, place and width in pixels."""
    return browser.run("""
        return [...document.querySelectorAll(".lane")].map((lane) => [lane.querySelector(".name").textContent,
          lane.querySelector(".track").clientWidth, [...lane.querySelectorAll(".segment")].map((segment) => [
            segment.getAttribute("aria-label"), segment.offsetLeft, segment.getBoundingClientRect().width])])""")


@PLANS
def test_lanes_have_every_block_in_order_and_to_scale(browser: Browser, made: Any) -> None:
    plan, tree = made()
    browser.open(html_report(plan, tree))
    (name, width, segments), *others = lanes(browser)
    blocks = blocks_of(plan)
    assert name == "in the order of execution"
    assert [label.partition(",")[0] for label, *_ in segments] == [
        block.first or "the model" for block in blocks
    ]
    places = [left for _, left, _ in segments]
    assert places == sorted(places)
    total = sum(block.size_bytes or 0 for block in blocks)
    for (_, _, length), block in zip(segments, blocks, strict=True):
        assert length == pytest.approx(width * (block.size_bytes or 0) / total, abs=1.5)
    devices = {place_name(device.id): device for device in plan.devices}
    assert [lane for lane, *_ in others] == list(devices)
    for lane, track, own in others:
        device = devices[lane]
        assert sum(length for *_, length in own) == pytest.approx(
            track * device.used_bytes / device.budget_bytes, abs=2
        )


def test_lanes_and_blocks_show_what_running_takes(browser: Browser) -> None:
    """Of a plan with a workload: each part to scale beside the weights, and a block's own needs."""
    plan = planner.plan(
        built("llama"),
        max_memory={0: 1 << 20, 1: 400_000},
        headroom=None,
        workload={"context_length": 64, "batch_size": 2, "allocator_margin": "10%"},
    )
    browser.open(html_report(plan))
    found = browser.run("""
        return [...document.querySelectorAll(".lane:not(.whole)")].map((lane) => [lane.querySelector(".track").clientWidth,
          [...lane.querySelectorAll(".beside")].map((part) => [part.title, part.getBoundingClientRect().width])])""")
    running = [device for device in plan.devices if device.running_bytes]
    assert running
    for (track, parts), device in zip(found, plan.devices, strict=True):
        sizes = (device.cache_bytes, device.activation_bytes, device.margin_bytes)
        assert [title for title, _ in parts] == [
            f"{format_bytes(size)} {words}"
            for size, words in zip(sizes, ("cache", "activations", "allocator's margin"), strict=True)
            if size
        ]
        assert [width for _, width in parts] == [
            pytest.approx(track * size / device.budget_bytes, abs=2) for size in sizes if size
        ]
    browser.run("""document.querySelector('.segment[aria-label^="model.layers.1,"]').focus()""")
    facts = dict(zip(browser.texts("#details-facts dt"), browser.texts("#details-facts dd"), strict=True))
    assert plan.demands is not None
    demand = plan.demands.blocks["model.layers.1"]
    assert facts["keeps a cache of"] == format_bytes(demand.cache_bytes)
    assert facts["needs at once"] == format_bytes(demand.needs_bytes)


def test_a_block_says_why_it_is_nowhere_else(browser: Browser) -> None:
    """One number in one unit, and a sentence for each other device."""
    plan, tree = offloaded()
    browser.open(html_report(plan, tree))
    browser.find(".segment").click()
    browser.find("#tab-order").click()
    browser.run("document.querySelector('.segment.cpu').focus()")
    facts = dict(zip(browser.texts("#details-facts dt"), browser.texts("#details-facts dd"), strict=True))
    assert facts["lies on"] == "RAM" and facts["runs on"] == "GPU 0" and facts["size"] == "10.0 MiB"
    assert browser.texts("#details-others li") == [
        "GPU 0: has 2.00 MiB left, 10.0 MiB are needed.",
        "GPU 1: has 0 B left, 10.0 MiB are needed.",
    ]
    browser.run("document.querySelector('.segment.a0').focus()")
    assert browser.texts("#details-others li")[-1] == "RAM: slower than GPU 0, where it fits."


def test_a_pinned_block_says_so(browser: Browser) -> None:
    tree = ModuleTree.from_module(Decoder(4))
    plan = planner.plan(tree, max_memory={0: 60 * MIB, 1: 60 * MIB}, pin={"model.layers.3": 1})
    browser.open(html_report(plan, tree))
    browser.run("""document.querySelector('.segment[aria-label^="model.layers.3,"]').focus()""")
    assert browser.texts("#details-others li") == ["You said where this goes."]


def test_arrow_keys_move_along_and_between_lanes(browser: Browser) -> None:
    browser.open(html_report(*offloaded()))
    focused = "return document.activeElement.getAttribute('aria-label').split(',')[0]"
    browser.run("document.querySelector('.segment').focus()")
    assert browser.run(focused) == "model.embed"
    browser.press("\ue014")
    assert browser.run(focused) == "model.layers.0"
    assert browser.text("#details-name") == "model.layers.0"
    browser.press("\ue015")
    assert (
        browser.run("return document.activeElement.closest('.lane').querySelector('.name').textContent")
        == "GPU 0"
    )
    assert len(browser.find_all('.segment[tabindex="0"]')) == 1


def test_tabs_are_moved_by_keys(browser: Browser) -> None:
    browser.open(html_report(*offloaded()))
    browser.find("#tab-order").click()
    browser.press("\ue014")
    hidden = "return ['order', 'map-panel', 'table-panel'].map((id) => document.getElementById(id).hidden)"
    assert browser.run(hidden) == [True, False, True]
    browser.press("\ue012", "\ue012")
    assert browser.run(hidden) == [True, True, False]


# ---- many devices, experts, a "no"


@LOOKS
def test_sixteen_devices_have_sixteen_lanes(browser: Browser, width: int, scheme: str) -> None:
    tree = ModuleTree.from_module(Decoder(48))
    plan = planner.plan(tree, max_memory=dict.fromkeys(range(16), 36 * MIB))
    browser.open(html_report(plan, tree), width=width, scheme=scheme)
    assert [lane for lane, *_ in lanes(browser)[1:]] == [f"GPU {number}" for number in range(16)]
    fills = browser.run("""
        return [...document.querySelectorAll(".lane:not(.whole)")].map((lane) =>
          getComputedStyle(lane.querySelector(".segment")).background)""")
    assert len(set(fills)) == 16
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []


class Expert(nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Sparse(nn.Module):
    """A layer with attention and many experts."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.attention = Expert(torch.empty(4000, device="meta"))
        self.mlp = nn.Module()
        self.mlp.experts = nn.ModuleList(Expert(torch.empty(1000, device="meta")) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_experts_of_61_layers_are_few_segments(browser: Browser) -> None:
    """Attention on the card, all experts on the cpu: 3 900 blocks, of which lanes show as many as can be told apart."""
    root = nn.Module()
    root.layers = nn.ModuleList(Sparse(64) for _ in range(61))
    tree = ModuleTree.from_module(root)
    pins = {f"layers.{layer}.mlp.experts": "cpu" for layer in range(61)}
    plan = planner.plan(
        tree, max_memory={0: 3 * MIB, "cpu": 100 * MIB}, granularity="expert", pin=pins,
        no_split_module_classes=["Sparse"], offload_buffers=True,
    )  # fmt: skip
    browser.open(html_report(plan, tree))
    assert len(plan.block_bytes) > 3900
    assert 0 < len(browser.find_all(".segment")) <= 500
    (_, width, segments), *_ = lanes(browser)
    assert segments[-1][1] + segments[-1][2] == pytest.approx(width, abs=2)
    assert browser.complaints() == []


@pytest.mark.parametrize("has_tree", [True, False])
def test_a_no_is_drawn(browser: Browser, has_tree: bool) -> None:
    tree = ModuleTree.from_module(Decoder(12))
    no_plan = refused(tree, max_memory={0: 60 * MIB, 1: 30 * MIB})
    browser.open(html_report(no_plan, tree if has_tree else None))
    assert browser.driver.title == f"Decoder: {no_plan.verdict}"
    assert browser.text(".verdict.no") == no_plan.verdict
    assert [lane for lane, *_ in lanes(browser)] == [
        "in the order of execution",
        "GPU 0",
        "GPU 1",
        "left over",
    ]
    browser.run("document.querySelector('.segment.rest').focus()")
    assert len(browser.texts("#details-others li")) == 2
    assert browser.complaints() == []


# ---- large models


def test_a_hundred_thousand_modules_cost_no_more_elements(browser: Browser) -> None:
    """What is drawn does not grow with the model, and loading grows no faster than its names; searched and entered, too."""

    class Leaf(nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("weight", weight.detach())

    class Layer(nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.experts = nn.ModuleList(Leaf(weight) for _ in range(198))

    def opened(layers: int) -> tuple[int, int, float]:
        weight = torch.empty(1000, device="meta")
        tree = ModuleTree.from_module(nn.ModuleList(Layer(weight) for _ in range(layers)))
        room = {0: layers * 300_000, 1: layers * 200_000, "cpu": layers * 2_000_000}
        plan = planner.plan(tree, max_memory=room, no_split_module_classes=["Leaf"], offload_buffers=True)
        page = html_report(plan, tree)
        browser.open(page)
        loaded_ms = browser.run("return performance.getEntriesByType('navigation')[0].loadEventEnd")
        browser.find("#tab-map").click()
        return tree.module_count, len(browser.find_all(".cell, .segment")), loaded_ms

    small, large = opened(50), opened(500)
    assert large[0] >= 100_000
    assert 0 < large[1] <= 2500
    # Ten times the modules, with room for an engine's own odd moments; what grows with the square takes a hundred times.
    assert large[2] <= 40 * max(small[2], 50)
    browser.find("#query").send_keys("499.experts.197.weight")
    assert browser.texts("#found-list .name") == ["499.experts.197.weight"]
    browser.find("#found-list button").click()
    assert browser.text("#details-name") == "499.experts.197.weight"
    assert browser.complaints() == []
