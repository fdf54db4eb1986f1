"""The places in another version of transformers than the installed one, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A folder with the other version: pip install --no-deps --target FOLDER 'transformers==5.24.*'
FOLDER = os.environ.get("OTHER_TRANSFORMERS", "")

PROGRAM = """
import inspect, json, sys
import planner, transformers
from planner.compat.huggingface.sites import GROUPS
from transformers import LlamaConfig, LlamaForCausalLM

with planner.integrate() as here:
    pass
sizes = dict(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(sys.argv[1])
with here:
    model = LlamaForCausalLM.from_pretrained(sys.argv[1], device_map="auto", max_memory={"cpu": "1GiB"})
found = {str(site): str(inspect.signature(call.found())) for site, call in zip(here.sites, GROUPS[0].sites)}
print(json.dumps([transformers.__version__, planner.plan_of(model) is here.plans[0], found]))
"""


def answer(tmp_path: Path, *folders: str) -> list[object]:
    paths = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, list)
    return found


@pytest.mark.skipif(not FOLDER, reason="OTHER_TRANSFORMERS names no folder")
def test_both_versions_have_the_same_places(tmp_path: Path) -> None:
    here, there = answer(tmp_path / "here"), answer(tmp_path / "there", FOLDER)
    assert here[0] != there[0]
    assert here[1:] == there[1:]
    assert here[1]
