"""Small models with drawn configurations: layers, heads, windows, sharing and inputs that no default has."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import transformers

FULL, WINDOW = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One model, and what it is run on.

    Args:
        family: which of :data:`FAMILIES`.
        model: with random weights.
        batch_size: sequences.
        prompt_tokens: of each.
        steps: forwards of one token after it.
        encoder_tokens: of an encoder's input; 0 where there is none.
    """

    family: str
    model: Any
    batch_size: int
    prompt_tokens: int
    steps: int
    encoder_tokens: int


def drawn(seed: int, family: str | None = None) -> Drawn:
    """A model of this number, and its inputs."""
    rng = random.Random(seed)
    name = family or rng.choice(sorted(FAMILIES))
    torch.manual_seed(seed)
    model = FAMILIES[name](rng).eval()
    return Drawn(
        family=name,
        model=model,
        batch_size=rng.randint(1, 4),
        prompt_tokens=rng.choice([1, 2, rng.randint(1, 48)]),
        steps=rng.randint(0, 3),
        encoder_tokens=rng.randint(1, 30) if model.config.is_encoder_decoder else 0,
    )


def sizes(rng: random.Random, **more: Any) -> dict[str, Any]:
    """Sizes that any decoder takes."""
    kv = rng.choice([1, 2, 4])
    heads = kv * rng.choice([1, 2])
    width = rng.choice([8, 16, 32])
    return {
        "vocab_size": 64,
        "hidden_size": heads * width,
        "intermediate_size": 48,
        "num_hidden_layers": rng.randint(1, 6),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def kinds(rng: random.Random, given: Mapping[str, Any], *names: str) -> list[str]:
    """A type for each layer."""
    return [rng.choice(names) for _ in range(given["num_hidden_layers"])]


def with_one(rng: random.Random, types: list[str], kind: str = FULL) -> list[str]:
    """The same with a layer of this type: some caches cannot tell their length without."""
    types[rng.randrange(len(types))] = kind
    return types


def window(rng: random.Random) -> int:
    """Shorter and longer than prompts are."""
    return rng.choice([1, 2, rng.randint(3, 60), 1000])


def _decoder(name: str, **more: Any) -> Callable[[random.Random], Any]:
    def make(rng: random.Random) -> Any:
        cls = getattr(transformers, f"{name}ForCausalLM")
        return cls(cls.config_class(**sizes(rng, **{key: value(rng) for key, value in more.items()})))

    return make


def _typed(name: str, *names: str, **more: Any) -> Callable[[random.Random], Any]:
    """A decoder whose configuration says the type of each layer."""

    def make(rng: random.Random) -> Any:
        cls = getattr(transformers, f"{name}ForCausalLM")
        given = sizes(rng, **{key: value(rng) for key, value in more.items()})
        return cls(cls.config_class(**given, layer_types=kinds(rng, given, *names)))

    return make


def _shared(rng: random.Random) -> Any:
    """Layers that read the keys of earlier ones; of each type one that has its own comes first."""
    own = [WINDOW, FULL, *(rng.choice([WINDOW, FULL]) for _ in range(rng.randint(0, 2)))]
    shared = rng.randint(0, 3)
    types = own + [rng.choice([WINDOW, FULL]) for _ in range(shared)]
    config = transformers.Gemma3nTextConfig(
        **sizes(rng, num_hidden_layers=len(types), head_dim=16, sliding_window=window(rng)),
        layer_types=types,
        num_kv_shared_layers=shared,
        vocab_size_per_layer_input=64,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * len(types),
        altup_num_inputs=2,
    )
    return transformers.Gemma3nForCausalLM(config)


def _qwen_windows(rng: random.Random) -> Any:
    config = transformers.Qwen2Config(
        **sizes(rng),
        use_sliding_window=rng.random() < 0.7,
        sliding_window=window(rng),
        max_window_layers=rng.randint(0, 4),
    )
    return transformers.Qwen2ForCausalLM(config)


def _linear(rng: random.Random) -> Any:
    given = sizes(rng, head_dim=16, partial_rotary_factor=0.5)
    config = transformers.Qwen3NextConfig(
        **given,
        layer_types=with_one(rng, kinds(rng, given, "linear_attention", FULL)),
        linear_num_value_heads=4,
        linear_num_key_heads=rng.choice([2, 4]),
        linear_key_head_dim=rng.choice([8, 16]),
        linear_value_head_dim=rng.choice([8, 16]),
        linear_conv_kernel_dim=rng.choice([2, 4]),
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        mlp_only_layers=list(range(given["num_hidden_layers"])),
    )
    return transformers.Qwen3NextForCausalLM(config)


def _jamba(rng: random.Random) -> Any:
    period = rng.randint(1, 3)
    config = transformers.JambaConfig(
        **sizes(rng, num_hidden_layers=rng.randint(period, 6)),  # one of them attends
        attn_layer_period=period,
        attn_layer_offset=rng.randrange(period),
        mamba_d_state=rng.choice([4, 16]),
        mamba_d_conv=rng.choice([2, 4]),
        mamba_expand=rng.choice([1, 2]),
        mamba_dt_rank=4,
        num_experts=1,
        num_experts_per_tok=1,
        use_mamba_kernels=False,
    )
    return transformers.JambaForCausalLM(config)


def _mamba(rng: random.Random) -> Any:
    config = transformers.MambaConfig(
        vocab_size=64,
        hidden_size=32,
        state_size=rng.choice([4, 16]),
        num_hidden_layers=rng.randint(1, 4),
        conv_kernel=rng.choice([2, 4]),
        expand=rng.choice([1, 2]),
    )
    return transformers.MambaForCausalLM(config)


def _convolved(rng: random.Random) -> Any:
    given = sizes(rng)
    types = with_one(rng, kinds(rng, given, "conv", FULL))
    return transformers.Lfm2ForCausalLM(
        transformers.Lfm2Config(**given, layer_types=types, conv_L_cache=rng.choice([2, 3, 5]))
    )


def _latent(rng: random.Random) -> Any:
    config = transformers.DeepseekV3Config(
        **{**sizes(rng), "num_key_value_heads": 4, "num_attention_heads": 4},
        kv_lora_rank=rng.choice([8, 24]),
        q_lora_rank=rng.choice([None, 16]),
        qk_rope_head_dim=rng.choice([4, 8]),
        qk_nope_head_dim=16,
        v_head_dim=rng.choice([8, 16]),
        first_k_dense_replace=10,
    )
    return transformers.DeepseekV3ForCausalLM(config)


def _cross_t5(rng: random.Random) -> Any:
    config = transformers.T5Config(
        vocab_size=64,
        d_model=32,
        d_kv=rng.choice([4, 16]),
        d_ff=32,
        num_layers=rng.randint(1, 3),
        num_decoder_layers=rng.randint(1, 4),
        num_heads=rng.choice([2, 4]),
    )
    return transformers.T5ForConditionalGeneration(config)


def _cross_bart(rng: random.Random) -> Any:
    config = transformers.BartConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=rng.randint(1, 3),
        decoder_layers=rng.randint(1, 4),
        encoder_attention_heads=rng.choice([2, 4]),
        decoder_attention_heads=rng.choice([2, 4, 8]),
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=128,
    )
    return transformers.BartForConditionalGeneration(config)


def _two_part(rng: random.Random) -> Any:
    """An encoder and a decoder of other classes, each with a configuration of its own."""
    encoder = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    decoder = transformers.BertConfig(
        vocab_size=64,
        hidden_size=rng.choice([32, 64]),
        num_hidden_layers=rng.randint(1, 3),
        num_attention_heads=rng.choice([2, 4]),
        intermediate_size=32,
        is_decoder=True,
        add_cross_attention=True,
    )
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return transformers.EncoderDecoderModel(config)


_VISION: Final = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def _llava(rng: random.Random) -> Any:
    """A vision-language model whose decoder is one of several types."""
    given = sizes(rng)
    text: Any = rng.choice(
        [
            transformers.LlamaConfig(**given),
            transformers.MistralConfig(**given, sliding_window=window(rng)),
            transformers.Gemma2Config(
                **given,
                head_dim=16,
                sliding_window=window(rng),
                layer_types=kinds(rng, given, WINDOW, FULL),
            ),
        ]
    )
    vision = transformers.CLIPVisionConfig(**_VISION)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=63)
    return transformers.LlavaForConditionalGeneration(config)


def _falcon(rng: random.Random) -> Any:
    heads, is_new = rng.choice([2, 4]), rng.random() < 0.5
    config = transformers.FalconConfig(
        vocab_size=64,
        hidden_size=heads * 16,
        num_hidden_layers=rng.randint(1, 3),
        num_attention_heads=heads,
        num_kv_heads=rng.choice([1, 2]) if is_new else None,
        new_decoder_architecture=is_new,
        multi_query=rng.random() < 0.5,
        alibi=False,
    )
    return transformers.FalconForCausalLM(config)


def _one_head(rng: random.Random) -> Any:
    config = transformers.GPTBigCodeConfig(
        vocab_size=64,
        n_positions=64,
        n_embd=32,
        n_layer=rng.randint(1, 3),
        n_head=rng.choice([2, 4]),
        multi_query=rng.random() < 0.5,
    )
    return transformers.GPTBigCodeForCausalLM(config)


def _local(rng: random.Random) -> Any:
    kinds_of = [rng.choice(["global", "local"]) for _ in range(rng.randint(1, 4))]
    config = transformers.GPTNeoConfig(
        vocab_size=64,
        max_position_embeddings=128,
        hidden_size=32,
        num_layers=len(kinds_of),
        num_heads=rng.choice([2, 4]),
        attention_types=[[kinds_of, 1]],
        window_size=rng.randint(2, 40),
    )
    return transformers.GPTNeoForCausalLM(config)


def _chunked(rng: random.Random) -> Any:
    given = sizes(rng, head_dim=16)
    config = transformers.Llama4TextConfig(
        **given,
        intermediate_size_mlp=32,
        num_local_experts=2,
        interleave_moe_layer_step=2,
        attention_chunk_size=rng.randint(2, 40),
        layer_types=kinds(rng, given, "chunked_attention", FULL),
    )
    return transformers.Llama4ForCausalLM(config)


def _sinks(rng: random.Random) -> Any:
    given = sizes(rng, head_dim=16)
    config = transformers.GptOssConfig(
        **given,
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=window(rng),
        layer_types=kinds(rng, given, WINDOW, FULL),
    )
    model = transformers.GptOssForCausalLM(config)
    model.set_experts_implementation("eager")
    return model


def _parallel(rng: random.Random) -> Any:
    """Attention and states side by side."""
    config = transformers.FalconH1Config(
        **sizes(rng, head_dim=16),
        mamba_d_ssm=rng.choice([32, 64]),
        mamba_n_heads=4,
        mamba_d_head="auto",
        mamba_n_groups=rng.choice([1, 2]),
        mamba_d_state=rng.choice([8, 16]),
        mamba_d_conv=rng.choice([2, 4]),
    )
    return transformers.FalconH1ForCausalLM(config)


def _granite(rng: random.Random) -> Any:
    given = sizes(rng)
    given["hidden_size"] = 64
    given["num_attention_heads"], given["num_key_value_heads"] = 4, rng.choice([1, 2, 4])
    config = transformers.GraniteMoeHybridConfig(
        **given,
        layer_types=with_one(rng, kinds(rng, given, "mamba", "attention"), "attention"),
        mamba_n_heads=4,
        mamba_d_head=32,
        mamba_n_groups=rng.choice([1, 2]),
        mamba_d_state=rng.choice([8, 16]),
        mamba_d_conv=rng.choice([2, 4]),
        num_local_experts=0,
        shared_intermediate_size=32,
    )
    return transformers.GraniteMoeHybridForCausalLM(config)


def _bamba(rng: random.Random) -> Any:
    given = sizes(rng)
    given["hidden_size"] = 64
    given["num_attention_heads"], given["num_key_value_heads"] = 4, 2
    layers = range(given["num_hidden_layers"])
    config = transformers.BambaConfig(
        **given,
        attn_layer_indices=[index for index in layers if rng.random() < 0.5] or [0],
        mamba_n_heads=4,
        mamba_d_head=32,
        mamba_n_groups=rng.choice([1, 2]),
        mamba_d_state=rng.choice([8, 16]),
    )
    return transformers.BambaForCausalLM(config)


def _speech(rng: random.Random) -> Any:
    config = transformers.Speech2TextConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=1,
        decoder_layers=rng.randint(1, 4),
        encoder_attention_heads=2,
        decoder_attention_heads=rng.choice([2, 4]),
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        input_feat_per_channel=8,
        conv_channels=16,
        max_target_positions=128,
        pad_token_id=0,
    )
    return transformers.Speech2TextForConditionalGeneration(config)


def _pictured_gemma(rng: random.Random) -> Any:
    given = sizes(rng, head_dim=16, sliding_window=window(rng))
    text = transformers.Gemma3TextConfig(**given, layer_types=kinds(rng, given, WINDOW, FULL))
    vision = transformers.SiglipVisionConfig(**_VISION)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, image_token_index=63, mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _heard_qwen(rng: random.Random) -> Any:
    """Of an audio model, the decoder two configurations deep where the whole is written."""
    text = transformers.Qwen2Config(**sizes(rng))
    audio = transformers.Qwen2AudioEncoderConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, num_mel_bins=8
    )
    config = transformers.Qwen2AudioConfig(text_config=text, audio_config=audio, audio_token_index=63)
    return transformers.Qwen2AudioForConditionalGeneration(config)


FAMILIES: Final[Mapping[str, Callable[[random.Random], Any]]] = {
    "llama": _decoder("Llama", head_dim=lambda rng: rng.choice([None, 8, 24])),
    "mistral": _decoder("Mistral", sliding_window=lambda rng: rng.choice([None, window(rng)])),
    "phi3": _decoder("Phi3", sliding_window=lambda rng: rng.choice([None, window(rng)])),
    "gemma2": _typed("Gemma2", WINDOW, FULL, sliding_window=window, head_dim=lambda _: 16),
    "gemma3": _typed("Gemma3", WINDOW, FULL, sliding_window=window, head_dim=lambda _: 16),
    "cohere2": _typed("Cohere2", WINDOW, FULL, sliding_window=window),
    "olmo3": _typed("Olmo3", WINDOW, FULL, sliding_window=window),
    "exaone4": _typed("Exaone4", WINDOW, FULL, sliding_window=window),
    "smollm3": _decoder(
        "SmolLM3",
        use_sliding_window=lambda rng: rng.random() < 0.5,
        sliding_window=window,
    ),
    "qwen2": _qwen_windows,
    "gemma3n": _shared,
    "qwen3_next": _linear,
    "jamba": _jamba,
    "mamba": _mamba,
    "lfm2": _convolved,
    "deepseek_v3": _latent,
    "t5": _cross_t5,
    "bart": _cross_bart,
    "bert to bert": _two_part,
    "llava": _llava,
    "falcon": _falcon,
    "gpt_bigcode": _one_head,
    "gpt_neo": _local,
    "llama4": _chunked,
    "gpt_oss": _sinks,
    "falcon_h1": _parallel,
    "granitemoehybrid": _granite,
    "bamba": _bamba,
    "speech_to_text": _speech,
    "gemma3 with pictures": _pictured_gemma,
    "qwen2 with sound": _heard_qwen,
}
