"""A model of a diffusers pipeline that is larger than an accelerator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import planner
from rig import Accelerators

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=8, pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    found = tmp_path_factory.mktemp("transformer")
    model.save_pretrained(found)
    return str(found)


@torch.no_grad()
def output(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pictures, words, pooled = (
        torch.randn(shape, generator=generator).to(0) for shape in ((1, 4, 8, 8), (1, 3, 8), (1, 8))
    )
    said = {"encoder_hidden_states": words, "pooled_projections": pooled}
    return model(pictures, **said, timestep=torch.tensor([1], device=0), return_dict=False)[0].cpu()


@pytest.mark.parametrize("auto", ["best", "transformers"])
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_component_over_two_accelerators_and_the_cpu(
    auto: Any, share: float, folder: str, virtual_accelerators: Accelerators
) -> None:
    plain = diffusers.SD3Transformer2DModel.from_pretrained(folder).to(0)
    whole_bytes = sum(tensor.numel() * 4 for tensor in plain.parameters())
    expected = output(plain)
    del plain
    virtual_accelerators.reset()
    budgets = {0: int(whole_bytes * share), 1: int(whole_bytes * share), "cpu": "1GiB"}
    with planner.integrate(auto=auto) as here:
        model = diffusers.SD3Transformer2DModel.from_pretrained(folder, device_map="auto", max_memory=budgets)
        assert "diffusers" in {site.library for site in here.sites}
    assert set(model.hf_device_map.values()) > {0, 1} or share > 0.5
    assert output(model).equal(expected)
    assert (planner.plan_of(model) is None) == (auto == "transformers")
    for index in (0, 1):
        assert virtual_accelerators.used_bytes(index) <= budgets[index]


def test_a_plan_is_taken(folder: str) -> None:
    expected = output(diffusers.SD3Transformer2DModel.from_pretrained(folder).to(0))
    plan = planner.plan(folder, max_memory={0: 20_000, 1: 20_000, "cpu": "1GiB"})
    with planner.integrate():
        model = diffusers.SD3Transformer2DModel.from_pretrained(folder, device_map=plan)
        again = diffusers.SD3Transformer2DModel.from_pretrained(folder, device_map=plan.device_map)
    assert planner.plan_of(model) is plan
    assert output(model).equal(expected)
    assert output(again).equal(expected)


def test_what_finds_no_room_is_on_disk(folder: str, tmp_path: Path) -> None:
    expected = output(diffusers.SD3Transformer2DModel.from_pretrained(folder).to(0))
    with planner.integrate():
        model = diffusers.SD3Transformer2DModel.from_pretrained(
            folder, device_map="auto", max_memory={0: 20_000}, offload_folder=tmp_path
        )
    assert set(model.hf_device_map.values()) == {0, "disk"}
    assert output(model).equal(expected)
