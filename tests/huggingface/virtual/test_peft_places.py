"""Where adapters are made and what of the base is read for it, and what holds of the model afterwards: every answer, and every adapter, is that of the undispatched model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import ModelOutput

import planner
from peft_models import (
    LORA,
    MAPS,
    adapters,
    answer,
    device_map,
    own,
    plain,
    requires_adapters_beside,
    spread,
)
from planner.dispatching.tensors.resting import RestingPlace
from planner.dispatching.transfer.kinds import KINDS
from planner.plans.device_map import DeviceMap

pytestmark = pytest.mark.usefixtures("current_folder")

# ---- what holds afterwards


def test_the_merged_model_is_dispatched_again_and_undispatched(
    folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """Also outside, and while PEFT's wrapper is still there."""
    wrapped = peft.PeftModel.from_pretrained(plain(folder), adapter)
    want = answer(wrapped.merge_and_unload())
    with planner.integrate():
        base = spread(folder, "mixed", tmp_path / "o")
        model = peft.PeftModel.from_pretrained(base, adapter, **own("mixed"))
    assert model.hf_device_map == base.hf_device_map == device_map(MAPS["mixed"])
    assert model.merge_and_unload() is base
    assert answer(base).equal(want)
    planner.dispatch(base, device_map((1, 0, "cpu", 0)))
    assert answer(base).equal(want)
    planner.undispatch(base)
    assert {parameter.device.type for parameter in base.parameters()} == {"cpu"}
    assert not hasattr(base, "hf_device_map") and not any("_hf_hook" in vars(m) for m in base.modules())
    assert answer(base.to(0)).equal(want)


@pytest.mark.usefixtures("here")
def test_a_model_with_an_adapter_is_undispatched(folder: Path, adapter: Path, tmp_path: Path) -> None:
    want = peft.PeftModel.from_pretrained(plain(folder), adapter)
    base = spread(folder, "mixed", tmp_path / "o")
    model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True, **own("mixed"))
    planner.undispatch(model)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert answer(model.to(0).eval()).equal(answer(want))


@pytest.mark.sweep  # torch.compile takes seconds
@pytest.mark.usefixtures("here")
def test_adapters_over_two_devices_are_one_graph(folder: Path, adapter: Path, tmp_path: Path) -> None:
    """Also before any forward has told what the classes of arguments are."""
    want = peft.PeftModel.from_pretrained(plain(folder), adapter)
    base = spread(folder, "two", tmp_path / "o")
    model = peft.PeftModel.from_pretrained(base, adapter, **own("two"))
    for cls in [cls for cls in KINDS if issubclass(cls, ModelOutput)]:
        del KINDS[cls]
    assert answer(torch.compile(model, fullgraph=True, backend="eager")).equal(answer(want))
    want, model = want.merge_and_unload(), model.merge_and_unload()
    assert answer(torch.compile(model, fullgraph=True, backend="eager")).equal(answer(want))


# ---- where and from what adapters are made


@pytest.mark.usefixtures("here")
def test_no_weight_is_read_for_an_adapter_that_needs_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    value = RestingPlace.value
    monkeypatch.setattr(RestingPlace, "value", lambda place, name: (read.append(name), value(place, name))[1])
    model = spread(folder, "mixed", tmp_path / "o")
    read.clear()
    peft.get_peft_model(model, peft.LoraConfig(**LORA, use_rslora=True))
    assert read == []
    dora = peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    peft.get_peft_model(spread(folder, "mixed", tmp_path / "o"), dora)
    assert {name.split(".layers.")[1] for name in read} == {
        "1.self_attn.q_proj.weight",
        "3.self_attn.q_proj.weight",
    }


@pytest.mark.usefixtures("here")
def test_adapters_follow_a_plan_that_runs_layers_on_the_cpu(
    folder: Path, adapter: Path, tmp_path: Path
) -> None:
    placed = DeviceMap(device_map((0, "cpu", 1, "disk")), {"model.layers.1": "cpu", "model.layers.3": 1})
    where = ("virtual:0", "cpu", "virtual:1", "virtual:1")

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, device_map=placed, offload_folder=tmp_path / "o")

    own_adapter = loaded()
    own_adapter.load_adapter(str(adapter))
    fresh = peft.get_peft_model(loaded(), peft.LoraConfig(**LORA))
    again = peft.PeftModel.from_pretrained(loaded(), adapter, device_map=placed, is_trainable=True)
    for model in (own_adapter, fresh, again):
        for name, parameter in adapters(model).items():
            assert parameter.device == torch.device(where[int(name.split(".layers.")[1][0])]), name
    want = answer(peft.PeftModel.from_pretrained(plain(folder), adapter))
    for model in (own_adapter, again):  # the CPU's kernels round in another way
        assert torch.allclose(answer(model.eval()), want, atol=1e-5)


@pytest.mark.usefixtures("here")
def test_a_plan_of_the_base_is_one_of_the_model_with_adapters(
    folder: Path, adapter: Path, tmp_path: Path
) -> None:
    want = peft.PeftModel.from_pretrained(plain(folder), adapter)
    size = sum(parameter.nbytes for parameter in plain(folder).parameters())
    plan = planner.plan(folder, max_memory={0: size // 2, 1: size // 5, "cpu": "1GiB"})
    for asked in (plan, dict(plan.device_map)):
        base = spread(folder, "mixed", tmp_path / "o")
        model = peft.PeftModel.from_pretrained(base, adapter, device_map=asked)
        assert model.hf_device_map == dict(plan.device_map)
        assert answer(model).equal(answer(want))


@pytest.mark.sweep
@pytest.mark.usefixtures("here")
def test_adapters_are_loaded_without_memory_of_their_own(folder: Path, adapter: Path, tmp_path: Path) -> None:
    want = answer(peft.PeftModel.from_pretrained(plain(folder), adapter))
    base = spread(folder, "mixed", tmp_path / "o")
    assert answer(peft.PeftModel.from_pretrained(base, adapter, low_cpu_mem_usage=True)).equal(want)
    model = peft.get_peft_model(spread(folder, "mixed", tmp_path / "o"), peft.LoraConfig(**LORA))
    model.load_adapter(adapter, "other", low_cpu_mem_usage=True)
    model.set_adapter("other")
    requires_adapters_beside(model, "mixed")
    assert answer(model).equal(want)


@pytest.mark.usefixtures("here")
def test_what_a_weight_has_become_is_read_at_its_hook(folder: Path, tmp_path: Path) -> None:
    """transformers saves from there what was merged without a new `weights_map`: experts with two adapters are."""
    model = spread(folder, "mixed", tmp_path / "o")
    layer = model.model.layers[3].mlp.up_proj
    with planner.align_module_device(layer), torch.no_grad():
        layer.weight.mul_(2)
    want = plain(folder).model.layers[3].mlp.up_proj.weight.cpu() * 2
    assert layer._hf_hook.weights_map["weight"].equal(want)
    other = copy.deepcopy(model).model.layers[3].mlp.up_proj
    with planner.align_module_device(other), torch.no_grad():
        other.weight.mul_(2)
    assert other._hf_hook.weights_map["weight"].equal(want * 2)
    assert layer._hf_hook.weights_map["weight"].equal(want)
