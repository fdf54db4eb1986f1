"""Inputs of a model's first forward, where its class and its configuration tell what they look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from planner.errors import InvalidInputError

__all__ = ["sample_inputs"]

# Tokens of a sentence, samples of a second of sound.
TOKENS = 8
SAMPLES = 16_000


def sample_inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    """One small example of a model's main input, by keyword.

    Args:
        model: of a transformers class, or of one with ``main_input_name`` and ``config`` like those.

    Raises:
        InvalidInputError: nothing tells the shape.
    """
    name, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    if not isinstance(name, str) or config is None:
        raise InvalidInputError(
            f"nothing tells what a {type(model).__name__} takes (it has no main_input_name and config); give inputs of one "
            "forward: verify(model, plan, inputs=…)"
        )
    shape = _shape(name, config)
    if shape is None:
        raise InvalidInputError(
            f"the configuration of {type(model).__name__} does not tell the shape of its {name!r}; give inputs of one forward: "
            "verify(model, plan, inputs=…)"
        )
    given = {name: _tokens(shape, config) if name.endswith("_ids") else torch.zeros(shape)}
    if name == "input_ids" and _said(config, "image_token_id", "image_token_index") is None:
        images = _said(config, "vision_config")
        if images is not None and (pixels := _shape("pixel_values", images)) is not None:
            given["pixel_values"] = torch.zeros(pixels)
    if _said(config, "is_encoder_decoder") and name != "decoder_input_ids":
        given["decoder_input_ids"] = _tokens((1, TOKENS // 2), config)
    return given


def _tokens(shape: tuple[int, ...], config: Any) -> torch.Tensor:
    """Words that are none of the special ones, as far as that can be told."""
    words = _said(config, "vocab_size") or _said(_said(config, "text_config"), "vocab_size") or TOKENS
    count = 1
    for size in shape:
        count *= size
    return (torch.arange(count) % max(words - 3, 1) + min(3, words - 1)).reshape(shape)


def _shape(name: str, config: Any) -> tuple[int, ...] | None:
    """The shape of a main input, by its name; None where the configuration does not tell."""
    if name in ("input_ids", "decoder_input_ids"):
        return (1, TOKENS)
    if name in ("pixel_values", "pixel_values_videos"):
        return _pixels(config, is_video=name.endswith("videos"))
    if name == "input_features":
        bins, length = _said(config, "num_mel_bins"), _said(config, "max_source_positions")
        # Whisper's encoder halves the length and wants all of it.
        return None if bins is None or length is None else (1, bins, 2 * length)
    if name == "input_values":
        bins, length = _said(config, "num_mel_bins"), _said(config, "max_length")
        return (1, SAMPLES) if bins is None or length is None else (1, length, bins)
    return None


def _pixels(config: Any, *, is_video: bool) -> tuple[int, ...] | None:
    size = _said(config, "image_size")
    if size is None:
        config = _said(config, "vision_config", "backbone_config")
        size = _said(config, "image_size")
    if isinstance(size, Mapping):
        size = [size.get("height"), size.get("width")]
    if isinstance(size, int):
        size = [size, size]
    channels = _said(config, "num_channels", "in_channels", "num_input_channels") or 3
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(isinstance(s, int) for s in size):
        return None
    frames = _said(config, "num_frames")
    if frames is not None or is_video:
        return (1, frames or 1, channels, *size)
    return (1, channels, *size)


def _said(config: Any, *names: str) -> Any:
    """The first of some settings that a configuration has."""
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if value is not None), None)
