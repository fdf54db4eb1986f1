"""The command line: `planner plan ./llama -d 0=80GiB`; see docs/cli.md."""

from __future__ import annotations

import sys
from typing import NoReturn

from planner.cli.broken import broken_words

__all__ = ["main"]


def main() -> NoReturn:
    """The console script."""
    try:
        from planner.cli.app import app
    except ImportError as error:
        # Python's own code for an error is 1, which here means that the answer is no.
        sys.stderr.write(f"planner: {broken_words(error)}\n")
        sys.exit(70)
    except KeyboardInterrupt:
        sys.exit(130)
    app.main()
