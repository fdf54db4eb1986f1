"""The strategies that a plan may be made by, with their options."""

from __future__ import annotations

from typing import Annotated, Final

from planner.choices import Fill, LongSteps, Maximise, Reserve, RunOrder
from planner.config.schema import config
from planner.config.types import Leaf
from planner.spelling import shown

MOST: Final = 2**53
"""JSON's readers tell whole numbers apart up to here."""


def counted(least: int, most: int) -> Leaf:
    """Reads an int of a range; exact, as every int."""

    def read(value: object) -> object:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"expected an int from {least} to {most}, got {shown(value)}")
        return value

    return Leaf(f"an int from {least} to {most}", read)


_Steps = Annotated[int, counted(0, MOST)]
_Count = Annotated[int, counted(1, MOST)]


@config(tag="sequential")
class Sequential:
    """Fill the devices one after the other."""

    fallback_allocation: bool = False
    reserve: Reserve = "always"


@config(tag="balanced")
class Balanced(Sequential):
    """Spread the model evenly over the accelerators."""


@config(tag="balanced_low_0")
class BalancedLow0(Sequential):
    """Spread evenly, but leave the first accelerator room for what generation needs."""


@config(tag="auto")
class Auto:
    """As little offloaded as can be, proven where the search ends."""

    fill: Fill = "even"
    search_steps: _Steps = 120_000


@config
class ByTime:
    """What strategies have in common that go by modelled time.

    Args:
        tokens: new tokens of one step, over all sequences; None for the workload's ``batch_size``, else 1.
        order: whether devices follow each other in the order given, or in any.
        search_steps: limit of the search; beyond it the plan is not proven, and its bound is told.
        long_steps: who runs what the host runs for an accelerator, in steps so much longer that bringing it in is faster: the
            accelerator ("fetch"), for which room is kept there unless that makes this step a tenth longer or
            longer than a plan of `auto`, or the host as ever
            ("host"). "fetch_all": the accelerator in any case, and the host has no run of its own but of embeddings, for what is
            there with a cache it runs in all steps.
    """

    tokens: _Count | None = None
    order: RunOrder = "given"
    search_steps: _Steps = 1_000_000
    long_steps: LongSteps = "fetch"


@config(tag="latency")
class Latency(ByTime):
    """The shortest step: the sum of all runs and of the hops between them.

    Args:
        parts: whether a block's MLP or experts may lie apart from its attention, as with ``granularity="part"``.
    """

    parts: bool = True


@config(tag="throughput")
class Throughput(ByTime):
    """The shortest longest run: steps of many batches follow each other through the devices.

    Args:
        maximise: "speed", or "cache": the most tokens of cache on the device that has room for fewest, as engines count that share it
            out by the least of their ranks; of cuts with as many, the one whose longest run is the shortest. It wants a workload,
            which says what a token keeps, and offloads nothing.
    """

    maximise: Maximise = "speed"


@config(tag="pipeline")
class Pipeline(ByTime):
    """The shortest time for some batches one behind the other.

    Args:
        microbatches: how many.
    """

    microbatches: _Count = 4


Strategy = Auto | Sequential | Balanced | BalancedLow0 | Latency | Throughput | Pipeline
"""All strategies. ``type`` picks one: ``strategy: balanced`` is short for ``strategy: {type: balanced}``."""
