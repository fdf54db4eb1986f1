"""Adapters that are made or loaded beside a dispatched base: every answer, and every adapter, is that of the undispatched model."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

from peft_models import (
    EACH_MAP,
    LORA,
    SWEPT_MAPS,
    Own,
    answer,
    auto,
    own,
    plain,
    reloaded,
    require_equal,
    requires_adapters_beside,
    spread,
    tokens,
    trained,
)
from planner.dispatching.tensors.placeholder import is_offloaded

pytestmark = pytest.mark.usefixtures("current_folder")

# ---- PeftModel.from_pretrained


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("asked", [auto, own])
@pytest.mark.parametrize("name", EACH_MAP)
def test_an_adapter_is_loaded(name: str, asked: Own, folder: Path, adapter: Path, tmp_path: Path) -> None:
    want = peft.PeftModel.from_pretrained(plain(folder), adapter)
    base = spread(folder, name, tmp_path / "o")
    model = peft.PeftModel.from_pretrained(base, adapter, offload_folder=tmp_path / "o2", **asked(name))
    assert answer(model).equal(answer(want)) and tokens(model).equal(tokens(want))
    merged, want = model.merge_and_unload(), want.merge_and_unload()
    assert answer(merged).equal(answer(want))
    require_equal(reloaded(merged, tmp_path / "s"), reloaded(want, tmp_path / "s2"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", EACH_MAP)
def test_what_was_trained_once_is_trained_further(
    name: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """`is_trainable` with a map of one's own: adapters of offloaded layers lie where they run."""
    want = peft.PeftModel.from_pretrained(plain(folder), adapter, is_trainable=True)
    base = spread(folder, name, tmp_path / "o")
    model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True, **own(name))
    requires_adapters_beside(model, name)
    require_equal(trained(model), trained(want))
    assert is_offloaded(next(base.model.layers[1].mlp.up_proj.parameters())) is (name != "two")


# ---- get_peft_model


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", EACH_MAP)
def test_a_fresh_adapter_is_made_where_its_layer_runs(
    name: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    want = answer(plain(folder))
    model = peft.get_peft_model(spread(folder, name, tmp_path / "o"), peft.LoraConfig(**LORA))
    requires_adapters_beside(model, name)
    assert answer(model).equal(want)
    loaded = peft.PeftModel.from_pretrained(plain(folder), adapter)
    model.load_adapter(adapter, "other")
    model.set_adapter("other")
    requires_adapters_beside(model, name)
    assert answer(model).equal(answer(loaded)) and tokens(model).equal(tokens(loaded))
    with model.disable_adapter():
        assert answer(model).equal(want)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", SWEPT_MAPS)
def test_an_adapter_is_loaded_over_a_fresh_one(
    name: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """PEFT dispatches a model with its first adapter anew."""
    loaded = peft.PeftModel.from_pretrained(plain(folder), adapter)
    model = peft.get_peft_model(spread(folder, name, tmp_path / "o"), peft.LoraConfig(**LORA))
    model.load_adapter(adapter, "default")
    assert answer(model).equal(answer(loaded)) and tokens(model).equal(tokens(loaded))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", EACH_MAP)
def test_adapters_are_trained(name: str, folder: Path, tmp_path: Path) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for base in (plain(folder), spread(folder, name, tmp_path / "o")):
        torch.manual_seed(1)
        model = peft.get_peft_model(base, peft.LoraConfig(**LORA, init_lora_weights="gaussian"))
        found.append(trained(model))
    assert len(found[0]) == 16
    require_equal(found[1], found[0])


# ---- transformers' own methods


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", EACH_MAP)
def test_a_model_loads_an_adapter_itself(name: str, folder: Path, adapter: Path, tmp_path: Path) -> None:
    want, model = plain(folder), spread(folder, name, tmp_path / "o")
    before = dict(model.hf_device_map)
    for each in (want, model):
        each.load_adapter(str(adapter))
    requires_adapters_beside(model, name)
    assert model.hf_device_map == before
    assert answer(model).equal(answer(want)) and tokens(model).equal(tokens(want))
    for each in (want, model):
        each.load_adapter(str(adapter), "second")
        each.set_adapter("second")
    requires_adapters_beside(model, name)
    assert answer(model).equal(answer(want))
    for each in (want, model):
        each.delete_adapter(["default", "second"])
    assert answer(model).equal(answer(plain(folder)))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", SWEPT_MAPS)
def test_a_model_gets_a_fresh_adapter_itself(name: str, folder: Path, tmp_path: Path) -> None:
    found = []
    for model in (plain(folder), spread(folder, name, tmp_path / "o")):
        torch.manual_seed(1)
        model.add_adapter(peft.LoraConfig(**LORA))
        found.append(trained(model))
    requires_adapters_beside(model, name)
    require_equal(found[1], found[0])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", SWEPT_MAPS)
def test_an_adapter_is_loaded_with_its_base(name: str, folder: Path, adapter: Path, tmp_path: Path) -> None:
    """A folder of an adapter names its base."""
    want = peft.PeftModel.from_pretrained(plain(folder), adapter)
    model = spread(adapter, name, tmp_path / "o")
    requires_adapters_beside(model, name)
    assert answer(model).equal(answer(want)) and tokens(model).equal(tokens(want))
