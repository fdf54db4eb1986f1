"""Bytes of caches by closed form against the storage of the real ones, for every class that can be built small.

python benches/sweep_caches.py [NAME ...]                   # or 2/4: the second of four parts
python benches/sweep_caches.py 2/4 --into build/caches.jsonl   # keeps what is found, class by class
python benches/sweep_caches.py --summary build/caches.jsonl    # one table over all that is kept there

A prompt longer than every window, then two steps; float32 and bfloat16; caches that grow and static ones. Beside ours stand the
formula of textbooks and hf-mem's, as counts of classes where they are right.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
import transformers

import cache_models
import cache_zoo
from cache_formulas import HF_MEM_VERSION, hf_mem_bytes, textbook_bytes
from cache_models import BATCH, Measured
from planner.checkpoint.cache_config import completed_config
from planner.choices import Cache
from planner.errors import PlannerError
from planner.memory.cache_layers import computed_caches
from planner.memory.cache_parts import CacheSizes
from planner.memory.config_values import decoder_config, model_type
from planner.memory.header_check import head_notes

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KINDS_OF_CACHE: Final[tuple[Cache, ...]] = ("dynamic", "static")
EQUAL: Final = "equal"
EXPECTED: Final = ("keeps no cache", "takes no static cache")
TYPES: Final = Path(__file__).parent.parent / "python/planner/memory/measured_types.py"
OF_GENERATE: Final = ("blip",)  # whose own forward gives no cache back, and its decoder's does
OTHERS: Final = {"textbook": textbook_bytes, f"hf-mem {HF_MEM_VERSION}": hf_mem_bytes}
Record: TypeAlias = dict[str, Any]


def predicted(config: dict[str, Any], row: Measured, dtype: str, kind: Cache) -> int:
    """The closed form for what was measured."""
    sizes = CacheSizes(
        phase=row.phase,
        batch_size=BATCH,
        tokens=row.tokens,
        encoder_tokens=row.encoder_tokens,
        item_bytes=DTYPES[dtype].itemsize,
        cache=kind,
    )
    return sum(layer.bytes for layer in computed_caches(config, sizes))


def values_of(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's configuration as a file has it: all of it, and as ``save_pretrained`` writes it."""
    whole = json.loads(json.dumps(model.config.to_dict(), default=str))
    written = json.loads(model.config.to_json_string(use_diff=True))
    return whole, {**written, "architectures": [type(model).__name__]}


def record_of(name: str) -> Record:
    """What is found of one class: by cache and element type whether the closed form is right, and which other formulas are."""
    record: Record = {"class": name, "built": "", "runs": {}, "others": {}, "notes": [], "type": ""}
    try:
        model = cache_zoo.build(name)
    except Exception as error:
        record["built"] = f"{type(error).__name__}: {_short(error)}"
        return record
    whole, written = values_of(model)
    record["type"] = model_type(decoder_config(whole))
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    record["notes"] = head_notes(whole, shapes)  # a class that saves what it says has none
    for dtype, torch_dtype in DTYPES.items():
        model.to(torch_dtype)
        for kind in KINDS_OF_CACHE:
            run = f"{kind} {dtype}"
            if record["runs"].get(f"dynamic {dtype}") == EXPECTED[0]:
                continue  # it keeps what it is given, and is given nothing
            try:
                rows = cache_models.measure(model, torch_dtype, kind)
            except Exception as error:
                why = _short(error)
                known = _unheld(whole, why, dtype, kind)
                record["runs"][run] = known or (why if why in EXPECTED else f"not run: {why}")
                continue
            record["runs"][run] = _difference((whole, written), rows, dtype, kind) or EQUAL
            if kind == "dynamic":
                record["others"][dtype] = _others(written, rows, dtype)
    return record


def _difference(
    configs: tuple[dict[str, Any], dict[str, Any]], rows: list[Measured], dtype: str, kind: Cache
) -> str:
    for config in (configs[0], completed_config(configs[1])):
        try:
            found = [predicted(dict(config), row, dtype, kind) for row in rows]
        except PlannerError as error:
            return f"refused: {error.message}"
        true = [row.storage_bytes for row in rows]
        if found != true:
            return f"{found} instead of {true}"
    return ""


def _unheld(config: dict[str, Any], why: str, dtype: str, kind: Cache) -> str:
    """What the closed form says of a cache that is not there, where it should say nothing."""
    if why not in EXPECTED:
        return ""
    if config.get("model_type") in OF_GENERATE:
        return ""
    row = Measured(phase="prefill", tokens=24, storage_bytes=0, looked_at_bytes=0, encoder_tokens=0)
    try:
        found = predicted(config, row, dtype, kind)
    except PlannerError:
        return ""
    return f"{found} instead of none: it {why}" if found else ""


def _others(config: dict[str, Any], rows: list[Measured], dtype: str) -> list[str]:
    """Which other formulas are right, as "textbook prefill"."""
    item_bytes = DTYPES[dtype].itemsize
    right = []
    for title, formula in OTHERS.items():
        for phase in ("prefill", "decode"):
            of_phase = [row for row in rows if row.phase == phase]
            found = [
                formula(config, batch_size=BATCH, tokens=row.tokens, item_bytes=item_bytes)
                for row in of_phase
            ]
            if found == [row.storage_bytes for row in of_phase]:
                right.append(f"{title} {phase}")
    return right


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:110].replace("|", "/")


def differing(records: Iterable[Record]) -> Iterator[str]:
    """Lines of a table of what is not equal: one for each class and each thing that is said of it."""
    for record in records:
        if record["built"]:
            yield f"| {record['class']} | not built: {record['built']} |"
        yield from (f"| {record['class']} | {note} |" for note in record.get("notes", ()))
        by_what: dict[str, list[str]] = {}
        for run, what in record["runs"].items():
            if what != EQUAL and what not in EXPECTED:
                by_what.setdefault(what, []).append(run)
        for what, runs in by_what.items():
            yield f"| {record['class']} | {', '.join(runs)}: {what} |"


def totals(records: Iterable[Record]) -> Counter[str]:
    """How many classes there are of each outcome, by cache and element type; of other formulas, where they are right."""
    found: Counter[str] = Counter()
    for record in records:
        found["not built"] += bool(record["built"])
        for run, what in record["runs"].items():
            sort = what if what == EQUAL or what in EXPECTED else what.partition(": ")[0]
            known = (EQUAL, *EXPECTED, "not run", "refused")
            found[f"{run}: {sort if sort in known else 'differ'}"] += 1
            is_measured = what not in EXPECTED and sort != "not run"
            found[f"{run}: measured"] += is_measured
        for dtype, right in record["others"].items():
            for title in right:
                found[f"{title} {dtype}: {EQUAL}"] += 1
    return found


def write_types(records: Iterable[Record]) -> None:
    """Writes the types of models that have a class whose real cache was what was computed, and none where it was not."""
    right: set[str] = set()
    wrong: set[str] = set()
    for record in records:
        found = {
            "instead of" in what for what in record["runs"].values() if "instead of" in what or what == EQUAL
        }
        (wrong if True in found else right if found else set()).add(record["type"])
    lines = "".join(f'        "{each}",\n' for each in sorted(right - wrong))
    TYPES.write_text(
        '"""Types of models whose real caches are what is computed. Written by ``benches/sweep_caches.py --write-types``."""\n\n'
        "from __future__ import annotations\n\nfrom typing import Final\n\n"
        f"MEASURED_TYPES: Final = frozenset(\n    (\n{lines}    )\n)\n"
    )


def read(path: Path) -> list[Record]:
    """The records that are kept in a file: of each class the last."""
    if not path.exists():
        return []
    lines = map(json.loads, path.read_text().splitlines())
    return sorted({each["class"]: each for each in lines}.values(), key=lambda each: str(each["class"]))


def _chosen(given: list[str]) -> list[str]:
    names = [name for name in given if "/" not in name] or cache_zoo.names()
    for part in (name for name in given if "/" in name):
        number, parts = map(int, part.split("/"))
        names = names[number - 1 :: parts]
    return names


def main() -> None:
    """Prints those that differ as a table, and counts."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="classes, or a part of all as 2/4")
    parser.add_argument("--into", type=Path, help="a file that what is found is added to")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="sum up what is kept there")
    parser.add_argument(
        "--write-types", action="store_true", help="write the types of models that are right into the package"
    )
    given = parser.parse_args()
    started = time.perf_counter()
    records = read(given.summary) if given.summary else []
    print("| class | what differs |\n|---|---|", *differing(records), sep="\n", flush=True)
    for name in () if given.summary else _chosen(given.names):
        records.append(record_of(name))
        for line in differing(records[-1:]):
            print(line, flush=True)
        if given.into:
            given.into.parent.mkdir(parents=True, exist_ok=True)
            with given.into.open("a") as file:
                file.write(json.dumps(records[-1]) + "\n")
        gc.collect()
    if given.write_types:
        write_types(records)
    for title, count in sorted(totals(records).items()):
        print(f"{count:>5}  {title}")
    print(f"{len(records)} classes, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
