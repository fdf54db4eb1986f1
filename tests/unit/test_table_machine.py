"""Machines by the table of known cards."""

from __future__ import annotations

import pytest

from planner.devices.cards import MEMORY_EFFICIENCY, card_named
from planner.devices.machine import Machine
from planner.devices.table_machine import Host, machine_of_cards
from planner.errors import InvalidDevicesError, InvalidInputError

HOST = Host(memory_bytes_per_s=2 * 10**11, flops_per_s=2 * 10**12, disk_bytes_per_s=3 * 10**9)


def test_rates_are_those_of_the_sheet_times_what_models_meet() -> None:
    machine, card = machine_of_cards({0: "NVIDIA H100 80GB HBM3", 1: "RTX 4090"}), card_named("RTX 4090")
    rate = machine.device(1).memory_bytes_per_s
    assert rate is not None
    assert rate.value == round(card.memory_bytes_per_s * MEMORY_EFFICIENCY)
    assert rate.origin == "table"
    assert card.source in rate.source
    assert rate.uncertainty == pytest.approx(0.3, abs=1e-6)
    assert Machine.from_json(machine.to_json()) == machine


def test_cards_of_one_kind_with_links_of_their_own_meet_without_the_host() -> None:
    machine = machine_of_cards({0: "H200 SXM", 1: "H200 SXM", 2: "RTX 4090", 3: "RTX 4090"})
    assert machine.route(0, 1).rule == ""
    assert machine.route(2, 3).rule == "through cpu"
    assert machine.route(0, 2).rule == "through cpu"
    size = 1 << 30
    assert machine.route(0, 1).copy_ps(size) * 10 < machine.route(2, 3).copy_ps(size)


def test_pinned_memory_is_faster() -> None:
    machine = machine_of_cards({0: "L4"})
    size = 1 << 30
    assert machine.route("cpu", 0).copy_ps(size) * 2 < machine.route("cpu", 0, is_pinned=False).copy_ps(size)


def test_of_the_host_only_what_was_said() -> None:
    bare = machine_of_cards({0: "L4"})
    assert bare.device("cpu").memory_bytes_per_s is None
    with pytest.raises(InvalidInputError, match="no rate from disk to 0"):
        bare.route("disk", 0)
    said = machine_of_cards({0: "L4"}, HOST)
    assert said.device("cpu").compute_rate("bfloat16") == said.device("cpu").compute_rate("float32")
    assert said.route("disk", 0).rule == "through cpu"
    memory = said.device("cpu").memory_bytes_per_s
    assert memory is not None and memory.origin == "user"


def test_a_card_that_shares_the_hosts_memory_reads_what_lies_there() -> None:
    machine = machine_of_cards({"mps": "Apple M2 Max"})
    rate = machine.device("mps").memory_bytes_per_s
    assert machine.route("cpu", "mps").links[0].bytes_per_s == rate


def test_a_card_that_is_not_known_says_which_are() -> None:
    with pytest.raises(InvalidDevicesError) as caught:
        machine_of_cards({0: "RTX 4091"})
    assert "4090" in caught.value.message
    assert "planner probe" in caught.value.message
