"""The HTML report in a real browser: quiet, the plan's numbers, keys, search, table, both schemes, any width, large models.

Skipped where there is no Chromium with its driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
from browsing import Browser, started
from drawn_models import drawn_bytes, offloaded, renamed, resident, sequential, with_device_map
from torch import nn

import planner
from planner.model.tree import ModuleTree
from planner.plans.wording import sentence
from planner.report.html import html_report
from planner.report.rows import plan_rows
from planner.units import format_bytes

PLANS = pytest.mark.parametrize("made", [offloaded, resident, sequential])
LOOKS = pytest.mark.parametrize(("width", "scheme"), [(w, s) for w in (400, 1400) for s in ("light", "dark")])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("pages")) as found:
        yield found


def focus_treemap(browser: Browser) -> None:
    """As a keyboard gets there: Tab from the search box."""
    browser.find("#query").click()
    for _ in range(10):
        browser.press("\ue004")
        if browser.run("return document.activeElement.classList.contains('cell')"):
            return
    raise AssertionError("Tab does not lead to the treemap")


def reasons_shown(browser: Browser) -> list[str]:
    """Sentences of the details, without the numbers that are said again beside them."""
    return browser.run(
        "return [...document.querySelectorAll('#details-reasons li')].map((each) => each.firstChild.textContent)"
    )


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
        return Object.fromEntries([...document.querySelectorAll(".devices tbody")].map((body) => [body.dataset.device,
          Object.fromEntries([...body.querySelectorAll("td[data-part]")].map((cell) => [cell.dataset.part,
            [cell.querySelector("data")?.value ?? null, cell.textContent]]))]))""")
    assert list(shown) == [str(device.id) for device in plan.devices]
    for device in plan.devices:
        sizes = {
            "used": device.used_bytes,
            "reserved": device.reserved_bytes,
            "headroom": device.headroom_bytes,
            "free": device.free_bytes,
            "budget": device.budget_bytes,
        }
        assert shown[str(device.id)] == {
            part: [None, "no limit"] if size is None else [str(size), format_bytes(size)]
            for part, size in sizes.items()
        }


@PLANS
def test_the_bytes_in_the_treemap_are_the_plan_s(browser: Browser, made: Any) -> None:
    """What the script adds up by device is what the plan says is used."""
    plan, tree = made()
    browser.open(html_report(plan, tree))
    facts = dict(zip(browser.texts("#details-facts dt"), browser.texts("#details-facts dd"), strict=True))
    used = {device.id: device.used_bytes for device in plan.devices if device.used_bytes}
    assert drawn_bytes(plan_rows(plan, tree)) == used
    assert {key: words for key, words in facts.items() if key.startswith("on ")} == {
        f"on {device}": format_bytes(size) for device, size in used.items()
    }


def test_areas_are_bytes(browser: Browser) -> None:
    """Of modules that lie side by side, within what borders and names take."""
    plan, tree = offloaded()
    browser.open(html_report(plan, tree))
    areas = browser.run("""
        return squarify([6, 6, 4, 3, 2, 2, 1].map((size) => ({ size })), { x: 0, y: 0, width: 600, height: 400 })
          .map(({ item, x, y, width, height }) => [item.size, x, y, width, height])""")
    assert [round(width * height) for _, _, _, width, height in areas] == [
        size * 10_000 for size, *_ in areas
    ]
    # The example of Bruls, Huizing and van Wijk: a column of two squares of 6 first.
    assert areas[0][3] == areas[1][3] == pytest.approx(300)
    assert all(x + width <= 600.001 and y + height <= 400.001 for _, x, y, width, height in areas)


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
    browser.open(html_report(plan, tree))
    focus_treemap(browser)
    said = {
        reason.name: [sentence(each) for each in plan.reasons if each.name == reason.name]
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
    browser.open(html_report(plan, tree))
    target = browser.find(".cell.cpu:not(.open)")
    name = target.get_attribute("aria-label").partition(",")[0]
    ActionChains(browser.driver).move_to_element(target).perform()
    assert browser.text("#details-name") == name
    block = ".".join(name.split(".")[:3])
    assert reasons_shown(browser) == [sentence(each) for each in plan.reasons if each.name == block]


def test_a_module_that_is_pointed_at_does_not_hide_what_is_inside(browser: Browser) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    browser.open(html_report(*offloaded()))
    outer, inner = browser.find(".cell.open"), browser.find(".cell:not(.open)")
    ActionChains(browser.driver).move_to_element(outer.find_element("css selector", ".name")).perform()
    assert browser.text("#details-name") == outer.get_attribute("aria-label").partition(",")[0]
    ActionChains(browser.driver).move_to_element(inner).perform()
    assert browser.text("#details-name") == inner.get_attribute("aria-label").partition(",")[0]


def test_keys_go_into_a_module_and_back(browser: Browser) -> None:
    plan, tree = offloaded()
    browser.open(html_report(plan, tree))
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
    browser.open(html_report(*offloaded()))
    focus_treemap(browser)
    browser.press("\ue014", "\ue014")
    assert len(browser.find_all('.cell[tabindex="0"]')) == 1
    browser.press("\ue004")
    assert not browser.run("return document.activeElement.classList.contains('cell')")


# ---- search


def test_search_finds_modules_and_leads_to_them(browser: Browser) -> None:
    plan, tree = offloaded()
    browser.open(html_report(plan, tree))
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
    browser.find("#inside-blocks").click()
    places = {-1: "several devices", -2: "nowhere: no tensors"}
    assert table_rows(browser) == [
        (name or "the model", str(size), places.get(home) or str(rows.devices[home]))
        for name, size, home in zip(rows.names, rows.sizes_bytes, rows.homes, strict=True)
    ]


def test_the_table_begins_with_what_was_decided(browser: Browser) -> None:
    plan, tree = offloaded()
    browser.open(html_report(plan, tree))
    names = [name for name, *_ in table_rows(browser)]
    assert {reason.name for reason in plan.reasons} <= set(names)
    assert "model.layers.0.attn" not in names


# ---- looks


@LOOKS
def test_nothing_is_wider_than_the_window(browser: Browser, width: int, scheme: str) -> None:
    plan, tree = offloaded()
    browser.open(html_report(plan, tree), width=width, scheme=scheme)
    assert browser.run("return document.documentElement.scrollWidth") <= width
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


# ---- large models


def test_a_hundred_thousand_modules_open_in_three_seconds(browser: Browser) -> None:
    """From the start of the navigation to the end of loading, drawn; searched and entered without a new page."""

    class Leaf(nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("weight", weight.detach())

    class Layer(nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            self.experts = nn.ModuleList(Leaf(weight) for _ in range(198))

    weight = torch.empty(1000, device="meta")
    tree = ModuleTree.from_module(nn.ModuleList(Layer(weight) for _ in range(500)))
    assert tree.module_count >= 100_000
    plan = planner.plan(
        tree, max_memory={0: "150MiB", 1: "100MiB", "cpu": "1GiB"}, no_split_module_classes=["Leaf"]
    )
    browser.open(html_report(plan, tree))
    loaded_ms = browser.run("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert 0 < loaded_ms < 3000
    assert 0 < len(browser.find_all(".cell")) <= 1500
    browser.find("#query").send_keys("499.experts.197.weight")
    assert browser.texts("#found-list .name") == ["499.experts.197.weight"]
    browser.find("#found-list button").click()
    assert browser.text("#details-name") == "499.experts.197.weight"
    assert browser.complaints() == []
