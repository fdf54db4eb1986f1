"""Gradients, autocast and inference mode around offloaded weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import nn

import planner
from planner import OffloadError
from planner.dispatching.tensors.placeholder import is_offloaded
from rig import Accelerators
from tiny_models import built, mapped

X = torch.linspace(-1, 1, 8).reshape(2, 4)
ALL_REST: dict[str, Any] = {"": "cpu"}
MIXED: dict[str, Any] = {"0": 0, "1": "cpu"}


def layers(count: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(count)])


@pytest.mark.parametrize("staging_bytes", [None, {0: 10**6}])
@pytest.mark.parametrize("has_gradients", [False, True])
def test_autocast_keeps_no_casts_of_offloaded_weights(
    has_gradients: bool, staging_bytes: Any, virtual_accelerators: Accelerators
) -> None:
    model, plain = layers(4), layers(4).to(0)
    planner.dispatch(model, ALL_REST, execution_map={"": 0}, staging_bytes=staging_bytes)
    with torch.set_grad_enabled(has_gradients), torch.autocast("virtual", dtype=torch.float16):
        want = plain(X.to(0)).detach().cpu()
        before = virtual_accelerators.used_bytes(0)
        for _ in range(4):
            assert model(X).detach().equal(want)
            assert virtual_accelerators.used_bytes(0) == before
        assert torch.is_autocast_cache_enabled()


def test_autocast_casts_each_resident_weight_once() -> None:
    """Only what goes is cast anew."""
    model, casts = planner.dispatch(layers(), MIXED), []
    with torch.autocast("virtual", dtype=torch.float16):
        model[0].register_forward_hook(lambda *_: casts.append(torch.is_autocast_cache_enabled()))
        model(X)
    assert casts == [True]


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3)])


def test_inference_mode_leaves_ordinary_weights() -> None:
    """Pinning happens in a forward, which may be under inference mode; training goes on after it."""
    model, plain = normed(), normed().to(0)
    options: dict[str, Any] = {"execution_map": {"": 0}, "staging_bytes": {0: 10**6}, "offload_buffers": True}
    planner.dispatch(model, ALL_REST, **options)
    with torch.inference_mode():
        want = plain.eval()(X.to(0)).cpu()
        assert all(model.eval()(X).equal(want) for _ in range(3))
    with torch.no_grad():
        assert model.train()(X).equal(plain.train()(X.to(0)).cpu())
    planner.undispatch(model)
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
    for mine, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert mine.equal(theirs.cpu())
    for each in (model, plain):
        each(X.to(next(each.parameters()).device)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_dispatch_under_inference_mode_is_like_any_other() -> None:
    model, plain = layers(), layers().to(0)
    with torch.inference_mode():
        planner.dispatch(model, MIXED)
    model.requires_grad_(False)
    model.requires_grad_(True)
    assert is_offloaded(model[1].weight) and not model[1].weight.is_inference()
    with torch.no_grad():
        assert model(X).equal(plain(X.to(0)).cpu())
    planner.undispatch(model)
    assert not any(parameter.is_inference() for parameter in model.parameters())
    model(X).sum().backward()


class Targeted(nn.Module):
    """Two parts get one tensor, one of them without gradients, as target networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.target, self.online = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        with torch.no_grad():
            wanted = self.target(hidden)
        return (self.online(hidden) - wanted).square().sum()


def test_a_copy_that_was_made_without_gradients_does_not_serve_with_them() -> None:
    torch.manual_seed(0)
    plain = Targeted()
    model = planner.dispatch(copy.deepcopy(plain), {"first": 0, "target": 1, "online": 1})
    for each in (plain, model):
        each(X).backward()
    assert model.first.weight.grad is not None
    torch.testing.assert_close(model.first.weight.grad.cpu(), plain.first.weight.grad)


class Enabling(nn.Module):
    """Turns gradients on, whatever is outside; may wait inside."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.wait: Callable[[], Any] = bool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.wait()
        with torch.enable_grad():
            return (self.weight * x).sum()


def enabling() -> tuple[nn.Module, nn.Parameter]:
    """An offloaded part with a parameter that was assigned over its placeholder."""
    model = planner.dispatch(nn.Sequential(Enabling(), nn.Identity()), {"0": "cpu", "1": 0})
    mine = model[0].weight = nn.Parameter(torch.full((4,), 2.0))
    return model[0], mine


def test_a_gradient_reaches_an_assigned_parameter() -> None:
    part, mine = enabling()
    with torch.no_grad():
        loss = part(X[0])
    loss.backward()
    assert mine.grad is not None and mine.grad.equal(X[0])
    assert part.weight is mine


def test_a_gradient_reaches_a_parameter_that_another_thread_has_brought_in() -> None:
    part, mine = enabling()
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        if threading.current_thread() is evaluating:
            inside.set()
            go_on.wait(30)

    @torch.no_grad()
    def evaluate() -> None:
        part(X[0])

    part.wait = hold
    evaluating = threading.Thread(target=evaluate)
    evaluating.start()
    assert inside.wait(30)
    loss = part(X[0])
    go_on.set()
    evaluating.join(30)
    loss.backward()
    assert mine.grad is not None and mine.grad.equal(X[0])


def test_reading_a_trainable_weight_into_a_graph_is_refused() -> None:
    """Backward would end in an internal error of torch, and gradients of everything else would be lost."""
    model = planner.dispatch(layers(), MIXED, outside="fetch")
    for read in (lambda w: w.pow(2).sum(), lambda w: w[0].sum(), lambda w: w.T @ X.to(0).T):
        with pytest.raises(OffloadError, match=r"'1\.weight'.*trainable.*no_grad.*requires_grad_\(False\)"):
            read(model[1].weight)
        with torch.no_grad():
            assert read(model[1].weight).cpu().equal(read(layers().to(0)[1].weight).cpu())
    model[1].requires_grad_(False)
    plain = layers().to(0)
    plain[1].requires_grad_(False)
    for each in (model, plain):
        (each[0](X.to(0)).sum() + each[1].weight.pow(2).sum()).backward()
    assert model[0].weight.grad.equal(plain[0].weight.grad)


@pytest.mark.parametrize("device_map", [{"0": 0, "1": 1}, {"0": "cpu", "1": 1}])
@pytest.mark.parametrize("device", ["cpu", "virtual:0"])
def test_reading_an_aligned_module_between_forward_and_backward_changes_nothing(
    device_map: dict[str, Any], device: str
) -> None:
    model, plain = layers(), layers().to(0)
    for each in (model, plain):
        each[0].requires_grad_(False)
    planner.dispatch(model, device_map)
    losses = [each(X.to(0)).square().sum() for each in (model, plain)]
    versions = [parameter._version for parameter in model[1].parameters()]
    for layer in model:
        with planner.align_module_device(layer, device):
            assert layer.weight.device == torch.device(device)
            layer.weight.sum()
    assert [parameter._version for parameter in model[1].parameters()] == versions
    for loss in losses:
        loss.backward()
    assert model[1].weight.grad.cpu().equal(plain[1].weight.grad.cpu())


def gradients(device_map: dict[str, Any] | None, checkpointing: dict[str, Any] | None) -> dict[str, Any]:
    """Of DoRA adapters, which read the weights of the linear layers that they adapt."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, use_dora=True)
    base = built("llama")
    torch.manual_seed(1)
    model = peft.get_peft_model(base, config).train()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if device_map is None:
        model.to(0)
    else:
        placed = {f"base_model.model.{name}": device for name, device in device_map.items()}
        adapters = {name: device_map[f"model.layers.{name.split('.')[4]}"] for name in trained}
        planner.dispatch(
            model,
            {**placed, **{name: 0 if device == "cpu" else device for name, device in adapters.items()}},
        )
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        model.enable_input_require_grads()
    for _ in range(2):
        model(torch.arange(3, 13, device=0)[None], use_cache=False).logits.square().mean().backward()
    if device_map is not None:
        resting = [name for name, parameter in model.named_parameters() if is_offloaded(parameter)]
        assert len(resting) == 2 * 9
        planner.undispatch(model)
        assert not any(
            "planner" in type(value).__module__ for m in model.modules() for value in vars(m).values()
        )
    return {name: parameter.grad.cpu() for name, parameter in model.named_parameters() if name in trained}


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_checkpointed_layers_are_brought_in_whole_for_backward(checkpointing: Any) -> None:
    """transformers computes them again past everything that stands around a layer."""
    want = gradients(None, checkpointing)
    found = gradients(mapped("llama", (0, "cpu", 1, "cpu")), checkpointing)
    assert len(want) == 12 and found.keys() == want.keys()
    assert all(found[name].equal(want[name]) for name in want)


def test_a_copy_of_a_checkpointed_model_has_its_own_way_back() -> None:
    model = planner.dispatch(built("llama").requires_grad_(False), mapped("llama", (0, "cpu", 1, "cpu")))
    model.lm_head.weight.requires_grad_(True)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.arange(3, 13, device=0)[None]
    model.train()(ids, use_cache=False).logits.square().mean().backward()
    twin = copy.deepcopy(model)
    planner.undispatch(model)
    twin.zero_grad()
    twin(ids, use_cache=False).logits.square().mean().backward()
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    assert all(one.grad.cpu().equal(other.grad.cpu()) for one, other in pairs if one.grad is not None)
    assert twin.lm_head.weight.grad is not None
