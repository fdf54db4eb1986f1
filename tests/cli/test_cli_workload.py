"""Workloads on the command line: the options, and the largest that fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def test_what_is_required_is_named_by_its_option(command: Command, llama: str) -> None:
    done = command("plan", llama, *DEVICES, "--batch", "2")
    assert "workload.context_length: required" in done.stderr
    assert "--context says it." in done.stderr


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


def fitted(command: Command, llama: str, *said: str) -> dict[str, Any]:
    done = command("fit", llama, *said, "--json")
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_fit_finds_the_largest_context_unless_told_otherwise(command: Command, llama: str) -> None:
    room = ("-d", "0=2GiB")
    found = fitted(command, llama, *room)
    assert found["of"] == "context_length"
    assert found == fitted(command, llama, *room, "--largest", "context")
    fewer = fitted(command, llama, *room, "--batch", "4")
    assert 1 <= fewer["value"] <= found["value"]
    shown = command("fit", llama, *room)
    assert shown.stdout.startswith(f"context_length = {found['value']} (")
    assert "cache" in shown.stdout and "activations" in shown.stdout


@pytest.mark.parametrize(("written", "count"), [("1k", 1024), ("2K", 2048), ("100", 100)])
def test_fit_asks_for_no_more_than_it_is_told_to(
    command: Command, llama: str, written: str, count: int
) -> None:
    found = fitted(command, llama, "-d", "0=64GiB", "--upto", written)
    assert (found["value"], found["limit"]) == (count, "asked")


def test_fit_keeps_the_prompt_that_is_said(command: Command, llama: str) -> None:
    room, prompt = ("-d", "0=400MiB", "--upto", "512m"), ("--prompt", "64")
    whole, short = fitted(command, llama, *room), fitted(command, llama, *room, *prompt)
    assert short["value"] >= whole["value"]
    for value, code in ((short["value"], 0), (short["value"] + 1, 1)):
        assert command("plan", llama, "-d", "0=400MiB", *prompt, "--context", str(value)).exit_code == code


def test_fit_reads_settings_from_a_file(command: Command, llama: str, own_folder: Path) -> None:
    (own_folder / "planner.yaml").write_text("max_memory: {0: 2GiB}\nworkload: {batch_size: 4}\n")
    assert fitted(command, llama) == fitted(command, llama, "-d", "0=2GiB", "--batch", "4")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (("--largest", "context", "--context", "4k"), "leave it out"),
        (("--largest", "batch", "--batch", "4", "--context", "4k"), "leave it out"),
        (("--largest", "batch"), "context_length"),
        (("--largest", "tokens"), "--largest"),
        (("--upto", "0"), "such as 4096 or 32k"),
        (("--upto", "many"), "such as 4096 or 32k"),
        (("--upto", "4g"), "such as 4096 or 32k"),
        (("--upto", "4096m"), "upto must be"),
        (("--upto", "1k", "--prompt", "2k"), "upto, 1024"),
    ],
)
def test_fit_tells_what_is_wrong(command: Command, llama: str, said: tuple[str, ...], words: str) -> None:
    done = command("fit", llama, "-d", "0=2GiB", *said)
    assert done.exit_code == 2, done.stdout
    assert words in done.stderr and not done.stdout


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
