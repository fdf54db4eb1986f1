"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for errors too.")]

Remote = Annotated[
    bool,
    typer.Option(
        "--remote",
        help="Read the headers of a model that is not in the hub's cache from the hub, through huggingface_hub.",
    ),
]

SourcePath = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model's folder, a safetensors file or index, a config.json, or a hub name that is in the hub's cache.",
        show_default=False,
    ),
]

PlanFile = Annotated[
    str,
    typer.Argument(
        metavar="PLAN",
        help="A plan, as `planner plan -o` writes it; - is standard input.",
        show_default=False,
    ),
]
