"""Every example runs, with a model that it makes itself, and prints what it is there to show."""

from __future__ import annotations

import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rig import missing

EXAMPLES = Path(__file__).parent.parent / "examples"
# What each prints that nothing but a working example could.
SHOWN = {
    "plan_a_folder": [
        "model.layers.7.mlp lies on GPU 1, as a part of the block model.layers.7.",
        "(proven least)",
    ],
    "unlike_cards": ["1 → 0", "60.0 KiB headroom", "the model does not fit on the accelerators"],
    "one_card_and_cpu": ["lm_head runs on 0", "bytes more on 0, nothing would be offloaded"],
    "experts_to_cpu": [
        "{'model.layers.3.self_attn': 0, 'model.layers.3.mlp.gate': 0, 'model.layers.3.mlp.experts': 'cpu'}"
    ],
    "auto": ["offloaded", "7 tokens", "the same logits"],
    "plan_for_transformers": ["0 crossings", "\nthe same logits"],
    "adapters": ["tensors of adapters on cpu", "loss falls", "close to the trained model"],
    "quantised": ["in four bits", "7 tokens", "with 40 KiB: "],
    "demo_load": ["the same as transformers'", "times from disk (384 MiB), 0 times from the page cache"],
    "from_pretrained": ["cpu: detected: ", "7 tokens"],
    "fleet_in_ci": [
        "two large cards: fits, 0 bytes offloaded",
        "one small card: the model does not fit",
        "one small card with host memory: fits",
    ],
}


# What some of them need and tests have only where it is installed.
NEEDED = {"quantised": "bitsandbytes"}


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "tiny_models", raising=False)  # tests have one of that name, too
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
    assert code == (1 if name == "fleet_in_ci" else 0)  # one machine of that fleet is too small
    out = capfd.readouterr().out
    assert [words for words in SHOWN[name] if words not in out] == []


def test_the_demo_of_dispatch_writes_the_words_of_the_undispatched_model() -> None:
    """In a process of its own, because a virtual accelerator stays registered."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo_dispatch.py")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "the same as the undispatched model's" in done.stdout


def test_every_example_is_run() -> None:
    written = {path.stem for path in EXAMPLES.glob("*.py")} - {"demo", "demo_dispatch", "tiny_models"}
    assert written == set(SHOWN)
