"""`planner export`: a saved plan in the words of another engine."""

from __future__ import annotations

import click

from planner import export
from planner.cli.arguments import ABOUT_PLANS, json_option
from planner.cli.exits import OK
from planner.cli.files import read_plan
from planner.cli.output import write, write_json
from planner.cli.parsing import FILE, Argument, Command

ENGINES = {
    "vllm": export.vllm,
    "sglang": export.sglang,
    "megatron": export.megatron,
    "tensorrt_llm": export.tensorrt_llm,
    "torchtitan": export.torchtitan,
    "llama_cpp": export.llama_cpp,
    "huggingface": export.huggingface,
    "deepspeed": export.deepspeed,
}
"""By name, what says a plan in its words."""


@click.command(cls=Command)
@click.argument("plan", cls=Argument, type=FILE, metavar="PLAN", about=ABOUT_PLANS)
@click.option(
    "--to", "engine", type=click.Choice(list(ENGINES)), required=True, help="The engine that is to run it."
)
@json_option
def command(plan: str, engine: str, as_json: bool) -> int:
    """Say a plan in the words of another engine: what to start, with which arguments and files.

    Plans are made for an engine with --engine of planner plan.
    """
    found = ENGINES[engine](read_plan(plan))
    if not as_json:
        write(found.text)
        return OK
    write_json(
        {
            "engine": engine,
            "line": found.line,
            "env": found.env,
            "args": found.args,
            "files": found.files,
            "notes": found.notes,
        }
    )
    return OK
