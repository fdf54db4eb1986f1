"""Plans from headers against plans from live models, for every class that the table knows and that can be built.

python benches/sweep_checkpoints.py [NAME ...]
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

import model_zoo
import planner
from checkpoints import Tensor, write_file
from planner.checker.check import check
from planner.checkpoint.architecture import known_architecture
from planner.checkpoint.describe import made_tensors
from planner.checkpoint.general_names import general_name

TYPES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32",
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float64: "F64", torch.complex64: "C64",
}  # fmt: skip


def on_disk(model: Any, left_out: Container[str] = ()) -> dict[str, Tensor]:
    """What `save_pretrained` would write, by name, but for some tensors, with ``*`` for numbers."""
    once: dict[int, str] = {}
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in model._keys_to_ignore_on_save or general_name(name, "*") in left_out:
            continue
        if once.setdefault(id(tensor), name) == name:
            state[name] = tensor.detach()
    written = revert_weight_conversion(model, state)
    return {
        name: (TYPES[t.dtype], list(t.shape), t.numel() * t.element_size()) for name, t in written.items()
    }


def compare(model: Any, folder: Path) -> str:
    """How the plans differ, from all files and from those without what the class makes itself; empty if not at all."""
    made = {name for name, _ in made_tensors(model)}
    return _compared(model, folder, ()) or (_compared(model, folder, made) if made else "")


def _compared(model: Any, folder: Path, left_out: Container[str]) -> str:
    write_file(folder / "model.safetensors", on_disk(model, left_out))
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    saved = dict(model.state_dict(keep_vars=True))
    saved_bytes = sum({id(t): t.numel() * t.element_size() for t in saved.values()}.values())
    room = {0: saved_bytes // 2, 1: saved_bytes // 5, "cpu": saved_bytes * 3}
    plan = planner.plan(folder, max_memory=room)
    if plan.source.total_bytes != saved_bytes:
        return f"{plan.source.total_bytes} bytes instead of {saved_bytes}; {plan.source.notes}"
    findings = [finding for finding in check(model, dict(plan.device_map)) if not finding.is_note]
    if findings:
        return str(findings[0])[:300]
    live = planner.plan(model, max_memory=room)
    if plan.source.blocks != live.source.blocks:
        return f"{plan.source.blocks} blocks instead of {live.source.blocks}"
    unknown = [note for note in plan.source.notes if "not known" in note]
    return unknown[0][:300] if unknown else ""


def main(names: list[str]) -> None:
    """Prints a line for each class whose plans differ, and totals."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    totals: Counter[str] = Counter()
    started = time.perf_counter()
    for name in names or model_zoo.names():
        if known_architecture(name) is None:
            totals["not in the table"] += 1
            continue
        try:
            model = model_zoo.build(name)
            model.to(torch.bfloat16)
            with tempfile.TemporaryDirectory() as folder:
                difference = compare(model, Path(folder))
        except Exception as error:
            totals["not compared"] += 1
            print(f"{name}: not compared: {type(error).__name__}: {str(error)[:160]}", flush=True)
            continue
        totals["differ" if difference else "equal"] += 1
        if difference:
            print(f"{name}: {difference}", flush=True)
        gc.collect()
    print(dict(totals), f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
