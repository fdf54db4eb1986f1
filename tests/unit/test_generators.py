"""The generator makes what it promises: each feature at a minimum rate, and cases in which a small mistake shows."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from random import Random
from typing import Any

import accelerate.utils.modeling as upstream
import pytest
from hypothesis import given
from torch import nn

from generators import Case, case, cases, describe, features, transformers_case
from oracle.ordered_transformers import transformers_answer
from oracle.repaired_accelerate import accelerate_answer
from oracle.upstream import Answer, executed_again

# What they tell changes only with the generators and the accelerate that is installed.
pytestmark = [pytest.mark.sweep, pytest.mark.filterwarnings("ignore:Current model requires")]

SAMPLE = 400
LARGE_SAMPLE = 1600  # for rare mistakes

MINIMUM_RATES = {
    "tied parameters": 0.3,
    "shared buffers": 0.04,
    "shared modules": 0.07,
    "direct parameters of inner modules": 0.15,
    "direct buffers of inner modules": 0.12,
    "direct tensors of the root": 0.1,
    "non-persistent buffers": 0.15,
    "several dtypes": 0.3,
    "depth of three": 0.15,
    "a module without bytes": 0.2,
    "root listed as not to be split": 0.05,
    "a budget of zero": 0.1,
    "no accelerator": 0.03,
    "no cpu": 0.1,
    "a disk budget": 0.02,
    "a gap in the devices": 0.1,
    "float budgets": 0.03,
    "accelerators smaller than the model": 0.3,
}


@cache
def draw(seed: int) -> tuple[Case, Answer]:
    drawn = case(Random(seed))
    return drawn, accelerate_answer(drawn.model, drawn.max_memory, **drawn.kwargs)


def sample() -> list[Case]:
    return [draw(seed)[0] for seed in range(SAMPLE)]


def answers() -> list[Answer]:
    return [draw(seed)[1] for seed in range(SAMPLE)]


@pytest.mark.parametrize(("feature", "rate"), MINIMUM_RATES.items())
def test_every_feature_has_its_minimum_rate(feature: str, rate: float) -> None:
    found = Counter(feature for drawn in sample() for feature in features(drawn))
    assert found[feature] / SAMPLE >= rate


def test_every_feature_has_a_minimum_rate() -> None:
    assert set(MINIMUM_RATES) >= {feature for drawn in sample() for feature in features(drawn)}


def test_at_least_half_of_accelerates_answers_bind_and_all_ways_to_fail_occur() -> None:
    verdicts = Counter(answer.verdict for answer in answers())
    assert verdicts["binding"] / SAMPLE >= 0.5
    assert verdicts["raised"] / SAMPLE >= 0.1
    assert verdicts["invalid"] / SAMPLE >= 0.04
    assert verdicts["accident"] > 0


def test_many_binding_answers_use_several_devices_and_many_offload() -> None:
    binding = [set((answer.device_map or {}).values()) for answer in answers() if answer.binding]
    assert sum(len(devices) > 1 for devices in binding) / SAMPLE >= 0.2
    assert sum(bool(devices & {"cpu", "disk"}) for devices in binding) / SAMPLE >= 0.2


def test_at_least_half_of_transformers_answers_bind_and_all_ways_to_fail_occur() -> None:
    drawn = [transformers_case(Random(seed)) for seed in range(SAMPLE)]
    verdicts = Counter(transformers_answer(d.model, d.max_memory, **d.kwargs).verdict for d in drawn)
    assert verdicts["binding"] / SAMPLE >= 0.5
    assert min(verdicts[verdict] for verdict in ("raised", "invalid", "accident")) > 0


# Mistakes that a planner could make, as changes to accelerate's source: the share of all cases in which each shows.
MISTAKES = {
    "fits only with a byte to spare": (
        r"module_size_with_ties <= current_max_size",
        "module_size_with_ties < current_max_size",
        0.03,
    ),
    "no reservation on the cpu": (r'\[gpus\[0\], "cpu"\]', "[gpus[0]]", 0.02),
    "the fallback reserves the largest layer only": (
        r"max\(max_layer_size, module_size_with_ties\)",
        "max_layer_size",
        0.01,
    ),
    "the fallback fits only with a byte to spare": (
        r"module_size_with_ties <= size_limit",
        "module_size_with_ties < size_limit",
        0.002,
    ),
    "the largest layer is looked up afresh each time": (
        r"if len\(max_layer_names\) == 0:",
        "if True:",
        0.0005,
    ),
    "the first reservation overlooks the root's tensors": (
        r"get_max_layer_size\(modules_to_treat, module_sizes",
        "get_max_layer_size(list(model.named_children()), module_sizes",
        0.0005,
    ),
    "the root's buffers come first": (
        r"list\(model\.named_children\(\)\)\n        \+ list\(model\.named_buffers\(recurse=False\)\)\n    \)\n\n    return \(",
        "list(model.named_buffers(recurse=False))\n        + list(model.named_children())\n    )\n\n    return (",
        0.005,
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_small_mistake_shows(mistake: str) -> None:
    pattern, replacement, rate = MISTAKES[mistake]
    wrong = executed_again(upstream, [(pattern, replacement, 1)])
    size = SAMPLE if rate > 0.002 else LARGE_SAMPLE
    shown = sum(differs(wrong.infer_auto_device_map, *draw(seed)) for seed in range(size))
    assert shown / size >= rate


def differs(plan: Any, drawn: Case, answer: Answer) -> bool:
    if not answer.binding:
        return False
    try:
        with seconds(0.1):  # a mistaken fallback may never end
            return list(plan(drawn.model, dict(drawn.max_memory), **drawn.kwargs).items()) != list(
                (answer.device_map or {}).items()
            )
    except Exception:
        return True


@contextmanager
def seconds(limit: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@given(cases())
def test_hypothesis_can_drive_the_generator(drawn: Case) -> None:
    assert isinstance(drawn.model, nn.Module)
    assert all(budget >= 0 for budget in drawn.max_memory.values())
    assert all(p.device.type == "meta" for p in drawn.model.parameters())


def test_one_seed_is_one_case() -> None:
    assert [repr(case(Random(seed))) for seed in range(30)] == [repr(drawn) for drawn in sample()[:30]]


def test_the_description_tells_ties_by_number() -> None:
    model = nn.Module()
    model.a, model.b = nn.Linear(1, 1, device="meta"), nn.Linear(1, 1, device="meta")
    model.b.weight = model.a.weight
    numbers = re.findall(r"\.weight: .* (#\d+)", describe(model))
    assert len(numbers) == 2 and len(set(numbers)) == 1
