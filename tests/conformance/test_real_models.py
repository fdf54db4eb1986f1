"""Real transformers classes on the meta device: identical where upstream binds, valid everywhere else, in both dialects."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oracle.judge import Verdict, judge_accelerate, judge_transformers
from planner import get_balanced_memory
from planner.compat import transformers as ours_for_transformers

sys.path.insert(0, str(Path(__file__).parents[2] / "benches"))

import model_zoo

pytestmark = pytest.mark.filterwarnings("ignore:Current model requires")

# Of each family something, and most of what upstream breaks on: tied direct parameters, direct buffers, bools, aliases.
CLASSES = [
    "AlbertForMaskedLM",
    "BartForConditionalGeneration",
    "BertForMaskedLM",
    "BertLMHeadModel",
    "BigBirdForMaskedLM",
    "BigBirdPegasusForConditionalGeneration",
    "BioGptForCausalLM",
    "BlenderbotForConditionalGeneration",
    "BloomForCausalLM",
    "CamembertForCausalLM",
    "CamembertForMaskedLM",
    "CohereForCausalLM",
    "ConvBertForMaskedLM",
    "CTRLLMHeadModel",
    "DebertaForMaskedLM",
    "DebertaV2ForMaskedLM",
    "DistilBertForMaskedLM",
    "ElectraForMaskedLM",
    "ErnieForMaskedLM",
    "FalconForCausalLM",
    "FalconMambaForCausalLM",
    "FlaubertWithLMHeadModel",
    "FNetForMaskedLM",
    "FSMTForConditionalGeneration",
    "FunnelForMaskedLM",
    "Gemma2ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "GemmaForCausalLM",
    "Glm4ForCausalLM",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTJForCausalLM",
    "GPTNeoForCausalLM",
    "GPTNeoXForCausalLM",
    "GptOssForCausalLM",
    "GraniteForCausalLM",
    "IBertForMaskedLM",
    "JambaForCausalLM",
    "LEDForConditionalGeneration",
    "LlamaForCausalLM",
    "LlavaForConditionalGeneration",
    "LongformerForMaskedLM",
    "LongT5ForConditionalGeneration",
    "LukeForMaskedLM",
    "M2M100ForConditionalGeneration",
    "Mamba2ForCausalLM",
    "MambaForCausalLM",
    "MarianMTModel",
    "MegatronBertForMaskedLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "MobileBertForMaskedLM",
    "MPNetForMaskedLM",
    "MptForCausalLM",
    "MT5ForConditionalGeneration",
    "NystromformerForMaskedLM",
    "Olmo2ForCausalLM",
    "OPTForCausalLM",
    "PaliGemmaForConditionalGeneration",
    "PegasusForConditionalGeneration",
    "PhiForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen2VLForConditionalGeneration",
    "Qwen3ForCausalLM",
    "RobertaForMaskedLM",
    "RoFormerForMaskedLM",
    "RwkvForCausalLM",
    "SqueezeBertForMaskedLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
    "T5ForConditionalGeneration",
    "UdopForConditionalGeneration",
    "VisualBertForPreTraining",
    "XGLMForCausalLM",
    "XLMRobertaForCausalLM",
    "XLMRobertaForMaskedLM",
    "XLMWithLMHeadModel",
    "XLNetLMHeadModel",
    "XmodForMaskedLM",
    "YosoForMaskedLM",
    "ZambaForCausalLM",
]
QUICK_BUDGETS = 3  # of the twenty and more: this many in the normal suite, another choice for each class
JUDGES = {"accelerate": judge_accelerate, "transformers": judge_transformers}


def judged(name: str, judge: Callable[..., Verdict], every: int, start: int = 0) -> Counter[str]:
    """Verdicts over every n-th budget, with the model's own no-split classes; each must be good."""
    model = model_zoo.build(name)
    no_split = {"no_split_module_classes": model_zoo.no_split_classes(model)}
    totals: Counter[str] = Counter()
    for budget in list(model_zoo.budgets(model))[start::every]:
        for options in (no_split, {**no_split, "clean_result": False}):
            verdict = judge(model, budget, options)
            assert verdict.is_good, f"{name} {budget} {options}: {verdict}"
            totals[verdict.word] += 1
    gc.collect()
    return totals


@pytest.mark.parametrize("name", CLASSES)
def test_a_real_class_is_planned_like_upstream_or_better(name: str) -> None:
    number = len(list(model_zoo.budgets(_small())))
    every = number // QUICK_BUDGETS
    for judge in JUDGES.values():
        judged(name, judge, every, start=CLASSES.index(name) % every)


@pytest.mark.sweep
@pytest.mark.parametrize("name", CLASSES)
def test_a_real_class_is_planned_like_upstream_or_better_over_all_budgets(name: str) -> None:
    for judge in JUDGES.values():
        assert judged(name, judge, every=1).total() >= 40


def test_there_are_sixty_classes_and_twenty_budgets() -> None:
    assert len(set(CLASSES)) >= 60
    assert set(CLASSES) <= set(model_zoo.names()) | {"VisualBertForPreTraining"}
    assert len(list(model_zoo.budgets(_small()))) >= 20


# B8b, and the classes on which upstream raises: by name, so that nobody drops them from the list.

RAISING = (
    "MobileBertForMaskedLM",
    "UdopForConditionalGeneration",
    "XLMRobertaForMaskedLM",
    "CamembertForCausalLM",
)
UNDERCOUNTED_BY_TRANSFORMERS = ("XLMRobertaForMaskedLM", "CamembertForMaskedLM")


@pytest.mark.parametrize("name", RAISING)
def test_a_class_on_which_upstream_raises_is_planned(name: str) -> None:
    model = model_zoo.build(name)
    options = {"no_split_module_classes": model_zoo.no_split_classes(model)}
    verdicts = [
        judge(model, budget, options) for judge in JUDGES.values() for budget in model_zoo.budgets(model)
    ]
    assert all(verdict.is_good for verdict in verdicts), [str(v) for v in verdicts if not v.is_good]
    assert any(verdict.upstream == "raised" for verdict in verdicts)


@pytest.mark.parametrize("name", UNDERCOUNTED_BY_TRANSFORMERS)
def test_b8b_a_class_that_transformers_takes_for_half_its_size(name: str) -> None:
    import transformers.integrations.accelerate as upstream

    model = model_zoo.build(name)
    true_size = model_zoo.true_bytes(model)
    assert upstream.compute_module_sizes(model)[0][""] < 0.7 * true_size
    assert ours_for_transformers.compute_module_sizes(model)[0][""] == true_size
    assert ours_for_transformers.infer_auto_device_map(model, {0: true_size, "cpu": true_size}) == {"": 0}


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "BertForMaskedLM", "T5ForConditionalGeneration", "MixtralForCausalLM"]
)
@pytest.mark.parametrize("low_zero", [False, True])
def test_balanced_budgets_of_a_real_class_are_upstreams(name: str, low_zero: bool) -> None:
    import accelerate.utils.modeling as accelerate
    import transformers.integrations.accelerate as upstream

    model = model_zoo.build(name)
    no_split = model_zoo.no_split_classes(model)
    total = model_zoo.true_bytes(model)
    for budgets in ({0: total, 1: total, "cpu": total}, {0: total // 3, 1: total // 2, 2: total}):
        expected = accelerate.get_balanced_memory(model, dict(budgets), no_split, low_zero=low_zero)
        assert get_balanced_memory(model, budgets, no_split, low_zero=low_zero) == expected
        expected = upstream.get_balanced_memory(model, dict(budgets), set(no_split), low_zero=low_zero)
        ours = ours_for_transformers.get_balanced_memory(model, budgets, set(no_split), low_zero=low_zero)
        assert ours == expected


def _small() -> Any:
    from torch import nn

    return nn.Linear(2, 2, device="meta")
