"""The nearest known name of one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

MOST_CANDIDATES: Final = 200  # names that one of them is compared with
_LONGEST_COMPARED: Final = 200  # characters, as the comparison is quadratic in them


def nearest_in_model(key: str, model: Any) -> tuple[str, ...]:
    """The name that is reached if each part of a key is read as the nearest name at that place, as far as it goes."""
    module, found = model, list[str]()
    for part in key.split(".")[:MOST_CANDIDATES]:
        if module is None:
            break
        names = {**module._parameters, **module._buffers, **module._modules}
        nearest = (part,) if part in names else nearest_of(part, islice(names, MOST_CANDIDATES))
        if not nearest:
            break
        found.append(nearest[0])
        module = module._modules.get(nearest[0])
    else:
        return (".".join(found),)
    children = islice(model._modules.items(), MOST_CANDIDATES)
    wrapped = (f"{name}.{key}" for name, child in children if _reaches(child, key))
    return tuple(islice(wrapped, 1)) or ((".".join(found),) if found else ())


def _reaches(module: Any, key: str) -> bool:
    """Whether a key is the name of something inside a module."""
    *path, last = key.split(".")
    for part in path:
        module = None if module is None else module._modules.get(part)
    return module is not None and last in {**module._modules, **module._parameters, **module._buffers}


def nearest_of(name: str, candidates: Iterable[str]) -> tuple[str, ...]:
    """The candidate that a name is most like, if any is like it."""
    if len(name) > _LONGEST_COMPARED:
        return ()
    short = (candidate for candidate in candidates if len(candidate) <= _LONGEST_COMPARED)
    return tuple(difflib.get_close_matches(name, short, n=1))
