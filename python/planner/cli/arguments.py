"""Arguments and options that several commands share."""

from __future__ import annotations

import click

from planner.cli.parsing import FILE, Argument
from planner.cli.synthetic import EXAMPLES

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output, for errors too."
)

remote_option = click.option(
    "--remote",
    is_flag=True,
    help="Read the headers of a model that is not in the hub's cache from the hub, through huggingface_hub.",
)

# Not required, since --example stands in its place.
model_argument = click.argument(
    "model",
    cls=Argument,
    metavar="MODEL",
    required=False,
    type=FILE,
    about="A model's folder, a safetensors file or index, a config.json, or a hub name that is in the hub's cache.",
)

example_option = click.option(
    "--example",
    metavar="NAME",
    shell_complete=lambda _, __, start: [name for name in EXAMPLES if name.startswith(start)],
    help="A model that is made up, instead of MODEL: llama-70b.",
)

ABOUT_PLANS = "A plan, as `planner plan -o` writes it; - is standard input."
