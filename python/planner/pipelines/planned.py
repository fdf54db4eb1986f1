"""Whether a plan was made for the checkpoint whose stage is to be read."""

from __future__ import annotations

from planner.errors import PlanMismatchError
from planner.pipelines.reading import StageWeights
from planner.pipelines.stage import PreparedStage
from planner.plans.plan import Plan
from planner.units import format_bytes

__all__ = ["require_planned"]


def require_planned(plan: Plan, prepared: PreparedStage) -> None:
    """Raises PlanMismatchError where a layer of a stage is not as large as its plan has it; for the plan's own dtype.

    Fields: ``findings``.
    """
    if not plan.block_bytes:  # of a plan that was written before plans had them
        return
    for number in prepared.run.layers:
        name = f"{prepared.cut.layers.name}.{number}"
        planned = [size for block, size in plan.block_bytes.items() if f"{block}.".startswith(f"{name}.")]
        found = _bytes_of(prepared.weights, f"{name}.")
        if sum(planned) not in found:
            said = (
                f"the plan has {format_bytes(sum(planned))} in '{name}', which is {format_bytes(found[-1])} in the files"
                if planned
                else f"the plan has no '{name}'"
            )
            raise PlanMismatchError(
                f"the plan was made for another checkpoint: {said}; plan this very one", findings=(said,)
            )


def _bytes_of(weights: StageWeights, prefix: str) -> tuple[int, int]:
    """Bytes of a layer as it will be loaded, with what no file has and without."""
    targets = (target for target in weights.judged.targets if target.name.startswith(prefix))
    read = sum(target.wanted.nbytes for target in targets if target.wanted is not None)
    made = sum(value.nbytes for name, value in weights.made.items() if name.startswith(prefix))
    return read + made, read
