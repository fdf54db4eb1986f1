"""Ours beside upstream's answer: the one verdict that differential tests and sweeps share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import planner
from oracle import ordered_transformers
from oracle.ordered_transformers import transformers_answer
from oracle.repaired_accelerate import accelerate_answer
from oracle.upstream import Answer
from planner.checker.check import check
from planner.compat import transformers as ours_for_transformers

JUDGED = ("dtype", "special_dtypes", "no_split_module_classes")


@dataclass(frozen=True)
class Verdict:
    """What a comparison found.

    "identical" and "reordered" (only tied modules in another order): upstream binds, ours is the same. "repaired": upstream
    does not bind, ours is valid. "refused": a disk budget that upstream ignores is exhausted. All others are faults of ours:
    "difference", "invalid", "exception".
    """

    word: str
    details: str = ""
    upstream: str = ""  # "binding", "raised", "invalid" or "accident"

    @property
    def is_good(self) -> bool:
        return self.word in ("identical", "reordered", "repaired", "refused")

    def __str__(self) -> str:
        return f"{self.word}: {self.details}"


def judge_accelerate(model: Any, max_memory: Mapping[Any, Any], kwargs: Mapping[str, Any]) -> Verdict:
    """Our `infer_auto_device_map` beside accelerate's."""
    answer = accelerate_answer(model, dict(max_memory), **kwargs)
    ours = _ours(planner.infer_auto_device_map, answer, model, max_memory, kwargs)
    if isinstance(ours, Verdict):
        return ours
    judged = {name: value for name, value in kwargs.items() if name in JUDGED}
    return _compare(model, ours, answer, faults_in(model, ours, max_memory, **judged))


def judge_transformers(model: Any, max_memory: Mapping[Any, Any], kwargs: Mapping[str, Any]) -> Verdict:
    """Our function in transformers' dialect beside transformers' own. Afterwards the model is tied as its table says.

    Judged by transformers' bytes, and by stored bytes as well where no quantizer says otherwise.
    """
    answer = transformers_answer(model, dict(max_memory), **kwargs)
    ours = _ours(ours_for_transformers.infer_auto_device_map, answer, model, max_memory, kwargs)
    if isinstance(ours, Verdict):
        return ours
    faults = ordered_transformers.invalid(model, ours, dict(max_memory), **kwargs)
    tie_as_told(model)
    if "hf_quantizer" not in kwargs:
        no_split, exempt = kwargs.get("no_split_module_classes"), kwargs.get("no_placement_params")
        faults = faults or faults_in(
            model, ours, max_memory, no_split_module_classes=no_split or (), exempt=exempt or ()
        )
    return _compare(model, ours, answer, faults)


def tie_as_told(model: Any) -> None:
    """What `tie_weights` does: each tied name gets its source's tensor."""
    for name, source in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        path, _, own = name.rpartition(".")
        model.get_submodule(path)._parameters[own] = model.get_parameter(source)


def _ours(plan: Any, answer: Answer, model: Any, max_memory: Any, kwargs: Any) -> dict[str, Any] | Verdict:
    try:
        return dict(plan(model, max_memory, **kwargs))
    except planner.InfeasibleError as error:
        if "disk" in max_memory and not answer.binding:
            return Verdict("refused", str(error), answer.verdict)
        return Verdict("exception", f"{error} although upstream says {answer}", answer.verdict)
    except Exception as error:
        return Verdict("exception", f"{type(error).__name__}: {error}", answer.verdict)


def _compare(model: Any, ours: dict[str, Any], answer: Answer, faults: str | None) -> Verdict:
    if faults:
        return Verdict("invalid", f"{faults}; ours {ours}", answer.verdict)
    if not answer.binding:
        return Verdict("repaired", str(answer.why), answer.verdict)
    theirs = answer.device_map or {}
    if list(ours.items()) == list(theirs.items()):
        return Verdict("identical", "", answer.verdict)
    if ours == theirs and in_order_but_for_ties(model, list(ours), list(theirs)):
        return Verdict("reordered", "", answer.verdict)
    return Verdict("difference", f"ours {ours}; upstream {theirs}", answer.verdict)


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
