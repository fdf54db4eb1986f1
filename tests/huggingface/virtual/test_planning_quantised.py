"""Inside of `planner.integrate()`, a model that is quantised on loading is planned with the bytes that it will have."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from transformers.quantizers.base import HfQuantizer

import planner
from planner.compat.huggingface import best
from tiny_folders import bytes_by_device, llama, map_of, on_meta, saved_in

KIB = 1 << 10
WIDE = partial(llama, hidden_size=128, intermediate_size=256, vocab_size=256)


class Halving(HfQuantizer):
    """Four bits for each element of a layer; nothing may be offloaded, and a tenth of each budget is its own."""

    def __init__(self) -> None:
        self.asked: list[set[Any]] = []

    is_serializable = is_trainable = False  # type: ignore[assignment]
    quantized_element_size = 0.5  # type: ignore[assignment]

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return ".layers." in param_name

    def adjust_max_memory(self, max_memory: dict[Any, Any]) -> dict[Any, Any]:
        return {device: size * 0.9 for device, size in max_memory.items()}

    def validate_environment(self, *args: Any, device_map: Any, **kwargs: Any) -> None:
        self.asked.append(set(device_map.values()))
        if {"cpu", "disk"} & self.asked[-1]:
            raise ValueError("Some modules are dispatched on the CPU or the disk.")


def halved_bytes(model: Any) -> int:
    return sum(
        tensor.numel() // 2 if ".layers." in name else tensor.numel() * 4
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    )


def test_what_a_quantiser_makes_smaller_is_not_offloaded() -> None:
    model, quantizer = on_meta(llama), Halving()
    budget_bytes = int(halved_bytes(model) / 0.9) + 100
    with planner.integrate() as here:
        assert map_of(model, "auto", {0: budget_bytes, "cpu": "1GiB"}, quantizer) == {"": 0}
    assert here.plans[0].devices[0].used_bytes == here.plans[0].source.total_bytes == halved_bytes(model)


def test_what_does_not_fit_a_quantiser_is_told_with_block_and_shortfall() -> None:
    model, quantizer = on_meta(llama), Halving()
    budgets: dict[Any, Any] = {0: 12 * KIB, "cpu": "1GiB"}
    with planner.integrate(), pytest.raises(planner.InfeasibleError) as raised:
        map_of(model, "auto", budgets, quantizer)
    error = raised.value
    assert isinstance(error.__cause__, ValueError) and "Halving" in error.message
    assert error.block and error.block in error.message
    assert error.more_bytes is not None and error.shortfall_bytes == error.more_bytes[0]
    with planner.integrate() as here:  # and so much more is enough, what the quantiser keeps included
        map_of(model, "auto", {**budgets, 0: budgets[0] + error.more_bytes[0]}, quantizer)
        with pytest.raises(planner.InfeasibleError):
            map_of(model, "auto", {**budgets, 0: budgets[0] + error.more_bytes[0] - 8}, quantizer)
    assert len(here.plans) == 1


def test_a_plan_that_a_quantiser_refuses_gives_way_to_one_on_accelerators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first plan offloads though it need not, as one that is not proven least may."""
    usual = best.plan_in_files

    def wasteful(opened: Any, said: Any, settings: dict[str, Any]) -> planner.Plan:
        pin = {} if "mode" in settings else {"pin": {"lm_head": "cpu"}}
        return usual(opened, said, {**settings, **pin})

    monkeypatch.setattr(best, "plan_in_files", wasteful)
    model, quantizer = on_meta(llama), Halving()
    with planner.integrate() as here:
        found = map_of(model, "auto", {0: "1GiB", "cpu": "1GiB"}, quantizer)
    assert quantizer.asked == [{0, "cpu"}, {0}] and found == {"": 0}
    assert here.plans[0].device_map == found, "and the other one is forgotten"


# ---- bitsandbytes


def t5() -> Any:
    """Its `wo` stays in float32 where the rest is float16, and is not quantised."""
    sizes = {"d_model": 128, "d_ff": 256, "d_kv": 32, "num_layers": 2, "num_heads": 4}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=128, **sizes, **ends))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("make", "family"),
    [
        (partial(WIDE, tie_word_embeddings=True), tf.AutoModelForCausalLM),
        (t5, tf.AutoModelForSeq2SeqLM),
    ],
)
def test_bytes_are_those_that_bitsandbytes_makes(make: Any, family: Any, bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = saved_in(tmp_path / "whole", make)
    how = tf.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    said = {"device_map": "auto", "max_memory": {0: "1GiB", "cpu": "1GiB"}}
    with planner.integrate() as here:
        model = family.from_pretrained(folder, dtype=torch.float16, quantization_config=how, **said)
        model.save_pretrained(tmp_path / "quantised")
        again = family.from_pretrained(tmp_path / "quantised", **said)
    for loaded, plan in zip((model, again), here.plans, strict=True):
        assert sum(bytes_by_device(loaded).values()) == plan.source.total_bytes


def test_what_bitsandbytes_refuses_is_our_error_with_block_and_shortfall(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = saved_in(tmp_path, WIDE)
    how = tf.BitsAndBytesConfig(load_in_4bit=True)
    budgets = {0: 200 * KIB, "cpu": "1GiB"}
    with (
        planner.integrate(),
        pytest.raises(planner.InfeasibleError, match=r"'model\.layers\.0' \(73 KiB\)") as raised,
    ):
        tf.AutoModelForCausalLM.from_pretrained(
            folder, device_map="auto", max_memory=budgets, quantization_config=how
        )
    assert "dispatched on the CPU or the disk" in str(raised.value.__cause__)
