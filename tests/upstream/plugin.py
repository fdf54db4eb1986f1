"""A plugin of pytest for accelerate's test files: with ours in place of its functions, and on virtual accelerators.

Options: `--ours` substitutes, `--virtual` gives accelerate two virtual accelerators, `--results FILE` writes a JSON object
from test to "passed", "failed" or "skipped".
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from upstream.fetch import PARTS
from upstream.substitution import replaced, shared_names


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("upstream")
    group.addoption("--ours", action="store_true", help="our functions in place of accelerate's")
    group.addoption("--virtual", action="store_true", help="two virtual accelerators")
    group.addoption("--results", type=Path, help="where to write the outcomes")


def pytest_configure(config: pytest.Config) -> None:
    importlib.import_module("accelerate.test_utils")  # and with it, all that tests import from
    if config.getoption("virtual"):
        show_virtual_accelerators()
    names: dict[str, Any] = {}
    if config.getoption("ours"):
        import planner

        names = shared_names(planner)
    config.pluginmanager.register(Run(names, config.getoption("results")))


def show_virtual_accelerators() -> None:
    """What accelerate's tests and its default device ask of their machine."""
    import accelerate.state
    import accelerate.test_utils
    import torch

    from rig import Accelerators

    accelerators = Accelerators()
    first = accelerators.devices[0]
    for module in (accelerate.test_utils, accelerate.test_utils.testing):
        module.torch_device = first.type
    accelerate.test_utils.testing.device_count = len(accelerators.devices)
    accelerate.test_utils.testing.memory_allocated_func = torch.accelerator.memory_allocated
    accelerate.state.PartialState.default_device = property(lambda self: first)


class Run:
    """One run: substitutes while test files are imported, and keeps the outcomes."""

    def __init__(self, names: dict[str, Any], results: Path | None) -> None:
        self.names = names
        self.results = results
        self.outcomes: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, Any, Any]:
        if not isinstance(collector, pytest.Module):
            return (yield)
        with replaced(self.names):
            return (yield)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left_out = [item for item in items if not item.name.startswith(PARTS.get(item.path.stem, ("",)))]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = "::".join([Path(report.location[0]).stem, report.location[2]])
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[name] = report.outcome

    def pytest_sessionfinish(self) -> None:
        if self.results is not None:
            self.results.write_text(
                json.dumps({"substituted": sorted(self.names), "outcomes": self.outcomes})
            )
