"""The tokens of one request, step after step, the same on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from planner.pipelines.request import Request
from planner.pipelines.sampling import Sampler
from planner.pipelines.schedule import Carrier
from planner.pipelines.settings import own_rules
from planner.pipelines.stage import Stage

__all__ = ["generate", "positions_of", "tensor_bytes"]


def generate(
    stage: Stage,
    carrier: Carrier,
    group: dist.ProcessGroup,
    request: Request,
    caches: list[Any],
    tell: Callable[[int, bool], None],
) -> Tensor:
    """Runs a request.

    Args:
        stage: this process's stage.
        carrier: runs it.
        group: the connections.
        request: what was asked for.
        caches: one for each micro-batch; of those, others take the places where the model begins anew.
        tell: is told the number of each step, and whether this process itself is at work.

    Returns:
        The tokens that were given with the new ones behind them.

    Source: ``_sample``, transformers 5.23, generation/utils.py.
    """
    last = stage.count - 1
    ids, mask = request.ids.to(stage.device), request.mask.to(stage.device)
    positions, fresh = positions_of(mask), ids.shape[1]
    has_ended = torch.zeros(len(ids), 1, dtype=torch.bool, device=stage.device)
    eos = torch.tensor(request.eos, dtype=torch.long, device=stage.device)
    sampler = None
    if stage.is_last:
        sampler = Sampler(request.sampling, stage.device, own_rules(stage.model, request, stage.device))
    for step in range(1, request.most + 1):
        tell(step, False)
        following = stage.next(ids, mask, caches[0], fresh)
        if following.is_anew:
            caches[:] = [stage.new_cache() for _ in caches]
        new = ids[:, -following.tokens :]
        at = positions[:, -following.tokens :]
        logits = carrier.forward(new, following.mask, at, caches, last_only=True)
        if sampler is not None and logits is not None:
            tell(step, True)
            new = sampler.choose(ids, logits[:, -1]).masked_fill(has_ended, request.pad)
            tell(step, False)
        else:
            new = torch.empty((len(ids), 1), dtype=torch.long, device=stage.device)
        dist.broadcast(new, group=group, group_src=last)
        ids = torch.cat((ids, new), dim=1)
        mask = torch.cat((mask, torch.ones_like(new)), dim=1)
        positions, fresh = torch.cat((positions, positions[:, -1:] + 1), dim=1), 1
        has_ended |= torch.isin(new, eos)
        if request.eos and bool(has_ended.all()):
            break
    return ids


def positions_of(mask: Tensor) -> Tensor:
    """The position of each token, from 0 on at the first that is no padding.

    Source: ``_prepare_position_ids_for_generation``, transformers 5.23, generation/utils.py.

    Example:
        >>> positions_of(torch.tensor([[0, 0, 1, 1]])).tolist()
        [[0, 0, 0, 1]]
    """
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)


def tensor_bytes(held: object) -> int:
    """Bytes of all tensors that an object holds, each memory once.

    Example:
        >>> tensor_bytes({"keys": [torch.zeros(3)], "more": torch.zeros(2, dtype=torch.int8)})
        14
    """
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in _tensors(held, set())
    }
    return sum(storages.values())


def _tensors(held: object, met: set[int]) -> Iterator[Tensor]:
    if id(held) in met:
        return
    met.add(id(held))
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict):
        for value in held.values():
            yield from _tensors(value, met)
    elif isinstance(held, list | tuple):
        for value in held:
            yield from _tensors(value, met)
    elif type(held).__module__ in ("transformers.cache_utils", "planner.pipelines.caching"):
        yield from _tensors(vars(held), met)
