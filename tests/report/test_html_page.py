"""The HTML report as a text: self-contained, closed by its policy, and names stay data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from importlib.resources import files
from itertools import combinations
from math import dist
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from colours import oklab
from drawn_models import MIB, Decoder, offloaded, renamed, resident, sequential, with_device_map
from hypothesis import example, given
from hypothesis import strategies as st
from pages import Page, read_page
from screens import refused
from torch import nn

import planner
from planner import Plan
from planner.model.tree import ModuleTree
from planner.plans.colours import DEVICE_COLOURS
from planner.plans.device_map import DeviceMap
from planner.plans.first_screen import first_screen
from planner.plans.notebook import snippet
from planner.plans.wording import WORDS
from planner.report.html import html_report
from planner.report.payload import payload
from planner.report.rows import plan_rows
from planner.report.showing import show
from tiny_models import built

PLANS = pytest.mark.parametrize("made", [offloaded, resident, sequential])
STYLE = files("planner.report").joinpath("assets", "report.css").read_text(encoding="utf-8")


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def full_names(data: dict[str, Any]) -> list[str]:
    """As the script puts them together."""
    full: list[str] = []
    for name, above in zip(data["names"], data["parents"], strict=True):
        full.append(f"{full[above]}.{name}" if above > 0 else name)
    return full


@PLANS
def test_the_page_needs_nothing_but_itself(made: Any) -> None:
    """No address anywhere but one that holds no data; one script, one style, both as the policy says."""
    text = html_report(*made())
    page = read_page(text)
    links = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert links == ["data:,"]
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    _, script = page.raw["script"]
    (style,) = page.raw["style"]
    (policy,) = [each["content"] for each in page.attributes("meta") if "http-equiv" in each]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == digest(script)
    assert rules["style-src"] == digest(style)
    assert rules["require-trusted-types-for"] == "'script'"


@PLANS
def test_nothing_in_the_markup_asks_for_a_weaker_policy(made: Any) -> None:
    """No style attribute and no handler: the policy forbids both."""
    page = read_page(html_report(*made()))
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name == "style" or name.startswith("on")}


@PLANS
@pytest.mark.parametrize("has_tree", [True, False])
def test_the_data_are_the_plan_s(made: Any, has_tree: bool) -> None:
    plan, tree = made()
    data = read_page(html_report(plan, tree if has_tree else None)).data
    rows = plan_rows(plan, tree if has_tree else None)
    names = full_names(data)
    assert names == list(rows.names)
    assert data["bytes"] == list(rows.sizes_bytes)
    assert [device["id"] for device in data["devices"]] == [str(device.id) for device in plan.devices]
    shown = [
        (rule, names[row], device, needed, available)
        for rule, row, device, needed, available in data["reasons"]
    ]
    said = [
        (each.rule, each.name, str(each.device), each.needed_bytes, each.available_bytes)
        for each in plan.reasons
    ]
    assert shown == said
    assert data["words"] == dict(WORDS)


@PLANS
def test_the_devices_are_there_without_any_script(made: Any) -> None:
    """Numbers and bars of each device, the verdict and what to do, in the markup itself."""
    plan, tree = made()
    page = read_page(html_report(plan, tree))
    values = [int(each["value"] or "") for each in page.attributes("data")]
    assert values == [size for device in plan.devices for size in (device.budget_bytes, device.used_bytes)]
    text, screen = "".join(page.text), first_screen(plan)
    assert {screen.name, screen.facts, screen.verdict} <= {each.strip() for each in page.text}
    for line in screen.devices:
        assert line.budget in text and line.left in text
    assert all(way in text for each in screen.advice for way in each.ways)
    assert all(notice.text in text for notice in screen.notices)


@PLANS
def test_the_title_is_the_model_and_the_verdict(made: Any) -> None:
    plan, tree = made()
    screen = first_screen(plan)
    assert f"<title>{screen.name}: {screen.verdict}</title>" in html_report(plan, tree)


def test_bars_stand_on_one_scale() -> None:
    """Of accelerators; the others fill the width."""
    plan, tree = offloaded()
    page = read_page(html_report(plan, tree))
    widths = [
        float((each["width"] or "").rstrip("%"))
        for each in page.attributes("rect")
        if each.get("class") in ("used", "reserved", "headroom", "free")
    ]
    scales = {0: 1, 1: 30 / 60, "cpu": 1}
    expected = [
        100 * size / device.budget_bytes * scales[device.id]
        for device in plan.devices
        for size in (device.used_bytes, device.reserved_bytes, device.headroom_bytes, device.free_bytes or 0)
        if size and device.budget_bytes
    ]
    assert widths == pytest.approx(expected, abs=0.001)


def test_a_no_is_a_page_too() -> None:
    no_plan = refused(ModuleTree.from_module(Decoder(12)), max_memory={0: 60 * MIB, 1: 30 * MIB})
    page = read_page(html_report(no_plan, remarks=["looked for <cuda>"]))
    text = "".join(page.text)
    assert no_plan.verdict in text and "looked for <cuda>" in text
    assert no_plan.advice()[0].ways[0] in text
    assert [device["place"] for device in page.data["devices"]] == ["GPU 0", "GPU 1", "left over"]


HOSTILE = st.text(alphabet=st.one_of(st.characters(), st.sampled_from("<>\"'&/{}\\\u2028\u202e")), min_size=1)


def skeleton(page: Page) -> list[str]:
    return [tag for tag, _ in page.tags]


@given(HOSTILE)
@example("</script><script>alert(1)</script>")
@example("<!--<script>")
@example("{{data}}")
@example("\x00\ud800")
@example('" onmouseover="alert(1)')
def test_a_name_is_never_markup(name: str) -> None:
    """Wherever a plan can carry one, it comes back from the data as it was, and adds no tag."""
    plan, _ = renamed(["a", "b", "c"])
    plain = with_device_map(plan, {"a": 0, "b": "cpu", "c": 0, "d": 0})
    hostile = with_device_map(plan, {"a": 0, "b": "cpu", "c": 0, name: 0})
    before, text = read_page(html_report(plain)), html_report(hostile)
    text.encode("utf-8")
    page = read_page(text)
    assert name in full_names(page.data)
    assert skeleton(page) == skeleton(before)


@given(HOSTILE)
@example("</td><img src=x onerror=alert(1)>")
def test_a_setting_or_a_notice_is_never_markup(word: str) -> None:
    """What somebody said, and names in sentences."""
    plan, _ = renamed(["a", "b", "c"])
    pages = []
    for value in ("plain", word):
        data = json.loads(plan.to_json())
        data["settings"]["no_split_modules"] = {"value": [value], "rank": "user"}
        data["provenance"]["no_split_modules"] = value
        data["source"]["notes"] = [value]
        data["source"]["fingerprint"] = value
        text = html_report(Plan.from_json(json.dumps(data)))
        text.encode("utf-8")
        pages.append(read_page(text))
    assert skeleton(pages[0]) == skeleton(pages[1])


def test_numbers_that_a_browser_would_round_are_text() -> None:
    plan, _ = renamed(["a", "b", "c"])
    data = json.loads(plan.to_json())
    for reason in data["reasons"]:
        reason["available_bytes"] = 2**60 + 1
    shown = read_page(html_report(Plan.from_json(json.dumps(data)))).data
    assert {available for *_, available in shown["reasons"]} == {str(2**60 + 1)}


# ---- colours


def colours(text: str) -> dict[str, tuple[float, ...]]:
    found = re.findall(r"--([a-z0-9-]+): #([0-9a-f]{6});", text)
    return {name: tuple(int(code[each : each + 2], 16) / 255 for each in (0, 2, 4)) for name, code in found}


def schemes() -> dict[str, dict[str, tuple[float, ...]]]:
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")
    return {"light": colours(light), "dark": colours(light) | colours(dark.split("* { box-sizing")[0])}


def luminance(colour: tuple[float, ...]) -> float:
    """Source: WCAG 2.2, relative luminance."""
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_device_and_its_pattern(scheme: str) -> None:
    """At least 4.5 to 1, also where a line of the pattern runs under the letters."""
    known = schemes()[scheme]
    fills = {name.removesuffix("-edge") for name in known if name.endswith("-edge")}
    assert len(fills) == 20
    for name in fills:
        fill, ink = known[name], known["ink"]
        grained = tuple(0.11 * over + 0.89 * under for over, under in zip(ink, fill, strict=True))
        assert contrast(ink, fill) >= 4.5, name
        assert contrast(ink, grained) >= 4.5, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_and_edges_stand_out(scheme: str) -> None:
    """At least 3 to 1 against what they lie on, and text of second rank 4.5 to 1."""
    known = schemes()[scheme]
    for name, colour in known.items():
        if name.endswith("-edge"):
            assert contrast(colour, known["surface"]) >= 3, name
    for ground in ("surface", "page"):
        assert contrast(known["muted"], known[ground]) >= 4.5
        assert contrast(known["focus"], known[ground]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sixteen_devices_have_sixteen_colours(scheme: str) -> None:
    """As far apart as eyes need, fills and edges; in the light, edges are the colours of the other pictures."""
    known = schemes()[scheme]
    names = [*(f"a{number}" for number in range(16)), "cpu", "disk"]
    for suffix in ("", "-edge"):
        shown = [oklab(hexadecimal(known[f"{name}{suffix}"])) for name in names]
        assert min(dist(one, other) for one, other in combinations(shown, 2)) > 0.07
    if scheme == "light":
        assert {name: hexadecimal(known[f"{name}-edge"]) for name in names} == {
            name: colour for name, colour in DEVICE_COLOURS.items() if name in names
        }
    rules = re.findall(r"^\.(a\d+|cpu|disk) \{.*--pattern: (.*); \}$", STYLE, re.MULTILINE)
    assert len(rules) == len({pattern for _, pattern in rules}) == 18


def hexadecimal(colour: tuple[float, ...]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


# ---- notebooks


@PLANS
def test_a_notebook_shows_the_first_screen(made: Any) -> None:
    """The same verdict, bars in colour, the strip, what to do and what not to miss, in Python's words."""
    plan, _ = made()
    page = read_page(plan._repr_html_())
    assert not {"script", "style", "link", "img"} & {tag for tag, _ in page.tags}
    assert not [attributes for _, attributes in page.tags if "style" in attributes or "id" in attributes]
    assert len(page.attributes("svg")) == len(plan.devices) + 1
    screen = first_screen(plan, is_shell=False)
    text = "".join(page.text)
    assert screen.verdict in text
    assert all(way in text for each in screen.advice for way in each.ways)
    assert all(notice.text in text for notice in screen.notices)
    fills = {each.get("fill") for each in page.attributes("rect")}
    assert {DEVICE_COLOURS["a0"]} <= fills


def test_a_notebook_shows_a_no() -> None:
    no_plan = refused(ModuleTree.from_module(Decoder(12)), max_memory={0: 60 * MIB})
    assert no_plan.verdict in "".join(read_page(snippet(no_plan)).text)


@given(HOSTILE)
def test_a_notebook_is_not_commanded_either(word: str) -> None:
    data = json.loads(resident()[0].to_json())
    pages = []
    for said in ("plain", word):
        data["source"]["name"] = data["devices"][0]["name"] = said
        data["source"]["notes"] = [said]
        data["block_bytes"] = {said.replace(".", ""): 1}
        pages.append(read_page(Plan.from_json(json.dumps(data))._repr_html_()))
    assert len(skeleton(pages[0])) == len(skeleton(pages[1]))


# ---- opening it


def test_show_writes_the_report_and_opens_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan, tree = resident()
    path = show(plan, tree)
    assert path is not None and opened == [path.as_uri()]
    assert path.read_text(encoding="utf-8") == html_report(plan, tree)


def test_show_displays_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """What IPython's kernel is handed is the page, in a frame of its own."""
    shown: list[str] = []
    display = ModuleType("IPython.display")
    display.HTML, display.display = str, shown.append  # type: ignore[attr-defined]
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    plan, _ = resident()
    assert show(plan) is None
    (frame,) = read_page(shown[0]).attributes("iframe")
    assert frame["srcdoc"] == html_report(plan)


def test_what_a_glob_pinned_was_placed_by_the_user() -> None:
    """Otherwise the panel would say that another device has room for it, too."""
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(4, 4, bias=False, device="meta") for _ in range(4))
    plan = planner.plan(model, max_memory={0: 1000, 1: 1000}, pin={"layers.[12]": 1, "layers.0": 0})
    rows = plan_rows(plan)
    placed = payload(plan, rows)["placed"]
    assert sorted(rows.names[row] for row in placed) == ["layers.0", "layers.1", "layers.2"]


def test_the_data_of_a_page_has_what_running_takes() -> None:
    plan = planner.plan(
        built("llama"),
        max_memory={0: 1 << 20},
        headroom=None,
        workload={"context_length": 64, "allocator_margin": 7},
    )
    rows = plan_rows(plan)
    data = payload(plan, rows)
    (device,) = plan.devices
    assert data["kept"] == [
        [
            ["cache", device.cache_bytes, "cache"],
            ["activations", device.activation_bytes, "activations"],
            ["allocator's margin", 7, "margin"],
        ]
    ]
    assert plan.demands is not None
    assert {rows.names[row] for row, _ in data["running"]} == set(plan.demands.blocks)
    without = planner.plan(built("llama"), max_memory={0: 1 << 20})
    assert payload(without, plan_rows(without))["running"] == []


def test_maps_are_copied_a_few_times_however_long_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at a plan's map is a copy of it."""
    copied: list[int] = []
    copy = DeviceMap.copy
    monkeypatch.setattr(DeviceMap, "copy", lambda self: (copied.append(len(self)), copy(self))[1])
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False, device="meta") for _ in range(300)))
    pins = {str(number): number % 2 for number in range(300)}
    plan = planner.plan(model, max_memory={0: 10_000, 1: 10_000, "cpu": 10_000}, pin=pins)
    assert len(plan.device_map) == 300
    copied.clear()
    html_report(plan)
    snippet(plan)
    planner.explain(plan, "7")
    planner.explain(plan, "")
    assert len(copied) < 40
