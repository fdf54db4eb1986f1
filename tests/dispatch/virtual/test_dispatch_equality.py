"""A dispatched model gives what the undispatched one gives on one device, bit for bit: answers, tokens, gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import planner
from tiny_models import TINY, built, mapped

LAYOUTS: dict[str, tuple[int | str, ...]] = {
    "two_devices": (0, 1, 1, 0),
    "offloaded": (0, "cpu", "cpu", 0),
    "mixed": (0, "cpu", 1, "cpu"),
    "all_layers_offloaded": ("cpu", "cpu", "cpu", "cpu"),
}


def word_embeddings(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(("embed_tokens", "wte"))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_answers_and_tokens_are_equal(name: str, layout: str) -> None:
    plain, spread = built(name).to(0), built(name)
    planner.dispatch(spread, mapped(name, LAYOUTS[layout]))
    given = TINY[name].inputs(0)
    expected, found = plain(**given).logits, spread(**given).logits
    assert found.device == expected.device and found.equal(expected)
    given.pop("decoder_input_ids", None)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "use_cache": True}
    assert spread.generate(**given, **options).equal(plain.generate(**given, **options))


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_offloading_what_surrounds_the_layers_changes_nothing(name: str) -> None:
    """Embeddings and heads rest on the CPU, tied or not; layers are spread."""
    plain, spread = built(name).to(0), built(name)
    planner.dispatch(spread, mapped(name, (0, 1, "cpu", 1), outer="cpu"))
    given = TINY[name].inputs(0)
    assert spread(**given).logits.equal(plain(**given).logits)
    # What rests says where it runs, and that it has no values.
    assert {(tensor.device.type, tensor.is_meta) for tensor in spread.parameters()} == {
        ("virtual", False),
        ("virtual", True),
    }


@pytest.mark.parametrize("layout", ["two_devices", "mixed"])
@pytest.mark.parametrize("name", TINY)
def test_gradients_of_inputs_are_equal(name: str, layout: str) -> None:
    """Of the embedded words, with the weights frozen: nothing of an offloaded layer is reused before backward."""
    gradients = []
    for is_spread in (False, True):
        model = built(name).requires_grad_(False)
        if is_spread:
            planner.dispatch(model, mapped(name, LAYOUTS[layout]))
        else:
            model.to(0)
        caught: list[torch.Tensor] = []

        def catch(module: nn.Module, given: Any, output: torch.Tensor, caught: list[Any] = caught) -> Any:
            caught.append(output.detach().requires_grad_(True))
            return caught[-1]

        for embedding in word_embeddings(model):
            embedding.register_forward_hook(catch)
        model(**TINY[name].inputs(0)).logits.square().mean().backward()
        gradients.append([leaf.grad for leaf in caught])
    assert gradients[0]
    for expected, found in zip(*gradients, strict=True):
        if name == "t5":  # each device has a thread of its own, so the order of sums of more than two is open
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        else:
            assert found.equal(expected)


@pytest.mark.parametrize("name", TINY)
def test_gradients_of_weights_over_two_devices_are_equal(name: str) -> None:
    plain, spread = built(name).to(0), built(name)
    planner.dispatch(spread, mapped(name, LAYOUTS["two_devices"]))
    for model in (plain, spread):
        model(**TINY[name].inputs(0)).logits.square().mean().backward()
    expected, found = dict(plain.named_parameters()), dict(spread.named_parameters())
    assert expected.keys() == found.keys()
    tolerance = 1e-5 if name == "t5" else 0.0
    for key, parameter in expected.items():
        if parameter.grad is None:
            assert found[key].grad is None
            continue
        torch.testing.assert_close(
            found[key].grad.cpu(), parameter.grad.cpu(), rtol=tolerance, atol=tolerance * 1e-2, msg=key
        )


@torch.no_grad()
def test_a_plan_is_carried_out_with_its_execution_map() -> None:
    """By hand: the CPU computes what the plan says it shall, and the accelerator fetches the rest."""
    model = built("llama")
    layer_bytes = sum(p.nbytes for p in model.model.layers[0].parameters())
    total = sum(p.nbytes for p in model.parameters())
    plan = planner.plan(
        model, max_memory={0: total - 2 * layer_bytes, 1: layer_bytes, "cpu": total}, headroom=None
    )
    offloaded = [name for name, device in plan.device_map.items() if device == "cpu"]
    assert offloaded
    plain = built("llama").to(0)
    planner.dispatch(model, plan)
    given = TINY["llama"].inputs(0)
    assert model(**given).logits.equal(plain(**given).logits)
    for name in offloaded:
        hook = model.get_submodule(name)._hf_hook
        assert hook.device == torch.device(plan.execution_map.get(name, "cpu"))


@torch.no_grad()
def test_what_the_cpu_computes_equals_a_hand_placed_mix() -> None:
    """Layers 1 and 2 run on the CPU, where they lie."""
    given = TINY["llama"].inputs(0)
    spread = built("llama")
    names = ("model.layers.1", "model.layers.2")
    planner.dispatch(spread, mapped("llama", (0, "cpu", "cpu", 1)), execution_map=dict.fromkeys(names, "cpu"))
    by_hand = built("llama").to(0)
    for index, device in enumerate(("virtual:0", "cpu", "cpu", "virtual:1")):
        place_by_hand(by_hand.model.layers[index], device)
    place_by_hand(by_hand.model.norm, "virtual:0")
    assert spread(**given).logits.equal(by_hand(**given).logits)
    assert {p.device.type for p in spread.model.layers[1].parameters()} == {"cpu"}


def place_by_hand(module: nn.Module, device: str) -> None:
    """Moves a module and, with plain hooks of torch, all that it is given."""
    module.to(device)

    def bring(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return planner.send_to_device(args, device), planner.send_to_device(kwargs, device)

    module.register_forward_pre_hook(bring, with_kwargs=True)


@torch.no_grad()
def test_a_list_of_modules_as_a_key_means_each_of_them() -> None:
    plain, spread = built("llama").to(0), built("llama")
    planner.dispatch(spread, {"model.layers": "cpu", "": 0})
    given = TINY["llama"].inputs(0)
    assert spread(**given).logits.equal(plain(**given).logits)
    assert [type(layer.forward).__name__ for layer in spread.model.layers] == ["OffloadedForward"] * 4
    assert not hasattr(spread.model.layers, "_hf_hook")


@torch.no_grad()
def test_dispatching_again_and_undoing() -> None:
    """With another plan, then with none: tensors, hooks and attributes as before."""
    model, plain = built("llama"), built("llama").to(0)
    before = copy.deepcopy(dict(model.state_dict()))
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    given = TINY["llama"].inputs(0)
    for layout in LAYOUTS.values():
        planner.dispatch(model, mapped("llama", layout))
        assert model(**given).logits.equal(plain(**given).logits)
    planner.undispatch(model)
    assert {tensor.device.type for tensor in model.parameters()} == {"cpu"}
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
