"""Our dispatch in the place of accelerate's: what lies in files stays there, also when others take the hooks off and dispatch again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate.hooks
import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import planner
from planner.compat.huggingface.placed import place
from planner.dispatching.offload.weight_files import OffloadedWeightsLoader
from planner.dispatching.tensors.placeholder import is_offloaded
from planner.loading.weights import FileWeights
from planner.plans.device_map import DeviceMap
from rig import Accelerators
from stored_models import inputs_of, reference, stored
from tiny_models import mapped

IDS = torch.arange(3, 13)[None]
LAYERS: dict[str, tuple[int | str, ...]] = {
    "two": (0, 0, 1, 1),
    "cpu": (0, "cpu", 0, "cpu"),
    "disk": (0, "disk", 0, "disk"),
    "mixed": (0, "cpu", 1, "disk"),
}


@pytest.fixture(autouse=True)
def here() -> Iterator[planner.Integration]:
    with planner.integrate() as here:
        yield here


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def expected(folder: Path, registered_accelerators: Accelerators) -> torch.Tensor:
    return answer(reference(folder).to(0))


@torch.no_grad()
def answer(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(IDS.to(0)).logits.cpu()
    return logits


def loaded(folder: Path, layers: tuple[int | str, ...], **settings: Any) -> Any:
    return LlamaForCausalLM.from_pretrained(folder, device_map=mapped("llama", layers), **settings)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each weight is asked for."""
    found: Counter[str] = Counter()
    for kind in (FileWeights, OffloadedWeightsLoader):
        usual = kind.__getitem__

        def counted(self: Any, name: str, usual: Any = usual) -> Any:
            found[name] += 1
            return usual(self, name)

        monkeypatch.setattr(kind, "__getitem__", counted)
    yield found


@pytest.mark.parametrize("where", LAYERS)
def test_a_model_that_is_loaded_is_dispatched_by_us_and_reads_nothing_for_it(
    where: str, folder: Path, expected: torch.Tensor, reads: Counter[str]
) -> None:
    model = loaded(folder, LAYERS[where])
    assert isinstance(model._hf_hook, planner.AlignDevicesHook)
    assert not reads
    assert answer(model).equal(expected)
    assert model._hf_hook.prefetcher is not None or "disk" not in LAYERS[where]


def test_offloaded_blocks_run_where_the_plan_says(folder: Path, expected: torch.Tensor) -> None:
    device_map = DeviceMap(
        mapped("llama", (0, 0, "cpu", "disk")), {"model.layers.2": "cpu", "model.layers.3": 1}
    )  # type: ignore[arg-type]
    model = LlamaForCausalLM.from_pretrained(folder, device_map=device_map)
    ran: dict[str, Any] = {}
    for name in ("2", "3"):
        layer = model.get_submodule(f"model.layers.{name}.mlp.act_fn")
        layer.register_forward_pre_hook(lambda _, args, name=name: ran.update({name: args[0].device}))
    assert torch.allclose(answer(model), expected, atol=1e-5)
    assert ran == {"2": torch.device("cpu"), "3": torch.device("virtual:1")}


class Around(nn.Module):
    """What a library puts around a model of another one, such as PEFT."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("where", LAYERS)
def test_a_model_whose_hooks_were_taken_off_is_dispatched_again_without_a_folder(
    where: str, folder: Path, expected: torch.Tensor, reads: Counter[str], here: planner.Integration
) -> None:
    model = loaded(folder, LAYERS[where])
    if "disk" in LAYERS[where]:
        rows = model.model.layers[3].mlp.up_proj._hf_hook.weights_map.dataset.index
        assert rows["model.layers.3.mlp.up_proj.weight"]["safetensors_file"].endswith(".safetensors")
    accelerate.hooks.remove_hook_from_submodules(model)
    weight = model.model.layers[3].mlp.up_proj.weight
    assert is_offloaded(weight) is (LAYERS[where][3] == "disk")
    outer = Around(model)
    device_map = {f"inner.{name}": device for name, device in mapped("llama", LAYERS[where]).items()}
    place(here, accelerate.dispatch_model, outer, device_map=device_map)
    assert not reads
    assert answer(outer).equal(expected)
    if "disk" in LAYERS[where]:
        rows = model.model.layers[3].mlp.up_proj._hf_hook.weights_map.dataset.index
        assert "inner.model.layers.3.mlp.up_proj.weight" in rows
        assert model.model.layers[3].mlp.up_proj._hf_hook.prefetcher is None
        assert outer._hf_hook.prefetcher is not None
    assert model.hf_device_map == mapped("llama", LAYERS[where])


def test_weights_on_disk_have_their_values_when_their_hooks_are_gone(
    folder: Path, expected: torch.Tensor
) -> None:
    plain = reference(folder)
    model = loaded(folder, LAYERS["mixed"])
    accelerate.hooks.remove_hook_from_submodules(model)
    found, want = planner.state_dict(model), plain.state_dict()
    assert found.keys() == want.keys() and all(found[name].equal(want[name]) for name in want)
    planner.dispatch(model, mapped("llama", (0, 1, 0, 1)))
    weight = model.model.layers[3].mlp.up_proj.weight
    assert isinstance(weight, nn.Parameter) and weight.requires_grad and weight.device.index == 1
    assert answer(model).equal(expected)


@pytest.mark.parametrize("where", LAYERS)
def test_undispatching_brings_everything_to_the_cpu(where: str, folder: Path) -> None:
    plain = reference(folder)
    model = planner.undispatch(loaded(folder, LAYERS[where]))
    assert not hasattr(model, "hf_device_map")
    named = dict(model.named_parameters())
    assert all(each.device.type == "cpu" and type(each) is nn.Parameter for each in named.values())
    assert all(each.requires_grad and each.equal(named[name]) for name, each in plain.named_parameters())
    with torch.no_grad():
        assert model(**inputs_of("llama")).logits.equal(plain(**inputs_of("llama")).logits)


def test_what_no_row_names_stays_in_memory(folder: Path, here: planner.Integration) -> None:
    """A tensor of a part on disk that no row names, as one that was not in the checkpoint, stays in memory."""
    model = loaded(folder, LAYERS["disk"])
    accelerate.hooks.remove_hook_from_submodules(model)
    with torch.no_grad():
        added = nn.Parameter(torch.full((32,), 2.0))
    model.model.layers[3].input_layernorm.weight = added
    plain: Any = reference(folder)
    plain.model.layers[3].input_layernorm.weight = nn.Parameter(added.detach().clone())
    place(
        here,
        accelerate.dispatch_model,
        model,
        mapped("llama", LAYERS["disk"]),
        offload_index={"other": {}},
    )
    assert answer(model).equal(answer(plain.to(0)))


@pytest.mark.parametrize(("first", "then"), [("mixed", "disk"), ("disk", "mixed"), ("disk", "disk")])
def test_what_lies_in_files_stays_there_under_another_plan(
    first: str, then: str, folder: Path, expected: torch.Tensor, reads: Counter[str]
) -> None:
    model = loaded(folder, LAYERS[first])
    if (first, then) == ("mixed", "disk"):
        with pytest.raises(planner.PlanMismatchError, match=r"'model\.layers\.1'"):
            planner.dispatch(model, mapped("llama", LAYERS[then]))
        assert answer(model).equal(expected)
        return
    planner.dispatch(model, mapped("llama", LAYERS[then]))
    in_files = {name for name in reads if ".layers.3." in name}
    assert not in_files and answer(model).equal(expected)
    assert model._hf_hook.prefetcher is not None
    planner.undispatch(model)
    assert {tensor.device.type for tensor in model.parameters()} == {"cpu"}


def test_modules_that_were_swapped_get_borders_by_the_same_plan(folder: Path, expected: torch.Tensor) -> None:
    """Quantising tools put modules of their own in the place of others."""
    pins = {"model.layers.1": "disk", "model.layers.2": 1, "model.layers.3": 1}
    plan = planner.plan(folder, max_memory={0: "1MiB", 1: "1MiB", "disk": "1GiB"}, pin=pins)
    model = LlamaForCausalLM.from_pretrained(folder, device_map=plan)
    found = planner.plan_of(model)
    assert found is plan
    plain: Any = reference(folder)
    model.model.layers[2] = plain.model.layers[2]
    planner.dispatch(model, found)
    assert model.model.layers[2].mlp.up_proj.weight.device.index == 1
    assert model.model.layers[2]._hf_hook.execution_device.index == 1
    assert answer(model).equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_written_into_a_weight_on_disk_is_there_under_the_next_plan(
    dtype: torch.dtype, folder: Path
) -> None:
    """Also where files hold another dtype, and so give the old values anew."""
    plain: Any = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    model = loaded(folder, LAYERS["disk"], dtype=dtype)
    with torch.no_grad():
        plain.model.layers[3].mlp.up_proj.weight.mul_(2)
        with planner.align_module_device(model.model.layers[3].mlp.up_proj):
            model.model.layers[3].mlp.up_proj.weight.mul_(2)
    wanted = answer(plain.to(0))
    assert answer(model).equal(wanted)
    planner.dispatch(model, mapped("llama", (0, 1, 0, "disk")))
    assert answer(model).equal(wanted)
    accelerate.hooks.remove_hook_from_submodules(model)
    planner.dispatch(model, mapped("llama", (0, 1, "cpu", "disk")))
    assert answer(model).equal(wanted)
    assert answer(planner.undispatch(model).to(0)).equal(wanted)


@pytest.mark.parametrize("device", ["cpu", "disk"])
def test_the_device_of_a_model_whose_first_weight_is_offloaded_is_where_that_runs(
    device: str, folder: Path, expected: torch.Tensor
) -> None:
    device_map = {**mapped("llama", (0, 0, 1, 1)), "model.embed_tokens": device}
    model = LlamaForCausalLM.from_pretrained(folder, device_map=device_map)
    assert model.device == torch.device("virtual:0")
    with torch.no_grad():
        assert model(IDS.to(model.device)).logits.cpu().equal(expected)
