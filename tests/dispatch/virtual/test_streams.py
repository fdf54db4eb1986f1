"""Streams and events of the virtual accelerators, and what `watch_streams` finds."""

from __future__ import annotations

import pytest
import torch

from rig import Accelerators, OutOfOrderError


@pytest.fixture
def side() -> torch.Stream:
    return torch.Stream(device="virtual:0")


def main_stream() -> torch.Stream:
    return torch.accelerator.current_stream(0)


def test_streams_and_events_are_torchs() -> None:
    main = torch.accelerator.current_stream(1)
    side = torch.Stream(device="virtual:1")
    assert side != main and side.device == torch.device(1)
    with side:
        assert torch.accelerator.current_stream(1) == side
    assert torch.accelerator.current_stream(1) == main
    event = side.record_event()
    main.wait_event(event)
    main.wait_stream(side)
    event.synchronize()
    side.synchronize()
    torch.accelerator.synchronize(1)
    assert event.query() and side.query()
    start, end = (torch.Event("virtual", enable_timing=True) for _ in range(2))
    start.record()
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) >= 0


def test_the_module_has_the_names_of_cudas() -> None:
    module = torch.get_device_module("virtual")
    with module.stream(module.Stream(device="virtual:0")) as stream:
        assert module.current_stream() == stream
    assert module.current_stream() == module.default_stream()
    with module.device(1):
        assert module.current_device() == 1
    assert module.current_device() == 0


@pytest.mark.usefixtures("watched_streams")
def test_work_on_one_stream_is_ordered() -> None:
    x = torch.ones(4).pin_memory().to(0, non_blocking=True)
    assert (x + 1).sum().item() == 8
    x.add_(1)


@pytest.mark.usefixtures("watched_streams")
def test_prefetching_in_order_is_accepted(side: torch.Stream) -> None:
    """Two slots of one buffer, filled on a side stream while the other is in use."""
    blocks = [torch.full((4,), float(number)).pin_memory() for number in range(5)]
    slots = torch.empty(2, 4, device="virtual:0")
    side.wait_stream(main_stream())
    is_free: list[torch.Event | None] = [None, None]
    found = []
    for number, block in enumerate(blocks):
        slot = number % 2
        if is_free[slot] is not None:
            side.wait_event(is_free[slot])
        with side:
            slots[slot].copy_(block, non_blocking=True)
        main_stream().wait_event(side.record_event())
        found.append(slots[slot] * 2)
        is_free[slot] = main_stream().record_event()
    assert [int(value.sum().item()) for value in found] == [0, 8, 16, 24, 32]


def test_using_a_copy_that_was_not_waited_for(virtual_accelerators: Accelerators, side: torch.Stream) -> None:
    slot = torch.zeros(4, device="virtual:0")
    with (
        pytest.raises(RuntimeError, match=r"stream race: .*reads memory that stream \d+ of virtual:0 writes"),
        virtual_accelerators.watch_streams(),
    ):
        with side:
            slot.copy_(torch.ones(4).pin_memory(), non_blocking=True)
        slot + 1


def test_overwriting_what_is_still_in_use(virtual_accelerators: Accelerators, side: torch.Stream) -> None:
    slot = torch.zeros(4, device="virtual:0")
    with (
        pytest.raises(RuntimeError, match=r"stream race: .*writes memory that stream 0 of virtual:0 reads"),
        virtual_accelerators.watch_streams(),
    ):
        slot + 1
        with side:
            slot.copy_(torch.ones(4).pin_memory(), non_blocking=True)


@pytest.mark.parametrize("waits", [False, True])
def test_filling_new_memory_on_another_stream(
    virtual_accelerators: Accelerators, side: torch.Stream, waits: bool
) -> None:
    """Work of its own stream may not be done with what was there before."""

    def fill() -> None:
        slot = torch.empty(4, device="virtual:0")
        if waits:
            side.wait_stream(main_stream())
        with side:
            slot.copy_(torch.ones(4).pin_memory(), non_blocking=True)
        main_stream().wait_stream(side)

    if waits:
        with virtual_accelerators.watch_streams():
            fill()
    else:
        with (
            pytest.raises(RuntimeError, match="writes memory that stream 0 of virtual:0 allocated"),
            virtual_accelerators.watch_streams(),
        ):
            fill()


@pytest.mark.parametrize("remedy", ["nothing", "record_stream", "wait"])
def test_freeing_what_another_stream_uses(
    virtual_accelerators: Accelerators, side: torch.Stream, remedy: str
) -> None:
    """Its stream may hand the memory out again at once."""

    def use() -> None:
        with side:
            x = torch.ones(4).pin_memory().to(0, non_blocking=True)
        main_stream().wait_stream(side)
        x + 1
        if remedy == "record_stream":
            x.record_stream(main_stream())
        if remedy == "wait":
            side.wait_stream(main_stream())

    if remedy == "nothing":
        with (
            pytest.raises(OutOfOrderError, match="was freed while stream 0 of virtual:0 may still use it"),
            virtual_accelerators.watch_streams(),
        ):
            use()
    else:
        with virtual_accelerators.watch_streams():
            use()


@pytest.mark.parametrize("waits", [False, True])
def test_refilling_pinned_memory_before_the_copy_is_over(
    virtual_accelerators: Accelerators, side: torch.Stream, waits: bool
) -> None:
    pinned = torch.ones(4).pin_memory()

    def refill() -> None:
        with side:
            first = pinned.to(0, non_blocking=True)
        if waits:
            side.synchronize()
        pinned.fill_(2)
        with side:
            del first

    if waits:
        with virtual_accelerators.watch_streams():
            refill()
    else:
        with (
            pytest.raises(OutOfOrderError, match="pinned memory was changed"),
            virtual_accelerators.watch_streams(),
        ):
            refill()


def test_results_arrive_when_the_host_has_waited(virtual_accelerators: Accelerators) -> None:
    with virtual_accelerators.watch_streams():
        x = torch.ones(4, device="virtual:0")
        pinned = torch.zeros(4).pin_memory()
        pinned.copy_(x, non_blocking=True)
        x.zero_()
        assert pinned.tolist() == [0, 0, 0, 0]
        torch.accelerator.synchronize(0)
        assert pinned.tolist() == [1, 1, 1, 1]


@pytest.mark.usefixtures("watched_streams")
def test_crossing_devices_orders_both_streams() -> None:
    x = torch.ones(4, device="virtual:0")
    y = x.to(1, non_blocking=True)
    assert (y + 1).sum().item() == 8
    x.zero_()
    assert y.sum().item() == 4


@pytest.mark.usefixtures("watched_streams")
def test_backward_is_ordered() -> None:
    x = torch.ones(2, 3, device="virtual:0", requires_grad=True)
    layer = torch.nn.Linear(3, 2).to(1)
    layer(x.to(1)).sum().backward()
    assert x.grad is not None and x.grad.cpu().isfinite().all()
