"""What some classes do not go without beside words, in a prompt and in each step."""

from __future__ import annotations

from typing import Any

import torch

# Whose encoder refuses the word for it that its whole hands on.
UNASKED = ("SwitchTransformersForConditionalGeneration",)


def own_inputs(model: Any, words: torch.Tensor, encoded: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Inputs of a prompt for a class that has its own; empty for any other.

    Args:
        model: of the class.
        words: those of the prompt.
        encoded: those of an encoder.
        dtype: of what is not words.
    """
    rows, config = len(words), model.config
    name = type(model).__name__
    if name == "UdopForConditionalGeneration":
        boxes = torch.zeros((*encoded.shape, 4), dtype=dtype)
        return {"input_ids": encoded, "bbox": boxes, "decoder_input_ids": words}
    if name == "Pix2StructForConditionalGeneration":
        width = 2 + config.vision_config.patch_embed_hidden_size
        patches = torch.ones((*encoded.shape, width), dtype=dtype)  # which row and column each is first
        return {"flattened_patches": patches, "decoder_input_ids": words}
    if name == "MoonshineForConditionalGeneration":
        sound = torch.zeros((rows, 8000), dtype=dtype)
        mask = torch.ones(sound.shape, dtype=torch.long)
        return {"input_values": sound, "attention_mask": mask, "decoder_input_ids": words}
    return {"input_ids": words, **seen_inputs(model, words, dtype)} if name in _SEEING else {}


def seen_inputs(model: Any, words: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Pictures that a class wants to see again with each forward's words; empty for any other class."""
    rows, config = len(words), model.config
    if type(model).__name__ not in _SEEING:
        return {}
    if type(model).__name__ == "IdeficsForVisionText2Text":
        size = config.vision_config.image_size
        pictures = torch.zeros((rows, 1, 3, size, size), dtype=dtype)
        seen = torch.ones((*words.shape, 1), dtype=torch.long)
        return {"pixel_values": pictures, "image_attention_mask": seen}
    count = min(_PICTURED, words.shape[1])
    embedded = torch.zeros((rows, count, config.text_config.embed_dim), dtype=dtype)
    places = (torch.arange(words.shape[1]) < count).expand(words.shape)
    return {"image_embeds": embedded, "image_embeds_position_mask": places}


_PICTURED = 4  # words in whose places there is a picture
_SEEING = ("IdeficsForVisionText2Text", "Kosmos2ForConditionalGeneration")
