"""Weights that a class makes itself and does not save: a plan made of files knows them, and they are made where it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MarianConfig, MarianMTModel

import planner

BUDGETS: dict[str, tuple[Any, ...]] = {
    "two": (0.6, 0.6, 0),
    "cpu": (0.5, 0, 2),
    "disk": (0.5, 0, 0),
    "mixed": (0.4, 0.3, 0.1),
}
IDS = {"input_ids": torch.arange(3, 13)[None], "decoder_input_ids": torch.arange(4, 9)[None]}


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Positions are a good part of it."""
    config = MarianConfig(
        d_model=32, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=64, max_position_embeddings=200, pad_token_id=63,
        decoder_start_token_id=63, eos_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("marian")
    torch.manual_seed(0)
    MarianMTModel(config).save_pretrained(folder)
    return folder


def plan_of(folder: Path, name: str) -> planner.Plan:
    first, second, cpu = BUDGETS[name]
    whole = planner.plan(folder, max_memory={0: "1GiB"}).source.total_bytes
    return planner.plan(
        folder,
        max_memory={0: int(whole * first), 1: int(whole * second), "cpu": int(whole * cpu), "disk": "1GiB"},
    )


@torch.no_grad()
def answers(model: Any) -> list[torch.Tensor]:
    given = {name: ids.to(0) for name, ids in IDS.items()}
    made = model.generate(given["input_ids"], max_new_tokens=4, do_sample=False)
    return [model(**given).logits.cpu(), made.cpu()]


def loaded(folder: Path, plan: planner.Plan, way: str) -> Any:
    if way == "load":
        with torch.device("meta"):
            model = MarianMTModel(MarianConfig.from_pretrained(folder))
        return planner.load(folder, model, plan).eval()
    with planner.integrate():
        given = plan if way == "plan" else dict(plan.device_map)
        return MarianMTModel.from_pretrained(folder, device_map=given).eval()


@pytest.mark.parametrize("way", ["plan", "map", "load"])
@pytest.mark.parametrize("name", BUDGETS)
def test_a_plan_of_files_loads_what_they_lack(name: str, way: str, marian: Path) -> None:
    plan = plan_of(marian, name)
    model = loaded(marian, plan, way)
    alone = MarianMTModel.from_pretrained(marian).eval().to(0)
    for ours, theirs in zip(answers(model), answers(alone), strict=True):
        assert ours.equal(theirs)
    stays = [tensor for tensor in model.state_dict(keep_vars=True).values() if not tensor.is_meta]
    for number, share in enumerate(BUDGETS[name][:2]):
        used = {
            id(tensor): tensor.nbytes for tensor in stays if tensor.device == torch.device("virtual", number)
        }
        assert sum(used.values()) <= share * plan.source.total_bytes
