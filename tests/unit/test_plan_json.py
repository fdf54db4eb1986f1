"""The plan file: its schema, its order, its words for who said what, and files of older planners."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import pytest
from torch import nn

import planner
from checkpoint_files import write_tensors
from generators import tree
from planner import Plan
from planner.errors import InfeasibleError, InvalidInputError
from planner.known_names import KnownNames
from sized_models import model_of

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/plan.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
WRITTEN = Path(__file__).parent / "written"


def offloading() -> Plan:
    return planner.plan(
        model_of(10, 20, 30, 40), max_memory={0: 60, 1: 5, "cpu": 50, "disk": 100}, pin={"part0": 0}
    )


PLANS: list[Callable[[], Plan]] = [
    offloading,
    lambda: planner.plan(model_of(4, 4), max_memory={0: 5, "cpu": 100}, strategy="sequential"),
    lambda: planner.plan(nn.Identity(), max_memory={0: 5}),
    lambda: planner.plan(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), max_memory={"cpu": "1MiB"}),
    lambda: Plan.from_json((WRITTEN / "plan-version-1.json").read_text()),
]


@pytest.mark.parametrize("made", PLANS)
@pytest.mark.parametrize("provenance", [True, False])
def test_plans_are_as_the_published_schema_says(made: Callable[[], Plan], provenance: bool) -> None:
    VALIDATOR.validate(json.loads(made().to_json(provenance=provenance)))


@pytest.mark.parametrize("seed", range(30))
def test_drawn_plans_are_as_the_schema_says_and_come_back(seed: int) -> None:
    model = tree(Random(seed))
    total = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]) + 8
    plan = planner.plan(model, max_memory={0: total // 2, 1: total // 3, "cpu": total, "disk": total})
    VALIDATOR.validate(json.loads(plan.to_json()))
    back = Plan.from_json(plan.to_json())
    assert (back, back.to_json()) == (plan, plan.to_json())
    assert list(back.device_map.items()) == list(plan.device_map.items())
    assert list(back.names) == list(plan.names)


@pytest.mark.parametrize(
    "damage", [{"device_map": [["part0", 0]]}, {"version": 1}, {"more": 1}, {"names": {}}]
)
def test_the_schema_refuses_what_is_no_plan(damage: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid({**json.loads(offloading().to_json()), **damage})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("devices", 0, "used_bytes"), -1),
        (("devices", 0, "budget_bytes"), -1),
        (("devices", 0, "free_bytes"), -1),
        (("devices", 0, "id"), -1),
        (("devices", 0, "id"), "gpu"),
        (("devices",), {}),
        (("reasons",), {}),
        (("reasons", 0, "device"), "gpu"),
        (("reasons", 0, "needed_bytes"), -1),
        (("certificate", "gap_bytes"), -1),
        (("source", "total_bytes"), -1),
        (("device_map", "part0"), -1),
        (("device_map", "part0"), "1e3"),
        (("execution_map", "part3"), 2**70),
        (("shortfall", "more_bytes"), {"": 1}),
        (("shortfall", "more_bytes"), {"0": -1}),
        (("minimum_bytes",), {"x": 1}),
        (("names", 0), {"a.b": 0}),
        (("names", 0), {".": {"00": 0}}),
    ],
)
def test_reader_and_schema_refuse_alike(path: tuple[Any, ...], value: object) -> None:
    data = json.loads(offloading().to_json())
    at = data
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    assert not VALIDATOR.is_valid(data)
    with pytest.raises(InvalidInputError):
        Plan.from_json(json.dumps(data))


def test_numbers_that_no_budget_may_have_and_devices_that_stand_twice_are_refused() -> None:
    data = json.loads(offloading().to_json())
    devices = data["devices"]
    for damage in (
        {"devices": [{**devices[0], "budget_bytes": 10**400}, *devices[1:]]},
        {"block_bytes": {"part0": 10**400}},
        {"devices": [*devices, devices[0]]},
        {"shortfall": {"name": "part0", "more_bytes": {"0": 1, "cuda:0": 2}}},
    ):
        with pytest.raises(InvalidInputError):
            Plan.from_json(json.dumps({**data, **damage}))


def test_a_plan_that_was_read_tells_its_devices_in_the_same_order() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(9)))
    plan = planner.plan(model, max_memory={10: 70, 9: 0, 2: 70, "cpu": 1000, "disk": 1000})
    back = Plan.from_json(plan.to_json())
    assert plan.shortfall is not None and back.shortfall is not None
    assert list(back.shortfall.more_bytes) == list(plan.shortfall.more_bytes)
    assert list(back.shortfall.smaller_formats) == list(plan.shortfall.smaller_formats)
    assert list(back.minimum_bytes) == list(plan.minimum_bytes)
    assert planner.explain(back, "") == planner.explain(plan, "")


def test_every_field_is_in_the_page_about_the_file() -> None:
    page = (ROOT / "docs/plan-file.md").read_text()
    properties = SCHEMA["properties"]
    inner = {
        *properties["source"]["properties"],
        *properties["devices"]["items"]["properties"],
        *properties["shortfall"]["anyOf"][1]["properties"],
        *properties["reasons"]["items"]["properties"],
        *next(iter([properties["settings"]["additionalProperties"]]))["properties"],
    }
    assert not [
        name
        for name in (*properties, *inner)
        if f"{name}`" not in page and f"`{name}" not in page and f"{name} " not in page
    ]


def test_keys_are_sorted_but_where_they_are_in_the_order_of_execution() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(12)))
    plan = planner.plan(model, max_memory={0: 21, "cpu": 100})
    data = json.loads(plan.to_json())
    order = [str(number) for number in range(12)]
    assert [name for name in order if name in data["device_map"]] == list(data["device_map"])
    assert list(data["block_bytes"]) == order, "10 behind 9, not behind 1"
    in_order = ("device_map", "execution_map", "block_bytes")
    rest = {key: value for key, value in data.items() if key not in in_order}
    assert list(data) == sorted(data)
    assert json.dumps(rest) == json.dumps(rest, sort_keys=True)


def test_devices_are_written_one_way() -> None:
    data = json.loads(offloading().to_json())
    assert [device["id"] for device in data["devices"]] == [0, 1, "cpu", "disk"]
    assert {type(device) for device in data["device_map"].values()} == {int, str}
    assert {reason["device"] for reason in data["reasons"]} <= {0, 1, "cpu", "disk"}


CALL = """
import planner, sys
print(planner.plan(sys.argv[1], max_memory={0: "1KiB", "cpu": "1MiB"}, config=sys.argv[2]).to_json())
"""
ELSEWHERE = f"\n\n\n# lines of code are no matter\n{CALL}"


def test_the_bytes_are_the_same_whatever_the_folder_and_the_line(tmp_path: Path) -> None:
    folder = tmp_path / "here" / "llama"
    folder.mkdir(parents=True)
    write_tensors(folder / "model.safetensors", {f"layers.{n}.w": ("F32", [100], 400) for n in range(3)})
    config = {"model_type": "llama", "num_hidden_layers": 3, "hidden_size": "wide"}
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "here" / "settings.yaml").write_text("headroom:\n  0: 100B\n")
    asked = [
        (tmp_path, CALL, "here/llama", "here/settings.yaml"),
        (folder, ELSEWHERE, ".", "../settings.yaml"),
        (tmp_path / "here", CALL, str(folder), str(tmp_path / "here" / "settings.yaml")),
    ]
    texts = {
        subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, check=True
        ).stdout
        for cwd, code, *arguments in asked
    }
    assert len(texts) == 1
    provenance = json.loads(texts.pop())["provenance"]
    assert provenance["max_memory.cpu"] == "user · keyword arguments"
    assert provenance["headroom.0"] == "user · settings.yaml:2:6"
    assert provenance["mode"] == "default"


def test_facts_say_which_file_they_are_from_without_its_folder(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {"layers.0.w": ("F32", [100], 400)})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 3}))
    said = planner.plan(tmp_path, max_memory={0: "1KiB"}).provenance
    assert said["model.num_hidden_layers"] == "imported · config.json (from num_hidden_layers = 3)"
    assert said["model.head_dim"] == "computed (from model.hidden_size)"


# ---- Files of older planners


def test_a_plan_of_version_1_is_still_read() -> None:
    text = (WRITTEN / "plan-version-1.json").read_text()
    old, back = json.loads(text), Plan.from_json(text)
    assert list(back.device_map.items()) == [tuple(row) for row in old["device_map"]]
    assert list(back.execution_map.items()) == [tuple(row) for row in old["execution_map"]]
    assert [device.id for device in back.devices] == [0, 1, "cpu", "disk"]
    assert (back.source.name, back.source.format, back.source.layers, back.names) == ("", "", 0, KnownNames())
    assert json.loads(back.to_json())["version"] == 4
    assert Plan.from_json(back.to_json()) == back


@pytest.mark.parametrize("rows", [{"a": 0}, [["a"]], [["a", 0, 1]], [[1, 0]], "a", None])
def test_maps_of_version_1_are_pairs(rows: object) -> None:
    data = json.loads((WRITTEN / "plan-version-1.json").read_text())
    with pytest.raises(InvalidInputError):
        Plan.from_json(json.dumps({**data, "device_map": rows}))


# ---- What is no plan


@pytest.mark.parametrize(
    "rows",
    [
        None,
        {},
        [1],
        [{"a": 0}],
        [{}, {"a": 1}],
        [{}, {"a": -1}],
        [{}, {"a": True}],
        [{}, {"a": "0"}],
        [{}, {".": 0}],
        [{}, {".": {"x": 0}}],
        [{}, {".": {"00": 0}}],
        [{}, {".": {"0-": 0}}],
        [{}, {".": {"0": 1}}],
        [{}, {".": {"5-2": 0}}],
        [{}, {".": {"9" * 40: 0}}],
    ],
)
def test_damaged_names_are_refused(rows: object) -> None:
    data = json.loads(offloading().to_json())
    with pytest.raises(InvalidInputError):
        Plan.from_json(json.dumps({**data, "names": rows}))


@pytest.mark.parametrize("kind", [1, None, ["module"], True])
def test_the_kind_of_a_source_is_a_text(kind: object) -> None:
    data = json.loads(offloading().to_json())
    data["source"]["kind"] = kind
    with pytest.raises(InvalidInputError, match="kind"):
        Plan.from_json(json.dumps(data))


def test_a_key_that_stands_twice_is_refused() -> None:
    text = offloading().to_json().replace('"device_map":{', '"device_map":{"part0":1,', 1)
    with pytest.raises(InvalidInputError, match="twice"):
        Plan.from_json(text)


# ---- Names


@pytest.mark.parametrize("seed", range(60))
def test_names_are_those_of_the_model_and_no_others(seed: int) -> None:
    model = tree(Random(seed))
    real = {
        *(name for name, _ in model.named_modules(remove_duplicate=False)),
        *(name for name, _ in model.named_parameters(remove_duplicate=False)),
        *(name for name, _ in model.named_buffers(remove_duplicate=False)),
    }
    try:
        names = Plan.from_json(planner.plan(model, max_memory={"cpu": "1GiB"}).to_json()).names
    except InfeasibleError:
        return
    assert set(names) == real
    assert all(name in names for name in real)
    wrong = {f"{name}.x" for name in real} | {f"{name}0" for name in real} | {f"0{name}" for name in real}
    wrong |= {name.rpartition(".")[2] for name in real} | {name.replace("0", "1") for name in real}
    assert [name for name in wrong if (name in names) != (name in real)] == []


def test_the_names_of_many_layers_take_few_bytes() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8, device="meta") for _ in range(80))
    plan = planner.plan(model, max_memory={0: "1GiB"})
    assert len(json.dumps(json.loads(plan.to_json())["names"])) < 800


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("layers.70", ["model.layers.70"]),
        ("lm_heda", ["lm_head"]),
        ("model.layers.80", ["model.layers.79"]),
        ("modle.layers.3.mlp", ["model.layers.3.mlp"]),
        ("model.layer.7.mlp.gate", ["model.layers.7.mlp.gate"]),
        ("model.layers.7.mlp.foo", ["model.layers.7.mlp.down", "model.layers.7.mlp.gate"]),
        ("gate", ["model.layers.0.mlp.gate"]),
        ("model.layers.foo", ["model.layers.0"]),
        ("model.layers.7O", ["model.layers.7"]),
        ("model.layers.07", ["model.layers.7"]),
        ("model.layers.3 ", ["model.layers.3"]),
        ("model.layers.*", ["model.layers.0"]),
        ("MODEL.LAYERS.3", ["model.layers.3"]),
        ("model.layers.3.mlp.gate.weight.foo", ["model.layers.3.mlp.gate.weight"]),
        ("lay", ["model.layers"]),
        ("zzz", []),
        ("", []),
        (".", []),
        ("a" * 10_000, []),
        (".".join("a" * 5_000), []),
    ],
)
def test_the_nearest_name_is_what_was_meant(wrong: str, right: list[str]) -> None:
    kinds = [
        ([], []),
        ([("weight", 0)], []),
        ([("gate", 1), ("down", 1)], []),
        ([("mlp", 2)], []),
        ([], [("0-79", 3)]),
        ([("layers", 4), ("norm", 1)], []),
        ([("model", 5), ("lm_head", 1)], []),
    ]
    assert sorted(KnownNames.of(kinds).nearest(wrong)) == right


def test_a_name_that_is_wrong_in_every_part_is_told_at_once() -> None:
    """Of names like it there are 3 to the power of their depth."""
    alike = [([(f"part_{letter}", depth) for letter in "abc"], []) for depth in range(14)]
    names = KnownNames.of([([], []), *alike])
    began = time.process_time()
    assert len(names.nearest(".".join(["part_x"] * 14))) == 3
    assert time.process_time() - began < 5
