"""Globs on the command line, from the option to the plan."""

from __future__ import annotations

import planner
from command_line import Command
from planner.names import device_of

ROOM = ["-d", "0=1MiB", "-d", "1=1MiB", "-d", "cpu=1MiB"]


def test_a_glob_pins_what_it_matches(command: Command, llama: str) -> None:
    options = ["--pin", "model.layers.*=1", "--pin", "*.mlp=cpu", "--forbid", "lm_h*=0,1"]
    plan = planner.Plan.from_json(command("plan", llama, *ROOM, *options, "--json").stdout)
    homes = [device_of(f"model.layers.0.{name}", plan.device_map) for name in ("self_attn", "mlp")]
    assert homes == [1, "cpu"] and device_of("lm_head", plan.device_map) == "cpu"


def test_a_glob_keeps_together_what_it_matches(command: Command, llama: str) -> None:
    options = ["--together", "*.mlp,lm_head", "--pin", "lm_head=1", "--pin", "*.self_attn=0"]
    plan = planner.Plan.from_json(command("plan", llama, *ROOM, *options, "--json").stdout)
    assert device_of("model.layers.0.mlp", plan.device_map) == 1
    assert device_of("model.layers.0.self_attn", plan.device_map) == 0


def test_a_glob_that_matches_nothing_is_bad_input(command: Command, llama: str) -> None:
    done = command("plan", llama, *ROOM, "--pin", "model.layer.*=0")
    assert done.exit_code == 2 and "did you mean 'model.layers.*'?" in done.stderr
