"""What recipes and skeletons give beside `from_pretrained`, for every transformers class that can be built when it is tiny.

    python benches/sweep_loading.py                      # everything
    python benches/sweep_loading.py --only MixtralModel  # one class
    python benches/sweep_loading.py --converted          # classes whose tensors have other names or forms in files

Each class is saved by `save_pretrained`. All tensors, also buffers that no file has, must come out bit for bit; as many
tensors must be one; and nothing may be left over on either side that `from_pretrained` does not leave, too. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import tiny_zoo
from planner.checkpoint.files import find_files
from planner.errors import CheckpointError
from planner.loading.initial import initial_values
from planner.loading.recipes import Recipes, find_recipes
from planner.loading.skeleton import build_skeleton

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "loading"))

from stored_rows import made, rows_of  # type: ignore[import-not-found]

# Some that have steps of their own, of each kind.
CONVERTED = (
    "DeepseekV3ForCausalLM",
    "GptOssForCausalLM",
    "HrmTextForCausalLM",
    "LlavaForConditionalGeneration",
    "MixtralForCausalLM",
    "NomicBertModel",
    "Qwen2VLForConditionalGeneration",
    "Qwen3MoeForCausalLM",
    "Qwen3VLMoeForConditionalGeneration",
    "Sapiens2Model",
)
# Where `from_pretrained` itself is wrong, and how.
WRONG_THERE = {"ChineseCLIPModel": "zeroes the row of the padding word after it was loaded"}


@dataclass
class Found:
    """What one class gave.

    Args:
        kinds: recipes of each kind.
        faults: what differs, in words.
        is_converted: whether transformers has steps of its own for it.
        why_not: why it cannot be tried; empty if it was.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    is_converted: bool = False
    why_not: str = ""


def judge_class(name: str) -> Found:
    """Saves a tiny model of a class, and holds what its recipes give against what `from_pretrained` does."""
    try:
        model = _built(name)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            model.save_pretrained(folder)
            torch.manual_seed(0)
            wanted, said = _read(type(model), folder)
            return _judge(wanted, said, folder)
    except _NotTriedError as error:
        return Found(why_not=str(error))
    except CheckpointError as error:
        return Found(faults=[str(error)])


class _NotTriedError(Exception):
    """A class cannot be built, saved or loaded by transformers itself."""


def _built(name: str) -> Any:
    why = ""
    for level in (0, 1):
        try:
            return tiny_zoo.build(name, level)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
    raise _NotTriedError(why[:200])


def _read(made_by: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    try:
        wanted, said = made_by.from_pretrained(folder, output_loading_info=True)
    except Exception as error:
        raise _NotTriedError(f"from_pretrained: {type(error).__name__}: {error}"[:200]) from error
    return wanted, said


def _judge(wanted: Any, said: dict[str, Any], folder: Path) -> Found:
    from transformers.conversion_mapping import get_model_conversion_mapping

    found = Found(is_converted=bool(get_model_conversion_mapping(wanted, add_legacy=False)))
    rows = rows_of(folder)
    skeleton = build_skeleton(find_files(folder), rows)
    if type(skeleton) is not type(wanted):
        raise _NotTriedError(f"its config.json names {type(skeleton).__name__}")
    recipes = find_recipes(rows, skeleton)
    found.kinds.update(type(recipe).__name__ for recipe in recipes.by_name.values())
    found.faults.extend(recipes.findings)
    values = made(folder, recipes.by_name)
    buffers = [name for name, _ in skeleton.named_non_persistent_buffers()]  # type: ignore[operator]
    torch.manual_seed(0)
    initial = initial_values(skeleton, [*recipes.missing, *buffers])
    found.faults.extend(initial.findings)
    values.update(initial.values)
    for name, tensor in _tensors(wanted):
        value = values.get(recipes.ties.get(name, name))
        if value is None:
            found.faults.append(f"{name}: nothing")
        elif not same_bits(value.to(tensor.dtype), tensor):
            found.faults.append(
                f"{name}: {list(value.shape)} {value.dtype} for {list(tensor.shape)}, other values"
            )
    found.faults.extend(_names_differ(recipes, said))
    found.faults.extend(_ties_differ(recipes, wanted))
    return found


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _names_differ(recipes: Recipes, said: dict[str, Any]) -> Iterator[str]:
    missing = set(recipes.missing) - set(recipes.may_be_missing)
    if missing != set(said["missing_keys"]):
        yield f"missing: {sorted(missing ^ set(said['missing_keys']))[:5]} on one side only"
    if bool(recipes.unexpected) != bool(said["unexpected_keys"]):
        yield f"unexpected: {recipes.unexpected[:5]} for {sorted(said['unexpected_keys'])[:5]}"


def _ties_differ(recipes: Recipes, wanted: Any) -> Iterator[str]:
    doubled = {pair.name: pair.other for pair in recipes.doubled}
    roots: dict[int, str] = {}
    for name, tensor in _tensors(wanted):
        root = recipes.ties.get(name, name)
        root = doubled.get(root, root)
        if roots.setdefault(id(tensor), root) != root:
            yield f"{name} is not tied to {roots[id(tensor)]}"
    if len(set(roots.values())) != len(roots):
        yield "names are tied that are not one tensor"


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bytes."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    first, second = (each.detach().contiguous().view(-1).view(torch.uint8) for each in (one, other))
    return first.equal(second)


def _outcome(name: str, found: Found) -> str:
    if found.why_not:
        return "not tried"
    if not found.faults:
        return "equal"
    return "wrong there" if name in WRONG_THERE else "wrong"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", help="these classes")
    parser.add_argument(
        "--converted", action="store_true", help="a list of classes that have steps of their own"
    )
    parser.add_argument("--from", dest="first", type=int, default=0, help="begin with this number")
    parser.add_argument("--seconds", type=float, help="stop beginning classes after so long")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    names = given.only or (CONVERTED if given.converted else tiny_zoo.names())
    began, kinds, counts = time.monotonic(), Counter[str](), Counter[str]()
    number = given.first
    for number, name in enumerate(names[given.first :], given.first):
        if given.seconds is not None and time.monotonic() - began > given.seconds:
            print(f"go on with --from {number}")
            break
        found = judge_class(name)
        counts[_outcome(name, found)] += 1
        if found.is_converted:
            counts["with steps"] += 1
            kinds.update(found.kinds)
        if found.faults and name not in WRONG_THERE:
            print(f"{name}: {len(found.faults)} faults: {'; '.join(found.faults[:3])[:600]}", flush=True)
        if found.why_not and given.only:
            print(f"{name}: {found.why_not}")
    print(dict(counts), "recipes of those with steps:", dict(kinds))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
