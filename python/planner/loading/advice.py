"""What would make a checkpoint fit a model that it does not fit, as far as names tell."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["advice_on_names"]


def advice_on_names(missing: Sequence[str], extra: Sequence[str], *, others_fit: bool) -> str:
    """What to say to :func:`planner.load` of names that only one side has; empty if there are none.

    Args:
        missing: names in the model that no file has.
        extra: names in the files that the model has no place for.
        others_fit: whether there are names that both have.

    Example:
        >>> advice_on_names(["weight"], ["module.weight"], others_fit=False)
        "names in the files have 'module.' in front: rename=lambda name: name.removeprefix('module.') takes it away"
    """
    for prefix in _prefixes(missing, extra):
        return f"names in the files have {prefix!r} in front: rename=lambda name: name.removeprefix({prefix!r}) takes it away"
    for prefix in () if others_fit else _prefixes(extra, missing):
        return f"names in the files lack {prefix!r} in front: rename=lambda name: {prefix!r} + name adds it"
    said = []
    if missing:
        said.append("allow_missing= of planner.load has the model's own code make what is missing")
    if extra:
        said.append("allow_unexpected= of planner.load leaves in the files what the model has no place for")
    return "; ".join(said)


def _prefixes(bare: Sequence[str], longer: Sequence[str]) -> list[str]:
    """What is in front of all bare names among the longer ones."""
    known = set(longer)
    found = {
        name.removesuffix(bare[0]) for name in longer if bare and name != bare[0] and name.endswith(bare[0])
    }
    return sorted(
        prefix for prefix in found if prefix.endswith(".") and all(prefix + name in known for name in bare)
    )
