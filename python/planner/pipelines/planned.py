"""Whether a plan was made for the checkpoint whose stage is to be read."""

from __future__ import annotations

from torch import nn

from planner.errors import PlanMismatchError
from planner.pipelines.stage import PreparedStage
from planner.plans.plan import Plan
from planner.units import format_bytes

__all__ = ["require_planned"]


def require_planned(plan: Plan, prepared: PreparedStage) -> None:
    """Raises PlanMismatchError where a layer of a stage is not as large as its plan has it; for the plan's own dtype.

    Fields: ``findings``.
    """
    layers = prepared.model.get_submodule(prepared.cut.layers.name)
    for number, layer in zip(prepared.run.layers, layers.children(), strict=True):
        name = f"{prepared.cut.layers.name}.{number}"
        planned = [size for block, size in plan.block_bytes.items() if f"{block}.".startswith(f"{name}.")]
        if not plan.block_bytes:  # of a plan that was written before plans had them
            return
        found = _possible_bytes(prepared, layer)
        if sum(planned) not in found:
            said = (
                f"the plan has {format_bytes(sum(planned))} in '{name}', which is {format_bytes(max(found))} in the files"
                if planned
                else f"the plan has no '{name}'"
            )
            raise PlanMismatchError(
                f"the plan was made for another checkpoint: {said}; plan this very one", findings=(said,)
            )


def _possible_bytes(prepared: PreparedStage, layer: nn.Module) -> set[int]:
    """Bytes of a layer as it will be loaded, without buffers that no file has and with them."""
    own = {id(tensor) for tensor in (*layer.parameters(), *layer.buffers())}
    by_id = {id(tensor): tensor for tensor in (*layer.parameters(), *layer.buffers())}
    read = {
        id(tensor): prepared.weights.wanted[name].nbytes
        for name, tensor in (*prepared.model.named_parameters(), *prepared.model.named_buffers())
        if id(tensor) in own and name in prepared.weights.wanted
    }
    made = sum(tensor.nbytes for number, tensor in by_id.items() if number not in read)
    return {sum(read.values()), sum(read.values()) + made}
