"""Architectures as transformers has them: for the table, and for what is not in it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from planner.checkpoint.general_names import general_name
from planner.spelling import one_line, shown

# A literal number as a part of a name, which a step for one certain layer has; `w1` and `ln_1` are no such thing.
_CERTAIN_NUMBER = re.compile(r"(?<![A-Za-z0-9_\\{\[-])[0-9]+(?![A-Za-z0-9_}\]-])")
_PLAIN_BASES = ("Module", "object")
_MOST_NAMED_NUMBERS = 16
# What a configuration says that is built as often as it says; no model has as many, and building them would not end.
_REPEATED = re.compile(r"layer|block|depth|expert|stage")
_MOST_REPEATED = 1 << 14
_LONGEST = 300


def meta_model(name: str, config: Mapping[str, Any], where: str) -> Any:
    """A model of an architecture without weights.

    Args:
        name: transformers' class.
        config: content of a ``config.json``.
        where: the folder of the configuration.

    Raises:
        ImportError: transformers or torch is not installed.
        ValueError: transformers has no such class, or the class refuses the configuration.

    Guarantee: no code that comes with a checkpoint is run.
    """
    import torch
    import transformers

    cls = getattr(transformers, name, None)
    if cls is None or getattr(cls, "config_class", None) is None:
        raise ValueError(f"transformers {transformers.__version__} has no class {name}")
    for key, said in _all_said(config):
        if _REPEATED.search(key) and type(said) is int and said > _MOST_REPEATED:
            raise ValueError(f"{key} is {shown(said)}; at most {_MOST_REPEATED} are built")
    try:
        made = cls.config_class.from_dict(_with_special_floats(dict(config)))
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            model = cls._from_config(made)
            model.tie_weights()
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{name} refuses the configuration: {_brief(error)}") from error
    return model


def _brief(error: Exception) -> str:
    """What an error says, in one line of moderate length; transformers lists all words of one kind, and all that it was given."""
    text = one_line(" ".join(f"{type(error).__name__}: {error}".split()))
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} … {text[-half:]}"  # what was given comes last


def _with_special_floats(said: Any) -> Any:
    """What a configuration says, with the numbers for which JSON has no word, as transformers writes them.

    Source: ``_decode_special_floats``, transformers 5.23, configuration_utils.py.
    """
    match said:
        case {"__float__": "Infinity" | "-Infinity" | "NaN" as word} if len(said) == 1:
            return float(word)
        case dict():
            return {key: _with_special_floats(each) for key, each in said.items()}
        case list():
            return [_with_special_floats(each) for each in said]
    return said


def generation_config(said: Mapping[str, Any] | None, config: Mapping[str, Any]) -> Any:
    """Settings for generating, as ``from_pretrained`` gives them to a model.

    Args:
        said: content of a ``generation_config.json``, None where there is none.
        config: content of the ``config.json`` beside it.

    Raises:
        ValueError, TypeError: they cannot be such settings.
    """
    import transformers

    if said is None:
        return transformers.GenerationConfig.from_model_config(dict(config))
    made = transformers.GenerationConfig.from_dict(dict(said))
    made._original_object_hash = hash(made)  # by which transformers sees later that it was changed
    return made


def _all_said(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a configuration says, and those inside it."""
    for key, said in config.items():
        yield str(key), said
        if isinstance(said, dict):
            yield from _all_said(said)


def architecture_record(
    model: Any, ties: list[dict[str, Any]] | None = None, others: Sequence[Any] = ()
) -> dict[str, Any]:
    """A live model's architecture as one line of the table.

    Args:
        model: of a class of transformers, on any device.
        ties: rules that hold for every configuration; None for what this model ties.
        others: models of the class that other configurations make, with other modules inside.
    """
    import transformers

    forms = _Forms()
    forms.add_root(model, others)
    return {
        "name": type(model).__name__,
        "version": transformers.__version__,
        "parts": _parts(model.config),
        "base_prefix": model.base_model_prefix or "",
        "no_split": sorted(getattr(model, "_no_split_modules", None) or ()),
        "bases": {name: bases for each in (*others, model) for name, bases in _bases(each).items()},
        "forms": forms.rows,
        "ties": [{"when": "1" * 9, "pairs": _tied_pairs(model)}] if ties is None else ties,
        "ignored": ignored_names(model),
        "transforms": list(_transforms(model)),
        **({"made": made} if (made := made_tensors(model)) else {}),
    }


def _tied_pairs(model: Any) -> list[list[str]]:
    """Names of tensors that are one object: every later name with the first."""
    first: dict[int, str] = {}
    pairs = []
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for name, tensor in tensors:
        known = first.setdefault(id(tensor), name)
        if known != name:
            pairs.append([name, known])
    return pairs


def _parts(config: Any) -> dict[str, str]:
    """Types of the models inside one of several parts, by the name of their configuration."""
    types = {key: getattr(getattr(config, key, None), "model_type", "") for key in sorted(config.sub_configs)}
    return {key: model_type for key, model_type in types.items() if model_type}


def _bases(model: Any) -> dict[str, list[str]]:
    lines = {type(module).__name__: type(module).__mro__ for module in model.modules()}
    named = {
        name: [base.__name__ for base in line[1:] if base.__name__ not in _PLAIN_BASES]
        for name, line in sorted(lines.items())
    }
    return {name: bases for name, bases in named.items() if bases}


def ignored_names(model: Any) -> list[str]:
    """Patterns of names that a class of transformers expects in files and leaves there.

    Source: ``_adjust_missing_and_unexpected_keys``, transformers 5.23, modeling_utils.py.
    """
    patterns = set(model._keys_to_ignore_on_load_unexpected or ())
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.add(r"(^|\.)position_ids$")
    return sorted(patterns)


def made_tensors(model: Any) -> list[list[Any]]:
    """Tensors that a class of transformers does not save, or does without in files: names with ``*`` for numbers, and each size
    with the key of a configuration that says it, here none.

    Source: ``save_pretrained`` and ``_adjust_missing_and_unexpected_keys``, transformers 5.23, modeling_utils.py.
    """
    unsaved = set(model._keys_to_ignore_on_save or ())
    patterns = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    found: dict[str, list[Any]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        is_made = name in unsaved or any(pattern.search(name) for pattern in patterns)
        if is_made and name not in tied:
            found.setdefault(general_name(name, "*"), [[size, ""] for size in tensor.shape])
    return [[name, shape] for name, shape in found.items()]


def _transforms(model: Any) -> Iterator[dict[str, Any]]:
    from transformers import conversion_mapping, core_model_loading

    kinds = {
        core_model_loading.WeightConverter: "convert",
        core_model_loading.GroupWeightRename: "group",
        core_model_loading.Inkling2IndexOffsetWeightRename: "offset",
    }
    for step in conversion_mapping.get_model_conversion_mapping(model):
        row: dict[str, Any] = {
            "kind": kinds.get(type(step), "rename"),
            "pattern": step.compiled_sources.pattern,
            "targets": list(step.target_patterns),
        }
        if step.scope_prefix is not None:
            row |= {"scope": step.scope_prefix, "base": step.base_model_prefix or ""}
        offset = getattr(step, "offset", 0)
        if offset:
            row |= {"offset": offset}
        if any(_CERTAIN_NUMBER.search(source) for source in step.source_patterns):
            row |= {"is_plain": False}
        yield row


class _Forms:
    """Modules of a model by form: repeated ones once, those that differ in what they hold side by side."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self._known: dict[str, int] = {}

    def add_root(self, model: Any, others: Sequence[Any] = ()) -> None:
        root = _merged([_form(each) for each in (model, *others)])[0]
        self.rows.append([])  # the model is the first, whatever else there is
        self.rows[0] = self._row(root)

    def _row(self, form: dict[str, Any]) -> list[Any]:
        children = [[name, [self._id(child) for child in forms]] for name, forms in form["children"].items()]
        return [form["class"], form["parameters"], children, form["buffers"]]

    def _id(self, form: dict[str, Any]) -> int:
        row = self._row(form)
        key = repr(row)
        if key not in self._known:
            self._known[key] = len(self.rows)
            self.rows.append(row)
        return self._known[key]


def _form(module: Any) -> dict[str, Any]:
    """A module and all inside it, with children of a list under one name."""
    scratch = module._non_persistent_buffers_set
    children: dict[str, list[dict[str, Any]]] = {}
    named = {name: child for name, child in module._modules.items() if child is not None}
    forms = {name: _form(child) for name, child in named.items()}
    # What stands in a list for several things, each of its own kind, is no repetition.
    has_kinds = 1 < len(forms) == len({_members(form) for form in forms.values()})
    is_fixed = type(module).__name__ == "Sequential" or has_kinds
    is_list = not is_fixed or len(named) > _MOST_NAMED_NUMBERS
    for name, form in forms.items():
        key = "*" if is_list and name.isdecimal() else name
        children[key] = _merged([*children.get(key, []), form])
    return {
        "class": type(module).__name__,
        "parameters": [name for name, tensor in module._parameters.items() if tensor is not None],
        "children": children,
        "buffers": [
            [name, int(name not in scratch)] for name, tensor in module._buffers.items() if tensor is not None
        ],
    }


def _members(form: dict[str, Any]) -> str:
    """What tells one form from another, apart from what its children hold."""
    return repr((form["class"], form["parameters"], list(form["children"]), form["buffers"]))


def _merged(forms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Forms with the same members made one, their children's forms beside each other."""
    kept: dict[str, dict[str, Any]] = {}
    for form in forms:
        other = kept.setdefault(_members(form), form)
        if other is not form:
            for name, children in form["children"].items():
                other["children"][name] = _merged([*other["children"][name], *children])
    return list(kept.values())
