"""Ours beside upstream's answer: the one verdict that differential tests and sweeps share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oracle.upstream import Answer
from planner.check import check


@dataclass(frozen=True)
class Verdict:
    """What a comparison found. "identical" and "repaired" are as it should be; everything else is a fault of ours."""

    word: str  # "identical", "reordered", "repaired", "difference" or "invalid"
    details: str = ""

    @property
    def is_good(self) -> bool:
        return self.word in ("identical", "reordered", "repaired")

    def __str__(self) -> str:
        return f"{self.word}: {self.details}"


def judge(model: Any, ours: dict[str, Any], answer: Answer, faults: str | None) -> Verdict:
    """No faults anywhere; where upstream binds, the same keys and values, in the same order but for tied modules."""
    if faults:
        return Verdict("invalid", f"{faults}; ours {dict(ours)}")
    if not answer.binding:
        return Verdict("repaired", str(answer.why))
    theirs = answer.device_map or {}
    if list(ours.items()) == list(theirs.items()):
        return Verdict("identical")
    if dict(ours) == theirs and in_order_but_for_ties(model, list(ours), list(theirs)):
        return Verdict("reordered")
    return Verdict("difference", f"ours {dict(ours)}; upstream {theirs}")


def faults_in(model: Any, device_map: dict[str, Any], max_memory: Any, **checked: Any) -> str | None:
    """What `check` finds, in words; None if the map is valid."""
    return (
        "; ".join(
            str(finding) for finding in check(model, device_map, max_memory, **checked) if not finding.is_note
        )
        or None
    )


def in_order_but_for_ties(model: Any, ours: list[str], theirs: list[str]) -> bool:
    """Whether two orders of the same keys differ only by swaps among modules that are tied, directly or in chains."""
    groups = tied_groups(model, theirs)
    return [groups[key] for key in ours] == [groups[key] for key in theirs]


def tied_groups(model: Any, keys: list[str]) -> dict[str, str]:
    """Key → the first key that it is tied to, in any number of steps."""
    owners: dict[int, str] = {}
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    for name, tensor in model.named_parameters(remove_duplicate=False):
        while name and name not in parent:
            name = name.rpartition(".")[0]
        if name in parent:
            parent[root(name)] = root(owners.setdefault(id(tensor), name))
    return {key: root(key) for key in keys}
