"""Small models of many families in folders, and their stages run one after the other in one process."""

from __future__ import annotations

import atexit
import functools
import inspect
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor

import tiny_families
from planner.pipelines.layers import find_layers
from planner.pipelines.runs import stage_runs
from planner.pipelines.stage import Stage, prepare_stage
from tiny_families import SIZES

__all__ = [
    "FAMILIES",
    "LAYERS",
    "Chain",
    "SavedFamily",
    "family",
    "forwards",
    "save",
    "stages_of",
    "whole_logits",
]

LAYERS = 5
WINDOW = 4
PROMPT, STEPS = 9, 3
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT2 = {"n_embd": 32, "n_head": 4, "vocab_size": 64}
MAMBA = {"hidden_size": 32, "vocab_size": 64, "state_size": 8}
ALIKE = {**SIZES, "num_hidden_layers": LAYERS}


def made(cls: Any, **values: Any) -> Callable[[], Any]:
    return lambda: cls(cls.config_class(**values))


FAMILIES: dict[str, Callable[[], Any]] = {
    **{
        name: functools.partial(tiny_families.FAMILIES[name], LAYERS)
        for name in ("llama", "gemma3", "qwen3_moe", "deepseek_v3", "gpt_oss", "qwen3_next")
    },
    "qwen3_tied": made(tf.Qwen3ForCausalLM, **ALIKE, head_dim=8, tie_word_embeddings=True),
    "gpt2": made(tf.GPT2LMHeadModel, **GPT2, n_layer=LAYERS),
    "phi3": made(tf.Phi3ForCausalLM, **ALIKE, sliding_window=WINDOW),
    "mixtral": made(tf.MixtralForCausalLM, **ALIKE, **EXPERTS, sliding_window=WINDOW),
    "mistral": made(tf.MistralForCausalLM, **ALIKE, head_dim=8, sliding_window=WINDOW),
    "opt": made(
        tf.OPTForCausalLM,
        hidden_size=32, ffn_dim=48, num_attention_heads=4, vocab_size=64, num_hidden_layers=LAYERS, word_embed_proj_dim=24,
    ),
    "falcon": made(
        tf.FalconForCausalLM, hidden_size=32, num_attention_heads=4, vocab_size=64, num_hidden_layers=LAYERS, alibi=True
    ),
    "bloom": made(tf.BloomForCausalLM, hidden_size=32, n_head=4, n_layer=LAYERS, vocab_size=64),
    "gpt_neo": made(
        tf.GPTNeoForCausalLM,
        hidden_size=32, num_heads=4, vocab_size=64, num_layers=6, window_size=WINDOW, attention_types=[[["global", "local"], 3]],
    ),
    "gpt_neox": made(
        tf.GPTNeoXForCausalLM,
        hidden_size=32, num_attention_heads=4, intermediate_size=48, vocab_size=64, num_hidden_layers=LAYERS, rotary_pct=0.5,
    ),
    "cohere2": made(tf.Cohere2ForCausalLM, **ALIKE, sliding_window=WINDOW),
    "mamba": made(tf.MambaForCausalLM, **MAMBA, num_hidden_layers=LAYERS),
    "jamba": made(
        tf.JambaForCausalLM,
        **ALIKE, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, num_experts=4, mamba_d_state=8, mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "longcat_flash": made(  # two attentions a layer, each with a number of its own
        tf.LongcatFlashForCausalLM,
        hidden_size=32, ffn_hidden_size=48, expert_ffn_hidden_size=16, num_layers=LAYERS, num_attention_heads=4, vocab_size=64,
        n_routed_experts=4, zero_expert_num=1, moe_topk=2, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8,
        v_head_dim=8, head_dim=4,
    ),
    "bamba": made(
        tf.BambaForCausalLM,
        **ALIKE, attn_layer_indices=[1, 3], mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=8,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class SavedFamily:
    """A model of a family in a folder of several files.

    Args:
        folder: where it lies.
        model: what `from_pretrained` makes of it.
    """

    folder: Path
    model: Any

    @property
    def layers(self) -> int:
        return find_layers(self.model).length


@functools.cache
def family(name: str) -> SavedFamily:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return save(FAMILIES[name]())


def save(model: Any, most: str = "40KB") -> SavedFamily:
    """A model with stirred weights in a folder that goes with this process."""
    tf.utils.logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp(prefix="stage_models_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder, max_shard_size=most)
    whole = tf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="auto").eval()
    return SavedFamily(folder, whole)


def stages_of(folder: Path, counts: Sequence[int]) -> list[Stage]:
    runs = stage_runs(counts)
    return [prepare_stage(folder, runs, run.index, attention="eager").read() for run in runs]


class Chain:
    """Stages in one process, each with a cache."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = [(stage, stage.new_cache()) for stage in stages]

    def __call__(self, ids: Tensor, **inputs: Any) -> Tensor:
        for stage, cache in self.stages:
            ids = stage.forward(ids, cache=cache, **inputs)
            if not stage.is_last:
                assert (ids.dtype, ids.shape[-1]) == (stage.dtype, stage.hidden_size)
        return ids


def forwards(padding: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids, mask and positions of a prompt whose first row begins with padding, and of the tokens after it."""
    total = PROMPT + STEPS
    ids = torch.randint(3, 60, (2, total), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    ends = [PROMPT, *range(PROMPT + 1, total + 1)]
    return [
        (ids[:, start:end], mask[:, :end], positions[:, start:end])
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def whole_logits(model: Any, padding: int) -> list[Tensor]:
    """What the whole model gives where it is, with a cache of its own."""
    cache: Any = None
    takes = inspect.signature(model.forward).parameters
    found = []
    for ids, mask, positions in forwards(padding):
        ids, mask, positions = (each.to(model.device) for each in (ids, mask, positions))
        name = next(name for name in ("cache", "past_key_values", "cache_params") if name in takes)
        given = {"attention_mask": mask, "position_ids": positions, name: cache, "use_cache": True}
        with torch.no_grad():
            made = model(input_ids=ids, **{key: value for key, value in given.items() if key in takes})
        cache = getattr(made, name)
        found.append(made.logits)
    return found
