"""What the folders of tests on virtual accelerators share: each file in a process of its own, and the fixtures.

Registering the device type holds for a whole process, and other tests must not see accelerators that are not there. So:

- Where pytest was started for such a folder or files of it and nothing else (`pytest tests/dispatch/virtual/test_rig.py`,
  also with `::test_name`, `-k`, `-n`), the tests run where they are collected, as anywhere.
- In any other run (`make test`), each file is one test, which starts pytest for that file and shows what it printed if it
  fails. Those tests can go to different workers of pytest-xdist.

Without a C++ compiler everything there is skipped, and says so.

Every test starts with no limits, no traffic and device 0. Fixtures: `virtual_accelerators`, `watched_streams`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rig.build import missing
from rig.forked_runs import forked_runs

if TYPE_CHECKING:
    from rig import Accelerators

__all__ = [
    "one_thread",
    "pytest_collection_modifyitems",
    "pytest_pycollect_makemodule",
    "registered_accelerators",
    "virtual_accelerators",
    "watched_streams",
]

TIME_LIMIT_S = 600


class FailedInChildError(Exception):
    """pytest in the child process ended with failures."""


class ChildModule(pytest.File):
    """One file of tests, run by one test."""

    def collect(self) -> Iterable[pytest.Item]:
        yield ChildRun.from_parent(self, name="in_a_process_of_its_own")


class ChildRun(pytest.Item):
    """Starts pytest for one file, which then finds itself alone and runs it."""

    def runtest(self) -> None:
        if reason := missing():
            pytest.skip(reason)
        marks = self.config.getoption("markexpr")
        arguments = [
            str(self.path),
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            *(["-m", marks] if marks else []),
        ]
        code, output = forked_runs(self.config.rootpath).run(arguments, TIME_LIMIT_S)
        if code == pytest.ExitCode.NO_TESTS_COLLECTED and marks:
            pytest.skip(f"no test of this file has the marks {marks!r}")
        if code != 0:
            raise FailedInChildError(f"exit code {code}\n{output}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, FailedInChildError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"{self.path.name} in a process of its own"


def is_alone(config: pytest.Config, folder: Path) -> bool:
    """Whether this run is for tests of this folder only."""
    places = [Path(config.invocation_params.dir, argument.partition("::")[0]) for argument in config.args]
    return all(place.resolve().is_relative_to(folder) for place in places)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """In a run with other tests, a file's single test stands for it."""
    if is_alone(parent.config, module_path.parent.resolve()) or not module_path.name.startswith("test_"):
        return None
    return ChildModule.from_parent(parent, path=module_path)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small models are faster so, and nothing changes the order of sums between one answer and the next."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def registered_accelerators() -> Accelerators:
    """Both devices, registered in this process; skips where they cannot be built."""
    if reason := missing():
        pytest.skip(reason)
    from rig import Accelerators

    return Accelerators()


@pytest.fixture(autouse=True)
def virtual_accelerators(registered_accelerators: Accelerators) -> Iterator[Accelerators]:
    """Both devices as they were at the beginning: `.memory_limit_bytes(0, n)`, `.traffic()`, `.peak_bytes(0)`, …"""
    if any(registered_accelerators.used_bytes(device.index) for device in registered_accelerators.devices):
        gc.collect()  # models of earlier tests that are only held by cycles
        gc.freeze()  # the libraries' own objects are many, and need not be gone through again before the next test
    registered_accelerators.reset()
    yield registered_accelerators
    registered_accelerators.reset()


@pytest.fixture
def watched_streams(virtual_accelerators: Accelerators) -> Iterator[None]:
    """The test fails if work on streams shares memory without being ordered."""
    with virtual_accelerators.watch_streams():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files come first: they are the longest, and at the end one worker would wait for another's."""
    items.sort(key=lambda item: not isinstance(item, ChildRun))
