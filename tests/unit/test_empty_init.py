"""Models without memory."""

import pytest
import torch
from torch import nn

from planner import find_tied_parameters, init_empty_weights, named_module_tensors


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)
        self.b.weight = self.a.weight
        self.register_buffer("steps", torch.zeros(3))


def test_parameters_land_on_meta_buffers_stay_and_ties_survive() -> None:
    with init_empty_weights():
        model = Tied()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.steps.device.type == "cpu"
    assert find_tied_parameters(model) == [["a.weight", "b.weight"]]
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_buffers_too_when_asked() -> None:
    with init_empty_weights(include_buffers=True):
        model = Tied()
    assert {t.device.type for _, t in named_module_tensors(model, recurse=True)} == {"meta"}


def test_gradients_and_subclasses_keep_their_kind() -> None:
    class Marked(nn.Parameter):
        pass

    with init_empty_weights():
        module = nn.Module()
        module.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        module.marked = Marked(torch.zeros(2))
    assert not module.frozen.requires_grad
    assert type(module.marked) is Marked and module.marked.requires_grad


def test_the_way_back_is_clear_after_an_error() -> None:
    before = nn.Module.register_parameter
    with pytest.raises(RuntimeError, match="on purpose"), init_empty_weights():
        raise RuntimeError("on purpose")
    assert nn.Module.register_parameter is before


def test_only_buffers_that_are_not_saved_are_left_out() -> None:
    model = nn.Module()
    model.inner = nn.Module()
    model.register_buffer("b", torch.zeros(1))
    model.inner.register_buffer("b", torch.zeros(1), persistent=False)
    names = [name for name, _ in named_module_tensors(model, recurse=True, remove_non_persistent=True)]
    assert names == ["b"]
    assert [name for name, _ in named_module_tensors(model, include_buffers=False)] == []
