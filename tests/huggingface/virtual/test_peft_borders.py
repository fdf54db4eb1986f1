"""PEFT inside of `integrate()` on models that were loaded outside, and the other way round: right, or refused with the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import planner
from peft_models import (
    LORA,
    MAPS,
    RUNS,
    answer,
    device_map,
    few,
    own,
    plain,
    require_equal,
    requires_adapters_beside,
    spread,
    trained,
)
from planner.plans.device_map import DeviceMap

pytestmark = pytest.mark.usefixtures("current_folder")

Way: TypeAlias = Callable[[Any, Path], Any]


def fresh(base: Any, adapter: Path) -> Any:
    return peft.get_peft_model(base, peft.LoraConfig(**LORA))


def loaded(base: Any, adapter: Path) -> Any:
    return peft.PeftModel.from_pretrained(base, adapter)


def loaded_by_map(base: Any, adapter: Path) -> Any:
    return peft.PeftModel.from_pretrained(base, adapter, **own("cpu"))


def by_itself(base: Any, adapter: Path) -> Any:
    base.load_adapter(str(adapter))
    return base


def fresh_by_itself(base: Any, adapter: Path) -> Any:
    base.add_adapter(peft.LoraConfig(**LORA))
    return base


def adaption(base: Any, adapter: Path) -> Any:
    torch.manual_seed(1)
    return peft.get_peft_model(
        base, peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=3)
    )


WAYS = {way.__name__: way for way in (fresh, loaded, loaded_by_map, by_itself, fresh_by_itself, adaption)}
EACH_WAY = few(WAYS, "fresh", "by_itself")


@pytest.mark.parametrize("way", EACH_WAY)
def test_a_dispatch_of_accelerates_is_taken_over(
    way: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    base = spread(folder, "cpu", tmp_path / "o")
    with planner.integrate():
        model = WAYS[way](base, adapter)
    planner.crossings(model)  # known as dispatched by ours
    assert answer(model).equal(answer(WAYS[way](plain(folder), adapter)))


@pytest.mark.parametrize("way", EACH_WAY)
@pytest.mark.parametrize("name", few(["disk", "mixed"], "mixed"))
def test_a_dispatch_of_accelerates_with_weights_on_disk_is_refused(
    name: str, way: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """All of it would have to be in memory."""
    base = spread(folder, name, tmp_path / "o")
    kinds = [type(module) for module in base.modules()]
    with planner.integrate():
        with pytest.raises(planner.OffloadError, match=r"adapters beside them would compute garbage"):
            WAYS[way](base, adapter)
        assert answer(base).equal(answer(plain(folder)))
        assert [type(module) for module in base.modules()] == kinds
        answer(WAYS[way](planner.undispatch(base).to(0), adapter))


def test_what_accelerate_has_dispatched_is_undispatched_first(folder: Path, tmp_path: Path) -> None:
    base = spread(folder, "cpu", tmp_path / "o")
    with pytest.raises(planner.PlanMismatchError, match=r"planner\.undispatch\(model\) first"):
        planner.dispatch(base, base.hf_device_map)


@pytest.mark.parametrize("way", few(["fresh", "fresh_by_itself"], "fresh"))
@pytest.mark.parametrize("name", few(MAPS, "mixed"))
def test_adapters_are_made_after_the_end(
    name: str, way: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    models = []
    with planner.integrate():
        base = spread(folder, name, tmp_path / "o")
    for each in (plain(folder), base):
        torch.manual_seed(1)
        models.append(WAYS[way](each, adapter))
    want, model = models
    requires_adapters_beside(model, name)
    require_equal(trained(model), trained(want))
    assert answer(model).equal(answer(want))


@pytest.mark.parametrize("kind", [peft.PeftModel, peft.PeftMixedModel])
@pytest.mark.parametrize("name", few(["cpu", "disk", "mixed"], "mixed"))
def test_adapters_are_not_loaded_after_the_end(
    name: str, kind: Any, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """PEFT would take off the hooks, and dispatch what it knows of anew."""
    with planner.integrate():
        base = spread(folder, name, tmp_path / "o")
    with pytest.raises(planner.OffloadError, match=r"inside planner\.integrate\(\)"):
        kind.from_pretrained(base, adapter)
    assert answer(base).equal(answer(plain(folder)))
    with planner.integrate():
        model = peft.PeftModel.from_pretrained(base, adapter)
    assert answer(model).equal(answer(loaded(plain(folder), adapter)))
    base = planner.undispatch(model.unload()).to(0)
    assert answer(kind.from_pretrained(base, adapter)).equal(answer(loaded(plain(folder), adapter)))


@pytest.mark.parametrize("made", few(["inside", "loaded"], "loaded"))
@pytest.mark.parametrize("name", few(MAPS, "mixed"))
def test_the_model_itself_loads_adapters_without_an_integration(
    name: str, made: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """To where its layers run, though its map says where they rest."""
    if made == "inside":
        with planner.integrate():
            base = spread(folder, name, tmp_path / "o")
    else:
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        resting = {
            f"model.layers.{i}": RUNS[name][i] for i, each in enumerate(MAPS[name]) if isinstance(each, str)
        }
        base = planner.load(folder, base, DeviceMap(device_map(MAPS[name]), resting)).eval()
    want = plain(folder)
    said = dict(base.hf_device_map)
    for each in (want, base):
        each.load_adapter(str(adapter))
    assert base.hf_device_map == said
    requires_adapters_beside(base, name)
    assert answer(base).equal(answer(want))
    copied = copy.deepcopy(base)
    copied.load_adapter(str(adapter), "again")
    assert answer(copied).equal(answer(want))
    assert "load_adapter" not in vars(planner.undispatch(base))


@pytest.mark.parametrize("name", few(["cpu", "disk", "mixed"], "mixed"))
def test_adapters_are_made_from_values_after_the_end(name: str, folder: Path, tmp_path: Path) -> None:
    """PEFT would leave theirs as they were in memory, beside a weight that it takes for one on meta."""
    with planner.integrate():
        base = spread(folder, name, tmp_path / "o")
    models = []
    for each in (plain(folder), base):
        torch.manual_seed(1)
        models.append(
            peft.get_peft_model(
                each, peft.DeftConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4)
            ).eval()
        )
    assert answer(models[1]).equal(answer(models[0]))
