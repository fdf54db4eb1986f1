"""A machine as data: its JSON, what is wrong with one, and routes between devices."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from planner.devices.machine import MOST_DEVICES, Machine
from planner.devices.machine_parts import Link, MachineDevice
from planner.devices.rate import MOST_RATE, Rate
from planner.errors import InvalidDevicesError, InvalidInputError, PlannerError

HEAD = {"schema": "planner.machine", "version": 1}
CARD = {"id": 0, "kind": "cuda", "memory_bytes_per_s": 10**12}
HOST = {"id": "cpu", "kind": "cpu", "memory_bytes_per_s": 10**11}


def machine_of(
    *links: dict[str, Any], devices: tuple[dict[str, Any], ...] = (CARD, {**CARD, "id": 1}, HOST)
) -> Machine:
    return Machine.from_data({**HEAD, "devices": list(devices), "links": list(links)})


def drawn_rate(draw: random.Random) -> Rate:
    low, value, high = sorted(draw.randint(1, MOST_RATE) for _ in range(3))
    kind = draw.choice(("measured", "table", "user"))
    if kind == "user":
        return Rate.of_user(value)
    return Rate(value=value, origin=kind, low=low, high=high, source=draw.choice(("", "a sheet", "Größe")))  # type: ignore[arg-type]


def drawn_machine(seed: int) -> Machine:
    draw = random.Random(seed)
    devices = [
        MachineDevice(
            id=key,
            kind="cpu" if key == "cpu" else "cuda",
            name=draw.choice(("", "NVIDIA L4")),
            node=node,
            memory_bytes=draw.choice((None, 0, 24 << 30)),
            memory_bytes_per_s=draw.choice((None, drawn_rate(draw))),
            flops_per_s={
                dtype: drawn_rate(draw)
                for dtype in draw.sample(("float32", "bfloat16", "int8"), k=draw.randint(0, 3))
            },
            weights_bytes_per_s={
                "bfloat16": {t: drawn_rate(draw) for t in draw.sample((1, 16, 128), k=draw.randint(1, 3))}
            }
            if draw.random() < 0.5
            else {},
            launch_ps=draw.choice((None, drawn_rate(draw))),
        )
        for node in draw.choice((("",), ("a", "b")))
        for key in (0, 1, "cpu")
    ]
    keys = [device.key for device in devices] + ["disk"]
    links = [
        Link(
            source=source,
            to=to,
            is_pinned=draw.random() < 0.5,
            bytes_per_s=drawn_rate(draw),
            latency_ps=draw.choice((None, drawn_rate(draw))),
        )
        for source in keys
        for to in keys
        if source != to and draw.random() < 0.3
    ]
    return Machine(devices=tuple(devices), links=tuple(links))


@pytest.mark.parametrize("seed", range(20))
def test_a_machine_comes_back_from_its_json(seed: int) -> None:
    machine = drawn_machine(seed)
    text = machine.to_json()
    again = Machine.from_json(text)
    assert again == machine
    assert again.to_json() == text
    assert again.fingerprint == machine.fingerprint


def test_numbers_keep_their_origin_and_a_bare_one_is_the_users() -> None:
    measured = {"value": 90, "origin": "measured", "low": 50, "high": 120, "source": "linear, 5 rounds"}
    machine = machine_of(devices=({**CARD, "memory_bytes_per_s": measured, "launch_ps": 5_000_000.0},))
    rate = machine.device(0).memory_bytes_per_s
    assert rate == Rate(value=90, origin="measured", low=50, high=120, source="linear, 5 rounds")
    assert rate.is_busy and rate.uncertainty == pytest.approx(40 / 90)
    assert machine.device(0).launch_ps == Rate.of_user(5_000_000)


BAD_NUMBERS = (0, -1, 0.5, float("nan"), float("inf"), MOST_RATE + 1, 10**400, True, "fast", [], {})


@pytest.mark.parametrize("number", BAD_NUMBERS, ids=lambda number: type(number).__name__)
def test_what_is_no_rate_is_said_with_its_place(number: object) -> None:
    with pytest.raises(InvalidInputError, match=r"devices\[0\]\.memory_bytes_per_s") as caught:
        machine_of(devices=({**CARD, "memory_bytes_per_s": number},))
    assert len(caught.value.message) < 400


def test_all_problems_are_said_at_once() -> None:
    devices = [{"id": 0, "kind": "cuda", "memory_byte_per_s": 1}, {"id": "gpu0", "kind": 3}, "cpu"]
    with pytest.raises(InvalidInputError) as caught:
        Machine.from_data({**HEAD, "devices": devices, "links": [{"from": 0}], "disks": 1})
    text = caught.value.message
    for part in (
        "'disks'",
        "did you mean 'memory_bytes_per_s'",
        "gpu0",
        "devices[1].kind",
        "devices[2]",
        "links[0].to",
        "a link needs",
    ):
        assert part in text
    assert len(caught.value.fields["problems"]) == 7


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "not a machine"),
        ("[]", "schema"),
        ('{"schema": "planner.plan", "version": 1}', "schema"),
        (
            '{"schema": "planner.machine", "version": 2, "devices": []}',
            "version 2; this planner reads version 1",
        ),
        ('{"schema": "planner.machine", "version": true}', "version True"),
        ('{"schema": "planner.machine", "version": 1}', "at least one device"),
        ('{"schema": "planner.machine", "version": 1, "version": 1}', "twice"),
        ("[" * 100_000, "not a machine"),
        (
            '{"schema": "planner.machine", "version": 1, "devices": [{"id": 0, "kind": "cuda", "name": "\\ud800"}]}',
            "can be written to a file",
        ),
    ],
)
def test_what_is_no_machine_says_why(text: str, part: str) -> None:
    with pytest.raises(InvalidInputError, match=part):
        Machine.from_json(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"nothing\.json"):
        Machine.read(tmp_path / "nothing.json")
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInputError, match=r"odd.json"):
        Machine.read(tmp_path / "odd.json")
    (tmp_path / "new.json").write_text(json.dumps({**HEAD, "version": 3}))
    with pytest.raises(InvalidInputError, match=r"new.json: machine of version 3"):
        Machine.read(tmp_path / "new.json")


def test_devices_and_links_that_make_no_machine_are_refused() -> None:
    with pytest.raises(InvalidDevicesError, match="device 0 stands twice"):
        machine_of(devices=(CARD, {**CARD, "id": "cuda:0"}))
    with pytest.raises(InvalidInputError, match="no device 7"):
        machine_of({"from": "cpu", "to": 7, "bytes_per_s": 1})
    with pytest.raises(InvalidInputError, match="twice"):
        machine_of(*[{"from": "cpu", "to": 0, "bytes_per_s": 1}] * 2)
    with pytest.raises(InvalidInputError, match="to itself"):
        machine_of({"from": "cpu", "to": "cpu", "bytes_per_s": 1})
    with pytest.raises(InvalidDevicesError, match=f"at most {MOST_DEVICES}"):
        machine_of(devices=tuple({**CARD, "id": number} for number in range(MOST_DEVICES + 1)))
    with pytest.raises(InvalidDevicesError, match=r"no device 5; it has 0, 1, cpu: planner probe"):
        machine_of().device(5)


def test_routes_take_links_that_are_there_and_follow_rules_where_there_are_none() -> None:
    up, down = (
        {"from": "cpu", "to": 0, "bytes_per_s": 25 * 10**9},
        {"from": 1, "to": "cpu", "bytes_per_s": 20 * 10**9},
    )
    peer = {"from": 0, "to": 1, "bytes_per_s": 3 * 10**11, "latency_ps": 10**7}
    disk = {"from": "disk", "to": "cpu", "bytes_per_s": 10**9, "pinned": False}
    machine = machine_of(up, down, peer, disk)
    assert machine.route("cpu", "cpu").copy_ps(10**9) == 0
    assert machine.route("cpu", 0).rule == ""
    assert machine.route("cpu", 0).copy_ps(25 * 10**9) == 10**12
    assert machine.route("cpu", 1).rule == "as fast as the other way"
    pageable = machine.route("cpu", 0, is_pinned=False)
    assert pageable.rule == "pageable memory, by rule"
    assert pageable.links[0].bytes_per_s.value == 10**10
    assert machine.route(0, 1).copy_ps(3 * 10**11) == 10**12 + 10**7
    assert machine.route("disk", 1).rule == "through cpu"
    assert machine.route("disk", 1).copy_ps(10**9) == 10**12 + 5 * 10**10
    with pytest.raises(InvalidInputError, match="no rate from cpu to disk"):
        machine.route("cpu", "disk")


def test_cards_without_peer_access_meet_through_the_host() -> None:
    links = [{"from": "cpu", "to": card, "bytes_per_s": 10**10, "latency_ps": 5} for card in (0, 1)]
    route = machine_of(*links).route(0, 1)
    assert route.rule == "through cpu"
    assert route.copy_ps(10**10) == 2 * (10**12 + 5)
    assert (
        machine_of(*links, {"from": 0, "to": 1, "bytes_per_s": 10**12}).route(0, 1).copy_ps(10**12) == 10**12
    )


def test_between_nodes_bytes_pass_both_hosts() -> None:
    devices = tuple({**row, "node": node} for node in "ab" for row in (CARD, HOST))
    links = [{"from": f"{node}/cpu", "to": f"{node}/0", "bytes_per_s": 10**10} for node in "ab"]
    machine = machine_of(*links, {"from": "a/cpu", "to": "b/cpu", "bytes_per_s": 10**9}, devices=devices)
    route = machine.route("a/0", "b/0")
    assert route.rule == "through a/cpu and b/cpu"
    assert route.copy_ps(10**9) == 10**12 + 2 * 10**11


def test_copies_round_up_to_whole_picoseconds() -> None:
    machine = machine_of({"from": "cpu", "to": 0, "bytes_per_s": 3 * 10**12})
    assert machine.route("cpu", 0).copy_ps(1) == 1
    assert machine.route("cpu", 0).copy_ps(0) == 0


def test_a_rate_that_is_none_is_refused_before_anything() -> None:
    for low, value, high in ((2, 1, 3), (1, 5, 4), (0, 1, 1), (1, 1, MOST_RATE + 1)):
        with pytest.raises(PlannerError):
            Rate(value=value, origin="measured", low=low, high=high)


def test_equal_machines_are_one_key_and_nobody_changes_them() -> None:
    one, other = (machine_of({"from": "cpu", "to": 0, "bytes_per_s": 10**12}) for _ in range(2))
    assert {one: 1}[other] == 1
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(TypeError):
        one.device(0).flops_per_s["float32"] = Rate.of_user(1)  # type: ignore[index]
