"""Whether stages of a model compute what the whole does, tried on a tiny model of its class and configuration in one process."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from planner.errors import PipelineError
from planner.pipelines.caching import plain_cache
from planner.pipelines.cutting import cut_model
from planner.pipelines.known import KnownClasses
from planner.pipelines.layers import LayerList, Roles, find_layers, parts_outside
from planner.pipelines.observing import observed_calls
from planner.pipelines.running import StageForward, cache_argument
from planner.pipelines.runs import stage_runs
from planner.pipelines.shrinking import TINY_LAYERS, WORDS, tiny_configurations
from planner.spelling import one_line

__all__ = ["compare_stages", "require_equal_stages"]

# Odd against patterns of two, three and four layers, with stages of one layer.
_CUTS: Final = ((1, 3, 2), (3, 2, 1), (2, 1, 3))
_MOST_PARAMETERS: Final = 60_000_000
# A prompt that is longer than windows are made, with padding on the left, then single tokens.
_ROWS, _PROMPT, _STEPS, _PADDING = 2, 9, 2, 3
_SEED: Final = 20
_Logits = list[Tensor]
_Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
_compared: dict[tuple[type[nn.Module], str], Roles] = {}


def require_equal_stages(model: nn.Module, layers: LayerList) -> Roles:
    """What a model calls before, between and after its layers, once its stages are known to compute what the whole does.

    Args:
        model: on meta, or with values.
        layers: its list of layers.

    Raises:
        PipelineError: they do not, or it cannot be tried.

    Cost: nothing for classes that have passed with this version of transformers; for others a tiny model is made and run, once in
        a process.
    """
    _refuse_shared_caches(model)
    known = KnownClasses.shipped().roles_of(model)
    if known is not None and all(name in known for name, _ in parts_outside(model, layers)):
        return known
    config: Any = model.config
    key = (type(model), config.to_json_string())
    if key not in _compared:
        _compared[key] = compare_stages(model, layers)
    return _compared[key]


def compare_stages(model: nn.Module, layers: LayerList) -> Roles:
    """The same for a class of which nothing is known. Raises PipelineError."""
    name = type(model).__name__
    _refuse_shared_caches(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
        torch.manual_seed(_SEED)
        tiny = _tiny_model(model, layers)
        tiny_layers = find_layers(tiny)
        words = min(WORDS, tiny.config.get_text_config(decoder=True).vocab_size)
        with observed_calls(tiny, tiny_layers) as calls:
            whole = _tried(name, "as a whole, with a cache,", lambda: _logits(_whole_forward(tiny), words))
        if not calls.is_in_order:
            raise _refused(
                name,
                f"its layers are not called once each, in order: {calls.order[: 2 * tiny_layers.length]}",
            )
        roles = calls.roles()
        _refuse_towers(tiny, tiny_layers, roles)
        for counts in _CUTS:
            said = f"cut into {' + '.join(map(str, counts))} layers"
            found = _tried(name, said, lambda: _logits(_chain(tiny, tiny_layers, roles, counts), words))  # noqa: B023
            _require_same(name, said, whole, found)
    return roles


def _refuse_shared_caches(model: nn.Module) -> None:
    """Raises for layers that keep no cache, and read one that may lie in another stage."""
    config: Any = model.config
    modes = getattr(config.get_text_config(decoder=True), "kv_sharing_modes", None) or ()
    shared = sum(mode == "reuse" for mode in modes)  # others say "store"
    if shared:
        raise _refused(
            type(model).__name__, f"{shared} of its layers read the caches of others, which other stages have"
        )


def _refuse_towers(model: nn.Module, layers: LayerList, roles: Roles) -> None:
    """Raises for what a text does not call, and is as deep as a model of its own."""
    for name, _ in parts_outside(model, layers):
        lists = [each for each in model.get_submodule(name).modules() if isinstance(each, nn.ModuleList)]
        if name not in roles and any(len(each) > 1 for each in lists):
            raise _refused(
                type(model).__name__, f"'{name}' is a model of its own, which no text goes through"
            )


def _tried(name: str, how: str, run: Callable[[], _Logits]) -> _Logits:
    try:
        return run()
    except Exception as error:  # whatever a model's own code raises says that it cannot be
        raise _refused(name, f"{how} it does not run: {_said(error)}") from error


def _require_same(name: str, how: str, whole: _Logits, found: _Logits) -> None:
    for step, (one, other) in enumerate(zip(whole, found, strict=True)):
        if one.shape != other.shape:
            raise _refused(
                name, f"{how} it gives {list(other.shape)} where the whole model gives {list(one.shape)}"
            )
        if not torch.equal(one.view(torch.int32), other.view(torch.int32)):
            most = float((one - other).abs().max())
            raise _refused(
                name, f"{how} its forward {step} gives other logits than the whole model, by up to {most:.2g}"
            )


def _tiny_model(model: nn.Module, layers: LayerList) -> Any:
    """The smallest model of a class that its configuration shrinks to, with random weights. Raises PipelineError."""
    cls: Any = type(model)
    errors: list[str] = []
    for said in tiny_configurations(model.config, layers.length):
        try:
            tiny = _made(cls, said)
        except Exception as error:  # noqa: BLE001 # a class says with anything that values do not go together
            errors.append(_said(error))
            continue
        if tiny is None:
            errors.append(f"more than {_MOST_PARAMETERS} parameters are left")
            continue
        if find_layers(tiny).length != TINY_LAYERS:
            errors.append(f"{find_layers(tiny).length} layers are left, and {TINY_LAYERS} were asked for")
            continue
        return tiny
    raise _refused(cls.__name__, f"no tiny model can be made of its configuration: {errors[0]}")


def _made(cls: Any, said: dict[str, Any]) -> Any:
    """A model with stirred weights, None where it is not small."""
    config = cls.config_class.from_dict(said)
    config._attn_implementation = "eager"
    config.dtype = torch.float32
    with torch.device("meta"):
        elements = sum(parameter.numel() for parameter in cls._from_config(config).parameters())
    if elements > _MOST_PARAMETERS:
        return None
    with torch.device("cpu"):
        tiny = cls._from_config(config).float().eval()
    if tiny._can_set_experts_implementation():
        tiny.set_experts_implementation("eager")
    for parameter in tiny.parameters():  # a weight of zeros would hide what it is multiplied with
        if parameter.is_floating_point():
            torch.nan_to_num_(parameter, 0.0, 0.0, 0.0).clamp_(-2, 2).add_(torch.randn_like(parameter) * 0.02)
    return tiny


def _whole_forward(model: Any) -> _Forward:
    takes = inspect.signature(model.forward).parameters
    cache_name = cache_argument(model)
    cache = plain_cache(model.config.get_text_config(decoder=True))

    def forward(ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        given = {"attention_mask": mask, "position_ids": positions, cache_name: cache, "use_cache": True}
        made = model(input_ids=ids, **{key: value for key, value in given.items() if key in takes})
        logits: Tensor = made[0] if isinstance(made, tuple) else made.logits
        return logits

    return forward


def _chain(tiny: nn.Module, layers: LayerList, roles: Roles, counts: Sequence[int]) -> _Forward:
    stages = []
    for run in stage_runs(counts):
        part = copy.deepcopy(tiny)
        stage = StageForward(part, cut_model(part, layers, roles, run), run)
        stages.append((stage, stage.new_cache()))

    def forward(ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        for stage, cache in stages:
            ids = stage(ids, cache, mask, positions, last_only=False)
            if not stage.run.is_last and ids.shape != (*positions.shape, stage.hidden_size):
                raise ValueError(
                    f"what goes from layer to layer is {list(ids.shape)}, not rows, tokens, and a width"
                )
        return ids

    return forward


def _logits(forward: _Forward, words: int) -> _Logits:
    """Those of a prompt with padding, and of the tokens after it."""
    numbers = torch.Generator().manual_seed(_SEED)
    total = _PROMPT + _STEPS
    ids = torch.randint(words // 4, words // 2, (_ROWS, total), generator=numbers)
    mask = torch.ones_like(ids)
    mask[0, :_PADDING] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    ends = [_PROMPT, *range(_PROMPT + 1, total + 1)]
    return [
        forward(ids[:, start:end], mask[:, :end], positions[:, start:end])
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def _refused(name: str, why: str) -> PipelineError:
    return PipelineError(
        f"{name} cannot be run in stages: {why}; planner.dispatch runs it over several devices in one process"
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(str(error))[:300]}"
