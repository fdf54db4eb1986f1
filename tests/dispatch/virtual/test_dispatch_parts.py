"""Parts that the cpu runs for a block on an accelerator: their results go back to where the block's code goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import planner
from rig.accelerators import Accelerators

WIDTH, LAYERS, TOKENS = 64, 3, 10
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "attn_implementation": "eager",
}
REST = {"model.embed_tokens": 0, "model.norm": 0, "model.rotary_emb": 0, "lm_head": 0}
IDS = torch.arange(TOKENS)[None]
ACTIVATION_BYTES = TOKENS * WIDTH * 4


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def mixtral() -> nn.Module:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)).eval()


def with_parts(part: str, layers: tuple[int, ...], device: str = "cpu") -> dict[str, int | str]:
    whole = {f"model.layers.{layer}": 0 for layer in range(LAYERS)}
    return {**REST, **whole, **{f"model.layers.{layer}.{part}": device for layer in layers}}


@pytest.mark.usefixtures("one_thread", "virtual_accelerators")
@pytest.mark.parametrize(("make", "part"), [(llama, "mlp"), (mixtral, "mlp"), (mixtral, "mlp.experts")])
@pytest.mark.parametrize("layers", [(1,), (0, 2)])
def test_no_operator_of_the_block_is_refused(
    make: Callable[[], nn.Module], part: str, layers: tuple[int, ...]
) -> None:
    model = make()
    with torch.no_grad():
        wanted = model(IDS).logits
    runs = {f"model.layers.{layer}.{part}": "cpu" for layer in layers}
    planner.dispatch(model, with_parts(part, layers), execution_map=runs)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits.cpu(), wanted)
    assert planner.crossings(model) == ()


@pytest.mark.usefixtures("one_thread")
def test_a_part_costs_two_hops(virtual_accelerators: Accelerators) -> None:
    def traffic_of(layers: tuple[int, ...]) -> tuple[int, int]:
        model = llama()
        runs = {f"model.layers.{layer}.mlp": "cpu" for layer in layers}
        planner.dispatch(model, with_parts("mlp", layers), execution_map=runs or None)
        virtual_accelerators.reset()
        with torch.no_grad():
            model(IDS.to(virtual_accelerators.devices[0]))
        found = virtual_accelerators.traffic()
        return found.to_device_bytes, found.to_host_bytes

    up, down = traffic_of(())
    for layers in ((1,), (0, 2), (0, 1, 2)):
        more_up, more_down = traffic_of(layers)
        assert (more_up - up, more_down - down) == (
            len(layers) * ACTIVATION_BYTES,
            len(layers) * ACTIVATION_BYTES,
        )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("make", "part"), [(llama, "mlp"), (mixtral, "mlp.experts")])
def test_a_block_with_parts_goes_on_where_the_rest_of_it_is(
    make: Callable[[], nn.Module], part: str, virtual_accelerators: Accelerators
) -> None:
    """No name of the map is that of a layer: what enters the first of them goes to their accelerator once, and stays there."""
    model = make()
    with torch.no_grad():
        wanted = model(IDS).logits
    names = {
        name.rpartition(".")[0] for name, _ in model.named_parameters() if name.startswith("model.layers.")
    }
    inside = {f"model.layers.{layer}.{part}" for layer in range(LAYERS)}
    homes = {name: 1 for name in names if not any(f"{name}.".startswith(f"{each}.") for each in inside)}
    runs = dict.fromkeys(inside, "cpu")
    planner.dispatch(model, {**REST, **homes, **runs}, execution_map=runs)
    virtual_accelerators.reset()
    with torch.no_grad():
        assert torch.equal(model(IDS, use_cache=False).logits.cpu(), wanted)
    assert planner.crossings(model) == ()
    assert virtual_accelerators.traffic().between_devices_bytes < 4 * ACTIVATION_BYTES


@pytest.mark.usefixtures("one_thread", "virtual_accelerators")
@pytest.mark.parametrize("granularity", ["part", "module"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_plans_in_parts_run_as_they_say(granularity: str, share: float) -> None:
    model = llama()
    wanted = model.generate(IDS, max_new_tokens=5, do_sample=False)
    size = sum(each.nbytes for each in model.parameters())
    plan = planner.plan(
        model,
        max_memory={0: int(size * share), "cpu": 2 * size},
        granularity=granularity,  # type: ignore[arg-type]
        execute_offloaded="cpu",
    )
    planner.dispatch(model, plan)
    assert torch.equal(model.generate(IDS, max_new_tokens=5, do_sample=False).cpu(), wanted)


@pytest.mark.usefixtures("one_thread", "virtual_accelerators")
def test_a_part_on_disk_that_the_cpu_runs_returns_its_results(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        wanted = model(IDS).logits
    model.save_pretrained(tmp_path)
    size = sum(each.nbytes for each in model.parameters())
    part = "model.layers.1.mlp"
    budgets = {0: size, "cpu": size, "disk": size}
    plan = planner.plan(tmp_path, max_memory=budgets, pin={f"{part}*": "disk"}, execute_offloaded="cpu")
    assert (plan.device_map[part], plan.execution_map[part]) == ("disk", "cpu")
    loaded = planner.load(tmp_path, plan=plan)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits.cpu(), wanted)
    assert planner.crossings(loaded) == ()


@pytest.mark.usefixtures("one_thread")
def test_gradients_come_back_through_a_part(virtual_accelerators: Accelerators) -> None:
    wanted, model = llama(), llama()
    planner.dispatch(model, with_parts("mlp", (1,)), execution_map={"model.layers.1.mlp": "cpu"})
    wanted(IDS).logits.sum().backward()
    model(IDS.to(virtual_accelerators.devices[0])).logits.sum().backward()
    for (name, one), (_, other) in zip(wanted.named_parameters(), model.named_parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, name
        assert torch.allclose(one.grad, other.grad.cpu(), rtol=1e-4, atol=1e-5), name


@pytest.mark.usefixtures("one_thread", "virtual_accelerators")
def test_undispatch_takes_the_border_away() -> None:
    model = llama()
    with torch.no_grad():
        wanted = model(IDS).logits
    planner.dispatch(model, with_parts("mlp", (1,)), execution_map={"model.layers.1.mlp": "cpu"})
    planner.undispatch(model)
    assert not any("forward" in module.__dict__ for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model.cpu()(IDS).logits, wanted)
