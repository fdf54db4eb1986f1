"""Every argument of every function is taken, or refused with a typed error that changes nothing."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner.compat import transformers as ours_for_transformers
from planner.errors import InvalidDevicesError, InvalidInputError, OffloadError, PlannerError
from planner.spelling import shown


def model() -> nn.Module:
    return nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(2)))


def weights() -> dict[str, torch.Tensor]:
    return dict(model().state_dict())


def offloaded() -> nn.Module:
    return planner.cpu_offload(model(), "cpu")


def folder() -> str:
    """A new one, with the weights of a model in it."""
    made = tempfile.mkdtemp(dir=FOLDERS[0])
    planner.offload_state_dict(made, weights())
    return made


FOLDERS: list[str] = []


@pytest.fixture(autouse=True)
def folders(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    FOLDERS[:] = [str(tmp_path)]
    monkeypatch.chdir(tmp_path)  # words are folders, too


def entered(manager: Any) -> None:
    with manager:
        nn.Linear(2, 2)


class Nothing:
    def __repr__(self) -> str:
        return "Nothing()"


GARBAGE: list[Any] = [
    "zzz", None, [1], 5, 1.5, {"a": 1}, {5: 0}, torch.ones(2), torch.tensor(1), Nothing(), "a\0b", "\ud800", b"x", nn.Linear, "", (),
    [None], {"": None}, [["a"], 5], -1, 10**30,
]  # fmt: skip

Doors = dict[str, Callable[[Any], object]]
SIZES = {"": 128, "0": 64, "0.weight": 64, "1": 64, "1.weight": 64}
ROW = {"dtype": "float32", "shape": [4, 4]}


def parts() -> list[tuple[str, nn.Module]]:
    return list(model().named_children())


HOOKS: Doors = {
    "add_hook_to_module": lambda it: planner.add_hook_to_module(model(), it),
    "add_hook_to_module, append": lambda it: planner.add_hook_to_module(offloaded(), it, append=True),
    "AlignDevicesHook, weights_map": lambda it: planner.AlignDevicesHook("cpu", True, weights_map=it),
    "AlignDevicesHook, tied_params_map": lambda it: planner.AlignDevicesHook("cpu", tied_params_map=it),
    "LayerwiseCastingHook": lambda it: planner.LayerwiseCastingHook(it, torch.float32, False),
    "attach_execution_device_hook, preload": lambda it: planner.attach_execution_device_hook(
        model(), "cpu", preload_module_classes=it
    ),
    "attach_execution_device_hook, tied": lambda it: planner.attach_execution_device_hook(
        model(), "cpu", tied_params_map=it
    ),
    "casting, dtype": lambda it: planner.attach_layerwise_casting_hooks(model(), it, torch.float32),
    "casting, pattern": lambda it: planner.attach_layerwise_casting_hooks(
        model(), torch.float16, torch.float32, it
    ),
    "casting, classes": lambda it: planner.attach_layerwise_casting_hooks(
        model(), torch.float16, torch.float32, None, it
    ),
}
for _name in ("weights_map", "module_name", "preload_module_classes", "tied_params_map", "skip_keys"):
    for _offload in (True, False, {"0": True, "1": False}):
        for _attach in (planner.attach_align_device_hook, planner.attach_align_device_hook_on_blocks):
            if isinstance(_offload, dict) and _attach is planner.attach_align_device_hook:
                continue

            def _call(it: Any, name: str = _name, offload: Any = _offload, attach: Any = _attach) -> None:
                attach(model(), "cpu", offload, **{"weights_map": weights(), name: it})

            HOOKS[f"{_attach.__name__}, offload={_offload}, {_name}"] = _call

FILES: Doors = {
    "disk_offload": lambda it: planner.disk_offload(model(), it, "cpu"),
    "dispatch_model": lambda it: planner.dispatch_model(
        model(), {"0": "cpu", "1": "disk"}, "cpu", offload_dir=it
    ),
    "dispatch_model, index": lambda it: planner.dispatch_model(
        model(), {"0": "cpu", "1": "disk"}, "cpu", offload_dir=folder(), offload_index=it
    ),
    "loader": lambda it: planner.OffloadedWeightsLoader(save_folder=it),
    "PrefixedDataset": lambda it: planner.PrefixedDataset(it, ""),
    "offload_weight": lambda it: planner.offload_weight(it, "w", folder()),
    "offload_weight, name": lambda it: planner.offload_weight(torch.ones(1), it, folder()),
    "offload_weight, folder": lambda it: planner.offload_weight(torch.ones(1), "w", it),
    "offload_weight, index": lambda it: planner.offload_weight(torch.ones(1), "w", folder(), it),
    "offload_state_dict": lambda it: planner.offload_state_dict(folder(), it),
    "offload_state_dict, folder": lambda it: planner.offload_state_dict(it, weights()),
    "save_offload_index": lambda it: planner.save_offload_index(it, folder()),
    "save_offload_index, folder": lambda it: planner.save_offload_index({"a": {}}, it),
    "load_offloaded_weight": lambda it: planner.load_offloaded_weight(it, ROW),
    "load_offloaded_weight, row": lambda it: planner.load_offloaded_weight(f"{folder()}/0.weight.dat", it),
    "load_offloaded_weight, dtype": lambda it: planner.load_offloaded_weight(
        f"{folder()}/0.weight.dat", {**ROW, "dtype": it}
    ),
    "load_offloaded_weight, shape": lambda it: planner.load_offloaded_weight(
        f"{folder()}/0.weight.dat", {**ROW, "shape": it}
    ),
    "load_offloaded_weights": lambda it: planner.load_offloaded_weights(model(), it, folder()),
    "load_offloaded_weights, folder": lambda it: planner.load_offloaded_weights(
        model(), {"0.weight": ROW}, it
    ),
    "extract_submodules_state_dict": lambda it: planner.extract_submodules_state_dict(it, ["0"]),
    "extract_submodules_state_dict, names": lambda it: planner.extract_submodules_state_dict(weights(), it),
}

LISTS: Doors = {
    "get_max_layer_size": lambda it: planner.get_max_layer_size(it, SIZES, []),
    "get_max_layer_size, sizes": lambda it: planner.get_max_layer_size(parts(), it, []),
    "get_max_layer_size, size": lambda it: planner.get_max_layer_size(parts(), {**SIZES, "0": it}, []),
    "get_max_layer_size, classes": lambda it: planner.get_max_layer_size(parts(), SIZES, it),
    "get_module_size_with_ties": lambda it: planner.get_module_size_with_ties(it, 64, SIZES, parts()),
    "get_module_size_with_ties, size": lambda it: planner.get_module_size_with_ties(
        ["1.weight"], it, SIZES, parts()
    ),
    "get_module_size_with_ties, sizes": lambda it: planner.get_module_size_with_ties(
        ["1.weight"], 64, it, parts()
    ),
    "get_module_size_with_ties, parts": lambda it: planner.get_module_size_with_ties(
        ["1.weight"], 64, SIZES, it
    ),
    "fallback_allocate": lambda it: planner.fallback_allocate(it, SIZES, 64),
    "fallback_allocate, sizes": lambda it: planner.fallback_allocate(parts(), it, 64),
    "fallback_allocate, limit": lambda it: planner.fallback_allocate(parts(), SIZES, it),
    "fallback_allocate, classes": lambda it: planner.fallback_allocate(parts(), SIZES, 64, it),
    "fallback_allocate, ties": lambda it: planner.fallback_allocate(parts(), SIZES, 64, None, it),
    "retie_parameters": lambda it: planner.retie_parameters(model(), it),
    "check_tied_parameters_on_same_device": lambda it: planner.check_tied_parameters_on_same_device(
        it, {"": 0}
    ),
    "clean_device_map": lambda it: planner.clean_device_map({"a": 0}, it),
    "is_valid": planner.is_valid,
    "transformers, ties": lambda it: ours_for_transformers.infer_auto_device_map(
        model(), {0: 500}, [], tied_parameters=it
    ),
    "transformers, quantizer": lambda it: ours_for_transformers.compute_module_sizes(model(), it),
}

TENSORS: Doors = {
    "init_on_device": lambda it: entered(planner.init_on_device(it)),
    "init_on_device, buffers": lambda it: entered(planner.init_on_device(it, include_buffers=True)),
    "set_module_tensor_to_device": lambda it: planner.set_module_tensor_to_device(it, "0.weight", "cpu"),
    "set_module_tensor_to_device, name": lambda it: planner.set_module_tensor_to_device(model(), it, "cpu"),
    "get_state_dict_from_offload": lambda it: planner.get_state_dict_from_offload(offloaded()[0], it, {}),  # type: ignore[index]
    "get_state_dict_from_offload, state": lambda it: planner.get_state_dict_from_offload(
        offloaded()[0],  # type: ignore[index]
        "0.weight",
        it,
    ),
}
for _name in ("value", "dtype", "fp16_statistics", "tied_params_map", "non_blocking"):

    def _set(it: Any, name: str = _name) -> None:
        flag = name == "non_blocking" and isinstance(it, torch.Tensor)
        arguments = {"value": torch.ones(4, 4), name: bool(it.numel()) if flag else it}
        planner.set_module_tensor_to_device(model(), "0.weight", "cpu", **arguments)

    TENSORS[f"set_module_tensor_to_device, {_name}"] = _set


# A flag is true or not; and into a limit that is none, nothing fits, as in accelerate.
TAKEN = ("set_module_tensor_to_device, non_blocking", "fallback_allocate, limit")


@pytest.mark.parametrize("door", [*HOOKS, *FILES, *LISTS, *TENSORS])
def test_whatever_is_handed_in_is_taken_or_refused_by_type(door: str) -> None:
    call = {**HOOKS, **FILES, **LISTS, **TENSORS}[door]
    refused = 0
    for it in GARBAGE:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                call(it)
            except PlannerError as error:
                refused += 1
                assert 0 < len(str(error)) < 2000
            except Exception as error:
                pytest.fail(f"{shown(it)}: {type(error).__name__}: {error}")
    assert refused > 2 or door in TAKEN


@pytest.mark.parametrize("device", ["zzz", None, [1], {"a": 1}, 1.5, -1, 10**30, Nothing()], ids=shown)
def test_a_device_on_which_nothing_can_be_made_is_refused_at_once(device: Any) -> None:
    register = nn.Module.register_parameter
    for include_buffers in (False, True):
        with pytest.raises(InvalidDevicesError) as caught, planner.init_on_device(device, include_buffers):
            pytest.fail("the block was entered")
        assert caught.value.device is device
    assert nn.Module.register_parameter is register


def test_a_number_of_no_device_is_refused_at_once() -> None:
    if torch.accelerator.is_available():
        pytest.skip("there are devices with numbers")
    with pytest.raises(InvalidDevicesError, match="5 cannot be used"), planner.init_on_device(5):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("hook", [5, None, "zzz", [1], nn.Linear, planner.ModelHook], ids=shown)
def test_what_is_no_hook_leaves_the_module_as_it_is(hook: Any) -> None:
    module = nn.Linear(2, 2)
    before = dict(module.__dict__)
    with pytest.raises(InvalidInputError, match="expected a hook"):
        planner.add_hook_to_module(module, hook)
    assert module.__dict__ == before


@pytest.mark.parametrize("name", ["weights_map", "tied_params_map"])
def test_what_is_no_mapping_is_told_before_anything_is_attached(name: str) -> None:
    for attach in (planner.attach_align_device_hook, planner.attach_align_device_hook_on_blocks):
        net = model()
        wrong: dict[str, Any] = {name: 5}
        with pytest.raises(InvalidInputError, match=name):
            attach(net, "cpu", True, **wrong)
        assert not any(hasattr(module, "_hf_hook") for module in net.modules())


def test_a_weights_map_needs_no_more_than_keys_and_values() -> None:
    """As what ``dict()`` reads; it need not be a ``Mapping``."""

    class Store:
        def __init__(self) -> None:
            self.rows = weights()

        def keys(self) -> Any:
            return self.rows.keys()

        def __getitem__(self, name: str) -> torch.Tensor:
            return self.rows[name]

        def __iter__(self) -> Any:
            return iter(self.rows)

        def __len__(self) -> int:
            return len(self.rows)

    net, store, x = model(), Store(), torch.ones(1, 4)
    planner.attach_align_device_hook(net, "cpu", True, store)  # type: ignore[arg-type]
    assert torch.equal(net(x), x @ store["0.weight"].T @ store["1.weight"].T)


def test_an_odd_folder_is_told_before_the_model_is_changed() -> None:
    for name in ("a\0b", "\ud800"):
        net = model()
        with pytest.raises(InvalidInputError, match="must be a path"):
            planner.disk_offload(net, name, "cpu")
        assert not any(parameter.is_meta for parameter in net.parameters())
        with pytest.raises(OffloadError):
            planner.offload_weight(torch.ones(1), name, folder())
