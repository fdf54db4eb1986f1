"""Devices, their spelling, and how much weights may take on each."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from planner.caller import warn_caller
from planner.choices import DeviceKind
from planner.errors import InvalidByteSizeError, InvalidDevicesError
from planner.spelling import NAMED, count_of, device_words, known_device, node_device, shown
from planner.units import is_bit_spelling, parse_bytes

DeviceKey = int | str
Budgets = dict[DeviceKey, int | float]

logger = logging.getLogger(__name__)


def canonical_device(key: object) -> DeviceKey:
    """The one spelling of a device: its number, or "mps", "cpu" or "disk".

    Args:
        key: 0, "0", "cuda:0", ``torch.device("cuda", 0)``, "cpu", "disk", …

    Raises:
        InvalidDevicesError: not a device, or one that cannot hold weights. Fields: ``device``.

    Example:
        >>> [canonical_device(key) for key in (0, "0", "cuda:0", "cpu", "disk")]
        [0, 0, 0, 'cpu', 'disk']
    """
    device = known_device(key)
    if device is not None:
        return device
    kind, number = device_words(key) or ("", None)
    if kind and kind not in NAMED and _is_backend(kind):  # any other back end counts once torch knows it
        return int(number or 0)
    if node_device(key) is not None:
        raise InvalidDevicesError(
            f"device {shown(key)} is of one of several computers, and this is for one process: planner.pipeline runs such a plan, a "
            "process for each stage, and planner export hands it to other engines",
            device=key,
        )
    raise InvalidDevicesError(
        f"device {shown(key)} is not recognized{_meant(key)}: write the number of an accelerator from 0 on (or 'cuda:0' and the "
        "like), 'mps', 'cpu' or 'disk'",
        device=key,
    )


def _meant(key: object) -> str:
    words = key.strip().lower() if isinstance(key, str) else ""
    number = re.fullmatch(r"gpu[:\s]?([0-9]{0,9})", words)
    near = [number[1] or "0"] if number else get_close_matches(words, ("cuda:0", "cuda:1", *NAMED), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _is_backend(name: str) -> bool:
    # A back end gets its name from a package that was imported after torch, or that torch imports along with itself. Where
    # neither can be, the name is a slip, and a slip is told without the seconds that importing torch takes.
    if "torch" not in sys.modules:
        from importlib.metadata import entry_points  # takes as long to import as half of planner

        if not entry_points(group="torch.backends"):
            return False
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return bool(name == torch._C._get_privateuse1_backend_name())


def read_budget(value: object, device: object) -> int | float:
    """Bytes meant by a budget: a finite number of at least 0, or a size in words, as accelerate reads it.

    Raises:
        InvalidDevicesError: negative, NaN, infinite, a bool, or no number at all. Fields: ``device``.
        InvalidByteSizeError: words that are no size. Fields: ``text``.
    """
    if isinstance(value, str):
        if is_bit_spelling(value):
            warn_caller(f"{value!r} for device {device} is read as bits; write a capital B for bytes")
        return parse_bytes(value, lower_b_is_bits=True)
    number = count_of(value)
    if number is None:
        raise InvalidDevicesError(
            f"budget {shown(value)} of device {shown(device)} is not usable: it must be a finite number of bytes of at least 0, "
            "or a size such as '10GiB'",
            device=device,
        )
    return number


def read_budgets(max_memory: Mapping[Any, Any], what: str = "max_memory") -> Budgets:
    """Budgets in canonical spelling and order; the mapping handed in is left as it is.

    Args:
        max_memory: device to budget.
        what: what it is called, for messages.

    Raises:
        InvalidDevicesError, InvalidByteSizeError: see :func:`canonical_device` and :func:`read_budget`; also two
            spellings of one device, or something that is no mapping.

    Example:
        >>> read_budgets({"cpu": "1KB", "cuda:1": 5, 0: 2.5})
        {0: 2.5, 1: 5, 'cpu': 1000}
    """
    if not isinstance(max_memory, Mapping):
        raise InvalidDevicesError(
            f"{what} must map devices to sizes, as in {{0: '10GiB', 'cpu': '30GiB'}}; got {shown(max_memory)}",
            device=None,
        )
    spelled: dict[DeviceKey, object] = {}
    budgets: Budgets = {}
    for key, value in max_memory.items():
        device = canonical_device(key)
        if device in spelled:
            raise InvalidDevicesError(
                f"{shown(spelled[device])} and {shown(key)} are the same device; name it once", device=key
            )
        spelled[device] = key
        budgets[device] = read_budget(value, key)
    return ordered(budgets)


def ordered(budgets: Budgets) -> Budgets:
    """Accelerators by number, then mps, cpu, disk: the order in which accelerate fills them."""
    order: list[DeviceKey] = [*sorted(device for device in budgets if isinstance(device, int))]
    order.extend(name for name in NAMED if name in budgets)
    order.extend(device for device in budgets if device not in order)  # those of several computers
    return {device: budgets[device] for device in order}


def device_kind(device: DeviceKey) -> DeviceKind:
    """Whether it computes fast, is the host, or only stores."""
    found = node_device(device)
    device = device if found is None else found[1]
    return "cpu" if device == "cpu" else "disk" if device == "disk" else "accelerator"


def main_device(keys: Iterable[DeviceKey]) -> DeviceKey:
    """Where accelerate runs what is offloaded: the first accelerator that holds anything.

    Example:
        >>> main_device([1, 0, "cpu"]), main_device(["cpu", "disk"])
        (0, 'cpu')
    """
    named = set(keys)
    numbers = [key for key in named if isinstance(key, int)]
    return min(numbers) if numbers else "mps" if "mps" in named else "cpu"


def offload_tiers(main: DeviceKey) -> tuple[DeviceKey, ...]:
    """What lies where, and runs on the main device: accelerate offloads to the CPU only where something faster computes."""
    return ("disk",) if main in ("cpu", "mps") else ("cpu", "disk")


def accelerator_count() -> int:
    """Number of accelerators that integers can name."""
    backend = accelerator_backend()
    return int(backend.device_count()) if backend else 0


def warn_of_absent(budgets: Budgets) -> None:
    """Logs a warning for each numbered device that torch does not have."""
    numbers = [device for device in budgets if isinstance(device, int)]
    if not numbers:
        return
    count = accelerator_count()
    for device in numbers:
        if device >= count:
            logger.warning("Device %s is not available, available devices are %s", device, list(range(count)))


def accelerator_backend() -> ModuleType | None:
    """torch's module for the accelerator that integers name, if there is one."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or accelerator.type == "mps":
        return None
    backend: ModuleType = torch.get_device_module(accelerator)
    return backend


def size_to_bytes(size: object) -> int:
    """Bytes meant by an int or by words, as accelerate's ``convert_file_size_to_int`` reads them.

    Raises:
        InvalidByteSizeError: negative, or no size. Fields: ``text``.
    """
    if isinstance(size, str):
        if is_bit_spelling(size):
            warn_caller(f"{size!r} is read as bits; write a capital B for bytes")
        return parse_bytes(size, lower_b_is_bits=True)
    number = count_of(size)
    if number is not None:
        return int(number)
    raise InvalidByteSizeError(
        f"size {shown(size)} is not in a valid format: write a number of bytes of at least 0, or a string with a unit "
        "(like '5.0GB')",
        text=size,
    )
