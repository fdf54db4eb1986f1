"""The parts of `benches/gpu.py` that measure, beside transformers and accelerate, with a small model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[3] / "benches"
FIGURES = {
    "load": ["load, {} / transformers", "load, {} / load_file", "load, {} / copy"],
    "stream": [
        "forward, blocks on {} / transformers",
        "forward, blocks on {} / accelerate",
        "forward, blocks on {} / resident",
        "forward, blocks on {} / copy",
    ],
}


@pytest.mark.sweep  # a minute of measuring
def test_everything_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHES))
    from gpu_models import SMALL
    from gpu_parts import PARTS, Measuring, import_others

    import_others()
    rows: list[dict[str, object]] = []
    for name, run in PARTS.items():
        results = tmp_path / f"{name}.jsonl"
        run(Measuring(tmp_path, results, time.monotonic(), SMALL, 1))
        rows += [json.loads(line) for line in results.read_text().splitlines()]
    figures = {row["what"]: row for each in rows for row in each.get("figures", [])}
    lacking = [name for name, row in figures.items() if row["value"] is None]
    assert lacking == []
    wanted = [words.format("warm") for words in FIGURES["load"]]
    wanted += [words.format("cold") for words in FIGURES["load"]]
    wanted += [words.format(f"{rest}, warm") for rest in ("cpu", "disk") for words in FIGURES["stream"]]
    wanted += ["forward, blocks on disk, cold / read", "added to a call, one tensor / accelerate"]
    assert [name for name in wanted if name not in figures] == []
    assert [figures[f"{rest}: same logits as resident"]["shown"] for rest in ("cpu", "disk")] == ["yes"] * 2
