"""Wrong uses. Each line names what mypy and pyright must say of it; a test holds that they do, and nothing of other lines."""

import torch
from torch import nn

import planner


def names_that_do_not_exist(model: nn.Module) -> None:
    planner.does_not_exist()  # refused: attr-defined, reportAttributeAccessIssue
    planner.Does_not_exist  # noqa: B018  # refused: attr-defined, reportAttributeAccessIssue
    planner.plan(model, max_memroy={0: 1})  # refused: call-arg, reportCallIssue
    planner.plan_many(model, [{0: 1}], offload_buffer=True)  # refused: call-arg, reportCallIssue
    planner.infer_auto_device_map(model, max_memroy={0: 1})  # refused: call-arg, reportCallIssue
    planner.dispatch(model, {"": 0}, main_device=0)  # refused: call-arg, reportCallIssue
    planner.check(model, {"": 0}, no_split=["Block"])  # refused: call-arg, reportCallIssue


def words_that_are_not_of_the_set(model: nn.Module) -> None:
    planner.plan(model, mode="cpu_only")  # refused: arg-type, reportArgumentType
    planner.plan(model, strategy="fastest")  # refused: arg-type, reportArgumentType
    planner.plan(model, strategy={"search_step": 3})  # refused: arg-type, reportArgumentType
    planner.plan(model, model={"layers": 3})  # refused: typeddict-unknown-key, reportArgumentType
    planner.plan_many(model, [{0: 1}], granularity="layer")  # refused: arg-type, reportArgumentType
    planner.infer_auto_device_map(model, reserve="sometimes")  # refused: arg-type, reportArgumentType
    planner.dispatch(model, {"": 0}, outside="ignore")  # refused: arg-type, reportArgumentType


def wrong_types(model: nn.Module, plan: planner.Plan) -> None:
    planner.plan(3)  # refused: arg-type, reportArgumentType
    planner.plan(model, {0: 1})  # refused: call-arg, reportCallIssue
    planner.plan(model, staging_blocks="two")  # refused: arg-type, reportArgumentType
    planner.plan(model, max_memory=["1GiB"])  # refused: arg-type, reportArgumentType
    planner.plan(model, pin={0: "layers.0"})  # refused: dict-item, reportArgumentType
    planner.plan(model, dtype=16)  # refused: arg-type, reportArgumentType
    planner.plan_many(model, {0: 1})  # refused: dict-item, reportArgumentType
    planner.dispatch(plan, model)  # refused: arg-type, reportArgumentType
    planner.dispatch("folder", plan)  # refused: arg-type, reportArgumentType
    planner.verify(model, ["layers.0"])  # refused: arg-type, reportArgumentType
    planner.explain(model, "layers.0")  # refused: arg-type, reportArgumentType
    planner.check(model, [("", 0)])  # refused: arg-type, reportArgumentType
    planner.is_valid(True)  # refused: arg-type, reportArgumentType
    planner.dtype_byte_size("float32")  # refused: arg-type, reportArgumentType
    planner.add_hook_to_module(planner.ModelHook(), model)  # refused: arg-type, reportArgumentType
    planner.offload_weight("head.weight", torch.zeros(1), "folder")  # refused: arg-type, reportArgumentType


def fields_that_do_not_exist(error: planner.InfeasibleError, plan: planner.Plan) -> None:
    error.shortfall  # noqa: B018  # refused: attr-defined, reportAttributeAccessIssue
    error.is_proved  # noqa: B018  # refused: attr-defined, reportAttributeAccessIssue
    plan.devicemap  # noqa: B018  # refused: attr-defined, reportAttributeAccessIssue
    plan.devices[0].used  # noqa: B018  # refused: attr-defined, reportAttributeAccessIssue


def what_may_be_none(error: planner.InfeasibleError, plan: planner.Plan) -> int:
    for device in error.more_bytes:  # refused: union-attr, reportOptionalIterable
        print(device)
    print(plan.shortfall.more_bytes)  # refused: union-attr, reportOptionalMemberAccess
    return error.shortfall_bytes  # refused: return-value, reportReturnType


def what_is_frozen(plan: planner.Plan, finding: planner.Finding) -> None:
    plan.offloaded_bytes["cpu"] = 1  # refused: index, reportIndexIssue
    plan.certificate = plan.certificate  # refused: misc, reportAttributeAccessIssue
    finding.rule = "uncovered"  # refused: misc, reportAttributeAccessIssue


def what_never_holds(finding: planner.Finding, plan: planner.Plan) -> bool:
    if plan.certificate.stage == "offloaded":  # refused: comparison-overlap, reportUnnecessaryComparison
        return False
    return finding.rule == "tied_apart"  # refused: comparison-overlap, reportUnnecessaryComparison
