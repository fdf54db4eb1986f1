"""The tensors that stay where their modules run, made before anything of the model is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from planner.dispatching.install.regions import PlacedTensor
from planner.loading.file_order import Staying, read_in_file_order
from planner.loading.open_files import OpenFiles
from planner.loading.targets import Target
from planner.loading.weights import FileWeights, WantedTensor, is_in_place, made

__all__ = ["Residents", "make_residents"]


@dataclass(slots=True, eq=False)
class Residents:
    """Tensors that are made, and what the files are left to give.

    Args:
        values: by target, what its slots get; of a target that only rests in files, a tensor without values.
        weights: what rests in files, by live name.
        copied: ids of targets that were put into memory of their own.
        copied_bytes: bytes of these.
        read_bytes: bytes that had to be read for it.
        notes: what else to know.
    """

    values: list[tuple[Target, torch.Tensor]] = field(default_factory=list)
    weights: FileWeights | None = None
    copied: set[int] = field(default_factory=set)
    copied_bytes: int = 0
    read_bytes: int = 0
    notes: tuple[str, ...] = ()


def is_file_backed(place: PlacedTensor, *, offload_buffers: bool) -> bool:
    """Whether a tensor rests in its file between forwards: on disk, and on the CPU where its module always runs elsewhere."""
    placement = place.placement
    storage = placement.storage_device
    is_on_host = storage is not None and storage.type == "cpu" and placement.host_tokens is None
    return place.wants_rest(offload_buffers=offload_buffers) and (storage is None or is_on_host)


def make_residents(
    targets: Iterable[Target],
    files: OpenFiles,
    made_otherwise: Mapping[str, torch.Tensor],
    *,
    offload_buffers: bool,
    copies: Callable[[WantedTensor], bool],
    advance: Callable[[int], None],
) -> Residents:
    """Makes what stays in memory, in the order of the files, and lists what rests in files.

    Args:
        targets: judged tensors of the model.
        files: the files of the checkpoint.
        made_otherwise: by name, values of tensors that no file has.
        offload_buffers: whether saved buffers rest with the weights.
        copies: whether a tensor that stays on the CPU gets memory of its own.
        advance: is told of bytes that are done.

    Raises:
        OffloadError: a number that the wanted dtype cannot hold, or a file that cannot be read. Fields: ``name``.
        MemoryError, torch.OutOfMemoryError: there is no room.

    Guarantee: the model is only looked at.
    """
    rows = [_Row(target, offload_buffers, copies) for target in targets]
    values: dict[str, torch.Tensor] = {}
    reading: list[Staying] = []
    for row in rows:
        target, wanted = row.target, row.target.wanted
        if target.name in made_otherwise:
            values[target.name] = made_otherwise[target.name]
        elif wanted is None:
            values[target.name] = target.found  # it keeps what it has
        elif row.device is None:
            continue  # it rests in the files
        elif row.device.type == "cpu" and is_in_place(files, wanted) and not copies(wanted):
            values[target.name] = made(files, wanted)
            advance(wanted.nbytes)
        else:
            reading.append(Staying(wanted, row.device))
    done = read_in_file_order(reading, files, advance)
    found = Residents(read_bytes=done.read_bytes, notes=done.notes)
    for row in rows:
        target, wanted = row.target, row.target.wanted
        value = values.get(target.name)
        if value is None and target.name in done.by_name:
            value = done.by_name[target.name]
            if value.device.type == "cpu":
                found.copied.add(id(target))
                found.copied_bytes += value.nbytes
        if value is None:
            assert wanted is not None
            value = _without_values(target, wanted.dtype)
        found.values.append((target, value))
    found.weights = _resting(rows, {target.name: value for target, value in found.values}, files)
    return found


class _Row:
    """A target, and where of it what is.

    Args:
        target: the target.
        offload_buffers: whether saved buffers rest with the weights.
        copies: whether a tensor that stays on the CPU gets memory of its own.

    ``device`` is where it stays in memory, ``in_files`` are the places at which it rests in files, and ``in_memory`` those at which it
    rests in a copy.
    """

    __slots__ = ("device", "in_files", "in_memory", "target")

    def __init__(self, target: Target, offload_buffers: bool, copies: Callable[[WantedTensor], bool]) -> None:
        self.target = target
        wanted = target.wanted
        is_copied = wanted is not None and copies(wanted)
        self.in_files: list[PlacedTensor] = []
        self.in_memory: list[PlacedTensor] = []
        self.device: torch.device | None = None
        for place in target.places:
            is_backed = is_file_backed(place, offload_buffers=offload_buffers)
            if is_backed and not (is_copied and place.placement.storage_device is not None):
                self.in_files.append(place)
                continue
            if is_backed:
                self.in_memory.append(place)
            if self.device is None:
                self.device = _stays_on(place, offload_buffers=offload_buffers)


def _resting(
    rows: Sequence[_Row], values: Mapping[str, torch.Tensor], files: OpenFiles
) -> FileWeights | None:
    """What rests in files, and what rests beside it in memory in modules that have something in files."""
    in_files = [(place, row.target) for row in rows for place in row.in_files]
    if not in_files:
        return None
    wanted = {place.name: target.wanted for place, target in in_files if target.wanted is not None}
    held = {place.name: values[target.name] for place, target in in_files if target.wanted is None}
    modules = {id(place.slot.module) for place, _ in in_files}
    for row in rows:
        for place in row.in_memory:
            if id(place.slot.module) in modules:
                held[place.name] = values[row.target.name]
    return FileWeights(files, wanted, held)


def _stays_on(place: PlacedTensor, *, offload_buffers: bool) -> torch.device:
    """Where a tensor stays in memory: buffers that do not rest with the weights of an offloaded module stay where that runs."""
    placement = place.placement
    is_resting = place.wants_rest(offload_buffers=offload_buffers)
    device = placement.storage_device if is_resting else placement.execution_device
    return _CPU if device is None else device


_CPU = torch.device("cpu")


def _without_values(target: Target, dtype: torch.dtype) -> torch.Tensor:
    """What says of a tensor in a file how large it is, and nothing else."""
    if target.found.is_meta and target.found.dtype == dtype and type(target.found) in _PLAIN:
        return target.found  # type: ignore[no-any-return]
    return torch.empty(tuple(target.found.shape), dtype=dtype, device="meta")


_PLAIN = (torch.Tensor, torch.nn.Parameter)
