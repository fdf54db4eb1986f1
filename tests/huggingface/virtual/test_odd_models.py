"""Classes of transformers that do what a border does not expect, loaded over two devices, the CPU and disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import planner
from rig import Accelerators
from stored_models import device_map
from tiny_models import SIZES, SPECIAL, WORDS

IDS = torch.arange(3, 13)[None]


@pytest.fixture(autouse=True)
def _ours() -> Iterator[None]:
    with planner.integrate():
        yield


def saved(model: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def both(
    make: Callable[[], Any], folder: Path, layers: Callable[[int], Any], outer: Any = 0, **extra: Any
) -> tuple[Any, Any]:
    """A model on one accelerator, and the same dispatched."""
    torch.manual_seed(0)
    model = make()
    cls, path = type(model), saved(model, folder)
    plain = cls.from_pretrained(path).to(0).eval()
    spread = cls.from_pretrained(path, device_map={**device_map(model, layers, outer), **extra})
    return plain, spread


def gemma_3n() -> nn.Module:
    return transformers.Gemma3nForCausalLM(
        transformers.Gemma3nTextConfig(
            **SIZES,
            **SPECIAL,
            head_dim=8,
            num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            sliding_window=4,
            vocab_size_per_layer_input=WORDS,
            hidden_size_per_layer_input=8,
            laurel_rank=4,
            altup_num_inputs=2,
            activation_sparsity_pattern=[0.0] * 4,
        )
    )


def gemma_4() -> nn.Module:
    return transformers.Gemma4ForCausalLM(
        transformers.Gemma4TextConfig(
            **SIZES,
            **SPECIAL,
            head_dim=8,
            global_head_dim=8,
            num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
            sliding_window=4,
            vocab_size_per_layer_input=WORDS,
            hidden_size_per_layer_input=8,
        )
    )


WHERE: dict[str, Callable[[int], Any]] = {
    "two": lambda number: (0, 0, 1, 1)[number % 4],
    "alternating": lambda number: (0, 1, 0, 1)[number % 4],
    "mixed": lambda number: (0, "cpu", 1, "disk")[number % 4],
}


@pytest.mark.parametrize(
    ("make", "where"), [(gemma_3n, "two"), (gemma_4, "two"), (gemma_4, "mixed"), (gemma_4, "alternating")]
)
@torch.no_grad()
def test_what_a_block_adds_to_a_container_the_next_ones_find(
    make: Callable[[], Any], where: str, tmp_path: Path
) -> None:
    plain, spread = both(make, tmp_path, WHERE[where])
    assert spread(IDS.to(0)).logits.equal(plain(IDS.to(0)).logits)
    assert spread.generate(IDS.to(0), max_new_tokens=4, do_sample=False).equal(
        plain.generate(IDS.to(0), max_new_tokens=4, do_sample=False)
    )


def mbart() -> nn.Module:
    sizes = {
        "d_model": 32,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
    }
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = transformers.MBartConfig(
        vocab_size=WORDS, **sizes, **heads, max_position_embeddings=32, **SPECIAL
    )
    return transformers.MBartForConditionalGeneration(config)


@torch.no_grad()
def test_a_tensor_of_the_model_itself_is_used_where_its_output_is_made(tmp_path: Path) -> None:
    plain, spread = both(mbart, tmp_path, WHERE["two"], final_logits_bias=1)
    assert spread(IDS.to(0)).logits.equal(plain(IDS.to(0)).logits)
    assert spread.generate(IDS.to(0), max_new_tokens=4).equal(plain.generate(IDS.to(0), max_new_tokens=4))


def detr() -> nn.Module:
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "num_queries": 4, "d_model": 32}
    return transformers.DetrForSegmentation(
        transformers.DetrConfig(backbone_config=backbone, **layers, **heads)
    )


@pytest.mark.parametrize("outer", ["cpu", "disk"])
@torch.no_grad()
def test_weights_that_are_read_outside_of_their_modules_are_fetched(outer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = detr()
    path, picture = saved(model, tmp_path), torch.rand(1, 3, 64, 64)
    plain = transformers.DetrForSegmentation.from_pretrained(path).to(0)
    spread = transformers.DetrForSegmentation.from_pretrained(
        path, device_map={"": 0, "detr.model": outer, "mask_head": outer, "bbox_attention": outer}
    )
    found, want = spread(picture.to(0)), plain(picture.to(0))
    assert found.pred_masks.equal(want.pred_masks) and found.logits.equal(want.logits)


def rwkv() -> nn.Module:
    return transformers.RwkvForCausalLM(
        transformers.RwkvConfig(
            vocab_size=WORDS, context_length=32, hidden_size=32, num_hidden_layers=4, rescale_every=2
        )
    )


@torch.no_grad()
def test_weights_that_are_written_to_outside_of_their_modules_are_an_error(tmp_path: Path) -> None:
    _, spread = both(rwkv, tmp_path, WHERE["mixed"])
    with pytest.raises(planner.OffloadError, match="offloaded"):
        spread(IDS.to(0))


class WithProperty(nn.Module):
    """As sentence-transformers has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    @property
    def _no_split_modules(self) -> list[str]:
        return ["Linear"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_classes_that_must_not_be_split_may_be_told_by_the_instance() -> None:
    model = planner.dispatch(WithProperty(), {"layers.0": 0, "layers.1": 1})
    assert model(torch.ones(1, 4, device=0)).device.index == 0


@pytest.mark.sweep  # the compiler takes half of what all these tests may take
@torch.no_grad()
def test_a_model_over_two_devices_compiles_into_one_graph(
    virtual_accelerators: Accelerators, tmp_path: Path
) -> None:
    plain, spread = both(
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **SPECIAL)),
        tmp_path,
        WHERE["two"],
    )
    compiled = torch.compile(spread, fullgraph=True, backend="eager")
    assert compiled(IDS.to(0), use_cache=False).logits.equal(plain(IDS.to(0), use_cache=False).logits)
