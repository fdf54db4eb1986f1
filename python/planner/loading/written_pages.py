"""Whether this process has written into what it has mapped of a file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import torch

__all__ = ["are_unwritten"]

_RANGE: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_WRITTEN: Final = re.compile(r"Anonymous:\s+(\d+) kB")
_MAPPINGS: Final = "/proc/self/smaps"


def are_unwritten(mappings: Iterable[Any]) -> bool:
    """Whether all pages of private mappings are still those of their files; False where the system does not tell.

    A page that was written to is the process's own from then on, whoever wrote it: also where no tensor's version tells it.

    Cost: a walk over the process's page tables, some milliseconds a gigabyte.
    """
    spans = sorted(_span(mapping) for mapping in mappings if len(mapping))
    try:
        with open(_MAPPINGS) as rows:
            is_ours = False
            for row in rows:
                bounds = _RANGE.match(row)
                if bounds is not None:
                    begin, end = (int(bound, 16) for bound in bounds.groups())
                    is_ours = any(start < end and begin < stop for start, stop in spans)
                elif is_ours and (written := _WRITTEN.match(row)) is not None and written[1] != "0":
                    return False
    except OSError:
        return False
    return True


def _span(mapping: Any) -> tuple[int, int]:
    begin = torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()
    return begin, begin + len(mapping)
