"""What the parsers of other engines make of splits, by their own code: recorded for the tests, which have none of these engines.

.venv/bin/python benches/engine_parsers.py --vllm DIR --sglang DIR --megatron DIR --llama-cpp DIR [--write tests/unit/engine_splits.json]

Each folder is an unpacked source archive or wheel, as `pip download --no-deps` gets them; nothing of it is installed or imported as a
whole, and no GPU is needed. Of llama.cpp the rule is compiled as it stands in its source.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from engine_readers import in_runs

_SPLITS = 20_000

_HARNESS = """
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <vector>
struct Backend { int number; };
typedef Backend * ggml_backend_dev_t;
#define LLAMA_LOG_DEBUG(...) do {} while (0)
static void ggml_backend_dev_memory(ggml_backend_dev_t, size_t * free, size_t * total) { *free = *total = 1; }
static const char * ggml_backend_dev_name(ggml_backend_dev_t) { return ""; }
struct Device { ggml_backend_dev_t dev; };
struct Hparams { bool is_swa(int) const { return false; } };
struct llama_model { struct impl { struct layer_dev { ggml_backend_dev_t dev; int * list; }; }; };
struct Held { int cpu_buft_list = 0; std::map<ggml_backend_dev_t, int> gpu_buft_list; };
int main() {
    int n_layer_all, n_gpu_layers, count;
    while (std::scanf("%d %d %d", &n_layer_all, &n_gpu_layers, &count) == 3) {
        std::vector<float> given(64, 0.0f);
        std::vector<Device> devices(count);
        Held held; Held * pimpl = &held; Hparams hparams;
        Backend host{-1}; ggml_backend_dev_t cpu_dev = &host; std::vector<Backend> cards(count);
        for (int i = 0; i < count; ++i) { std::scanf("%f", &given[i]); cards[i].number = i; devices[i].dev = &cards[i]; held.gpu_buft_list[&cards[i]] = 0; }
        const float * tensor_split = given.data();
        auto n_devices = [&]() { return (size_t) count; };
        @RULE@
        for (int il = 0; il <= n_layer_all; ++il) std::printf("%d ", get_layer_buft_list(il).dev->number);
        std::printf("\\n");
    }
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("vllm", "sglang", "megatron", "llama-cpp"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    rng, found = random.Random(20), dict[str, Any]()
    for name, variable in (("vllm", "VLLM_PP_LAYER_PARTITION"), ("sglang", "SGLANG_PP_LAYER_PARTITION")):
        folder = getattr(arguments, name)
        if folder is not None:
            found[name] = counted_cases(indices_of(folder, variable), variable, rng)
    if arguments.megatron is not None:
        found["megatron"] = layout_cases(layouts_of(arguments.megatron), rng)
    if arguments.llama_cpp is not None:
        wrong = llama_wrong(arguments.llama_cpp, rng)
        print(f"llama.cpp: {_SPLITS} splits, {wrong} not as meant")
        found["llama_cpp"] = llama_cases(arguments.llama_cpp, rng)
    for name, cases in found.items():
        print(f"{name}: {len(cases)} cases recorded")
    if arguments.write is not None:
        text = ",\n".join(
            f'"{name}": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]" for name, cases in found.items()
        )
        arguments.write.write_text(f"{{\n{text}\n}}\n")


def one_file(folder: Path, path: str) -> Path:
    """The file of that path in an unpacked archive. Raises SystemExit."""
    files = sorted(folder.rglob(path))
    if not files:
        sys.exit(f"no {path} in {folder}")
    return files[0]


def indices_of(folder: Path, variable: str) -> Callable[..., tuple[int, int]]:
    """`get_pp_indices` of vLLM or SGLang, taken out of its file."""
    package = "vllm" if variable.startswith("VLLM") else "sglang/srt"
    tree = ast.parse(one_file(folder, f"{package}/distributed/utils.py").read_text())
    function = next(
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_pp_indices"
    )
    function.returns = None
    envs = type("Envs", (), {variable: property(lambda _: os.environ.get(variable))})()
    names: dict[str, Any] = {
        "os": os,
        "envs": envs,
        "logger": SimpleNamespace(info=lambda *_: None),
        "Tuple": tuple,
    }
    exec(compile(ast.Module([function], []), variable, "exec"), names)
    found: Callable[..., tuple[int, int]] = names["get_pp_indices"]
    return found


def ranges_by(
    indices: Callable[..., tuple[int, int]], variable: str, text: str | None, layers: int, ranks: int
) -> Any:
    """What each rank gets, or the name of the error."""
    if text is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = text
    try:
        return [list(indices(layers, rank, ranks)) for rank in range(ranks)]
    except (ValueError, AssertionError) as error:
        return type(error).__name__
    finally:
        os.environ.pop(variable, None)


def counted_cases(indices: Callable[..., tuple[int, int]], variable: str, rng: random.Random) -> list[Any]:
    """Text (or none, for the default), layers, ranks, and what comes out."""
    cases: list[tuple[str | None, int, int]] = [
        ("3,22,22,14", 61, 4),
        ("-1,26,22,14", 61, 4),
        ("0,25,22,14", 61, 4),
        ("3,22,22,15", 61, 4),
        ("3,22,36", 61, 4),
        ("3,22,x,14", 61, 4),
        ("", 61, 4),
    ]
    for _ in range(40):
        counts = drawn_counts(rng)
        cases.append((",".join(map(str, counts)), sum(counts), len(counts)))
    for _ in range(40):
        layers, ranks = rng.randint(1, 100), rng.randint(2, 16)
        cases.append((None, max(layers, ranks), ranks))
    return [
        [text, layers, ranks, ranges_by(indices, variable, text, layers, ranks)]
        for text, layers, ranks in cases
    ]


def drawn_counts(rng: random.Random) -> list[int]:
    return [rng.randint(1, 30) for _ in range(rng.randint(2, 12))]


def layouts_of(folder: Path) -> Any:
    """`PipelineParallelLayerLayout`, with the enumeration that it needs and nothing else of Megatron."""
    path = one_file(folder, "megatron/core/transformer/pipeline_parallel_layer_layout.py")
    for name in ("megatron", "megatron.core", "megatron.core.transformer"):
        sys.modules[name] = ModuleType(name)
    sys.modules["megatron.core"].parallel_state = SimpleNamespace()  # type: ignore[attr-defined]
    for name in ("enums", "pipeline_parallel_layer_layout"):
        module = ModuleType(f"megatron.core.transformer.{name}")
        sys.modules[module.__name__] = module
        exec(compile((path.parent / f"{name}.py").read_text(), name, "exec"), module.__dict__)
    return module.PipelineParallelLayerLayout


def layout_cases(layouts: Any, rng: random.Random) -> list[Any]:
    """Layout, ranks, layers, further layers, and by rank the letters that come out."""
    cases = [
        ("Et*3|t*22|t*22|t*14mL", 4, 61, 1),
        ("Et*3||t*58L", 3, 61, 0),
        ("t*3|t*58L", 2, 61, 0),
        ("Et*3|t*57L", 2, 61, 0),
        ("Et*3|t*58", 2, 61, 0),
        ("Et*3|t*58L", 3, 61, 0),
    ]
    for _ in range(40):
        counts, extra = drawn_counts(rng), rng.choice([0, 0, 1, 2])
        words = [f"t*{count}" if count > 1 else "t" for count in counts]
        cases.append((f"E{'|'.join(words)}{'m' * extra}L", len(counts), sum(counts), extra))
    return [[*case, letters_by(layouts, *case)] for case in cases]


def letters_by(layouts: Any, text: str, ranks: int, layers: int, extra: int) -> Any:
    letters = {"embedding": "E", "decoder": "t", "mtp": "m", "loss": "L"}
    try:
        found = layouts(text, ranks)
        found.validate_layer_layout(layers, extra)
    except AssertionError:
        return "AssertionError"
    return ["".join(letters[each.name] for each in rank[0]) for rank in found.layout]


def llama_rule(folder: Path) -> str:
    """The lines of llama.cpp's loader that say which device has a layer."""
    text = one_file(folder, "src/llama-model.cpp").read_text()
    found = re.search(r"    // calculate the split points\n.*?\n    };\n", text, re.DOTALL)
    if found is None:
        sys.exit("llama.cpp's rule is not where it was")
    return found[0]


def llama_devices(folder: Path, questions: Sequence[tuple[int, int, Sequence[int]]]) -> list[list[int]]:
    """By question (layers, `-ngl`, `-ts`), the device of each layer and of the output; -1 for the host."""
    with tempfile.TemporaryDirectory() as made:
        source, program = Path(made, "rule.cpp"), Path(made, "rule")
        source.write_text(_HARNESS.replace("@RULE@", llama_rule(folder)))
        subprocess.run(["g++", "-O1", "-std=c++17", "-w", "-o", program, source], check=True)
        lines = [
            f"{layers} {ngl} {len(split)} {' '.join(map(str, split))}" for layers, ngl, split in questions
        ]
        done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    return [[int(each) for each in line.split()] for line in done.stdout.splitlines()]


def drawn_llama(rng: random.Random) -> tuple[int, int, list[int]]:
    """Layers, `-ngl`, and counts for one to eight devices."""
    counts = [rng.randint(1, 40) for _ in range(rng.randint(1, 8))]
    on_cards = sum(counts)
    return on_cards - 1 + rng.choice([0, 0, rng.randint(1, 80)]), on_cards, counts


def meant(layers: int, ngl: int, counts: Sequence[int]) -> list[int]:
    return [-1] * (layers + 1 - ngl) + [device for device, count in enumerate(counts) for _ in range(count)]


def llama_wrong(folder: Path, rng: random.Random) -> int:
    questions = [drawn_llama(rng) for _ in range(_SPLITS)]
    answers = llama_devices(folder, questions)
    return sum(answer != meant(*question) for question, answer in zip(questions, answers, strict=True))


def llama_cases(folder: Path, rng: random.Random) -> list[Any]:
    questions = [
        (81, 82, [30, 52]),
        (80, 81, [30, 51]),
        (80, 20, [1, 3]),
        *(drawn_llama(rng) for _ in range(60)),
    ]
    return [
        [layers, ngl, list(split), in_runs(answer)]
        for (layers, ngl, split), answer in zip(questions, llama_devices(folder, questions), strict=True)
    ]


if __name__ == "__main__":
    main()
