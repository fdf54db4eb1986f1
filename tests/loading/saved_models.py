"""Tiny models of classes whose files differ from what they are in memory, saved once, with what `from_pretrained` makes of them."""

from __future__ import annotations

import atexit
import copy
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

import tiny_models
from tiny_models import LAYERS, SIZES, SPECIAL

__all__ = ["SAVED", "SavedModel", "empty", "same_bits", "saved", "tensors_of"]

EXPERTS = {**SIZES, **SPECIAL, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
EYES = {
    "depth": 2,
    "embed_dim": 16,
    "hidden_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "intermediate_size": 24,
}


def qwen2_vl() -> nn.Module:
    eyes = {**EYES, "hidden_size": SIZES["hidden_size"]}
    text = {**SIZES, **SPECIAL, "rope_parameters": MROPE}
    return tf.Qwen2VLForConditionalGeneration(tf.Qwen2VLConfig(text_config=text, vision_config=eyes))


def qwen3_moe() -> nn.Module:
    return tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**EXPERTS, num_experts=3, head_dim=8))


def qwen3_vl_moe() -> nn.Module:
    """Its experts are stored the other way round."""
    eyes = {**EYES, "out_hidden_size": SIZES["hidden_size"], "num_position_embeddings": 16}
    eyes["deepstack_visual_indexes"] = [0, 1]
    text = {**EXPERTS, "num_experts": 3, "head_dim": 8, "rope_parameters": MROPE}
    config = tf.Qwen3VLMoeConfig(text_config=text, vision_config=eyes)
    return tf.Qwen3VLMoeForConditionalGeneration(config)


def deepseek() -> nn.Module:
    low = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    groups = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    return tf.DeepseekV3ForCausalLM(
        tf.DeepseekV3Config(**{**EXPERTS, **low, **groups, "num_key_value_heads": 4})
    )


def gpt_oss() -> nn.Module:
    return tf.GptOssForCausalLM(tf.GptOssConfig(**SIZES, **SPECIAL, num_local_experts=3, head_dim=8))


def phi3() -> nn.Module:
    return tf.Phi3ForCausalLM(tf.Phi3Config(**SIZES, **SPECIAL))


def ernie() -> nn.Module:
    """Experts for words and for pictures are stored as one list."""
    experts = {
        "moe_intermediate_size": [16, 8],
        "moe_k": 2,
        "moe_num_experts": 4,
        "moe_num_shared_experts": 1,
    }
    kinds = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
    text = {**SIZES, **SPECIAL, **experts, **kinds, "rope_parameters": MROPE}
    eyes = {**EYES, "hidden_size": 32}
    config = tf.Ernie4_5_VLMoeConfig(text_config=text, vision_config=eyes)
    return tf.Ernie4_5_VLMoeForConditionalGeneration(config)


def nomic_bert() -> nn.Module:
    """Queries, keys and values are stored as one."""
    sizes = {key: size for key, size in SIZES.items() if key != "num_key_value_heads"}
    return tf.NomicBertModel(tf.NomicBertConfig(**sizes))


def wav2vec2() -> nn.Module:
    """A convolution whose weight is a parametrization, under an older name in files."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    layers = {
        "conv_dim": (16, 16),
        "conv_stride": (2, 2),
        "conv_kernel": (3, 3),
        "num_conv_pos_embeddings": 4,
    }
    config = tf.Wav2Vec2Config(**sizes, **layers, vocab_size=32, num_conv_pos_embedding_groups=2)
    return tf.Wav2Vec2Model(config)


def bert() -> nn.Module:
    sizes = {key: size for key, size in SIZES.items() if key != "num_key_value_heads"}
    return tf.BertForMaskedLM(tf.BertConfig(**sizes, max_position_embeddings=32))


SAVED: dict[str, Callable[[], nn.Module]] = {
    **{name: tiny.make for name, tiny in tiny_models.TINY.items() if name != "mixtral_eager"},
    **{
        make.__name__: make
        for make in (
            qwen2_vl,
            qwen3_moe,
            qwen3_vl_moe,
            deepseek,
            gpt_oss,
            phi3,
            ernie,
            nomic_bert,
            wav2vec2,
            bert,
        )
    },
}


@dataclass(frozen=True)
class SavedModel:
    """A model in a folder.

    Args:
        folder: where `save_pretrained` put it.
        model: what `from_pretrained` makes of it.
    """

    folder: Path
    model: Any


@functools.cache
def saved(name: str) -> SavedModel:
    """One of the models; nobody may change it or its folder."""
    tf.utils.logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp(prefix="saved_models_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # The first to ask makes it, perhaps inside `with torch.device("meta")`, where it would have no values.
    with torch.device("cpu"):
        torch.manual_seed(LAYERS)
        model: Any = SAVED[name]()
        for tensor in model.parameters():  # no two tensors may be equal by chance
            tensor.data.normal_()
        model.save_pretrained(folder)
        torch.manual_seed(LAYERS)
        return SavedModel(folder, type(model).from_pretrained(folder))


def empty(model: Any, cls: Any = None) -> Any:
    """A model of the same configuration on meta, which has its ties."""
    with torch.device("meta"):
        return (cls or type(model))(copy.deepcopy(model.config))


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All tensors by all their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bytes."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    first, second = (each.detach().contiguous().view(-1).view(torch.uint8) for each in (one, other))
    return first.equal(second)
