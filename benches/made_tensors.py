"""What sizes the tensors have that files may lack, by what a configuration says: a column of the table of architectures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers

import model_zoo
from planner.checkpoint.describe import made_tensors


def record(name: str, model: Any) -> list[list[Any]]:
    """The column of one class: names, and of each size its default and the key that says it. Raises ValueError for a size that is
    neither one value of the configuration nor always the same."""
    rows = made_tensors(model)
    if not rows:
        return []
    shapes = dict(rows)
    cls = getattr(transformers, name)
    whole = dict(_said(cls.config_class(**model_zoo.MISSING.get(name, {})).to_dict()))
    keyed: dict[tuple[str, int], str] = {}
    moved: set[tuple[str, int]] = set()
    for key, said in _said(model.config.to_dict()):
        for tensor, shape in _doubled(name, key, said):
            for place, (size, _) in enumerate(shape):
                before = shapes.get(tensor, [[0]] * len(shape))[place][0]
                if size != before:
                    moved.add((tensor, place))
                if size == 2 * before and before == said:
                    keyed[tensor, place] = key
    if moved - keyed.keys():
        raise ValueError(f"sizes that no key says: {sorted(moved - keyed.keys())}")
    return [
        [
            tensor,
            [_size(size, keyed.get((tensor, place), ""), whole) for place, (size, _) in enumerate(shape)],
        ]
        for tensor, shape in rows
    ]


def _size(size: int, key: str, whole: dict[str, int]) -> list[Any]:
    """A model of the zoo is smaller than its class makes it."""
    return [whole[key] if key else size, key]


def _said(config: dict[str, Any], path: str = "") -> Iterator[tuple[str, int]]:
    """The numbers that a configuration says, and those inside it, with dots."""
    for key, said in config.items():
        if isinstance(said, dict):
            yield from _said(said, f"{path}{key}.")
        elif type(said) is int and said > 0:
            yield path + key, said


def _doubled(name: str, key: str, said: int) -> list[list[Any]]:
    """The same tensors by a configuration that says twice as much; none where the class refuses it."""
    cls = getattr(transformers, name)
    config = cls.config_class(**model_zoo.MISSING.get(name, {}))
    model_zoo.shrink_config(config)
    *path, own = key.split(".")
    part = config
    for each in path:
        part = getattr(part, each, None)
    if getattr(part, own, None) != said:
        return []
    try:
        setattr(part, own, 2 * said)
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            return made_tensors(cls(config))
    except Exception:
        return []  # a configuration that the class refuses is nobody's
