"""A process that has the large libraries loaded, and forks one that runs pytest for each file it is told of.

Loading them takes longer than most files of tests. Each line on stdin is the arguments of one run as JSON, after the path that its output goes
to; the answers are a line with the process's number, and one with its exit code.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from contextlib import suppress

# Nothing of them starts a thread when it is loaded, so that a fork has everything.
LARGE = ("numpy", "torch", "safetensors.torch", "accelerate", "transformers.modeling_utils", "pytest")


def run(output: str, arguments: list[str]) -> int:
    """In the child: all that is printed goes to a file. Returns the exit code."""
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, place in ((nothing, 0), (target, 1), (target, 2)):
        os.dup2(source, place)
    import pytest

    return int(pytest.main(arguments))


def serve() -> None:
    """Until stdin ends."""
    for name in LARGE:
        with suppress(ImportError):  # whoever needs it will say so
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        output, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = run(output, arguments)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as `python -m pytest` has it, not this script's folder
    serve()
