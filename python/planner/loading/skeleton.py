"""The model that a checkpoint's configuration names, without weights, as ``from_pretrained`` would make it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from planner.checkpoint.building import quantization
from planner.checkpoint.describe import generation_config, meta_model
from planner.checkpoint.files import CheckpointFiles
from planner.checkpoint.inside import resolve_inside
from planner.checkpoint.known import class_name, has_transformers
from planner.checkpoint.reading import fault, read_json_object
from planner.loading.stored import StoredTensor
from planner.spelling import shown

__all__ = ["build_skeleton", "quantised_modules"]

_GENERATION = "generation_config.json"


def build_skeleton(
    files: CheckpointFiles, rows: Sequence[StoredTensor] = (), dtype: torch.dtype | None = None
) -> nn.Module:
    """The model of a checkpoint, all of it on meta, ready for inference.

    Args:
        files: what the place holds.
        rows: what its files hold; the first floating dtype counts where the configuration says none.
        dtype: of what is made for the model and not loaded; None for that of the configuration.

    Raises:
        CheckpointError: the configuration names no class, one that transformers does not have, or one whose modules only a
            quantiser makes; transformers is not installed; ``generation_config.json`` is malformed. Fields: ``file``,
            ``reason``.

    Guarantee: no code that comes with a checkpoint is run, and nothing is fetched.
    """
    name = class_name(files.config)
    if name is None:
        raise fault(
            files.config_path,
            "does not say what model this is; make the model yourself, on meta, and give it as model="
            if files.config
            else "is missing, so nothing says what model this is; make it yourself, on meta, and give it as model=",
        )
    if not has_transformers():
        raise fault(files.config_path, f"names {name}, which only transformers can make; it is not installed")
    said = quantised_modules(files.config, name)
    if said is not None:
        raise fault(files.config_path, said)
    try:
        model = meta_model(name, _with_dtype(files.config, rows, dtype), files.config_path)
    except ValueError as error:
        said = f"{error}; make the model yourself, on meta, and give it as model="
        raise fault(files.config_path, said) from error
    _put_on_meta(model)
    folder = files.name if os.path.isdir(files.name) else os.path.dirname(files.name)
    model.config.name_or_path = model.name_or_path = folder
    if model.can_generate():
        path = resolve_inside(folder, _GENERATION, folder)
        settings = None if path is None else read_json_object(path)
        try:
            model.generation_config = generation_config(settings, files.config)
        except (TypeError, ValueError) as error:
            raise fault(path or files.config_path, f"no settings for generating: {error}") from error
    return cast("nn.Module", model.eval())


def _put_on_meta(model: nn.Module) -> None:
    """Parameters that a class makes where no device is asked for, by ``torch.Tensor(…)``: their values are nobody's."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)


def quantised_modules(config: Mapping[str, Any], name: str) -> str | None:
    """Why a model of this configuration cannot be made by its class alone, and what makes it; None where it can."""
    said = quantization(config)
    if not said:
        return None
    method = said.get("quant_method")
    by = f" by {shown(method)}" if isinstance(method, str) else ""
    return (
        f"says that the model is quantised{by}: only the quantiser makes its modules; hand the plan to it, as in"
        f" {name}.from_pretrained(folder, device_map=plan.device_map), or make the model yourself and give it as model="
    )


def _with_dtype(
    config: Mapping[str, Any], rows: Sequence[StoredTensor], dtype: torch.dtype | None
) -> Mapping[str, Any]:
    """The configuration with the dtype in which the class makes what is not loaded.

    Source: ``_get_dtype``, transformers 5.23, modeling_utils.py.
    """
    if dtype is None and not (config.get("dtype") or config.get("torch_dtype")):
        dtype = next((row.dtype for row in rows if row.dtype.is_floating_point), None)
    if dtype is None:
        return config
    rest = {key: value for key, value in config.items() if key != "torch_dtype"}
    return {**rest, "dtype": str(dtype).removeprefix("torch.")}
