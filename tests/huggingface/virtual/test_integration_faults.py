"""Errors, interrupts and threads while models are loaded inside of an integration: nothing stays, neither in place nor in memory."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from transformers import modeling_utils
from transformers.integrations import accelerate as dispatching

import planner
from planner.compat.huggingface.in_force import in_force
from rig import Accelerators
from rig.interrupting import ARE_POINTS_KNOWN, interrupted_in
from tiny_folders import llama, saved_in

IDS = torch.arange(12).reshape(2, 6)
BUDGETS = {0: 80_000, 1: 80_000, "cpu": "1MiB"}  # of 140 416 bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_in(tmp_path_factory.mktemp("llama"), llama)


@pytest.fixture
def nothing_stays(virtual_accelerators: Accelerators) -> Iterator[None]:
    """Nothing replaced, in force or in memory."""
    before = modeling_utils._get_device_map, dispatching.dispatch_model
    yield
    assert (modeling_utils._get_device_map, dispatching.dispatch_model) == before
    assert in_force() is None
    assert_empty(virtual_accelerators)


def assert_empty(accelerators: Accelerators) -> None:
    """No memory is used, but for what only cycles hold."""
    if any(accelerators.used_bytes(index) for index in (0, 1)):
        gc.collect()
    assert [accelerators.used_bytes(index) for index in (0, 1)] == [0, 0]


def load(folder: str, **said: Any) -> Any:
    said = {"device_map": "auto", "max_memory": BUDGETS, **said}
    return tf.AutoModelForCausalLM.from_pretrained(folder, **said)


def load_inside(folder: str, **said: Any) -> Any:
    with planner.integrate():
        model = load(folder, **said)
    assert len(set(model.hf_device_map.values())) > 1
    return model


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def raising(error: type[BaseException]) -> Callable[..., Any]:
    def function(*args: object, **kwargs: object) -> Any:
        raise error("on purpose")

    return function


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["_load_pretrained_model", "_finalize_model_loading", "eval"])
def test_an_error_while_loading(
    step: str, error: type[BaseException], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf.PreTrainedModel, step, raising(error))
    with pytest.raises(error, match="on purpose"):
        load_inside(folder)


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.parametrize("allocations", [0, 10])
@pytest.mark.parametrize("index", [0, 1])
def test_out_of_memory_while_loading(
    index: int, allocations: int, folder: str, virtual_accelerators: Accelerators
) -> None:
    with (
        virtual_accelerators.out_of_memory_after(index, allocations),
        pytest.raises(torch.OutOfMemoryError),
    ):
        load_inside(folder)


@pytest.mark.usefixtures("nothing_stays")
@pytest.mark.skipif(not ARE_POINTS_KNOWN, reason="where signals are taken is known for CPython 3.11")
@pytest.mark.parametrize(
    ("is_auto", "every"),
    [(False, 30_011), *(pytest.param(is_auto, 1_999, marks=pytest.mark.sweep) for is_auto in (False, True))],
)
def test_an_interrupt_while_planning_and_dispatching(
    is_auto: bool, every: int, folder: str, tmp_path: Path, virtual_accelerators: Accelerators
) -> None:
    layers = {f"model.layers.{number}": place for number, place in enumerate((0, "cpu", 1, "disk"))}
    device_map = "auto" if is_auto else {"model": 0, "lm_head": 0, **layers}
    package = Path(planner.__file__).parent
    stops = 1
    while interrupted_in(
        (package,), lambda: load_inside(folder, device_map=device_map, offload_folder=tmp_path), stops
    ):
        assert in_force() is None, stops
        assert_empty(virtual_accelerators)
        stops += every
    assert stops > every


@pytest.mark.usefixtures("nothing_stays")
def test_eight_threads_load_and_four_of_them_inside(folder: str) -> None:
    logits = load(folder, device_map=0)(IDS.to(0)).logits.cpu()

    @torch.no_grad()
    def work(number: int) -> bool:
        with ExitStack() as stack:
            here = stack.enter_context(planner.integrate()) if number % 2 else None
            model = load(folder)
            assert model(IDS.to(0)).logits.cpu().equal(logits)
            assert here is None or here.plans == (planner.plan_of(model),)
            return planner.plan_of(model) is not None

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [False, True] * 4


@pytest.mark.usefixtures("nothing_stays")
def test_tasks_load_side_by_side(folder: str) -> None:
    async def task(is_inside: bool) -> bool:
        with ExitStack() as stack:
            if is_inside:
                stack.enter_context(planner.integrate())
            await asyncio.sleep(0)
            in_thread = asyncio.to_thread(load, folder)  # which takes the context along
            return planner.plan_of(await in_thread) is not None

    async def all_tasks() -> list[bool]:
        return await asyncio.gather(*(task(number % 2 == 0) for number in range(4)))

    assert asyncio.run(all_tasks()) == [True, False, True, False]


def test_models_are_not_kept_alive(folder: str, virtual_accelerators: Accelerators) -> None:
    with planner.integrate() as here:
        model = load(folder)
        assert planner.plan_of(model) is here.plans[-1]
        del model
        gc.collect()
        assert virtual_accelerators.used_bytes(0) == 0
        assert here.plans


def test_models_outlive_the_integration(folder: str, tmp_path: Path) -> None:
    plain = load(folder, device_map=0)(IDS.to(0)).logits
    model = load_inside(folder)
    assert model(IDS.to(0)).logits.equal(plain)
    model.save_pretrained(tmp_path)
    assert load(str(tmp_path), device_map=0)(IDS.to(0)).logits.equal(plain)
    planner.undispatch(model)
    assert planner.plan_of(model) is not None
