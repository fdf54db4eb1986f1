"""Real model classes over two virtual accelerators and the CPU, by accelerate's dispatch, equal one accelerator's answer.

This is what the rig must be good for; our own dispatch is held to the same in tests of its own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import nn

from rig import Accelerators
from tiny_models import TINY, built, mapped

OVER_DEVICES = (0, 1, 1, 0)
OFFLOADED = (0, "cpu", 1, "cpu")


def spread(name: str, layers: tuple[int | str, ...]) -> nn.Module:
    model: Any = built(name)
    return dispatch_model(model, mapped(name, layers), skip_keys=model._skip_keys_device_placement)


@pytest.mark.parametrize("layers", [OVER_DEVICES, OFFLOADED], ids=["two_devices", "offloaded"])
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_answers_are_equal_bit_for_bit(name: str, layers: tuple[int | str, ...]) -> None:
    plain, dispatched = built(name).to(0), spread(name, layers)
    devices = {parameter.device for parameter in dispatched.parameters()}
    assert devices == {torch.device(0), torch.device(1)} | (
        {torch.device("meta")} if "cpu" in layers else set()
    )
    inputs = TINY[name].inputs(0)
    expected, found = plain(**inputs).logits, dispatched(**inputs).logits
    assert found.device == expected.device and found.equal(expected)
    inputs.pop("decoder_input_ids", None)
    options: dict[str, Any] = {**inputs, "max_new_tokens": 5, "do_sample": False, "use_cache": True}
    assert dispatched.generate(**options).equal(plain.generate(**options))


@pytest.mark.parametrize("name", TINY)
def test_gradients_are_equal(name: str) -> None:
    """Bit for bit, but for T5: each device has a thread of its own, so the order of sums of more than two is open."""
    plain, dispatched = built(name).to(0), spread(name, OVER_DEVICES)
    for model in (plain, dispatched):
        model(**TINY[name].inputs(0)).logits.square().mean().backward()
    found = dict(dispatched.named_parameters())
    tolerance = 1e-5 if name == "t5" else 0.0
    for key, parameter in plain.named_parameters():
        assert (found[key].grad is None) == (parameter.grad is None), key
        if parameter.grad is not None:
            assert found[key].grad.device == found[key].device
            torch.testing.assert_close(
                found[key].grad.cpu(), parameter.grad.cpu(), rtol=tolerance, atol=tolerance * 1e-2, msg=key
            )


@pytest.mark.usefixtures("watched_streams")
def test_nothing_synchronous_is_taken_for_a_race() -> None:
    dispatched = spread("llama", OVER_DEVICES)
    dispatched(**TINY["llama"].inputs(0)).logits.mean().backward()
    with torch.no_grad():
        spread("llama", OFFLOADED)(**TINY["llama"].inputs(0))


def test_traffic_and_use_of_an_offloaded_model(virtual_accelerators: Accelerators) -> None:
    """Each forward fetches each offloaded layer once, and keeps none."""
    layer_bytes = sum(p.nbytes for p in built("llama").model.layers[1].parameters())
    dispatched = spread("llama", OFFLOADED)
    inputs = TINY["llama"].inputs(0)
    used_bytes = [virtual_accelerators.used_bytes(index) for index in (0, 1)]
    virtual_accelerators.reset()
    with torch.no_grad():
        dispatched(**inputs, use_cache=False)
    assert [virtual_accelerators.used_bytes(index) for index in (0, 1)] == used_bytes
    assert 2 * layer_bytes <= virtual_accelerators.traffic().to_device_bytes < 2 * layer_bytes + 4096
