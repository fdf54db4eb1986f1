"""`device_map="auto"` of transformers inside `planner.integrate()`, beside its own: loading, a token, the map, peaks.

    python benches/bench_huggingface.py            # a Llama of 32 layers, about five minutes
    python benches/bench_huggingface.py --quick    # a small one, a few rounds
    python benches/bench_huggingface.py --only load token

One thread, two virtual accelerators, contenders in turns in an order drawn anew each round; ratios are medians over rounds.
Both carry out the same map there: `auto="transformers"`. Peaks are of whatever each of them plans.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, modeling_utils

import planner
from loading_contenders import quiet, token_ids
from loading_turns import Figure, Spent, clocked, figures_table, in_turns, ratio_figure

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from rig import Accelerators, missing  # type: ignore[import-not-found]

THEIRS, SAME_MAP, BEST = "theirs", "ours", 'ours, auto="best"'
AUTO = {THEIRS: None, SAME_MAP: "transformers", BEST: "best"}
PROMPT_TOKENS = 16
LAYERS = 32
MAP_TARGET, PEAK_TARGET = 0.35, 1.02


@dataclass(frozen=True)
class Case:
    """Budgets as shares of the model, and the most that ours may take of theirs.

    Args:
        title: in words.
        shares: device to its share of the model's bytes.
        load_target: for `from_pretrained`.
        token_target: for one token with a cache.
    """

    title: str
    shares: Mapping[int | str, float]
    load_target: float
    token_target: float

    def budgets(self, size_bytes: int) -> dict[int | str, int]:
        return {device: int(share * size_bytes) for device, share in self.shares.items()}


CASES = (
    Case("two devices", {0: 0.6, 1: 0.6, "cpu": 2.0}, 0.85, 0.95),
    Case("with CPU", {0: 0.6, "cpu": 2.0}, 0.85, 0.70),
    Case("with disk", {0: 0.6, "cpu": 0.0}, 0.95, 0.75),
)


@dataclass(frozen=True)
class Bench:
    """The folder of a model, its size, and how often everything is tried."""

    folder: Path
    size_bytes: int
    rounds: int
    accelerators: Accelerators

    def load(self) -> Iterator[Figure]:
        for case in CASES:
            turns = {name: clocked(self.loading(case, name)) for name in (THEIRS, SAME_MAP)}
            spent = in_turns(turns, self.rounds)
            yield ratio_figure(
                f"from_pretrained, {case.title} / theirs", spent, SAME_MAP, THEIRS, case.load_target
            )

    def token(self) -> Iterator[Figure]:
        for case in CASES:
            models = {name: self.loading(case, name)() for name in (THEIRS, SAME_MAP)}
            models["undispatched"] = LlamaForCausalLM.from_pretrained(self.folder).to(0)
            maps = [models[name].hf_device_map for name in (THEIRS, SAME_MAP)]
            said = "" if maps[0] == maps[1] else " (not the same map)"
            spent = in_turns({name: token_turn(model) for name, model in models.items()}, 3 * self.rounds)
            what = f"one token, {case.title}{said}"
            yield ratio_figure(f"{what} / theirs", spent, SAME_MAP, THEIRS, case.token_target)
            yield ratio_figure(f"{what} / undispatched", spent, SAME_MAP, "undispatched", None)
            models.clear()

    def map_alone(self) -> Iterator[Figure]:
        config = LlamaConfig.from_pretrained(self.folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        for case in CASES:
            turns = {name: self.mapping(model, case, name) for name in AUTO}
            spent = in_turns(turns, 3 * self.rounds)
            for name in (SAME_MAP, BEST):
                yield ratio_figure(f"the map, {case.title}, {name} / theirs", spent, name, THEIRS, MAP_TARGET)

    def peaks(self) -> Iterator[Figure]:
        """Of each device with a budget, over loading and a token."""
        for case in CASES:
            for name in AUTO:
                budgets = case.budgets(self.size_bytes)
                gc.collect()
                self.accelerators.reset()
                model = self.loading(case, name)()
                with torch.no_grad():
                    model(token_ids(1).to(0), use_cache=True)
                for device in self.accelerators.devices:
                    budget = budgets.get(device.index)
                    if budget:
                        share = self.accelerators.peak_bytes(device.index) / budget
                        target = None if name == THEIRS else PEAK_TARGET
                        what = f"peak of {device.index} / budget, {case.title}, {name}"
                        yield Figure(what, share, target, f"{share:.3f}")
                del model

    def loading(self, case: Case, name: str) -> Callable[[], Any]:
        def load() -> Any:
            with integrated(name), tempfile.TemporaryDirectory() as offload:
                return AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    device_map="auto",
                    max_memory=case.budgets(self.size_bytes),
                    offload_folder=offload,
                )

        return load

    def mapping(self, model: Any, case: Case, name: str) -> Callable[[], Spent]:
        """A turn inside of the integration, which is entered once in a program and not for each model."""

        def plan() -> Any:
            return modeling_utils._get_device_map(model, "auto", case.budgets(self.size_bytes), None)

        def turn() -> Spent:
            with integrated(name):
                return clocked(plan)()

        return turn


def integrated(name: str) -> AbstractContextManager[object]:
    auto = AUTO[name]
    return nullcontext() if auto is None else planner.integrate(auto=auto)


def token_turn(model: Any) -> Callable[[], Spent]:
    """One more token after a prompt whose keys and values are there; the cache is cut back outside of the clock."""
    prompt = token_ids(PROMPT_TOKENS).to(0)
    with torch.no_grad():
        cache = model(prompt, use_cache=True).past_key_values

    @torch.no_grad()
    def run() -> None:
        model(prompt[:, -1:], past_key_values=cache, use_cache=True)

    return clocked(run, prepare=lambda: cache.crop(PROMPT_TOKENS - cache.get_seq_length()))


def write(folder: Path, width: int) -> int:
    """Saves a Llama in small files and gives its bytes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        vocab_size=width * 8,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_hidden_layers=LAYERS,
    )
    model = LlamaForCausalLM(config)
    size_bytes = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(folder, max_shard_size=size_bytes // LAYERS)
    return size_bytes


PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "load": Bench.load,
    "token": Bench.token,
    "map": Bench.map_alone,
    "peaks": Bench.peaks,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    if reason := missing():
        print(f"no virtual accelerators: {reason}")
        return 1
    torch.set_num_threads(1)
    quiet()
    warnings.simplefilter("ignore")  # what is left on disk is told, and told again
    gc.freeze()  # of what was imported, nothing is garbage
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        size_bytes = write(Path(folder), 64 if options.quick else 256)
        rounds = options.rounds or (3 if options.quick else 9)
        bench = Bench(Path(folder), size_bytes, rounds, Accelerators())
        for part in options.only:
            for figure in PARTS[part](bench):
                figures.append(figure)
                print(f"# {figure.what}: {figure.shown} {figure.verdict} {figure.beside}", flush=True)
    print(f"\nplanner {planner.__version__}, transformers {transformers.__version__}, {rounds} rounds\n")
    print(figures_table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
