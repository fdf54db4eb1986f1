"""What the public functions promise to a type checker: each name of the package, used as it is meant. Checked, never executed."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, assert_type

import torch
from torch import nn

import planner
from planner.compat import transformers
from planner.memory.demands import Demands
from planner.model.tree import ModuleTree
from planner.planning.partial import partial_plan
from planner.plans.device_map import DeviceMap
from planner.plans.no_plan import NoPlan
from planner.plans.runs import Run, runs_of
from planner.plans.timing import Timing
from planner.report.html import html_report
from planner.report.showing import show
from planner.report.terminal import PlanView, plan_view
from planner.strategies.sequential import Layout, Outcome, sequential, sequential_many

assert_type(planner.__version__, str)


def drop_in(model: nn.Module) -> None:
    assert_type(planner.infer_auto_device_map(model), OrderedDict[str, int | str])
    assert_type(
        planner.infer_auto_device_map(
            model,
            max_memory={0: "10GiB", "cuda:1": 5, torch.device("cpu"): 1.5},
            no_split_module_classes=["Block"],
            dtype=torch.float16,
            special_dtypes={"lm_head.weight": "float32"},
            verbose=True,
            clean_result=False,
            offload_buffers=True,
            fallback_allocation=True,
            reserve="if_offloaded",
        ),
        OrderedDict[str, int | str],
    )
    assert_type(
        transformers.infer_auto_device_map(model, {0: 10}, no_split_module_classes={"Block"}),
        OrderedDict[str, int | str],
    )
    assert_type(planner.get_max_memory(), dict[int | str, int | float])
    assert_type(planner.get_balanced_memory(model, {0: 10}, low_zero=True), dict[int | str, int | float])


def sizes(model: nn.Module) -> None:
    by_name = planner.compute_module_sizes(model, dtype="bfloat16", special_dtypes={"head": torch.float32})
    assert_type(by_name, dict[str, int | float])
    assert_type(planner.compute_module_total_buffer_size(model, torch.float16), int | float)
    assert_type(planner.calculate_maximum_sizes(model), tuple[int | float, tuple[float, list[str]]])
    assert_type(planner.named_module_tensors(model, recurse=True), Iterator[tuple[str, torch.Tensor]])
    assert_type(planner.convert_file_size_to_int("10GiB"), int)
    assert_type(planner.dtype_byte_size(torch.float32), int | float)
    entries = list(model.named_children())
    assert_type(planner.get_max_layer_size(entries, by_name, ["Block"]), tuple[float, list[str]])
    assert_type(
        planner.get_module_size_with_ties(["head.weight"], 8, by_name, entries),
        tuple[float, list[str], list[Any]],
    )
    assert_type(
        planner.fallback_allocate(entries, by_name, "1GiB", {"Block"}, [["head.weight", "embed.weight"]]),
        tuple[str | None, Any, list[tuple[str, Any]]],
    )


def ties(model: nn.Module) -> None:
    groups = planner.find_tied_parameters(model)
    assert_type(groups, list[list[str]])
    assert_type(planner.check_tied_parameters_in_config(model), bool)
    planner.check_tied_parameters_on_same_device(groups, {"": 0})
    planner.retie_parameters(model, groups)


def device_maps(model: nn.Module, device_map: dict[str, int]) -> None:
    planner.check_device_map(model, device_map)
    assert_type(planner.clean_device_map({"a": 0, "b": "cpu"}), dict[str, Any])
    findings = planner.check(model, device_map, {0: "1GiB"}, no_split_module_classes={"Block"})
    assert_type(findings, tuple[planner.Finding, ...])
    assert_type(planner.is_valid(findings), bool)
    assert_type(findings[0].needed_bytes, int | None)
    if findings[0].rule == "tied-apart":
        assert_type(findings[0].names, tuple[str, ...])


def steps(model: nn.Module) -> None:
    tree = ModuleTree.from_module(model)
    assert_type(tree, ModuleTree)
    layout = Layout(tree, no_split=("Block",), dtype="int8")
    outcome = sequential(layout, {0: 10, "cpu": 20}, fallback_allocation=True, reserve="always")
    assert_type(outcome, Outcome)
    assert_type(outcome.device_map(clean=False), dict[str, int | str])
    assert_type(outcome.usage[0].used_bytes, int)
    assert_type(outcome.reasons[0].needed_bytes, int)
    assert_type(sequential_many(layout, [{0: 10}, {0: 20}]), list[Outcome])


def plans(model: nn.Module, budgets: dict[int, int], row: dict[str, str]) -> None:
    assert_type(planner.plan(model), planner.Plan)
    planner.plan(
        model, max_memory=budgets, headroom={"all": "5%"}, dtype=torch.float16, pin={"a": torch.device("cpu")}
    )
    planner.plan(model, max_memory=row, strategy={"type": "auto", "fill": "even"}, model={"hidden_size": 8})
    planner.plan(
        Path("folder"),
        strategy="balanced",
        no_split_modules=["a"],
        forbid={"a": [0, "cpu"]},
        offload_buffers=True,
    )
    found = planner.plan_many(model, [budgets, budgets], mode="no_disk", config={"mode": "any"})
    assert_type(found, list[planner.Plan | planner.InfeasibleError])
    planner.plan(
        model, max_memory=budgets, workload={"context_length": "32k", "batch_size": 4, "cache": "static"}
    )
    most = planner.largest(model, "context_length", upto=4096, max_memory=budgets, workload={"batch_size": 2})
    assert_type(most, planner.Largest)
    assert_type(most.plan, planner.Plan)
    first = planner.first_that_fits(model, [{"dtype": "bfloat16"}, {"dtype": "nf4"}])
    assert_type(first, planner.FirstPlan)
    running = planner.demands(model, workload={"context_length": 4096})
    assert_type(running, Demands)
    planner.check(model, {"": 0}, budgets, running=running, margin=lambda device, size: size // 4)


def machines(path: Path) -> None:
    machine = planner.Machine.read(path)
    assert_type(machine, planner.Machine)
    assert_type(machine.device(0).memory_bytes, int | None)
    assert_type(machine.route("cpu", 0).copy_ps(1 << 20), int)
    assert_type(planner.Machine.from_json(machine.to_json()), planner.Machine)
    found = planner.probe(folder=path, seconds=1.5, tell=print)
    assert_type(found, planner.Probed)
    assert_type(found.machine, planner.Machine)
    assert_type(found.notes, tuple[str, ...])


def times(model: nn.Module, machine: planner.Machine, path: Path) -> None:
    plan = planner.plan(model, strategy={"type": "latency", "tokens": 16, "order": "any"}, machine=machine)
    assert_type(plan.timing, Timing | None)
    planner.plan(model, strategy={"type": "pipeline", "microbatches": 8}, machine=path)
    assert_type(planner.price(model, {"": 0}, machine="machine.json", tokens=4), Timing)
    assert_type(planner.price(model, plan).tokens_per_s, float)


def what_a_plan_says(model: nn.Module, plan: planner.Plan) -> None:
    assert_type(plan.devices[0].budget_bytes, int | None)
    assert_type(plan.device_map, DeviceMap)
    assert_type(plan.device_map.below("layers"), DeviceMap)
    assert_type(plan.execution_map, dict[str, int | str])
    assert_type(plan.offloaded_bytes, Mapping[str, int])
    assert_type(plan.certificate.gap_bytes, int)
    assert_type(plan.reasons[0].available_bytes, int | None)
    assert_type(plan.source.fingerprint, str)
    if plan.shortfall is not None:
        assert_type(plan.shortfall.more_bytes, Mapping[int | str, int])
    assert_type(plan.minimum_bytes, Mapping[int | str, int | None])
    assert_type(plan.provenance, Mapping[str, str])
    assert_type(planner.Plan.from_json(plan.to_json(provenance=False)), planner.Plan)
    assert_type(planner.explain(plan, "layers.0"), str)
    assert_type(planner.show(plan), Path | None)
    found = planner.verify(model, plan, torch.zeros(1, 8))
    assert_type(found, planner.Verification)
    assert_type(found.runs, bool | None)
    assert_type(found.crossings, tuple[planner.Crossing, ...])
    assert_type(found.peaks, tuple[planner.PeakRow, ...])
    assert_type(planner.measure(model, plan, torch.zeros(1, 8)), planner.Measurement)


def dispatched(model: nn.Module, plan: planner.Plan) -> None:
    assert_type(planner.dispatch(model, plan, offload_buffers=True, outside="fetch"), nn.Module)
    planner.dispatch(model, {"": "cpu"}, execution_map={"": 0}, staging_bytes={0: 2**30}, skip_keys=["cache"])
    seen = planner.crossings(model)
    assert_type(seen, tuple[planner.Crossing, ...])
    assert_type(seen[0].size_bytes, int)
    weights = planner.state_dict(model)
    assert_type(weights, planner.StateDict)
    assert_type(weights["head.weight"], torch.Tensor)
    assert_type(planner.undispatch(model), nn.Module)


def piped(plan: planner.Plan, ids: torch.Tensor) -> None:
    with planner.pipeline("folder", plan=plan, device="cuda:0", microbatches=2, timeout_s=60) as pipe:
        assert_type(pipe, planner.Pipeline)
        assert_type(pipe.generate(ids, 20, eos_token_id=(1, 2), attention_mask=ids > 0), torch.Tensor)
        pipe.generate(ids, 20, do_sample=True, temperature=0.7, top_k=50, top_p=0.9, seed=1, pad_token_id=0)
        assert_type(pipe.forward(ids), torch.Tensor | None)
        assert_type((pipe.stage.layers, pipe.read_bytes, pipe.cache_bytes), tuple[range, int, int])
    planner.pipeline(Path("folder"), stages=(3, 5)).close()
    planner.pipeline("folder", plan=Path("plan.json"), dtype=torch.float16)


def offloaded(model: nn.Module, index: dict[str, Any]) -> None:
    planner.dispatch_model(model, {"": 0}, main_device=0, offload_dir="folder", skip_keys="cache")
    planner.cpu_offload(model, execution_device=0, state_dict=model.state_dict(), offload_buffers=True)
    planner.disk_offload(model, Path("folder"), torch.device("cpu"), preload_module_classes=["Block"])
    loaded = planner.load_checkpoint_and_dispatch(
        model, "folder", "auto", {0: "10GiB"}, dtype="float16", strict=True
    )
    assert_type(loaded, nn.Module)
    planner.load_checkpoint_in_model(
        model, Path("w.bin"), {"": "disk"}, offload_folder="folder", keep_in_fp32_modules=["norm"]
    )
    first, hook = planner.cpu_offload_with_hook(model, 0)
    assert_type(first, nn.Module)
    assert_type(hook, planner.UserCpuOffloadHook)
    planner.cpu_offload_with_hook(model, 0, prev_module_hook=hook)
    hook.offload()
    hook.remove()
    planner.load_offloaded_weights(model, index, "folder")
    assert_type(planner.has_offloaded_params(model), bool)
    assert_type(planner.get_state_dict_offloaded_model(model), dict[str, torch.Tensor])
    planner.get_state_dict_from_offload(model, "head.weight", {}, device_to_put_offload="cpu")
    with planner.align_module_device(model, 0):
        planner.set_module_tensor_to_device(
            model, "head.weight", "cpu", value=torch.zeros(1), dtype="float16"
        )


def weight_files(tensor: torch.Tensor, folder: Path) -> None:
    index = planner.offload_weight(tensor, "head.weight", folder, index={})
    assert_type(index, dict[str, Any] | None)
    planner.save_offload_index(index, folder)
    planner.offload_state_dict(folder, {"head.weight": tensor})
    assert_type(
        planner.load_offloaded_weight(folder / "head.weight.dat", {"dtype": "float32", "shape": [1]}),
        torch.Tensor,
    )
    loader = planner.OffloadedWeightsLoader(state_dict={"head.weight": tensor}, save_folder=folder)
    part = planner.PrefixedDataset(loader, "head.")
    assert_type(len(part), int)
    assert_type(planner.extract_submodules_state_dict(loader, ["head"]), dict[str, Any])


def hooks(model: nn.Module) -> None:
    hook = planner.AlignDevicesHook(execution_device=0, offload=True, weights_map={}, skip_keys=["cache"])
    planner.add_hook_to_module(model, planner.SequentialHook(hook, planner.ModelHook()), append=True)
    planner.add_hook_to_module(model, planner.CpuOffload(torch.device("cpu")))
    casting = planner.LayerwiseCastingHook(torch.float8_e4m3fn, torch.bfloat16, non_blocking=False)
    planner.add_hook_to_module(model, casting)
    planner.attach_align_device_hook(model, 0, offload=True, module_name="part")
    planner.attach_align_device_hook_on_blocks(model, {"layers.0": 0}, offload={"layers.0": True})
    planner.attach_execution_device_hook(model, "cuda:0", preload_module_classes=["Block"])
    planner.attach_layerwise_casting_hooks(
        model, torch.float8_e4m3fn, torch.bfloat16, skip_modules_pattern="norm"
    )
    assert_type(planner.remove_hook_from_module(model, recurse=True), nn.Module)
    planner.remove_hook_from_submodules(model)


class Counting(planner.ModelHook):
    """A hook of a user's own."""

    calls = 0

    def pre_forward(
        self, module: nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.calls += 1
        return args, kwargs


def loading(model: nn.Module, plan: planner.Plan) -> None:
    assert_type(
        planner.load("folder", max_memory={0: "20GiB", "disk": "1TB"}, headroom={0: "1GiB"}), nn.Module
    )
    planner.load(Path("folder"), model, plan, dtype=torch.float16, strict=False, allow_missing="*.bias")
    planner.load("folder", model, {"": "disk"}, copy=True, read="direct", staging_bytes={"cpu": 1 << 30})
    planner.load("folder", rename={"a": "b", "c": None}, convert="store", offload_folder="converted")
    report = planner.load_report(model)
    assert_type(report, planner.LoadReport)
    assert_type(report.tensors, tuple[planner.LoadedTensor, ...])
    assert_type(report.streamed, planner.StreamingProgress)
    assert_type(report.streamed.waited_seconds, float)
    assert_type(report.summary(), str)


def tensors(model: nn.Module) -> None:
    assert_type(planner.find_device({"a": [torch.zeros(1)]}), torch.device | None)
    assert_type(planner.get_non_persistent_buffers(model, recurse=True, fqns=True), set[str])
    planner.send_to_device([torch.zeros(1)], "cpu", non_blocking=True, skip_keys="cache")
    with planner.init_empty_weights(include_buffers=True):
        nn.Linear(1, 1)
    with planner.init_on_device(torch.device("meta")):
        nn.Linear(1, 1)


def errors(error: planner.PlannerError) -> None:
    assert_type(error.message, str)
    match error:
        case planner.InfeasibleError():
            assert_type(error.shortfall_bytes, int | None)
            assert_type(error.block, str)
            assert_type(error.device, int | str | None)
            assert_type(error.best_partial, Mapping[str, int | str])
            assert_type(error.more_bytes, Mapping[int | str, int] | None)
            assert_type(error.is_proven, bool | None)
        case planner.InvalidTreeError():
            assert_type(error.name, str)
        case planner.InvalidDevicesError():
            assert_type(error.device, object)
        case planner.InvalidConstraintError():
            assert_type(list(error.suggestions), list[str])
        case planner.InvalidByteSizeError():
            assert_type(error.text, object)
        case planner.InvalidConfigError():
            print(*error.problems, sep="\n")
        case planner.RecordingError():
            assert_type(error.operator, str)
        case planner.UnknownMemoryError():
            as_value_error(error)
        case planner.InvalidInputError():
            as_value_error(error)
        case planner.CheckpointError():
            assert_type(error.file + error.reason, str)
        case planner.PipelineError():
            print(error.rank, error.stage, error.layers, error.step)
        case planner.OffloadError():
            assert_type(error.name, str | None)
        case planner.IntegrationError():
            assert_type(error.version, str | None)
            print(error.library, *error.problems, sep="\n")
        case planner.PlanMismatchError():
            print(*error.findings, sep="\n")
        case _:
            pass


def as_value_error(error: ValueError) -> None: ...


def pictures(model: nn.Module, plan: planner.Plan, error: planner.InfeasibleError) -> None:
    assert_type(runs_of(plan, "layers"), tuple[Run, ...])
    no_plan = partial_plan(error, model, max_memory={0: "1GiB"})
    assert_type(no_plan, NoPlan)
    assert_type(plan_view(plan), PlanView)
    assert_type(plan_view(no_plan, remarks=["no accelerator was found"]), PlanView)
    assert_type(html_report(plan, ModuleTree.from_module(model)), str)
    assert_type(html_report(no_plan), str)
    assert_type(show(plan), Path | None)


def integrations(model: nn.Module) -> None:
    with planner.integrate(headroom={"all": "5%"}) as here, here:
        assert_type(here, planner.Integration)
    assert_type(here.plans, tuple[planner.Plan, ...])
    assert_type([str(site) for site in here.sites], list[str])
    assert_type(planner.install(auto="transformers", outside="raise"), planner.Integration)
    planner.uninstall()
    assert_type(planner.plan_of(model), planner.Plan | None)


def exported(plan: planner.Plan) -> str:
    return planner.export.vllm(plan).line
