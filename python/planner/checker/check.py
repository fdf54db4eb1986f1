"""The independent judge of a device map: plain Python that re-derives bytes, ties and coverage from the live model.

It shares no code with the planner, so that the two can be held against each other. One walk down the model, in step
with a trie of the map's keys, tells the device of every tensor under every name; the rules then read that one list.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final, Literal

from planner.checker.described import DescribedModule, DescribedTensor
from planner.errors import InvalidDevicesError, InvalidInputError, InvalidTreeError
from planner.units import format_bytes, parse_bytes

__all__ = ["Finding", "check", "is_valid"]

Device = int | str
Rule = Literal[
    "uncovered",
    "tied-apart",
    "split-block",
    "split-module",
    "over-budget",
    "unlisted-device",
    "unknown-device",
    "unknown-key",
    "nothing-to-execute-on",
    "shared-storage",
]

_NOTES: Final = frozenset({"nothing-to-execute-on", "shared-storage"})
_WITHOUT_INDEX: Final = frozenset({"cpu", "disk", "mps"})
_SPELLING: Final = re.compile(r"([a-z_]+)(?::([0-9]{1,9}))?")
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_UNLIMITED_UNLESS_LISTED: Final = frozenset({"cpu", "disk"})
_ACCELERATORS: Final = frozenset({"cuda", "hpu", "mlu", "musa", "npu", "sdaa", "xpu"})
# These stay as they are whatever the dtype: set_module_tensor_to_device of accelerate 1.15.
_NOT_CAST: Final = ("torch.uint", "torch.int", "torch.bool")
_PACKED_BITS: Final = {"torch.quint4x2": 4, "torch.quint2x4": 2}  # elements that share a byte
_CUSTOM_BITS: Final = {"FP8": 8, "INT4": 4, "INT2": 2}  # members of accelerate's CustomDtype
_MOST_DEVICES: Final = 10**9
_MOST_MODULES: Final = 5_000_000  # names; modules shared inside shared modules double them at every level
_MOST_SUGGESTIONS: Final = 20  # findings of one rule that get a nearest name
_MOST_CANDIDATES: Final = 200  # names that one of them is compared with
_LONGEST_COMPARED: Final = 200  # characters, as the comparison is quadratic in them
_MOST_LISTED: Final = 5  # names in a message


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a device map, or worth a remark.

    Fields: ``rule``; ``name``: the tensor, module, key or device concerned; ``message``: the same in words;
    ``device``; ``needed_bytes`` and ``available_bytes`` (bytes, for budgets); ``names``: the other names concerned;
    ``suggestions``: nearest known names.

    Guarantee: immutable, and it holds no reference to the model.
    """

    rule: Rule
    name: str
    message: str
    device: Device | None = None
    needed_bytes: int | None = None
    available_bytes: float | None = None
    names: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()

    @property
    def is_note(self) -> bool:
        """Whether it is only a remark: the map is not invalid because of it."""
        return self.rule in _NOTES

    def __str__(self) -> str:
        return self.message


def is_valid(findings: Iterable[Finding]) -> bool:
    """Whether nothing but notes was found.

    Raises:
        InvalidInputError: these are no findings.

    Example:
        >>> is_valid(())
        True
    """
    try:
        found = list(findings)
    except TypeError:  # nothing that holds several
        raise InvalidInputError(f"expected findings of planner.check, got {_shown(findings)}") from None
    if not all(isinstance(finding, Finding) for finding in found):
        raise InvalidInputError(f"expected findings of planner.check, got {_shown(findings)}")
    return all(finding.is_note for finding in found)


def check(
    model: Any,
    device_map: Mapping[str, Any],
    max_memory: Mapping[Any, Any] | None = None,
    *,
    dtype: Any = None,
    special_dtypes: Mapping[str, Any] | None = None,
    no_split_module_classes: Collection[str] | str | None = (),
    exempt: Collection[str] | str | None = (),
) -> tuple[Finding, ...]:
    """Everything that is wrong with a device map for a live model.

    Args:
        model: an ``nn.Module``, on any device, the meta device included; or names and bytes in words, as
            :func:`planner.checker.described.model_from_sizes` makes them, whose sizes are then those that are planned.
        device_map: dotted name of a module, parameter or buffer → device; "" is the whole model. Devices are
            spelled 0, "0", "cuda:0" or ``torch.device("cuda:0")``, "cpu", "disk", "mps".
        max_memory: device → budget in bytes, or a size in words ("10GiB"). None: budgets are not judged. A listed
            budget must hold; unlisted cpu and disk are unlimited; an unlisted accelerator must not be used.
        dtype: the dtype that weights will be loaded in, as accelerate means it (integers and bools stay as they are).
        special_dtypes: tensor name → dtype that overrides everything else.
        no_split_module_classes: exact class names whose modules must be on one device; the root may always be split.
        exempt: names that need no device, in full or from any dot on ("embed.weight" exempts "model.embed.weight").

    Returns:
        Findings, rule by rule; ``()`` if there is nothing to say. The map is valid where ``is_valid`` says so. Two rules
        are notes: different tensors that share a storage, and an offloaded block that is larger than what every device
        that could execute it has left (accelerate makes such maps).

    Raises:
        InvalidTreeError: the model contains itself, has an uninitialised parameter, or too many names.
        InvalidDevicesError: a budget is not a finite number ≥ 0, or one device is listed under two spellings.
        InvalidInputError: no model, no mapping, or no names.

    Guarantee: every parameter and buffer is judged under every name; a tensor counts once per device; nothing that
    was handed in is changed.

    Cost: linear in the names of the model and of the map; a nearest name is looked for at most twenty times a rule.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> check(model, {"0": "cuda:0", "1": "cpu"}, {0: 48})
        ()
        >>> for finding in check(model, {"0": 0, "l": 0}, {0: 23}):
        ...     print(finding)
        1.weight is on no device
        1.bias is on no device
        device 0 would hold 24 B of 23 B: 1 B too much
        key 'l' matches nothing in the model
    """
    if not isinstance(device_map, Mapping):
        raise InvalidInputError(
            f"check needs a device map that sends names of modules to devices, as in {{'': 0}}; got "
            f"{_shown(device_map)}"
        )
    if not hasattr(model, "_modules"):
        raise InvalidInputError(f"check needs a torch.nn.Module; got {_shown(model)}")
    if special_dtypes is not None and not isinstance(special_dtypes, Mapping):
        raise InvalidInputError(f"special_dtypes must map names to dtypes; got {_shown(special_dtypes)}")
    keys = _Keys(device_map)
    walk = _Walk(model, keys, _as_set(no_split_module_classes, "no_split_module_classes"))
    exempt = _as_set(exempt, "exempt")
    sized = _sized(walk, _Sizes(dtype, special_dtypes or {}))
    budgets = None if max_memory is None else _budgets(max_memory)
    return (
        *_uncovered(walk, keys, exempt),
        *_tied_apart(walk),
        *_split_blocks(walk, exempt),
        *_split_modules(walk, keys, exempt),
        *_over_budget(sized, budgets),
        *_unknown_devices(keys),
        *_unknown_keys(keys, model),
        *_nothing_to_execute_on(walk, sized, budgets),
        *_shared_storage(walk),
    )


def _as_set(names: Collection[str] | str | None, what: str) -> frozenset[str]:
    listed = [names] if isinstance(names, str) else () if names is None else names
    if not isinstance(listed, Iterable) or hasattr(listed, "dtype"):
        raise InvalidInputError(f"{what} must hold names; got {_shown(listed)}")
    found = list(listed)
    for name in found:
        if not isinstance(name, str):
            raise InvalidInputError(f"{what} holds {_shown(name)}, which is no name")
    return frozenset(found)


# ---- The map: a trie over the parts of its keys


@dataclass(slots=True)
class _Key:
    text: str | None = None  # the key that ends here
    device: Device | None = None
    is_matched: bool = False
    children: dict[str, _Key] = field(default_factory=dict)


class _Keys:
    def __init__(self, device_map: Mapping[str, Any]) -> None:
        self.root = _Key()
        self.listed: list[_Key] = []
        for text, spelling in device_map.items():
            node = self.root if isinstance(text, str) else _Key()
            for part in text.split(".") if isinstance(text, str) and text else ():
                node = node.children.setdefault(part, _Key())
            node.text, node.device = text if isinstance(text, str) else _shown(text), _device(spelling)
            self.listed.append(node)

    def unmatched(self) -> Iterator[str]:
        return (key.text for key in self.listed if not key.is_matched and key.text is not None)


def _device(spelling: Any) -> Device:
    """The device that is meant. Accelerators are their index, whatever their type; what names no device stays text."""
    index = None if isinstance(spelling, str) else _index(spelling)
    text = _text(spelling) if index is None else str(index) if abs(index) < _MOST_DEVICES else "a number"
    if _NUMBER.fullmatch(text):
        is_spelled = index is not None or isinstance(spelling, str)
        return int(text) if is_spelled else f"{type(spelling).__name__} {text}"
    match = _SPELLING.fullmatch(text)
    kind, number = (match[1], match[2]) if match else ("", None)
    if kind in _WITHOUT_INDEX and number in (None, "0"):
        return kind
    return int(number or 0) if kind in _ACCELERATORS or (kind and kind == _backend()) else text


def _text(spelling: Any) -> str:
    is_spelled = isinstance(spelling, str) or type(spelling).__name__ == "device"
    return str(spelling) if is_spelled else f"{type(spelling).__name__} {_shown(spelling)}"


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # an int with more digits than Python shows
        return f"an int of {value.bit_length()} bits" if isinstance(value, int) else object.__repr__(value)


def _index(value: Any) -> int | None:
    """The whole number that a value is; None for bools of any kind, and for what is none."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "int")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _backend() -> str | None:
    """What torch calls a back end that was added to it; whoever uses one has imported torch."""
    torch: Any = sys.modules.get("torch")
    return None if torch is None else str(torch._C._get_privateuse1_backend_name())


def _is_device(device: Device) -> bool:
    return isinstance(device, int) or device in _WITHOUT_INDEX


# ---- The model: every name of every tensor, with the device that the map gives it


@dataclass(slots=True)
class _Module:
    parent: int
    part: str
    is_block: bool  # of a no-split class, and not the root
    is_loose: bool  # nothing but keys of its own tensors speaks for it, and it has no modules inside


@dataclass(slots=True)
class _Named:
    """One name of one tensor."""

    module: int
    part: str
    device: Device | None
    tensor: Any


class _Walk:
    """Modules, parameters and buffers in registration order, shared ones under each of their names."""

    def __init__(self, model: Any, keys: _Keys, no_split: frozenset[str]) -> None:
        self.modules: list[_Module] = []
        self.parameters: list[_Named] = []
        self.buffers: list[_Named] = []
        keys.root.is_matched = True
        # A stack instead of recursion, so that a nest of any depth ends. The key None means: leave this module.
        stack: list[tuple[int, str, Any, _Key | None, Device | None]]
        stack = [(-1, "", model, keys.root, keys.root.device)]
        path: set[int] = set()
        while stack:
            parent, part, module, key, device = stack.pop()
            if key is None:
                path.remove(id(module))
                continue
            self._enter(parent, part, module, path)
            here = len(self.modules)
            is_loose = device is None and not module._modules and (here > 0 or _can_run(module))
            is_block = here > 0 and _class_name(module) in no_split
            self.modules.append(_Module(parent, part, is_block, is_loose))
            self.parameters += self._tensors(here, module._parameters, key, device)
            self.buffers += self._tensors(here, module._buffers, key, device)
            stack.append((parent, part, module, None, None))
            for name, child in reversed(module._modules.items()):
                if child is not None:
                    stack.append((here, name, child, *_descend(key, device, name)))

    def _enter(self, parent: int, part: str, module: Any, path: set[int]) -> None:
        fault = None
        if id(module) in path:
            fault = "contains itself"
        elif len(self.modules) >= _MOST_MODULES:
            fault = f"is one module name too many: planner stops at {_MOST_MODULES}"
        if fault is not None:
            name = self._join(parent, part)
            raise InvalidTreeError(f"{name} {fault}", name=name)
        path.add(id(module))

    def _tensors(
        self, module: int, tensors: Mapping[str, Any], key: _Key, device: Device | None
    ) -> Iterator[_Named]:
        for part, tensor in tensors.items():
            if tensor is not None:
                yield _Named(module, part, _descend(key, device, part)[1], tensor)

    def tensors(self) -> Iterator[_Named]:
        yield from self.parameters
        yield from self.buffers

    def by_identity(self) -> Iterable[list[_Named]]:
        """The names of each tensor, first name first. The same object is the same tensor."""
        groups: dict[int, list[_Named]] = {}
        for named in self.tensors():
            groups.setdefault(id(named.tensor), []).append(named)
        return groups.values()

    def name(self, named: _Named) -> str:
        return self._join(named.module, named.part)

    def module_name(self, module: int) -> str:
        return self._join(self.modules[module].parent, self.modules[module].part)

    def _join(self, module: int, part: str) -> str:
        parts = [part]
        while module > 0:
            parts.append(self.modules[module].part)
            module = self.modules[module].parent
        return ".".join(reversed(parts))


def _can_run(module: Any) -> bool:
    forward = getattr(type(module), "forward", None)
    return isinstance(module, DescribedModule) or getattr(forward, "__name__", "") != "_forward_unimplemented"


def _class_name(module: Any) -> str:
    return module.class_name if isinstance(module, DescribedModule) else type(module).__name__


_NOWHERE: Final = _Key()  # below every key that matches


def _descend(key: _Key, device: Device | None, part: str) -> tuple[_Key, Device | None]:
    child = key.children.get(part, _NOWHERE)
    if child.text is None:
        return child, device
    child.is_matched = True
    return child, child.device


# ---- Bytes


class _Sizes:
    """Bytes that a tensor takes once it is loaded in the planned dtype."""

    def __init__(self, dtype: Any, special_dtypes: Mapping[str, Any]) -> None:
        self._bits = None if dtype is None else _dtype_bits(dtype)
        self._special_bits = {name: _dtype_bits(special) for name, special in special_dtypes.items()}

    def planned_bytes(self, name: Callable[[], str], tensor: Any) -> int:
        if isinstance(tensor, DescribedTensor):
            return tensor.size_bytes
        bits = self._special_bits.get(name()) if self._special_bits else None
        if bits is None and not str(tensor.dtype).startswith(_NOT_CAST):
            bits = self._bits
        try:
            return _stored_bytes(tensor, bits)
        except (RuntimeError, ValueError) as error:
            raise InvalidTreeError(f"{name()} has no size yet: {error}", name=name()) from error


def _stored_bytes(tensor: Any, bits: int | None) -> int:
    """Bytes of a tensor: of what a wrapper holds on this process, not of what it looks like, and of what is attached."""
    if not hasattr(tensor, "__tensor_flatten__"):
        own = -(-int(tensor.numel()) * (bits or _dtype_bits(tensor.dtype)) // 8)
        attached = _attached_bytes(tensor) if vars(tensor) else 0
        return attached if attached and _only_wraps(tensor) else own + attached
    return sum(_stored_bytes(getattr(tensor, inner), None) for inner in tensor.__tensor_flatten__()[0])


def _only_wraps(tensor: Any) -> bool:
    """Whether a class does all that its tensors do by itself: the bytes that it seems to have are those of others."""
    return type(tensor).__torch_dispatch__ is not sys.modules["torch"].Tensor.__torch_dispatch__


def _attached_bytes(tensor: Any) -> int:
    """Bytes of tensors in the attributes of a tensor of another class than torch's, each storage once.

    Modules, and placeholders for offloaded tensors, lead elsewhere.
    """
    torch: Any = sys.modules["torch"]
    if type(tensor) in (torch.Tensor, torch.nn.Parameter) or hasattr(tensor, "carries_nothing"):
        return 0
    met, todo = {id(tensor)}, list(vars(tensor).values())
    memory: dict[Any, dict[Any, Any]] = {}  # by storage and by what of it
    while todo:
        value = todo.pop()
        if id(value) in met or isinstance(value, (*_LEAVES, torch.nn.Module)):
            continue
        met.add(id(value))
        if isinstance(value, torch.Tensor):
            address = _address(value)
            part = (value.storage_offset(), value.shape, value.stride(), value.dtype) if address else 0
            memory.setdefault(address or id(value), {})[part] = value
            if not (hasattr(value, "__tensor_flatten__") or hasattr(value, "carries_nothing")):
                todo.extend(vars(value).values())
            continue
        if isinstance(value, Mapping):
            todo.extend(value.values())
        elif isinstance(value, Collection):
            todo.extend(value)
        todo.extend(getattr(value, "__dict__", {}).values())
        todo.extend(getattr(value, name, None) for cls in type(value).__mro__ for name in _slot_names(cls))
    memory.pop(_address(tensor), None)
    return sum(_bytes_of_one_storage(list(parts.values())) for parts in memory.values())


def _bytes_of_one_storage(parts: list[Any]) -> int:
    total = sum(
        _stored_bytes(part, None) if hasattr(part, "__tensor_flatten__") else int(part.nbytes)
        for part in parts
    )
    return total if len(parts) == 1 else min(total, int(parts[0].untyped_storage().nbytes()))


_LEAVES: Final = (str, bytes, int, float, type, FunctionType, MethodType, ModuleType)


def _slot_names(cls: type) -> Iterator[str]:
    slots = vars(cls).get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
        if not name.endswith("__"):
            yield f"_{cls.__name__.lstrip('_')}{name}" if name.startswith("__") else name


def _dtype_bits(dtype: Any) -> int:
    if isinstance(dtype, str):
        # Whoever hands in a model has imported torch; nobody else needs it.
        dtype = getattr(sys.modules.get("torch"), dtype.removeprefix("torch."), dtype)
    bits = _CUSTOM_BITS.get(getattr(dtype, "name", "")) or _PACKED_BITS.get(str(dtype))
    if bits is None and not hasattr(dtype, "itemsize"):
        raise InvalidInputError(f"{dtype!r} is not a dtype")
    return bits or int(dtype.itemsize) * 8


# ---- The rules


def _uncovered(walk: _Walk, keys: _Keys, exempt: frozenset[str]) -> Iterator[Finding]:
    strays: list[str] | None = None
    for count, named in enumerate(named for named in walk.tensors() if named.device is None):
        name = walk.name(named)
        if _is_exempt(name, exempt):
            continue
        if strays is None:
            strays = list(islice(keys.unmatched(), _MOST_CANDIDATES))
        nearest = _nearest(name, strays) if count < _MOST_SUGGESTIONS else ()
        hint = f"; does the key {nearest[0]!r} mean it?" if nearest else ""
        yield Finding("uncovered", name, f"{name} is on no device{hint}", suggestions=nearest)


def _is_exempt(name: str, exempt: frozenset[str]) -> bool:
    parts = name.split(".") if exempt else []
    return any(".".join(parts[-depth:]) in exempt for depth in {entry.count(".") + 1 for entry in exempt})


def _tied_apart(walk: _Walk) -> Iterator[Finding]:
    for group in walk.by_identity():
        placed = [named for named in group if named.device is not None]
        if len({named.device for named in placed}) > 1:
            names = [walk.name(named) for named in placed]
            homes = _listed([f"{name} on {named.device}" for name, named in zip(names, placed, strict=True)])
            message = f"one tensor is on several devices: {homes}"
            yield Finding("tied-apart", names[0], message, placed[0].device, names=tuple(names[1:]))


def _split_blocks(walk: _Walk, exempt: frozenset[str]) -> Iterator[Finding]:
    modules = walk.modules
    devices: list[set[Device] | None] = [None for _ in modules]  # at most two: more say nothing new
    loose = _loose(walk, exempt)
    for named in walk.tensors():
        if named.device is not None:
            devices[named.module] = _two(devices[named.module], {named.device})
    for index in range(len(modules) - 1, 0, -1):
        parent, found = modules[index].parent, devices[index]
        if found is not None:
            devices[parent] = _two(devices[parent], found)
    for index, module in enumerate(modules):
        found = devices[index]
        if module.is_block and found is not None and len(found) > 1 and index not in loose:
            name = walk.module_name(index)
            homes = " and ".join(sorted(map(str, found)))
            yield Finding("split-block", name, f"{name} must not be split, but is on {homes}")


def _split_modules(walk: _Walk, keys: _Keys, exempt: frozenset[str]) -> Iterator[Finding]:
    """Modules whose own tensors would run on several devices: nothing can compute with them."""
    places = {key.device for key in keys.listed if key.device is not None}
    numbers = sorted(place for place in places if isinstance(place, int))
    main: Device = numbers[0] if numbers else "mps" if "mps" in places else "cpu"
    # What is offloaded runs on the first accelerator; without one, what lies on the cpu runs there.
    elsewhere = {"disk"} if main in ("cpu", "mps") else {"cpu", "disk"}
    found: dict[int, dict[str, Device]] = {}
    for named in walk.tensors():
        if not walk.modules[named.module].is_loose or named.device is None or not _is_device(named.device):
            continue
        name = walk.name(named)
        if not _is_exempt(name, exempt):
            found.setdefault(named.module, {})[name] = main if named.device in elsewhere else named.device
    for module, runs in found.items():
        if len(set(runs.values())) > 1:
            name = walk.module_name(module)
            where = _listed([f"{tensor} on {device}" for tensor, device in runs.items()])
            message = f"{name or 'the model'} can run on one device only, but is split: {where}"
            yield Finding("split-module", name, message, names=tuple(runs))


def _loose(walk: _Walk, exempt: frozenset[str]) -> set[int]:
    """Modules that hold an exempt tensor, and all inside such a block: it may be taken apart, tensor by tensor."""
    if not exempt:
        return set()
    loose = {named.module for named in walk.tensors() if _is_exempt(walk.name(named), exempt)}
    for index in range(len(walk.modules) - 1, 0, -1):
        if index in loose:
            loose.add(walk.modules[index].parent)
    opened: set[int] = set()
    for index, module in enumerate(walk.modules):
        if module.parent in opened or (module.is_block and index in loose):
            opened.add(index)
    return loose | opened


def _two(some: set[Device] | None, more: set[Device]) -> set[Device]:
    return (
        set(more) if some is None else some if len(some) > 1 else set(sorted(some | more, key=_in_order)[:2])
    )


def _in_order(device: Device) -> tuple[bool, Any]:
    """Numbers before words; the order of a set of texts is another one in each process."""
    return isinstance(device, str), device


def _sized(walk: _Walk, sizes: _Sizes) -> list[tuple[_Named, set[Device], int]]:
    """Of each tensor its first name, the devices that hold it, and its bytes."""
    return [
        (
            group[0],
            {named.device for named in group if named.device is not None},
            sizes.planned_bytes(partial(walk.name, group[0]), group[0].tensor),
        )
        for group in walk.by_identity()
    ]


def _over_budget(
    sized: list[tuple[_Named, set[Device], int]], budgets: Mapping[Device, float] | None
) -> Iterator[Finding]:
    if budgets is None:
        return
    used: dict[Device, int] = {}
    for _, homes, size in sized:
        for device in sorted(homes, key=_in_order):
            used[device] = used.get(device, 0) + size
    for device, needed in used.items():
        if device in budgets and needed > budgets[device]:
            budget = budgets[device]
            excess = format_bytes(math.ceil(needed - budget))
            message = f"device {device} would hold {format_bytes(needed)} of {format_bytes(budget)}: {excess} too much"
            yield Finding("over-budget", str(device), message, device, needed, budget)
        elif device not in budgets and _is_device(device) and device not in _UNLIMITED_UNLESS_LISTED:
            message = f"device {device} would hold {format_bytes(needed)}, but is not among the budgets"
            yield Finding("unlisted-device", str(device), message, device, needed, 0)


def _budgets(max_memory: Any) -> dict[Device, float]:
    if not isinstance(max_memory, Mapping):
        raise InvalidDevicesError(
            f"max_memory must map devices to sizes, as in {{0: '10GiB', 'cpu': '30GiB'}}; got {_shown(max_memory)}",
            device=None,
        )
    budgets: dict[Device, float] = {}
    for spelling, budget in max_memory.items():
        device = _device(spelling)
        if not _is_device(device):
            raise InvalidDevicesError(f"{device!r} names no device", device=spelling)
        if device in budgets:
            raise InvalidDevicesError(f"{_shown(spelling)} is listed under two spellings", device=spelling)
        size = parse_bytes(budget, lower_b_is_bits=True) if isinstance(budget, str) else _count(budget)
        if size is None or not 0 <= size <= sys.float_info.max:
            raise InvalidDevicesError(
                f"the budget of {device} is {_shown(budget)}, not a size", device=spelling
            )
        budgets[device] = size
    return budgets


def _count(value: Any) -> float | None:
    kind = str(getattr(value, "dtype", "float"))  # numpy's times and complex numbers turn into floats, too
    whole = _index(value)
    if whole is not None or isinstance(value, bool | bytes) or not ("int" in kind or "float" in kind):
        return whole
    try:
        return float(value)
    except (TypeError, ValueError, ArithmeticError, RuntimeError):
        return None


def _unknown_devices(keys: _Keys) -> Iterator[Finding]:
    for key in keys.listed:
        if key.device is not None and not _is_device(key.device):
            message = f"key {key.text!r} is sent to {key.device!r}, which names no device"
            yield Finding("unknown-device", str(key.text), message, key.device)


def _unknown_keys(keys: _Keys, model: Any) -> Iterator[Finding]:
    for count, key in enumerate(keys.unmatched()):
        nearest = _nearest_in_model(key, model) if count < _MOST_SUGGESTIONS else ()
        hint = f"; the nearest name is {nearest[0]!r}" if nearest else ""
        message = f"key {key!r} matches nothing in the model{hint}"
        yield Finding("unknown-key", key, message, suggestions=nearest)


def _nothing_to_execute_on(
    walk: _Walk, sized: list[tuple[_Named, set[Device], int]], budgets: Mapping[Device, float] | None
) -> Iterator[Finding]:
    """The largest offloaded block, if no device that runs what is offloaded has room for it beside what lies there."""
    if budgets is None:
        return
    fast = {device: size for device, size in budgets.items() if device not in ("cpu", "disk") and size > 0}
    rooms = fast or {"cpu": budgets.get("cpu", math.inf)}
    streamed: dict[int, int] = {}  # bytes by block
    tops = _top_blocks(walk)
    for first, homes, size in sized:
        for device in homes & rooms.keys():
            rooms[device] -= size
        if homes and homes <= _UNLIMITED_UNLESS_LISTED - rooms.keys():
            block = tops[first.module]
            streamed[block] = streamed.get(block, 0) + size
    largest = max(streamed, key=lambda block: streamed[block], default=None)
    if largest is None or streamed[largest] <= max(rooms.values()):
        return
    device = max(rooms, key=lambda each: rooms[each])
    needed, room, name = streamed[largest], max(0, math.floor(rooms[device])), walk.module_name(largest)
    message = (
        f"{name or 'the model'} is offloaded and has nothing to execute on: it needs {format_bytes(needed)}, and "
        f"{device}, which has most left, has {format_bytes(room)}"
    )
    yield Finding("nothing-to-execute-on", name, message, device, needed, room)


def _top_blocks(walk: _Walk) -> list[int]:
    """For each module the topmost no-split module around it, or itself."""
    tops: list[int] = []
    for index, module in enumerate(walk.modules):
        above = tops[module.parent] if module.parent >= 0 else -1
        is_inside = above >= 0 and walk.modules[above].is_block
        tops.append(above if is_inside else index)
    return tops


def _shared_storage(walk: _Walk) -> Iterator[Finding]:
    owners: dict[tuple[str, int], list[_Named]] = {}
    for group in walk.by_identity():
        address = _address(group[0].tensor)
        if address is not None:
            owners.setdefault(address, []).append(group[0])
    for sharers in owners.values():
        if len(sharers) > 1:
            names = [walk.name(named) for named in sharers]
            message = f"different tensors share one storage, and each is counted: {_listed(names)}"
            yield Finding("shared-storage", names[0], message, names=tuple(names[1:]))


def _address(tensor: Any) -> tuple[str, int] | None:
    """Where the storage of a tensor lies; None where nobody can say, as for all tensors on the meta device."""
    try:
        address = tensor.untyped_storage().data_ptr()
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        return None
    return (str(tensor.device), address) if address else None


# ---- Nearest names


def _nearest_in_model(key: str, model: Any) -> tuple[str, ...]:
    """The name that is reached if each part of a key is read as the nearest name at that place, as far as it goes."""
    module, found = model, list[str]()
    for part in key.split(".")[:_MOST_CANDIDATES]:
        if module is None:
            break
        names = {**module._parameters, **module._buffers, **module._modules}
        nearest = (part,) if part in names else _nearest(part, islice(names, _MOST_CANDIDATES))
        if not nearest:
            break
        found.append(nearest[0])
        module = module._modules.get(nearest[0])
    else:
        return (".".join(found),)
    children = islice(model._modules.items(), _MOST_CANDIDATES)
    wrapped = (f"{name}.{key}" for name, child in children if _reaches(child, key))
    return tuple(islice(wrapped, 1)) or ((".".join(found),) if found else ())


def _reaches(module: Any, key: str) -> bool:
    *path, last = key.split(".")
    for part in path:
        module = None if module is None else module._modules.get(part)
    return module is not None and last in {**module._modules, **module._parameters, **module._buffers}


def _nearest(name: str, candidates: Iterable[str]) -> tuple[str, ...]:
    if len(name) > _LONGEST_COMPARED:
        return ()
    short = (candidate for candidate in candidates if len(candidate) <= _LONGEST_COMPARED)
    return tuple(difflib.get_close_matches(name, short, n=1))


def _listed(words: list[str]) -> str:
    rest = len(words) - _MOST_LISTED
    return ", ".join(words[:_MOST_LISTED]) + (f" and {rest} more" if rest > 0 else "")
