"""What all tests share: no time limits on single examples, and quiet upstream loggers."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

SHARED = settings(
    deadline=None,  # the machine is shared; the suite as a whole is what must be fast
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    print_blob=True,
)
settings.register_profile("planner", SHARED, derandomize=True)  # the same examples in every run
settings.register_profile("thorough", SHARED, max_examples=3_000)  # pytest --hypothesis-profile=thorough
settings.load_profile("planner")


@pytest.fixture(autouse=True)
def quiet_upstream(request: pytest.FixtureRequest) -> Iterator[None]:
    """accelerate complains of every accelerator that this machine lacks; only tests of notices want to read that."""
    loggers = [logging.getLogger(name) for name in ("accelerate", "transformers", "planner")]
    if "caplog" in request.fixturenames:
        yield
        return
    for logger in loggers:
        logger.disabled = True
    names = ("accelerate.utils.modeling", "transformers.integrations.accelerate")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    yield
    for logger in loggers:
        logger.disabled = False
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
