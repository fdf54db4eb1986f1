"""Every kind of adapter that the installed PEFT has, on four device maps: made, trained, merged, saved and loaded as without dispatch.

    python benches/sweep_adapters.py                             # all, on virtual accelerators
    python benches/sweep_adapters.py --only RANDLORA --maps mixed --theirs

A cell is "=", or what differs: "answer", "fresh", "trained" (after two steps of SGD), "merged", "loaded"; or an error, with the step that
it came from. A kind that cannot do a step on the undispatched model is not asked for it. Exits with 1 if a cell of ours is not "=", but
for kinds that docs/divergences.md names, over two accelerators.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from rig import Accelerators  # noqa: E402 - below tests
from rig.build import missing  # noqa: E402

TARGETS = ["q_proj", "down_proj"]
# What a kind needs beside its targets, to be small, or to do something.
SAID: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10, "init_r": 4, "target_r": 2},
    "ADAMSS": {"r": 4, "num_subspaces": 2, "subspace_rank": 1},
    "ADAPTION_PROMPT": {"target_modules": None, "adapter_len": 3, "adapter_layers": 3},
    "BEFT": {"target_modules": ["v_proj"]},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "FOURIERFT": {"n_frequency": 16},
    "FROD": {"target_modules": ["q_proj", "o_proj"], "progressbar": False},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "MISS": {"target_modules": ["q_proj", "o_proj"]},
    "OFT": {"oft_block_size": 4, "r": 0},
    "P_TUNING": {"encoder_hidden_size": 16},
    "POLY": {"n_tasks": 1, "n_skills": 2, "n_splits": 1, "r": 4},
    "PVERA": {"target_modules": ["q_proj", "o_proj"]},
    "ROAD": {"group_size": 4},
    "SHIRA": {"target_modules": ["q_proj", "o_proj"]},
    "TINYLORA": {"r": 2, "u": 4},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [3, 5]},
    "UNILORA": {"theta_d_length": 64},
    "VBLORA": {"num_vectors": 8, "vector_length": 4, "r": 2, "topk": 2},
    "VERA": {"target_modules": ["q_proj", "o_proj"]},
    "WAVEFT": {"n_frequency": 16},
}  # fmt: skip
PROMPTS = ("CARTRIDGE", "CPT", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
TASKS = ("MULTITASK_PROMPT_TUNING", "POLY")  # are told of each input which task it is
STEPS = ("fresh", "trained", "answer", "loaded", "merged")


def config_of(kind: str) -> Any:
    """A small adapter of a kind."""
    from dataclasses import fields

    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    cls = {each.value: made for each, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}[kind]
    names = {each.name for each in fields(cls)}
    usual = {"r": 4, "target_modules": TARGETS, "num_virtual_tokens": 3}
    if kind == "CPT":
        usual |= {"cpt_token_ids": [3, 4, 5], "cpt_mask": [1] * 3, "cpt_tokens_type_mask": [1, 2, 3]}
    if kind == "MULTITASK_PROMPT_TUNING":
        usual |= {"num_tasks": 2}
    said = {key: value for key, value in usual.items() if key in names} | SAID.get(kind, {})
    return cls(task_type="CAUSAL_LM", **said)


@dataclass
class Outcome:
    """What came out of the steps of one model: values by step, or the error that ended them."""

    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class Base:
    """How a model without adapters is had."""

    def __init__(self, folder: Path, name: str | None, is_ours: bool) -> None:
        self.folder, self.name, self.is_ours = folder, name, is_ours

    def load(self, scratch: Path) -> Any:
        from peft_models import plain, spread

        return plain(self.folder) if self.name is None else spread(self.folder, self.name, scratch / "o")

    @contextlib.contextmanager
    def within(self) -> Iterator[None]:
        import planner

        with planner.integrate() if self.is_ours else contextlib.nullcontext():
            yield


def steps_of(kind: str, base: Base, adapter: Path, scratch: Path) -> Outcome:
    """Makes, trains, saves, merges and loads an adapter of a kind."""
    import peft

    import peft_models as rules

    found, step = Outcome(), "load"
    more = {"task_ids": torch.zeros(1, dtype=torch.long)} if kind in TASKS else {}

    @torch.no_grad()
    def answer(model: Any, **given: Any) -> torch.Tensor:
        given = {name: ids.to(0) for name, ids in given.items()}
        logits: torch.Tensor = model(input_ids=rules.IDS.to(0), **given).logits
        return logits.cpu()

    try:
        with base.within():
            model = base.load(scratch)
            step = "fresh"
            torch.manual_seed(1)
            model = peft.get_peft_model(model, config_of(kind))
            found.values["fresh"] = answer(model.eval(), **more)
            step = "trained"
            torch.manual_seed(2)
            found.values["trained"] = trained(model, more)
            step = "answer"
            found.values["answer"] = answer(model.eval(), **more)
            if base.name is None:
                model.save_pretrained(adapter)
            step = "loaded"
            torch.manual_seed(3)
            found.values["loaded"] = answer(
                peft.PeftModel.from_pretrained(
                    base.load(scratch),
                    adapter,
                    **({} if base.name is None else {"offload_folder": scratch / "o2"}),
                ),
                **more,
            )
            if kind not in PROMPTS and hasattr(model, "merge_and_unload"):
                step = "merged"
                found.values["merged"] = rules.reloaded(model.merge_and_unload(), scratch / f"s{base.name}")
    except Exception as error:
        words = " ".join(str(error).split())
        found.error = f"{step}: {type(error).__name__}: {words[:160]}"
    return found


def trained(model: Any, more: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is trainable after two steps of SGD, from values that do something."""
    import peft_models as rules

    model.train()
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    with torch.no_grad():
        for each in parameters.values():
            if each.is_floating_point():
                each.add_((torch.randn(each.shape) * 0.05).to(each.device, each.dtype))
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    given = {name: ids.to(0) for name, ids in more.items()}
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=rules.IDS.to(0), labels=rules.IDS.to(0), **given).loss.backward()
        optimizer.step()
    return {name: each.detach().cpu().clone() for name, each in parameters.items()}


def cell(found: Outcome, want: Outcome) -> str:
    """How the outcome on a map differs from that of the undispatched model."""
    differing = []
    for step in STEPS:
        if step not in want.values or step not in found.values:
            continue
        ours, theirs = found.values[step], want.values[step]
        pairs = [(ours, theirs)] if step in ("fresh", "answer", "loaded") else None
        if pairs is None:
            if ours.keys() != theirs.keys():
                differing.append(f"{step} (names)")
                continue
            pairs = [(ours[name], theirs[name]) for name in theirs]
        worst = max((_distance(*pair) for pair in pairs), default=0.0)
        if worst:
            differing.append(f"{step} by {worst:.1e}")
    is_asked = found.error and found.error.partition(":")[0] != want.error.partition(":")[0]
    return ", ".join([*differing, *([found.error] if is_asked else [])]) or "="


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    if one.equal(other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True):
        return 0.0
    return float((one.double() - other.double()).abs().nan_to_num(float("inf")).max()) or float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="kinds, as PEFT calls them")
    parser.add_argument("--maps", nargs="*", default=["two", "cpu", "disk", "mixed"])
    parser.add_argument("--theirs", action="store_true", help="without our integration, too")
    options = parser.parse_args()
    if reason := missing():
        print(f"skipped: no virtual accelerators: {reason}")
        return 0
    accelerators = Accelerators()
    del accelerators
    _quiet()
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from stored_models import stored

    kinds = options.only or [each.value for each in PEFT_TYPE_TO_CONFIG_MAPPING]
    known = (ROOT / "docs" / "divergences.md").read_text()
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = stored("llama", Path(scratch, "base"))
        for kind in kinds:
            place = Path(scratch, kind)
            want = steps_of(kind, Base(folder, None, False), place / "adapter", place)
            print(f"{kind}: {want.error or ', '.join(want.values)}", flush=True)
            for name in options.maps:
                for is_ours in (False, True) if options.theirs else (True,):
                    found = steps_of(
                        kind, Base(folder, name, is_ours), place / "adapter", place / f"{name}{is_ours}"
                    )
                    said = cell(found, want)
                    is_known = f"`{kind}`" in known and name in ("two", "mixed")
                    wrong += is_ours and said != "=" and not is_known
                    print(f"  {name:<6}{'ours' if is_ours else 'theirs':<8}{said}", flush=True)
                    gc.collect()
    print(f"{wrong} cells of ours are wrong")
    return int(bool(wrong))


def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
