"""A loaded model gives what `from_pretrained` of the same folder gives, bit for bit, wherever its parts lie."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import planner
from planner import Plan
from stored_models import (
    MAPS,
    STORED,
    Checkpoints,
    device_map,
    inputs_of,
    layers_of,
    reference,
    same_outputs,
    stored,
)
from tensor_files import write_file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    torch.set_num_threads(1)
    return Checkpoints(tmp_path_factory.mktemp("stored"))


def skeleton(plain: PreTrainedModel, *, include_buffers: bool) -> PreTrainedModel:
    with planner.init_empty_weights(include_buffers=include_buffers):
        return type(plain)(copy.deepcopy(plain.config)).to(plain.dtype).eval()


# Everywhere.


@pytest.mark.parametrize("layout", MAPS)
@pytest.mark.parametrize("name", STORED)
def test_answers_are_equal(name: str, layout: str, files: Checkpoints) -> None:
    model = files.loaded(name, layout)
    assert type(model) is type(files.plain(name)) and not model.training
    same_outputs(model, files.plain(name), name)


@pytest.mark.parametrize("read", ["cached", "direct"])
@pytest.mark.parametrize("name", STORED)
def test_answers_are_equal_however_files_are_read(name: str, read: str, files: Checkpoints) -> None:
    same_outputs(files.loaded(name, "all_disk", read=read), files.plain(name), name, times=4)


@pytest.mark.parametrize("convert", ["fetch", "store"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "llama"])
def test_answers_are_equal_where_files_hold_another_form(
    name: str, convert: str, files: Checkpoints, tmp_path: Path
) -> None:
    model = files.loaded(name, "half", convert=convert, offload_folder=tmp_path)
    same_outputs(model, files.plain(name), name, times=4)


@pytest.mark.parametrize("name", STORED)
def test_answers_are_equal_with_copies(name: str, files: Checkpoints) -> None:
    same_outputs(files.loaded(name, "half", copy=True), files.plain(name), name)


@pytest.mark.parametrize("kind", ["skeleton", "skeleton with empty buffers", "live"])
@pytest.mark.parametrize("layout", ["cpu", "alternating", "all_disk"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "gemma", "mixtral"])
def test_a_given_model_is_filled(name: str, layout: str, kind: str, files: Checkpoints) -> None:
    """Ties that the empty skeleton has lost are the class's; its own weights are in no answer."""
    plain = files.plain(name)
    own = (
        type(plain)(copy.deepcopy(plain.config)).eval()
        if kind == "live"
        else skeleton(plain, include_buffers="buffers" in kind)
    )
    model = planner.load(files.folder_of(name), own, MAPS[layout](plain))
    assert model is own
    same_outputs(model, plain, name)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_bfloat16_is_loaded_as_it_is_stored(name: str, tmp_path: Path) -> None:
    folder = stored(name, tmp_path / "half", dtype=torch.bfloat16)
    plain = reference(folder)
    assert plain.dtype == torch.bfloat16
    for layout in ("cpu", "alternating", "all_disk"):
        model = planner.load(folder, plan=MAPS[layout](plain))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        same_outputs(model, plain, name)


@pytest.mark.parametrize("layout", ["cpu", "alternating", "all_disk"])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_one_dtype_for_all_is_a_cast_of_each(name: str, layout: str, files: Checkpoints) -> None:
    plain = copy.deepcopy(files.plain(name)).to(torch.bfloat16)
    model = files.loaded(name, layout, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    given = inputs_of(name)
    buffers = dict(plain.named_buffers())
    for key, buffer in files.plain(name).named_buffers():  # frequencies are no weights: not cast by loading
        plain.get_submodule(key.rpartition(".")[0])._buffers[key.rpartition(".")[2]] = buffer.clone()
    assert buffers
    with torch.no_grad():
        want = plain(**given).logits
        assert all(model(**given).logits.equal(want) for _ in range(2))


def test_a_plan_is_carried_out(files: Checkpoints) -> None:
    """A plan with a disk runs from the checkpoint's own files."""
    folder, plain = files.folder_of("llama"), files.plain("llama")
    total = sum(parameter.nbytes for parameter in plain.parameters())
    plan = planner.plan(folder, max_memory={"cpu": total // 2, "disk": "1GiB"})
    assert isinstance(plan, Plan) and "disk" in plan.device_map.values()
    same_outputs(planner.load(folder, plan=plan), plain, "llama")
    by_budgets = planner.load(folder, max_memory={"cpu": total // 2, "disk": "1GiB"})
    assert "disk" in by_budgets.hf_device_map.values()
    same_outputs(by_budgets, plain, "llama")


def test_without_a_plan_and_budgets_it_is_loaded_where_it_fits(files: Checkpoints) -> None:
    same_outputs(planner.load(files.folder_of("llama")), files.plain("llama"), "llama")


def test_one_layer_on_disk_is_that_layer_alone(files: Checkpoints, tmp_path: Path) -> None:
    """Layer 1 of 12, not those whose names begin so."""
    config = copy.deepcopy(files.plain("llama").config)
    config.num_hidden_layers, config.architectures = 12, ["LlamaForCausalLM"]
    torch.manual_seed(0)
    type(files.plain("llama"))(config).save_pretrained(tmp_path)
    plain = reference(tmp_path)
    model = planner.load(tmp_path, plan={"": "cpu", "model.layers.1": "disk"})
    on_disk = {
        layer
        for layer in layers_of(plain)
        if any(parameter.is_meta for parameter in model.get_submodule(layer).parameters())
    }
    assert on_disk == {"model.layers.1"}
    same_outputs(model, plain, "llama")


# What a model is used for.


@pytest.mark.parametrize("layout", ["half", "alternating", "all_disk"])
@pytest.mark.parametrize("name", STORED)
@torch.no_grad()
def test_tokens_are_equal_also_where_generating_stops_early(
    name: str, layout: str, files: Checkpoints
) -> None:
    model, plain = files.loaded(name, layout), files.plain(name)
    given = inputs_of(name, with_picture=False)
    given.pop("decoder_input_ids", None)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "use_cache": True}
    whole = plain.generate(**given, **options)
    assert model.generate(**given, **options).equal(whole)
    for stop in whole[0, -6:-3].tolist():  # ends before its time, then starts anew
        want = plain.generate(**given, **options, eos_token_id=stop)
        assert model.generate(**given, **options, eos_token_id=stop).equal(want)
    same_outputs(model, plain, name)


def gradient(model: nn.Module, name: str) -> list[torch.Tensor]:
    """Of the embedded words."""
    caught: list[torch.Tensor] = []

    def catch(module: nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
        caught.append(output.detach().requires_grad_(True))
        return caught[-1]

    found = [module for key, module in model.named_modules() if key.endswith(("embed_tokens", "wte"))]
    handles = [module.register_forward_hook(catch) for module in found]
    model(**inputs_of(name)).logits.square().mean().backward()
    for handle in handles:
        handle.remove()
    assert caught and all(leaf.grad is not None for leaf in caught)
    return [leaf.grad for leaf in caught if leaf.grad is not None]


@pytest.mark.parametrize("read", ["auto", "direct"])
@pytest.mark.parametrize("layout", ["cpu", "alternating", "all_disk"])
@pytest.mark.parametrize("name", STORED)
def test_gradients_are_equal(name: str, layout: str, read: str, files: Checkpoints) -> None:
    """Refilling a buffer moves no version counter: what backward needs must not be in one."""
    if layout == "cpu" and read == "direct":
        pytest.skip("nothing is read later")
    want = gradient(copy.deepcopy(files.plain(name)).requires_grad_(False), name)
    model = files.loaded(name, layout, read=read).requires_grad_(False)
    for number in range(3):
        found = gradient(model, name)
        assert all(a.equal(b) for a, b in zip(found, want, strict=True)), f"backward {number}"


@pytest.mark.parametrize("read", ["auto", "direct"])
def test_gradients_of_resident_weights_are_equal(read: str, files: Checkpoints) -> None:
    plain, model = copy.deepcopy(files.plain("llama")), files.loaded("llama", "alternating", read=read)
    for each in (plain, model):
        each.model.layers.requires_grad_(
            False
        )  # what is offloaded has to be frozen; backward goes through it
        each(**inputs_of("llama")).logits.square().mean().backward()
    found = dict(model.named_parameters())
    resident = {key: p for key, p in plain.named_parameters() if p.grad is not None}
    assert len(resident) == 3
    for key, parameter in resident.items():
        assert found[key].grad.equal(parameter.grad), key


def test_a_resident_weight_can_be_changed_and_the_file_stays(files: Checkpoints) -> None:
    folder = files.folder_of("llama")
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    model = files.loaded("llama", "alternating")
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight.mul_(2)
    twin = copy.deepcopy(files.plain("llama"))
    with torch.no_grad():
        twin.model.layers[0].mlp.gate_proj.weight.mul_(2)
    same_outputs(model, twin, "llama")
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


# Files that other programs write.


class Odd(nn.Module):
    """Tensors of many types, a scalar and one of no elements."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 3), nn.Linear(3, 5)
        self.shift = nn.Parameter(torch.zeros(3, dtype=torch.float16))
        self.scale = nn.Parameter(torch.zeros(()))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mask", torch.zeros(3, dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        middle = self.first(x) * self.scale + self.shift.float() + self.count
        return self.second(torch.where(self.mask, middle, -middle)) + self.empty.sum()


def odd_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state = {
        key: torch.randn(tensor.shape).to(tensor.dtype)
        for key, tensor in Odd().state_dict().items()
        if tensor.is_floating_point()
    }
    return state | {"count": torch.tensor(3), "mask": torch.tensor([True, False, True])}


@pytest.mark.parametrize("order", ["small first", "large first"])
@pytest.mark.parametrize("gap", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("read", ["auto", "direct"])
def test_tensors_at_any_offset(gap: int, order: str, read: str, tmp_path: Path) -> None:
    """Also at offsets that are no multiple of their element, which torch cannot view."""
    state = odd_state()
    names = sorted(state, key=lambda name: state[name].nbytes, reverse=order == "large first")
    file = write_file(tmp_path / "model.safetensors", {name: state[name] for name in names}, gap=gap)
    plain = Odd().eval()
    plain.load_state_dict(state)
    x = torch.linspace(-1, 1, 10).reshape(2, 5)
    for placed in ({"": "cpu"}, {"": "disk"}, {"": "cpu", "second": "disk"}):
        with planner.init_empty_weights(include_buffers=True):
            model = Odd().eval()
        planner.load(file, model, placed, read=read)
        with torch.no_grad():
            assert all(model(x).equal(plain(x)) for _ in range(3)), placed
        found = planner.state_dict(model)
        assert all(found[key].equal(value) for key, value in state.items()), placed


@pytest.mark.sweep
@pytest.mark.parametrize("name", STORED)
def test_answers_are_equal_with_any_layer_on_disk(name: str, files: Checkpoints) -> None:
    plain = files.plain(name)
    count = len(layers_of(plain))
    for bits in range(1, 1 << min(count, 6)):
        placed = device_map(plain, lambda number, bits=bits: ("cpu", "disk")[bits >> number & 1], "cpu")
        for read in ("auto", "direct"):
            model = planner.load(files.folder_of(name), plan=placed, read=read)
            same_outputs(model, plain, name)
