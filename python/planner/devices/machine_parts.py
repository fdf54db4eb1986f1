"""What a machine is made of: devices with their rates, links between them, and routes over these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from types import MappingProxyType

from planner.devices.keys import DeviceKey
from planner.devices.rate import Rate

__all__ = ["Link", "MachineDevice", "Route"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineDevice:
    """One device and what it does in a second.

    Args:
        id: its key in plans; "disk" is no such device, but may be an end of a link.
        kind: what torch calls its kind: "cuda", "cpu", ….
        name: what the card is called.
        node: which of several computers it is in; "" where there is one.
        memory_bytes: what it has.
        memory_bytes_per_s: how fast it reads its memory.
        flops_per_s: by element type, dense.
        weights_bytes_per_s: by element type and tokens of a step, bytes of weights that matrix products get through. Where there is
            such a number it counts before the other two.
        launch_ps: what starting the kernels of one module takes, of those that have tensors of their own.
    """

    id: DeviceKey
    kind: str
    name: str = ""
    node: str = ""
    memory_bytes: int | None = None
    memory_bytes_per_s: Rate | None = None
    flops_per_s: Mapping[str, Rate] = field(default_factory=dict)
    weights_bytes_per_s: Mapping[str, Mapping[int, Rate]] = field(default_factory=dict)
    launch_ps: Rate | None = None

    def __post_init__(self) -> None:
        # A machine's text and hash are made once, so nobody changes what they are made of.
        object.__setattr__(self, "flops_per_s", MappingProxyType(dict(self.flops_per_s)))
        by_dtype = {dtype: MappingProxyType(dict(rates)) for dtype, rates in self.weights_bytes_per_s.items()}
        object.__setattr__(self, "weights_bytes_per_s", MappingProxyType(by_dtype))

    def __reduce__(self) -> tuple[object, ...]:
        """Views of mappings cannot be pickled; what they show can."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["flops_per_s"] = dict(self.flops_per_s)
        values["weights_bytes_per_s"] = {
            dtype: dict(rates) for dtype, rates in self.weights_bytes_per_s.items()
        }
        return partial(type(self), **values), ()

    @property
    def key(self) -> DeviceKey:
        """How links and budgets name it: ``a/0`` is device 0 of node a."""
        return f"{self.node}/{self.id}" if self.node else self.id

    def compute_rate(self, dtype: str) -> Rate | None:
        """Dense operations in a second with an element type; those of a wider one where it has no rate for this."""
        return self.flops_per_s.get(dtype) or self.flops_per_s.get("float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One way from a device to another.

    Args:
        source, to: keys of devices, or "disk".
        is_pinned: whether it is of memory that the driver may read by itself.
        bytes_per_s: one way, nothing else under way.
        latency_ps: what the shortest copy takes.
    """

    source: DeviceKey
    to: DeviceKey
    is_pinned: bool = True
    bytes_per_s: Rate
    latency_ps: Rate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How bytes get from one device to another.

    Args:
        links: one after the other; none where source and target are one device.
        rule: why it is these, where no link says so itself; else "".
    """

    links: tuple[Link, ...]
    rule: str = ""

    def copy_ps(self, size_bytes: int) -> int:
        """What a copy takes, each link after the one before, rounded up to whole picoseconds."""
        return sum(
            -(-size_bytes * 10**12 // link.bytes_per_s.value)
            + (link.latency_ps.value if link.latency_ps else 0)
            for link in self.links
        )
