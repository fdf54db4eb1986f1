"""A workload as recordings: which forwards tell what it needs."""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from planner.errors import InvalidInputError, RecordingError
from planner.memory.activations import kept_token_bytes
from planner.memory.demands import Demands
from planner.memory.recording.caches import cache_maker
from planner.memory.recording.session import RecordedRun, record_run
from planner.memory.tape import PHASE, Tape
from planner.memory.vectors import demands_of
from planner.settings.workload import Workload

__all__ = [
    "WorkloadRun",
    "generation_bytes",
    "record",
    "recorded_demands",
    "recording_key",
    "runs_of",
    "scores_bytes",
    "takes_use_cache",
    "vocabulary_of",
]

_TOKENS = ("input_ids", "decoder_input_ids", "inputs_embeds")
# What stands in the place of words.
_INSTEAD = {"inputs_embeds": "input_ids", "decoder_inputs_embeds": "decoder_input_ids"}
# What a step makes itself.
_OF_STEPS = (*_TOKENS, "decoder_inputs_embeds", "attention_mask")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_WHOLE = ("_ids", "_mask", "_thw", "_sizes", "_index", "_lengths")
# What generate() holds beside the model, in rows of the vocabulary as 32-bit floats: greedy, sampled or with beams.
_SHARES = 62
# Recordings that are kept, of this process.
_MOST = 16
_kept: OrderedDict[tuple[str, ...], tuple[Tape, ...]] = OrderedDict()


def record(
    model: nn.Module, blocks: Sequence[str], workload: Workload, *, fingerprint: str | None = None
) -> tuple[Tape, ...]:
    """Records what a model does under a workload, on the meta device.

    Args:
        model: only looked at; its weights may be anywhere, the meta device too.
        blocks: names of what is placed as a whole, modules or tensors.
        workload: what it will be run on.
        fingerprint: a digest of the model; with it, recordings are kept in this process, and made once.

    Returns:
        A recording of the prompt and the steps after it and, where these do not reach the whole context, one whose last step does; of
        that, only this step is told as a phase.

    Raises:
        RecordingError: the model's code cannot be recorded. Fields: ``block``, ``operator``.
        InvalidInputError: inputs that its forward does not take, or none for its main input.

    Guarantee: nothing of the model is changed, read or kept alive.

    Cost: for each recording a third of a millisecond for each module and operator, whatever the sizes.
    """
    key = None if fingerprint is None else recording_key(model, blocks, workload, fingerprint)
    if key is not None and key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    _require_uncompiled(model)
    tapes = []
    for each in runs_of(model, workload):
        tape = record_run(model, blocks, each.run)
        tapes.append(_only_last(tape) if each.is_of_last_step else tape)
    found = tuple(tape for tape in tapes if tape.phases)
    if key is not None:
        _kept[key] = found
        while len(_kept) > _MOST:
            _kept.popitem(last=False)
    return found


@dataclass(frozen=True, slots=True)
class WorkloadRun:
    """One run that a workload asks for.

    Args:
        run: what is run.
        is_of_last_step: only its last step counts, which reaches the end of the context; the others lead there.
    """

    run: RecordedRun
    is_of_last_step: bool = False


def runs_of(model: nn.Module, workload: Workload) -> Iterator[WorkloadRun]:
    """What is run for a workload: the prompt and the steps after it and, where these do not reach the whole context, one run
    whose last step does.

    Raises:
        InvalidInputError: inputs that the model's forward does not take, or none for its main input.
    """
    prompt, context = workload.prompt_tokens, workload.context_length
    steps = min(2, context - prompt) if workload.cache != "none" else 0
    yield WorkloadRun(_run(model, workload, prompt, steps))
    if workload.cache != "none" and context > 1 and (prompt + steps < context or not steps):
        steps = min(2, context - 1)
        yield WorkloadRun(_run(model, workload, context - steps, steps), is_of_last_step=True)


def recorded_demands(
    model: nn.Module, blocks: Sequence[str], workload: Workload, *, fingerprint: str | None = None
) -> Demands:
    """What a model needs while it runs, by block, from recordings.

    Args, Raises, Cost: as :func:`record`.
    """
    tapes = record(model, blocks, workload, fingerprint=fingerprint)
    return demands_of(tapes, main_needs_bytes=generation_bytes(model, workload))


def vocabulary_of(model: nn.Module) -> int:
    """How many tokens a model knows; 0 where that is not said."""
    config: Any = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    vocabulary = getattr(text, "vocab_size", None)
    return vocabulary if isinstance(vocabulary, int) else 0


def scores_bytes(vocabulary: int, workload: Workload) -> int:
    """What ``generate()`` needs beside the model's own forward where the inputs lie: scores of the next token and copies of them, and
    what it keeps of each token.

    Source: measured with transformers 5.23: at most 6.2 times rows × vocabulary × 4 bytes, greedy, sampled and with beams; see
        :func:`planner.memory.activations.kept_token_bytes`.
    """
    return -(-_SHARES * workload.rows * vocabulary * 4 // 10) + kept_token_bytes(workload)


def generation_bytes(model: nn.Module, workload: Workload) -> int:
    """The same of a model; nothing where its vocabulary is not known, or where logits are of all tokens, as in no generation."""
    return scores_bytes(vocabulary_of(model), workload) if workload.logits == "last" else 0


def takes_use_cache(model: nn.Module) -> bool:
    """Whether a model's forward is told whether to keep a cache: by an argument of its own, or by one that it hands on."""
    takes = inspect.signature(model.forward).parameters
    if "use_cache" in takes:
        return True
    config: Any = getattr(model, "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    is_known = any(getattr(each, "use_cache", None) is not None for each in (config, text))
    return is_known and any(each.kind is each.VAR_KEYWORD for each in takes.values())


def _require_uncompiled(model: nn.Module) -> None:
    """Raises RecordingError where a call would begin with compiling."""
    compiler: Any = sys.modules.get("torch._dynamo")
    if compiler is not None and isinstance(model, compiler.OptimizedModule):
        raise RecordingError(
            "what torch.compile returns is not recorded; plan the model that it was given, and compile it afterwards",
            block="",
            operator="",
        )


def recording_key(
    model: nn.Module, blocks: Sequence[str], workload: Workload, fingerprint: str
) -> tuple[str, ...]:
    """All that a recording depends on, as text."""
    config: Any = getattr(model, "config", None)
    transformers: Any = sys.modules.get("transformers")
    return (
        fingerprint,
        repr(workload),
        "\n".join(blocks),
        str(getattr(config, "_attn_implementation", "")),
        str(torch.get_default_dtype()),
        str(torch.__version__),
        str(getattr(transformers, "__version__", "")),
    )


def _only_last(tape: Tape) -> Tape:
    """The tape with its last forward as the only phase; what was before is there, and is not told."""
    last = tape.phases[-1]
    if not last.startswith("decode"):
        return replace(tape, events=())  # it keeps no cache, so there are no steps
    events = tuple(event for event in tape.events if event[0] != PHASE or event[1] == last)
    return replace(tape, events=events)


# ---- The inputs of one run


def _run(model: nn.Module, workload: Workload, tokens: int, steps: int) -> RecordedRun:
    takes = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if takes_use_cache(model):
        options["use_cache"] = workload.cache != "none"
    if workload.logits == "last" and "logits_to_keep" in takes:
        options["logits_to_keep"] = 1
    return RecordedRun(
        inputs=_inputs(model, takes, workload, tokens),
        step_inputs=_step_inputs(model, takes, workload) if steps else {},
        steps=steps,
        options=options,
        attention_kernel=workload.attention_kernel,
        is_padded=workload.is_padded,
        cache=cache_maker(workload),
    )


def _inputs(
    model: nn.Module, takes: Mapping[str, inspect.Parameter], workload: Workload, tokens: int
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    config: Any = getattr(model, "config", None)
    rows = workload.rows
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    is_seq2seq = bool(getattr(config, "is_encoder_decoder", False))
    length = workload.encoder_tokens if is_seq2seq else tokens
    named = [name for name, each in takes.items() if each.kind in _NAMED]
    # Some hand on whatever they are given, as wrappers do.
    hands_on = not named and any(each.kind is each.VAR_KEYWORD for each in takes.values())
    given = {*workload.inputs, *(_INSTEAD[name] for name in workload.inputs if name in _INSTEAD)}
    if ("input_ids" in named or hands_on) and "input_ids" not in given:
        found["input_ids"] = ((rows, length), torch.long)
    if is_seq2seq and "decoder_input_ids" in named and "decoder_input_ids" not in given:
        found["decoder_input_ids"] = ((rows, tokens), torch.long)
    has_words = "input_ids" in found or "inputs_embeds" in given
    if workload.is_padded and "attention_mask" in named and has_words:
        found["attention_mask"] = ((rows, length), torch.long)
    sizes = {"batch": rows, "context": tokens}
    for name, shape in workload.inputs.items():
        if name not in named and not hands_on:
            raise InvalidInputError(
                f"workload.inputs names {name!r}, which the forward of {type(model).__name__} does not take; it takes "
                f"{', '.join(named) or 'nothing by name'}"
            )
        whole = torch.long if name.endswith(_WHOLE) else _float_of(model)
        found[name] = (tuple(sizes[each] if isinstance(each, str) else each for each in shape), whole)
    missing = _missing(model, takes, found)
    if missing is not None:
        raise InvalidInputError(
            f"nothing tells the shape of {missing!r}, which the forward of {type(model).__name__} takes; say it in workload.inputs, "
            f"as {{{missing!r}: ['batch', …]}}"
        )
    return found


def _step_inputs(
    model: nn.Module, takes: Mapping[str, inspect.Parameter], workload: Workload
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Of the inputs that a workload names, those that no forward goes without: a step of one token gets them, too."""
    needed = [
        name
        for name in workload.inputs
        if name in takes and takes[name].default is inspect.Parameter.empty and name not in _OF_STEPS
    ]
    return {name: said for name, said in _inputs(model, takes, workload, 1).items() if name in needed}


def _missing(
    model: nn.Module, takes: Mapping[str, inspect.Parameter], found: Mapping[str, Any]
) -> str | None:
    """An argument that a forward does not do without, and that nothing tells the shape of."""
    main = getattr(model, "main_input_name", None)
    if main is not None:
        return None if main in found or set(_TOKENS) & set(found) else str(main)
    wanted = [name for name, each in takes.items() if each.kind in _NAMED and each.default is each.empty]
    if not wanted and not found:
        wanted = list(takes)
    return next((name for name in wanted if name not in found), None)


def _float_of(model: nn.Module) -> torch.dtype:
    floats = (tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    return next(floats, torch.float32)
