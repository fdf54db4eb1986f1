"""The tensors that stay where their modules run, made before anything of the model is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from planner.dispatching.hooks.place import rests
from planner.dispatching.install.regions import PlacedTensor
from planner.loading.open_files import OpenFiles
from planner.loading.targets import Target
from planner.loading.weights import FileWeights, WantedTensor, made, sources_of

__all__ = ["Residents", "is_file_backed", "make_residents"]


@dataclass(slots=True, eq=False)
class Residents:
    """Tensors that are made, and what the files are left to give.

    Args:
        values: by target, what its slots get; of a target that only rests in files, a tensor without values.
        weights: what rests in files, by live name.
        copied: ids of targets that were put into memory of their own.
        copied_bytes: bytes of these.
        read_bytes: bytes that had to be read for it.
    """

    values: list[tuple[Target, torch.Tensor]] = field(default_factory=list)
    weights: FileWeights | None = None
    copied: set[int] = field(default_factory=set)
    copied_bytes: int = 0
    read_bytes: int = 0


def is_file_backed(place: PlacedTensor, *, offload_buffers: bool) -> bool:
    """Whether a tensor rests in its file between forwards: on disk, and on the CPU where its module runs elsewhere."""
    placement = place.placement
    storage = placement.storage_device
    return (
        placement.is_offloaded
        and rests(place.slot, offload_buffers=offload_buffers)
        and (storage is None or storage.type == "cpu")
    )


def make_residents(
    targets: Iterable[Target],
    files: OpenFiles,
    made_otherwise: Mapping[str, torch.Tensor],
    *,
    is_file_backed: Callable[[PlacedTensor], bool],
    copies: Callable[[WantedTensor], bool],
    advance: Callable[[int], None],
) -> Residents:
    """Makes what stays where its module runs, and lists what rests in files.

    Args:
        targets: judged tensors of the model.
        files: the files of the checkpoint.
        made_otherwise: by name, values of tensors that no file has.
        is_file_backed: whether a tensor rests in its file between forwards.
        copies: whether a tensor that stays on the CPU gets memory of its own.
        advance: is told of bytes that are done.

    Raises:
        OffloadError: a number that the wanted dtype cannot hold. Fields: ``name``.

    Guarantee: the model is only looked at.
    """
    found = Residents()
    wanted: dict[str, WantedTensor] = {}
    held: dict[str, torch.Tensor] = {}
    for target in targets:
        staying = [place for place in target.places if not is_file_backed(place)]
        value = made_otherwise.get(target.name)
        if value is None and target.wanted is None:
            value = target.found  # it keeps what it has
        elif value is None and staying:
            assert target.wanted is not None
            value = _resident(found, files, target, target.wanted, staying[0], copies)
        if value is not None:
            found.values.append((target, value))
        else:
            assert target.wanted is not None
            found.values.append((target, _without_values(target, target.wanted.dtype)))
            advance(0)
        for place in target.places:
            if len(staying) < len(target.places) and is_file_backed(place):
                if target.wanted is not None:
                    wanted[place.name] = target.wanted
                elif value is not None:
                    held[place.name] = value
        if value is not None:
            advance(value.nbytes)
    if wanted or held:
        found.weights = FileWeights(files, wanted, held)
    return found


def _resident(
    found: Residents,
    files: OpenFiles,
    target: Target,
    wanted: WantedTensor,
    place: PlacedTensor,
    copies: Callable[[WantedTensor], bool],
) -> torch.Tensor:
    """A tensor where it stays."""
    placement = place.placement
    device = placement.storage_device if placement.is_offloaded else placement.execution_device
    tensor = made(files, wanted)
    is_elsewhere = device is not None and device.type != "cpu"
    is_copied = copies(wanted) and wanted.is_view and not is_elsewhere
    if is_copied or is_elsewhere or not wanted.is_view:
        found.read_bytes += sum(row.nbytes for row in sources_of(wanted.recipe))
    if is_elsewhere:
        return tensor.to(device)
    if is_copied:
        tensor = tensor.clone()
    if is_copied or not wanted.is_view:
        found.copied.add(id(target))
        found.copied_bytes += tensor.nbytes
    return tensor


def _without_values(target: Target, dtype: torch.dtype) -> torch.Tensor:
    """What says of a tensor in a file how large it is, and nothing else."""
    if target.found.is_meta and target.found.dtype == dtype and type(target.found) in _PLAIN:
        return target.found  # type: ignore[no-any-return]
    return torch.empty(tuple(target.found.shape), dtype=dtype, device="meta")


_PLAIN = (torch.Tensor, torch.nn.Parameter)
