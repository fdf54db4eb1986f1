"""Small module trees on the meta device with everything that has ever broken a planner, and budgets around their sizes.

Everything is drawn from one `random.Random`: hypothesis hands in its own, which shrinks; sweeps hand in a seeded one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from random import Random
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.int64, torch.bool)
# "l1" beside "enc.l1", "l1" beside "l10", numbers, and names that parameters have as well.
MODULE_NAMES = ("l1", "enc", "dec", "l10", "0", "1", "10", "head", "w", "layers", "l1_", "b")
TENSOR_NAMES = ("w", "weight", "v", "l1", "0", "bias")
BUFFER_NAMES = ("scale", "mask", "l", "inv_freq", "1", "enc")


class Root(nn.Module):
    pass


class Block(nn.Module):
    pass


class FatBlock(Block):
    """A subclass of what may be listed as not to be split: its own name is another one."""


class Layer(nn.Module):
    pass


class Leaf(nn.Module):
    pass


CLASSES = (Block, Block, FatBlock, Layer)


@dataclass
class Case:
    """A model and the arguments of one call in accelerate's dialect."""

    model: nn.Module
    max_memory: dict[int | str, float]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{describe(self.model)}\nmax_memory={self.max_memory}, **{self.kwargs}"


def describe(model: nn.Module) -> str:
    """The model in words from which it can be built again: one line a name, ties by the number of the object."""
    numbers: dict[int, int] = {}
    lines = []
    for name, module in model.named_modules(remove_duplicate=False):
        lines.append(
            f"{name or '(root)'}: {type(module).__name__} #{numbers.setdefault(id(module), len(numbers))}"
        )
        for kind in ("parameters", "buffers"):
            for own, tensor in getattr(module, f"named_{kind}")(recurse=False, remove_duplicate=False):
                number = numbers.setdefault(id(tensor), len(numbers))
                lines.append(f"  .{own}: {kind[:-1]} {tensor.numel()} x {tensor.dtype} #{number}")
    return "\n".join(lines)


def trees() -> st.SearchStrategy[nn.Module]:
    return st.randoms(use_true_random=False).map(tree)


def cases() -> st.SearchStrategy[Case]:
    return st.randoms(use_true_random=False).map(case)


def case(rng: Random) -> Case:
    model = tree(rng)
    return Case(model, budgets(rng, model), arguments(rng, model))


# Trees


def tree(rng: Random) -> nn.Module:
    """A tree of one to some thirty modules."""
    dtypes = FLOATS if rng.random() < 0.3 else (torch.float32,)
    odd = rng.random() < 0.35
    root = _module(rng, Root, 0, rng.choice((1, 2, 2, 3)), dtypes, odd)
    if rng.random() < 0.4:
        _tie_parameters(rng, root)
    if rng.random() < 0.15:
        _share_a_module(rng, root)
    if rng.random() < 0.08:
        _share_a_buffer(rng, root)
    return root


def _module(
    rng: Random, kind: type[nn.Module], level: int, depth: int, dtypes: tuple[Any, ...], odd: bool
) -> nn.Module:
    module = kind()
    is_leaf = level >= depth or (level > 0 and rng.random() < 0.25)
    tensors = rng.choice((1, 1, 1, 1, 2, 0)) if is_leaf else int(rng.random() < 0.12)
    for name in rng.sample(TENSOR_NAMES, tensors):
        module.register_parameter(name, _parameter(rng, dtypes, odd))
    if rng.random() < (0.15 if odd else 0.05):
        _register_buffer(rng, module, odd)
    for _ in range(0 if is_leaf else rng.randint(1 if level else 2, 5)):
        child = rng.choice(CLASSES) if level + 1 < depth else Leaf
        name = rng.choice(MODULE_NAMES)
        if not hasattr(module, name):
            module.add_module(name, _module(rng, child, level + 1, depth, dtypes, odd))
    return module


def _parameter(rng: Random, dtypes: tuple[Any, ...], odd: bool) -> nn.Parameter:
    dtype = rng.choice(INTEGERS[:2]) if odd and rng.random() < 0.1 else rng.choice(dtypes)
    numel = rng.choice((1, 2, 3, 4, 5, 6, 8, 10, 0 if odd else 7, 16, 24))
    return nn.Parameter(torch.empty(numel, dtype=dtype, device="meta"), requires_grad=False)


def _register_buffer(rng: Random, module: nn.Module, odd: bool) -> None:
    name = rng.choice(BUFFER_NAMES)
    dtype = rng.choice((torch.float32, *(INTEGERS if odd else INTEGERS[:2])))
    if not hasattr(module, name):
        buffer = torch.empty(rng.randint(1, 6), dtype=dtype, device="meta")
        module.register_buffer(name, buffer, persistent=rng.random() < 0.6)


def _tie_parameters(rng: Random, root: nn.Module) -> None:
    """One to three ties, each of a slot to another slot's parameter: pairs, chains, two between the same modules.

    Mostly between modules without children, as upstream raises for most others.
    """
    modules = [module for module in root.modules() if module._parameters]
    if rng.random() < 0.7:
        modules = [module for module in modules if not module._modules]
    slots = [(module, name) for module in modules for name in module._parameters]
    for _ in range(rng.choice((1, 1, 1, 2, 3)) if len(slots) > 1 else 0):
        (module, name), (source, other) = rng.sample(slots, 2)
        module._parameters[name] = source._parameters[other]


def _share_a_module(rng: Random, root: nn.Module) -> None:
    """A module registered a second time: under its own parent, or under another that is not below it."""
    child = rng.choice([module for module in root.modules() if module is not root] or [root])
    parents = [module for module in root.modules() if all(module is not below for below in child.modules())]
    name = rng.choice(MODULE_NAMES)
    if parents and not hasattr(parent := rng.choice(parents), name):
        parent.add_module(name, child)


def _share_a_buffer(rng: Random, root: nn.Module) -> None:
    modules = list(root.modules())
    first, second = rng.choice(modules), rng.choice(modules)
    name = rng.choice(BUFFER_NAMES)
    if first is not second and not hasattr(second, name):
        buffer = next(iter(first._buffers.values()), torch.empty(3, device="meta"))
        if "shared" not in first._buffers and buffer not in first._buffers.values():
            first.register_buffer("shared", buffer)
        second.register_buffer(name, buffer)


# Arguments


def module_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes below each module, each tensor once."""
    return {name: _unique_bytes([module]) for name, module in model.named_modules()}


def budgets(rng: Random, model: nn.Module) -> dict[int | str, float]:
    """One to four accelerators, or none, mostly with something like a part of the model, cut where blocks end."""
    total, blocks = module_bytes(model)[""], _block_bytes(model)
    ids = sorted(rng.sample(range(6), rng.choice((1, 1, 2, 2, 3, 4)))) if rng.random() < 0.93 else []
    if rng.random() < 0.7:
        ids = list(range(len(ids)))
    found: dict[int | str, float] = {device: _budget(rng, total, blocks) for device in ids}
    if rng.random() < 0.8:
        found["cpu"] = total * 10 if rng.random() < 0.6 else _budget(rng, total, blocks)
    if rng.random() < 0.05:
        found["disk"] = total * 10 if rng.random() < 0.6 else _budget(rng, total, blocks)
    if rng.random() < 0.06:
        found = {device: budget + rng.choice((0.0, 0.5)) for device, budget in found.items()}
    if rng.random() < 0.1:
        keys = list(found)
        rng.shuffle(keys)
        found = {device: found[device] for device in keys}
    return found


def _block_bytes(model: nn.Module) -> list[int]:
    """Bytes of the modules below the root, and of pairs that are tied: what a budget may just hold, or just not."""
    modules = [module for name, module in model.named_modules() if name]
    pairs = [
        (one, other)
        for one, other in combinations(modules, 2)
        if {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}
    ]
    singles = [(module,) for module in modules]
    return [_unique_bytes(some) for some in (*singles, *pairs[:20])] or [0]


def _unique_bytes(modules: Iterable[nn.Module]) -> int:
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _budget(rng: Random, total: int, blocks: list[int]) -> int:
    style = rng.random()
    if style < 0.07:
        return 0
    if style < 0.2:
        return rng.randint(0, total + total // 4 + 1)
    if style < 0.25:
        return total + max(blocks)
    if style < 0.35:
        return rng.choice(blocks)
    parts = [size for size in blocks if 4 * size <= total] or blocks
    some = rng.choice(blocks) if style < 0.6 else sum(rng.choice(parts) for _ in range(rng.randint(1, 3)))
    return max(0, some + rng.choice((0, 0, 0, 0, 1, -1, 4, -4)) + rng.choice((0, 0, max(blocks), max(parts))))


def arguments(rng: Random, model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if rng.random() < 0.5:
        found["no_split_module_classes"] = no_split_classes(rng)
    for name, rate in (("offload_buffers", 0.3), ("fallback_allocation", 0.4)):
        if rng.random() < rate:
            found[name] = True
    if rng.random() < 0.3:
        found["clean_result"] = False
    if rng.random() < 0.12:
        found["dtype"] = rng.choice(("float16", torch.float16, torch.bfloat16, torch.float32, "torch.int8"))
    names = [name for name, _ in model.named_parameters()]
    if names and rng.random() < 0.05:
        found["special_dtypes"] = {rng.choice(names): rng.choice((torch.float32, "float16", torch.int8))}
    return found


def no_split_classes(rng: Random) -> list[str]:
    classes = ["Block", "FatBlock", "Layer", "Leaf", "Root", "Nowhere"]
    return rng.sample(classes, rng.choice((1, 1, 2)))


# transformers' dialect


class HalfBytes:
    """A quantizer that packs two elements of each parameter called "w" into a byte."""

    def param_element_size(self, model: nn.Module, name: str, tensor: torch.Tensor) -> float:
        return 0.5 if name.rpartition(".")[2] == "w" else tensor.element_size()


def transformers_cases() -> st.SearchStrategy[Case]:
    return st.randoms(use_true_random=False).map(transformers_case)


def transformers_case(rng: Random) -> Case:
    """As `case`, with transformers' arguments and a model that tells its ties by name, as a PreTrainedModel does."""
    model = tree(rng)
    model.all_tied_weights_keys = tied_keys(rng, model)  # type: ignore[assignment]
    found: dict[str, Any] = {}
    if rng.random() < 0.5:
        found["no_split_module_classes"] = set(no_split_classes(rng))
    if rng.random() < 0.3:
        found["clean_result"] = False
    if rng.random() < 0.3:
        found["offload_buffers"] = True
    if rng.random() < 0.08:
        found["hf_quantizer"] = HalfBytes()
    if rng.random() < 0.1:
        found["tied_parameters"] = [
            sorted(
                [source, *(name for name, other in model.all_tied_weights_keys.items() if other == source)]
            )
            for source in dict.fromkeys(model.all_tied_weights_keys.values())
        ]
    if rng.random() < 0.1:
        found["no_placement_params"] = {rng.choice(TENSOR_NAMES), f"l1.{rng.choice(TENSOR_NAMES)}"}
    return Case(model, budgets(rng, model), found)


def tied_keys(rng: Random, model: nn.Module) -> dict[str, str]:
    """Tied name → source: for what is tied already, mostly by its first name, and now and then for what is not yet."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    keys = {}
    for group in names.values():
        source = group[0] if rng.random() < 0.75 else rng.choice(group)
        keys.update({name: source for name in group if name != source})
    alone = {
        name: model.get_parameter(name) for (name,) in (group for group in names.values() if len(group) == 1)
    }
    if len(alone) > 1 and rng.random() < 0.2:
        name, source = rng.sample(list(alone), 2)
        if (alone[name].shape, alone[name].dtype) == (alone[source].shape, alone[source].dtype):
            keys[name] = source
    return keys


# What a case contains: for the tests of this generator, and for the reports of sweeps


def features(case: Case) -> Iterator[str]:
    yield from (name for name, holds in _features(case).items() if holds)


def _features(case: Case) -> dict[str, bool]:
    model = case.model
    inner = [module for name, module in model.named_modules() if name and any(module.children())]
    parameters = [p for _, p in model.named_parameters(remove_duplicate=False)]
    buffers = [b for _, b in model.named_buffers(remove_duplicate=False)]
    modules = [m for _, m in model.named_modules(remove_duplicate=False)]
    devices = [device for device in case.max_memory if isinstance(device, int)]
    total = module_bytes(model)[""]
    return {
        "tied parameters": len({id(p) for p in parameters}) < len(parameters),
        "shared buffers": len({id(b) for b in buffers}) < len(buffers),
        "shared modules": len({id(m) for m in modules}) < len(modules),
        "direct parameters of inner modules": any(m._parameters for m in inner),
        "direct buffers of inner modules": any(m._buffers for m in inner),
        "direct tensors of the root": bool(model._parameters or model._buffers),
        "non-persistent buffers": any(m._non_persistent_buffers_set for m in modules),
        "several dtypes": len({t.dtype for t in (*parameters, *buffers)}) > 1,
        "depth of three": any(name.count(".") >= 2 for name, _ in model.named_modules()),
        "a module without bytes": 0 in module_bytes(model).values(),
        "root listed as not to be split": "Root" in case.kwargs.get("no_split_module_classes", ()),
        "a budget of zero": 0 in case.max_memory.values(),
        "no accelerator": not devices,
        "no cpu": "cpu" not in case.max_memory,
        "a disk budget": "disk" in case.max_memory,
        "a gap in the devices": bool(devices) and max(devices) >= len(devices),
        "float budgets": any(isinstance(budget, float) for budget in case.max_memory.values()),
        "accelerators smaller than the model": sum(case.max_memory[d] for d in devices) < total,
    }
