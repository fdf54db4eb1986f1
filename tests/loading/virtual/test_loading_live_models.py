"""A live model that is loaded onto accelerators stays what optimizers and callers know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import planner
from layered_net import Net, X, state, written


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("placed", [{"": "cpu"}, {"": 0}, {"": 0, "head": 1}])
def test_parameters_stay_the_same_and_keep_their_gradients(
    placed: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    model = Net()
    model(X).sum().backward()
    parameters = dict(model.named_parameters())
    gradients = {
        name: parameter.grad.clone() for name, parameter in parameters.items() if parameter.grad is not None
    }
    assert gradients.keys() == parameters.keys()
    planner.load(written(tmp_path), model, placed, dtype=dtype)
    for name, value in state().items():
        if name not in parameters:
            continue
        found = model.get_parameter(name)
        assert found is parameters[name] and found.requires_grad, name
        wanted = value if dtype == "auto" else value.bfloat16()
        assert found.cpu().equal(wanted), name
        assert (
            found.grad is not None and found.grad.device == found.device and found.grad.dtype == found.dtype
        )
        assert found.grad.cpu().equal(gradients[name].to(wanted.dtype)), name
    torch.optim.SGD(model.parameters(), 0.1).step()
