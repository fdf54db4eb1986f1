"""A plugin of pytest for transformers' tests of loading: on virtual accelerators, with its functions or inside ours.

Options: `--within NAME` runs each test in `planner.integrate(auto=NAME)`; `--results FILE` writes a JSON object from test to "passed", "failed" or "skipped".
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from rig import Accelerators
from upstream.plugin import Run

__all__ = ["MEMORY_BYTES"]

MEMORY_BYTES = 4 << 30


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("upstream")
    group.addoption("--within", choices=("transformers", "best"), help="what `auto` means inside ours")
    group.addoption("--results", type=Path, help="where to write the outcomes")


def pytest_configure(config: pytest.Config) -> None:
    accelerators = Accelerators()
    # Read when transformers' helpers of tests are imported, and so before its test file is.
    os.environ["TRANSFORMERS_TEST_DEVICE"] = accelerators.devices[0].type
    import transformers.testing_utils as testing

    testing.BACKEND_DEVICE_COUNT[accelerators.devices[0].type] = lambda: len(accelerators.devices)
    for device in accelerators.devices:
        limit = accelerators.memory_limit_bytes(device.index, MEMORY_BYTES)
        limit.__enter__()
        config.add_cleanup(lambda limit=limit: limit.__exit__(None, None, None))
    config.pluginmanager.register(Run({}, config.getoption("results")))
    config.pluginmanager.register(Within(config.getoption("within")))


class Within:
    """Runs each test in `planner.integrate`, where that is asked for."""

    def __init__(self, auto: str | None) -> None:
        self.auto = auto

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        with self.integration():
            return (yield)

    def integration(self) -> AbstractContextManager[object]:
        if self.auto is None:
            return nullcontext()
        import planner

        return planner.integrate(auto=self.auto)
