"""Cases of these tests differ in models, maps and options only, so a few of each run every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from drop_in_models import WRITERS
from torch import nn

from rig.few_cases import leave_to_the_sweep


@pytest.hookimpl(tryfirst=True)  # before cases are left out by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the others to `make sweep`."""
    leave_to_the_sweep(items, Path(__file__).parent, most_cases=2)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An offload folder."""
    folder = tmp_path / "offloaded"
    folder.mkdir()
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    def write(kind: str, model: nn.Module | Mapping[str, torch.Tensor]) -> Path:
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        return WRITERS[kind](model if isinstance(model, Mapping) else model.state_dict(), folder)

    return write
