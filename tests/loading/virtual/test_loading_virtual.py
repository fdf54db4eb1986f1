"""Loaded over two virtual accelerators, the CPU and the checkpoint's files: equal to one accelerator's answer, bit for bit."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import planner
from rig import Accelerators
from stored_models import STORED, device_map, inputs_of, layers_of, reference, stored

# Mixtral's and Qwen3's default way of computing experts needs an operator that the rig lacks.
EAGER = ("mixtral", "qwen3_moe")
LAYOUTS: dict[str, tuple[Any, Any]] = {
    "two_devices": (lambda number: (0, 1, 1, 0)[number % 4], 0),
    "disk_between": (lambda number: (0, "disk", 1, "disk")[number % 4], 0),
    "cpu_and_disk": (lambda number: (0, "cpu", "disk", 1)[number % 4], 0),
    "layers_on_disk": (lambda number: "disk", 0),
    "surroundings_on_disk": (lambda number: (0, 1)[number % 2], "disk"),
}


class Files:
    """Checkpoints and their models on device 0, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: dict[str, PreTrainedModel] = {}

    def folder_of(self, name: str) -> Path:
        folder = self.folder / name
        return folder if folder.exists() else stored(name, folder)

    def plain(self, name: str) -> PreTrainedModel:
        if name not in self.models:
            self.models[name] = ready(name, reference(self.folder_of(name)))
        return self.models[name]

    def loaded(self, name: str, layout: str, **settings: Any) -> Any:
        placed = device_map(self.plain(name), *LAYOUTS[layout])
        return ready(name, planner.load(self.folder_of(name), plan=placed, **settings))


def ready(name: str, model: Any) -> Any:
    if name in EAGER:
        model.set_experts_implementation("eager")
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("stored"))


@torch.no_grad()
def outputs_of(plain: Any, name: str) -> torch.Tensor:
    """The undispatched model's, on device 0; it goes back to the CPU."""
    plain.to(0)
    logits: torch.Tensor = plain(**on(0, inputs_of(name))).logits.cpu()
    plain.to("cpu")
    return logits


def on(device: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor.to(device) for key, tensor in given.items()}


@pytest.mark.parametrize("read", ["auto", "direct"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", STORED)
@torch.no_grad()
def test_answers_are_equal(name: str, layout: str, read: str, files: Files) -> None:
    want = outputs_of(files.plain(name), name)
    model = files.loaded(name, layout, read=read)
    for number in range(3):
        assert model(**on(0, inputs_of(name))).logits.cpu().equal(want), f"forward {number}"


@pytest.mark.parametrize("name", STORED)
@torch.no_grad()
def test_tokens_are_equal_also_where_generating_stops_early(name: str, files: Files) -> None:
    plain, model = files.plain(name), files.loaded(name, "disk_between")
    given = on(0, inputs_of(name, with_picture=False))
    given.pop("decoder_input_ids", None)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "use_cache": True}
    plain.to(0)
    whole = plain.generate(**given, **options)
    stop = whole[0, -4].item()
    early = plain.generate(**given, **options, eos_token_id=stop)
    plain.to("cpu")
    assert model.generate(**given, **options).equal(whole)
    assert model.generate(**given, **options, eos_token_id=stop).equal(early)
    assert model.generate(**given, **options).equal(whole)


@torch.no_grad()
def test_what_is_staged_is_never_refilled_too_early(
    files: Files, virtual_accelerators: Accelerators, watched_streams: None
) -> None:
    """Pinned memory and slots of the ring, with all layers on disk: the rig notices what is not ordered."""
    want = outputs_of(files.plain("llama"), "llama")
    layer_bytes = sum(p.nbytes for p in files.plain("llama").model.layers[0].parameters())
    for blocks in (1, 2, 3):
        model = files.loaded(
            "llama", "layers_on_disk", read="direct", staging_bytes={0: blocks * layer_bytes}
        )
        assert all(model(**on(0, inputs_of("llama"))).logits.cpu().equal(want) for _ in range(4))


@torch.no_grad()
def test_each_weight_crosses_once_a_forward_and_none_stays(
    files: Files, virtual_accelerators: Accelerators
) -> None:
    plain = files.plain("llama")
    layers = sum(p.nbytes for layer in plain.model.layers for p in layer.parameters())
    model = files.loaded("llama", "layers_on_disk")
    given = on(0, inputs_of("llama"))
    model(**given, use_cache=False)
    gc.collect()
    used_bytes = virtual_accelerators.used_bytes(0)
    virtual_accelerators.reset()
    model(**given, use_cache=False)
    assert layers <= virtual_accelerators.traffic().to_device_bytes < layers + 4096
    assert virtual_accelerators.used_bytes(0) == used_bytes


def test_loading_brings_each_weight_to_its_device_once(
    files: Files, virtual_accelerators: Accelerators
) -> None:
    plain = files.plain("llama")
    total = sum(p.nbytes for p in plain.parameters())
    virtual_accelerators.reset()
    model = files.loaded("llama", "two_devices")
    assert total <= virtual_accelerators.traffic().to_device_bytes < total + 4096
    assert {p.device.type for p in model.parameters()} == {"virtual"}


def test_one_accelerator_gets_nothing_attached(files: Files) -> None:
    model = planner.load(files.folder_of("llama"), plan={"": 0})
    assert not any("forward" in vars(module) for module in model.modules())
    assert {p.device for p in model.parameters()} == {torch.device(0)}
    with torch.no_grad():
        want = outputs_of(files.plain("llama"), "llama")
        assert model(**on(0, inputs_of("llama"))).logits.cpu().equal(want)


def test_a_device_that_is_too_small_leaves_everything_as_it_was(
    files: Files, virtual_accelerators: Accelerators
) -> None:
    plain = files.plain("llama")
    with planner.init_empty_weights():
        model: Any = type(plain)(plain.config)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    total = sum(p.nbytes for p in plain.parameters())
    used = [virtual_accelerators.used_bytes(index) for index in (0, 1)]
    with virtual_accelerators.memory_limit_bytes(1, total // 10), pytest.raises(Exception, match="memory"):
        planner.load(files.folder_of("llama"), model, device_map(plain, lambda number: number % 2, 0))
    gc.collect()
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert not any("forward" in vars(module) for module in model.modules())
    assert [virtual_accelerators.used_bytes(index) for index in (0, 1)] == used


@pytest.mark.parametrize("layout", ["disk_between", "layers_on_disk"])
@pytest.mark.parametrize("name", ["llama", "t5", "mixtral"])
def test_gradients_of_inputs_are_equal(name: str, layout: str, files: Files) -> None:
    gradients = []
    for is_loaded in (False, True):
        model: Any = (
            files.loaded(name, layout) if is_loaded else ready(name, reference(files.folder_of(name)))
        )
        if not is_loaded:
            model.to(0)
        model.requires_grad_(False)
        caught: list[torch.Tensor] = []

        def catch(module: Any, given: Any, output: torch.Tensor, caught: list[Any] = caught) -> Any:
            caught.append(output.detach().requires_grad_(True))
            return caught[-1]

        for key, module in model.named_modules():
            if key.endswith(("embed_tokens", "wte")):
                module.register_forward_hook(catch)
        model(**on(0, inputs_of(name))).logits.square().mean().backward()
        gradients.append([leaf.grad.cpu() for leaf in caught])
    assert gradients[0]
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(
            found, expected, rtol=1e-5 if name == "t5" else 0, atol=1e-8 if name == "t5" else 0
        )


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "undispatch": planner.undispatch,
}


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_what_is_made_of_it_gives_the_same(way: str, files: Files) -> None:
    want = outputs_of(files.plain("llama"), "llama")
    made = WAYS[way](files.loaded("llama", "cpu_and_disk"))
    device = next(made.parameters()).device
    given = on(device, inputs_of("llama"))
    found = made(**given).logits.cpu()
    if way == "undispatch" and device.type == "cpu":
        plain = files.plain("llama")
        want = plain(**inputs_of("llama")).logits
    assert found.equal(want)


@pytest.mark.sweep
@pytest.mark.parametrize("name", STORED)
@torch.no_grad()
def test_answers_are_equal_with_layers_anywhere(name: str, files: Files) -> None:
    places = (0, 1, "cpu", "disk")
    want = outputs_of(files.plain(name), name)
    count = len(layers_of(files.plain(name)))
    for seed in range(24):
        spread = [places[(seed * 7 + number * (seed + 1)) % 4] for number in range(count)]
        placed = device_map(files.plain(name), spread.__getitem__, places[seed % 2])
        model = ready(name, planner.load(files.folder_of(name), plan=placed))
        assert all(model(**on(0, inputs_of(name))).logits.cpu().equal(want) for _ in range(2)), placed
