"""The model that a command is about: files, a name on the hub, or an example that is made up."""

from __future__ import annotations

from pathlib import Path

import click

from planner.checkpoint.source import Opened, open_source
from planner.cli.synthetic import EXAMPLES, write_synthetic
from planner.cli.waiting import saying
from planner.errors import InvalidInputError


def open_model(model: str | None, example: str | None, *, remote: bool) -> Opened:
    """The tree of what a command's MODEL, ``--example`` and ``--remote`` name.

    Raises:
        click.UsageError: neither a model nor an example, or both.
        InvalidInputError: no such example. Fields: ``option``, ``text``.
        PlannerError: see :func:`planner.checkpoint.source.open_source`.
    """
    if (model is None) == (example is None):
        raise click.UsageError(
            "Missing argument 'MODEL'."
            if model is None
            else f"--example {example} stands instead of {model!r}."
        )
    if model is not None:
        with saying(f"reading the headers of {model}"):
            return open_source(model, remote=remote)
    assert example is not None
    if example not in EXAMPLES:
        raise InvalidInputError(
            f"--example {example}: there is {', '.join(EXAMPLES)}", option="--example", text=example
        )
    import tempfile  # few plans are of an example, and every command loads this module

    # Headers are read at once, so that nothing is left behind.
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic(Path(folder, example))
        return open_source(Path(folder, example))
