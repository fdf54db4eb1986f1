"""Tests of transformers' loading code on the virtual accelerators; `rig.collecting` says how they run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import peft
import pytest

import planner
from peft_models import LORA, saved
from rig.collecting import *  # noqa: F403 - hooks and fixtures, which pytest finds here by name
from stored_models import stored


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(folder, tmp_path_factory.mktemp("adapter"), peft.LoraConfig(**LORA, init_lora_weights=False))


@pytest.fixture
def current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing is written below it."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield here
    assert not list(here.iterdir())


@pytest.fixture
def here() -> Iterator[planner.Integration]:
    with planner.integrate() as integration:
        yield integration
