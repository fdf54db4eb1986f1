"""What tests of the integration share: who answers a call of transformers', and that nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from transformers import modeling_utils
from transformers.integrations import accelerate as dispatching

import planner
from planner.compat.huggingface import placed
from planner.compat.huggingface.in_force import in_force


@pytest.fixture
def nothing_stays() -> Iterator[None]:
    """Before and after, everything is as transformers has it."""
    places = ((modeling_utils, "_get_device_map"), (dispatching, "dispatch_model"))
    before = [getattr(*place) for place in places]
    yield
    assert [getattr(*place) for place in places] == before
    assert in_force() is None


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[], planner.Integration | None]:
    """Calls `dispatch_model` where transformers does, and says which integration answered."""
    monkeypatch.setattr(placed, "place", lambda integration, before, model: integration)

    def call() -> planner.Integration | None:
        try:
            return dispatching.dispatch_model("a model")
        except TypeError:  # accelerate's cannot do without a device map
            return None

    return call
