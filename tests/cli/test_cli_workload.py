"""Workloads on the command line: the options, and the largest that fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Command

DEVICES = ("-d", "0=2GiB", "-d", "cpu=1GiB")


def test_the_options_are_the_settings(command: Command, llama: str) -> None:
    said = ("--context", "1k", "--batch", "2", "--prompt", "256", "--cache", "static")
    done = command("plan", llama, *DEVICES, *said, "--json")
    assert done.exit_code == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    found = {
        name: settings[f"workload.{name}"]["value"]
        for name in ("context_length", "batch_size", "prompt_length", "cache")
    }
    assert found == {"context_length": 1024, "batch_size": 2, "prompt_length": 256, "cache": "static"}


@pytest.mark.parametrize(
    "said",
    [
        ("--context", "0"),
        ("--context", "8", "--prompt", "9"),
        ("--context", "8", "--cache", "paged"),
        ("--batch", "2"),
    ],
)
def test_wrong_ones_are_told(command: Command, llama: str, said: tuple[str, ...]) -> None:
    assert command("plan", llama, *DEVICES, *said).exit_code == 2


def test_fit_says_the_largest(command: Command, llama: str) -> None:
    done = command(
        "fit", llama, "-d", "0=400MiB", "--largest", "batch", "--context", "256", "--upto", "100000", "--json"
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["of"] == "batch_size"
    context = ("--context", "256", "-d", "0=400MiB")
    assert command("plan", llama, *context, "--batch", found["value"]).exit_code == 0
    if found["limit"] in ("proven", "undecided"):
        assert command("plan", llama, *context, "--batch", found["value"] + 1).exit_code == 1


def test_fit_without_room_is_a_refusal(command: Command, llama: str) -> None:
    assert command("fit", llama, "-d", "0=1KiB", "--largest", "context").exit_code == 1


def test_check_adds_up_what_a_plan_tells(command: Command, llama: str, own_folder: Path) -> None:
    done = command("plan", llama, *DEVICES, "--context", "256", "--json")
    made = json.loads(done.stdout)
    (own_folder / "plan.json").write_text(done.stdout)
    assert command("check", llama, "plan.json").exit_code == 0
    made["devices"][0]["cache_bytes"] += 1
    (own_folder / "wrong.json").write_text(json.dumps(made))
    wrong = command("check", llama, "wrong.json")
    assert wrong.exit_code == 1
    assert "budget is" in wrong.stdout


def test_check_holds_a_map_by_hand_against_running(command: Command, llama: str, own_folder: Path) -> None:
    (own_folder / "map.json").write_text('{"": 0}')
    done = command("plan", llama, "-d", "0=2GiB", "--context", "256", "--json")
    taken = sum(
        json.loads(done.stdout)["devices"][0][f"{part}_bytes"]
        for part in ("used", "buffer", "cache", "activation", "margin", "reserved")
    )
    for more, is_valid in ((0, True), (-1, False)):
        given = ("-d", f"0={taken + more}B", "--context", "256", "--json")
        done = command("check", llama, "map.json", *given)
        assert (done.exit_code == 0) == json.loads(done.stdout)["valid"] == is_valid, done.stdout
        assert command("check", llama, "map.json", "-d", f"0={taken + more}B").exit_code == 0
