"""Small models of transformers classes, run for a prompt and two steps, and the storage of the caches that they keep."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers

import tiny_zoo
from cache_inputs import UNASKED, own_inputs, seen_inputs
from cache_zoo import NotMeasuredError
from planner.memory.cache_parts import Phase

BATCH, PROMPT, STEPS, ENCODED = 2, 24, 2, 20
STATIC_TOKENS = 40
CACHE_KEYS = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


WHOLE = ("CpmAntForCausalLM",)  # take all words at each step


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one cache held.

    Args:
        phase: after which forward: "prefill", or the first or second "decode".
        tokens: those that it has seen of each sequence; of a static one, those it is made for.
        storage_bytes: every storage once.
        looked_at_bytes: what its tensors show of that.
        encoder_tokens: those that an encoder has seen, or made of a picture.
    """

    phase: Phase
    tokens: int
    storage_bytes: int
    looked_at_bytes: int
    encoder_tokens: int


def tensors(value: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Every tensor inside a cache, wherever it is kept."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not hasattr(value, "model_type"):
        yield from tensors(vars(value), seen)


def storage_bytes(cache: Any) -> int:
    """Bytes of a cache's storages, each once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors(cache)}.values())


def looked_at_bytes(cache: Any) -> int:
    """Bytes of a cache's tensors, as they are looked at."""
    return sum(t.numel() * t.element_size() for t in tensors(cache))


def words(model: Any, count: int) -> torch.Tensor:
    """Ordinary words of a small vocabulary."""
    return (3 + torch.arange(count) % 20)[None].expand(BATCH, count).contiguous()


def like(ids: torch.Tensor, count: int) -> torch.Tensor:
    """So many words for each row of a model's inputs, and for each of its channels."""
    made = (3 + torch.arange(count) % 20)[None].expand(len(ids), count)
    for size in ids.shape[2:]:
        made = made[..., None].expand(*made.shape, size)
    return made.contiguous()


def givens(model: Any, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Inputs to try, the plainest first."""
    ids = words(model, PROMPT)
    takes = inspect.signature(model.forward).parameters
    own = own_inputs(model, ids, words(model, ENCODED), dtype)
    if own:
        yield own
    if model.config.is_encoder_decoder:
        yield {"input_ids": words(model, ENCODED), "decoder_input_ids": ids}
        channels = getattr(model.config.get_text_config(decoder=True), "num_channels", None)
        if isinstance(channels, int):
            yield {
                "input_ids": words(model, ENCODED),
                "decoder_input_ids": like(ids[..., None].expand(-1, -1, channels), PROMPT),
            }
    yield {"input_ids": ids}
    yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    books = getattr(model.config.get_text_config(decoder=True), "num_codebooks", None)
    if isinstance(books, int):  # a row for each book of each sequence
        many = ids.repeat(books, 1)
        yield {"input_ids": many}
        yield {"input_ids": words(model, ENCODED), "decoder_input_ids": many}
    for made in tiny_zoo.inputs(model):
        given = {}
        for key, value in made.items():
            if key not in takes:
                continue
            value = value.to(dtype) if value.is_floating_point() else value
            given[key] = (
                value.expand(BATCH, *value.shape[1:]).contiguous() if value.shape[:1] == (1,) else value
            )
        if "decoder_input_ids" in given:
            given["decoder_input_ids"] = ids
        elif "input_ids" in given:
            given["input_ids"] = ids
            if "attention_mask" in given:
                given["attention_mask"] = torch.ones_like(ids)
            if "mm_token_type_ids" in given:
                given["mm_token_type_ids"] = torch.zeros_like(ids)
        yield given


def static_cache(model: Any, encoder_tokens: int) -> Any:
    """A static cache for this model, and for so many tokens of its encoder where it has one."""
    config = model.config.get_text_config(decoder=True)
    try:
        cache = transformers.StaticCache(config=config, max_cache_len=STATIC_TOKENS)
    except Exception as error:  # whatever transformers raises where there is none for a layer
        raise NotMeasuredError("takes no static cache") from error
    if not model.config.is_encoder_decoder:
        return cache
    return transformers.EncoderDecoderCache(
        cache, transformers.StaticCache(config=config, max_cache_len=encoder_tokens)
    )


def find_cache(out: Any) -> tuple[str, Any]:
    """The cache that a forward gave back, and under which name."""
    for key in CACHE_KEYS:
        value = out.get(key) if hasattr(out, "get") else None
        if value is not None:
            return key, value
    raise NotMeasuredError("keeps no cache")


def measure(model: Any, dtype: torch.dtype, kind: str) -> list[Measured]:
    """A prefill and two steps. Raises if the class does not run so."""
    problems = []
    for given in givens(model, dtype):
        try:
            return run_real(model, given, kind)
        except NotMeasuredError:
            raise
        except Exception as error:
            problems.append(error)
    raise NotMeasuredError(f"{type(problems[0]).__name__}: {str(problems[0])[:100]}")


@contextmanager
def looking_at(model: Any) -> Iterator[list[int]]:
    """How many tokens of an encoder the parts of a model are given, in the order of their calls."""
    found: list[int] = []

    def look(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
        states = given.get("encoder_hidden_states")
        if isinstance(states, torch.Tensor) and states.ndim == 3:
            found.append(states.shape[1])

    hooks = [part.register_forward_pre_hook(look, with_kwargs=True) for part in model.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def run_real(model: Any, given: dict[str, Any], kind: str) -> list[Measured]:
    """A prefill and two steps with these inputs. Raises whatever the class raises."""
    takes = inspect.signature(model.forward).parameters
    dtype = next(model.parameters()).dtype
    asks = ("use_cache" in takes or "kwargs" in takes) and type(model).__name__ not in UNASKED
    more: dict[str, Any] = {"use_cache": True} if asks else {}
    with looking_at(model) as encoded_tokens:
        out = model(**given, **more)
    taken = "cache_params" if "cache_params" in takes else "past_key_values"
    if kind == "static":
        more[taken] = static_cache(model, max(encoded_tokens, default=ENCODED))
        out = model(**given, **more)
    key, cache = find_cache(out)
    if kind == "static" and cache is not more[taken]:
        raise NotMeasuredError("takes no static cache")
    word = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    tokens = given[word].shape[1]
    encoded = out.get("encoder_last_hidden_state") if word == "decoder_input_ids" else None
    seen = 0 if encoded is None else encoded.shape[1]
    if encoded_tokens and model.config.is_encoder_decoder:
        seen = encoded_tokens[0]  # which may be fewer than its encoder makes
    rows = [_row("prefill", kind, tokens, cache, seen)]
    for step in range(1, STEPS + 1):
        again = {key: cache, **({"use_cache": True} if "use_cache" in more else {})}
        again[word] = like(given[word], tokens + step if type(model).__name__ in WHOLE else 1)
        again |= seen_inputs(model, again[word], dtype)
        if encoded is not None:
            again["encoder_outputs"] = transformers.modeling_outputs.BaseModelOutput(
                last_hidden_state=encoded
            )
            again["encoder_outputs"].router_logits = None  # of mixtures
            again["encoder_outputs"].attention_mask = torch.ones(encoded.shape[:2], dtype=torch.long)
        if "attention_mask" in given and word == "input_ids":
            again["attention_mask"] = torch.ones((BATCH, tokens + step), dtype=torch.long)
        key, cache = find_cache(model(**again))
        rows.append(_row("decode", kind, tokens + step, cache, seen))
    return rows


def _row(phase: Phase, kind: str, tokens: int, cache: Any, encoder_tokens: int) -> Measured:
    return Measured(
        phase=phase,
        tokens=STATIC_TOKENS if kind == "static" else tokens,
        storage_bytes=storage_bytes(cache),
        looked_at_bytes=looked_at_bytes(cache),
        encoder_tokens=encoder_tokens,
    )
