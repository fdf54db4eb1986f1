"""What is known of an architecture without building it: its modules, its ties, and how it calls what files hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from planner.checkpoint.made import Form, MadeTensor
from planner.checkpoint.transforms import Transform
from planner.memory.config_defaults import CacheDefaults

_TABLE = Path(__file__).with_name("architectures.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class TieRule:
    """Names that one part of a model ties.

    Args:
        when: whether it does, by what a configuration says: three digits (nothing, false, true) for the model itself; nine
            where there is a ``text_config``, whose saying counts within each three.
        pairs: a tensor's name, and that of the tensor that it is.
    """

    when: str
    pairs: tuple[tuple[str, str], ...]

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Whether a ``config.json`` has the model tie these."""
        place = _said(config)
        if len(self.when) > 3:
            inner = config.get("text_config")
            place = 3 * place + _said(inner if isinstance(inner, dict) else {})
        return self.when[place] == "1"


def _said(config: Mapping[str, Any]) -> int:
    """0 if a configuration says nothing of tied embeddings, 1 if it denies them, 2 if it wants them."""
    said = config.get("tie_word_embeddings")
    return 0 if said is None else 1 + bool(said)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One model class of transformers.

    Args:
        name: the class.
        version: transformers' version that it is described by.
        parts: types of the models inside it, by the name of their configuration.
        base_prefix: local name of the model without its head.
        no_split: classes that must not be split.
        bases: names of base classes by class.
        forms: modules; the first is the model.
        ties: what is tied, and when.
        ignored: patterns of names in files that are not loaded.
        transforms: how names in files become live names, in order.
        made: tensors that files may lack, because the class makes them itself.
        cache_defaults: what caches are computed from and a configuration may leave out; None where that is not known.
    """

    name: str
    version: str
    parts: Mapping[str, str]
    base_prefix: str
    no_split: tuple[str, ...]
    bases: Mapping[str, list[str]]
    forms: Sequence[Form]
    ties: tuple[TieRule, ...]
    ignored: tuple[str, ...]
    transforms: tuple[Transform, ...]
    made: tuple[MadeTensor, ...] = ()
    cache_defaults: CacheDefaults | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Architecture:
        """An architecture from its line in the table."""
        return cls(
            name=record["name"],
            version=record["version"],
            parts=record["parts"],
            base_prefix=record["base_prefix"],
            no_split=tuple(record["no_split"]),
            bases=record["bases"],
            forms=[_form(row) for row in record["forms"]],
            ties=tuple(
                TieRule(when=row["when"], pairs=tuple((target, source) for target, source in row["pairs"]))
                for row in record["ties"]
            ),
            ignored=tuple(record["ignored"]),
            transforms=tuple(Transform(**row) for row in record["transforms"]),
            made=tuple(MadeTensor.from_record(row) for row in record.get("made", ())),
            cache_defaults=(
                CacheDefaults.from_record(record["cache_defaults"]) if record.get("cache_defaults") else None
            ),
        )

    def has_tensor(self, name: str) -> bool:
        """Whether some model of this architecture saves a tensor of this name; any number stands for any other."""
        module, _, last = name.rpartition(".")
        last = "*" if last.isdecimal() else last
        return any(last in self._saved[form] for form in self._forms_of(module))

    def has_module(self, name: str) -> bool:
        """Whether some model of this architecture has a module of this name."""
        return bool(self._forms_of(name))

    def _forms_of(self, module: str) -> set[int]:
        forms = {0} if self.forms else set()
        for part in module.split(".") if module else ():
            part = "*" if part.isdecimal() else part
            forms = {child for form in forms for child in self._children[form].get(part, ())}
        return forms

    @cached_property
    def _children(self) -> list[dict[str, list[int]]]:
        """Forms of children by name, with one name for all numbers."""
        tables: list[dict[str, list[int]]] = []
        for _, _, children, _ in self.forms:
            table: dict[str, list[int]] = {}
            for name, forms in children:
                table.setdefault("*" if name.isdecimal() else name, []).extend(forms)
            tables.append(table)
        return tables

    @cached_property
    def _saved(self) -> list[set[str]]:
        """Names of saved tensors by form, with one name for all numbers."""
        rows = [
            (*parameters, *(name for name, is_saved in buffers if is_saved))
            for _, parameters, _, buffers in self.forms
        ]
        return [{"*" if name.isdecimal() else name for name in names} for names in rows]


def _form(row: Any) -> Form:
    name, parameters, children, buffers = row
    return (
        name,
        parameters,
        [(child, forms) for child, forms in children],
        [(buffer, bool(is_saved)) for buffer, is_saved in buffers],
    )


def known_architecture(name: str) -> Architecture | None:
    """An architecture from the table that comes with the package; None if it has no line there.

    Cost: the table is read line by line and one line is parsed.
    """
    wanted = f'{{"name":{json.dumps(name)},'.encode()
    with _TABLE.open("rb") as table:
        for line in table:
            if line.startswith(wanted):
                return Architecture.from_record(json.loads(line))
    return None


def class_of_type(model_type: str) -> str | None:
    """The class that a ``model_type`` is loaded as where a configuration names none."""
    with _TABLE.open("rb") as table:
        return cast("str | None", json.loads(next(table))["types"].get(model_type))
