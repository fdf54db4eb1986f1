"""Whatever is typed: an answer or a message, never a traceback."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import planner
from command_line import Model, write_llama
from planner.cli.app import app
from planner.cli.settings import SETTING_OPTIONS

COMMANDS = [
    "plan",
    "explain",
    "check",
    "diff",
    "sizes",
    "devices",
    "config",
    "show",
    "path",
    "--",
    "-",
]
FILES = [
    "llama",
    "plan.json",
    "map.json",
    "rows.jsonl",
    "planner.yaml",
    "absent",
    ".",
    "",
    "bad.json",
    "/dev/null",
]
FLAGS = [flag for option in SETTING_OPTIONS for flag in option.flags]
FLAGS += [
    "--json",
    "-h",
    "--version",
    "--traceback",
    "--depth",
    "--offload-folder",
    "--all",
    "-o",
    "--html",
    "--budgets",
]
VALUES = [
    "0=80GiB",
    "cpu=1MB",
    "0=-1",
    "=",
    "5%",
    "1=2GiB",
    "300%",
    "any",
    "gpu_only",
    "fewest",
    "bf16",
    "lm_head=0",
]
VALUES += [
    "model=0,1",
    "a,b",
    "Layer",
    "expert",
    "max_memory.0=5",
    "strategy:={}",
    "strategy.type=moon",
    "mode",
    "1",
    "-1",
]
VALUES += [
    "{",
    "[]",
    "a:={[",
    "pin.=0",
    "model.layers.0",
    "layers.0",
    "!unset",
    "headroom.all=5%",
    "1e999",
    "--set=mode=any",
]

# Neither a slash nor a dot pair: what is written stays in the test's own folder.
noise = st.text(st.characters(blacklist_characters="/", blacklist_categories=()), max_size=12)
word = st.one_of(st.sampled_from([*FILES, *FLAGS, *VALUES]), noise)
command_lines = st.one_of(
    st.tuples(st.sampled_from(COMMANDS), st.lists(word, max_size=8)).map(lambda pair: [pair[0], *pair[1]]),
    st.tuples(
        st.sampled_from(["plan", "check", "sizes"]),
        st.lists(st.tuples(st.sampled_from(FLAGS), word), max_size=5),
    ).map(lambda pair: [pair[0], "llama", "map.json", *(part for both in pair[1] for part in both)]),
)


def lay_out() -> None:
    """One of everything that a command reads, in the present folder."""
    write_llama("llama")
    Path("plan.json").write_text(PLAN)
    Path("map.json").write_text('{"": 0}')
    Path("bad.json").write_text('{"schema": "planner.plan", "version": 1, "devices": 5}')
    Path("rows.jsonl").write_text('{"0": "64KiB"}\n{"cpu": "1B"}\n')
    Path("planner.yaml").write_text("granularity: block\n")


PLAN = planner.plan(Model(), max_memory={0: 3500, "cpu": 9999}).to_json()


@settings(max_examples=250)
@given(arguments=command_lines, is_json=st.booleans())
def test_no_command_line_ends_in_a_traceback(arguments: list[str], is_json: bool) -> None:
    asked = [*arguments[:1], "--json", *arguments[1:]] if is_json and "--" not in arguments[:1] else arguments
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        lay_out()
        done = CliRunner().invoke(app, asked, input="{}")
    assert done.exit_code in (0, 1, 2), (asked, done.output)
    assert isinstance(done.exception, SystemExit | None)
    assert "Traceback" not in done.output or "--traceback" in asked
    if done.exit_code == 2:
        assert done.output.strip()
    if "--json" in asked and not {"-h", "--help", "--version", "--budgets"} & set(asked):
        json.loads(done.stdout)


def test_the_vocabulary_reaches_every_kind_of_answer() -> None:
    """So that the test above cannot pass on usage errors alone."""
    lay_out()
    codes = [
        CliRunner().invoke(app, asked).exit_code
        for asked in (
            ["plan", "llama", "-d", "0=80GiB"],
            ["plan", "llama", "-d", "0=5B"],
            ["plan", "llama", "-d", "0=-1"],
        )
    ]
    assert codes == [0, 1, 2]
