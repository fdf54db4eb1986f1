"""PEFT on other architectures, other kinds of adapters, and the Trainer: every answer, and every adapter, is that of the undispatched model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import stored_models
from peft_models import (
    EACH_MAP,
    IDS,
    LORA,
    MAPS,
    Map,
    answer,
    plain,
    reloaded,
    require_equal,
    spread,
    state,
    trained,
)
from stored_models import inputs_of, reference, stored

pytestmark = pytest.mark.usefixtures("current_folder")

# ---- other architectures and kinds of adapters

ARCHITECTURES: dict[str, Map] = {
    "gpt2": {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True},
    "gemma": {"target_modules": ["q_proj", "down_proj"]},
    "mixtral": {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj"]},
    "qwen3_moe": {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
    "t5": {"target_modules": ["q", "wo"], "task_type": "SEQ_2_SEQ_LM"},
}


@pytest.mark.sweep
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        (kind, name)
        for kind in ARCHITECTURES
        for name in MAPS
        # Gradients that reach T5's encoder from two devices are summed in another order.
        if (kind, name) != ("t5", "mixed")
    ],
)
def test_other_architectures(architecture: str, name: str, tmp_path: Path) -> None:
    folder = stored(architecture, tmp_path / "base")
    given = {key: value.to(0) for key, value in inputs_of(architecture).items()}
    kind: Any = type(reference(folder))
    layers = MAPS[name]
    placed = stored_models.device_map(reference(folder), lambda number: layers[number % 4], 0)

    def loaded() -> Any:
        return kind.from_pretrained(folder, device_map=placed, offload_folder=tmp_path / "o").eval()

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model(**given).logits.cpu()
        return found

    models, parameters = [], []
    for base in (reference(folder).to(0), loaded()):
        torch.manual_seed(1)
        config = peft.LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", **ARCHITECTURES[architecture]})
        model = peft.get_peft_model(base, config).train()
        trainable = {path: p for path, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(**given).logits.square().mean().backward()
            optimizer.step()
        models.append(model.eval())
        parameters.append({path: p.detach().cpu() for path, p in trainable.items()})
    require_equal(parameters[1], parameters[0])
    want = logits(models[0])
    assert logits(models[1]).equal(want)
    models[0].save_pretrained(tmp_path / "adapter")
    assert logits(peft.PeftModel.from_pretrained(loaded(), tmp_path / "adapter")).equal(want)
    itself = loaded()
    itself.load_adapter(str(tmp_path / "adapter"))
    assert logits(itself).equal(want)
    merged, want_merged = (model.merge_and_unload() for model in reversed(models))
    assert logits(merged).equal(logits(want_merged))
    for each, into in ((merged, tmp_path / "s"), (want_merged, tmp_path / "s2")):
        each.save_pretrained(into)
    require_equal(state(reference(tmp_path / "s")), state(reference(tmp_path / "s2")))


OTHERS: dict[str, Callable[[], peft.PeftConfig]] = {
    "ia3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "vera": lambda: peft.VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "o_proj"], r=4),
    "loha": lambda: peft.LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "oft": lambda: peft.OFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], oft_block_size=4),
    "delora": lambda: peft.DeloraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "hra": lambda: peft.HRAConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "miss": lambda: peft.MissConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "lokr": lambda: peft.LoKrConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "boft": lambda: peft.BOFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], boft_block_size=4),
    "vblora": lambda: peft.VBLoRAConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], num_vectors=8, vector_length=4, r=2, topk=2
    ),
    "c3a": lambda: peft.C3AConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], block_size=4),
    "road": lambda: peft.RoadConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], group_size=4),
    "wave": lambda: peft.WaveFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], n_frequency=16),
    "fourier": lambda: peft.FourierFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
}


@pytest.mark.sweep
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", MAPS)
def test_other_adapters_are_trained_and_merged(name: str, kind: str, folder: Path, tmp_path: Path) -> None:
    models = []
    for base in (plain(folder), spread(folder, name, tmp_path / "o")):
        torch.manual_seed(1)
        models.append(peft.get_peft_model(base, OTHERS[kind]()))
    want, model = models
    require_equal(trained(model), trained(want))
    assert answer(model).equal(answer(want))
    want, model = want.merge_and_unload(), model.merge_and_unload()
    assert answer(model).equal(answer(want))
    require_equal(reloaded(model, tmp_path / "s"), reloaded(want, tmp_path / "s2"))


# ---- Trainer


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", EACH_MAP)
def test_the_trainer_trains_adapters(name: str, folder: Path, tmp_path: Path) -> None:
    """Undispatched on the CPU, where the Trainer moves it."""
    found = []
    plain_base = AutoModelForCausalLM.from_pretrained(folder)
    for base in (plain_base, spread(folder, "two", tmp_path / "o"), spread(folder, name, tmp_path / "o")):
        torch.manual_seed(1)
        model = peft.get_peft_model(base, peft.LoraConfig(**LORA, init_lora_weights="gaussian"))
        settings = TrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=0.1,
            optim="sgd",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = [{"input_ids": IDS[0] + number, "labels": IDS[0] + number} for number in range(4)]
        trainer = Trainer(model=model, args=settings, train_dataset=data)
        trainer.train()
        found.append({path: p.detach().cpu() for path, p in model.named_parameters() if p.requires_grad})
    require_equal(found[2], found[1])
    assert all(found[2][path].allclose(found[0][path], atol=1e-5) for path in found[0])
