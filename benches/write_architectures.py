"""Writes the table of architectures, from which checkpoints are planned without transformers.

python benches/write_architectures.py [NAME ...]   # all, or those lines anew

Source of the table: the installed transformers; a test compares some lines with it.
"""

from __future__ import annotations

import gc
import itertools
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto import modeling_auto

import cache_defaults
import made_tensors
import model_zoo
from planner.checkpoint.describe import architecture_record

TABLE = Path(__file__).parent.parent / "python/planner/checkpoint/architectures.jsonl"
MOST_LAYERS = 12  # enough for every pattern of layers that a default configuration has
SAID: tuple[dict[str, Any], ...] = ({}, {"tie_word_embeddings": False}, {"tie_word_embeddings": True})


def record(name: str) -> dict[str, Any]:
    """A class's line of the table."""
    model = model_zoo.build(name)
    made = architecture_record(model, tie_rules(name, model), list(model_zoo.variants(name)))
    sizes = {"made": made_tensors.record(name, model)} if made.get("made") else {}
    return {**made, **sizes, "cache_defaults": cache_defaults.record(name)}


def tie_rules(name: str, model: Any) -> list[dict[str, Any]]:
    """What each part of a model ties, for everything that a configuration may say of it."""
    rules = []
    named: set[str] = set()
    for prefix, part in model.named_modules():
        if not isinstance(part, transformers.PreTrainedModel) or not part._tied_weights_keys:
            continue
        path = config_path(model.config, part.config)
        if path is None:
            continue
        part.config.tie_word_embeddings = True
        dot = f"{prefix}." if prefix else ""
        pairs = [
            [dot + target, dot + source] for target, source in part.get_expanded_tied_weights_keys().items()
        ]
        named.update(target for target, _ in pairs)
        rules.append({"when": answers(name, path), "pairs": pairs})
    fresh = model_zoo.build(name, tie=False)
    shared = architecture_record(fresh)["ties"][0]["pairs"]
    always = [pair for pair in shared if pair[0] not in named]
    pairs = [*always, *(pair for rule in rules for pair in rule["pairs"])]
    if any(_general(target) == _general(source) for target, source in pairs):
        # How many layers share a module is for the configuration to say, which a line of the table cannot read.
        raise ValueError("modules are shared between layers; left to transformers")
    return rules + ([{"when": "1" * 9, "pairs": always}] if always else [])


def _general(name: str) -> str:
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def config_path(root: Any, config: Any) -> str | None:
    """Where a part's configuration lies: "" for the model's own, or the name of a part; copies go by their type."""
    if config is root or type(config) is type(root):
        return ""
    found = [key for key in root.sub_configs if getattr(root, key, None) is config]
    return found[0] if found else None


def answers(name: str, path: str) -> str:
    """A digit for each thing that a configuration may say: whether its part at this path wants ties."""
    cls = getattr(transformers, name).config_class
    extra = model_zoo.MISSING.get(name, {})
    has_text = "text_config" in cls.sub_configs
    digits = []
    for top, text in itertools.product(SAID, SAID if has_text else ({},)):
        said = {**extra, **top}
        if has_text and (text or "text_config" in extra):
            said["text_config"] = {**extra.get("text_config", {}), **text}
        config = cls(**said)
        part = getattr(config, path) if path else config
        digits.append(str(int(bool(getattr(part, "tie_word_embeddings", False)))))
    return "".join(digits)


def default_classes(known: Any) -> dict[str, str]:
    """The class for each ``model_type``, where a configuration names none: the first kind that has one."""
    found: dict[str, str] = {}
    for kind in ("causal", "image-text", "seq2seq", "masked"):
        for model_type, value in getattr(modeling_auto, model_zoo.KINDS[kind]).items():
            name = value if isinstance(value, str) else value[0]
            if name in known:
                found.setdefault(model_type, name)
    return dict(sorted(found.items()))


def main(names: list[str]) -> None:
    """Writes the lines, one for each class that can be built."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    model_zoo.MOST_LAYERS = MOST_LAYERS
    lines = {}
    if names and TABLE.exists():
        lines = {json.loads(line).get("name", ""): line for line in TABLE.read_text().splitlines()}
        lines.pop("", None)
    started = time.perf_counter()
    for name in names or model_zoo.names():
        lines.pop(name, None)
        try:
            lines[name] = json.dumps(record(name), separators=(",", ":"))
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
        gc.collect()
    head = json.dumps(
        {"version": transformers.__version__, "types": default_classes(lines)}, separators=(",", ":")
    )
    TABLE.write_text("\n".join([head, *(lines[name] for name in sorted(lines))]) + "\n")
    took = time.perf_counter() - started
    print(f"{len(lines)} lines, {TABLE.stat().st_size} bytes, {took:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
