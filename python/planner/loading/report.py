"""What a load has done with each tensor, and what streaming has done since."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from planner.errors import PlanMismatchError
from planner.loading.streaming.counters import StreamingProgress
from planner.loading.streaming.ring import NO_PINNED_MEMORY
from planner.loading.weights import FileWeights
from planner.names import counted, listed
from planner.units import format_bytes

__all__ = [
    "LoadReport",
    "Loaded",
    "LoadedTensor",
    "Way",
    "file_weights_of",
    "load_report",
    "remember",
]

Way = Literal["view", "part", "pieces", "computed", "cast", "copy", "initialised", "kept"]
"""How a tensor came out of the files: as the bytes of one, as some rows of them, put together from several, by the class's
own conversion, in another dtype, in memory of its own; or not from them: made by the model's class, or left as it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTensor:
    """One tensor of a loaded model.

    Args:
        names: its names in the model; several where it is tied.
        files: the files that it is made from.
        way: how.
        device: where it lies: a device, "cpu" or "disk".
        nbytes: bytes that it has in memory, or would have.
    """

    names: tuple[str, ...]
    files: tuple[str, ...]
    way: Way
    device: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a load has done.

    Args:
        tensors: every tensor of the model, in its order.
        read_bytes: bytes that the load itself has read; views are read when they are looked at.
        copied_bytes: bytes that were put into memory of their own.
        written_bytes: bytes that were written to files; none, but with ``convert="store"``.
        staging_bytes: the most that buffers of streamed blocks take on the CPU.
        unexpected: names in the files that the model has no place for.
        missing: names in the model that no file has.
        notes: what else to know.
        streamed: what has been streamed until now.
    """

    tensors: tuple[LoadedTensor, ...]
    read_bytes: int = 0
    copied_bytes: int = 0
    written_bytes: int = 0
    staging_bytes: int = 0
    unexpected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    streamed: StreamingProgress = field(default_factory=StreamingProgress)

    @property
    def tied(self) -> tuple[tuple[str, ...], ...]:
        """Names that share a tensor."""
        return tuple(row.names for row in self.tensors if len(row.names) > 1)

    def summary(self) -> str:
        """A few lines for people.

        Example:
            >>> row = LoadedTensor(names=("w",), files=("m.safetensors",), way="view", device="cpu", nbytes=8)
            >>> print(LoadReport(tensors=(row,)).summary())
            1 tensor: 8 B on cpu
            1 view; 0 B read, 0 B copied, 0 B written
        """
        by_device: Counter[str] = Counter()
        for row in self.tensors:
            by_device[row.device] += row.nbytes
        ways = Counter(row.way for row in self.tensors)
        where = ", ".join(f"{format_bytes(size)} on {device}" for device, size in by_device.items())
        lines = [f"{counted(len(self.tensors), 'tensor')}: {where or 'none'}"]
        said = ", ".join(f"{count} {way}" for way, count in ways.most_common())
        sizes = [(self.read_bytes, "read"), (self.copied_bytes, "copied"), (self.written_bytes, "written")]
        lines.append(
            f"{said or 'nothing'}; " + ", ".join(f"{format_bytes(size)} {what}" for size, what in sizes)
        )
        if self.staging_bytes:
            streamed = self.streamed
            lines.append(
                f"blocks in files are read into at most {format_bytes(self.staging_bytes)}: {streamed.blocks_from_disk} times from disk "
                f"({format_bytes(streamed.streamed_bytes)}), {streamed.blocks_from_cache} times from the page cache; forwards have waited "
                f"{streamed.waited_seconds:.2f} s"
            )
            if streamed.pinned_bytes < streamed.ring_bytes:
                lines.append(NO_PINNED_MEMORY)
        lines += [f"tied: {' = '.join(names)}" for names in self.tied[:3]]
        for names, what in (
            (self.missing, "in no file"),
            (self.unexpected, "in the files and not in the model"),
        ):
            if names:
                lines.append(f"{what}: {listed(names)}")
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """What is known of a model that was loaded.

    Args:
        report: what the load has done.
        weights: every tensor that the files have for it, by live name.
        streamed: who knows what was streamed since.
    """

    report: LoadReport
    weights: FileWeights
    streamed: Callable[[], StreamingProgress]


# By model; it is not kept alive, and a copy of it has nothing here.
_LOADED: weakref.WeakKeyDictionary[nn.Module, Loaded] = weakref.WeakKeyDictionary()


def remember(model: nn.Module, loaded: Loaded) -> None:
    """Lets :func:`load_report` and :func:`file_weights_of` find what is known of a model."""
    _LOADED[model] = loaded


def file_weights_of(model: nn.Module) -> FileWeights | None:
    """Every tensor that the files of a loaded model have for it, by live name; None of a model that was not loaded."""
    found = _LOADED.get(model)
    return None if found is None else found.weights


def load_report(model: nn.Module) -> LoadReport:
    """What :func:`planner.load` has done for a model, and what has been streamed since.

    Args:
        model: a model that was loaded.

    Raises:
        PlanMismatchError: it was not loaded by planner. Fields: ``findings``.
    """
    found = _LOADED.get(model) if isinstance(model, nn.Module) else None
    if found is None:
        raise PlanMismatchError(
            f"this {type(model).__name__} was not loaded by planner.load, so there is no report of it (a copy has none either)",
            findings=(),
        )
    return replace(found.report, streamed=found.streamed())
