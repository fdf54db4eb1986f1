"""What the sweep of peaks runs: tiny models of transformers' classes, their inputs, and where they are placed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import planner
import tiny_zoo
from planner.devices.keys import main_device
from planner.memory.recording.workloads import takes_use_cache
from planner.names import nearest_key

STEPS = 2
BATCHES, PROMPTS = (1, 4), (16, 128, 1024)
QUICK_BATCHES, QUICK_PROMPTS = (2,), (256,)
IN_TOKENS = ("input_ids", "attention_mask", "decoder_input_ids", "mm_token_type_ids", "token_type_ids")
SHARES = (0.35, 0.5, 0.7, 0.9)


# ---- Models and inputs


def built(name: str, attention: str, level: int = 0) -> Any:
    """The tiny model, with one of the two ways of attention."""
    model = tiny_zoo.build(name, level)
    model.set_attn_implementation(attention)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("grouped_mm")  # the default of accelerators, and what is recorded
    if getattr(model.config, "_attn_implementation", attention) != attention:
        raise ValueError("this class has no other attention")
    return model


def points(
    model: Any, given: Mapping[str, torch.Tensor], *, is_quick: bool
) -> Iterator[tuple[int, int, dict[str, torch.Tensor]]]:
    """Batches and prompts that a model takes, with inputs."""
    is_text = set(given) <= set(IN_TOKENS)
    longest = next(
        (
            value
            for key in ("max_position_embeddings", "n_positions")
            if (value := getattr(model.config, key, None))
        ),
        1 << 20,
    )
    batches, prompts = (QUICK_BATCHES, QUICK_PROMPTS) if is_quick else (BATCHES, PROMPTS)
    for batch in batches:
        # What follows the prompt has to have positions, too.
        for prompt in dict.fromkeys(min(prompt, longest - STEPS) for prompt in prompts if is_text) or (0,):
            yield batch, prompt, {name: resized(name, each, batch, prompt) for name, each in given.items()}


def resized(name: str, tensor: torch.Tensor, batch: int, prompt: int) -> torch.Tensor:
    """An input for so many rows and tokens."""
    if prompt and name in IN_TOKENS:
        tensor = tensor[:, :1].expand(tensor.shape[0], prompt, *tensor.shape[2:])
    return tensor.repeat(batch, *[1] * (tensor.dim() - 1))


@dataclass(frozen=True)
class Placed:
    """A way to place a model, and what of it matters to memory."""

    title: str
    said: Any
    execution: dict[str, Any]
    offloaded_bytes: dict[str, int] = field(default_factory=dict)
    room_bytes: dict[Any, int] = field(default_factory=dict)
    weight_bytes: dict[int, int] = field(default_factory=dict)
    main_device: int = 0


def placements(model: Any) -> Iterator[Placed]:
    """One device, two, and plans that offload."""
    whole = planner.plan(model, max_memory={0: "1TiB"}, headroom=None)
    sizes = dict(whole.block_bytes)
    names = list(sizes)
    yield Placed("one device", {"": 0}, dict.fromkeys(names, 0), weight_bytes={0: tensor_bytes(model)})
    total = sum(sizes.values())
    for budgets in (
        {0: total, 1: total},
        {0: total, "cpu": 4 * total},
        {0: total, 1: total, "cpu": 4 * total},
    ):
        title = "two devices" if "cpu" not in budgets else f"offloaded, {len(budgets) - 1}"
        for share in SHARES if "cpu" in budgets else (0.55, 0.7, 0.9):
            part = share / (len(budgets) - 1) if "cpu" in budgets else share
            said = {key: int(size * part) if key != "cpu" else size for key, size in budgets.items()}
            try:
                plan = planner.plan(model, max_memory=said, headroom=None, mode="no_disk")
            except planner.InfeasibleError:
                continue
            homes = {name: plan.device_map[nearest_key(name, plan.device_map)] for name in names}
            execution = {name: runs_on(name, plan, home) for name, home in homes.items()}
            if (
                len(set(execution.values())) < len(budgets) - ("cpu" in budgets)
                or "cpu" in execution.values()
            ):
                continue
            # Buffers stay where the block runs: these are among what lies there all the time.
            offloaded = {
                name: sizes[name] - buffer_bytes(model, name) for name in names if homes[name] == "cpu"
            }
            if bool(offloaded) != ("cpu" in budgets):
                continue
            room = {
                row.id: row.reserved_bytes + (row.free_bytes or 0)
                for row in plan.devices
                if row.kind == "accelerator"
            }
            weights = weights_of(model, plan, execution, homes)
            yield Placed(title, plan, execution, offloaded, room, weights, main_of(plan))
            break


def weights_of(
    model: Any, plan: Any, execution: Mapping[str, Any], homes: Mapping[str, Any]
) -> dict[int, int]:
    """What a plan says that lies on each accelerator all the time, with buffers of blocks that only run there."""
    found = {row.id: row.used_bytes + row.buffer_bytes for row in plan.devices if row.kind == "accelerator"}
    for row in plan.devices:
        if row.kind == "accelerator" and not row.buffer_bytes:
            found[row.id] += sum(
                buffer_bytes(model, name)
                for name, home in homes.items()
                if home != row.id and execution[name] == row.id
            )
    return found


def main_of(plan: Any) -> int:
    """The accelerator where dispatch takes the inputs."""
    main = main_device(plan.device_map.values())
    return next(int(each) for each in (main, *plan.execution_map.values()) if isinstance(each, int))


def buffer_bytes(model: Any, name: str) -> int:
    """Of the buffers of a block."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        return 0
    seen = {id(tensor): tensor for tensor in modules[name].buffers()}
    return sum(tensor.numel() * tensor.element_size() for tensor in seen.values())


def tensor_bytes(model: Any) -> int:
    """All its weights and buffers, each once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def workload_of(model: Any, given: Mapping[str, torch.Tensor], batch: int) -> dict[str, Any]:
    """The workload that a plan is made for, of which the inputs are one run."""
    main = next((given[name] for name in ("decoder_input_ids", "input_ids") if name in given), None)
    prompt = 1 if main is None else int(main.shape[1])
    keeps = takes_use_cache(model)
    said = {
        "context_length": prompt + STEPS if keeps else prompt,
        "prompt_length": prompt,
        "batch_size": batch,
    }
    if "decoder_input_ids" in given and "input_ids" in given:
        said["encoder_length"] = int(given["input_ids"].shape[1])
    return {
        **said,
        "inputs": {name: list(tensor.shape) for name, tensor in given.items()},
        "cache": "dynamic" if keeps else "none",
        "logits": "all",
        "attention_kernel": "math",
        "allocator_margin": 0,
    }


def planned(model: Any, workload: Mapping[str, Any]) -> Iterator[Any]:
    """Plans for a workload: one over two accelerators, and one with offloaded blocks."""
    whole = planner.plan(model, max_memory={0: "1TiB"}, headroom=None, workload=workload)
    peak = whole.devices[0].peak_bytes
    for devices, shares in ((2, (0.55, 0.7, 0.9, 1.1)), (1, (0.5, 0.6, 0.7, 0.8, 0.9, 0.97))):
        for share in shares:
            budgets: dict[Any, int] = dict.fromkeys(range(devices), int(peak * share))
            if devices == 1:
                budgets["cpu"] = 4 * peak
            try:
                plan = planner.plan(
                    model, max_memory=budgets, headroom=None, mode="no_disk", workload=workload
                )
            except planner.InfeasibleError:
                continue
            running = {*plan.device_map.values(), *plan.execution_map.values()}
            if running == set(budgets):
                yield plan
                break


def runs_on(name: str, plan: Any, home: Any) -> Any:
    """Where a block runs: elsewhere than it rests, if the plan says so."""
    key = nearest_key(name, plan.execution_map)
    return home if key is None or home != "cpu" else plan.execution_map[key]


def running(name: str, attention: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model, as small as it runs, and what it runs with on the CPU.

    Raises:
        NotRunnableError: it does not.
    """
    try:
        model = built(name, attention)
        return model, first_inputs(model)
    except tiny_zoo.NotRunnableError:
        model = built(name, attention, 1)
        return model, first_inputs(model)


def first_inputs(model: Any) -> dict[str, torch.Tensor]:
    """What it runs with on the CPU."""
    reasons: list[str] = []
    for given in tiny_zoo.inputs(model):
        for tried in (given, None):
            try:
                with torch.no_grad():
                    model(**(given if tried is None else tried))
                return given
            except Exception as error:
                reasons.append(str(error)[:100])
                longer = tiny_zoo.with_pictures(given, model, str(error))
                if longer is None:
                    break
                given = longer
    raise tiny_zoo.NotRunnableError(" | ".join(reasons[:3]))
