"""Where an integration is in force: by context, thread and task, in any order of leaving; and nothing stays."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeAlias

import pytest

import planner
from planner.compat.huggingface.in_force import in_force
from planner.errors import InvalidInputError

Answering: TypeAlias = Callable[[], planner.Integration | None]

pytestmark = pytest.mark.usefixtures("nothing_stays")


def in_thread(call: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_the_innermost_is_in_force(answering: Answering) -> None:
    assert answering() is None
    with planner.integrate() as outer:
        assert answering() is outer
        with planner.integrate(auto="transformers") as inner:
            assert answering() is inner
        assert answering() is outer
    assert answering() is None


def test_one_integration_may_be_entered_again(answering: Answering) -> None:
    here = planner.integrate()
    for _ in range(2):
        with here as entered, here:
            assert entered is here
            assert answering() is here
        assert answering() is None
    with here, planner.integrate() as other:
        with here:
            assert answering() is here
        assert answering() is other


def test_lifetimes_may_overlap(answering: Answering) -> None:
    first, second, third = (planner.integrate() for _ in range(3))
    first.__enter__(), second.__enter__(), third.__enter__()
    first.__exit__(None, None, None)
    assert answering() is third
    third.__exit__(None, None, None)
    assert answering() is second
    second.__exit__(None, None, None)
    assert answering() is None


def test_leaving_what_was_not_entered_is_an_error() -> None:
    with pytest.raises(InvalidInputError, match="had not been entered"):
        planner.integrate().__exit__(None, None, None)


def test_other_threads_see_transformers(answering: Answering) -> None:
    with planner.integrate() as here:
        assert in_thread(answering) is None
        context = contextvars.copy_context()
        assert in_thread(lambda: context.run(answering)) is here
    assert in_thread(lambda: context.run(answering)) is None  # over for whoever took it along, too


def test_eight_threads_of_which_four_are_inside(answering: Answering) -> None:
    meeting = threading.Barrier(8, timeout=60)

    def work(number: int) -> None:
        for _ in range(20):
            with ExitStack() as stack:
                here = stack.enter_context(planner.integrate()) if number % 2 else None
                meeting.wait()
                assert answering() is here
                meeting.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_threads_enter_and_leave_as_they_come(answering: Answering) -> None:
    shared = planner.integrate()

    def work(number: int) -> None:
        for _ in range(25):
            with shared if number % 2 else planner.integrate() as here:
                assert answering() is here

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_tasks_side_by_side(answering: Answering) -> None:
    async def task(is_inside: bool) -> None:
        for _ in range(5):
            with ExitStack() as stack:
                here = stack.enter_context(planner.integrate()) if is_inside else None
                await asyncio.sleep(0)
                assert answering() is here

    async def all_tasks() -> None:
        await asyncio.gather(*(task(number % 2 == 0) for number in range(6)))

    asyncio.run(all_tasks())


def entering(here: planner.Integration) -> Iterator[None]:
    with here:
        yield


def test_a_generator_that_is_never_finished(answering: Answering) -> None:
    here = planner.integrate()
    steps = entering(here)
    next(steps)
    assert answering() is here
    del steps
    gc.collect()
    assert answering() is None


def test_a_generator_that_is_finished_inside_of_another_integration(answering: Answering) -> None:
    steps = entering(planner.integrate())
    next(steps)
    with planner.integrate() as inner:
        next(steps, None)
        assert answering() is inner
    assert answering() is None


def test_left_in_another_thread_than_entered(answering: Answering) -> None:
    here = planner.integrate()
    steps = entering(here)
    next(steps)
    in_thread(lambda: next(steps, None))
    assert answering() is None


def test_entered_in_a_thread_that_has_ended(answering: Answering) -> None:
    here = planner.integrate()
    in_thread(here.__enter__)
    assert answering() is None
    here.__exit__(None, None, None)


def test_each_thread_leaves_its_own(answering: Answering) -> None:
    here = planner.integrate()
    here.__enter__()
    left = threading.Event()

    def work() -> None:
        here.__enter__()
        left.wait(60)
        assert answering() is here
        here.__exit__(None, None, None)

    thread = threading.Thread(target=work)
    thread.start()
    here.__exit__(None, None, None)
    assert answering() is None
    left.set()
    thread.join()


def test_left_in_another_context_as_asynchronous_fixtures_are(answering: Answering) -> None:
    """Each step of such a fixture runs in a task, and so in a context, of its own."""
    here = planner.integrate()

    async def fixture() -> AsyncIterator[None]:
        with here:
            yield

    async def test() -> planner.Integration | None:
        return answering()

    loop = asyncio.new_event_loop()
    steps = fixture()
    loop.run_until_complete(anext(steps))
    assert loop.run_until_complete(test()) is None
    with pytest.raises(StopAsyncIteration):
        loop.run_until_complete(anext(steps))
    loop.close()


def test_installed_for_all_threads(answering: Answering) -> None:
    try:
        everywhere = planner.install()
        assert answering() is everywhere
        assert in_thread(answering) is everywhere
        with planner.integrate() as here:
            assert answering() is here
            assert in_thread(answering) is everywhere
        assert answering() is everywhere
        assert everywhere.sites
    finally:
        planner.uninstall()
    assert answering() is None


def test_installed_twice_and_taken_out_once(answering: Answering) -> None:
    try:
        first = planner.install(headroom={0: "1GiB"})
        assert planner.install(headroom={0: "1GiB"}) is first
        second = planner.install(auto="transformers")
        assert second is not first
        assert answering() is second
    finally:
        planner.uninstall()
    planner.uninstall()
    assert answering() is None


def test_what_is_installed_is_left_only_by_uninstalling(answering: Answering) -> None:
    try:
        everywhere = planner.install()
        with pytest.raises(InvalidInputError, match="had not been entered"):
            everywhere.__exit__(None, None, None)
        with everywhere:
            assert answering() is everywhere
        assert in_thread(answering) is everywhere
    finally:
        planner.uninstall()


def test_taken_out_inside_of_an_integration(answering: Answering) -> None:
    planner.install()
    with planner.integrate() as here:
        planner.uninstall()
        assert answering() is here
    assert answering() is None


def test_threads_install_uninstall_enter_and_leave_at_random() -> None:
    shared = planner.integrate()

    def work(number: int) -> None:
        drawn = random.Random(number)
        for _ in range(60):
            match drawn.randrange(5):
                case 0:
                    with shared as here:
                        assert in_force() is here
                case 1:
                    first, second = planner.integrate(), planner.integrate()
                    first.__enter__(), second.__enter__()
                    first.__exit__(None, None, None)
                    assert in_force() is second
                    second.__exit__(None, None, None)
                case 2:
                    planner.install(headroom={0: drawn.randrange(2)})
                case 3:
                    planner.uninstall()
                case 4:
                    next(entering(planner.integrate()))  # and is never finished

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
    finally:
        sys.setswitchinterval(interval_s)
        planner.uninstall()
    assert not [finder for finder in sys.meta_path if "planner" in type(finder).__module__]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_an_error_inside_leaves_it(error: type[BaseException], answering: Answering) -> None:
    with pytest.raises(error), planner.integrate():
        raise error
    assert answering() is None
