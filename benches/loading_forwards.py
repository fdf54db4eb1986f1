"""Forwards of models whose blocks are on disk: page caches that are warm, cold and half of each; experts in pieces."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from loading_contenders import (
    by_planner,
    by_transformers,
    maps,
    token_ids,
)
from loading_files import BlockRanges, cool, layer_of, warm
from loading_models import Written
from loading_turns import (
    Figure,
    Spent,
    clocked,
    in_turns,
    ratio_figure,
)

__all__ = ["Forwards", "cold", "model_run"]


@dataclass(frozen=True)
class Forwards:
    """The models, and how often everything is tried."""

    models: Written
    rounds: int

    def forward(self) -> Iterator[Figure]:
        """All blocks on disk: one token and 128, from a page cache that is warm, cold, and half of each."""
        folder = self.models.in_few_files
        given = maps(folder)["blocks on disk"]
        ranges = BlockRanges(folder, layer_of)
        warm(folder)
        models = {
            "planner": by_planner(folder, given)(),
            "direct": by_planner(folder, given, read="direct")(),
            "transformers": by_transformers(folder, given)(),
            "resident": by_planner(folder, {"": "cpu"}, copy=True)(),
        }
        runs = {name: model_run(model) for name, model in models.items()}
        for tokens in (1, 128):
            turns = {name: clocked(lambda run=run, tokens=tokens: run(tokens)) for name, run in runs.items()}
            yield from self.warm_forwards(folder, turns, tokens)
            yield from self.cold_forwards(folder, turns, ranges, tokens)
        of_blocks = runs["planner"]
        yield from self.half_cached(folder, clocked(lambda: of_blocks(1)), ranges)
        models.clear()
        runs.clear()
        yield from self.second_forward(folder)

    def warm_forwards(
        self, folder: Path, turns: dict[str, Callable[[], Spent]], tokens: int
    ) -> Iterator[Figure]:
        warm(folder)
        spent = in_turns({name: turn for name, turn in turns.items() if name != "direct"}, self.rounds)
        case = f"forward, {tokens} token{'s' * (tokens > 1)}, warm"
        target = 1.15 if tokens == 1 else None
        yield ratio_figure(
            f"{case} / resident, processor", spent, "planner", "resident", target, "processor_s"
        )
        yield ratio_figure(f"{case} / resident", spent, "planner", "resident", None)
        yield ratio_figure(
            f"{case} / transformers, processor", spent, "planner", "transformers", 1.0, "processor_s"
        )

    def cold_forwards(
        self, folder: Path, turns: dict[str, Callable[[], Spent]], ranges: BlockRanges, tokens: int
    ) -> Iterator[Figure]:
        contenders = {name: cold(folder, turn) for name, turn in turns.items() if name != "resident"}
        contenders["resident"] = turns["resident"]
        contenders["bare read"] = cold(folder, clocked(lambda: ranges.read()))
        spent = in_turns(contenders, self.rounds)
        case = f"forward, {tokens} token{'s' * (tokens > 1)}, cold"
        least = slower_of(spent["resident"], spent["bare read"])
        for name in ("planner", "direct"):
            compared = {**spent, "least": least}
            said = "" if name == "planner" else ' with read="direct"'
            yield ratio_figure(f"{case}{said} / max(resident, bare read)", compared, name, "least", 1.15)
            yield ratio_figure(
                f"{case}{said} / transformers", spent, name, "transformers", 0.7 if tokens == 1 else 1.0
            )
            if tokens > 1:
                yield ratio_figure(f"{case}{said} / resident", spent, name, "resident", 1.15)
        yield ratio_figure(f"{case}, processor / resident", spent, "planner", "resident", None, "processor_s")

    def half_cached(self, folder: Path, turn: Callable[[], Spent], ranges: BlockRanges) -> Iterator[Figure]:
        """Every second block is in the page cache."""

        def prepared() -> Spent:
            cool(folder)
            ranges.cache(list(ranges.blocks)[::2])
            return turn()

        spent = in_turns({"half": prepared, "cold": cold(folder, turn)}, self.rounds)
        yield ratio_figure("forward, 1 token, half cached / cold", spent, "half", "cold", 0.65)

    def second_forward(self, folder: Path) -> Iterator[Figure]:
        """Of a model that fits into free memory: loaded cold, then the second and the third forward."""
        given = maps(folder)["blocks on disk"]
        numbers: dict[str, list[Spent]] = {"second": [], "warm": []}
        for _ in range(max(3, self.rounds // 3)):
            cool(folder)
            run = model_run(by_planner(folder, given)())
            run(1)
            numbers["second"].append(clocked(lambda run=run: run(1))())
            warm(folder)
            run(1)
            numbers["warm"].append(clocked(lambda run=run: run(1))())
        yield ratio_figure("second forward / warm", numbers, "second", "warm", 1.3)

    def experts(self) -> Iterator[Figure]:
        """Eight experts a layer in pieces, as the repository has them; everything in the page cache."""
        folder = self.models.experts
        given = maps(folder)["blocks on disk"]
        ranges = BlockRanges(folder, layer_of)
        warm(folder)
        with tempfile.TemporaryDirectory() as store:
            models = {
                "pieces": by_planner(folder, given)(),
                "stored": by_planner(folder, given, convert="store", offload_folder=store)(),
                "resident": by_planner(folder, {"": "cpu"}, copy=True)(),
                "resident, mapped": by_planner(folder, {"": "cpu"}, copy=False)(),
                "transformers": with_store(folder, given, store),
            }
            runs = {name: model_run(model) for name, model in models.items() if model is not None}
            turns = {name: clocked(lambda run=run: run(1)) for name, run in runs.items()}
            turns["bare read"] = clocked(lambda: ranges.read(direct=False))
            spent = in_turns(turns, self.rounds)
            spent["least"] = sum_of(spent["resident"], spent["bare read"])
            yield ratio_figure(
                "experts on disk, pieces, cached / resident and a bare read of the page cache, processor",
                spent,
                "pieces",
                "least",
                None,
                "processor_s",
            )
            # What is mapped lies in pages of 4 KiB, a copy in huge ones: nothing mapped can be as fast as the copy.
            yield ratio_figure(
                "experts in memory, mapped / copied into huge pages, processor",
                spent,
                "resident, mapped",
                "resident",
                None,
                "processor_s",
            )
            for name, target in (("pieces", 2.2), ("stored", 1.2)):
                yield ratio_figure(
                    f"experts on disk, {name}, cached / resident, processor",
                    spent,
                    name,
                    "resident",
                    target,
                    "processor_s",
                )
                if "transformers" in spent:
                    yield ratio_figure(
                        f"experts on disk, {name}, cached / transformers", spent, name, "transformers", 1.0
                    )


def slower_of(first: list[Spent], second: list[Spent]) -> list[Spent]:
    return [max(pair, key=lambda spent: spent.wall_s) for pair in zip(first, second, strict=True)]


def sum_of(first: list[Spent], second: list[Spent]) -> list[Spent]:
    return [
        Spent(a.wall_s + b.wall_s, a.processor_s + b.processor_s) for a, b in zip(first, second, strict=True)
    ]


def cold(folder: Path, turn: Callable[[], Spent]) -> Callable[[], Spent]:
    def prepared() -> Spent:
        cool(folder)
        return turn()

    return prepared


def model_run(model: Any) -> Callable[[int], Any]:
    def run(tokens: int) -> Any:
        with torch.no_grad():
            return model(token_ids(tokens), use_cache=False)

    return run


def with_store(folder: Path, given: dict[str, Any], store: str) -> Any:
    """transformers, which writes the experts that it puts together; None where it cannot."""
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", device_map=given, offload_folder=f"{store}/transformers"
        )
    except Exception as error:
        print(f"# transformers, experts on disk: {type(error).__name__}: {str(error)[:200]}")
        return None
