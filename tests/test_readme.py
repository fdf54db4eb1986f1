"""The README as somebody uses it who has just cloned the repository: what it says to type is typed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import planner
from planner.devices.table_machine import Host, machine_of_cards

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NAME = "meta-llama/Llama-3.1-8B"


def fenced(language: str) -> list[str]:
    """The fenced blocks of a language; "" is none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [text for its, text in blocks if its == language]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache that holds a small Llama under the README's name; and a folder ./my-model that is the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, vocab_size=128
    )
    store = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    snapshot = store / "snapshots" / ("c" * 40)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(snapshot)
    (store / "refs").mkdir()
    (store / "refs/main").write_text("c" * 40)
    (tmp_path / "my-model").symlink_to(snapshot)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_do_what_they_say(hub: Path) -> None:
    typed = [line.partition(" # ")[0] for block in fenced("") for line in block.splitlines()]
    commands = [line.split() for line in typed if line.startswith("planner ") and "--remote" not in line]
    assert [words[1] for words in commands] == [
        "demo",
        *["plan"] * 3,
        "fit",
        "probe",
        *["plan"] * 2,
        "export",
    ]
    # Not what this machine does, but what one with the cards of the README does; `tests/measuring` has the probe.
    commands = [words for words in commands if words[1] != "probe"]
    host = Host(memory_bytes_per_s=60 * 10**9, flops_per_s=10**12)
    (hub / "machine.json").write_text(machine_of_cards({0: "RTX 4090", 1: "RTX 3060 12GB"}, host).to_json())
    for words in commands:
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, timeout=300, cwd=hub
        )
        assert done.returncode == 0, (words, done.stderr)
        assert done.stdout.strip()
    assert (hub / "plan.html").stat().st_size > 10_000


ANSWER = (
    "\nimport torch\n"
    "print(model.generate(torch.tensor([[1, 2, 3]]).to(model.device), max_new_tokens=4, do_sample=False).shape)\n"
)
CHECKED = (
    "budgets = {device.id: device.budget_bytes for device in plan.devices}\n"
    "assert planner.is_valid(planner.check(model, plan.device_map, budgets))\n"
)


@pytest.mark.parametrize("number", range(4))
def test_a_model_is_loaded_and_answers(hub: Path, number: int) -> None:
    """As planned by from_pretrained, inside its own code, straight from the files, and by accelerate's functions."""
    programs = fenced("py")
    assert len(programs) == 4
    program = programs[number]
    if not torch.accelerator.is_available():
        program, count = re.subn(r",? max_memory=\{.*?\}", "", program)  # what this machine has
        assert count == 1
    # A process of its own: huggingface_hub reads its variables when it is imported.
    program += ANSWER + (CHECKED if "plan = planner.plan(" in program else "")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 7])" in done.stdout


def test_from_planner_import_is_enough() -> None:
    (line,) = re.findall(r"^from planner import .*$", README, re.MULTILINE)
    namespace: dict[str, object] = {}
    exec(line, namespace)
    for name in line.removeprefix("from planner import ").split(", "):
        assert namespace[name] is getattr(planner, name)


def pictures() -> ModuleType:
    """The script that draws the README's picture."""
    spec = importlib.util.spec_from_file_location("write_pictures", ROOT / "docs/write_pictures.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(picture: str) -> list[str]:
    """What an SVG says, whatever a version of rich calls its colours."""
    return re.findall(r"<text[^>]*>(.*?)</text>", picture)


def test_the_picture_is_what_the_demo_prints() -> None:
    """`make docs` draws it anew."""
    wanted = pictures().pictures()
    folder = ROOT / "docs/pictures"
    assert sorted(os.listdir(folder)) == sorted(wanted)
    for name, text in wanted.items():
        assert words((folder / name).read_text()) == words(text), name
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
        assert f"docs/pictures/{name}" in README
