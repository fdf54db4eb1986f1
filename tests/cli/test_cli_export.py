"""`planner export`: a plan's file in the words of an engine, for people and for programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import planner
from command_line import Command, answer
from planner import export
from planner.cli.export import ENGINES
from planner.devices.rate import Rate
from planner.devices.table_machine import machine_of_cards


def two_stages() -> planner.Plan:
    parts = {
        "embed": nn.Embedding(9, 8),
        "layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(4)),
        "head": nn.Linear(8, 9),
    }
    return planner.plan(nn.ModuleDict(parts), max_memory={0: 1160, 1: 700})


def test_every_engine_of_the_package_is_one_of_the_command() -> None:
    assert sorted(ENGINES) == sorted(set(export.__all__) - {"Command"})


@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"llama_cpp"}))
def test_it_says_what_the_library_says(command: Command, engine: str) -> None:
    made = two_stages()
    Path("plan.json").write_text(made.to_json())
    wanted = ENGINES[engine](made)
    assert command("export", "plan.json", "--to", engine).stdout == f"{wanted.text}\n"
    found = answer(command("export", "plan.json", "--to", engine, "--json"))
    assert found == {
        "engine": engine,
        "line": wanted.line,
        "env": dict(wanted.env),
        "args": list(wanted.args),
        "files": dict(wanted.files),
        "notes": list(wanted.notes),
    }


def test_a_plan_that_an_engine_cannot_have_is_bad_input(command: Command) -> None:
    Path("plan.json").write_text(two_stages().to_json())
    done = command("export", "plan.json", "--to", "llama_cpp")
    assert done.exit_code == 2 and "engine='llama_cpp'" in done.stderr
    assert command("export", "plan.json", "--to", "vlm").exit_code == 2
    assert command("export", "plan.json").exit_code == 2


def test_devices_of_several_computers_are_not_looked_for_here(command: Command, llama: str) -> None:
    pair = machine_of_cards({0: "L4", 1: "L4"})
    both = planner.Machine.of_nodes({"a": pair, "b.lan": pair}, between=Rate.of_user(10**10))
    Path("both.json").write_text(both.to_json())
    asked = ("plan", llama, "--strategy", "throughput", "--engine", "sglang", "--machine", "both.json")
    done = command(*asked, "-o", "plan.json")
    assert done.exit_code == 0, done.output
    assert "no accelerator" not in done.stdout and "GPU b.lan/1" in done.stdout
    made = planner.Plan.from_json(Path("plan.json").read_text())
    assert [device.id for device in made.devices] == ["a/0", "a/1", "b.lan/0", "b.lan/1"]
    assert command("export", "plan.json", "--to", "sglang").stdout.count("--nnodes 2") == 1
    some = command(*asked, "-d", "a/0=1GiB", "-d", "b.lan/cuda:1=1GiB", "--json")
    assert [device["id"] for device in answer(some)["devices"]] == ["a/0", "b.lan/1"]


def test_no_device_map_is_written_of_a_plan_over_several_computers(command: Command, llama: str) -> None:
    pair = machine_of_cards({0: "L4", 1: "L4"})
    both = planner.Machine.of_nodes({"a": pair, "b": pair}, between=Rate.of_user(10**10))
    Path("both.json").write_text(both.to_json())
    asked = ("plan", llama, "--strategy", "throughput", "--machine", "both.json", "--device-map", "map.json")
    done = command(*asked, "-o", "plan.json")
    assert done.exit_code == 2 and "one process" in done.stderr
    assert not Path("map.json").exists() and not Path("plan.json").exists()
