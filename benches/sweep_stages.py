"""Which causal language models of transformers can be run in stages: each tiny, whole and in stages, bit for bit.

python benches/sweep_stages.py [NAME ...]      # what passes, what is refused and why
python benches/sweep_stages.py --write         # all of them, and the table of those that pass for the package
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
import transformers

import model_zoo
from planner.errors import InvalidTreeError, PipelineError
from planner.pipelines.comparing import compare_stages
from planner.pipelines.known import TABLE, as_row
from planner.pipelines.layers import Roles, find_layers

# What a default configuration leaves out, or says otherwise than every checkpoint.
GIVEN: Final[dict[str, dict[str, Any]]] = {
    "BambaForCausalLM": {"attn_layer_indices": [1, 4, 9]},
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 2},
    "Dots1ForCausalLM": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba", "mamba", "mamba", "attention"] * 8},
    "XmodForCausalLM": {"default_language": "en_XX"},
}


def tried(names: Iterable[str]) -> Iterator[tuple[str, Roles | str]]:
    """By class, what its stages call around their layers, or why it has none."""
    for name in names:
        try:
            model = built(name)
        except Exception as error:
            yield name, f"not built: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
            continue
        try:
            yield name, compare_stages(model, find_layers(model))
        except (InvalidTreeError, PipelineError) as error:
            yield name, error.message


def built(name: str) -> Any:
    """A model of the class's default configuration, on meta."""
    cls = getattr(transformers, name)
    config = cls.config_class(**{**model_zoo.MISSING.get(name, {}), **GIVEN.get(name, {})})
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        model = cls._from_config(config)
    model.tie_weights()
    return model


def main() -> None:
    """Prints a line for each class, and counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true", help="write the table of classes that pass")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for name, found in tried(asked.names or model_zoo.names(("causal",))):
        kind = "passes" if isinstance(found, Roles) else "not built" if found.startswith("not") else "refused"
        counts[kind] += 1
        print(f"{name}: {kind if isinstance(found, Roles) else found}", flush=True)
        if isinstance(found, Roles):
            rows.append(as_row(name, found))
    print(", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    if asked.write and not asked.names:
        lines = [
            {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]},
            *rows,
        ]
        TABLE.write_text("".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines))


if __name__ == "__main__":
    main()
